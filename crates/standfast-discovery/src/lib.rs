#![doc = include_str!("../README.md")]
//!
//! # A flip, watched
//!
//! It runs: the backend is a folder.
//!
//! ```
//! use std::collections::BTreeMap;
//! use standfast_discovery::{CasOutcome, ClusterEntry, ClusterName, Discovery, DiscoveryOptions, FleetName, FleetRecord, FleetState};
//! use tokio_util::sync::CancellationToken;
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let folder = tempfile::tempdir()?;
//!     let discovery = Discovery::new(DiscoveryOptions::file(folder.path()))?;
//!     let (payments, west, east) = (FleetName::new("payments")?, ClusterName::new("west")?, ClusterName::new("east")?);
//!     let clusters = BTreeMap::from([
//!         (west.clone(), ClusterEntry::new("k1.west:9092")),
//!         (east.clone(), ClusterEntry::new("k1.east:9092")),
//!     ]);
//!     let first = FleetRecord::first(west, clusters, "a new fleet");
//!     let CasOutcome::Set(version) = discovery.compare_and_set(&payments, None, &first).await? else {
//!         panic!("somebody else was faster");
//!     };
//!
//!     let (watch, mut fleet) = discovery.watch(payments.clone());
//!     tokio::spawn(watch.run(CancellationToken::new()));
//!     let view = fleet.wait_for(|view| view.record.is_some()).await?;
//!     assert_eq!(view.record.unwrap().active_cluster().unwrap().bootstrap, "k1.west:9092");
//!
//!     let flipped = first.next(east.clone(), FleetState::Active, "west is lost");
//!     discovery.compare_and_set(&payments, Some(&version), &flipped).await?;
//!     let is_east = |record: &FleetRecord| record.active == east;
//!     let view = fleet.wait_for(|view| view.record.as_deref().is_some_and(is_east)).await?;
//!     assert_eq!(view.record.unwrap().active_cluster().unwrap().bootstrap, "k1.east:9092");
//!     Ok(())
//! }
//! ```
#![forbid(unsafe_code)]
#![warn(rustdoc::broken_intra_doc_links)]

mod announce;
mod atomic_file;
mod bootstrap;
mod cache;
mod consul;
mod error;
mod file;
mod handoff;
mod lock;
mod metrics;
mod name;
mod options;
mod record;
mod view;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

pub use announce::{ANNOUNCED_FOR, Announcement};
pub use bootstrap::{MAX_BOOTSTRAP_BROKERS, parse_bootstrap};
pub use error::Error;
pub use handoff::Handoff;
pub use jiff::Timestamp;
pub use lock::Lock;
pub use metrics::WatchStats;
pub use name::{ClusterName, Epoch, FleetName, MAX_NAME_BYTES, NameError};
pub use options::{ConsulOptions, DiscoveryOptions, FileOptions, MAX_ADDRESSES, TlsOptions};
pub use record::{
    ClusterEntry, FleetRecord, FleetState, MAX_CLUSTERS, MAX_VALUE_BYTES, RecordError,
    SecurityProtocol,
};
pub use view::{FleetView, ViewSource};
pub use watch::{FleetWatch, FleetWatchHandle};

use consul::Consul;
use file::FileStore;
use watch::Reports;

/// Last part of a lock's key.
const FLEET_LOCK: &str = "lock";

/// Reads, writes, watches and locks fleet records. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Discovery {
    backend: Backend,
}

#[derive(Debug, Clone)]
enum Backend {
    Consul(Arc<Consul>),
    File(Arc<FileStore>),
}

/// A value and the version under which it was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Versioned<T> {
    /// To be given back in [`Discovery::compare_and_set`].
    pub version: Version,
    /// What was read.
    pub value: T,
}

/// Names one state of a stored record.
#[derive(Debug, Clone, PartialEq)]
pub struct Version {
    epoch: Epoch,
    stored: StoredVersion,
}

#[derive(Debug, Clone, PartialEq)]
enum StoredVersion {
    /// The very bytes of the file: records are small, and no hash can collide then.
    Bytes(Arc<[u8]>),
    /// Consul's `ModifyIndex`, valid at that address only: several addresses may be several Consul clusters.
    Index { address: usize, modify_index: u64 },
}

impl Version {
    /// The epoch of that state.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }
}

/// How a compare-and-set ended.
#[derive(Debug, Clone, PartialEq)]
pub enum CasOutcome {
    /// The record was written.
    Set(Version),
    /// Somebody else changed it first; read again.
    Conflict,
}

impl Discovery {
    /// Checks the options and prepares the backend; connects to nothing yet.
    ///
    /// # Errors
    /// [`Error::Options`] for unusable options, [`Error::Io`] for a certificate file that cannot be read.
    pub fn new(options: DiscoveryOptions) -> Result<Self, Error> {
        let backend = match options {
            DiscoveryOptions::Consul(options) => Backend::Consul(Arc::new(Consul::new(options)?)),
            DiscoveryOptions::File(options) => Backend::File(Arc::new(FileStore::new(options))),
        };
        Ok(Self { backend })
    }

    /// The record as it is stored now (Consul: a consistent read from the first address that answers). Where the
    /// addresses are Consul clusters of their own, a watch may know a higher epoch: a writer must go above both.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Denied`], [`Error::Malformed`], [`Error::Io`].
    pub async fn read(&self, fleet: &FleetName) -> Result<Option<Versioned<FleetRecord>>, Error> {
        match &self.backend {
            Backend::Consul(consul) => consul.read(fleet).await,
            Backend::File(store) => store.read(fleet).await,
        }
    }

    /// Writes the record if the stored one is still `expected` (`None`: if there is none).
    ///
    /// # Errors
    /// [`Error::EpochDoesNotGrow`] and [`Error::Invalid`] before anything is sent; [`Error::Unavailable`] if nobody
    /// answered, in which case the write may or may not have happened: read again.
    pub async fn compare_and_set(
        &self,
        fleet: &FleetName,
        expected: Option<&Version>,
        record: &FleetRecord,
    ) -> Result<CasOutcome, Error> {
        let current = expected.map_or(Epoch::BARE, Version::epoch);
        if record.epoch <= current {
            return Err(Error::EpochDoesNotGrow {
                fleet: fleet.clone(),
                current,
                offered: record.epoch,
            });
        }
        match &self.backend {
            Backend::Consul(consul) => consul.compare_and_set(fleet, expected, record).await,
            Backend::File(store) => store.compare_and_set(fleet, expected, record).await,
        }
    }

    /// Stores the handoff of an epoch and returns its key for [`FleetRecord::handoff`]. To be called before the flip;
    /// when called again for the same epoch it replaces the handoff.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is too large, [`Error::Unavailable`], [`Error::Denied`], [`Error::Io`].
    pub async fn write_handoff(&self, handoff: &Handoff) -> Result<String, Error> {
        match &self.backend {
            Backend::Consul(consul) => consul.write_handoff(handoff).await,
            Backend::File(store) => store.write_handoff(handoff).await,
        }
    }

    /// The handoff of an epoch.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn read_handoff(
        &self,
        fleet: &FleetName,
        epoch: Epoch,
    ) -> Result<Option<Handoff>, Error> {
        match &self.backend {
            Backend::Consul(consul) => consul.read_handoff(fleet, epoch).await,
            Backend::File(store) => store.read_handoff(fleet, epoch).await,
        }
    }

    /// A watch on a fleet's record. Nothing happens before [`FleetWatch::run`]; the handle's view then goes from
    /// [`ViewSource::Never`] (or [`ViewSource::Cached`]) to [`ViewSource::Live`].
    pub fn watch(&self, fleet: FleetName) -> (FleetWatch, FleetWatchHandle) {
        let cache = match &self.backend {
            Backend::Consul(consul) => consul.cache(),
            // The record is a local file already.
            Backend::File(_) => None,
        };
        FleetWatch::new(fleet, self.backend.clone(), cache)
    }

    /// Tells the other agents of a fleet something, for [`ANNOUNCED_FOR`], and answers what all of them tell, by their names.
    ///
    /// # Errors
    /// As [`compare_and_set`](Self::compare_and_set); [`Error::Unavailable`] also if others were faster again and again.
    pub async fn announce(
        &self,
        fleet: &FleetName,
        agent: &str,
        content: &serde_json::Value,
    ) -> Result<BTreeMap<String, Announcement>, Error> {
        match &self.backend {
            Backend::Consul(consul) => consul.announce(fleet, agent, content).await,
            Backend::File(store) => store.announce(fleet, agent, content).await,
        }
    }

    /// Takes the fleet's lock, or fails at once if somebody else holds it. `holder` is shown to others.
    ///
    /// On Consul `ttl` is the session's (by its default settings 10 s to 24 h); it is renewed at a third of it. The file backend ignores
    /// it: its lock goes away with the process.
    ///
    /// # Errors
    /// [`Error::LockHeld`] naming the holder; [`Error::Options`] for a TTL that Consul does not take; otherwise as
    /// [`read`](Self::read).
    pub async fn lock(
        &self,
        fleet: &FleetName,
        holder: &str,
        ttl: Duration,
    ) -> Result<Lock, Error> {
        self.lock_named(fleet, FLEET_LOCK, holder, ttl).await
    }

    /// As [`lock`](Self::lock), for the duties on one link that only one of the agents that share it should have: independent of the fleet's lock
    /// and of other links'.
    ///
    /// # Errors
    /// As [`lock`](Self::lock).
    pub async fn lock_link(
        &self,
        fleet: &FleetName,
        link: &str,
        holder: &str,
        ttl: Duration,
    ) -> Result<Lock, Error> {
        let name = format!("links/{link}/{FLEET_LOCK}");
        self.lock_named(fleet, &name, holder, ttl).await
    }

    async fn lock_named(
        &self,
        fleet: &FleetName,
        name: &str,
        holder: &str,
        ttl: Duration,
    ) -> Result<Lock, Error> {
        match &self.backend {
            Backend::Consul(consul) => consul.lock(fleet, name, holder, ttl).await,
            Backend::File(store) => store.lock(fleet, name, holder).await,
        }
    }
}

impl Backend {
    /// The names of the endpoints that a watch follows, for its errors.
    fn endpoints(&self) -> Vec<String> {
        match self {
            Self::Consul(consul) => consul.addresses(),
            Self::File(store) => vec![store.folder().display().to_string()],
        }
    }

    fn spawn_endpoints(&self, fleet: &FleetName, reports: &Reports, tasks: &mut JoinSet<()>) {
        match self {
            Self::Consul(consul) => consul.spawn_endpoints(fleet, reports, tasks),
            Self::File(store) => {
                tasks.spawn(file::watch::follow(
                    Arc::clone(store),
                    fleet.clone(),
                    reports.clone(),
                ));
            }
        }
    }
}
