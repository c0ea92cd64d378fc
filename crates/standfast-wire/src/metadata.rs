//! What a cluster says about itself.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use kafka_protocol::messages::MetadataResponse;
use kafka_protocol::messages::metadata_response::{
    MetadataResponsePartition, MetadataResponseTopic,
};
use tokio::time::Instant;

use crate::error::ResponseError;
use crate::fetch::TopicId;
use crate::options::HostPort;
use crate::topic_prefix::TopicPrefix;

/// A broker's id in its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BrokerId(pub i32);

impl fmt::Display for BrokerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A topic's name and a partition of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    /// Topic name.
    pub topic: Arc<str>,
    /// Partition.
    pub partition: i32,
}

impl TopicPartition {
    /// Partition `partition` of `topic`.
    pub fn new(topic: impl Into<Arc<str>>, partition: i32) -> Self {
        Self {
            topic: topic.into(),
            partition,
        }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

/// A snapshot of a cluster's metadata.
#[derive(Debug, Clone, PartialEq)]
pub struct Metadata {
    /// The cluster's id.
    pub cluster_id: Arc<str>,
    /// The broker that takes requests for the controller, if there is one.
    pub controller: Option<BrokerId>,
    /// Every live broker and its address on the listener that was asked.
    pub brokers: BTreeMap<BrokerId, HostPort>,
    /// The topics that were asked for, also those that do not exist (with their error).
    pub topics: BTreeMap<Arc<str>, TopicMetadata>,
    /// When the answer came.
    pub fetched_at: Instant,
}

impl Metadata {
    /// Partition metadata, if the topic is known.
    pub fn partition(&self, topic: &str, partition: i32) -> Option<&PartitionMetadata> {
        self.topics.get(topic)?.partitions.get(&partition)
    }

    /// The name of a topic id, for answers that state ids only.
    pub fn topic_name(&self, id: TopicId) -> Option<&Arc<str>> {
        if id.is_nil() {
            return None;
        }
        self.topics
            .iter()
            .find(|(_, topic)| topic.topic_id == id)
            .map(|(name, _)| name)
    }

    pub(crate) fn from_response(response: &MetadataResponse, prefix: &TopicPrefix) -> Self {
        let brokers = response.brokers.iter().filter_map(|broker| {
            let port = u16::try_from(broker.port).ok()?;
            let host = broker.host.to_string();
            Some((BrokerId(broker.node_id.0), HostPort { host, port }))
        });
        let topics = response.topics.iter().filter_map(|topic| {
            let name = topic.name.as_ref()?;
            Some((
                prefix.add(name.0.as_str()),
                TopicMetadata::from_response(topic),
            ))
        });
        Self {
            cluster_id: response.cluster_id.as_deref().unwrap_or_default().into(),
            controller: broker_id(response.controller_id.0),
            brokers: brokers.collect(),
            topics: topics.collect(),
            fetched_at: Instant::now(),
        }
    }
}

/// Metadata of one topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicMetadata {
    /// The topic's id; nil if the broker gives none (before Kafka 2.8).
    pub topic_id: TopicId,
    /// Why there are no partitions: the topic does not exist, or may not be described.
    pub error: Option<ResponseError>,
    /// Whether the topic is Kafka's own.
    pub is_internal: bool,
    /// The partitions.
    pub partitions: BTreeMap<i32, PartitionMetadata>,
}

impl TopicMetadata {
    fn from_response(topic: &MetadataResponseTopic) -> Self {
        Self {
            topic_id: topic.topic_id,
            error: ResponseError::try_from_code(topic.error_code),
            is_internal: topic.is_internal,
            partitions: topic
                .partitions
                .iter()
                .map(|partition| {
                    (
                        partition.partition_index,
                        PartitionMetadata::from_response(partition),
                    )
                })
                .collect(),
        }
    }
}

/// Metadata of one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionMetadata {
    /// The leader, if there is one now.
    pub leader: Option<BrokerId>,
    /// Epoch of the leader; -1 if the broker gives none.
    pub leader_epoch: i32,
    /// All replicas.
    pub replicas: Vec<BrokerId>,
    /// Replicas that are in sync.
    pub in_sync: Vec<BrokerId>,
    /// What is wrong with the partition, such as no leader.
    pub error: Option<ResponseError>,
}

impl PartitionMetadata {
    fn from_response(partition: &MetadataResponsePartition) -> Self {
        let ids = |nodes: &[kafka_protocol::messages::BrokerId]| {
            nodes.iter().map(|id| BrokerId(id.0)).collect()
        };
        Self {
            leader: broker_id(partition.leader_id.0),
            leader_epoch: partition.leader_epoch,
            replicas: ids(&partition.replica_nodes),
            in_sync: ids(&partition.isr_nodes),
            error: ResponseError::try_from_code(partition.error_code),
        }
    }
}

/// Kafka writes "none" as -1.
fn broker_id(id: i32) -> Option<BrokerId> {
    (id >= 0).then_some(BrokerId(id))
}
