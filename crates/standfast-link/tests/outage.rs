//! Clusters that go away and come back.

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use standfast_link::{
    LinkState, MirrorStatus, PartitionState, RestoreExport, RestoreMode, RestoreOptions,
};
use standfast_wire::TopicPartition;
use support::*;

#[tokio::test(flavor = "multi_thread")]
async fn brokers_that_restart_are_waited_for_and_a_dead_source_does_not_hold_up_a_failover() {
    let (mut source, mut destination) =
        tokio::task::spawn_blocking(|| (kafka("source"), kafka("destination")))
            .await
            .unwrap();
    source.create_topic("orders", 3, &[]).unwrap();
    let (from, to) = (connect(&source).await, connect(&destination).await);
    let running = Running::start(link_options("outage", &source, &destination, &["orders"]));
    for partition in 0..3 {
        append_some(&from, "orders", partition, 50).await;
    }
    running.wait_caught_up(&from, "orders").await;

    // The destination is killed while records arrive.
    destination.kill();
    append_some(&from, "orders", 0, 50).await;
    running
        .wait("the outage is shown", |link| {
            link.mirrors[0].mirror_lags[0].state != PartitionState::Active
        })
        .await;
    assert!(running.partition(0).unwrap().error.is_some());
    destination.restart().unwrap();
    append_some(&from, "orders", 1, 50).await;
    running.wait_caught_up(&from, "orders").await;
    assert_identical(&from, &to, "orders").await;

    // The source hangs: seen although no connection breaks, and over when it goes on.
    source.pause();
    running
        .wait("the hang is shown", |link| {
            link.mirrors[0].mirror_status == MirrorStatus::SourceUnavailable
        })
        .await;
    source.resume();
    running
        .wait("active again", |link| {
            link.mirrors[0].mirror_status == MirrorStatus::Active
        })
        .await;
    // The destination hangs: nothing is lost, nothing is twice.
    destination.pause();
    append_some(&from, "orders", 1, 50).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    destination.resume();
    running.wait_caught_up(&from, "orders").await;
    assert_identical(&from, &to, "orders").await;

    // The source is killed.
    source.kill();
    running
        .wait("the outage is shown", |link| {
            link.mirrors[0].mirror_status == MirrorStatus::SourceUnavailable
                && link.link_state == LinkState::Unavailable
        })
        .await;
    source.restart().unwrap();
    append_some(&from, "orders", 2, 50).await;
    running.wait_caught_up(&from, "orders").await;
    running
        .wait("active again", |link| link.link_state == LinkState::Active)
        .await;
    assert_identical(&from, &to, "orders").await;

    // Failover with the source dead.
    let ends = log_ends(&from, "orders").await;
    source.kill();
    running
        .wait("the outage is shown", |link| {
            link.mirrors[0].mirror_status == MirrorStatus::SourceUnavailable
        })
        .await;
    let began = Instant::now();
    let stopped = running
        .handle
        .stop_mirrors(Duration::from_secs(5))
        .await
        .unwrap();
    // Waiting for the dead source would take at least its connect timeout.
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(
        stopped
            .iter()
            .map(|s| s.destination_log_end_offset.unwrap())
            .collect::<Vec<_>>(),
        ends
    );
    for partition in &stopped {
        assert_eq!(
            (partition.rpo_records, partition.drained),
            (Some(0), true),
            "{partition:?}"
        );
        assert!(
            partition.rpo_seconds.is_some_and(|s| s < 60.0),
            "{partition:?}"
        );
    }
    let again = running
        .handle
        .stop_mirrors(Duration::from_secs(5))
        .await
        .unwrap();
    assert_eq!(
        again
            .iter()
            .map(|s| s.destination_log_end_offset)
            .collect::<Vec<_>>(),
        stopped
            .iter()
            .map(|s| s.destination_log_end_offset)
            .collect::<Vec<_>>()
    );

    // The source comes back: nothing more is appended.
    source.restart().unwrap();
    append_some(&from, "orders", 0, 5).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(log_ends(&to, "orders").await, ends);
    let link = running.handle.describe();
    assert_eq!(
        (link.link_state, link.mirrors[0].mirror_status),
        (LinkState::Stopped, MirrorStatus::Stopped)
    );
    running.end().await;

    // A link that never reached its source can be stopped too.
    source.kill();
    let running = Running::start(link_options("outage", &source, &destination, &["orders"]));
    running
        .wait("source unavailable", |link| {
            link.link_state == LinkState::Unavailable && link.destination_cluster_id.is_some()
        })
        .await;
    let stopped = running
        .handle
        .stop_mirrors(Duration::from_secs(5))
        .await
        .unwrap();
    assert_eq!(
        stopped
            .iter()
            .map(|s| s.destination_log_end_offset.unwrap())
            .collect::<Vec<_>>(),
        ends
    );
    assert!(stopped.iter().all(|s| s.rpo_records.is_none()));
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_cluster_id_fails_the_link() {
    let cluster = tokio::task::spawn_blocking(|| kafka("only")).await.unwrap();
    let mut options = link_options("wrong", &cluster, &cluster, &["t"]);
    options.source.expected_cluster_id = Some("another-cluster".to_owned());
    let running = Running::start(options);
    running
        .wait("failed", |link| {
            link.link_state == LinkState::Failed
                && link
                    .link_error
                    .as_ref()
                    .is_some_and(|e| e.contains("another-cluster"))
        })
        .await;
    running.end().await;
}

/// A broker writes down once a minute where a log begins; killed before that, it begins where it did before.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_begins_where_its_mirror_does_also_when_all_brokers_were_killed() {
    let (source, mut destination) =
        tokio::task::spawn_blocking(|| (kafka("source"), kafka("destination")))
            .await
            .unwrap();
    let topics = ["seeded", "cut"];
    for topic in topics {
        source.create_topic(topic, 1, &[]).unwrap();
    }
    let (from, to) = (connect(&source).await, connect(&destination).await);
    append_some(&from, "seeded", 0, 10).await;
    let [(_, deleted)] = &from
        .delete_records(&[(TopicPartition::new("seeded", 0), 50)])
        .await[..]
    else {
        panic!("one answer");
    };
    deleted.as_ref().unwrap();
    append_some(&from, "cut", 0, 5).await;
    let running = Running::start(link_options("beginning", &source, &destination, &topics));
    for topic in topics {
        running.wait_caught_up(&from, topic).await;
    }
    // What only the mirror holds is cut off with all in front of it.
    append_some(&to, "cut", 0, 3).await;
    append_some(&from, "cut", 0, 10).await;
    running
        .wait("the mirror has failed", |link| {
            link.mirrors[1].mirror_status == MirrorStatus::Failed
        })
        .await;
    let folder = tempfile::tempdir().unwrap();
    let options = RestoreOptions {
        mode: RestoreMode::Fast,
        export: RestoreExport::Folder(folder.path().to_owned()),
        hints: BTreeMap::new(),
        dry_run: false,
    };
    let restored = running.handle.restore(&["cut"], &options).await;
    assert_eq!(restored[0].change.error_code, None, "{restored:?}");
    for topic in topics {
        running.wait_caught_up(&from, topic).await;
    }
    let starts = [
        log_starts(&to, "seeded").await,
        log_starts(&to, "cut").await,
    ];
    assert!(starts[0] == [50] && starts[1][0] > 50, "{starts:?}");

    destination.kill();
    destination.restart().unwrap();
    wait_for("the logs begin there again", || async {
        [
            log_starts(&to, "seeded").await,
            log_starts(&to, "cut").await,
        ] == starts
    })
    .await;
    for topic in topics {
        append_some(&from, topic, 0, 1).await;
        running.wait_caught_up(&from, topic).await;
    }
    running.end().await;
}
