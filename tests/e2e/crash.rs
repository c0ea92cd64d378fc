//! The log is the state: engines that are killed or run twice, and brokers that go away, leave the same log as one that ran through.

use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use standfast_servers::KafkaCluster;
use standfast_tests::agent::{Agent, AgentConfig};
use standfast_tests::compare::assert_same_batches;
use standfast_tests::load::SteadyLoad;
use standfast_tests::pair::{Pair, Side};
use standfast_tests::wait;

use crate::shared_pair;

const PARTITIONS: i32 = 4;
const KILLS: usize = 20;
/// Index of the broker that is not the controller too.
const SECOND_BROKER: usize = 1;
const MIRRORED: Duration = Duration::from_secs(90);

/// Waits until `records` more are on east.
fn wait_copying(pair: &Pair, topic: &str, records: i64, when: &str) {
    let on_east = || {
        let ends = pair.east.log_end_offsets(topic);
        ends.map_or(0, |ends| ends.iter().sum::<i64>())
    };
    let before = on_east();
    wait::until_true(&format!("the copy goes on {when}"), MIRRORED, || {
        on_east() >= before + records
    });
}

fn wait_until_mirrored(pair: &Pair, topic: &str, agent: &Agent) {
    let ends = pair.west.log_end_offsets(topic).expect("log ends");
    wait::until(&format!("{topic} is mirrored"), MIRRORED, || {
        match pair.east.log_end_offsets(topic) {
            Ok(east) if east == ends => Ok(()),
            other => Err(format!(
                "west {ends:?}, east {other:?}\n{}",
                agent.mirror(topic)
            )),
        }
    });
}

#[test]
fn an_engine_killed_twenty_times_leaves_an_identical_log() {
    let pair = shared_pair();
    let topic = "crash-killed";
    pair.west
        .create_topic(topic, PARTITIONS, &[])
        .expect("topic");
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut config = AgentConfig::of(pair, &[topic]);
    config.name = "killed".to_owned();
    let mut agent = Agent::start(pair, &config);
    let load = SteadyLoad::start(&pair.west.bootstrap(), topic, PARTITIONS);
    for kill in 0..KILLS {
        // The moment of the kill is measured from progress, so that it falls into a copy and not into a start.
        wait_copying(pair, topic, 1, &format!("before kill {kill}"));
        let moment = Instant::now() + Duration::from_micros(random.random_range(0..200_000));
        wait::until_true("the random moment", MIRRORED, || Instant::now() >= moment);
        agent.kill();
        agent.spawn();
    }
    agent.wait_ready();
    let written = load.finish();
    wait_until_mirrored(pair, topic, &agent);
    let compared = assert_same_batches(
        &pair.west.bootstrap(),
        &pair.east.bootstrap(),
        topic,
        PARTITIONS,
    );
    assert_eq!(compared.records, written);
}

#[test]
fn two_engines_at_once_write_what_one_would() {
    let pair = shared_pair();
    let topic = "crash-two-engines";
    pair.west
        .create_topic(topic, PARTITIONS, &[])
        .expect("topic");
    let load = SteadyLoad::start(&pair.west.bootstrap(), topic, PARTITIONS);
    // Both begin on an empty mirror, while the source already has records.
    wait::until_true("load", MIRRORED, || load.written() > 100);
    let start = |name: &str| {
        let mut config = AgentConfig::of(pair, &[topic]);
        config.name = name.to_owned();
        Agent::start(pair, &config)
    };
    let (first, second) = thread::scope(|scope| {
        let (first, second) = (
            scope.spawn(|| start("twin-1")),
            scope.spawn(|| start("twin-2")),
        );
        (
            first.join().expect("twin-1"),
            second.join().expect("twin-2"),
        )
    });
    wait_copying(pair, topic, 10_000, "while both run");
    let written = load.finish();
    wait_until_mirrored(pair, topic, &first);
    for agent in [&first, &second] {
        wait::until("both engines agree that they are done", MIRRORED, || {
            let mirror = agent.mirror(topic);
            let lags = mirror["mirror_lags"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            let done =
                mirror["mirror_status"] == "ACTIVE" && lags.iter().all(|lag| lag["lag"] == 0);
            if done && lags.len() == PARTITIONS as usize {
                Ok(())
            } else {
                Err(mirror)
            }
        });
    }
    let compared = assert_same_batches(
        &pair.west.bootstrap(),
        &pair.east.bootstrap(),
        topic,
        PARTITIONS,
    );
    assert_eq!(compared.records, written);
}

#[test]
fn brokers_that_go_away_under_load_leave_an_identical_log() {
    let two_brokers = |name| {
        let cluster = KafkaCluster::builder(name).brokers(2);
        cluster.property("default.replication.factor", "2")
    };
    let mut pair = Pair::start_with(two_brokers("west"), two_brokers("east"));
    let topic = "crash-brokers";
    pair.west
        .create_topic(topic, PARTITIONS, &[])
        .expect("topic");
    let agent = Agent::start(&pair, &AgentConfig::of(&pair, &[topic]));
    let load = SteadyLoad::start(&pair.west.bootstrap(), topic, PARTITIONS);

    // One broker of two: its partitions get another leader, and the copy goes on without it.
    wait_copying(&pair, topic, 500, "at first");
    for side in [Side::East, Side::West] {
        pair.side(side).kill_broker(SECOND_BROKER);
        wait_every_partition(&pair, topic, &format!("after new leaders in {side:?}"));
        pair.side(side)
            .restart_broker(SECOND_BROKER)
            .expect("the broker comes back");
    }

    // All of them.
    pair.east.kill();
    wait_trouble(&agent, topic, "the destination's outage is shown");
    pair.east.restart().expect("east comes back");
    wait_every_partition(&pair, topic, "after a kill of the destination");
    pair.west.stop_gracefully();
    let mirror = wait_trouble(&agent, topic, "the source's outage is shown");
    assert_eq!(mirror["mirror_status"], "SOURCE_UNAVAILABLE", "{mirror}");
    pair.west.restart().expect("west comes back");
    wait_every_partition(&pair, topic, "after a stop of the source");

    let written = load.finish();
    wait_until_mirrored(&pair, topic, &agent);
    let compared = assert_same_batches(
        &pair.west.bootstrap(),
        &pair.east.bootstrap(),
        topic,
        PARTITIONS,
    );
    assert_eq!(compared.records, written);
    assert_eq!(agent.mirror(topic)["mirror_status"], "ACTIVE");
}

/// Waits until each partition has more on east.
fn wait_every_partition(pair: &Pair, topic: &str, when: &str) {
    let ends = || pair.east.log_end_offsets(topic);
    let before = wait::until("log ends", MIRRORED, ends);
    wait::until(
        &format!("every partition goes on {when}"),
        MIRRORED,
        || match ends() {
            Ok(now)
                if now
                    .iter()
                    .zip(&before)
                    .all(|(now, before)| *now > before + 50) =>
            {
                Ok(())
            }
            other => Err(format!("{before:?}, {other:?}")),
        },
    );
}

/// Waits until a partition has an error; the mirror's description.
fn wait_trouble(agent: &Agent, topic: &str, what: &str) -> Value {
    wait::until(what, MIRRORED, || {
        let mirror = agent.mirror(topic);
        let lags = mirror["mirror_lags"].as_array().cloned();
        if lags
            .unwrap_or_default()
            .iter()
            .any(|lag| lag["error"].is_string())
        {
            Ok(mirror)
        } else {
            Err(mirror)
        }
    })
}
