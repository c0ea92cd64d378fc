//! The chaos checker: producers and consumers work while a random schedule kills, freezes and brings back clusters, agents,
//! Consul and Vault and flips back and forth. It proves from a log of what was sent, acknowledged and handed out that nothing was
//! lost, nothing handed out twice and each key in order, or names the record.
//!
//! Clusters are cut off by dropping their packets, where the machine lets us make networks for them. For agents, Consul and Vault a
//! frozen process stands for one behind a partition: it answers nothing, and wakes up believing that nothing happened.

mod journal;
mod schedule;
mod workload;

use std::fs::File;
use std::io::BufWriter;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

pub use journal::Verdict;
pub use schedule::{How, Outage, Schedule, Step, Target};

use crate::agent::Agent;
use crate::pair::Side;
use crate::site::Site;
use crate::wait;
use workload::Workload;

const TOPIC: &str = "chaos";
const PARTITIONS: i32 = 4;
/// Longest wait for anything to work again.
const SOON: Duration = Duration::from_secs(120);
/// So long after the network is back a request that was sent before may arrive: TCP repeats it at ever longer intervals, for a
/// socket that was closed too.
const LATE_REQUESTS: Duration = Duration::from_secs(60);
/// What a request that has arrived may take to be noticed in the log.
const ARRIVED: Duration = Duration::from_secs(2);
/// Records in each direction that show that the applications work.
const SOME: usize = 200;

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Of the schedule.
    pub seed: u64,
    /// No step begins after this time.
    pub duration: Duration,
    /// Consumers, all in one group.
    pub consumers: usize,
    /// Where the log is left if a promise was broken.
    pub folder: PathBuf,
}

/// What was done, and what the log proves.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Report {
    /// Of the schedule; run it again with the same one.
    pub seed: u64,
    /// Steps that were done.
    pub steps: usize,
    /// How often the active cluster changed.
    pub flips: usize,
    /// How often a returned cluster was restored once more, because requests from before it was cut off arrived late. Their records were
    /// acknowledged to nobody, and their producers had sent them again.
    pub restored_again: usize,
    /// How long it took.
    pub seconds: f64,
    /// What the log proves.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// Where the log of all records is, if a promise was broken.
    pub journal: Option<PathBuf>,
}

/// Runs the schedule. Panics when something does not work again in time, and says what.
pub fn run(options: &Options) -> Report {
    eprintln!(
        "chaos: seed {}, {:?}, {} consumer(s)",
        options.seed, options.duration, options.consumers
    );
    let mut fleet = Chaos::start(options);
    fleet.work.wait_progress("at the start", SOME, SOON);
    let began = Instant::now();
    let mut steps = 0;
    for step in Schedule::of(options.seed) {
        if began.elapsed() > options.duration {
            break;
        }
        steps += 1;
        let now = fleet.work.journal.elapsed().as_secs_f64();
        eprintln!(
            "chaos: {now:7.1} s  step {steps}, {:?} is active: {step}",
            fleet.active
        );
        fleet.perform(&step);
        fleet.work.wait_progress(
            &format!("after step {steps} (seed {}): {step}", options.seed),
            SOME,
            SOON,
        );
    }
    fleet.work.finish(SOON);
    let verdict = fleet.work.journal.verdict();
    let journal = (!verdict.holds()).then(|| {
        let path = options.folder.join(format!("chaos-{}.jsonl", options.seed));
        let file = File::create(&path).expect("a file for the journal");
        fleet
            .work
            .journal
            .write(BufWriter::new(file))
            .expect("write the journal");
        path
    });
    Report {
        seed: options.seed,
        steps,
        flips: fleet.flips,
        restored_again: fleet.restored_again,
        seconds: began.elapsed().as_secs_f64(),
        verdict,
        journal,
    }
}

struct Chaos {
    // Ends first: it must not see the servers go.
    work: Workload,
    /// The agents at east (west to east) and at west.
    east: Agent,
    west: Agent,
    site: Site,
    active: Side,
    flips: usize,
    /// When a cluster was last cut off from the network, and joined to it again.
    cut: Option<Instant>,
    mended: Option<Instant>,
    restored_again: usize,
    /// The standby was restored in mode fast: it has nothing of what the active cluster wrote at the offsets of the lost tail.
    lacks_older: bool,
}

impl Chaos {
    fn start(options: &Options) -> Self {
        let site = Site::start_apart(TOPIC, PARTITIONS);
        let mut config = site.agent_config();
        let east = Agent::start(&site.pair, &config);
        config.name = "west-1".to_owned();
        config.link = ["east", "west"];
        let west = Agent::start(&site.pair, &config);
        let work = Workload::start(site.fleet(), TOPIC, options.consumers);
        let mut fleet = Self {
            work,
            east,
            west,
            site,
            active: Side::West,
            flips: 0,
            cut: None,
            mended: None,
            restored_again: 0,
            lacks_older: false,
        };
        fleet.wait_mirroring();
        fleet
    }

    fn standby(&self) -> Side {
        match self.active {
            Side::West => Side::East,
            Side::East => Side::West,
        }
    }

    fn agent(&mut self, side: Side) -> &mut Agent {
        match side {
            Side::West => &mut self.west,
            Side::East => &mut self.east,
        }
    }

    fn perform(&mut self, step: &Step) {
        match step {
            Step::Outages(outages) => self.outages(outages),
            Step::Switchover => {
                self.flip(&["switchover", "--yes", "--timeout", "30s"]);
                self.wait_mirroring();
            }
            Step::Failover { how, behind, full } => self.failover(*how, *behind, *full),
        }
    }

    fn outages(&mut self, outages: &[Outage]) {
        for outage in outages {
            self.begin(outage);
        }
        let began = Instant::now();
        let mut order = outages.to_vec();
        order.sort_by_key(|outage| outage.lasts);
        for outage in &order {
            std::thread::sleep(outage.lasts.saturating_sub(began.elapsed()));
            let only_around = !order.iter().any(|outage| outage.target == Target::Active);
            if only_around {
                self.work
                    .wait_progress("while only others are away", SOME / 4, SOON);
            }
            self.end(outage);
        }
        self.wait_mirroring();
    }

    /// Where that is which an outage hits.
    fn side(&self, target: Target) -> Side {
        match target {
            Target::Active | Target::ActiveAgent => self.active,
            _ => self.standby(),
        }
    }

    fn begin(&mut self, outage: &Outage) {
        let side = self.side(outage.target);
        match (outage.target, outage.how) {
            (Target::Active | Target::Standby, how) => self.lose(side, how),
            (Target::StandbyAgent | Target::ActiveAgent, How::Killed) => self.agent(side).kill(),
            (Target::StandbyAgent | Target::ActiveAgent, How::Frozen | How::CutOff) => {
                self.agent(side).signal(Signal::SIGSTOP);
            }
            (Target::Consul, How::Killed) => self.site.consul.kill(),
            (Target::Consul, How::Frozen | How::CutOff) => self.site.consul.pause(),
            (Target::Vault, How::Killed) => self.site.vault.seal().expect("seal"),
            (Target::Vault, How::Frozen | How::CutOff) => self.site.vault.pause(),
        }
    }

    fn end(&mut self, outage: &Outage) {
        let side = self.side(outage.target);
        match (outage.target, outage.how) {
            (Target::Active | Target::Standby, how) => self.bring_back(side, how),
            (Target::StandbyAgent | Target::ActiveAgent, How::Killed) => self.agent(side).spawn(),
            (Target::StandbyAgent | Target::ActiveAgent, How::Frozen | How::CutOff) => {
                self.agent(side).signal(Signal::SIGCONT);
            }
            (Target::Consul, How::Killed) => self.site.consul.restart().expect("Consul"),
            (Target::Consul, How::Frozen | How::CutOff) => self.site.consul.resume(),
            (Target::Vault, How::Killed) => self.site.vault.unseal().expect("unseal"),
            (Target::Vault, How::Frozen | How::CutOff) => self.site.vault.resume(),
        }
    }

    fn lose(&mut self, side: Side, how: How) {
        let cluster = self.site.pair.side(side);
        match how {
            How::Killed => cluster.kill(),
            How::CutOff if cluster.can_be_cut_off() => {
                cluster.cut_off(true).expect("cut off");
                self.cut = Some(Instant::now());
            }
            How::Frozen | How::CutOff => cluster.pause(),
        }
    }

    fn bring_back(&mut self, side: Side, how: How) {
        let cluster = self.site.pair.side(side);
        match how {
            How::Killed => cluster.restart().expect("the cluster returns"),
            How::CutOff if cluster.can_be_cut_off() => {
                cluster.cut_off(false).expect("mended");
                self.mended = Some(Instant::now());
            }
            How::Frozen | How::CutOff => cluster.resume(),
        }
    }

    /// Gives the command to the standby's agent until it is done: health probes need a moment after each step.
    fn flip(&mut self, command: &[&str]) {
        let standby = self.standby();
        let command = [command, &["--reason", "chaos", "--output", "json"]].concat();
        wait::until("the active cluster changes", SOON, || {
            let output = self.agent(standby).cli(&command);
            if output.status.success() {
                return Ok(());
            }
            // A failover does not need it, and may have happened.
            if command[0] == "switchover" {
                self.restore_after_late_requests();
            }
            std::thread::sleep(Duration::from_millis(500));
            let said = [output.stderr, output.stdout].concat();
            Err(String::from_utf8_lossy(&said).into_owned())
        });
        self.active = standby;
        self.flips += 1;
    }

    fn failover(&mut self, how: How, behind: bool, full: bool) {
        let (lost, next) = (self.active, self.standby());
        // These records are lost with their cluster (README, "What it is not, yet"). A switchover waits for that itself.
        if std::mem::take(&mut self.lacks_older) {
            self.work
                .wait_read("what only the active cluster holds", SOON);
        }
        self.wait_late_requests();
        if behind {
            self.agent(next).signal(Signal::SIGSTOP);
            self.work
                .wait_progress("while the mirror hangs", SOME, SOON);
        }
        self.lose(lost, how);
        if behind {
            self.agent(next).signal(Signal::SIGCONT);
        }
        self.flip(&["failover", "--yes"]);
        self.work.wait_progress("on the other cluster", SOME, SOON);
        self.bring_back(lost, how);
        self.restore(if full { "full" } else { "fast" });
        self.wait_mirroring();
    }

    /// Has the returned cluster mirror again; what only it holds is exported.
    fn restore(&mut self, mode: &str) {
        let standby = self.standby();
        let agent = self.agent(standby);
        let status = wait::until("the returned cluster is compared", SOON, || {
            let mirror = agent.mirror(TOPIC);
            match mirror["mirror_status"].as_str() {
                Some(status @ ("FAILED" | "ACTIVE")) => Ok(status.to_owned()),
                _ => Err(mirror.to_string()),
            }
        });
        if status == "ACTIVE" {
            return;
        }
        let command = ["mirror", "restore", "--all", "--mode", mode, "--yes"];
        wait::until("the returned cluster is restored", SOON, || {
            let output = agent.cli(&[&command[..], &["--output", "json"]].concat());
            let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            let active = || agent.mirror(TOPIC)["mirror_status"] == "ACTIVE";
            if output.status.success() && said["data"][0]["error_code"].is_null() || active() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(500));
            Err(format!(
                "{said}, {}",
                String::from_utf8_lossy(&output.stderr)
            ))
        });
        self.lacks_older = mode == "fast";
    }

    /// Restores a returned cluster's mirror once more if it has failed because of requests from before it was cut off.
    fn restore_after_late_requests(&mut self) {
        let standby = self.standby();
        let may_be_late = self
            .mended
            .is_some_and(|mended| mended.elapsed() < LATE_REQUESTS);
        if may_be_late && self.agent(standby).mirror(TOPIC)["mirror_status"] == "FAILED" {
            self.restored_again += 1;
            self.restore("full");
        }
    }

    /// A mirror that has failed is nothing to fail over to. TCP doubles its waits, so what was sent before a cut has arrived so long after it
    /// as the cut lasted.
    fn wait_late_requests(&mut self) {
        let (Some(cut), Some(mended)) = (self.cut, self.mended) else {
            return;
        };
        let until = mended + (mended - cut) + ARRIVED;
        while Instant::now() < until {
            self.restore_after_late_requests();
            std::thread::sleep(Duration::from_millis(200));
        }
        self.wait_mirroring();
    }

    /// The standby's mirror follows the active cluster.
    fn wait_mirroring(&mut self) {
        let standby = self.standby();
        self.agent(standby).wait_ready();
        let mut before = None;
        wait::until("the standby's mirror moves", SOON, || {
            self.restore_after_late_requests();
            let mirror = self.agent(standby).mirror(TOPIC);
            let ends = |mirror: &Value| -> i64 {
                let lags = mirror["mirror_lags"]
                    .as_array()
                    .cloned()
                    .unwrap_or_default();
                lags.iter()
                    .filter_map(|lag| lag["destination_log_end_offset"].as_i64())
                    .sum()
            };
            if mirror["mirror_status"] == "ACTIVE"
                && ends(&mirror) > *before.get_or_insert(ends(&mirror))
            {
                return Ok(());
            }
            Err(mirror.to_string())
        });
    }
}
