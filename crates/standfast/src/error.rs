//! What can go wrong, told to the person who has to act on it.

use std::time::Duration;

use standfast_discovery::ClusterName;

/// An error of the wrapper. Secrets never appear in it.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration cannot be used.
    #[error("configuration: {reason}")]
    Configuration {
        /// What is wrong and where.
        reason: String,
    },
    /// A librdkafka property that the wrapper sets itself, or that would break its promises.
    #[error("property {name:?} cannot be set: {reason}")]
    RefusedProperty {
        /// The property.
        name: String,
        /// Why it is refused and what to use instead.
        reason: &'static str,
    },
    /// Discovery gave no record of the fleet in time.
    #[error(
        "no record of fleet {fleet:?} within {waited:?}: {detail}; create it with `standfast fleet init`, or check the \
         discovery backend"
    )]
    NoRecord {
        /// The fleet asked for.
        fleet: String,
        /// How long was waited.
        waited: Duration,
        /// The last error of discovery, or what was missing.
        detail: String,
    },
    /// A record larger than the producer's whole buffer.
    #[error(
        "a record of {bytes} bytes does not fit into the producer's buffer of {limit} bytes; raise buffer_bytes()"
    )]
    RecordTooLarge {
        /// Size of the record: key, payload and headers.
        bytes: usize,
        /// The producer's limit.
        limit: usize,
    },
    /// `try_send` found the buffer full. `send` would have waited.
    #[error("the producer's buffer is full: {unresolved} records wait for an acknowledgement")]
    BufferFull {
        /// Records that wait for an acknowledgement.
        unresolved: usize,
    },
    /// The replay buffer is full: so many acknowledged records are not known to be on a standby yet that no further one
    /// can be protected. Only with [`Overflow::Fail`](crate::Overflow::Fail).
    #[error(
        "the record cannot be protected: {kept_bytes} of {limit} bytes of sent records wait for a standby to hold them; is \
         the mirror running, and may this client read the topic there?"
    )]
    Unprotected {
        /// Bytes of acknowledged records that are kept.
        kept_bytes: usize,
        /// The bound of the replay buffer.
        limit: usize,
    },
    /// The active cluster, or librdkafka before it, refused this record for good.
    #[error("cluster {cluster} refused a record for topic {topic:?}: {reason}")]
    Refused {
        /// The cluster.
        cluster: ClusterName,
        /// The record's topic.
        topic: String,
        /// librdkafka's error.
        reason: Box<rdkafka::error::KafkaError>,
    },
    /// `flush` ran out of time; the records are kept and sent on.
    #[error(
        "{unresolved} records were not acknowledged within {waited:?}; they are kept and sent on"
    )]
    FlushTimeout {
        /// Records that wait for an acknowledgement.
        unresolved: usize,
        /// How long was waited.
        waited: Duration,
    },
    /// The producer or consumer was closed. A record that was waiting may or may not have reached the cluster.
    #[error("the client was closed before the cluster answered")]
    Closed,
    /// The consumer got an error that concerns the application, for example a missing topic or a missing right.
    #[error("consumer of group {group:?} on cluster {cluster}: {reason}")]
    Consume {
        /// The consumer group.
        group: String,
        /// The cluster.
        cluster: ClusterName,
        /// librdkafka's error.
        reason: Box<rdkafka::error::KafkaError>,
    },
    /// [`commit`](crate::ConsumerHandle::commit) is not known to have succeeded. What is acknowledged stays so: commit again.
    #[error(
        "offsets of group {group:?} were not committed: {reason}; what is acknowledged stays so, commit again"
    )]
    NotCommitted {
        /// The consumer group.
        group: String,
        /// Why.
        reason: String,
    },
    /// The group's committed offsets cannot be read.
    #[error("offsets of group {group:?} cannot be read: {reason}")]
    OffsetsUnknown {
        /// The consumer group.
        group: String,
        /// What failed.
        reason: String,
    },
    /// The consumer does not have the partition.
    #[error(
        "the group has not given {topic}-{partition} to this consumer; wait for it to be assigned, see on_rebalance()"
    )]
    NotAssigned {
        /// The topic.
        topic: String,
        /// The partition.
        partition: i32,
    },
    /// The transaction does not count: its records are never seen, and what it read comes again in the next one, from the
    /// group's committed offsets. Begin again.
    #[error(
        "the transaction on cluster {cluster} was aborted ({reason}); begin the next one, what was read comes again"
    )]
    TransactionAborted {
        /// The cluster.
        cluster: ClusterName,
        /// Why.
        reason: String,
        /// It was being committed, and nobody knows how that ended: the next transaction goes on behind it if it was
        /// committed, and reads its records again if not.
        outcome_unknown: bool,
    },
    /// Another client with the same transactional id has taken over: this one is closed.
    #[error(
        "transactional id {transactional_id:?} is used by another client on cluster {cluster}, which has fenced this one; give \
         every running instance an id of its own"
    )]
    ProducerFenced {
        /// The transactional id.
        transactional_id: String,
        /// The cluster.
        cluster: ClusterName,
    },
    /// Discovery could not be set up.
    #[error("discovery: {0}")]
    Discovery(String),
    /// Secrets could not be set up.
    #[error("secrets: {0}")]
    Secrets(String),
}

impl Error {
    /// Whether the same may succeed if it is tried again, without anybody changing something.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::TransactionAborted { .. }
                | Self::BufferFull { .. }
                | Self::Unprotected { .. }
                | Self::FlushTimeout { .. }
                | Self::NoRecord { .. }
                | Self::NotCommitted { .. }
                | Self::OffsetsUnknown { .. }
                | Self::NotAssigned { .. }
        )
    }
}

/// `Result` with the wrapper's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
