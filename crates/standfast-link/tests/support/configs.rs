//! Topic configs of a cluster.

use std::time::Duration;

use standfast_wire::Cluster;
use standfast_wire::admin::{ConfigChange, ConfigResource};

/// A topic that is compacted as soon as a segment is closed, five times a second.
pub const COMPACTED: [(&str, &str); 4] = [
    ("cleanup.policy", "compact"),
    ("min.cleanable.dirty.ratio", "0.01"),
    ("segment.ms", "200"),
    ("delete.retention.ms", "0"),
];

/// Sets configs of a topic; `None`: back to the default.
pub async fn alter(cluster: &Cluster, topic: &str, changes: &[(&str, Option<&str>)]) {
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

/// From here on compaction leaves the topic as it is there, so that both sides can be compared.
pub async fn compact_no_more(cluster: &Cluster, topic: &str) {
    let never = i64::MAX.to_string();
    alter(cluster, topic, &[("min.compaction.lag.ms", Some(&never))]).await;
    // A run of the cleaner that has begun.
    tokio::time::sleep(Duration::from_secs(1)).await;
}
