//! The source is lost under load: the agent flips, the applications go on.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::Value;
use standfast::Fleet;
use standfast::discovery::DiscoveryOptions;
use standfast_tests::agent::{Agent, AgentConfig};
use standfast_tests::application::{Application, Sent, counted};
use standfast_tests::pair::Pair;
use standfast_tests::wait;

const TOPIC: &str = "orders";
const PARTITIONS: i32 = 4;
const SOON: Duration = Duration::from_secs(60);
/// `standfast failover`, from its start to its exit. Nothing in it may wait for the dead cluster.
const FLIP_BOUND: Duration = Duration::from_secs(4);
/// From the loss to the first acknowledgement of the new cluster; most of it is librdkafka in a debug build on a busy machine.
const RTO_BOUND: Duration = Duration::from_secs(10);

/// What the fleet's folder holds: file names and contents.
fn stored(pair: &Pair) -> Vec<(String, String)> {
    let mut files = Vec::new();
    let mut folders = vec![pair.discovery_folder()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let text = fs::read_to_string(&path).expect("file");
                files.push((path.display().to_string(), text));
            }
        }
    }
    files.sort();
    files
}

#[test]
fn the_source_is_killed_under_load_with_its_mirror_behind_and_nothing_is_lost() {
    let mut pair = Pair::start();
    pair.west
        .create_topic(TOPIC, PARTITIONS, &[])
        .expect("topic");
    let mut config = AgentConfig::of(&pair, &[TOPIC]);
    config.groups = vec!["billing".to_owned()];
    // Less than the load: the mirror falls behind.
    config.link_lines = "rate_limit = 100000".to_owned();
    let agent = Agent::start(&pair, &config);
    let fleet =
        Fleet::builder("payments").discovery(DiscoveryOptions::file(pair.discovery_folder()));
    let mut application = Application::start(fleet, TOPIC);
    application.wait_progress("the application works on west", 3_000, SOON);
    wait::until_true("the copy is under way", SOON, || {
        pair.east
            .log_end_offsets(TOPIC)
            .is_ok_and(|ends| ends.iter().all(|&end| end > 100))
    });

    let in_flight = application.sent() - application.acknowledged();
    let killed = Instant::now();
    pair.west.kill();
    let begun = Instant::now();
    let report = agent.json(&["failover", "--yes", "--reason", "west is lost"]);
    let flip = begun.elapsed();
    assert_eq!(report["outcome"], "FLIPPED", "{report}");
    assert!(flip < FLIP_BOUND, "{flip:?}: {report}");

    // Again, while the applications move: nothing is done a second time.
    let before = stored(&pair);
    let again = agent.json(&["failover", "--yes"]);
    assert_eq!(again["outcome"], "ALREADY_ACTIVE", "{again}");
    assert_eq!(again["handoff_offsets"], report["handoff_offsets"]);
    assert_eq!(stored(&pair), before, "the second run changed something");

    application.wait_progress("the application works on east", 3_000, SOON);
    let sent = application.finish_load();
    let ends = pair.east.log_end_offsets(TOPIC).expect("log ends");
    application.wait_consumed_to("east", &ends);
    assert_eq!(application.fleet().snapshot().flips, 1);

    let first = sent
        .iter()
        .find(|sent| sent.delivery.cluster.as_str() == "east")
        .expect("east has acknowledged");
    let rto = first.at.duration_since(killed);
    assert!(rto < RTO_BOUND, "RTO {rto:?}");
    let handoff = handoff(&report);
    let behind = check_consumed(&application, &sent, &handoff);
    check_recovery_point(&report, &sent, &behind, killed);
    check_order(&application, &pair, &sent, &handoff, &ends);
    println!(
        "failover: {} sent, {in_flight} in flight at the kill, flip {flip:?}, RTO {rto:?}, {} acknowledged by west and not mirrored (report: at least {}, at most {} s), all consumed once",
        sent.len(),
        behind.len(),
        report["rpo_records"],
        report["rpo_seconds"]
    );
}

fn handoff(report: &Value) -> Vec<i64> {
    let offsets = report["handoff_offsets"][TOPIC].as_array();
    let offsets: Vec<i64> = offsets
        .expect("handoff offsets")
        .iter()
        .map(|offset| offset.as_i64().expect("known"))
        .collect();
    assert_eq!(offsets.len(), PARTITIONS as usize);
    offsets
}

/// Every record was consumed once; returns the numbers of those that only west had, and that the producer sent again.
fn check_consumed(application: &Application, sent: &[Sent], handoff: &[i64]) -> Vec<usize> {
    let received = application.received();
    let counts = counted(received.iter().map(|record| record.number));
    let mut behind = Vec::new();
    for (number, Sent { delivery, .. }) in sent.iter().enumerate() {
        let count = counts.get(&number).copied().unwrap_or(0);
        assert_eq!(count, 1, "{number}: {delivery:?}");
        let is_mirrored = delivery.offset < handoff[delivery.partition as usize];
        if delivery.cluster.as_str() == "west" && !is_mirrored {
            behind.push(number);
        }
    }
    // No place in a log was handed out twice, below the handoff whichever cluster it came from.
    let mut places: Vec<(i32, i64, &str)> = received
        .iter()
        .map(|record| {
            let is_common = record.offset < handoff[record.partition as usize];
            let cluster = if is_common {
                "both"
            } else {
                record.cluster.as_str()
            };
            (record.partition, record.offset, cluster)
        })
        .collect();
    places.sort_unstable();
    let repeated: Vec<_> = places.windows(2).filter(|two| two[0] == two[1]).collect();
    assert!(repeated.is_empty(), "handed out twice: {repeated:?}");
    behind
}

/// The report's records are a lower bound of what the mirror lacked, its seconds an upper one: what the agent cannot know is what west
/// acknowledged after its last answer to the link.
fn check_recovery_point(report: &Value, sent: &[Sent], behind: &[usize], killed: Instant) {
    let records = report["rpo_records"].as_u64().expect("known");
    let seconds = report["rpo_seconds"].as_f64().expect("known");
    assert!(
        records <= behind.len() as u64,
        "{} behind: {report}",
        behind.len()
    );
    for &number in behind {
        let age = killed.saturating_duration_since(sent[number].at);
        assert!(
            age.as_secs_f64() <= seconds,
            "{number} was acknowledged {age:?} before the kill: {report}"
        );
    }
}

/// On east, acknowledged records stand where the acknowledgement says, and each key's records are in the order of the sends,
/// in the mirrored part and in the part written after the flip.
fn check_order(
    application: &Application,
    pair: &Pair,
    sent: &[Sent],
    handoff: &[i64],
    ends: &[i64],
) {
    let bootstrap = pair.east.bootstrap();
    let logs: Vec<Vec<usize>> = (0..PARTITIONS)
        .zip(ends)
        .map(|(partition, &end)| application.log(&bootstrap, partition, end))
        .collect();
    for (number, Sent { delivery, .. }) in sent.iter().enumerate() {
        let partition = delivery.partition as usize;
        let is_on_east =
            delivery.cluster.as_str() == "east" || delivery.offset < handoff[partition];
        if is_on_east && delivery.offset >= 0 {
            let found = logs[partition].get(delivery.offset as usize);
            assert_eq!(found, Some(&number), "{delivery:?}");
        }
    }
    for (partition, log) in logs.iter().enumerate() {
        let (mirrored, written) = log.split_at(handoff[partition] as usize);
        for part in [mirrored, written] {
            let disorder = part.windows(2).find(|two| two[0] >= two[1]);
            assert_eq!(
                disorder,
                None,
                "partition {partition}, {} mirrored",
                mirrored.len()
            );
        }
    }
}
