//! Failover and switchover as the API asks for them: one at a time, and never cut short by a caller that hangs up.

use std::sync::Arc;

use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use crate::api::{ErrorCode, FailoverRequest, OperationStatus, Report, SwitchoverRequest};
use crate::config::FailoverSection;
use crate::failover::{
    self, Context, DiscoveryCoordination, Drain, Failure, Limits, Mirrors, Request, Steps,
};

use super::mirrors::{LinkSet, name_of};
use crate::metrics::{OperationCounts, OperationLabels};

/// How long a drain takes at most when the caller does not say.
const DRAIN_TIMEOUT_DEFAULT_MS: u64 = 60_000;
/// The longest drain that may be asked for: producers hold all the while.
const DRAIN_TIMEOUT_MAX_MS: u64 = 3_600_000;
const SETTLE_DEFAULT_MS: u64 = 1_000;

/// Runs operations. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Operations {
    context: Arc<Context<DiscoveryCoordination, LinkSet>>,
    busy: Arc<Mutex<()>>,
    progress: watch::Sender<Option<OperationStatus>>,
    counts: OperationCounts,
}

impl Operations {
    pub(crate) fn new(
        coordination: DiscoveryCoordination,
        mirrors: LinkSet,
        options: &FailoverSection,
        shutdown: CancellationToken,
    ) -> Self {
        let context = Context {
            fleet: coordination.fleet.clone(),
            coordination,
            mirrors,
            limits: Limits {
                step: options.step_timeout,
                group_sync: options.group_sync_timeout,
                group_reads: failover::GROUP_READS_MAX,
                late_write_watch: options.late_write_watch,
            },
            shutdown,
        };
        Self {
            context: Arc::new(context),
            busy: Arc::default(),
            progress: watch::Sender::new(None),
            counts: OperationCounts::default(),
        }
    }

    /// What is running now.
    pub(crate) fn current(&self) -> Option<OperationStatus> {
        self.progress.borrow().clone()
    }

    /// How many ended how.
    pub(crate) fn counts(&self) -> OperationCounts {
        self.counts.clone()
    }

    fn count(&self, kind: &str, result: &Result<Report, Failure>) {
        let outcome = match result {
            Ok(report) => name_of(&report.outcome),
            Err(failure) => name_of(&failure.code),
        };
        let labels = OperationLabels {
            operation: kind.to_owned(),
            outcome,
        };
        self.counts.get_or_create(&labels).inc();
    }

    /// Waits until nothing is running.
    pub(crate) async fn idle(&self) {
        drop(self.busy.lock().await);
    }

    pub(crate) async fn failover(&self, request: FailoverRequest) -> Result<Report, Failure> {
        let FailoverRequest {
            dry_run,
            to,
            reason,
        } = request;
        let request = Request {
            dry_run,
            to,
            reason,
            allow_skips: false,
        };
        self.run("failover", |context, steps| async move {
            failover::failover(&context, steps, request).await
        })
        .await
    }

    pub(crate) async fn switchover(&self, request: SwitchoverRequest) -> Result<Report, Failure> {
        let SwitchoverRequest {
            dry_run,
            to,
            reason,
            timeout_ms,
            settle_ms,
            allow_skips,
        } = request;
        let timeout = timeout_ms
            .unwrap_or(DRAIN_TIMEOUT_DEFAULT_MS)
            .min(DRAIN_TIMEOUT_MAX_MS);
        let drain = Drain {
            timeout: std::time::Duration::from_millis(timeout),
            settle: std::time::Duration::from_millis(settle_ms.unwrap_or(SETTLE_DEFAULT_MS)),
        };
        if drain.settle >= drain.timeout {
            return Err(Failure {
                code: ErrorCode::BadRequest,
                message: format!(
                    "settle ({:?}) must be shorter than timeout ({:?})",
                    drain.settle, drain.timeout
                ),
                report: None,
            });
        }
        let request = Request {
            dry_run,
            to,
            reason,
            allow_skips,
        };
        self.run("switchover", move |context, steps| async move {
            failover::switchover(&context, steps, request, drain).await
        })
        .await
    }

    async fn run<F, O>(&self, kind: &'static str, operation: O) -> Result<Report, Failure>
    where
        O: FnOnce(Arc<Context<DiscoveryCoordination, LinkSet>>, Steps) -> F,
        F: Future<Output = Result<Report, Failure>> + Send + 'static,
    {
        let Ok(busy) = Arc::clone(&self.busy).try_lock_owned() else {
            let step = self.current().map_or(String::new(), |now| {
                format!(" ({}, step {})", now.kind, now.step)
            });
            return Err(Failure {
                code: ErrorCode::OperationInProgress,
                message: format!("another operation is running at this agent{step}; wait for it"),
                report: None,
            });
        };
        let steps = Steps::begin(kind, self.progress.clone());
        let running = operation(Arc::clone(&self.context), steps);
        let this = self.clone();
        // A task of its own: the caller may hang up, the operation goes on.
        let task = tokio::spawn(async move {
            let result = running.await;
            drop(busy);
            log(kind, &result);
            this.count(kind, &result);
            result
        });
        match task.await {
            Ok(result) => result,
            Err(broken) => Err(self.clean_up(kind, &broken).await),
        }
    }

    /// An operation that panicked may have left mirrors stopped.
    async fn clean_up(&self, kind: &str, broken: &tokio::task::JoinError) -> Failure {
        tracing::error!(operation = kind, error = %broken, "the operation broke down; mirrors go on as far as the record allows");
        for route in self.context.mirrors.routes() {
            self.context.mirrors.resume(&route).await;
        }
        Failure {
            code: ErrorCode::Internal,
            message: format!(
                "the {kind} broke down: {broken}; look at `standfast fleet show`, then run it again"
            ),
            report: None,
        }
    }
}

fn log(kind: &'static str, result: &Result<Report, Failure>) {
    match result {
        Ok(report) => tracing::info!(
            operation = kind, outcome = ?report.outcome, to = %report.to, epoch = ?report.epoch,
            rpo_records = ?report.rpo_records, total_ms = report.total_ms, "operation ended"
        ),
        Err(Failure { code, message, .. }) => match code {
            ErrorCode::OperationFailed | ErrorCode::Internal => {
                tracing::error!(operation = kind, ?code, error = message, "operation failed");
            }
            // Nothing was changed, and the caller is told.
            _ => tracing::warn!(
                operation = kind,
                ?code,
                error = message,
                "operation refused"
            ),
        },
    }
}
