//! The fleet lock: who may fail over.

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;

use crate::error::Error;

/// The lock of a fleet, held until it is released, dropped or lost.
///
/// A holder that is cut off from Consul is not told that its session has expired, so every effect must be preceded by
/// [`is_valid`](Self::is_valid): it turns false *before* Consul may give the lock to somebody else.
#[derive(Debug)]
pub struct Lock {
    state: watch::Receiver<LockState>,
    token: u64,
    held: Held,
}

#[derive(Debug)]
pub(crate) enum Held {
    /// An advisory lock on an open file: it goes away with the file, also when the process is killed.
    File(Arc<File>),
    /// A session that a task renews; dropping the sender (or sending) ends it.
    Session(crate::consul::SessionHandle),
}

/// What the holder may rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LockState {
    /// Held for as long as the process lives.
    Held,
    /// Held until then, later if renewed.
    HeldUntil(Deadline),
    /// Gone, and not coming back.
    Lost,
}

/// A moment on two clocks; it has passed when either says so. The monotonic one stands still while the machine is
/// suspended, and Consul does not; the wall clock may be set back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deadline {
    monotonic: Instant,
    wall: SystemTime,
}

impl Deadline {
    pub(crate) fn now() -> Self {
        Self {
            monotonic: Instant::now(),
            wall: SystemTime::now(),
        }
    }

    pub(crate) fn after(self, duration: Duration) -> Self {
        Self {
            monotonic: self.monotonic + duration,
            wall: self.wall + duration,
        }
    }

    pub(crate) fn monotonic(self) -> Instant {
        self.monotonic
    }

    pub(crate) fn has_passed(self) -> bool {
        Instant::now() >= self.monotonic || SystemTime::now() >= self.wall
    }
}

impl Lock {
    pub(crate) fn new(state: watch::Receiver<LockState>, token: u64, held: Held) -> Self {
        Self { state, token, held }
    }

    pub(crate) fn on_file(file: File) -> Self {
        // The sender may go: the receiver keeps the last value.
        let (_, state) = watch::channel(LockState::Held);
        Self::new(state, 0, Held::File(Arc::new(file)))
    }

    /// Whether the holder may still act.
    pub fn is_valid(&self) -> bool {
        match *self.state.borrow() {
            LockState::Held => true,
            LockState::HeldUntil(deadline) => !deadline.has_passed(),
            LockState::Lost => false,
        }
    }

    /// The local deadline: less than the session's TTL after the last renewal that succeeded. `None` if the lock does
    /// not expire (file backend). In the past once the lock is lost.
    pub fn valid_until(&self) -> Option<Instant> {
        match *self.state.borrow() {
            LockState::Held => None,
            LockState::HeldUntil(deadline) => Some(deadline.monotonic),
            LockState::Lost => Some(Instant::now()),
        }
    }

    /// How much longer the holder may act without a further renewal; `None` if the lock does not expire.
    pub fn remaining(&self) -> Option<Duration> {
        self.valid_until()
            .map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// Waits until the lock is lost; for ever if it never is.
    pub async fn lost(&self) {
        let mut state = self.state.clone();
        loop {
            let now = *state.borrow_and_update();
            match now {
                LockState::Lost => return,
                LockState::Held => std::future::pending().await,
                LockState::HeldUntil(Deadline {
                    monotonic: deadline,
                    ..
                }) => {
                    let changed = tokio::time::timeout_at(deadline.into(), state.changed()).await;
                    // Deadline passed, or the renewing task is gone: either way nobody vouches for the lock.
                    if !matches!(changed, Ok(Ok(()))) && Instant::now() >= deadline {
                        return;
                    }
                    if matches!(changed, Ok(Err(_))) {
                        tokio::time::sleep_until(deadline.into()).await;
                        return;
                    }
                }
            }
        }
    }

    /// Grows with every new holder (Consul's `LockIndex`): a fencing token. 0 for the file backend.
    pub fn fencing_token(&self) -> u64 {
        self.token
    }

    /// Gives the lock up, so that the next one need not wait for the session to expire.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if Consul could not be told; the session then expires by its TTL.
    pub async fn release(self) -> Result<(), Error> {
        match self.held {
            Held::File(file) => {
                drop(file);
                Ok(())
            }
            Held::Session(session) => session.release().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_clock_ends_the_lock() {
        let now = Deadline::now();
        let later = now.after(Duration::from_secs(60));
        assert!(!later.has_passed());
        assert!(
            Deadline {
                wall: now.wall,
                ..later
            }
            .has_passed()
        );
        assert!(
            Deadline {
                monotonic: now.monotonic,
                ..later
            }
            .has_passed()
        );
    }
}
