//! Counters of a watch: plain numbers, so that an application can export them with whatever it uses.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What a watch has seen since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WatchStats {
    /// `standfast_discovery_answers_total`: answers from the backend, changed or not.
    pub answers: u64,
    /// `standfast_discovery_failures_total`: requests that failed or timed out.
    pub failures: u64,
    /// `standfast_discovery_changes_total`: records adopted.
    pub changes: u64,
    /// `standfast_discovery_malformed_total`: stored values that were no fleet record and were ignored.
    pub malformed: u64,
    /// `standfast_discovery_older_epochs_total`: records ignored because a higher epoch had been seen.
    pub older_epochs: u64,
}

impl WatchStats {
    /// Name, help text and value of every counter, for export to Prometheus.
    pub fn counters(&self) -> [(&'static str, &'static str, u64); 5] {
        [
            (
                "standfast_discovery_answers_total",
                "Answers from the discovery backend, changed or not",
                self.answers,
            ),
            (
                "standfast_discovery_failures_total",
                "Discovery requests that failed or timed out",
                self.failures,
            ),
            (
                "standfast_discovery_changes_total",
                "Fleet records adopted",
                self.changes,
            ),
            (
                "standfast_discovery_malformed_total",
                "Stored values that were no fleet record and were ignored",
                self.malformed,
            ),
            (
                "standfast_discovery_older_epochs_total",
                "Fleet records ignored because a higher epoch had been seen",
                self.older_epochs,
            ),
        ]
    }
}

#[derive(Debug, Default)]
pub(crate) struct WatchCounters {
    pub(crate) answers: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) changes: AtomicU64,
    pub(crate) malformed: AtomicU64,
    pub(crate) older_epochs: AtomicU64,
}

impl WatchCounters {
    pub(crate) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Relaxed);
    }

    pub(crate) fn snapshot(&self) -> WatchStats {
        WatchStats {
            answers: self.answers.load(Relaxed),
            failures: self.failures.load(Relaxed),
            changes: self.changes.load(Relaxed),
            malformed: self.malformed.load(Relaxed),
            older_epochs: self.older_epochs.load(Relaxed),
        }
    }
}
