//! Batches of transactions that must be encoded again: LogAppendTime, and what compaction left of them.

use standfast_wire::batch::{RawBatch, TimestampType};

use super::*;

/// Without filler, which consumers on the wrapper do not see either.
async fn lines(cluster: &'static KafkaCluster, topic: &str, isolation: &str) -> Vec<String> {
    let mut lines = consume(cluster, topic, isolation).await;
    lines.retain(|line| !line.contains("standfast.filler"));
    lines
}

async fn assert_same_view(topic: &'static str) {
    let (source, destination) = clusters();
    for isolation in ["read_committed", "read_uncommitted"] {
        let (theirs, ours) = tokio::join!(
            lines(source, topic, isolation),
            lines(destination, topic, isolation)
        );
        assert!(theirs.len() > 10, "{}", theirs.len());
        let first = theirs.iter().zip(&ours).find(|(a, b)| a != b);
        assert_eq!((first, theirs.len()), (None, ours.len()), "{isolation}");
    }
}

fn destination() -> &'static KafkaCluster {
    &clusters().1
}

fn transactional(batches: &[RawBatch]) -> impl Iterator<Item = &RawBatch> {
    batches
        .iter()
        .filter(|b| b.header.attributes.is_transactional() && !b.header.attributes.is_control())
}

/// Copies in several runs, each ended somewhere, two engines at once in the middle one.
async fn copy_in_pieces(from: &Cluster, to: &Cluster, topic: &'static str) {
    let (source, destination) = clusters();
    let options = || link_options(topic, source, destination, &[topic]);
    let end = log_ends(from, topic).await[0];
    for third in [1, 2] {
        let running = Running::start(options());
        let other = (third == 2).then(|| Running::start(options()));
        running
            .wait("on its way", |link| {
                let lag = link.mirrors[0].mirror_lags.first();
                lag.is_some_and(|p| p.destination_log_end_offset >= Some(end * third / 3))
            })
            .await;
        running.end().await;
        if let Some(other) = other {
            other.end().await;
        }
    }
    let running = Running::start(options());
    running.wait_caught_up(from, topic).await;
    running.end().await;
    // And once more, from a last batch that is the source's in other bytes.
    let running = Running::start(options());
    running.wait_caught_up(from, topic).await;
    append_some(from, topic, 0, 1).await;
    running.wait_caught_up(from, topic).await;
    running.end().await;
    assert_eq!(log_ends(to, topic).await, log_ends(from, topic).await);
    assert_eq!(stable_end(to, topic).await, log_ends(to, topic).await[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_log_append_time_transactions_keep_offsets_and_timestamps() {
    let (source, destination) = clusters();
    let clock = [("message.timestamp.type", "LogAppendTime")];
    source.create_topic("clock", 1, &clock).unwrap();
    let (from, to) = (connect(source).await, connect(destination).await);
    interleave(&from, "clock", 6).await;
    copy_in_pieces(&from, &to, "clock").await;
    assert_same_view("clock").await;
    let (theirs, ours) = (
        read_all(&from, "clock", 0).await,
        read_all(&to, "clock", 0).await,
    );
    let (theirs, ours): (Vec<_>, Vec<_>) = (
        transactional(&theirs).collect(),
        transactional(&ours).collect(),
    );
    assert!(theirs.len() == ours.len() && ours.len() > 20);
    for (a, b) in theirs.into_iter().zip(ours) {
        assert_eq!(
            a.header.attributes.timestamp_type(),
            TimestampType::LogAppendTime
        );
        assert_eq!(b.header.attributes.0, 0x10);
        assert_eq!(a.header.base_offset, b.header.base_offset);
        let mut plain = b.clone();
        plain.header.attributes.0 = 0;
        assert!(
            flat(&plain)
                .iter()
                .all(|record| record.1 == a.header.max_timestamp)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_compaction_leaves_of_transactions_is_reproduced() {
    clusters().0.create_topic("keys", 1, &COMPACTED).unwrap();
    let (from, to) = (connect(&clusters().0).await, connect(destination()).await);
    interleave(&from, "keys", 3).await;
    // Of three records one is left in each first batch; of an aborted transaction none.
    for n in 0..12 {
        let mut app = App::new(&from, &format!("keys-of-{n}"), "keys").await;
        app.write(3).await;
        app.write(2).await;
        app.end(n % 4 != 3).await;
    }
    let left = || async {
        let batches = read_all(&from, "keys", 0).await;
        let altered = |b: &&RawBatch| b.header.record_count > 0 && !b.header.is_dense();
        let markers = batches.iter().filter(|b| b.header.attributes.is_control());
        (
            transactional(&batches).filter(altered).count(),
            markers.count(),
        )
    };
    wait_for("compaction", || async {
        append_some(&from, "keys", 0, 1).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        left().await.0 >= 9
    })
    .await;
    compact_no_more(&from, "keys").await;
    assert!(left().await.1 > 5);
    copy_in_pieces(&from, &to, "keys").await;
    assert_same_view("keys").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_goes_on_behind_a_transaction_that_the_source_has_lost_since() {
    let (source, destination) = clusters();
    source.create_topic("taken", 1, &COMPACTED).unwrap();
    let (from, to) = (connect(source).await, connect(destination).await);
    let mut app = App::new(&from, "taken", "taken").await;
    append_some(&from, "taken", 0, 1).await;
    app.write(2).await;
    app.end(true).await;
    let options = || link_options("taken", source, destination, &["taken"]);
    let running = Running::start(options());
    running.wait_caught_up(&from, "taken").await;
    running.end().await;
    let end = log_ends(&to, "taken").await[0];
    app.write(2).await;
    app.end(true).await;
    wait_for("compaction", || async {
        append_some(&from, "taken", 0, 1).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let all = read_all(&from, "taken", 0).await;
        all.iter().all(|b| b.header.base_offset >= end)
    })
    .await;
    compact_no_more(&from, "taken").await;
    let running = Running::start(options());
    running.wait_caught_up(&from, "taken").await;
    running.end().await;
    assert_eq!(
        stable_end(&to, "taken").await,
        log_ends(&to, "taken").await[0]
    );
    let (theirs, ours) = (
        lines(source, "taken", "read_committed").await,
        lines(destination, "taken", "read_committed").await,
    );
    assert!(
        !theirs.is_empty() && ours.ends_with(&theirs),
        "{theirs:?} {ours:?}"
    );
}
