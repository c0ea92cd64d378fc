//! What goes with a topic: its configs, the size of its batches, where its mirror begins.

mod support;

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::OnceLock;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use standfast_link::{
    LinkDescription, MirrorDescription, MirrorStart, MirrorStatus, MirrorTopicError,
};
use standfast_servers::KafkaCluster;
use standfast_wire::Cluster;
use standfast_wire::admin::ConfigResource;
use standfast_wire::batch::{HEADER_LEN, RawBatch};
use support::*;

fn clusters() -> &'static (KafkaCluster, KafkaCluster) {
    static CLUSTERS: OnceLock<(KafkaCluster, KafkaCluster)> = OnceLock::new();
    CLUSTERS.get_or_init(|| {
        let source = KafkaCluster::builder("source")
            .heap_mb(256)
            // Another default than the destination's.
            .property("log.retention.ms", "500000000")
            .start()
            .expect("a Kafka cluster");
        let destination = KafkaCluster::builder("destination")
            .heap_mb(256)
            .property("socket.request.max.bytes", "12000000")
            .start()
            .expect("a Kafka cluster");
        (source, destination)
    })
}

async fn configs(cluster: &Cluster, topic: &str) -> BTreeMap<String, (String, bool)> {
    let asked = [ConfigResource::Topic(topic.to_owned())];
    let answered = cluster.describe_configs(&asked).await.expect("an answer");
    let (_, configs) = answered.into_iter().next().expect("one topic");
    let configs = configs.expect("configs").into_iter();
    configs
        .map(|c| (c.name, (c.value.unwrap_or_default(), c.is_override)))
        .collect()
}

async fn value(cluster: &Cluster, topic: &str, name: &str) -> String {
    let configs = configs(cluster, topic).await;
    configs
        .get(name)
        .map(|(v, _)| v.clone())
        .unwrap_or_default()
}

fn mirror<'a>(link: &'a LinkDescription, topic: &str) -> &'a MirrorDescription {
    let mut mirrors = link.mirrors.iter();
    mirrors
        .find(|m| m.mirror_topic_name == topic)
        .expect("a mirror")
}

async fn wait_value(cluster: &Cluster, topic: &str, name: &str, wanted: &str) {
    wait_for(&format!("{topic}: {name}={wanted}"), || async {
        value(cluster, topic, name).await == wanted
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn configs_follow_the_source_and_manual_changes_are_taken_back() {
    let (source, destination) = clusters();
    let (from, to) = (connect(source).await, connect(destination).await);
    let topic = "configs";
    let set = [
        ("retention.ms", "400000000"),
        ("segment.bytes", "20000000"),
        ("flush.ms", "5000"),
        ("message.timestamp.type", "LogAppendTime"),
        ("leader.replication.throttled.replicas", "*"),
        ("min.insync.replicas", "2"),
    ];
    source.create_topic(topic, 1, &set).unwrap();
    let mut options = link_options("configs", source, destination, &[topic]);
    options.metadata_refresh = Duration::from_millis(300);
    options.config_exclude = vec!["flush.ms".to_owned()];
    let running = Running::start(options);
    running
        .wait("in line", |link| {
            mirror(link, topic).config_sync.last_success_ms.is_some()
        })
        .await;
    let found = configs(&to, topic).await;
    let own = |name: &str| {
        found
            .get(name)
            .filter(|(_, own)| *own)
            .map(|(v, _)| v.as_str())
    };
    assert_eq!(own("retention.ms"), Some("400000000"));
    assert_eq!(own("message.timestamp.type"), Some("CreateTime"));
    // One replica: no more can be in sync.
    assert_eq!(own("min.insync.replicas"), Some("1"));
    for left in ["flush.ms", "leader.replication.throttled.replicas"] {
        assert_eq!(own(left), None, "{left}");
    }

    // The source changes, and drops: back to the destination's default, but for what the source's brokers keep differently.
    alter(
        &from,
        topic,
        &[
            ("cleanup.policy", Some("compact,delete")),
            ("segment.bytes", None),
            ("retention.ms", None),
            ("flush.ms", Some("6000")),
        ],
    )
    .await;
    wait_value(&to, topic, "cleanup.policy", "compact,delete").await;
    wait_value(&to, topic, "retention.ms", "500000000").await;
    let found = configs(&to, topic).await;
    assert!(!found["segment.bytes"].1, "{found:?}");
    assert!(!found["flush.ms"].1, "{found:?}");
    let edits = |link: &LinkDescription| mirror(link, topic).config_sync.reverted_edits;
    assert_eq!(edits(&running.handle.describe()), 0);

    // By hand, on the mirror.
    alter(
        &to,
        topic,
        &[
            ("retention.ms", Some("1000000000")),
            ("compression.type", Some("gzip")),
            ("flush.ms", Some("7000")),
            ("max.message.bytes", Some("3000000")),
        ],
    )
    .await;
    wait_value(&to, topic, "retention.ms", "500000000").await;
    wait_value(&to, topic, "compression.type", "producer").await;
    running.wait("reported", |link| edits(link) == 2).await;
    let mut registry = Default::default();
    running.handle.metrics(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let counted = "standfast_link_config_edits_reverted_total{link=\"configs\"} 2";
    assert!(text.contains(counted), "{text}");
    // What is left to the destination, and what is only ever raised.
    assert_eq!(value(&to, topic, "flush.ms").await, "7000");
    assert_eq!(value(&to, topic, "max.message.bytes").await, "3000000");

    // A promotion carries over what changed last; afterwards the topic is the destination's own.
    running.end().await;
    let mut options = link_options("configs", source, destination, &[topic]);
    options.metadata_refresh = Duration::from_secs(3600);
    let running = Running::start(options);
    running
        .wait("runs, and was looked at", |link| {
            mirror(link, topic).mirror_status == MirrorStatus::Active
                && mirror(link, topic)
                    .mirror_lags
                    .iter()
                    .all(|l| l.lag == Some(0))
        })
        .await;
    alter(&from, topic, &[("retention.ms", Some("300000000"))]).await;
    let changes = running.handle.promote(&[topic], PATIENCE).await;
    assert_eq!(changes[0].error_code, None, "{changes:?}");
    assert!(changes[0].warnings.is_empty(), "{changes:?}");
    assert_eq!(value(&to, topic, "retention.ms").await, "300000000");
    running.end().await;
    let mut options = link_options("configs", source, destination, &[topic, "other"]);
    options.metadata_refresh = Duration::from_millis(200);
    options
        .lifecycle
        .set([topic], standfast_link::Wanted::Stopped);
    source.create_topic("other", 1, &[]).unwrap();
    let running = Running::start(options);
    alter(&to, topic, &[("retention.ms", Some("77000000"))]).await;
    let other = |link: &LinkDescription| mirror(link, "other").config_sync.last_success_ms;
    running
        .wait("another look", |link| other(link).is_some())
        .await;
    let first = other(&running.handle.describe());
    running.wait("one more", |link| other(link) > first).await;
    assert_eq!(value(&to, topic, "retention.ms").await, "77000000");
    running.end().await;
}

/// A gzip batch of `count` empty records.
fn tiny(count: i64) -> RawBatch {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(1));
    for delta in 0..count {
        let mut body = vec![0, 0];
        let mut rest = (delta << 1) as u64;
        while rest > 0x7f {
            body.push((rest & 0x7f) as u8 | 0x80);
            rest >>= 7;
        }
        body.push(rest as u8);
        // No key, no value, no headers.
        body.extend([1, 1, 0]);
        let length = u8::try_from(body.len() * 2).expect("short");
        gzip.write_all(&[length]).expect("compressed");
        gzip.write_all(&body).expect("compressed");
    }
    let body = gzip.finish().expect("compressed");
    let one = batch(&[Record::new("k", "v")], PLAIN);
    let mut covered = BytesMut::from(&one.bytes[21..HEADER_LEN]);
    covered[0..2].copy_from_slice(&1i16.to_be_bytes());
    covered[2..6].copy_from_slice(&(count as i32 - 1).to_be_bytes());
    covered[36..40].copy_from_slice(&(count as i32).to_be_bytes());
    covered.put_slice(&body);
    let mut whole = BytesMut::from(&one.bytes[..21]);
    whole[8..12].copy_from_slice(&(covered.len() as i32 + 9).to_be_bytes());
    whole[17..21].copy_from_slice(&crc_fast::crc32_iscsi(&covered).to_be_bytes());
    whole.put_slice(&covered);
    RawBatch::new(whole.freeze()).expect("a batch")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_above_the_mirrors_limit_raises_it() {
    let (source, destination) = clusters();
    let (from, to) = (connect(source).await, connect(destination).await);
    let topic = "large";
    source
        .create_topic(topic, 3, &[("max.message.bytes", "20000000")])
        .unwrap();
    let small = [("max.message.bytes", "10000")];
    destination.create_topic(topic, 3, &small).unwrap();
    let of_bytes = |bytes: usize| batch(&[Record::new("k", vec![1; bytes])], PLAIN);
    for partition in 0..2 {
        append_some(&from, topic, partition, 3).await;
        append(&from, topic, partition, &of_bytes(50_000))
            .await
            .unwrap();
        append_some(&from, topic, partition, 3).await;
    }
    // The source itself would not take them any more.
    alter(&from, topic, &[("max.message.bytes", Some("20000"))]).await;
    wait_value(&from, topic, "max.message.bytes", "20000").await;
    let mut options = link_options("large", source, destination, &[topic]);
    options.metadata_refresh = Duration::from_millis(200);
    let running = Running::start(options.clone());
    running.wait_caught_up(&from, topic).await;
    assert_identical(&from, &to, topic).await;
    let limit = || async {
        let text = value(&to, topic, "max.message.bytes").await;
        text.parse::<usize>().expect("a number")
    };
    let raised = limit().await;
    assert!((50_000..60_000).contains(&raised), "{raised}");
    // Nor is it lowered again.
    let looked = |link: &LinkDescription| mirror(link, topic).config_sync.last_success_ms;
    let before = looked(&running.handle.describe());
    running
        .wait("another look", |link| looked(link) > before)
        .await;
    assert_eq!(limit().await, raised);

    // A request that the brokers' sockets do not take stops its partition, and no other.
    alter(&from, topic, &[("max.message.bytes", Some("20000000"))]).await;
    wait_value(&to, topic, "max.message.bytes", "20000000").await;
    wait_for("the source takes it", || async {
        append(&from, topic, 2, &of_bytes(13_000_000)).await.is_ok()
    })
    .await;
    append_some(&from, topic, 0, 3).await;
    running
        .wait("refused", |link| {
            mirror(link, topic).mirror_topic_error == MirrorTopicError::DestinationRefused
        })
        .await;
    let error = running.partition(2).and_then(|p| p.error).unwrap();
    assert!(error.contains("socket.request.max.bytes"), "{error}");
    append_some(&from, topic, 1, 3).await;
    let ends = log_ends(&from, topic).await;
    running
        .wait("the others go on", |link| {
            let lags = &mirror(link, topic).mirror_lags;
            let at = |n: usize| lags[n].destination_log_end_offset;
            at(0) == Some(ends[0]) && at(1) == Some(ends[1])
        })
        .await;
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_can_begin_at_the_end_or_at_a_time_and_keeps_to_it() {
    let (source, destination) = clusters();
    let (from, to) = (connect(source).await, connect(destination).await);
    for topic in ["at-end", "at-time"] {
        source.create_topic(topic, 2, &[]).unwrap();
        append_some(&from, topic, 0, 3).await;
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.expect("after 1970").as_millis() as i64;
    append_some(&from, "at-time", 0, 2).await;
    let mut options = link_options("starts", source, destination, &["at-end", "at-time"]);
    options.start = MirrorStart::Latest;
    options.topic_starts = [("at-time".to_owned(), MirrorStart::Timestamp(now))].into();
    let lifecycle = options.lifecycle.clone();
    // Decided, but the destination has nothing yet when the engine is lost.
    let running = Running::start(options.clone());
    wait_for("decided", || async { lifecycle.state().topics.len() == 2 }).await;
    running.end().await;
    for partition in 0..2 {
        append_some(&from, "at-end", partition, 2).await;
    }
    let running = Running::start(options);
    running.wait_caught_up(&from, "at-end").await;
    running.wait_caught_up(&from, "at-time").await;
    assert_eq!(log_starts(&to, "at-end").await, [30, 0]);
    assert_eq!(log_starts(&to, "at-time").await, [30, 0]);
    let theirs = read_all(&from, "at-end", 0).await;
    let ours = read_all(&to, "at-end", 0).await;
    assert_eq!(ours.len(), 2);
    for (a, b) in theirs.iter().skip(3).zip(&ours) {
        assert_eq!(a.header.base_offset, b.header.base_offset);
        assert_eq!(a.bytes[HEADER_LEN..], b.bytes[HEADER_LEN..]);
    }
    // What the source topic gets later is mirrored from its beginning.
    from.create_partitions(&[("at-end", 3)]).await.unwrap();
    append_some(&from, "at-end", 2, 2).await;
    running.wait_caught_up(&from, "at-end").await;
    assert_eq!(log_starts(&to, "at-end").await, [30, 0, 0]);
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn engines_that_know_nothing_of_each_other_begin_at_one_offset() {
    let (source, destination) = clusters();
    let (from, to) = (connect(source).await, connect(destination).await);
    let topic = "far";
    source.create_topic(topic, 1, &[]).unwrap();
    for _ in 0..3 {
        append(&from, topic, 0, &tiny(500_000)).await.unwrap();
    }
    let target = 1_500_000;
    // Each engine has a running state of its own, as on another machine.
    let fresh = || {
        let mut options = link_options("far", source, destination, &[topic]);
        options.start = MirrorStart::Latest;
        options.lifecycle = standfast_link::Lifecycle::default();
        options
    };
    let running = Running::start(fresh());
    running
        .wait("seeding, or done", |link| {
            let lags = mirror(link, topic).mirror_lags.first();
            lags.is_some_and(|l| {
                l.destination_log_end_offset.is_some_and(|at| at > 0)
                    && l.seed_target_offset.is_none_or(|t| t == target)
            })
        })
        .await;
    running.end().await;
    let filled = log_ends(&to, topic).await[0];
    assert!((1..=target).contains(&filled), "{filled}");
    // By now the source's end is elsewhere.
    append_some(&from, topic, 0, 1).await;
    let (one, other) = (Running::start(fresh()), Running::start(fresh()));
    append_some(&from, topic, 0, 2).await;
    one.wait_caught_up(&from, topic).await;
    other.wait_caught_up(&from, topic).await;
    assert_eq!(log_starts(&to, topic).await, [target]);
    let theirs = read_all(&from, topic, 0).await;
    let ours = read_all(&to, topic, 0).await;
    assert_eq!(ours.len(), 3);
    for (a, b) in theirs.iter().skip(3).zip(&ours) {
        assert_eq!(a.bytes[HEADER_LEN..], b.bytes[HEADER_LEN..]);
    }
    one.end().await;
    other.end().await;
}
