//! Questions to the cluster about offsets. They block, at most for [`ASK`] each.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};

use super::Key;
use super::context::WorkerContext;
use super::handle::SeekTo;
use super::shared::ConsumerShared;
use super::subscription::Subscription;
use crate::event::FleetEvent;
use crate::ffi;

/// One question. Asked on the poll thread; heartbeats go on meanwhile.
pub(super) const ASK: Duration = Duration::from_secs(3);

/// The offset that a seek means on this cluster.
pub(super) fn find(
    consumer: &BaseConsumer<WorkerContext>,
    (topic, number): &Key,
    to: SeekTo,
) -> Result<i64, String> {
    let range = || {
        consumer
            .fetch_watermarks(topic, *number, ASK)
            .map_err(|error| format!("log start and log end cannot be read: {error}"))
    };
    match to {
        SeekTo::Offset(offset) => Ok(offset),
        SeekTo::Beginning => Ok(range()?.0),
        SeekTo::End => Ok(range()?.1),
        SeekTo::Timestamp(ms) => {
            let failed =
                |error: KafkaError| format!("the offset of a time cannot be read: {error}");
            let mut list = TopicPartitionList::new();
            list.add_partition_offset(topic, *number, Offset::Offset(ms))
                .map_err(failed)?;
            let found = consumer.offsets_for_times(list, ASK).map_err(failed)?;
            let found = ffi::committed_offsets(&found).pop();
            match found.filter(|found| !found.failed) {
                None => Err("the offset of a time cannot be read".to_owned()),
                // No record is so young.
                Some(found) => found.offset.map_or_else(|| Ok(range()?.1), Ok),
            }
        }
    }
}

/// Looks for an offset of the group; empty if there is one, or nothing to look at; else the partitions. Of patterns those topics are
/// looked at that may match.
pub(super) fn find_any(
    consumer: &BaseConsumer<WorkerContext>,
    subscription: &Subscription,
) -> Result<Vec<Key>, KafkaError> {
    let mut list = TopicPartitionList::new();
    for topic in subscription.names() {
        let metadata = consumer.fetch_metadata(Some(topic), ASK)?;
        let partitions = metadata
            .topics()
            .iter()
            .flat_map(|found| found.partitions());
        for partition in partitions {
            list.add_partition(topic, partition.id());
        }
    }
    if subscription.has_patterns() {
        let metadata = consumer.fetch_metadata(None, ASK)?;
        let topics = metadata.topics().iter();
        for topic in topics.filter(|topic| subscription.may_match(topic.name())) {
            for partition in topic.partitions() {
                list.add_partition(topic.name(), partition.id());
            }
        }
    }
    if list.count() == 0 {
        return Ok(Vec::new());
    }
    let offsets = ffi::committed_offsets(&consumer.committed_offsets(list, ASK)?);
    if offsets.iter().any(|entry| entry.offset.is_some()) {
        return Ok(Vec::new());
    }
    Ok(offsets
        .into_iter()
        .map(|entry| (entry.topic, entry.partition))
        .collect())
}

/// Says once that the group is not joined, and why.
pub(super) fn report_held(shared: &ConsumerShared, partitions: Vec<Key>) {
    let (client, group) = (&shared.name, &shared.group);
    let reason = format!(
        "group {group:?} has no committed offset on this cluster; the group is joined when its offsets have arrived, or \
         choose on_missing_offset(Earliest or Latest)"
    );
    tracing::warn!(
        client = client.as_str(),
        partitions = partitions.len(),
        reason,
        "partitions are held"
    );
    for (topic, partition) in partitions {
        shared.fleet.emit(FleetEvent::PartitionHeld {
            client: client.clone(),
            topic,
            partition,
            reason: reason.clone(),
        });
    }
}
