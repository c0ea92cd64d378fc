//! A backlog: tiny batches are joined on their way, and the link reads no faster than it is told.

mod support;

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use standfast_link::{MirrorStatus, VerifyOptions, VerifyResult, verify};
use standfast_servers::KafkaCluster;
use standfast_wire::Cluster;
use standfast_wire::batch::HEADER_LEN;
use support::*;

fn clusters() -> &'static (KafkaCluster, KafkaCluster) {
    static CLUSTERS: OnceLock<(KafkaCluster, KafkaCluster)> = OnceLock::new();
    CLUSTERS.get_or_init(|| (kafka("source"), kafka("destination")))
}

async fn assert_verified(topic: &str) -> (u64, u64) {
    let (source, destination) = clusters();
    let question = VerifyOptions {
        source: options(source),
        destination: options(destination),
        source_topic: topic.to_owned(),
        mirror_topic: topic.to_owned(),
        partition: None,
        from: None,
        to: None,
    };
    let report = verify(question, |_| {}).await.expect("a report");
    assert_eq!(report.result, VerifyResult::Equal, "{report:#?}");
    let sum = |count: fn(&standfast_link::PartitionVerified) -> u64| {
        report.partitions.iter().map(count).sum()
    };
    (sum(|p| p.equal_batches), sum(|p| p.joined_batches))
}

#[tokio::test(flavor = "multi_thread")]
async fn tiny_batches_are_joined_under_lag_by_two_engines_and_over_restarts() {
    let (source, destination) = clusters();
    source.create_topic("tiny", 2, &[]).unwrap();
    let (from, to) = (connect(source).await, connect(destination).await);
    let link = || link_options("joining", source, destination, &["tiny"]);
    for round in 0..4 {
        for partition in 0..2 {
            append_some(&from, "tiny", partition, 150).await;
            // One that is too large to be joined stands between.
            let large = batch(&[Record::new("large", vec![round; 20_000])], PLAIN);
            append(&from, "tiny", partition, &large).await.unwrap();
            append_some(&from, "tiny", partition, 30).await;
        }
        // Odd rounds: two engines at once; each joins what it finds waiting. All are ended at whatever they are doing.
        let one = Running::start(link());
        let other = (round % 2 == 1).then(|| Running::start(link()));
        one.wait("begun", |link| {
            let lags = link.mirrors.first().map(|m| &m.mirror_lags);
            lags.is_some_and(|lags| {
                let at = |p: &standfast_link::PartitionLag| p.destination_log_end_offset;
                lags.len() == 2 && lags.iter().any(|p| at(p) > Some(i64::from(round) * 1801))
            })
        })
        .await;
        one.end().await;
        if let Some(other) = other {
            other.end().await;
        }
    }
    let running = Running::start(link());
    running.wait_caught_up(&from, "tiny").await;
    let joined = assert_identical(&from, &to, "tiny").await;
    let batches = read_all(&to, "tiny", 0).await.len();
    assert!(joined > 4, "{joined} joined, {batches} batches");
    assert!(batches < 362, "of 724 batches, {batches} are left");
    let (_, verified) = assert_verified("tiny").await;
    assert_eq!(verified, joined as u64);
    // Without a backlog every batch stays what it is, byte for byte.
    let end = log_ends(&to, "tiny").await[0];
    for n in 0..5 {
        append_some(&from, "tiny", 0, 1).await;
        running.wait_caught_up(&from, "tiny").await;
        let last = read_all(&to, "tiny", 0).await.pop().expect("a batch");
        assert_eq!(last.header.base_offset, end + n * 10);
    }
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn joining_gives_way_to_the_destinations_limit_and_to_the_operator() {
    let (source, destination) = clusters();
    // The mirror topics take over the limit: a joined batch is larger.
    let limit = [("max.message.bytes", "3000")];
    for topic in ["limited", "exact"] {
        source.create_topic(topic, 1, &limit).unwrap();
    }
    let (from, to) = (connect(source).await, connect(destination).await);
    for topic in ["limited", "exact"] {
        append_some(&from, topic, 0, 200).await;
    }
    let mut exact = link_options("exact", source, destination, &["exact"]);
    exact.join_batches = false;
    let running = [
        Running::start(link_options("limited", source, destination, &["limited"])),
        Running::start(exact),
    ];
    for (running, topic) in running.iter().zip(["limited", "exact"]) {
        running.wait_caught_up(&from, topic).await;
        assert_identical(&from, &to, topic).await;
        assert_eq!(assert_verified(topic).await, (200, 0));
    }
    for running in running {
        running.end().await;
    }
}

/// What of a batch is the source's and what the destination's own, byte by byte: the table in the README.
#[tokio::test(flavor = "multi_thread")]
async fn the_header_bytes_that_change_are_those_that_the_readme_names() {
    let (source, destination) = clusters();
    source.create_topic("hex", 1, &[]).unwrap();
    let (from, to) = (connect(source).await, connect(destination).await);
    // An idempotent producer's batch, so that every field holds something.
    let stamp = Stamp {
        producer_id: 77_777,
        producer_epoch: 3,
        base_sequence: 0,
        ..PLAIN
    };
    let three = [
        Record::new("a", "1"),
        Record::new("b", "2"),
        Record::new("c", "3"),
    ];
    append(&from, "hex", 0, &batch(&three, stamp))
        .await
        .unwrap();
    append_some(&from, "hex", 0, 2).await;
    let running = Running::start(link_options("hex", source, destination, &["hex"]));
    running.wait_caught_up(&from, "hex").await;
    let id = running
        .handle
        .describe()
        .producer_id
        .expect("a producer id");
    running.end().await;
    let (theirs, ours) = (
        read_all(&from, "hex", 0).await,
        read_all(&to, "hex", 0).await,
    );
    assert_eq!(theirs.len(), ours.len());
    // Leader epoch (12..16), CRC (17..21), producer id (43..51), producer epoch (51..53), base sequence (53..57).
    let owned =
        |at: usize| (12..16).contains(&at) || (17..21).contains(&at) || (43..57).contains(&at);
    for (a, b) in theirs.iter().zip(&ours) {
        assert_eq!(a.bytes.len(), b.bytes.len());
        let differing: Vec<usize> = (0..a.bytes.len())
            .filter(|at| a.bytes[*at] != b.bytes[*at])
            .collect();
        let foreign: Vec<&usize> = differing.iter().filter(|at| !owned(**at)).collect();
        assert!(
            foreign.is_empty(),
            "bytes {foreign:?} differ\n{:02x?}\n{:02x?}",
            a.bytes,
            b.bytes
        );
        // The stamp is the link's: its producer id, epoch 0, and the offset as sequence number.
        assert_eq!(b.bytes[43..51], id.to_be_bytes());
        assert_eq!(b.bytes[51..53], 0i16.to_be_bytes());
        assert_eq!(b.bytes[53..57], (b.header.base_offset as i32).to_be_bytes());
        assert!(a.bytes[HEADER_LEN..] == b.bytes[HEADER_LEN..]);
    }
    assert_ne!(theirs[0].bytes[17..21], ours[0].bytes[17..21]);
}

async fn copied(to: &Cluster, topic: &str) -> i64 {
    // The topic may not be there yet.
    log_ends(to, topic).await.iter().sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limit_holds_and_is_changed_while_running() {
    const LIMIT: u64 = 1_000_000;
    let (source, destination) = clusters();
    source.create_topic("slowly", 2, &[]).unwrap();
    let (from, to) = (connect(source).await, connect(destination).await);
    // At the lowest limit one of these is paid for in half a minute.
    const BATCH: usize = 500_000;
    let large = batch(&[Record::new("k", vec![7; BATCH])], PLAIN);
    for n in 0..16 {
        append(&from, "slowly", n % 2, &large).await.unwrap();
    }
    let mut options = link_options("slowly", source, destination, &["slowly"]);
    options.rate_limit = Some(LIMIT);
    let began = Instant::now();
    let running = Running::start(options);
    running
        .wait("copying", |link| {
            link.mirrors[0].mirror_status == MirrorStatus::Active
                && link.mirrors[0].mirror_lags.iter().any(|p| p.lag < Some(8))
        })
        .await;
    wait_for("two megabytes", || async {
        copied(&to, "slowly").await >= 4
    })
    .await;
    // Burst and a batch per partition aside, no faster than told; never mind how much slower this machine is.
    let there = copied(&to, "slowly").await;
    let aside = 200_000 + 2 * BATCH;
    let allowed = LIMIT as f64 * began.elapsed().as_secs_f64() + aside as f64;
    assert!(
        there as f64 * BATCH as f64 <= allowed,
        "{there} batches within {:?}",
        began.elapsed()
    );
    let description = running.handle.describe();
    assert_eq!(description.rate_limit, Some(LIMIT));
    assert!(
        description.throttled_seconds > 0.5,
        "{}",
        description.throttled_seconds
    );

    // All but stopped, then without a limit: who waits at the old limit goes on at once.
    running
        .handle
        .set_rate_limit(Some(standfast_link::MIN_RATE_LIMIT))
        .unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(copied(&to, "slowly").await < 16);
    let lifted = Instant::now();
    running.handle.set_rate_limit(None).unwrap();
    running.wait_caught_up(&from, "slowly").await;
    // At the old limit the rest would have taken minutes.
    assert!(
        lifted.elapsed() < Duration::from_secs(20),
        "{:?}",
        lifted.elapsed()
    );
    assert_eq!(running.handle.describe().rate_limit, None);
    assert!(running.handle.set_rate_limit(Some(1)).is_err());
    assert_identical(&from, &to, "slowly").await;
    running.end().await;
}
