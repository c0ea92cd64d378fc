//! What goes with a topic: its configs, the size of its batches, where its mirror begins.

mod support;

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::Duration;

use standfast_link::{LinkDescription, MirrorDescription, MirrorStatus};
use standfast_servers::KafkaCluster;
use standfast_wire::Cluster;
use standfast_wire::admin::{ConfigChange, ConfigResource};
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
        (source, kafka("destination"))
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

async fn alter(cluster: &Cluster, topic: &str, changes: &[(&str, Option<&str>)]) {
    let changes = changes.iter().map(|(name, value)| {
        let change = match value {
            Some(value) => ConfigChange::Set((*value).to_owned()),
            None => ConfigChange::Delete,
        };
        ((*name).to_owned(), change)
    });
    let asked = [(ConfigResource::Topic(topic.to_owned()), changes.collect())];
    let answered = cluster.incremental_alter_configs(&asked).await;
    for (_, changed) in answered.expect("an answer") {
        changed.expect("changed");
    }
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
