//! Kafka connections and the RecordBatch header view, in pure Rust. For clusters of Kafka 0.11 and later.
//!
//! - [`batch`]: the 61-byte header of a record batch: parse it, check the CRC, restamp it for another cluster without copying.
//! - [`RawConnection`]: a connection that one task owns: the data plane, with [`fetch`] and [`produce`] made by hand.
//! - [`Connection`]: a connection that many tasks share: the control plane, with the messages of `kafka-protocol`.
//! - [`Cluster`]: bootstrap, metadata and leader cache, and the admin calls a link needs, many partitions per request.
//!
//! It is not a client library: no record is decoded, nothing is batched or balanced.
#![forbid(unsafe_code)]

pub mod admin;
pub mod batch;
mod cluster;
mod connection;
mod crc;
mod decode;
mod error;
pub mod fetch;
mod flight;
mod frame;
mod login;
mod membership;
mod metadata;
mod options;
pub mod produce;
mod raw;
mod retry;
mod sasl;
mod tls;
mod token;
mod topic_prefix;

pub use cluster::{Cluster, CoordinatorKind};
pub use connection::{Connection, ConnectionState, IN_FLIGHT_MAX};
pub use decode::Text;
pub use error::{Error, ResponseError, is_stale_metadata};
pub use frame::{FrameReader, FrameWriter};
pub use kafka_protocol;
pub use login::{Login, SharedLogin};
pub use membership::{GroupAssignment, GroupMember, GroupOptions, GroupSession, JoinedGroup};
pub use metadata::{BrokerId, Metadata, PartitionMetadata, TopicMetadata, TopicPartition};
pub use options::{ClusterOptions, HostPort, Pem, SaslMechanism, SaslOptions, TlsOptions};
pub use raw::{ApiVersionTable, RawConnection};
pub use secrecy::ExposeSecret;
pub use token::TokenSource;
pub use topic_prefix::{TOPIC_PREFIX_MAX, TopicPrefix};
