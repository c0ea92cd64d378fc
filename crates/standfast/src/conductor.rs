//! Turns what discovery and secrets know into the one target that all clients of a fleet move to.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use standfast_discovery::{
    ClusterEntry, ClusterName, Discovery, Epoch, FleetRecord, FleetState, FleetWatchHandle,
    Handoff, SecurityProtocol, ViewSource,
};
use standfast_secrets::{Credentials, SecretPath, SecretsHandle};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::credential_cache::CredentialCache;
use crate::event::FleetEvent;
use crate::expiry::ExpiryEvents;
use crate::fleet::FleetShared;
use crate::target::{Handoffs, Standby, Target};

/// Handoffs that are kept and, after a gap in the epochs, read: a client that missed more flips asks the log.
const MAX_HANDOFFS: u64 = 16;

/// One read of a handoff.
const HANDOFF_READ_TIMEOUT: Duration = Duration::from_secs(2);

/// Reads of a handoff before consumers go on without it.
const HANDOFF_ATTEMPTS: u32 = 5;

/// Pause between two reads of a handoff.
const HANDOFF_PAUSE: Duration = Duration::from_millis(300);

/// How often the lease is looked at.
const LEASE_CHECK: Duration = Duration::from_millis(200);

/// What the user has asked for against the loss of discovery and Vault.
#[derive(Debug)]
pub(crate) struct Precautions {
    pub(crate) lease: Option<Duration>,
    pub(crate) cache: Option<CredentialCache>,
}

/// The task that owns the target.
#[derive(Debug)]
pub(crate) struct Conductor {
    // Weak: the fleet ends with its last user, not with its own task.
    fleet: Weak<FleetShared>,
    discovery: Discovery,
    view: FleetWatchHandle,
    secrets: SecretsHandle,
    secrets_status: SecretsHandle,
    expiry: ExpiryEvents,
    publish: watch::Sender<Option<Arc<Target>>>,
    handoffs: Handoffs,
    reads: JoinSet<Vec<Arc<Handoff>>>,
    seen_epoch: Option<Epoch>,
    is_lost: bool,
    missing_told: Option<String>,
    /// Silence of discovery after which producers hold.
    lease: Option<Duration>,
    is_holding: bool,
    cache: Option<CredentialCache>,
    view_of_lease: FleetWatchHandle,
}

impl Conductor {
    pub(crate) fn new(
        fleet: &Arc<FleetShared>,
        discovery: Discovery,
        view: FleetWatchHandle,
        secrets: SecretsHandle,
        publish: watch::Sender<Option<Arc<Target>>>,
        Precautions { lease, cache }: Precautions,
    ) -> Self {
        Self {
            fleet: Arc::downgrade(fleet),
            discovery,
            view_of_lease: view.clone(),
            view,
            secrets_status: secrets.clone(),
            secrets,
            expiry: ExpiryEvents::default(),
            publish,
            handoffs: Handoffs::default(),
            reads: JoinSet::new(),
            seen_epoch: None,
            is_lost: false,
            missing_told: None,
            lease,
            cache,
            is_holding: false,
        }
    }

    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        while self.adopt() {
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = self.view.changed() => if changed.is_err() { return },
                changed = self.secrets.changed() => if changed.is_err() { return },
                changed = self.secrets_status.status_changed() => if changed.is_err() { return },
                () = cache_read(&mut self.cache) => {}
                () = lease_turns(self.lease, &self.view_of_lease, self.is_holding) => {}
                Some(read) = self.reads.join_next() => self.handoffs_read(read.unwrap_or_default()),
            }
        }
    }

    /// Brings the target up to date; false if the fleet is no longer used.
    fn adopt(&mut self) -> bool {
        let Some(fleet) = self.fleet.upgrade() else {
            return false;
        };
        let view = self.view.borrow();
        self.report_source(&fleet, view.source, view.last_error.as_deref());
        let Some(record) = view.record else {
            return true;
        };
        let lease_lost = self.check_lease(&fleet, view.confirmed_at);
        if self.seen_epoch != Some(record.epoch) {
            self.begin_epoch(&record);
        }
        self.expiry.look(&fleet, &record, &self.secrets.status());
        if let Some(entry) = record.active_cluster()
            && let Some(credentials) = self.credentials(&fleet, &record, entry)
        {
            self.publish_target(&fleet, &record, entry, credentials);
            self.keep_credentials(&record);
        }
        // Only now: who hears of it finds producers told.
        if let Some(event) = lease_lost {
            fleet.emit(event);
        }
        true
    }

    /// The event, if the lease is lost now.
    fn check_lease(
        &mut self,
        fleet: &FleetShared,
        confirmed_at: Option<Instant>,
    ) -> Option<FleetEvent> {
        let lease = self.lease?;
        let is_lost = is_lost(lease, confirmed_at);
        let mut event = None;
        if is_lost && !self.is_holding {
            let silent_for = confirmed_at.map(|at| at.elapsed());
            fleet.counters.leases_lost.fetch_add(1, Relaxed);
            tracing::warn!(
                fleet = %fleet.name, ?lease, ?silent_for,
                "discovery was silent for longer than the lease: producers hold their records until it answers"
            );
            event = Some(FleetEvent::LeaseLost { silent_for });
        }
        self.is_holding = is_lost;
        event
    }

    fn begin_epoch(&mut self, record: &FleetRecord) {
        let paths: Vec<SecretPath> = secret_paths(record).collect();
        if let Some(cache) = &self.cache {
            cache.set_paths(paths.clone());
        }
        self.secrets.set_paths(paths);
        if let Some(seen) = self.seen_epoch.replace(record.epoch) {
            self.read_handoffs(seen, record);
        }
    }

    /// Reads the handoffs of all epochs after `seen`, in the background: a flip must not wait for it.
    fn read_handoffs(&mut self, seen: Epoch, record: &FleetRecord) {
        let first = (seen.0 + 1).max(record.epoch.0.saturating_sub(MAX_HANDOFFS - 1));
        // A fence and its lifting keep the key of the last flip's handoff.
        let named = record.handoff.as_deref().and_then(epoch_of_key);
        let named_is_new = record.handoff.is_some() && named.is_none_or(|named| named.0 >= first);
        if record.epoch.0 == 0 || (first == record.epoch.0 && !named_is_new) {
            return;
        }
        let (discovery, fleet) = (self.discovery.clone(), record_fleet(&self.fleet));
        let Some(fleet) = fleet else { return };
        let last = record.epoch;
        let named = named_is_new.then_some(named.unwrap_or(last));
        self.handoffs.pending = true;
        self.reads.spawn(async move {
            let mut found = Vec::new();
            for epoch in (first..=last.0).map(Epoch) {
                // Only the one that is named is known to exist; epochs between may have been a fence or an edit.
                let attempts = if Some(epoch) == named { HANDOFF_ATTEMPTS } else { 1 };
                for attempt in 1..=attempts {
                    let read = tokio::time::timeout(HANDOFF_READ_TIMEOUT, discovery.read_handoff(&fleet, epoch)).await;
                    match read {
                        Ok(Ok(Some(handoff))) => {
                            found.push(Arc::new(handoff));
                            break;
                        }
                        Ok(Ok(None)) => {}
                        Ok(Err(error)) => tracing::warn!(%fleet, %epoch, attempt, %error, "handoff cannot be read"),
                        Err(_) => tracing::warn!(%fleet, %epoch, attempt, "reading the handoff timed out"),
                    }
                    if attempt < attempts {
                        tokio::time::sleep(HANDOFF_PAUSE).await;
                    }
                }
            }
            found
        });
    }

    fn handoffs_read(&mut self, found: Vec<Arc<Handoff>>) {
        let mut known = Vec::clone(&self.handoffs.known);
        for handoff in found {
            if !known
                .iter()
                .any(|k: &Arc<Handoff>| k.epoch == handoff.epoch)
            {
                known.push(handoff);
            }
        }
        known.sort_by_key(|handoff| handoff.epoch);
        let surplus = known.len().saturating_sub(MAX_HANDOFFS as usize);
        known.drain(..surplus);
        self.handoffs = Handoffs {
            pending: !self.reads.is_empty(),
            known: Arc::new(known),
        };
    }

    /// By Vault, or the file; else by the cache.
    fn known(&self, path: &SecretPath) -> Option<Arc<Credentials>> {
        let cached = || self.cache.as_ref()?.get(path);
        self.secrets.get(path).or_else(cached)
    }

    fn keep_credentials(&mut self, record: &FleetRecord) {
        let Some(cache) = &mut self.cache else { return };
        let known =
            secret_paths(record).filter_map(|path| Some((path.clone(), self.secrets.get(&path)?)));
        cache.store(known.collect());
    }

    /// `Some(None)`: none needed. `None`: needed but not known yet.
    #[allow(clippy::option_option)]
    fn credentials(
        &mut self,
        fleet: &FleetShared,
        record: &FleetRecord,
        entry: &ClusterEntry,
    ) -> Option<Option<Arc<Credentials>>> {
        let Some(secret) = &entry.secret else {
            return Some(None);
        };
        let known = SecretPath::new(secret.as_str())
            .ok()
            .and_then(|path| self.known(&path));
        if known.is_some() || entry.security_protocol == SecurityProtocol::Plaintext {
            self.missing_told = None;
            return Some(known);
        }
        if self.missing_told.as_ref() != Some(secret) {
            self.missing_told = Some(secret.clone());
            tracing::warn!(
                fleet = %fleet.name, cluster = %record.active, secret,
                "the active cluster's credentials are not known yet, clients wait for them"
            );
            fleet.emit(FleetEvent::CredentialsMissing {
                cluster: record.active.clone(),
                secret: secret.clone(),
            });
        }
        None
    }

    fn publish_target(
        &self,
        fleet: &FleetShared,
        record: &FleetRecord,
        entry: &ClusterEntry,
        credentials: Option<Arc<Credentials>>,
    ) {
        let old = self.publish.borrow().clone();
        let state = match self.is_holding {
            true => FleetState::Fenced,
            false => record.state,
        };
        let is_flip = old.as_ref().is_none_or(|old| {
            old.cluster != record.active || old.entry.bootstrap != entry.bootstrap
        });
        let since = match &old {
            Some(old) if !is_flip => old.since,
            _ => Instant::now(),
        };
        self.publish.send_replace(Some(Arc::new(Target {
            epoch: record.epoch,
            state,
            cluster: record.active.clone(),
            entry: entry.clone(),
            credentials,
            handoffs: self.handoffs.clone(),
            since,
            standbys: Arc::new(self.standbys(record, since)),
        })));
        if is_flip {
            let from = old.as_ref().map(|old| old.cluster.clone());
            if from.is_some() {
                fleet.counters.flips.fetch_add(1, Relaxed);
            }
            tracing::info!(
                fleet = %fleet.name, epoch = %record.epoch, to = %record.active, reason = record.reason,
                "discovery names the active cluster"
            );
            fleet.emit(FleetEvent::FlipBegun {
                epoch: record.epoch,
                from,
                to: record.active.clone(),
            });
        }
        if old.is_none_or(|old| old.state != state) {
            fleet.emit(FleetEvent::StateChanged {
                epoch: record.epoch,
                state,
            });
        }
    }

    /// The other clusters, each with the credentials that are known.
    fn standbys(&self, record: &FleetRecord, since: Instant) -> Vec<Standby> {
        let others = record
            .clusters
            .iter()
            .filter(|(name, _)| **name != record.active);
        let standby = |(name, entry): (&ClusterName, &ClusterEntry)| {
            let secret = entry.secret.as_deref();
            let path = secret.and_then(|secret| SecretPath::new(secret).ok());
            Standby(Arc::new(Target {
                epoch: record.epoch,
                state: record.state,
                cluster: name.clone(),
                entry: entry.clone(),
                credentials: path.and_then(|path| self.known(&path)),
                handoffs: Handoffs::default(),
                since,
                standbys: Arc::default(),
            }))
        };
        others.map(standby).collect()
    }

    fn report_source(&mut self, fleet: &FleetShared, source: ViewSource, error: Option<&str>) {
        let is_lost = matches!(source, ViewSource::Stale { .. });
        if is_lost == self.is_lost {
            return;
        }
        self.is_lost = is_lost;
        if is_lost {
            let reason = error.unwrap_or("no backend answers").to_owned();
            tracing::warn!(fleet = %fleet.name, reason, "discovery does not answer, clients go on with what is known");
            fleet.emit(FleetEvent::DiscoveryLost { reason });
        } else {
            tracing::info!(fleet = %fleet.name, "discovery answers again");
            fleet.emit(FleetEvent::DiscoveryBack);
        }
    }
}

/// The secrets of all clusters.
fn secret_paths(record: &FleetRecord) -> impl Iterator<Item = SecretPath> {
    let entries = record.clusters.values();
    entries.filter_map(|entry| SecretPath::new(entry.secret.as_ref()?.as_str()).ok())
}

async fn cache_read(cache: &mut Option<CredentialCache>) {
    match cache {
        Some(cache) => cache.changed().await,
        None => std::future::pending().await,
    }
}

fn is_lost(lease: Duration, confirmed_at: Option<Instant>) -> bool {
    confirmed_at.is_none_or(|at| at.elapsed() > lease)
}

/// Comes when the lease is lost or is back; never without one. Discovery confirms an unchanged record without a signal.
async fn lease_turns(lease: Option<Duration>, view: &FleetWatchHandle, is_holding: bool) {
    let Some(lease) = lease else {
        return std::future::pending().await;
    };
    loop {
        tokio::time::sleep(LEASE_CHECK).await;
        let view = view.borrow();
        if view.record.is_some() && is_lost(lease, view.confirmed_at) != is_holding {
            return;
        }
    }
}

/// The epoch at the end of a handoff's key.
fn epoch_of_key(key: &str) -> Option<Epoch> {
    key.rsplit('/').next()?.parse().ok().map(Epoch)
}

fn record_fleet(fleet: &Weak<FleetShared>) -> Option<standfast_discovery::FleetName> {
    fleet.upgrade().map(|fleet| fleet.name.clone())
}
