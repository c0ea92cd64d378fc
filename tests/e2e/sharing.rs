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

const PARTITIONS: i32 = 8;
const PATIENCE: Duration = Duration::from_secs(90);
/// The figure of the issue: partitions of an agent that is lost go on elsewhere within this time.
const MOVED_OVER_MAX: Duration = Duration::from_secs(10);
/// Longer than the session (6 s) and the time that the others need to notice.
const FROZEN: Duration = Duration::from_secs(9);

fn config(pair: &Pair, consul: &Consul, topic: &str, name: &str) -> AgentConfig {
    let mut config = AgentConfig::of(pair, &[topic]);
    config.name = name.to_owned();
    config.discovery = format!("backend = \"consul\"\naddresses = [{:?}]", consul.addr());
    config.link_lines = "shared = true\nrefresh_interval = \"1s\"".to_owned();
    config
}

/// How many partitions each member has, as this agent says.
fn shares(agent: &Agent) -> Vec<(String, u64)> {
    let link = agent.json(&["link", "describe", "west-to-east"]);
    let members = link["data"][0]["members"].as_array().cloned();
    let share = |member: &Value| {
        let name = member["member"].as_str().unwrap_or_default().to_owned();
        (name, member["partitions"].as_u64().unwrap_or_default())
    };
    let mut shares: Vec<_> = members.unwrap_or_default().iter().map(share).collect();
    shares.sort();
    shares
}

fn wait_shares(agent: &Agent, wanted: &[(&str, u64)]) {
    let wanted: Vec<(String, u64)> = wanted.iter().map(|(n, p)| ((*n).to_owned(), *p)).collect();
    wait::until(&format!("shares {wanted:?}"), PATIENCE, || {
        let found = shares(agent);
        if found == wanted {
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

fn ends(cluster: &KafkaCluster, topic: &str) -> Vec<i64> {
    cluster.log_end_offsets(topic).expect("log ends")
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

fn wait_equal(pair: &Pair, topic: &str) {
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

// Beside a busy machine one of its waits has expired once in five runs; the cause is not known yet.
#[test]
#[ignore = "alone: cargo test -p standfast-tests --test e2e sharing -- --ignored"]
fn agents_that_are_killed_frozen_and_added_leave_one_log_and_stop_together() {
    let pair = Pair::start();
    let mut consul = Consul::start().expect("consul");
    let topic = "shared";
    pair.west
        .create_topic(topic, PARTITIONS, &[])
        .expect("topic");
    let load = SteadyLoad::start(&pair.west.bootstrap(), topic, PARTITIONS);
    let mut one = Agent::start(&pair, &config(&pair, &consul, topic, "one"));
    wait_shares(&one, &[("one", 8)]);
    let mut two = Agent::start(&pair, &config(&pair, &consul, topic, "two"));
    wait_shares(&one, &[("one", 4), ("two", 4)]);

    let lost = elsewhere(&one, topic);
    let killed_at = Instant::now();
    two.kill();
    let moved = wait_moved(&pair, topic, &lost, killed_at);
    println!("killed: its partitions went on after {moved:?}");
    assert!(moved < MOVED_OVER_MAX, "{moved:?}");
    wait_shares(&one, &[("one", 8)]);
    two.spawn();
    two.wait_ready();
    wait_shares(&one, &[("one", 4), ("two", 4)]);

    // Frozen for longer than its session: it has lost its partitions, and what it still wanted to write changes nothing.
    let lost = elsewhere(&one, topic);
    let frozen_at = Instant::now();
    two.signal(Signal::SIGSTOP);
    let moved = wait_moved(&pair, topic, &lost, frozen_at);
    println!("frozen: its partitions went on after {moved:?}");
    assert!(moved < MOVED_OVER_MAX, "{moved:?}");
    thread::sleep(FROZEN.saturating_sub(frozen_at.elapsed()));
    two.signal(Signal::SIGCONT);
    wait_shares(&two, &[("one", 4), ("two", 4)]);
    let three = Agent::start(&pair, &config(&pair, &consul, topic, "three"));
    wait_shares(&three, &[("one", 3), ("three", 2), ("two", 3)]);

    // Without Consul the copying goes on, only the duties wait.
    consul.kill();
    let before = ends(&pair.east, topic);
    wait::until_true("all partitions go on without Consul", PATIENCE, || {
        ends(&pair.east, topic)
            .iter()
            .zip(&before)
            .all(|(now, then)| now > then)
    });
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
    assert_eq!(all, written + theirs, "nothing but what applications wrote");
    assert!(one.stop());
}
