//! Kafka producers and consumers that survive the loss of a cluster.
//!
//! ```no_run
//! # async fn example() -> standfast::Result<()> {
//! use standfast::{Fleet, MissingOffset, Record};
//!
//! let fleet = Fleet::connect("payments").await?; // configured by STANDFAST_* variables
//!
//! let producer = fleet.producer().property("linger.ms", "5").build().await?;
//! producer.send(Record::to("orders").key("customer-7").payload("…")).await?; // the active cluster has it
//!
//! let mut consumer = fleet
//!     .consumer("billing")
//!     .on_missing_offset(MissingOffset::Earliest)
//!     .subscribe(&["orders"])
//!     .await?;
//! while let Some(message) = consumer.next().await {
//!     let message = message?;
//!     println!("{} at {}", message.topic(), message.offset());
//!     consumer.ack(&message)?; // committed within a second
//! }
//! # Ok(()) }
//! ```
//!
//! A *fleet* is a set of Kafka clusters that stand in for one another. Its record in discovery (Consul, or a file) names
//! the active one. When the record changes, every producer and consumer moves, without a restart of the application:
//!
//! - A new client is made and asked for its cluster's id. If that is not the one in the record, the client is not used.
//! - [`FailoverProducer`]: what is unacknowledged is sent to the new cluster in the order in which it was given, ahead of
//!   new records. So is what the old one had acknowledged and the new one does not hold: mirroring is asynchronous. A send
//!   resolves only by an acknowledgement of the cluster that is active now.
//! - [`FailoverConsumer`]: mirrored logs have the same offsets, so it goes on at its own position, or at the *handoff*
//!   offset (up to there the new cluster has the old one's log) if it had read further. What comes again is left out.
//! - Each producer and consumer keeps a connected client of every other cluster ([`FleetBuilder::warm_standbys`]), so that a
//!   producer's flip finds it logged in. What is wrong with a standby's address or credentials shows before they are needed
//!   ([`FleetEvent::StandbyFailed`], [`Stats::standbys_ready`]).
//! - The old client is taken down in the background. Nothing waits for a cluster that may be gone.
//! - Discovery or Vault gone: everything goes on with what is known ([`FleetEvent::DiscoveryLost`]).
//!
//! # What is promised, and what is not
//!
//! - A producer that survives loses nothing with a cluster, within the bound of [`ProducerBuilder::replay_bytes`]; what
//!   went over it is counted ([`Stats::records_unprotected`]). A producer that dies with the cluster takes along what it kept.
//! - A record stands in the log once, or twice with the same [`RecordId`] if a cluster stored it without its acknowledgement
//!   getting through. [`FailoverConsumer`] hands it out once, other consumers see both.
//! - Between failovers consumers are as Kafka's: what was not acknowledged is read again after a crash or a rebalance.
//! - A record with neither key nor partition that was in flight at a flip may be stored in two partitions; that is not noticed.
//! - Transactions across clusters are not possible.
//!
//! # Configuration
//!
//! | Variable | Meaning |
//! |---|---|
//! | `STANDFAST_CONFIG` | TOML file with `[discovery]` and `[secrets]`: see [`FleetOptions`] |
//! | `STANDFAST_DISCOVERY_DIR` | folder of the file discovery backend |
//! | `STANDFAST_CONSUL_ADDR`, `STANDFAST_CONSUL_TOKEN_FILE` | Consul addresses, ACL token |
//! | `STANDFAST_SECRETS_FILE` | file with credentials |
//! | `STANDFAST_VAULT_ADDR`, `STANDFAST_VAULT_TOKEN_FILE` | Vault and its token |
//! | `STANDFAST_CONNECT_TIMEOUT` | how long [`Fleet::connect`] waits for the record |
//!
//! Or use [`Fleet::builder`]. Any librdkafka property can be set on a producer or consumer, except those that the
//! wrapper needs for itself; they are refused with the reason. Defaults that differ from librdkafka's:
//!
//! | Property | Value | Why |
//! |---|---|---|
//! | `enable.idempotence` (fixed) | `true` | no duplicates and no reordering within a cluster |
//! | `partitioner` | `murmur2_random` | as Java: a key has the same partition whoever writes it |
//! | `message.timeout.ms` (fixed) | `0` | librdkafka never gives a record up, the wrapper decides |
//! | `metadata.recovery.strategy` (fixed) | `rebootstrap` | a cluster that names no broker for a moment is found again, by its own bootstrap list |
//! | `enable.auto.commit`, `enable.auto.offset.store` (fixed) | `false` | only acknowledged records are committed |
//! | `auto.offset.reset` (fixed) | `error` | [`MissingOffset`] decides, never a silent jump |
//! | `socket.timeout.ms` (consumer) | `10000` | an old client of a frozen cluster is gone sooner |
//! | `session.timeout.ms` | `10000` | a dead member is noticed sooner |
//! | `socket.connection.setup.timeout.ms`, `reconnect.backoff.max.ms` | `5000`, `1000` | a dead broker costs little time |
//! | `allow.auto.create.topics` | `false` | a missing mirror topic must be seen |
//! | `socket.nagle.disable` | `true` | first request on a new cluster without delay |
//! | `enable.metrics.push` | `false` | taking an old client down must not wait for its cluster |
//!
//! A flip makes a consumer join its group on the new cluster. The first member of an empty group waits there for
//! `group.initial.rebalance.delay.ms`, a setting of the brokers, 3 s by default: set it to 0 where consumers are to read on at
//! once. No setting of a client goes around it.
#![deny(unsafe_code)]

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
mod warm;

pub use config::{
    FleetOptions, VAR_CONFIG, VAR_CONNECT_TIMEOUT, VAR_CONSUL_ADDR, VAR_CONSUL_TOKEN_FILE,
    VAR_DISCOVERY_DIR, VAR_SECRETS_FILE, VAR_VAULT_ADDR, VAR_VAULT_TOKEN_FILE,
};
pub use consumer::{
    CLOSE_TIMEOUT, ConsumerBuilder, DEFAULT_COMMIT_INTERVAL, DEFAULT_READ_AHEAD_BYTES,
    DEFAULT_READ_AHEAD_RECORDS, FailoverConsumer, MAX_UNACKNOWLEDGED, Message, MissingOffset,
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
    DeliveryFuture, FailoverProducer, Overflow, ProducerBuilder,
};
pub use record::{Delivery, Header, ID_HEADER, Record, RecordId, is_filler};
pub use rehearsal::Rehearsal;
pub use stats::Stats;

#[cfg(feature = "opentelemetry")]
pub use opentelemetry;
#[cfg(feature = "prometheus")]
pub use prometheus_client;
pub use standfast_discovery as discovery;
pub use standfast_secrets as secrets;
