//! Moves a producer from cluster to cluster: one task per producer.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use standfast_discovery::FleetState;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::ProducerShared;
use super::client::{ProducerClient, ReportContext};
use super::log::Gate;
use super::partitioner::Choice;
use crate::client_config::{self, Role};
use crate::client_log::ClientLog;
use crate::connect::Connect;
use crate::error::Error;
use crate::event::FleetEvent;
use crate::stats::add;
use crate::target::Target;
use crate::warm::{Kind, Warm, WarmSet};

/// Records handed on per hold of the log's lock while catching up after a flip.
const CATCH_UP_BURST: usize = 256;

/// Pause while the new client asks for a topic's partitions, and how many of them: afterwards what waits is handed on when
/// the answer comes.
const PAUSE: Duration = Duration::from_millis(2);
const MAX_PAUSES: u32 = 500;

/// How long a client that is replaced on the same cluster may go on finishing what it has.
const DRAIN: Duration = Duration::from_secs(5);

/// Shortest time between two rebuilds after fatal errors.
const REBUILD_PAUSE: Duration = Duration::from_secs(1);

/// How often the kept records are looked after.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

pub(super) struct Driver {
    shared: Arc<ProducerShared>,
    /// What the present client was made for.
    current: Option<Arc<Target>>,
    /// Kafka's id of the present or last cluster.
    cluster_id: Option<String>,
    attempt: Option<Attempt>,
    rebuilt_at: Option<Instant>,
    standbys: WarmSet<ProducerClient>,
}

/// A client in the making.
struct Attempt {
    target: Arc<Target>,
    generation: u64,
    // Cancels the attempt when dropped.
    _cancel: tokio_util::sync::DropGuard,
    /// The client, while the handoff is still being read.
    made: Option<(ProducerClient, String)>,
    outcome: oneshot::Receiver<Option<(ProducerClient, String)>>,
}

impl Driver {
    pub(super) fn new(shared: Arc<ProducerShared>) -> Self {
        Self {
            shared,
            current: None,
            cluster_id: None,
            attempt: None,
            rebuilt_at: None,
            standbys: WarmSet::default(),
        }
    }

    pub(super) async fn run(mut self, shutdown: CancellationToken) {
        let mut targets = self.shared.fleet.targets.clone();
        let mut watch_ended = false;
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        loop {
            let target = targets.borrow_and_update().clone();
            if let Some(target) = target {
                self.aim_at(target);
                self.install_when_ready().await;
            }
            tokio::select! {
                () = shutdown.cancelled() => break,
                changed = targets.changed(), if !watch_ended => watch_ended = changed.is_err(),
                outcome = outcome(&mut self.attempt) => self.attempt_ended(outcome).await,
                reason = self.shared.broken() => self.rebuild(&reason).await,
                _ = housekeeping.tick() => self.keep_house(),
            }
        }
        self.shared.close();
    }

    /// Compares what there is with what should be.
    fn aim_at(&mut self, target: Arc<Target>) {
        if let Some(current) = self.current.clone() {
            if current.same_client(&target) {
                self.attempt = None;
                self.refresh(&current, target);
                return;
            }
            // The old cluster is not the active one any more: what it still acknowledges does not count.
            if current.cluster != target.cluster {
                self.cut_off();
            }
        }
        let is_in_making = self.attempt.as_ref().is_some_and(|a| {
            a.target.same_client(&target) && target.new_login(&a.target).is_none()
        });
        if is_in_making {
            if let Some(attempt) = &mut self.attempt {
                attempt.target = target;
            }
        } else {
            let warm = self.standbys.take(&target);
            self.attempt = Some(self.begin(target, warm));
        }
    }

    /// The client stays; epoch, state and login may be new.
    fn refresh(&mut self, current: &Target, target: Arc<Target>) {
        self.shared.epoch.store(target.epoch.0, Relaxed);
        if let Some((username, password, version)) = target.new_login(current) {
            self.apply_login(&target, username, password, version);
        }
        self.shared
            .lock()
            .replay
            .set_standbys(target.standby_names(), target.since);
        self.shared.set_fenced(target.state == FleetState::Fenced);
        self.current = Some(target);
        self.spawn_catch_up(None);
    }

    fn apply_login(&self, target: &Target, username: &str, password: &str, version: u64) {
        let client = self.shared.lock().gate.client().cloned();
        let Some(client) = client else { return };
        let name = &self.shared.name;
        match client.set_login(username, password) {
            Ok(()) => {
                tracing::info!(client = name.as_str(), cluster = %target.cluster, version, "new credentials are in use");
                self.shared.fleet.emit(FleetEvent::CredentialsApplied {
                    client: name.clone(),
                    cluster: target.cluster.clone(),
                    version,
                });
            }
            Err(error) => {
                tracing::error!(client = name.as_str(), cluster = %target.cluster, error, "new credentials were refused");
            }
        }
    }

    fn keep_house(&mut self) {
        self.shared.keep_house();
        let (Some(current), true) = (&self.current, self.shared.fleet.warm_standbys) else {
            return;
        };
        let shared = &self.shared;
        self.standbys.follow(
            current,
            |target, cancel| Connect::new(&shared.fleet, &shared.name, target, cancel, true),
            || standby_kind(shared),
        );
    }

    fn begin(&self, target: Arc<Target>, warm: Option<Warm<ProducerClient>>) -> Attempt {
        let cancel = CancellationToken::new();
        let generation = self.shared.next_generation();
        let (sender, outcome) = oneshot::channel();
        let (fleet, name) = (&self.shared.fleet, &self.shared.name);
        let connect = Connect::new(fleet, name, Arc::clone(&target), cancel.clone(), false);
        let shared = Arc::clone(&self.shared);
        let spawned = thread::Builder::new()
            .name("standfast-connect".to_owned())
            .spawn(move || {
                let warm = warm.and_then(Warm::client);
                let counters = &shared.fleet.counters;
                add(&counters.warm_starts, usize::from(warm.is_some()));
                let made = warm.or_else(|| {
                    connect.run(
                        || make(&shared, &connect.target),
                        ProducerClient::cluster_id,
                        |client| Arc::new(client).retire(&shared),
                    )
                });
                if let Some((client, _)) = &made {
                    client.adopt(generation);
                }
                if let Err(Some((client, _))) = sender.send(made) {
                    Arc::new(client).retire(&shared);
                }
            });
        if let Err(error) = spawned {
            // The sender is gone with the closure: the attempt ends as failed and is begun again after a pause.
            tracing::error!(client = self.shared.name.as_str(), %error, "no thread for a new Kafka client");
        }
        Attempt {
            target,
            generation,
            _cancel: cancel.drop_guard(),
            made: None,
            outcome,
        }
    }

    async fn attempt_ended(&mut self, outcome: Option<(ProducerClient, String)>) {
        let Some(attempt) = &mut self.attempt else {
            return;
        };
        let Some(made) = outcome else {
            self.attempt = None;
            tokio::time::sleep(REBUILD_PAUSE).await;
            return;
        };
        // The loop goes on with the newest target, and installs it.
        attempt.made = Some(made);
    }

    /// Installs the new client, once it is known what it must be sent again.
    async fn install_when_ready(&mut self) {
        let is_undecided = |attempt: &Attempt| {
            attempt.target.handoffs.pending && !self.shared.lock().replay.is_empty()
        };
        let Some(mut attempt) = self
            .attempt
            .take_if(|attempt| attempt.made.is_some() && !is_undecided(attempt))
        else {
            return;
        };
        let Some((client, cluster_id)) = attempt.made.take() else {
            return;
        };
        // Other addresses of the same cluster: let the old client finish, so that nothing is sent twice.
        if self.current.is_some() && self.cluster_id.as_ref() == Some(&cluster_id) {
            let mut targets = self.shared.fleet.targets.clone();
            targets.mark_unchanged();
            tokio::select! {
                () = self.shared.drain(DRAIN) => {}
                // A flip does not wait for it.
                _ = targets.changed() => {}
            }
        }
        self.cut_off();
        self.install(client, &attempt, cluster_id);
    }

    fn install(&mut self, client: ProducerClient, attempt: &Attempt, cluster_id: String) {
        let target = Arc::clone(&attempt.target);
        let client = Arc::new(client);
        self.shared.epoch.store(target.epoch.0, Relaxed);
        let same_cluster = self.cluster_id.as_ref() == Some(&cluster_id);
        let replayed = {
            let mut log = self.shared.lock();
            log.install(attempt.generation);
            let bound =
                |topic: &str, partition, from| target.handoffs.bound(topic, partition, from);
            let replayed = log.replay.move_to(&target.cluster, same_cluster, bound);
            log.replay
                .set_standbys(target.standby_names(), target.since);
            log.gate = match target.state {
                FleetState::Active => Gate::Open(client),
                FleetState::Fenced => Gate::Fenced(client),
            };
            replayed
        };
        add(&self.shared.fleet.counters.waits_begun_again, replayed);
        self.shared.keep_house();
        let after = target.since.elapsed();
        tracing::info!(
            client = self.shared.name.as_str(), cluster = %target.cluster, cluster_id, epoch = %target.epoch, ?after,
            "producer works on the active cluster"
        );
        self.shared.fleet.emit(FleetEvent::ClientReady {
            client: self.shared.name.clone(),
            epoch: target.epoch,
            cluster: target.cluster.clone(),
            cluster_id: cluster_id.clone(),
            after,
        });
        self.cluster_id = Some(cluster_id);
        self.spawn_catch_up(Some(&target));
        self.current = Some(target);
    }

    /// Hands on what waits, in small steps so that nobody waits long for the lock. New records go to the end of the log
    /// meanwhile. `resent_for`: report how many an earlier client had had already.
    fn spawn_catch_up(&self, resent_for: Option<&Target>) {
        let shared = Arc::clone(&self.shared);
        let epoch = resent_for.map(|target| target.epoch);
        tokio::spawn(async move {
            let (mut resent, mut acknowledged) = (0, 0);
            let mut pauses = 0;
            loop {
                let handed = shared.hand_on(CATCH_UP_BURST);
                resent += handed.resent;
                acknowledged += handed.replayed;
                if handed.is_asking && pauses < MAX_PAUSES {
                    pauses += 1;
                    tokio::time::sleep(PAUSE).await;
                } else if handed.more {
                    tokio::task::yield_now().await;
                } else {
                    break;
                }
            }
            if let Some(epoch) = epoch.filter(|_| resent > 0) {
                tracing::info!(client = shared.name.as_str(), %epoch, records = resent, acknowledged, "records sent again");
                shared.fleet.emit(FleetEvent::Resent {
                    client: shared.name.clone(),
                    epoch,
                    records: resent,
                    acknowledged,
                });
            }
        });
    }

    async fn rebuild(&mut self, reason: &str) {
        let Some(target) = self.current.clone() else {
            return;
        };
        tracing::error!(
            client = self.shared.name.as_str(), cluster = %target.cluster, reason,
            "the producer's Kafka client had a fatal error and is built anew; unacknowledged records are sent again"
        );
        self.shared
            .fleet
            .counters
            .clients_rebuilt
            .fetch_add(1, Relaxed);
        self.shared.fleet.emit(FleetEvent::ClientRebuilt {
            client: self.shared.name.clone(),
            reason: reason.to_owned(),
        });
        self.cut_off();
        if let Some(at) = self.rebuilt_at.replace(Instant::now()) {
            tokio::time::sleep(REBUILD_PAUSE.saturating_sub(at.elapsed())).await;
        }
    }

    fn cut_off(&mut self) {
        self.current = None;
        let old = self.shared.lock().cut_off();
        if let Some(client) = old {
            client.retire(&self.shared);
        }
    }
}

fn standby_kind(shared: &Arc<ProducerShared>) -> Kind<ProducerClient> {
    let (maker, retirer, user) = (Arc::clone(shared), Arc::clone(shared), Arc::clone(shared));
    Kind {
        make: Box::new(move |target| make(&maker, target)),
        ask: Box::new(ProducerClient::cluster_id),
        discard: Box::new(move |client| Arc::new(client).retire(&retirer)),
        topics: Box::new(move || user.lock().topics.iter().map(ToString::to_string).collect()),
    }
}

fn make(shared: &Arc<ProducerShared>, target: &Target) -> Result<ProducerClient, Error> {
    let config = client_config::for_target(&Role::Producer, &shared.properties, target)?;
    let context = ReportContext::new(
        Arc::downgrade(shared),
        Choice::new(shared.rule.clone()),
        shared.clusters.number(&target.cluster),
        ClientLog::new(shared.name.clone(), target.cluster.clone()),
    );
    ProducerClient::new(&config, context).map_err(|error| Error::Configuration {
        reason: error.to_string(),
    })
}

/// Waits for the attempt; for ever if there is none.
async fn outcome(attempt: &mut Option<Attempt>) -> Option<(ProducerClient, String)> {
    match attempt {
        Some(attempt) if attempt.made.is_none() => (&mut attempt.outcome).await.ok().flatten(),
        _ => std::future::pending().await,
    }
}
