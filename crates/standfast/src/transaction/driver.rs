//! Moves a transactional client from cluster to cluster: one task per client.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use standfast_discovery::FleetState;
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Shared;
use super::flow::Reason;
use super::worker::{self, Ended, Worker};
use crate::error::Error;
use crate::event::FleetEvent;
use crate::target::Target;

/// Pause before a client is built anew after a fatal error.
const REBUILD_PAUSE: Duration = Duration::from_secs(1);

pub(super) struct Driver {
    shared: Arc<Shared>,
    current: Option<Generation>,
    generations: u64,
}

struct Generation {
    target: Arc<Target>,
    // Stops the worker when dropped.
    _stop: DropGuard,
    ended: oneshot::Receiver<Ended>,
}

impl Driver {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            current: None,
            generations: 0,
        }
    }

    pub(super) async fn run(mut self, shutdown: CancellationToken) {
        let mut targets = self.shared.fleet.targets.clone();
        let mut watch_ended = false;
        loop {
            let target = targets.borrow_and_update().clone();
            if let Some(target) = target {
                self.aim_at(target);
            }
            tokio::select! {
                () = shutdown.cancelled() => break,
                changed = targets.changed(), if !watch_ended => watch_ended = changed.is_err(),
                ended = ended(&mut self.current) => if self.current_ended(ended) {
                    tokio::select! {
                        () = tokio::time::sleep(REBUILD_PAUSE) => {}
                        // A flip does not wait for it.
                        _ = targets.changed(), if !watch_ended => {}
                    }
                },
            }
        }
        self.close().await;
    }

    /// Compares what there is with what should be. The old cluster's transaction ends at once: what it still commits is
    /// decided by what the mirror has.
    fn aim_at(&mut self, target: Arc<Target>) {
        let fits = |current: &Generation| current.target.same_client(&target);
        if self.current.as_ref().is_some_and(fits) {
            self.refresh(target);
            return;
        }
        self.cut_off(Reason::Flip);
        self.shared.flow().is_fenced = target.state == FleetState::Fenced;
        let is_closed = self.shared.flow().closed.is_some();
        if !is_closed {
            self.current = self.begin(target);
        }
    }

    /// The clients stay; epoch and state may be new.
    fn refresh(&mut self, target: Arc<Target>) {
        let fenced = target.state == FleetState::Fenced;
        self.shared.change(|flow| {
            flow.set_epoch(target.epoch);
            // A mirror copies no open transaction; a commit that is on its way may end.
            if fenced && !flow.is_fenced {
                flow.fence();
            }
            flow.is_fenced = fenced;
            ((), None)
        });
        if let Some(current) = &mut self.current {
            current.target = target;
        }
    }

    fn begin(&mut self, target: Arc<Target>) -> Option<Generation> {
        self.generations += 1;
        let stop = CancellationToken::new();
        let (sender, ended) = oneshot::channel();
        let worker = Worker {
            shared: Arc::clone(&self.shared),
            target: Arc::clone(&target),
            generation: self.generations,
            stop: stop.clone(),
        };
        if let Err(error) = worker::spawn(worker, sender) {
            // Its sender is gone with the closure: the generation ends as broken and is begun again after a pause.
            tracing::error!(client = self.shared.name.as_str(), %error, "no thread for new Kafka clients");
        }
        Some(Generation {
            target,
            _stop: stop.drop_guard(),
            ended,
        })
    }

    fn cut_off(&mut self, reason: Reason) {
        // The thread goes on by itself and takes its clients down. It is told under the lock, so that it cannot begin to work after this.
        let current = self.current.take();
        self.shared.change(|flow| {
            let abort = flow.end_generation(reason);
            drop(current);
            ((), abort)
        });
    }

    /// Whether to pause before the next one.
    fn current_ended(&mut self, ended: Ended) -> bool {
        let Some(current) = &self.current else {
            return false;
        };
        let (shared, cluster) = (Arc::clone(&self.shared), current.target.cluster.clone());
        match ended {
            Ended::Stopped => {
                self.cut_off(Reason::Flip);
                false
            }
            Ended::Fenced => {
                tracing::error!(
                    client = shared.name.as_str(), %cluster, transactional_id = shared.id,
                    "another client uses the same transactional id: this one is closed"
                );
                shared.flow().closed = Some(shared.fenced(&cluster));
                self.cut_off(Reason::Kafka(
                    "another client has the same transactional id".to_owned(),
                ));
                false
            }
            Ended::Broken(reason) => {
                tracing::error!(
                    client = shared.name.as_str(), %cluster, reason,
                    "the Kafka client had a fatal error and is built anew; reading goes on at what is committed"
                );
                shared.fleet.counters.clients_rebuilt.fetch_add(1, Relaxed);
                shared.fleet.emit(FleetEvent::ClientRebuilt {
                    client: shared.name.clone(),
                    reason: reason.clone(),
                });
                self.cut_off(Reason::Kafka(reason));
                true
            }
        }
    }

    async fn close(mut self) {
        self.shared.flow().closed.get_or_insert(Error::Closed);
        self.shared
            .change(|flow| ((), flow.end_generation(Reason::Application)));
        if let Some(Generation {
            _stop: stop, ended, ..
        }) = self.current.take()
        {
            drop(stop);
            // The worker's own waits are bounded.
            let _ = ended.await;
        }
        self.shared.closed.cancel();
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
