//! Fetch for the data plane, made by hand: v4 (Kafka 0.11) to v17, many partitions per request, records as slices of the frame.
//!
//! Topics are named by id from v13 on and by name before. Source:
//! <https://kafka.apache.org/protocol.html#The_Messages_Fetch>, KIP-74 (limits), KIP-227 (sessions), KIP-516 (topic ids).

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::FetchRequest as ProtocolFetchRequest;

use crate::decode::{Malformed, Reader, Text};
use crate::error::Error;
use crate::produce::put_string;
use crate::raw::ApiVersionTable;

/// A topic's id (KIP-516); [`TopicId::nil`] if the cluster gives none.
pub use uuid::Uuid as TopicId;

/// API key of Fetch.
pub const API_KEY: i16 = 1;
/// Lowest version made here: record batches v2 and isolation levels.
pub const VERSION_MIN: i16 = 4;
/// Highest version made here.
pub const VERSION_MAX: i16 = 17;
/// From this version on topics are named by id.
pub const VERSION_TOPIC_IDS: i16 = 13;
const FLEXIBLE: i16 = 12;
/// Session epoch of a request outside any fetch session (KIP-227).
pub const SESSION_EPOCH_NONE: i32 = -1;

/// Which records a Fetch or ListOffsets may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Isolation {
    /// Everything up to the high watermark.
    #[default]
    ReadUncommitted,
    /// Everything up to the last stable offset, with the list of aborted transactions.
    ReadCommitted,
}

impl Isolation {
    pub(crate) fn code(self) -> i8 {
        match self {
            Self::ReadUncommitted => 0,
            Self::ReadCommitted => 1,
        }
    }
}

/// The highest Fetch version to use with a broker. Without topic ids it stays below 13.
///
/// # Errors
/// [`Error::UnsupportedApi`] if the broker speaks none of them.
pub fn negotiate(versions: &ApiVersionTable, topic_ids_known: bool) -> Result<i16, Error> {
    let highest = if topic_ids_known {
        VERSION_MAX
    } else {
        VERSION_TOPIC_IDS - 1
    };
    versions.negotiate_within::<ProtocolFetchRequest>(VERSION_MIN, highest)
}

/// One Fetch request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchRequest {
    /// How long the broker may wait for `min_bytes`, in milliseconds.
    pub max_wait_ms: i32,
    /// Bytes to wait for.
    pub min_bytes: i32,
    /// Bound on the whole answer in bytes. The first batch is sent whole even if it is longer (KIP-74).
    pub max_bytes: i32,
    /// Which records to see.
    pub isolation: Isolation,
    /// Fetch session (KIP-227); 0 without one.
    pub session_id: i32,
    /// Epoch in the session; [`SESSION_EPOCH_NONE`] without one, 0 to open one.
    pub session_epoch: i32,
    /// What to fetch.
    pub topics: Vec<FetchTopic>,
    /// Partitions to remove from the session.
    pub forgotten: Vec<ForgottenTopic>,
}

impl Default for FetchRequest {
    fn default() -> Self {
        Self {
            max_wait_ms: 500,
            min_bytes: 1,
            max_bytes: 64 * 1024 * 1024,
            isolation: Isolation::default(),
            session_id: 0,
            session_epoch: SESSION_EPOCH_NONE,
            topics: Vec::new(),
            forgotten: Vec::new(),
        }
    }
}

/// The partitions of one topic to fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchTopic {
    /// Topic name; sent up to v12.
    pub name: Arc<str>,
    /// Topic id; sent from v13 on.
    pub topic_id: TopicId,
    /// Its partitions.
    pub partitions: Vec<FetchPosition>,
}

/// Where to fetch one partition from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchPosition {
    /// Partition.
    pub partition: i32,
    /// Leader epoch from metadata, checked by the broker (v9 on); -1 to leave that out.
    pub current_leader_epoch: i32,
    /// Offset to start at.
    pub offset: i64,
    /// Epoch of the last batch read, for the broker to detect divergence (v12 on); -1 to leave that out.
    pub last_fetched_epoch: i32,
    /// Bound on this partition's bytes.
    pub max_bytes: i32,
}

/// Partitions of one topic to remove from a fetch session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForgottenTopic {
    /// Topic name; sent up to v12.
    pub name: Arc<str>,
    /// Topic id; sent from v13 on.
    pub topic_id: TopicId,
    /// Its partitions.
    pub partitions: Vec<i32>,
}

/// Encodes a whole request frame (without the length prefix) in `version`, which must come from [`negotiate`].
pub fn encode(correlation_id: i32, client_id: &str, version: i16, request: &FetchRequest) -> Bytes {
    let version = version.clamp(VERSION_MIN, VERSION_MAX);
    let partitions: usize = request
        .topics
        .iter()
        .map(|topic| 24 + topic.name.len() + 48 * topic.partitions.len())
        .sum();
    let mut out = Writer {
        frame: BytesMut::with_capacity(96 + client_id.len() + partitions),
        flexible: version >= FLEXIBLE,
    };
    out.frame.put_i16(API_KEY);
    out.frame.put_i16(version);
    out.frame.put_i32(correlation_id);
    // The client id keeps its old form in flexible headers.
    put_string(&mut out.frame, Some(client_id));
    out.no_tags();
    if version < 15 {
        out.frame.put_i32(-1); // replica id: a consumer
    }
    out.frame.put_i32(request.max_wait_ms);
    out.frame.put_i32(request.min_bytes);
    out.frame.put_i32(request.max_bytes);
    out.frame.put_i8(request.isolation.code());
    if version >= 7 {
        out.frame.put_i32(request.session_id);
        out.frame.put_i32(request.session_epoch);
    }
    out.array(request.topics.len());
    for topic in &request.topics {
        out.topic(version, &topic.name, topic.topic_id);
        out.array(topic.partitions.len());
        for position in &topic.partitions {
            out.position(version, position);
        }
        out.no_tags();
    }
    if version >= 7 {
        out.array(request.forgotten.len());
        for topic in &request.forgotten {
            out.topic(version, &topic.name, topic.topic_id);
            out.array(topic.partitions.len());
            for partition in &topic.partitions {
                out.frame.put_i32(*partition);
            }
            out.no_tags();
        }
    }
    if version >= 11 {
        out.string(""); // rack id
    }
    out.no_tags();
    out.frame.freeze()
}

struct Writer {
    frame: BytesMut,
    flexible: bool,
}

impl Writer {
    fn topic(&mut self, version: i16, name: &str, id: TopicId) {
        if version >= VERSION_TOPIC_IDS {
            self.frame.put_slice(id.as_bytes());
        } else {
            self.string(name);
        }
    }

    fn position(&mut self, version: i16, position: &FetchPosition) {
        self.frame.put_i32(position.partition);
        if version >= 9 {
            self.frame.put_i32(position.current_leader_epoch);
        }
        self.frame.put_i64(position.offset);
        if version >= 12 {
            self.frame.put_i32(position.last_fetched_epoch);
        }
        if version >= 5 {
            self.frame.put_i64(-1); // log start offset: for followers
        }
        self.frame.put_i32(position.max_bytes);
        self.no_tags();
    }

    fn array(&mut self, length: usize) {
        if self.flexible {
            self.varint(length + 1);
        } else {
            self.frame.put_i32(length as i32);
        }
    }

    fn string(&mut self, text: &str) {
        if self.flexible {
            self.varint(text.len() + 1);
            self.frame.put_slice(text.as_bytes());
        } else {
            put_string(&mut self.frame, Some(text));
        }
    }

    fn varint(&mut self, mut value: usize) {
        while value >= 0x80 {
            self.frame.put_u8(value as u8 | 0x80);
            value >>= 7;
        }
        self.frame.put_u8(value as u8);
    }

    fn no_tags(&mut self) {
        if self.flexible {
            self.frame.put_u8(0);
        }
    }
}

/// The answer to a Fetch request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchResponse {
    /// Correlation id of the request that this answers.
    pub correlation_id: i32,
    /// How long the broker throttled this client, in milliseconds.
    pub throttle_ms: i32,
    /// Error of the whole request, such as an unknown session; 0 if none.
    pub error_code: i16,
    /// Fetch session that the broker has opened; 0 if none.
    pub session_id: i32,
    /// One entry per topic.
    pub topics: Vec<FetchedTopic>,
}

/// What was fetched of one topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchedTopic {
    /// Topic name; empty from v13 on.
    pub name: Text,
    /// Topic id; nil up to v12.
    pub topic_id: TopicId,
    /// Its partitions.
    pub partitions: Vec<FetchedPartition>,
}

/// What was fetched of one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchedPartition {
    /// Partition.
    pub partition: i32,
    /// Kafka's error code, 0 if none.
    pub error_code: i16,
    /// Offset up to which the log is replicated.
    pub high_watermark: i64,
    /// Offset up to which the outcome of every transaction is known; -1 if the broker does not say.
    pub last_stable_offset: i64,
    /// First offset of the log; -1 below v5.
    pub log_start_offset: i64,
    /// Epoch and end offset from which on the reader's log differs from the leader's (KIP-595), if so.
    pub diverging: Option<(i32, i64)>,
    /// Leader and epoch, if the broker knows better than the client (KIP-951).
    pub current_leader: Option<(i32, i32)>,
    /// Aborted transactions in the records, as (producer id, first offset); with [`Isolation::ReadCommitted`] only.
    pub aborted: Vec<(i64, i64)>,
    /// The record batches, a slice of the frame; see [`batches`](crate::batch::batches).
    pub records: Bytes,
}

/// Decodes a whole answer frame, correlation id included.
///
/// # Errors
/// [`Error::Decode`]. `broker` in the error is empty: the caller knows it.
pub fn decode(frame: Bytes, version: i16) -> Result<FetchResponse, Error> {
    response(frame, version).map_err(|malformed| Error::Decode {
        broker: Arc::from(""),
        api: "Fetch",
        version,
        reason: malformed.0.to_owned(),
    })
}

fn response(frame: Bytes, version: i16) -> Result<FetchResponse, Malformed> {
    if !(VERSION_MIN..=VERSION_MAX).contains(&version) {
        return Err(Malformed("the version is not supported"));
    }
    let flexible = version >= FLEXIBLE;
    let mut frame = Reader::new(frame);
    let correlation_id = frame.i32()?;
    if flexible {
        frame.tags(|_, _| Ok(()))?;
    }
    let throttle_ms = frame.i32()?;
    let (error_code, session_id) = if version >= 7 {
        (frame.i16()?, frame.i32()?)
    } else {
        (0, 0)
    };
    let count = frame.array(flexible, 3)?;
    let mut topics = Vec::with_capacity(count);
    for _ in 0..count {
        topics.push(topic(&mut frame, version, flexible)?);
    }
    if flexible {
        frame.tags(|_, _| Ok(()))?;
    }
    if frame.remaining() != 0 {
        return Err(Malformed("bytes are left over"));
    }
    Ok(FetchResponse {
        correlation_id,
        throttle_ms,
        error_code,
        session_id,
        topics,
    })
}

fn topic(frame: &mut Reader, version: i16, flexible: bool) -> Result<FetchedTopic, Malformed> {
    let (name, topic_id) = if version >= VERSION_TOPIC_IDS {
        (Text::default(), TopicId::from_u128(frame.u128()?))
    } else {
        (frame.string(flexible)?, TopicId::nil())
    };
    let count = frame.array(flexible, 24)?;
    let mut partitions = Vec::with_capacity(count);
    for _ in 0..count {
        partitions.push(partition(frame, version, flexible)?);
    }
    if flexible {
        frame.tags(|_, _| Ok(()))?;
    }
    Ok(FetchedTopic {
        name,
        topic_id,
        partitions,
    })
}

fn partition(
    frame: &mut Reader,
    version: i16,
    flexible: bool,
) -> Result<FetchedPartition, Malformed> {
    let mut fetched = FetchedPartition {
        partition: frame.i32()?,
        error_code: frame.i16()?,
        high_watermark: frame.i64()?,
        last_stable_offset: frame.i64()?,
        log_start_offset: if version >= 5 { frame.i64()? } else { -1 },
        diverging: None,
        current_leader: None,
        aborted: Vec::new(),
        records: Bytes::new(),
    };
    for _ in 0..frame.array(flexible, 16)? {
        fetched.aborted.push((frame.i64()?, frame.i64()?));
        if flexible {
            frame.tags(|_, _| Ok(()))?;
        }
    }
    if version >= 11 {
        frame.i32()?; // preferred read replica: this client names no rack, so there is none
    }
    fetched.records = frame.nullable_bytes(flexible)?;
    if flexible {
        frame.tags(|tag, value| {
            match tag {
                0 => {
                    fetched.diverging =
                        Some((value.i32()?, value.i64()?)).filter(|(epoch, _)| *epoch >= 0)
                }
                1 => {
                    fetched.current_leader =
                        Some((value.i32()?, value.i32()?)).filter(|(leader, _)| *leader >= 0)
                }
                _ => {}
            }
            Ok(())
        })?;
    }
    Ok(fetched)
}
