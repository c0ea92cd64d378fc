//! The clock of an operation: each step by name, with its time and its deadline.

use std::future::Future;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::api::{OperationStatus, Step};

/// Times the steps and shows the current one in the status.
#[derive(Debug)]
pub(crate) struct Steps {
    kind: &'static str,
    since: Timestamp,
    started: Instant,
    done: Vec<Step>,
    progress: watch::Sender<Option<OperationStatus>>,
}

/// A step did not end in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TimedOut {
    pub(crate) limit: Duration,
}

impl Steps {
    pub(crate) fn begin(
        kind: &'static str,
        progress: watch::Sender<Option<OperationStatus>>,
    ) -> Self {
        Self {
            kind,
            since: Timestamp::now(),
            started: Instant::now(),
            done: Vec::new(),
            progress,
        }
    }

    /// Runs one step, at most `limit` long.
    pub(super) async fn run<T>(
        &mut self,
        name: &'static str,
        limit: Duration,
        step: impl Future<Output = T>,
    ) -> Result<T, TimedOut> {
        tracing::info!(operation = self.kind, step = name, "step begins");
        self.progress.send_replace(Some(OperationStatus {
            kind: self.kind.to_owned(),
            step: name.to_owned(),
            since: self.since,
        }));
        let started = Instant::now();
        let result = tokio::time::timeout(limit, step).await;
        self.done.push(Step {
            name: name.to_owned(),
            ms: millis(started.elapsed()),
        });
        result.map_err(|_| TimedOut { limit })
    }

    pub(super) fn done(&self) -> Vec<Step> {
        self.done.clone()
    }

    pub(super) fn total_ms(&self) -> u64 {
        millis(self.started.elapsed())
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        self.progress.send_replace(None);
    }
}

impl std::fmt::Display for TimedOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "no answer within {:?}", self.limit)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
