//! Two real Kafka clusters and file discovery: one link from its first record to the loss of its source.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::time::{Duration, Instant};

use serde_json::Value;
use standfast_servers::KafkaCluster;
use standfast_wire::TopicPartition;
use standfast_wire::admin::CommittedOffset;
use support::{Agent, file_discovery, produce, west_to_east, with_cluster};

#[test]
fn a_fleet_on_two_clusters() {
    let (mut west, east) = std::thread::scope(|scope| {
        let west = scope.spawn(|| KafkaCluster::start("west").expect("west"));
        let east = scope.spawn(|| KafkaCluster::start("east").expect("east"));
        (west.join().expect("west"), east.join().expect("east"))
    });
    planned(&west, &east);
    hung(&west, &east);
    unplanned(&mut west, &east);
}

fn start(fleet: &str, topic: &str, west: &KafkaCluster, east: &KafkaCluster) -> Agent {
    west.create_topic(topic, 2, &[]).expect("create the topic");
    let mut agent = Agent::prepare("");
    let discovery = file_discovery(agent.folder.path());
    let topics = format!("{topic:?}");
    agent.configure(&west_to_east(
        fleet,
        &discovery,
        &west.bootstrap(),
        &east.bootstrap(),
        &topics,
    ));
    assert_eq!(agent.init_fleet("west").code, 0);
    agent.spawn();
    agent
}

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Switchover: refused or undone while it would lose something, then done.
fn planned(west: &KafkaCluster, east: &KafkaCluster) {
    let topic = "planned";
    let agent = start("planned", topic, west, east);
    produce(&west.bootstrap(), topic, 0, 10);
    produce(&west.bootstrap(), topic, 1, 7);
    agent.until("everything is mirrored", |agent| {
        agent.mirrored(topic) == [10, 7]
    });

    // A producer that does not heed the fence: undone, and named.
    let stop = std::sync::atomic::AtomicBool::new(false);
    let undone = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                produce(&west.bootstrap(), topic, 1, 1);
            }
        });
        let undone = agent.cli(&[
            "switchover",
            "--yes",
            "--timeout",
            "2s",
            "--settle",
            "1s",
            "--output",
            "json",
        ]);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        undone
    });
    assert_eq!(undone.code, 4, "{undone:?}");
    assert!(
        undone.stderr.contains("does not heed the fence") && undone.stderr.contains("planned-1"),
        "{undone:?}"
    );
    assert_eq!(parse(&undone.stdout)["outcome"], "FAILED");
    let record = agent.json(&["fleet", "show"])["record"].clone();
    assert_eq!(
        (&record["active"], &record["state"], &record["epoch"]),
        (&"west".into(), &"active".into(), &3.into())
    );

    // The link still runs.
    let before = agent.mirrored(topic)[0];
    produce(&west.bootstrap(), topic, 0, 5);
    agent.until("mirroring goes on", |agent| {
        agent.mirrored(topic)[0] == before + 5
    });

    let rehearsal = agent.json(&["switchover", "--dry-run"]);
    assert_eq!(
        (&rehearsal["outcome"], &rehearsal["epoch"]),
        (&"DRY_RUN".into(), &3.into())
    );
    let report = when_the_group_has_read_on(&agent, west, east, topic);
    assert_eq!(
        (
            &report["outcome"],
            &report["rpo_records"],
            &report["planned"]
        ),
        (&"FLIPPED".into(), &0.into(), &true.into())
    );
    assert_eq!(report["late_writes"], Value::Array(Vec::new()), "{report}");
    let record = agent.json(&["fleet", "show"])["record"].clone();
    assert_eq!(
        (&record["active"], &record["state"], &record["epoch"]),
        (&"east".into(), &"active".into(), &5.into())
    );
    assert_eq!(record["reason"], "maintenance");
    assert_eq!(report["handoff_offsets"][topic][0], 15);

    // The old direction is held: what is written to the old cluster stays there.
    produce(&west.bootstrap(), topic, 0, 3);
    let status = agent.json(&["status"]);
    assert_eq!(status["links"][0]["link_state"], "STOPPED");
    assert_eq!(status["links"][0]["reason"], "east is the active cluster");
}

/// A group has yet to read what the mirror does not hold: told beforehand, and waited for.
fn when_the_group_has_read_on(
    agent: &Agent,
    west: &KafkaCluster,
    east: &KafkaCluster,
    topic: &str,
) -> Value {
    let first = TopicPartition::new(topic, 0);
    let commit = |offset| {
        let committed = CommittedOffset {
            offset,
            leader_epoch: -1,
            metadata: String::new(),
        };
        let offsets = [(first.clone(), committed)];
        let answers = with_cluster(&west.bootstrap(), async |west| {
            west.offset_commit("billing", &offsets).await
        });
        assert!(answers.iter().all(|(_, result)| result.is_ok()));
    };
    commit(10);
    with_cluster(&east.bootstrap(), async |east| {
        let deleted = east.delete_records(&[(first.clone(), 12)]).await;
        deleted
            .into_iter()
            .try_for_each(|(_, start)| start.map(drop))
    });
    agent.json(&["link", "update", "west-to-east", "groups+=billing"]);
    let rehearsal = agent.json(&["switchover", "--dry-run"]);
    let warning = "group \"billing\" has yet to read 2 records of planned-0 (10 to 11) that the mirror on \"east\" does not hold: its log begins at 12";
    let told = rehearsal["warnings"][0].as_str().unwrap_or_default();
    assert!(told.starts_with(warning), "{rehearsal}");

    let report = std::thread::scope(|scope| {
        let switchover =
            scope.spawn(|| agent.json(&["switchover", "--yes", "--reason", "maintenance"]));
        agent.until("the group is waited for", |agent| {
            agent.json(&["status"])["operation"]["step"] == "check_groups"
        });
        commit(12);
        switchover.join().expect("the switchover")
    });
    assert_eq!(report["warnings"], Value::Array(Vec::new()), "{report}");
    let carried = with_cluster(&east.bootstrap(), async |east| {
        east.offset_fetch("billing").await
    });
    let carried = carried.into_iter().find(|(id, _)| *id == first);
    assert_eq!(carried.map(|(_, found)| found.unwrap().offset), Some(12));
    report
}

/// A source that accepts connections and never answers holds a failover up no more than a dead one.
fn hung(west: &KafkaCluster, east: &KafkaCluster) {
    let topic = "hung";
    let agent = start("hung", topic, west, east);
    produce(&west.bootstrap(), topic, 0, 10);
    agent.until("everything is mirrored", |agent| {
        agent.mirrored(topic) == [10, 0]
    });
    west.pause();
    let begin = Instant::now();
    let report = agent.json(&["failover", "--yes"]);
    let took = begin.elapsed();
    west.resume();
    assert!(took < Duration::from_secs(5), "{took:?}: {report}");
    assert_eq!(
        (&report["outcome"], &report["handoff_offsets"][topic]),
        (&"FLIPPED".into(), &serde_json::json!([10, 0]))
    );
}

/// Failover: rehearsed, refused without discovery, done with the source dead, and done only once.
fn unplanned(west: &mut KafkaCluster, east: &KafkaCluster) {
    let topic = "orders";
    let mut agent = start("unplanned", topic, west, east);
    produce(&west.bootstrap(), topic, 0, 10);
    produce(&west.bootstrap(), topic, 1, 20);
    agent.until("everything is mirrored", |agent| {
        agent.mirrored(topic) == [10, 20]
    });
    described(&agent, topic);

    let before = agent.json(&["fleet", "show"]);
    let rehearsal = agent.json(&["failover", "--dry-run"]);
    assert_eq!(
        (&rehearsal["outcome"], &rehearsal["rpo_records"]),
        (&"DRY_RUN".into(), &0.into()),
        "{rehearsal}"
    );
    assert_eq!(agent.json(&["fleet", "show"]), before);
    produce(&west.bootstrap(), topic, 0, 1);
    agent.until("the mirrors go on after a dry run", |agent| {
        agent.mirrored(topic) == [11, 20]
    });

    without_discovery(&agent, topic, &west.bootstrap());

    west.kill();
    agent.until("west is unreachable", |agent| {
        agent.json(&["status"])["clusters"][1]["status"] == "UNREACHABLE"
    });
    let begin = Instant::now();
    let report = agent.json(&["failover", "--yes", "--reason", "west is down"]);
    assert!(
        begin.elapsed() < Duration::from_secs(5),
        "{:?}: {report}",
        begin.elapsed()
    );
    assert_eq!(
        (&report["outcome"], &report["from"], &report["to"]),
        (&"FLIPPED".into(), &"west".into(), &"east".into())
    );
    assert_eq!(
        (&report["epoch"], &report["rpo_records"]),
        (&2.into(), &0.into()),
        "{report}"
    );
    assert_eq!(
        report["handoff_offsets"][topic],
        serde_json::json!([12, 20])
    );

    let again = agent.json(&["failover", "--yes"]);
    assert_eq!(
        (&again["outcome"], &again["epoch"]),
        (&"ALREADY_ACTIVE".into(), &2.into())
    );
    assert_eq!(again["handoff_offsets"], report["handoff_offsets"]);

    // A restarted agent does not resume the old direction, even when the old cluster is back with more records.
    let (code, _) = agent.terminate();
    assert_eq!(code, Some(0), "{}", agent.log());
    west.restart().expect("west comes back");
    produce(&west.bootstrap(), topic, 0, 4);
    agent.spawn();
    agent.until("west is back", |agent| {
        agent.json(&["status"])["clusters"][1]["status"] == "HEALTHY"
    });
    let status = agent.json(&["status"]);
    assert_eq!(
        status["links"][0]["reason"], "east is the active cluster",
        "{status}"
    );
    let mirror = agent.json(&["mirror", "describe", topic])["data"][0].clone();
    assert_eq!(mirror["mirror_status"], "STOPPED");
    assert_eq!(
        mirror["mirror_state_transition_errors"][0]["error_code"],
        "LINK_HELD"
    );
}

/// `mirror describe` has Confluent's names.
fn described(agent: &Agent, topic: &str) {
    let mirror = agent.json(&["mirror", "describe", topic])["data"][0].clone();
    assert_eq!(mirror["link_name"], "west-to-east");
    assert_eq!(
        (&mirror["mirror_topic_name"], &mirror["source_topic_name"]),
        (&topic.into(), &topic.into())
    );
    assert_eq!(
        (&mirror["num_partitions"], &mirror["mirror_status"]),
        (&2.into(), &"ACTIVE".into())
    );
    assert_eq!(mirror["mirror_topic_error"], "NO_ERROR");
    let lag = &mirror["mirror_lags"][1];
    assert_eq!(
        (
            &lag["partition"],
            &lag["lag"],
            &lag["last_source_fetch_offset"]
        ),
        (&1.into(), &0.into(), &20.into())
    );
    let table = agent.cli(&["mirror", "describe", topic]);
    assert!(
        table.stdout.contains("Last Source Fetch Offset") && table.stdout.contains("ACTIVE"),
        "{table:?}"
    );
}

/// The record cannot be read: refused, nothing changed, and the mirrors go on.
fn without_discovery(agent: &Agent, topic: &str, west: &str) {
    let discovery = agent.folder.path().join("discovery");
    let away = agent.folder.path().join("away");
    std::fs::rename(&discovery, &away).expect("discovery goes away");
    std::fs::write(&discovery, "not a folder").expect("and nothing can be put in its place");
    let refused = agent.cli(&["failover", "--yes"]);
    assert_eq!(refused.code, 5, "{refused:?}");
    assert!(
        refused.stderr.contains("nothing was changed"),
        "{refused:?}"
    );
    produce(west, topic, 0, 1);
    agent.until("the mirrors go on without discovery", |agent| {
        agent.mirrored(topic) == [12, 20]
    });
    std::fs::remove_file(&discovery).expect("discovery");
    std::fs::rename(&away, &discovery).expect("discovery comes back");
    agent.until("discovery answers", |agent| {
        agent.json(&["status"])["fleet"]["source"] == "LIVE"
    });
    assert_eq!(agent.json(&["fleet", "show"])["record"]["epoch"], 1);
}
