//! Room for unacknowledged records: so many, and so many bytes.
//!
//! Acknowledgements come in thousands at a time, on another thread than sends. So what they give back is collected under the log's
//! lock, which both have anyway, and goes to the semaphores by the handful, or at once where somebody waits for it.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use tokio::sync::{Semaphore, TryAcquireError};

use crate::cache_line::OwnLine;

/// Records whose room is given back together.
const HANDFUL: usize = 64;

/// What has been given up and not been given back yet. Part of the log.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Vacated {
    records: usize,
    bytes: usize,
}

impl Vacated {
    pub(super) fn add(&mut self, bytes: u32) {
        self.records += 1;
        self.bytes += bytes as usize;
    }
}

#[derive(Debug)]
pub(super) struct Room {
    records: Semaphore,
    bytes: Semaphore,
    /// How many wait. Looked at with each acknowledgement, while sends take from the semaphores.
    waiting: OwnLine<AtomicUsize>,
    byte_limit: usize,
}

impl Room {
    /// `bytes` must fit into u32, in which semaphores count.
    pub(super) fn new(records: usize, bytes: usize) -> Self {
        Self {
            records: Semaphore::new(records),
            bytes: Semaphore::new(bytes),
            waiting: OwnLine::default(),
            byte_limit: bytes,
        }
    }

    pub(super) fn byte_limit(&self) -> usize {
        self.byte_limit
    }

    /// Takes room for a record. `reclaim` gives back what has been vacated.
    pub(super) fn try_take(
        &self,
        bytes: u32,
        reclaim: impl FnOnce(),
    ) -> Result<(), TryAcquireError> {
        match self.take_at_once(bytes) {
            Err(TryAcquireError::NoPermits) => {
                reclaim();
                self.take_at_once(bytes)
            }
            taken => taken,
        }
    }

    /// Waits for room, in the order of the calls. `None`: the producer has been closed.
    pub(super) async fn take(&self, bytes: u32, reclaim: impl FnOnce()) -> Option<()> {
        match self.take_at_once(bytes) {
            Ok(()) => return Some(()),
            Err(TryAcquireError::Closed) => return None,
            Err(TryAcquireError::NoPermits) => {}
        }
        let _waits = Waits::new(&self.waiting);
        // From here on everything is given back at once; this is what was vacated before.
        reclaim();
        let record = self.records.acquire().await.ok()?;
        let room = self.bytes.acquire_many(bytes).await.ok()?;
        record.forget();
        room.forget();
        Some(())
    }

    fn take_at_once(&self, bytes: u32) -> Result<(), TryAcquireError> {
        let record = self.records.try_acquire()?;
        self.bytes.try_acquire_many(bytes)?.forget();
        record.forget();
        Ok(())
    }

    /// To be called with the log's lock held, after each change of what is vacated.
    pub(super) fn give_back(&self, vacated: &mut Vacated) {
        if vacated.records >= HANDFUL || self.waiting.load(Relaxed) > 0 {
            self.give_back_all(vacated);
        }
    }

    pub(super) fn give_back_all(&self, vacated: &mut Vacated) {
        let Vacated { records, bytes } = std::mem::take(vacated);
        self.records.add_permits(records);
        self.bytes.add_permits(bytes);
    }

    /// Nobody gets room any more.
    pub(super) fn close(&self) {
        self.records.close();
        self.bytes.close();
    }
}

struct Waits<'a>(&'a AtomicUsize);

impl<'a> Waits<'a> {
    fn new(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, Relaxed);
        Self(waiting)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_full_buffer_is_looked_at_twice_and_waiters_get_room_at_once_in_order() {
        let (room, vacated) = (Room::new(2, 100), Mutex::new(Vacated::default()));
        let lock = || vacated.lock().expect("lock");
        let reclaim = || room.give_back_all(&mut lock());
        let give_up = |bytes| {
            lock().add(bytes);
            room.give_back(&mut lock());
        };
        assert!(room.try_take(60, reclaim).is_ok());
        assert!(room.try_take(60, reclaim).is_err(), "too many bytes");
        assert!(room.try_take(40, reclaim).is_ok());
        assert!(room.try_take(1, reclaim).is_err(), "too many records");
        give_up(40);
        assert_eq!(lock().records, 1, "nobody waits for it");
        assert!(room.try_take(40, reclaim).is_ok(), "but it can be had");

        give_up(40);
        let mut large = std::pin::pin!(room.take(90, reclaim));
        assert!(poll(large.as_mut()).is_pending());
        assert_eq!(lock().records, 0, "given back for the one that waits");
        let mut small = std::pin::pin!(room.take(1, reclaim));
        assert!(poll(small.as_mut()).is_pending());
        assert!(room.try_take(1, reclaim).is_err(), "overtakes nobody");
        give_up(60);
        assert!(poll(large.as_mut()).is_ready());
        assert!(
            poll(small.as_mut()).is_ready(),
            "one record and 10 bytes were left"
        );
        give_up(90);
        assert_eq!(lock().records, 1, "nobody waits any more");
        room.close();
        assert!(matches!(
            room.try_take(1, reclaim),
            Err(TryAcquireError::Closed)
        ));
    }

    #[test]
    fn who_gives_up_waiting_takes_nothing_along() {
        let (room, vacated) = (Room::new(2, 100), Mutex::new(Vacated::default()));
        let reclaim = || room.give_back_all(&mut vacated.lock().expect("lock"));
        assert!(room.try_take(100, reclaim).is_ok());
        {
            let mut waits = std::pin::pin!(room.take(50, reclaim));
            assert!(poll(waits.as_mut()).is_pending());
        }
        vacated.lock().expect("lock").add(100);
        assert!(room.try_take(100, reclaim).is_ok());
        assert_eq!(room.waiting.load(Relaxed), 0);
        assert_eq!(room.records.available_permits(), 1);
    }
}
