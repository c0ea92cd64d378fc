//! Two clusters and Consul for all runs; an agent, a topic, a fleet and an application per run.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use standfast_servers::{
    Consul, KafkaCluster, Namespace, Profile, Server, ServerProcess, Terminal, obtain,
    workspace_program,
};
use tempfile::TempDir;

use super::{FILL, IN_FLIGHT, PARTITIONS, PRODUCERS, Run, Scenario};

const POLL: Duration = Duration::from_millis(50);
const DEADLINE: Duration = Duration::from_secs(180);
/// Both brokers, Consul, the agent and the application share the machine.
const BROKER_HEAP_MB: u32 = 512;

/// What all runs have in common.
pub(super) struct Site {
    west: KafkaCluster,
    east: KafkaCluster,
    consul: Consul,
    profile: Profile,
    folder: TempDir,
    runs: u32,
}

impl Site {
    pub(super) fn start(dev: bool, step: &dyn Fn(String)) -> Result<Self> {
        let profile = if dev { Profile::Dev } else { Profile::Release };
        obtain(&[Server::Kafka, Server::Consul], &Terminal::new())?;
        step("building".to_owned());
        for program in ["standfast", "switch-probe"] {
            workspace_program(program, profile)?;
        }
        step("starting two Kafka clusters and Consul".to_owned());
        let builder = |name: &str| {
            KafkaCluster::builder(name)
                .full_jit()
                .heap_mb(BROKER_HEAP_MB)
        };
        let west = match Namespace::new() {
            Ok(namespace) => builder("west").network(namespace),
            Err(error) => {
                step(format!("no network namespace: {error}"));
                builder("west")
            }
        };
        Ok(Self {
            west: west.start()?,
            east: builder("east").start()?,
            consul: Consul::start()?,
            profile,
            folder: tempfile::tempdir().context("create a folder")?,
            runs: 0,
        })
    }

    pub(super) fn can_drop_packets(&self) -> bool {
        self.west.can_be_cut_off()
    }

    /// One run, and west as it was.
    pub(super) fn measure(&mut self, scenario: Scenario) -> Result<Run> {
        self.runs += 1;
        let name = format!("switch-{}", self.runs);
        let folder = self.folder.path().join(&name);
        fs::create_dir_all(folder.join("data"))?;
        self.west.create_topic(&name, PARTITIONS, &[])?;
        let region = Region::start(self, &name, &folder)?;
        let mut app = App::start(self, &name, &folder)?;
        app.expect("ready")?;
        app.tell("fill")?;
        thread::sleep(FILL);
        let flipped = self.flip(scenario, &region);
        // West comes back before anything else can fail.
        let healed = self.heal(scenario);
        let answer = flipped.and_then(|()| {
            app.tell("stop")?;
            app.line()
        });
        drop(app);
        drop(region);
        healed?;
        for cluster in [&self.west, &self.east] {
            cluster.delete_topic(&name)?;
        }
        serde_json::from_str(&answer?).context("the application's result")
    }

    fn flip(&mut self, scenario: Scenario, region: &Region) -> Result<()> {
        let command: &[&str] = match scenario {
            Scenario::PlannedSwitchover => &["switchover", "--to", "east", "--yes"],
            _ => &["failover", "--yes", "--reason", "bench"],
        };
        match scenario {
            Scenario::PlannedSwitchover => {}
            Scenario::SourceKilled => self.west.kill(),
            Scenario::SourceFrozen => self.west.pause(),
            Scenario::SourceBlackHoled => self.west.cut_off(true)?,
        }
        // Time to fill up: nothing is acknowledged any more, or, planned, the fence comes at once.
        if scenario != Scenario::PlannedSwitchover {
            thread::sleep(FILL);
        }
        region.standfast(command)?;
        // The application goes on for a moment at the new cluster.
        thread::sleep(Duration::from_secs(3));
        Ok(())
    }

    fn heal(&mut self, scenario: Scenario) -> Result<()> {
        match scenario {
            Scenario::PlannedSwitchover => {}
            Scenario::SourceKilled => self.west.restart()?,
            Scenario::SourceFrozen => self.west.resume(),
            Scenario::SourceBlackHoled => self.west.cut_off(false)?,
        }
        Ok(())
    }
}

/// The agent of one run. It ends with this value.
struct Region {
    agent: ServerProcess,
    program: PathBuf,
    listen: String,
}

impl Region {
    fn start(site: &Site, name: &str, folder: &Path) -> Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let listen = format!("127.0.0.1:{port}");
        let discovery = format!(
            "[discovery]\nbackend = \"consul\"\naddresses = [\"{}\"]\n",
            site.consul.addr()
        );
        let cluster = |name: &str, cluster: &KafkaCluster| {
            format!(
                "[clusters.{name}]\nbootstrap = \"{}\"\ncluster_id = \"{}\"\n",
                cluster.bootstrap(),
                cluster.cluster_id()
            )
        };
        let config = folder.join("agent.toml");
        let text = format!(
            "[agent]\nname = \"east-1\"\nlisten = \"{listen}\"\ndata_dir = {:?}\n\n[fleet]\nname = \"{name}\"\n\n{discovery}\n\
             [secrets]\nbackend = \"none\"\n\n{}\n{}\n[[links]]\nname = \"west-to-east\"\nsource = \"west\"\n\
             destination = \"east\"\ntopics = [\"{name}\"]\ngroups = [\"{name}\"]\ngroup_sync_interval = \"1s\"\n",
            folder.join("data"),
            cluster("west", &site.west),
            cluster("east", &site.east),
        );
        fs::write(&config, text)?;
        fs::write(folder.join("standfast.toml"), discovery)?;
        let program = workspace_program("standfast", site.profile)?;
        let config = config.display().to_string();
        call(
            &program,
            &listen,
            &["fleet", "init", "--config", &config, "--active", "west"],
        )?;
        let mut command = Command::new(&program);
        command.args(["agent", "--config", &config]);
        let log = folder.join("agent.log");
        let mut region = Self {
            agent: ServerProcess::spawn(command, &log, None)?,
            program,
            listen,
        };
        region.wait_for_mirror(name)?;
        Ok(region)
    }

    fn wait_for_mirror(&mut self, topic: &str) -> Result<()> {
        let end = Instant::now() + DEADLINE;
        loop {
            let status = self
                .standfast(&["mirror", "describe", topic])
                .ok()
                .and_then(|mirror| {
                    Some(mirror.pointer("/data/0/mirror_status")?.as_str()? == "ACTIVE")
                });
            if status == Some(true) {
                return Ok(());
            }
            ensure!(
                Instant::now() < end && self.agent.exited().is_none(),
                "no ACTIVE mirror:\n{}",
                self.agent.log_tail()
            );
            thread::sleep(POLL);
        }
    }

    fn standfast(&self, arguments: &[&str]) -> Result<Value> {
        call(&self.program, &self.listen, arguments)
    }
}

fn call(program: &Path, listen: &str, arguments: &[&str]) -> Result<Value> {
    let output = Command::new(program)
        .args(arguments)
        .args(["--output", "json"])
        .env("STANDFAST_AGENT", format!("http://{listen}"))
        .stdin(Stdio::null())
        .output()
        .context("run standfast")?;
    ensure!(
        output.status.success(),
        "standfast {}: {}\n{}{}",
        arguments.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    serde_json::from_slice(&output.stdout).context("standfast printed no JSON")
}

/// The application. Killed with this value.
struct App {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
    log: PathBuf,
}

impl App {
    fn start(site: &Site, name: &str, folder: &Path) -> Result<Self> {
        let log = folder.join("application.log");
        let mut child = Command::new(workspace_program("switch-probe", site.profile)?)
            .args([
                name,
                name,
                &PRODUCERS.to_string(),
                &IN_FLIGHT.to_string(),
                name,
            ])
            .env("STANDFAST_CONFIG", folder.join("standfast.toml"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&log)?)
            .spawn()
            .context("start switch-probe")?;
        let stdin = child.stdin.take().context("no stdin")?;
        let stdout = child.stdout.take().context("no stdout")?;
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self {
            child,
            stdin,
            lines,
            log,
        })
    }

    fn tell(&mut self, order: &str) -> Result<()> {
        writeln!(self.stdin, "{order}").context("write to the application")
    }

    fn line(&self) -> Result<String> {
        self.lines.recv_timeout(DEADLINE).map_err(|_| {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            anyhow::anyhow!("the application says nothing; its log:\n{log}")
        })
    }

    fn expect(&self, wanted: &str) -> Result<()> {
        let line = self.line()?;
        ensure!(
            line == wanted,
            "the application says {line:?}, not {wanted:?}"
        );
        Ok(())
    }
}

impl Drop for App {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
