//! A source with tiered storage (KIP-405): what it keeps elsewhere is mirrored, and its silence is not taken for a gap.

mod support;

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use standfast_link::LinkDescription;
use standfast_servers::KafkaCluster;
use support::*;

/// Offsets that the logs lack at their end.
const GAP: i64 = 700;

fn folder(source: &KafkaCluster, topic: &str) -> PathBuf {
    source.folder().join(format!("broker-1/data/{topic}-0"))
}

fn first_segment(source: &KafkaCluster, topic: &str) -> PathBuf {
    folder(source, topic).join(format!("{:020}.log", 0))
}

fn end_and_lag(link: &LinkDescription, topic: &str) -> Option<(i64, i64)> {
    let mut mirrors = link.mirrors.iter();
    let mirror = mirrors.find(|m| m.mirror_topic_name == topic)?;
    let partition = mirror.mirror_lags.first()?;
    Some((partition.destination_log_end_offset?, partition.lag?))
}

#[tokio::test(flavor = "multi_thread")]
async fn remote_segments_are_mirrored_and_their_silence_is_no_gap() {
    let (mut source, destination) = tokio::task::spawn_blocking(|| {
        let source = KafkaCluster::builder("source")
            .heap_mb(256)
            .tiered_storage()
            .property("log.retention.check.interval.ms", "200")
            .property("log.initial.task.delay.ms", "500")
            .start()
            .expect("a Kafka cluster");
        (source, kafka("destination"))
    })
    .await
    .unwrap();
    let tiered = [
        ("remote.storage.enable", "true"),
        ("segment.ms", "200"),
        ("local.retention.ms", "1"),
    ];
    source.create_topic("tiered", 1, &tiered).unwrap();
    source.create_topic("local", 1, &[]).unwrap();
    let (from, to) = (connect(&source).await, connect(&destination).await);
    append_some(&from, "tiered", 0, 10).await;
    append_some(&from, "local", 0, 10).await;
    // The first segment is closed by what comes later, copied, and deleted here.
    let first = first_segment(&source, "tiered");
    wait_for("the first segment is remote only", || async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        append_some(&from, "tiered", 0, 1).await;
        !first.exists()
    })
    .await;
    let link = || link_options("tiered", &source, &destination, &["tiered", "local"]);
    let running = Running::start(link());
    for topic in ["tiered", "local"] {
        running.wait_caught_up(&from, topic).await;
        assert_identical(&from, &to, topic).await;
    }
    running.end().await;

    // Both logs end in a gap. That of the local one is filled; with tiered storage an empty answer says nothing.
    let ends = [
        log_ends(&from, "tiered").await[0],
        log_ends(&from, "local").await[0],
    ];
    tokio::task::block_in_place(|| {
        source.stop_gracefully();
        for (topic, end) in ["tiered", "local"].into_iter().zip(ends) {
            let segment = folder(&source, topic).join(format!("{:020}.log", end + GAP));
            File::create(segment).expect("an empty segment");
        }
        source.restart().unwrap();
    });
    for (topic, end) in ["tiered", "local"].into_iter().zip(ends) {
        wait_for("the source ends in a gap", || async {
            log_ends(&from, topic).await[0] == end + GAP
        })
        .await;
    }
    let link = link_options("tiered", &source, &destination, &["tiered", "local"]);
    let running = Running::start(link);
    running
        .wait("the gap is seen, and filled where it is one", |link| {
            end_and_lag(link, "local") == Some((ends[1] + GAP, 0))
                && end_and_lag(link, "tiered") == Some((ends[0], GAP))
        })
        .await;
    // Once more by an engine that has looked longer.
    append_some(&from, "local", 0, 1).await;
    running
        .wait("the local one goes on", |link| {
            end_and_lag(link, "local") == Some((ends[1] + GAP + 10, 0))
        })
        .await;
    assert_eq!(log_ends(&to, "tiered").await, [ends[0]]);

    // A batch behind the gap proves it.
    append_some(&from, "tiered", 0, 1).await;
    for topic in ["tiered", "local"] {
        running.wait_caught_up(&from, topic).await;
        assert_eq!(log_ends(&to, topic).await, log_ends(&from, topic).await);
    }
    running.end().await;
}
