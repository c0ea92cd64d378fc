//! The link's byte rate: how fast it may read record data from the source, over all threads and the slow path.
//!
//! A token bucket without a lock: one number says when the bytes read so far are paid for, and nobody reads before that. Without a limit a read costs one
//! relaxed load.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::Error;

/// Lowest rate limit, in bytes per second: below it a single large batch would take minutes.
pub const MIN_RATE_LIMIT: u64 = 16 << 10;

/// What may be read at once after a pause, as a time at the limit.
const BURST: Duration = Duration::from_millis(100);

/// A read asks for no more than the limit allows in this time, so that reads stay evenly spread.
const SLICE: Duration = Duration::from_millis(200);

/// Smallest read: a broker answers at least one batch anyway.
const MIN_READ: usize = 16 << 10;

/// No limit.
const NONE: u64 = 0;

#[derive(Debug)]
pub(crate) struct RateLimit {
    bytes_per_second: AtomicU64,
    /// When all that was read is paid for, in nanoseconds since `began`.
    paid_at: AtomicU64,
    began: Instant,
    /// Time that readers were made to wait, in nanoseconds.
    waited: AtomicU64,
    changed: Notify,
}

/// Refuses a limit that is too low to work with.
pub(crate) fn check(limit: Option<u64>) -> Result<(), Error> {
    if limit.is_some_and(|limit| limit < MIN_RATE_LIMIT) {
        return Err(Error::InvalidOption {
            option: "rate_limit",
            reason: format!("must be at least {MIN_RATE_LIMIT} bytes per second"),
        });
    }
    Ok(())
}

impl RateLimit {
    pub(crate) fn new(limit: Option<u64>) -> Self {
        Self {
            bytes_per_second: AtomicU64::new(limit.unwrap_or(NONE)),
            paid_at: AtomicU64::new(0),
            began: Instant::now(),
            waited: AtomicU64::new(0),
            changed: Notify::new(),
        }
    }

    pub(crate) fn get(&self) -> Option<u64> {
        Some(self.bytes_per_second.load(Relaxed)).filter(|limit| *limit != NONE)
    }

    /// Takes effect at once: who waits at the old limit goes on.
    pub(crate) fn set(&self, limit: Option<u64>) {
        self.bytes_per_second.store(limit.unwrap_or(NONE), Relaxed);
        // What was read at another limit is not paid for at this one.
        self.paid_at.store(self.now(), Relaxed);
        self.changed.notify_waiters();
    }

    /// Time that readers were made to wait so far.
    pub(crate) fn waited(&self) -> Duration {
        Duration::from_nanos(self.waited.load(Relaxed))
    }

    /// Bytes to ask for in one read that would ask for `wanted` without a limit.
    pub(crate) fn slice(&self, wanted: usize) -> usize {
        let Some(limit) = self.get() else {
            return wanted;
        };
        let slice = u128::from(limit) * SLICE.as_millis() / 1000;
        usize::try_from(slice).map_or(wanted, |slice| wanted.min(slice.max(MIN_READ)))
    }

    /// Waits until the next bytes may be read.
    pub(crate) async fn ready(&self) {
        while self.get().is_some() {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Before the look at the time, so that a change in between is not missed.
            changed.as_mut().enable();
            let now = self.now();
            let wait = self.paid_at.load(Relaxed).saturating_sub(now);
            if wait == 0 || self.get().is_none() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_nanos(wait)) => {}
                () = changed => {}
            }
            let waited = self.now().saturating_sub(now);
            self.waited.fetch_add(waited, Relaxed);
        }
    }

    /// These bytes were read.
    pub(crate) fn took(&self, bytes: usize) {
        let Some(limit) = self.get() else { return };
        let price = bytes as u128 * 1_000_000_000 / u128::from(limit);
        let price = u64::try_from(price).unwrap_or(u64::MAX);
        let earliest = self.now().saturating_sub(nanos(BURST));
        let _ = self.paid_at.fetch_update(Relaxed, Relaxed, |at| {
            Some(at.max(earliest).saturating_add(price))
        });
    }

    fn now(&self) -> u64 {
        nanos(self.began.elapsed())
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn several_readers_share_one_limit_and_a_change_wakes_them() {
        let rate = RateLimit::new(Some(1_000_000));
        let began = Instant::now();
        // The first 100 ms are the burst: 500 kB take at least 0.4 s, whoever reads them.
        let read = async {
            for _ in 0..5 {
                rate.ready().await;
                rate.took(50_000);
            }
        };
        tokio::join!(read, async {
            for _ in 0..5 {
                rate.ready().await;
                rate.took(50_000);
            }
        });
        rate.ready().await;
        assert!(began.elapsed() >= Duration::from_millis(390));
        assert!(rate.waited() > Duration::ZERO);
        rate.took(1_000_000_000);
        let (_, ()) = tokio::join!(
            tokio::time::timeout(Duration::from_secs(60), rate.ready()),
            async { rate.set(None) }
        );
        assert!(began.elapsed() < Duration::from_secs(60));
        assert_eq!((rate.get(), rate.slice(2 << 20)), (None, 2 << 20));
        rate.set(Some(1_000_000));
        assert_eq!(rate.slice(2 << 20), 200_000);
        assert!(check(Some(100)).is_err() && check(None).is_ok());
    }
}
