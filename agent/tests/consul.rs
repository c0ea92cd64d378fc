//! Two real Kafka clusters and a real Consul: what the file backend cannot show, because it is never slow, never half
//! gone and never changed by another machine.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::time::{Duration, Instant};

use serde_json::Value;
use standfast_servers::{Consul, KafkaCluster};
use support::{Agent, produce, standfast, west_to_east};

const TOPIC: &str = "orders";

#[test]
fn a_fleet_kept_in_consul() {
    let (mut west, east, mut consul) = std::thread::scope(|scope| {
        let west = scope.spawn(|| KafkaCluster::start("west").expect("west"));
        let east = scope.spawn(|| KafkaCluster::start("east").expect("east"));
        let consul = scope.spawn(|| Consul::start().expect("consul"));
        (
            west.join().expect("west"),
            east.join().expect("east"),
            consul.join().expect("consul"),
        )
    });
    west.create_topic(TOPIC, 1, &[]).expect("create the topic");
    produce(&west.bootstrap(), TOPIC, 0, 10);
    let discovery = format!(
        "backend = \"consul\"\naddresses = [{:?}]\nrequest_timeout = \"1s\"",
        consul.addr()
    );
    let configuration = west_to_east(
        "payments",
        &discovery,
        &west.bootstrap(),
        &east.bootstrap(),
        &format!("{TOPIC:?}"),
    ) + "[failover]\nlock_ttl = \"10s\"\nstep_timeout = \"2s\"\n";
    let mut agent = Agent::prepare(&configuration);

    checked(&agent);
    assert_eq!(agent.init_fleet("west").code, 0);
    agent.spawn();
    agent.until("everything is mirrored", |agent| {
        agent.mirrored(TOPIC) == [10]
    });
    consul_hangs(&agent, &consul, &west);
    consul_is_gone(&mut agent, &mut consul, &west);
    somebody_else_flips(&mut agent, &configuration, &west);
    fails_over(&mut agent, &mut consul, &mut west);
}

/// `config check --connect` tries everything.
fn checked(agent: &Agent) {
    let config = agent.config().display().to_string();
    let ended = standfast(&["config", "check", &config, "--connect", "--output", "json"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    let checked: Value = serde_json::from_str(&ended.stdout).unwrap();
    let names: Vec<&str> = checked["connections"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|c| c["what"].as_str())
        .collect();
    assert_eq!(names, ["discovery", "cluster east", "cluster west"]);

    let text = std::fs::read_to_string(agent.config()).unwrap();
    let wrong = agent.folder.path().join("wrong.toml");
    let text = text.replace(
        "[clusters.east]\n",
        "[clusters.east]\ncluster_id = \"another\"\n",
    );
    std::fs::write(&wrong, text).unwrap();
    let ended = standfast(&["config", "check", &wrong.display().to_string(), "--connect"]);
    assert!(
        ended.code == 1 && ended.stdout.contains("expected \"another\""),
        "{ended:?}"
    );
}

/// A Consul that accepts and never answers: refused within the step's time, and mirroring goes on.
fn consul_hangs(agent: &Agent, consul: &Consul, west: &KafkaCluster) {
    consul.pause();
    let begin = Instant::now();
    let refused = agent.cli(&["failover", "--yes"]);
    assert_eq!(refused.code, 5, "{refused:?}");
    assert!(
        refused.stderr.contains("nothing was changed"),
        "{refused:?}"
    );
    assert!(
        begin.elapsed() < Duration::from_secs(8),
        "{:?}",
        begin.elapsed()
    );
    produce(&west.bootstrap(), TOPIC, 0, 1);
    agent.until("the mirrors go on", |agent| agent.mirrored(TOPIC) == [11]);
    consul.resume();
    agent.until("consul answers", |agent| {
        agent.json(&["status"])["fleet"]["source"] == "LIVE"
    });
}

/// The agent starts without Consul, from the record that it stored, and mirrors.
fn consul_is_gone(agent: &mut Agent, consul: &mut Consul, west: &KafkaCluster) {
    assert_eq!(agent.terminate().0, Some(0), "{}", agent.log());
    consul.kill();
    agent.spawn();
    let status = agent.json(&["status"]);
    assert_eq!(
        (&status["fleet"]["source"], &status["fleet"]["active"]),
        (&"CACHED".into(), &"west".into())
    );
    produce(&west.bootstrap(), TOPIC, 0, 1);
    agent.until("it mirrors", |agent| agent.mirrored(TOPIC) == [12]);
    let refused = agent.cli(&["failover", "--yes"]);
    assert_eq!(refused.code, 5, "{refused:?}");
    consul.restart().expect("consul comes back");
    agent.until("consul answers", |agent| {
        agent.json(&["status"])["fleet"]["source"] == "LIVE"
    });
}

/// Another agent flips: the link into the new active cluster stops at once, and its log stays as it is.
fn somebody_else_flips(agent: &mut Agent, configuration: &str, west: &KafkaCluster) {
    let mut other = Agent::prepare(configuration);
    other.spawn();
    other.until("the other agent mirrors too", |other| {
        other.mirrored(TOPIC) == [12]
    });
    let report = other.json(&["failover", "--yes"]);
    assert_eq!(report["outcome"], "FLIPPED");
    agent.until("the first agent holds its link", |agent| {
        agent.json(&["status"])["links"][0]["reason"] == "east is the active cluster"
    });
    produce(&west.bootstrap(), TOPIC, 0, 1);
    assert_eq!(agent.mirrored(TOPIC), [12]);
    let again = agent.json(&["failover", "--yes"]);
    assert_eq!(
        (&again["outcome"], &again["handoff_offsets"][TOPIC][0]),
        (&"ALREADY_ACTIVE".into(), &12.into())
    );
}

/// The lock is held by another: refused. Then the flip, and a restart without Consul that remembers it.
fn fails_over(agent: &mut Agent, consul: &mut Consul, west: &mut KafkaCluster) {
    // A new fleet on the same clusters, since the old one has moved.
    let text = std::fs::read_to_string(agent.config()).unwrap();
    agent.kill();
    west.create_topic("refunds", 1, &[])
        .expect("create the topic");
    produce(&west.bootstrap(), "refunds", 0, 5);
    let text = text
        .replace("name = \"payments\"", "name = \"refunds\"")
        .replace("[\"orders\"]", "[\"refunds\"]");
    std::fs::write(agent.config(), text).unwrap();
    assert_eq!(agent.init_fleet("west").code, 0);
    agent.spawn();
    agent.until("everything is mirrored", |agent| {
        agent.mirrored("refunds") == [5]
    });

    // The agent dies with the source, so that the new one has never seen it: the destination's log is enough to flip,
    // but how much is lost nobody knows.
    west.kill();
    agent.kill();
    agent.spawn();
    agent.until("the destination is known", |agent| {
        agent.json(&["status"])["clusters"][0]["status"] == "HEALTHY"
    });
    let report = agent.json(&["failover", "--yes"]);
    assert_eq!(report["rpo_records"], Value::Null, "{report}");
    assert_eq!(
        (&report["outcome"], &report["handoff_offsets"]["refunds"][0]),
        (&"FLIPPED".into(), &5.into())
    );
    let stored = consul
        .kv_get("standfast/refunds/active")
        .unwrap()
        .expect("a record");
    let stored: Value = serde_json::from_str(&stored).unwrap();
    assert_eq!(
        (&stored["active"], &stored["epoch"]),
        (&"east".into(), &2.into())
    );
    assert_eq!(stored["handoff"], report["handoff"]);

    consul.kill();
    agent.kill();
    agent.spawn();
    let status = agent.json(&["status"]);
    assert_eq!(
        (&status["fleet"]["source"], &status["fleet"]["epoch"]),
        (&"CACHED".into(), &2.into()),
        "{status}"
    );
    assert_eq!(status["links"][0]["reason"], "east is the active cluster");
}
