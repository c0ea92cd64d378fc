//! What can go wrong between here and a broker.

use std::io;
use std::sync::Arc;
use std::time::Duration;

pub use kafka_protocol::ResponseError;

use crate::batch::BatchError;

/// An error of this crate. Cheap to clone: every request that waits on a broken connection gets the same one.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting cannot be used.
    #[error("{setting}: {reason}")]
    Options {
        /// Which setting, as the field is called.
        setting: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The connection could not be made, or broke.
    #[error("broker {broker}: {action}: {source}")]
    Io {
        /// Address of the broker.
        broker: Arc<str>,
        /// What was being done.
        action: &'static str,
        /// The operating system's error.
        source: Arc<io::Error>,
    },
    /// No answer in time. Kafka answers in order, so a late answer holds up all later ones and the connection is given up.
    #[error("broker {broker}: no answer to {what} within {after:?}")]
    Timeout {
        /// Address of the broker.
        broker: Arc<str>,
        /// What was waited for: an API name, or "connect".
        what: &'static str,
        /// How long.
        after: Duration,
    },
    /// TLS could not be set up.
    #[error("broker {broker}: TLS: {reason}")]
    Tls {
        /// Address of the broker.
        broker: Arc<str>,
        /// Certificate, protocol or name problem.
        reason: String,
    },
    /// The broker refused the credentials, or does not offer the mechanism.
    #[error("broker {broker}: SASL {mechanism} authentication failed: {reason}")]
    Authentication {
        /// Address of the broker.
        broker: Arc<str>,
        /// SASL mechanism.
        mechanism: &'static str,
        /// The broker's words, or ours.
        reason: String,
    },
    /// The connection was closed, by the broker or by this side.
    #[error("broker {broker}: connection closed{detail}")]
    Closed {
        /// Address of the broker.
        broker: Arc<str>,
        /// Empty, or ": " and when.
        detail: &'static str,
    },
    /// The bytes on the connection are not what the protocol prescribes. The connection is given up.
    #[error(
        "broker {broker}: broken framing: {reason}; is this a Kafka listener, and TLS set as the listener expects?"
    )]
    Frame {
        /// Address of the broker.
        broker: Arc<str>,
        /// What was seen.
        reason: String,
    },
    /// An answer could not be decoded.
    #[error("broker {broker}: {api} v{version} answer cannot be decoded: {reason}")]
    Decode {
        /// Address of the broker.
        broker: Arc<str>,
        /// API name.
        api: &'static str,
        /// API version.
        version: i16,
        /// What was seen.
        reason: String,
    },
    /// A request could not be encoded: a field has no place in the negotiated version.
    #[error("broker {broker}: {api} v{version} request cannot be encoded: {reason}")]
    Encode {
        /// Address of the broker.
        broker: Arc<str>,
        /// API name.
        api: &'static str,
        /// API version.
        version: i16,
        /// What was seen.
        reason: String,
    },
    /// The broker and this crate have no version of the API in common.
    #[error(
        "broker {broker}: {api} is needed in a version between {supported}, the broker offers {offered}; Kafka 0.11 or later is required"
    )]
    UnsupportedApi {
        /// Address of the broker.
        broker: Arc<str>,
        /// API name.
        api: &'static str,
        /// Versions of this crate.
        supported: String,
        /// Versions of the broker, or "none".
        offered: String,
    },
    /// The addresses lead to another cluster than the one expected. Nothing was read or written there.
    #[error(
        "cluster at {bootstrap} has id {found:?}, expected {expected:?}: check the bootstrap addresses"
    )]
    WrongClusterId {
        /// The id that was configured, or seen at first.
        expected: String,
        /// The id that the broker states.
        found: String,
        /// The address that was asked.
        bootstrap: String,
    },
    /// No broker of the cluster could be reached.
    #[error("no broker reachable at {bootstrap}: {last}")]
    Unreachable {
        /// The bootstrap addresses.
        bootstrap: String,
        /// The last error of any address.
        last: Box<Error>,
    },
    /// The cluster does not list this broker (any more).
    #[error("broker id {broker_id} is not part of cluster {cluster_id}")]
    UnknownBroker {
        /// The broker id.
        broker_id: i32,
        /// The cluster's id.
        cluster_id: Arc<str>,
    },
    /// The partition exists but has no leader now.
    #[error("{topic}-{partition}: no leader available")]
    LeaderUnavailable {
        /// Topic name.
        topic: Arc<str>,
        /// Partition.
        partition: i32,
    },
    /// The broker answered with an error code.
    #[error("broker {broker}: {api}{}: {code:?} ({}){}", subject_text(.subject), .code.code(), message_text(.message))]
    Server {
        /// Address of the broker.
        broker: Arc<str>,
        /// API name.
        api: &'static str,
        /// What the request was about: "topic orders", "orders-3", "group billing".
        subject: Option<Arc<str>>,
        /// Kafka's error code.
        code: ResponseError,
        /// The broker's words, if it sent some.
        message: Option<Arc<str>>,
    },
    /// The record bytes are damaged or of an unsupported format.
    #[error("{subject}: {source}")]
    Batch {
        /// The partition.
        subject: Arc<str>,
        /// What is wrong.
        source: BatchError,
    },
}

impl Error {
    /// Whether the same call may succeed later without anybody changing anything.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Io { .. }
            | Self::Timeout { .. }
            | Self::Closed { .. }
            | Self::Unreachable { .. }
            | Self::UnknownBroker { .. }
            | Self::LeaderUnavailable { .. } => true,
            Self::Server { code, .. } => code.is_retriable(),
            _ => false,
        }
    }

    /// Kafka's error code, if the broker answered with one.
    pub fn code(&self) -> Option<ResponseError> {
        match self {
            Self::Server { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// Whether the metadata that led to this broker may be out of date.
    pub fn is_stale_metadata(&self) -> bool {
        match self {
            Self::Io { .. } | Self::Timeout { .. } | Self::Closed { .. } => true,
            Self::UnknownBroker { .. } | Self::LeaderUnavailable { .. } => true,
            Self::Server { code, .. } => is_stale_metadata(*code),
            _ => false,
        }
    }

    /// Names the broker in an error of a decoder, which does not know it.
    pub(crate) fn at(mut self, address: &Arc<str>) -> Self {
        if let Self::Decode { broker, .. } = &mut self {
            *broker = Arc::clone(address);
        }
        self
    }

    pub(crate) fn io(broker: &Arc<str>, action: &'static str, source: io::Error) -> Self {
        Self::Io {
            broker: Arc::clone(broker),
            action,
            source: Arc::new(source),
        }
    }

    pub(crate) fn server(
        broker: &Arc<str>,
        api: &'static str,
        subject: Option<&str>,
        code: ResponseError,
        message: Option<&str>,
    ) -> Self {
        Self::Server {
            broker: Arc::clone(broker),
            api,
            subject: subject.map(Arc::from),
            code,
            message: message.filter(|text| !text.is_empty()).map(Arc::from),
        }
    }
}

/// Whether `code` says that the client's view of topics and leaders is out of date.
pub fn is_stale_metadata(code: ResponseError) -> bool {
    matches!(
        code,
        ResponseError::NotLeaderOrFollower
            | ResponseError::UnknownTopicOrPartition
            | ResponseError::FencedLeaderEpoch
            | ResponseError::UnknownLeaderEpoch
            | ResponseError::UnknownTopicId
            | ResponseError::LeaderNotAvailable
            | ResponseError::NotController
            | ResponseError::KafkaStorageError
            | ResponseError::ReplicaNotAvailable
            | ResponseError::InconsistentTopicId
    )
}

fn subject_text(subject: &Option<Arc<str>>) -> String {
    subject
        .as_ref()
        .map(|text| format!(" for {text}"))
        .unwrap_or_default()
}

fn message_text(message: &Option<Arc<str>>) -> String {
    message
        .as_ref()
        .map(|text| format!(": {text}"))
        .unwrap_or_default()
}
