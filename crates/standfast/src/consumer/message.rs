//! A record as the application gets it.

use std::sync::Arc;

use bytes::Bytes;
use rdkafka::message::{BorrowedMessage, Message as _, Timestamp};
use standfast_discovery::{ClusterName, Epoch};

use super::partition::Partition;
use super::rebalance::TopicPartition;
use crate::record::{FILLER, Header, ID_HEADER, RecordId, is_filler};

/// Bytes that a message takes beyond key, payload and headers, for the accounting of what is read ahead.
const MESSAGE_OVERHEAD: usize = 160;

/// A consumed record. It owns its data: keeping it does not keep a Kafka client alive.
#[derive(Debug, Clone)]
pub struct Message {
    pub(crate) partition: Arc<Partition>,
    pub(crate) offset: i64,
    key: Option<Bytes>,
    payload: Option<Bytes>,
    headers: Vec<Header>,
    id: Option<RecordId>,
    timestamp_ms: Option<i64>,
    pub(crate) source: Arc<Source>,
}

/// The generation that read a message.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) generation: u64,
    pub(crate) epoch: Epoch,
    pub(crate) cluster: ClusterName,
}

impl Message {
    pub(crate) fn copy(
        message: &BorrowedMessage<'_>,
        partition: &Arc<Partition>,
        source: &Arc<Source>,
        show_id_header: bool,
    ) -> Self {
        let mut headers = crate::ffi::headers(message);
        let id = headers
            .iter()
            .find(|header| header.key == ID_HEADER)
            .and_then(|header| RecordId::from_bytes(&partition.topic, header.value.as_deref()?));
        if !show_id_header {
            headers.retain(|header| header.key != ID_HEADER);
        }
        let timestamp_ms = match message.timestamp() {
            Timestamp::NotAvailable => None,
            Timestamp::CreateTime(ms) | Timestamp::LogAppendTime(ms) => Some(ms),
        };
        Self {
            partition: Arc::clone(partition),
            offset: message.offset(),
            key: message.key().map(Bytes::copy_from_slice),
            payload: message.payload().map(Bytes::copy_from_slice),
            headers,
            id,
            timestamp_ms,
            source: Arc::clone(source),
        }
    }

    /// The topic.
    pub fn topic(&self) -> &str {
        &self.partition.topic
    }

    /// The partition.
    pub fn partition(&self) -> i32 {
        self.partition.number
    }

    /// Topic and partition.
    pub fn topic_partition(&self) -> TopicPartition {
        TopicPartition::new(self.topic(), self.partition())
    }

    /// The offset: the same on every cluster that holds the record, if it was mirrored.
    pub fn offset(&self) -> i64 {
        self.offset
    }

    /// The key.
    pub fn key(&self) -> Option<&[u8]> {
        self.key.as_deref()
    }

    /// The payload; `None` is a tombstone.
    pub fn payload(&self) -> Option<&[u8]> {
        self.payload.as_deref()
    }

    /// The headers in their order, without the wrapper's own unless the consumer was built with
    /// [`show_id_header`](crate::ConsumerBuilder::show_id_header).
    pub fn headers(&self) -> &[Header] {
        &self.headers
    }

    /// Value of the first header of this name.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers
            .iter()
            .find(|header| header.key == name)?
            .value
            .as_deref()
    }

    /// The record's id, if its producer used the wrapper.
    pub fn id(&self) -> Option<RecordId> {
        self.id
    }

    /// Milliseconds since 1970: the producer's time, or the broker's for topics with `LogAppendTime`.
    pub fn timestamp_ms(&self) -> Option<i64> {
        self.timestamp_ms
    }

    /// The epoch under which it was read.
    pub fn epoch(&self) -> Epoch {
        self.source.epoch
    }

    /// The cluster it was read from.
    pub fn cluster(&self) -> &ClusterName {
        &self.source.cluster
    }

    /// Whether it is filler of the link; seen only with [`show_filler`](crate::ConsumerBuilder::show_filler).
    pub fn is_filler(&self) -> bool {
        let headers = self.headers.iter().map(|header| header.key.as_str());
        is_filler(self.key(), self.payload(), headers)
    }

    pub(crate) fn key_of_partition(&self) -> (Arc<str>, i32) {
        (Arc::clone(&self.partition.topic), self.partition.number)
    }

    pub(crate) fn size(&self) -> usize {
        let len = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        let headers: usize = self
            .headers
            .iter()
            .map(|h| h.key.len() + len(&h.value))
            .sum();
        MESSAGE_OVERHEAD + len(&self.key) + len(&self.payload) + headers
    }
}

/// The same for a record that is still librdkafka's; its headers are read only if key and value fit.
pub(crate) fn is_link_filler(message: &BorrowedMessage<'_>) -> bool {
    if message.payload().is_some() || message.key() != Some(FILLER.as_bytes()) {
        return false;
    }
    let headers = crate::ffi::headers(message);
    let names = headers.iter().map(|header| header.key.as_str());
    is_filler(message.key(), message.payload(), names)
}
