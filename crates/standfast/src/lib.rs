#![doc = include_str!("../README.md")]
//!
//! # In this reference
//!
//! - [`Fleet`] and [`FleetBuilder`]: connecting, and an example that flips between two clusters without any server. [`FleetOptions`] for
//!   TOML and environment.
//! - [`FailoverProducer`] and [`ProducerBuilder`], [`Record`], [`Delivery`], [`Overflow`], [`Partitioner`].
//! - [`FailoverConsumer`] and [`ConsumerBuilder`], [`ConsumerHandle`], [`Message`], [`MissingOffset`], [`SeekTo`], [`RebalanceEvent`].
//! - [`TransactionalClient`] and [`Transaction`]: consume, transform, produce.
//! - [`FleetEvent`], [`Stats`], [`Rehearsal`], [`CredentialExpiry`]: what an operator wants to know.
//! - [`discovery`] and [`secrets`]: the fleet's record and the credentials, of use without the wrapper too.
//! - [`moving_from_rdkafka`]: before and after.
#![deny(unsafe_code)]
#![warn(rustdoc::broken_intra_doc_links)]

mod cache_line;
mod client_config;
mod client_log;
mod conductor;
mod config;
mod connect;
mod consumer;
mod credential_cache;
mod error;
mod event;
mod expiry;
mod ffi;
mod fleet;
mod metrics;
mod producer;
mod reaper;
mod record;
mod rehearsal;
mod standby;
mod stats;
mod target;
mod transaction;
mod warm;
mod way_back;

#[doc = include_str!("../MOVING.md")]
pub mod moving_from_rdkafka {}

pub use config::{
    FleetOptions, VAR_CONFIG, VAR_CONNECT_TIMEOUT, VAR_CONSUL_ADDR, VAR_CONSUL_TOKEN_FILE,
    VAR_DISCOVERY_DIR, VAR_SECRETS_FILE, VAR_VAULT_ADDR, VAR_VAULT_TOKEN_FILE,
};
pub use consumer::{
    CLOSE_TIMEOUT, COMMIT_TIMEOUT, ConsumerBuilder, ConsumerHandle, DEFAULT_COMMIT_INTERVAL,
    DEFAULT_READ_AHEAD_BYTES, DEFAULT_READ_AHEAD_RECORDS, FailoverConsumer, MAX_UNACKNOWLEDGED,
    Message, MissingOffset, RebalanceEvent, SeekTo, TopicPartition,
};
pub use error::{Error, Result};
pub use event::{ClientName, EVENT_BUFFER, FleetEvent, StartReason};
pub use expiry::CredentialExpiry;
pub use fleet::{DEFAULT_CONNECT_TIMEOUT, Fleet, FleetBuilder, MIN_LEASE};
#[cfg(feature = "prometheus")]
pub use metrics::PrometheusCollector;
pub use metrics::{Metric, MetricKind, MetricUnit};
pub use producer::{
    DEFAULT_BUFFER_BYTES, DEFAULT_BUFFER_RECORDS, DEFAULT_REPLAY_AGE, DEFAULT_REPLAY_BYTES,
    DeliveryFuture, FailoverProducer, Overflow, Partitioner, ProducerBuilder,
};
pub use record::{Delivery, Header, ID_HEADER, Record, RecordId, is_filler};
pub use rehearsal::Rehearsal;
pub use stats::Stats;
pub use transaction::{Transaction, TransactionalBuilder, TransactionalClient};

#[cfg(feature = "opentelemetry")]
pub use opentelemetry;
#[cfg(feature = "prometheus")]
pub use prometheus_client;
pub use standfast_discovery as discovery;
pub use standfast_secrets as secrets;
