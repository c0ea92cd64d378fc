//! Moves a consumer from cluster to cluster: one task per consumer.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::ConsumerShared;
use super::client::{self, ConsumerClient};
use super::worker::{self, Ended, Ready, Worker};
use crate::connect::Connect;
use crate::event::FleetEvent;
use crate::target::Target;
use crate::warm::WarmSet;

/// Pause before a client is built anew after a fatal error.
const REBUILD_PAUSE: Duration = Duration::from_secs(1);

/// How often the clients of the standbys are looked after.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

pub(super) struct Driver {
    shared: Arc<ConsumerShared>,
    /// Reads for the application.
    current: Option<Generation>,
    /// Is getting ready to.
    next: Option<Generation>,
    generations: u64,
    standbys: WarmSet<ConsumerClient>,
}

struct Generation {
    number: u64,
    target: Arc<Target>,
    // Stops the worker when dropped.
    _stop: DropGuard,
    ready: oneshot::Receiver<Ready>,
    ended: oneshot::Receiver<Ended>,
}

impl Driver {
    pub(super) fn new(shared: Arc<ConsumerShared>) -> Self {
        Self {
            shared,
            current: None,
            next: None,
            generations: 0,
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
            }
            tokio::select! {
                () = shutdown.cancelled() => break,
                changed = targets.changed(), if !watch_ended => watch_ended = changed.is_err(),
                ready = ready(&mut self.next) => self.swap(ready),
                ended = ended(&mut self.current) => self.current_ended(ended).await,
                _ = housekeeping.tick() => self.keep_house(),
            }
        }
        self.close().await;
    }

    /// Compares what there is with what should be. The present generation goes on reading until the next one is ready:
    /// what it reads below the handoff is the same on the new cluster.
    fn aim_at(&mut self, target: Arc<Target>) {
        self.settle(&target);
        if let Some(current) = &mut self.current
            && current.target.same_client(&target)
        {
            // The worker itself takes a new login up.
            current.target = target;
            return;
        }
        match &mut self.next {
            Some(next) => next.target = target,
            None => self.next = self.begin(target),
        }
    }

    /// A next generation that is no longer wanted is forbidden to take over. If it already has, it is the present one.
    fn settle(&mut self, target: &Target) {
        let unwanted = |next: &Generation| {
            !next.target.same_client(target) || target.new_login(&next.target).is_some()
        };
        let current_fits = self
            .current
            .as_ref()
            .is_some_and(|current| current.target.same_client(target));
        if let Some(next) = self.next.take_if(|next| current_fits || unwanted(next))
            && !self.shared.forbid(next.number)
        {
            self.current = Some(next);
        }
    }

    fn keep_house(&mut self) {
        let (Some(current), true) = (&self.current, self.shared.fleet.warm_standbys) else {
            return;
        };
        let shared = &self.shared;
        self.standbys.follow(
            &current.target,
            |target, cancel| Connect::new(&shared.fleet, &shared.name, target, cancel, true),
            || client::standby_kind(shared),
        );
    }

    fn begin(&mut self, target: Arc<Target>) -> Option<Generation> {
        self.generations += 1;
        // It has proven that the cluster lets this consumer in, and is not used itself: librdkafka 2.12.1 keeps the leader epochs that
        // it once saw, and would read nothing from a topic that `mirror restore --mode full` has made anew meanwhile.
        drop(self.standbys.take(&target));
        let stop = CancellationToken::new();
        let (ready_sender, ready) = oneshot::channel();
        let (ended_sender, ended) = oneshot::channel();
        let worker = Worker {
            shared: Arc::clone(&self.shared),
            target: Arc::clone(&target),
            generation: self.generations,
            stop: stop.clone(),
            ready: ready_sender,
        };
        if let Err(error) = worker::spawn(worker, ended_sender) {
            tracing::error!(client = self.shared.name.as_str(), %error, "no thread for a new Kafka client");
            return None;
        }
        Some(Generation {
            number: self.generations,
            target,
            _stop: stop.drop_guard(),
            ready,
            ended,
        })
    }

    /// The next generation has taken over; the old one stops.
    fn swap(&mut self, ready: Option<Ready>) {
        let Some(next) = self.next.take() else { return };
        if let Some(Ready { cluster_id }) = ready {
            tracing::debug!(
                client = self.shared.name.as_str(),
                cluster_id,
                "consumer moved"
            );
            self.current = Some(next);
        }
    }

    async fn current_ended(&mut self, ended: Ended) {
        self.current = None;
        let Ended::Broken(reason) = ended else { return };
        tracing::error!(
            client = self.shared.name.as_str(),
            reason,
            "the consumer's Kafka client had a fatal error and is built anew; reading goes on where it was"
        );
        self.shared
            .fleet
            .counters
            .clients_rebuilt
            .fetch_add(1, Relaxed);
        self.shared.fleet.emit(FleetEvent::ClientRebuilt {
            client: self.shared.name.clone(),
            reason,
        });
        tokio::time::sleep(REBUILD_PAUSE).await;
    }

    async fn close(mut self) {
        self.shared.begin_close();
        self.next = None;
        if let Some(current) = self.current.take() {
            let Generation {
                _stop: stop, ended, ..
            } = current;
            drop(stop);
            // The worker's own waits are bounded.
            let _ = ended.await;
        }
        self.shared.mailbox.close();
        self.shared.closed.cancel();
        // Who waits for an answer is told that there will be none.
        drop(self.shared.take_requests());
    }
}

async fn ready(next: &mut Option<Generation>) -> Option<Ready> {
    match next {
        Some(generation) => (&mut generation.ready).await.ok(),
        None => std::future::pending().await,
    }
}

async fn ended(current: &mut Option<Generation>) -> Ended {
    match current {
        Some(generation) => (&mut generation.ended)
            .await
            .unwrap_or(Ended::Broken("its thread panicked".to_owned())),
        None => std::future::pending().await,
    }
}
