//! Several agents share one link: killed, paused and added during a copy, they leave one log; what one is told all do.

use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use standfast_servers::{Consul, KafkaCluster};
use standfast_tests::agent::{Agent, AgentConfig};
use standfast_tests::compare::assert_same_batches;
use standfast_tests::load::SteadyLoad;
use standfast_tests::pair::Pair;
use standfast_tests::wait;

pub(crate) const PARTITIONS: i32 = 8;
const PATIENCE: Duration = Duration::from_secs(90);
/// The figure of the issue: partitions of an agent that is lost go on elsewhere within this time.
const MOVED_OVER_MAX: Duration = Duration::from_secs(10);
/// Longer than the lease (5 s), shorter than the session (6 s).
const FROZEN_SHORTLY: Duration = Duration::from_millis(5400);
const SHORT_FREEZES: usize = 2;
/// Longer than the session (6 s) and the time that the others need to notice.
const FROZEN: Duration = Duration::from_secs(9);

fn config(pair: &Pair, consul: &Consul, topic: &str, name: &str) -> AgentConfig {
    let mut config = AgentConfig::of(pair, &[topic]);
    config.name = name.to_owned();
    config.discovery = format!("backend = \"consul\"\naddresses = [{:?}]", consul.addr());
    config.link_lines = "shared = true".to_owned();
    config
}

/// How many partitions each member has, as this agent says.
fn shares(agent: &Agent) -> Vec<(String, u64)> {
    let link = agent.json(&["link", "describe", agent.link()]);
    let members = link["data"][0]["members"].as_array().cloned();
    let share = |member: &Value| {
        let name = member["member"].as_str().unwrap_or_default().to_owned();
        (name, member["partitions"].as_u64().unwrap_or_default())
    };
    let mut shares: Vec<_> = members.unwrap_or_default().iter().map(share).collect();
    shares.sort();
    shares
}

/// Waits until all agents say the same: these are the members, and each has its part. Which of them has one partition more is nobody's promise.
pub(crate) fn wait_shares(agents: &[&Agent], names: &[&str]) {
    wait::until(&format!("members {names:?}"), PATIENCE, || {
        let found: Vec<_> = agents.iter().map(|agent| shares(agent)).collect();
        let first = found.first().cloned().unwrap_or_default();
        let counts = || first.iter().map(|(_, count)| *count);
        let even = counts().max().unwrap_or(0) <= counts().min().unwrap_or(0) + 1;
        let complete = counts().sum::<u64>() == PARTITIONS as u64;
        let as_named = first.iter().map(|(name, _)| name).eq(names.iter());
        if as_named && even && complete && found.iter().all(|shares| *shares == first) {
            Ok(())
        } else {
            Err(format!("{found:?}"))
        }
    });
}

/// The partitions that another agent mirrors.
fn elsewhere(agent: &Agent, topic: &str) -> Vec<usize> {
    let mirror = agent.mirror(topic);
    let lags = mirror["mirror_lags"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let there = lags
        .iter()
        .enumerate()
        .filter(|(_, lag)| lag["state"] == "ELSEWHERE");
    there.map(|(n, _)| n).collect()
}

pub(crate) fn ends(cluster: &KafkaCluster, topic: &str) -> Vec<i64> {
    cluster.log_end_offsets(topic).expect("log ends")
}

/// Waits until all partitions have got something.
pub(crate) fn wait_grown(pair: &Pair, topic: &str) {
    let before = ends(&pair.east, topic);
    wait::until("all partitions go on", PATIENCE, || {
        let now = ends(&pair.east, topic);
        if now.iter().zip(&before).all(|(now, then)| now > then) {
            Ok(())
        } else {
            Err(format!("{before:?} {now:?}"))
        }
    });
}

/// How long after `since` all these partitions have grown on the destination.
fn wait_moved(pair: &Pair, topic: &str, partitions: &[usize], since: Instant) -> Duration {
    // What the lost agent had in flight lands within this time.
    thread::sleep(Duration::from_millis(500));
    let before = ends(&pair.east, topic);
    wait::until("the partitions go on elsewhere", PATIENCE, || {
        let now = ends(&pair.east, topic);
        let grown = partitions.iter().all(|p| now[*p] > before[*p]);
        if grown {
            Ok(())
        } else {
            Err(format!("{before:?} {now:?}"))
        }
    });
    since.elapsed()
}

pub(crate) fn wait_equal(pair: &Pair, topic: &str) {
    let west = ends(&pair.west, topic);
    wait::until(&format!("{topic} is mirrored"), PATIENCE, || {
        let east = ends(&pair.east, topic);
        if east == west {
            Ok(())
        } else {
            Err(format!("west {west:?}, east {east:?}"))
        }
    });
}

#[test]
fn agents_that_are_killed_frozen_and_added_leave_one_log_and_stop_together() {
    let pair = Pair::start();
    let mut consul = Consul::start().expect("consul");
    let topic = "shared";
    pair.west
        .create_topic(topic, PARTITIONS, &[])
        .expect("topic");
    let load = SteadyLoad::start(&pair.west.bootstrap(), topic, PARTITIONS);
    let mut one = Agent::start(&pair, &config(&pair, &consul, topic, "one"));
    wait_shares(&[&one], &["one"]);
    let mut two = Agent::start(&pair, &config(&pair, &consul, topic, "two"));
    wait_shares(&[&one, &two], &["one", "two"]);

    let lost = elsewhere(&one, topic);
    let killed_at = Instant::now();
    two.kill();
    let moved = wait_moved(&pair, topic, &lost, killed_at);
    println!("killed: its partitions went on after {moved:?}");
    assert!(moved < MOVED_OVER_MAX, "{moved:?}");
    wait_shares(&[&one], &["one"]);
    two.spawn();
    two.wait_ready();
    wait_shares(&[&one, &two], &["one", "two"]);

    // Frozen until its lease is over and its session is not: it goes on where it was.
    for _ in 0..SHORT_FREEZES {
        two.signal(Signal::SIGSTOP);
        thread::sleep(FROZEN_SHORTLY);
        two.signal(Signal::SIGCONT);
        let all: Vec<usize> = (0..PARTITIONS as usize).collect();
        let went_on = wait_moved(&pair, topic, &all, Instant::now());
        println!("frozen for {FROZEN_SHORTLY:?}: all partitions went on after {went_on:?}");
        assert!(went_on < MOVED_OVER_MAX, "{went_on:?}");
    }
    wait_shares(&[&one, &two], &["one", "two"]);

    // Frozen for longer than its session: it has lost its partitions, and what it still wanted to write changes nothing.
    let lost = elsewhere(&one, topic);
    let frozen_at = Instant::now();
    two.signal(Signal::SIGSTOP);
    let moved = wait_moved(&pair, topic, &lost, frozen_at);
    println!("frozen: its partitions went on after {moved:?}");
    assert!(moved < MOVED_OVER_MAX, "{moved:?}");
    thread::sleep(FROZEN.saturating_sub(frozen_at.elapsed()));
    two.signal(Signal::SIGCONT);
    wait_shares(&[&one, &two], &["one", "two"]);
    let three = Agent::start(&pair, &config(&pair, &consul, topic, "three"));
    wait_shares(&[&one, &two, &three], &["one", "three", "two"]);

    // Without Consul the copying goes on, only the duties wait.
    consul.kill();
    wait_grown(&pair, topic);
    // A pause at one agent holds at all of them.
    one.json(&["mirror", "pause", topic]);
    let stood = ends(&pair.east, topic);
    thread::sleep(Duration::from_millis(300));
    assert_eq!(ends(&pair.east, topic), stood);
    assert_eq!(three.mirror(topic)["mirror_status"], "PAUSED");
    two.json(&["mirror", "resume", topic]);
    consul.restart().expect("consul again");
    let written = load.finish();
    wait_equal(&pair, topic);
    let (west, east) = (pair.west.bootstrap(), pair.east.bootstrap());
    let compared = assert_same_batches(&west, &east, topic, PARTITIONS);
    assert_eq!(compared.records, written);

    // A failover at one agent stops all, and an agent that was frozen before it writes nothing after it.
    two.signal(Signal::SIGSTOP);
    let began = Instant::now();
    let report = one.json(&["failover", "--yes"]);
    println!("failed over with a frozen agent in {:?}", began.elapsed());
    assert_eq!(report["outcome"], "FLIPPED", "{report}");
    let mine = SteadyLoad::start(&east, topic, PARTITIONS);
    wait::until_true("applications write to east", PATIENCE, || {
        mine.written() > 1000
    });
    two.signal(Signal::SIGCONT);
    wait::until("the frozen agent holds its link", PATIENCE, || {
        let status = two.json(&["status"]);
        let link = status["links"][0]["link_state"].clone();
        if link == "STOPPED" {
            Ok(())
        } else {
            Err(link.to_string())
        }
    });
    let theirs = mine.finish();
    let all: i64 = ends(&pair.east, topic).iter().sum();
    // And one marker each, which keeps out what the frozen one may have been about to send.
    let markers = i64::from(PARTITIONS);
    assert_eq!(
        all,
        written + theirs + markers,
        "nothing but what applications wrote"
    );
    assert!(one.stop());
}
