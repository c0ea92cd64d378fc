//! The right to write, for a while. An engine that shares a link writes only while its last heartbeat is younger than its session, so that the others
//! know without asking when one that fell silent has stopped.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::Poll;
use std::time::Duration;

use standfast_wire::Error;

/// Of a link that is not shared.
const FOR_EVER: i64 = i64::MAX;
const NOT_HELD: i64 = i64::MIN;

/// Milliseconds on a clock that goes on while the process is stopped and while the machine is suspended.
pub(crate) fn boot_ms() -> i64 {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let clock = rustix::time::ClockId::Boottime;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let clock = rustix::time::ClockId::Monotonic;
    let now = rustix::time::clock_gettime(clock);
    now.tv_sec * 1000 + now.tv_nsec / 1_000_000
}

/// Cheap to clone; clones are the same lease.
#[derive(Debug, Clone)]
pub(crate) struct Lease(Arc<AtomicI64>);

impl Lease {
    /// Of a link that is not shared: never ends.
    pub(crate) fn for_ever() -> Self {
        Self(Arc::new(AtomicI64::new(FOR_EVER)))
    }

    pub(crate) fn not_held() -> Self {
        Self(Arc::new(AtomicI64::new(NOT_HELD)))
    }

    pub(crate) fn is_valid(&self) -> bool {
        let until = self.0.load(Ordering::Acquire);
        until == FOR_EVER || (until != NOT_HELD && boot_ms() < until)
    }

    /// The coordinator has answered a call that was sent at `sent_at` (by [`boot_ms`]).
    pub(crate) fn renew(&self, sent_at: i64, length: Duration) {
        let length = i64::try_from(length.as_millis()).unwrap_or(0);
        self.0
            .store(sent_at.saturating_add(length), Ordering::Release);
    }

    pub(crate) fn revoke(&self) {
        self.0.store(NOT_HELD, Ordering::Release);
    }

    /// Polls a write only while the lease is valid: also one that waits for room in the socket, in a process that is stopped meanwhile. The connection
    /// cannot be used after an error.
    pub(crate) async fn guard<T>(
        &self,
        broker: Arc<str>,
        write: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let mut write = pin!(write);
        poll_fn(|context| {
            if self.is_valid() {
                return write.as_mut().poll(context);
            }
            Poll::Ready(Err(Error::Closed {
                broker: Arc::clone(&broker),
                detail: " by this side: the lease on the link has ended",
            }))
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_write_that_waits_is_given_up_when_the_lease_has_ended() {
        let lease = Lease::not_held();
        let guarded = async || lease.guard("b:1".into(), async { Ok(7) }).await;
        assert!(guarded().await.is_err());
        lease.renew(boot_ms(), Duration::from_secs(60));
        assert_eq!(guarded().await.unwrap(), 7);
        lease.renew(boot_ms() - 2000, Duration::from_secs(1));
        assert!(guarded().await.is_err());
        lease.renew(boot_ms(), Duration::from_secs(60));
        let (room, waiting) = tokio::sync::oneshot::channel::<()>();
        let write = lease.guard("b:1".into(), async { Ok(waiting.await) });
        let (written, ()) = tokio::join!(write, async {
            lease.revoke();
            room.send(()).unwrap();
        });
        assert!(written.is_err());
        assert!(Lease::for_ever().is_valid());
    }
}
