//! Bounded retries with jittered exponential backoff.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::error::Error;

/// Attempts of one call, the first included.
pub(crate) const ATTEMPTS_MAX: u32 = 6;
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// The retries of one call.
pub(crate) struct Retry {
    attempts: u32,
    deadline: Instant,
}

impl Retry {
    /// No attempt begins later than `within` from now.
    pub(crate) fn within(within: Duration) -> Self {
        Self {
            attempts: 1,
            deadline: Instant::now() + within,
        }
    }

    /// Waits before the next attempt, or gives `error` back if there is none to be made.
    pub(crate) async fn after(&mut self, error: Error) -> Result<(), Error> {
        let pause = self.pause();
        if !error.is_retriable()
            || self.attempts >= ATTEMPTS_MAX
            || Instant::now() + pause >= self.deadline
        {
            return Err(error);
        }
        tracing::debug!(%error, attempt = self.attempts, ?pause, "will try again");
        self.attempts += 1;
        sleep(pause).await;
        Ok(())
    }

    fn pause(&self) -> Duration {
        let exponential = BACKOFF_MIN.saturating_mul(1 << self.attempts.saturating_sub(1).min(10));
        exponential
            .min(BACKOFF_MAX)
            .mul_f64(rand::random_range(0.5..1.0))
    }
}
