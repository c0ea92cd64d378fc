//! The watch: follows one fleet's record for as long as it runs.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::Backend;
use crate::cache::Cache;
use crate::error::Error;
use crate::metrics::{WatchCounters, WatchStats};
use crate::name::FleetName;
use crate::view::{Board, FleetView, Report};

/// Reports that may wait for the watch task; an endpoint that is ahead of it waits.
const REPORT_QUEUE: usize = 16;

pub(crate) type Reports = mpsc::Sender<(usize, Report)>;

/// Follows one fleet's record; [`run`](Self::run) it on a task of its own.
#[derive(Debug)]
pub struct FleetWatch {
    fleet: FleetName,
    backend: Backend,
    cache: Option<Cache>,
    board: Board,
    sender: watch::Sender<FleetView>,
}

/// Reads a watch's view. Cheap to clone; every clone sees every change.
#[derive(Debug, Clone)]
pub struct FleetWatchHandle {
    fleet: FleetName,
    receiver: watch::Receiver<FleetView>,
    counters: Arc<WatchCounters>,
}

impl FleetWatchHandle {
    /// The fleet that is watched.
    pub fn fleet(&self) -> &FleetName {
        &self.fleet
    }

    /// The present view; never waits.
    pub fn borrow(&self) -> FleetView {
        self.receiver.borrow().clone()
    }

    /// Waits until the view differs from the one that this handle last saw here or in
    /// [`borrow_and_update`](Self::borrow_and_update).
    ///
    /// # Errors
    /// [`Error::WatchEnded`] when the watch has ended.
    pub async fn changed(&mut self) -> Result<(), Error> {
        self.receiver.changed().await.map_err(|_| Error::WatchEnded)
    }

    /// The present view, marked as seen: [`changed`](Self::changed) waits for the next one.
    pub fn borrow_and_update(&mut self) -> FleetView {
        self.receiver.borrow_and_update().clone()
    }

    /// Waits for a view that satisfies `condition`; returns at once if the present one does.
    ///
    /// # Errors
    /// [`Error::WatchEnded`] when the watch has ended.
    pub async fn wait_for(
        &mut self,
        mut condition: impl FnMut(&FleetView) -> bool,
    ) -> Result<FleetView, Error> {
        let view = self.receiver.wait_for(|view| condition(view)).await;
        view.map(|view| view.clone()).map_err(|_| Error::WatchEnded)
    }

    /// What the watch has counted so far.
    pub fn stats(&self) -> WatchStats {
        self.counters.snapshot()
    }
}

impl FleetWatch {
    pub(crate) fn new(
        fleet: FleetName,
        backend: Backend,
        cache: Option<(PathBuf, bool)>,
    ) -> (Self, FleetWatchHandle) {
        let counters = Arc::<WatchCounters>::default();
        let mut board = Board::new(&backend.endpoints(), Arc::clone(&counters));
        let cache = cache.map(|(dir, start)| {
            let cache = Cache::new(dir, &fleet);
            if start && let Some((record, since)) = cache.read() {
                board.start_from(record, since);
            }
            cache
        });
        let (sender, receiver) = watch::channel(board.view().clone());
        let handle = FleetWatchHandle {
            fleet: fleet.clone(),
            receiver,
            counters,
        };
        (
            Self {
                fleet,
                backend,
                cache,
                board,
                sender,
            },
            handle,
        )
    }

    /// Follows the record until `shutdown` is cancelled. A backend that is gone is tried again for ever; the last
    /// view is kept meanwhile.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let (reports, mut inbox) = mpsc::channel(REPORT_QUEUE);
        // Dropped when this future is: no endpoint task outlives its watch.
        let mut tasks = JoinSet::new();
        self.backend
            .spawn_endpoints(&self.fleet, &reports, &mut tasks);
        drop(reports);
        loop {
            let (endpoint, report) = tokio::select! {
                () = shutdown.cancelled() => break,
                report = inbox.recv() => match report {
                    Some(report) => report,
                    None => break,
                },
            };
            self.take_in(endpoint, report).await;
        }
        tasks.shutdown().await;
    }

    async fn take_in(&mut self, endpoint: usize, report: Report) {
        let before = self.board.view().clone();
        let adopted = self.board.report(endpoint, report);
        let after = self.board.view();
        log_difference(&self.fleet, &before, after, adopted);
        self.sender.send_if_modified(|view| {
            let told = view.record != after.record
                || view.source != after.source
                || view.last_error != after.last_error;
            *view = after.clone();
            told
        });
        // After the view was told: the disk must not delay a flip.
        if adopted
            && let (Some(cache), Some(record)) = (&self.cache, &after.record)
            && let Err(error) = cache.write(record).await
        {
            tracing::warn!(fleet = %self.fleet, %error, "the record was not cached");
        }
    }
}

fn log_difference(fleet: &FleetName, before: &FleetView, after: &FleetView, adopted: bool) {
    if adopted && let Some(record) = &after.record {
        tracing::info!(
            %fleet, epoch = record.epoch.0, active = %record.active, state = ?record.state, reason = record.reason,
            "fleet record adopted"
        );
    }
    if before.source != after.source {
        tracing::info!(%fleet, source = ?after.source, "discovery view changed its source");
    }
    if before.last_error != after.last_error {
        match &after.last_error {
            Some(error) => {
                tracing::warn!(%fleet, error, "discovery is impaired, the last good view is kept")
            }
            None => tracing::info!(%fleet, "discovery works again"),
        }
    }
}
