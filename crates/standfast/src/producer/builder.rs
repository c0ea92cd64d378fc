//! Options of a producer.

use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::driver::Driver;
use super::log::SendLog;
use super::partitioner::{Partitioner, Rule};
use super::replay::{DEFAULT_REPLAY_AGE, DEFAULT_REPLAY_BYTES, Limits, Overflow};
use super::room::Room;
use super::{FailoverProducer, ProducerShared};
use crate::cache_line::OwnLine;
use crate::client_config::{self, Properties, Role};
use crate::error::Result;
use crate::fleet::FleetShared;

/// Bytes of unacknowledged records that a producer holds, by default, before `send` waits.
pub const DEFAULT_BUFFER_BYTES: usize = 64 * 1024 * 1024;

/// Unacknowledged records that a producer holds, by default, before `send` waits.
pub const DEFAULT_BUFFER_RECORDS: usize = 100_000;

/// Options of a [`FailoverProducer`].
#[must_use]
pub struct ProducerBuilder {
    fleet: Arc<FleetShared>,
    properties: Properties,
    buffer_bytes: usize,
    buffer_records: usize,
    replay: Limits,
    partitioner: Option<Arc<dyn Partitioner>>,
}

impl std::fmt::Debug for ProducerBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProducerBuilder")
            .field("fleet", &self.fleet.name)
            .field("properties", &self.properties)
            .field("has_partitioner", &self.partitioner.is_some())
            .finish_non_exhaustive()
    }
}

impl ProducerBuilder {
    pub(crate) fn new(fleet: Arc<FleetShared>) -> Self {
        Self {
            fleet,
            properties: Properties::new(),
            buffer_bytes: DEFAULT_BUFFER_BYTES,
            buffer_records: DEFAULT_BUFFER_RECORDS,
            replay: Limits {
                bytes: DEFAULT_REPLAY_BYTES,
                age: DEFAULT_REPLAY_AGE,
                overflow: Overflow::default(),
            },
            partitioner: None,
        }
    }

    /// Sets a librdkafka property, for example `linger.ms` or `compression.type`. Those that the wrapper needs for
    /// itself are refused by [`build`](Self::build), with the reason.
    pub fn property(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.properties.insert(name.into(), value.into());
        self
    }

    /// Chooses the partition of records that name none, with or without a key; default is the property `partitioner`
    /// (`murmur2_random`). What it has chosen for a record stays: sent again after a failover, the record goes to the same
    /// partition, if the new cluster has one of that number.
    pub fn partitioner(mut self, partitioner: impl Partitioner) -> Self {
        self.partitioner = Some(Arc::new(partitioner));
        self
    }

    /// Bytes of unacknowledged records before `send` waits; default [`DEFAULT_BUFFER_BYTES`].
    pub fn buffer_bytes(mut self, bytes: usize) -> Self {
        self.buffer_bytes = bytes;
        self
    }

    /// Unacknowledged records before `send` waits; default [`DEFAULT_BUFFER_RECORDS`].
    pub fn buffer_records(mut self, records: usize) -> Self {
        self.buffer_records = records;
        self
    }

    /// Bytes of acknowledged records that are kept until a standby is known to hold them, so that they can be sent again if
    /// the active cluster is lost before; default [`DEFAULT_REPLAY_BYTES`]. 0 keeps none: what was acknowledged and not
    /// mirrored is then lost with the cluster. At a full buffer, [`overflow`](Self::overflow) decides.
    ///
    /// Nothing is kept while the fleet's record names no other cluster.
    pub fn replay_bytes(mut self, bytes: usize) -> Self {
        self.replay.bytes = bytes;
        self
    }

    /// How long an acknowledged record is kept at most, default [`DEFAULT_REPLAY_AGE`]; with [`Overflow::Unprotected`] only.
    pub fn replay_age(mut self, age: Duration) -> Self {
        self.replay.age = age;
        self
    }

    /// What happens when the replay buffer is full; default [`Overflow::Unprotected`].
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.replay.overflow = overflow;
        self
    }

    /// Starts the producer. It does not wait for the cluster: records that are sent meanwhile wait in the buffer.
    ///
    /// # Errors
    /// [`Error::RefusedProperty`](crate::Error::RefusedProperty), [`Error::Configuration`](crate::Error::Configuration).
    // Async to leave room for work that must be done before the first record.
    #[allow(clippy::unused_async)]
    pub async fn build(self) -> Result<FailoverProducer> {
        client_config::check(&Role::Producer, &self.properties)?;
        let rule = Rule::of(self.partitioner, &self.properties)?;
        let records = self.buffer_records.clamp(1, Semaphore::MAX_PERMITS);
        // `acquire_many` counts in u32.
        let bytes = self
            .buffer_bytes
            .clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        let replay_bytes = match self.replay.bytes {
            0 => 0,
            bytes => bytes.clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize)),
        };
        let must_protect = replay_bytes > 0 && self.replay.overflow != Overflow::Unprotected;
        let shared = Arc::new(ProducerShared {
            name: self.fleet.client_name("producer"),
            fleet: self.fleet,
            instance: Uuid::new_v4(),
            properties: self.properties,
            rule,
            log: OwnLine(Mutex::new(SendLog::new(Limits {
                bytes: replay_bytes,
                ..self.replay
            }))),
            replay: must_protect.then(|| Arc::new(Semaphore::new(replay_bytes))),
            replay_limit: replay_bytes,
            overflow: self.replay.overflow,
            kept: Mutex::new((0, 0)),
            room: Room::new(records, bytes),
            clusters: Arc::default(),
            epoch: AtomicU64::new(0),
            generations: AtomicU64::new(0),
            resolved: Notify::new(),
            flushers: AtomicUsize::new(0),
            broken: watch::Sender::new((0, String::new())),
        });
        if replay_bytes > 0 {
            shared.fleet.watch_standbys(&shared);
        }
        let shutdown = CancellationToken::new();
        tokio::spawn(Driver::new(Arc::clone(&shared)).run(shutdown.clone()));
        Ok(FailoverProducer {
            shared,
            _shutdown: Arc::new(shutdown.drop_guard()),
        })
    }
}
