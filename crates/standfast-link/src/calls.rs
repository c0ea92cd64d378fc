//! The questions of the control plane, in the link's own terms.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use standfast_wire::admin::{CommittedOffset, ConfigEntry, ConfigResource, NewTopic, OffsetSpec};
use standfast_wire::batch::{RawBatch, RestampedBatch};
use standfast_wire::fetch::Isolation;
use standfast_wire::produce::{self, ProduceResult};
use standfast_wire::{Cluster, Error, FrameReader, FrameWriter, ResponseError};
use uuid::Uuid;

use crate::membership::lease::Lease;
use crate::partition::PartitionId;

/// Leader epochs of the source mean nothing on the destination.
const NO_LEADER_EPOCH: i32 = -1;

/// Set on topics whose older segments are kept in tiered storage.
const REMOTE_STORAGE: &str = "remote.storage.enable";

/// Where a log starts and ends (its high watermark).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LogRange {
    pub(crate) start: i64,
    pub(crate) end: i64,
}

pub(crate) async fn log_range(cluster: &Cluster, id: &PartitionId) -> Result<LogRange, Error> {
    let ask = async |spec| {
        let listed = cluster
            .list_offsets(&[(id.clone(), spec)], Isolation::ReadUncommitted)
            .await;
        match listed.into_iter().next() {
            Some((_, listed)) => listed.map(|l| l.offset),
            None => Err(Error::LeaderUnavailable {
                topic: id.topic.clone(),
                partition: id.partition,
            }),
        }
    };
    // Both at the same time; the start only grows, so a start above the end is a moment's view.
    let (start, end) = tokio::try_join!(ask(OffsetSpec::Earliest), ask(OffsetSpec::Latest))?;
    Ok(LogRange {
        start: start.min(end),
        end,
    })
}

pub(crate) async fn log_ends(
    cluster: &Cluster,
    ids: &[PartitionId],
) -> HashMap<PartitionId, Result<i64, String>> {
    log_offsets(cluster, ids, OffsetSpec::Latest, Isolation::ReadUncommitted).await
}

/// One offset of each log, or why it is not known.
pub(crate) async fn log_offsets(
    cluster: &Cluster,
    ids: &[PartitionId],
    spec: OffsetSpec,
    isolation: Isolation,
) -> HashMap<PartitionId, Result<i64, String>> {
    let questions: Vec<_> = ids.iter().map(|id| (id.clone(), spec)).collect();
    let answers = cluster.list_offsets(&questions, isolation).await;
    answers
        .into_iter()
        .map(|(id, listed)| (id, listed.map(|l| l.offset).map_err(|e| e.to_string())))
        .collect()
}

/// The partitions in which a transaction is open.
pub(crate) async fn undecided(cluster: &Cluster, ids: &[PartitionId]) -> Vec<PartitionId> {
    // The last stable offset first: what is decided in between is not taken for open.
    let stable = log_offsets(cluster, ids, OffsetSpec::Latest, Isolation::ReadCommitted).await;
    let ends = log_ends(cluster, ids).await;
    let open = ends
        .into_iter()
        .filter(|(id, end)| matches!((stable.get(id), end), (Some(Ok(s)), Ok(end)) if s < end));
    open.map(|(id, _)| id).collect()
}

/// The batch that holds `offset`.
pub(crate) async fn batch_at(
    cluster: &Cluster,
    id: &PartitionId,
    offset: i64,
) -> Result<Option<RawBatch>, Error> {
    let found = batch_and_stable(cluster, id, offset).await?;
    Ok(found.map(|(batch, _)| batch))
}

/// Batches from the one that holds `offset` on, in `max_bytes` or one.
pub(crate) async fn batches_at(
    cluster: &Cluster,
    id: &PartitionId,
    offset: i64,
    max_bytes: i32,
) -> Result<Vec<RawBatch>, Error> {
    let fetched = cluster
        .fetch_batches(&id.topic, id.partition, offset, max_bytes)
        .await?;
    Ok(fetched.batches)
}

/// The batch that holds `offset`, and the log's last stable offset.
pub(crate) async fn batch_and_stable(
    cluster: &Cluster,
    id: &PartitionId,
    offset: i64,
) -> Result<Option<(RawBatch, i64)>, Error> {
    // One byte: a broker answers the first batch whole, and nothing more.
    let fetched = cluster
        .fetch_batches(&id.topic, id.partition, offset, 1)
        .await?;
    Ok(fetched
        .batches
        .into_iter()
        .find(|batch| batch.header.next_offset() > offset)
        .map(|batch| (batch, fetched.last_stable_offset)))
}

/// Timestamp of the first record at or after `offset`.
pub(crate) async fn first_timestamp(
    cluster: &Cluster,
    id: &PartitionId,
    offset: i64,
) -> Result<i64, Error> {
    let missing = || Error::LeaderUnavailable {
        topic: id.topic.clone(),
        partition: id.partition,
    };
    batch_at(cluster, id, offset)
        .await?
        .map(|batch| batch.header.base_timestamp)
        .filter(|t| *t >= 0)
        .ok_or_else(missing)
}

pub(crate) async fn delete_records(
    cluster: &Cluster,
    id: &PartitionId,
    before: i64,
) -> Result<(), Error> {
    for (_, deleted) in cluster.delete_records(&[(id.clone(), before)]).await {
        deleted?;
    }
    Ok(())
}

/// The topic's id as the cluster now knows it; `None` if it does not know the topic.
pub(crate) async fn topic_id(cluster: &Cluster, topic: &str) -> Result<Option<Uuid>, Error> {
    let metadata = cluster.topics(&[topic]).await?;
    Ok(metadata
        .topics
        .get(topic)
        .filter(|t| t.error != Some(ResponseError::UnknownTopicOrPartition))
        .map(|t| t.topic_id))
}

/// One configuration value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConfigValue {
    pub(crate) value: Option<String>,
    /// Set on the topic itself, not inherited.
    pub(crate) is_topic_level: bool,
}

pub(crate) fn by_name(entries: Vec<ConfigEntry>) -> BTreeMap<String, ConfigValue> {
    let valued = entries.into_iter().map(|c| {
        let value = ConfigValue {
            value: c.value,
            is_topic_level: c.is_override,
        };
        (c.name, value)
    });
    valued.collect()
}

pub(crate) async fn topic_configs(
    cluster: &Cluster,
    topic: &str,
) -> Result<BTreeMap<String, ConfigValue>, Error> {
    let mut configs = BTreeMap::new();
    for (_, described) in cluster
        .describe_configs(&[ConfigResource::Topic(topic.to_owned())])
        .await?
    {
        configs.extend(by_name(described?));
    }
    Ok(configs)
}

/// The configs of several topics.
pub(crate) async fn configs_of_topics(
    cluster: &Cluster,
    topics: &[Arc<str>],
) -> Result<HashMap<Arc<str>, Result<BTreeMap<String, ConfigValue>, Error>>, Error> {
    let resources: Vec<_> = topics
        .iter()
        .map(|name| ConfigResource::Topic(name.to_string()))
        .collect();
    let described = cluster.describe_configs(&resources).await?;
    let named = described.into_iter().filter_map(|(resource, configs)| {
        let ConfigResource::Topic(name) = resource else {
            return None;
        };
        Some((Arc::from(name), configs.map(by_name)))
    });
    Ok(named.collect())
}

/// Whether an answer without records means that there are none. A broker that keeps older segments in tiered storage (KIP-405) also answers none when that storage is slow.
pub(crate) async fn reads_are_local(cluster: &Cluster, topic: &str) -> Result<bool, Error> {
    let configs = topic_configs(cluster, topic).await?;
    let tiered = configs.get(REMOTE_STORAGE).and_then(|c| c.value.as_deref());
    Ok(tiered != Some("true"))
}

/// Creates a topic; one that another engine of the link has just created is fine.
pub(crate) async fn create_topic(
    cluster: &Cluster,
    name: &str,
    partitions: i32,
    replication_factor: i16,
    configs: BTreeMap<String, String>,
) -> Result<(), Error> {
    let topic = NewTopic {
        name: name.to_owned(),
        partitions,
        replication_factor,
        configs,
    };
    already_fine(
        cluster.create_topic(topic).await.map(|_| ()),
        ResponseError::TopicAlreadyExists,
    )
}

pub(crate) async fn grow_topic(
    cluster: &Cluster,
    name: &str,
    partitions: i32,
) -> Result<(), Error> {
    for (_, grown) in cluster.create_partitions(&[(name, partitions)]).await? {
        already_fine(grown, ResponseError::InvalidPartitions)?;
    }
    cluster.topics(&[name]).await?;
    Ok(())
}

fn already_fine(result: Result<(), Error>, code: ResponseError) -> Result<(), Error> {
    match result {
        Err(error) if error.code() == Some(code) => Ok(()),
        other => other,
    }
}

/// Produces one batch over a connection with nothing else in flight.
pub(crate) async fn produce_one(
    halves: &mut (FrameReader, FrameWriter),
    lease: &Lease,
    client_id: &str,
    timeout_ms: i32,
    part: (&str, i32, RestampedBatch),
) -> Result<ProduceResult, Error> {
    let (reader, writer) = halves;
    let frame = produce::encode(0, client_id, -1, timeout_ms, None, &[part]);
    let broker = std::sync::Arc::clone(writer.broker());
    lease.guard(broker, writer.write(&frame)).await?;
    let results = produce::decode(reader.read().await?)?;
    let closed = || Error::Closed {
        broker: reader.broker().clone(),
        detail: " with an answer that names no partition",
    };
    results.partitions.into_iter().next().ok_or_else(closed)
}

/// A group's committed offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Committed {
    pub(crate) offset: i64,
    pub(crate) metadata: String,
}

pub(crate) async fn committed(
    cluster: &Cluster,
    group: &str,
) -> Result<HashMap<PartitionId, Committed>, Error> {
    let offsets = cluster.offset_fetch(group).await?;
    offsets
        .into_iter()
        .map(|(id, found)| {
            found.map(|found| {
                (
                    id,
                    Committed {
                        offset: found.offset,
                        metadata: found.metadata,
                    },
                )
            })
        })
        .filter(|found| {
            found
                .as_ref()
                .map_or(true, |(_, committed)| committed.offset >= 0)
        })
        .collect()
}

pub(crate) async fn group_members(cluster: &Cluster, group: &str) -> Result<usize, Error> {
    Ok(cluster.describe_group(group).await?.members.len())
}

/// Commits as no member of the group: the broker refuses it (UNKNOWN_MEMBER_ID) if the group has members by now.
pub(crate) async fn commit(
    cluster: &Cluster,
    group: &str,
    offsets: &HashMap<PartitionId, Committed>,
) -> Result<(), Error> {
    let offsets: Vec<(PartitionId, CommittedOffset)> = offsets
        .iter()
        .map(|(id, c)| {
            (
                id.clone(),
                CommittedOffset {
                    offset: c.offset,
                    leader_epoch: NO_LEADER_EPOCH,
                    metadata: c.metadata.clone(),
                },
            )
        })
        .collect();
    for (_, committed) in cluster.offset_commit(group, &offsets).await? {
        committed?;
    }
    Ok(())
}

/// The producer id of a transactional id; `None` if the cluster does not know it.
pub(crate) async fn described_producer_id(
    cluster: &Cluster,
    transactional_id: &str,
) -> Result<Option<i64>, Error> {
    Ok(cluster
        .describe_transaction(transactional_id)
        .await?
        .map(|t| t.producer_id)
        .filter(|id| *id >= 0))
}

/// Has a producer id allocated for a transactional id, or its epoch bumped.
pub(crate) async fn init_producer_id(
    cluster: &Cluster,
    transactional_id: &str,
) -> Result<i64, Error> {
    Ok(cluster
        .init_producer_id(Some(transactional_id))
        .await?
        .producer_id)
}
