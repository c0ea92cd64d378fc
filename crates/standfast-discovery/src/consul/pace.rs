//! How fast Consul may be asked: after answers and after failures.

use std::time::Duration;

use rand::Rng;
use tokio::time::{Instant, sleep, sleep_until};

/// First and longest pause after failures.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_LONGEST: Duration = Duration::from_secs(5);
/// Questions that may follow one another without a pause, and the pace after them: a Consul (or proxy) that answers
/// blocking queries at once must not be asked in a tight loop.
const BURST: u32 = 10;
const STEADY_INTERVAL: Duration = Duration::from_millis(100);

/// Pauses that double from failure to failure, jittered so that the clients of a Consul that comes back do not all
/// ask at the same moment.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    pub(super) async fn pause(&mut self) {
        sleep(self.next()).await;
    }

    fn next(&mut self) -> Duration {
        let full = BACKOFF_FIRST
            .saturating_mul(1 << self.failures.min(16))
            .min(BACKOFF_LONGEST);
        self.failures = self.failures.saturating_add(1);
        full.mul_f64(rand::rng().random_range(0.5..=1.0))
    }
}

/// Lets [`BURST`] questions pass, then one per [`STEADY_INTERVAL`].
#[derive(Debug)]
pub(super) struct Pace {
    /// When the bucket will be full again.
    full_at: Instant,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self {
            full_at: Instant::now(),
        }
    }

    pub(super) async fn wait(&mut self) {
        let full_at = self.full_at.max(Instant::now());
        self.full_at = full_at + STEADY_INTERVAL;
        if let Some(earliest) = self.full_at.checked_sub(STEADY_INTERVAL * BURST) {
            sleep_until(earliest).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_within_its_bounds_and_starts_over() {
        let mut backoff = Backoff::default();
        let mut full = BACKOFF_FIRST;
        for _ in 0..40 {
            let pause = backoff.next();
            assert!(pause >= full / 2 && pause <= full, "{pause:?} of {full:?}");
            full = (full * 2).min(BACKOFF_LONGEST);
        }
        backoff.reset();
        assert!(backoff.next() <= BACKOFF_FIRST);
    }

    #[tokio::test]
    async fn pace_allows_a_burst_then_slows_down() {
        let started = Instant::now();
        let mut pace = Pace::new();
        for _ in 0..BURST {
            pace.wait().await;
        }
        assert!(started.elapsed() < STEADY_INTERVAL);
        for _ in 0..3 {
            pace.wait().await;
        }
        assert!(
            started.elapsed() >= STEADY_INTERVAL * 2,
            "{:?}",
            started.elapsed()
        );
    }
}
