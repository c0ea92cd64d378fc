//! Records, their ids and what becomes of them.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use rdkafka::message::{Header as KafkaHeader, OwnedHeaders};
use standfast_discovery::{ClusterName, Epoch};
use uuid::Uuid;

/// Name of the header that carries the [`RecordId`].
pub const ID_HEADER: &str = "standfast-id";

/// Key of the link's filler records, and name of their one header; a wire format shared with the link engine.
pub(crate) const FILLER: &str = "standfast.filler";

/// Whether a record is filler: the link engine writes it on a mirror where compaction has left no record on the source, so
/// that offsets stay the same. The wrapper's consumers leave it out; one without the wrapper can ask this.
pub fn is_filler<'a>(
    key: Option<&[u8]>,
    payload: Option<&[u8]>,
    header_names: impl IntoIterator<Item = &'a str>,
) -> bool {
    key == Some(FILLER.as_bytes())
        && payload.is_none()
        && header_names.into_iter().eq(std::iter::once(FILLER))
}

/// Bytes that a record takes beyond key, payload and headers, for the producer's accounting: id header and bookkeeping.
const RECORD_OVERHEAD: usize = 128;

/// A record to be produced.
///
/// ```
/// let record = standfast::Record::to("orders").key("customer-7").payload("…").header("trace", "abc");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub(crate) topic: Arc<str>,
    pub(crate) partition: Option<i32>,
    pub(crate) key: Option<Bytes>,
    pub(crate) payload: Option<Bytes>,
    pub(crate) headers: Vec<Header>,
    pub(crate) timestamp_ms: Option<i64>,
}

impl Record {
    /// A record for `topic`, without key, payload and headers.
    pub fn to(topic: impl AsRef<str>) -> Self {
        Self {
            topic: shared_name(topic.as_ref()),
            partition: None,
            key: None,
            payload: None,
            headers: Vec::new(),
            timestamp_ms: None,
        }
    }

    /// The key. It chooses the partition by Java's murmur2, unless [`partition`](Self::partition) is given.
    #[must_use]
    pub fn key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// The payload. Without one the record is a tombstone.
    #[must_use]
    pub fn payload(mut self, payload: impl Into<Bytes>) -> Self {
        self.payload = Some(payload.into());
        self
    }

    /// Adds a header. Keys may be repeated. [`ID_HEADER`] belongs to the wrapper; one of that name is not sent.
    #[must_use]
    pub fn header(mut self, key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.headers.push(Header {
            key: key.into(),
            value: Some(value.into()),
        });
        self
    }

    /// The partition. It must exist on every cluster of the fleet.
    #[must_use]
    pub fn partition(mut self, partition: i32) -> Self {
        self.partition = Some(partition);
        self
    }

    /// Milliseconds since 1970. Without it, the time at which the record was given to the producer; sending it again
    /// after a failover does not change it.
    #[must_use]
    pub fn timestamp_ms(mut self, timestamp_ms: i64) -> Self {
        self.timestamp_ms = Some(timestamp_ms);
        self
    }

    /// What the record counts against the producer's buffer, in bytes.
    pub(crate) fn size(&self) -> usize {
        let len = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        let headers: usize = self
            .headers
            .iter()
            .map(|h| h.key.len() + len(&h.value))
            .sum();
        self.topic.len() + len(&self.key) + len(&self.payload) + headers + RECORD_OVERHEAD
    }

    pub(crate) fn stamp_now(&mut self) {
        if self.timestamp_ms.is_none() {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            self.timestamp_ms = now.ok().and_then(|now| i64::try_from(now.as_millis()).ok());
        }
    }

    /// The application's headers, without a forged id.
    pub(crate) fn own_headers(&self) -> impl Iterator<Item = &Header> {
        self.headers.iter().filter(|h| h.key != ID_HEADER)
    }

    /// The headers as rust-rdkafka wants them, with the id in front.
    pub(crate) fn kafka_headers(&self, id: RecordId) -> OwnedHeaders {
        let id = id.to_bytes(&self.topic);
        let mut headers =
            OwnedHeaders::new_with_capacity(self.headers.len() + 1).insert(KafkaHeader {
                key: ID_HEADER,
                value: Some(id.as_slice()),
            });
        for header in self.own_headers() {
            headers = headers.insert(KafkaHeader {
                key: &header.key,
                value: header.value.as_deref(),
            });
        }
        headers
    }
}

/// A topic's name; the last one of this thread is not allocated anew.
fn shared_name(topic: &str) -> Arc<str> {
    thread_local! {
        static LAST: RefCell<Arc<str>> = RefCell::default();
    }
    LAST.with_borrow_mut(|last| {
        if **last != *topic {
            *last = Arc::from(topic);
        }
        Arc::clone(last)
    })
}

/// A record header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Name; need not be unique. Bytes that are not UTF-8 are replaced.
    pub key: String,
    /// Value; `None` is Kafka's null.
    pub value: Option<Bytes>,
}

/// Identity of a record over all clusters: which producer sent it, as its how-manieth. A record that is sent again
/// after a failover keeps it.
///
/// In one partition of one topic a producer's sequences only grow, but for records that are sent again: they repeat what is
/// there. So a consumer knows a repetition by the highest sequence that it has seen.
///
/// On the wire (header [`ID_HEADER`]) it is 28 bytes: the producer instance (a random UUID, 16 bytes), the sequence
/// (8 bytes, big endian), and the FNV-1a hash of the topic's name (4 bytes, big endian): a program that copies records with
/// their headers into another topic does not copy the id's meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordId {
    /// The producer instance: new for every [`FailoverProducer`](crate::FailoverProducer).
    pub producer: Uuid,
    /// Counts the producer's records from 0.
    pub sequence: u64,
}

impl RecordId {
    /// Length on the wire, in bytes.
    pub const LEN: usize = 28;

    /// The wire form of a record's id in `topic`.
    pub fn to_bytes(self, topic: &str) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..16].copy_from_slice(self.producer.as_bytes());
        bytes[16..24].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[24..].copy_from_slice(&fnv1a(topic).to_be_bytes());
        bytes
    }

    /// The part of an id that stands for the topic.
    pub(crate) fn topic_hash(topic: &str) -> u32 {
        fnv1a(topic)
    }

    /// Reads the wire form; `None` for any other length, and for an id that was given in another topic.
    pub fn from_bytes(topic: &str, bytes: &[u8]) -> Option<Self> {
        let (producer, rest) = bytes.split_first_chunk::<16>()?;
        let (sequence, hash) = rest.split_first_chunk::<8>()?;
        if hash != fnv1a(topic).to_be_bytes() {
            return None;
        }
        Some(Self {
            producer: Uuid::from_bytes(*producer),
            sequence: u64::from_be_bytes(*sequence),
        })
    }
}

/// FNV-1a, 32 bits.
fn fnv1a(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.producer.simple(), self.sequence)
    }
}

/// Where an acknowledged record stands.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Delivery {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: i32,
    /// The offset; -1 if the broker took the record for a repeat of one it already had and did not say which.
    pub offset: i64,
    /// The epoch under which the cluster was active.
    pub epoch: Epoch,
    /// The cluster that acknowledged.
    pub cluster: ClusterName,
    /// The record's id.
    pub id: RecordId,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_survives_the_wire() {
        let id = RecordId {
            producer: Uuid::new_v4(),
            sequence: u64::MAX - 3,
        };
        let bytes = id.to_bytes("orders");
        assert_eq!(RecordId::from_bytes("orders", &bytes), Some(id));
        assert_eq!(RecordId::from_bytes("other", &bytes), None, "a copy");
        assert_eq!(RecordId::from_bytes("orders", &bytes[..27]), None);
        assert_eq!(RecordId::from_bytes("orders", b""), None);
        assert_eq!(fnv1a("a"), 0xe40c_292c, "the published test vector");
    }

    #[test]
    fn a_foreign_id_header_is_not_sent() {
        use rdkafka::message::Headers;
        let record = Record::to("t")
            .header(ID_HEADER, "forged")
            .header("a", "1")
            .header("a", "2");
        let id = RecordId {
            producer: Uuid::nil(),
            sequence: 1,
        };
        let headers = record.kafka_headers(id);
        let keys: Vec<_> = headers.iter().map(|h| h.key.to_owned()).collect();
        assert_eq!(keys, [ID_HEADER, "a", "a"]);
        assert_eq!(headers.get(0).value, Some(id.to_bytes("t").as_slice()));
    }
}
