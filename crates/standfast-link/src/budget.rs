//! The bound on record bytes in memory: one permit per fetched frame, given back when its last batch is on its way to the destination.
//!
//! Batches are slices of the frame they were fetched in, so the frame's memory is held until the last of them is dropped; the permit is counted the same way.

use std::cell::Cell;
use std::rc::Rc;

use tokio::sync::Notify;

/// Bytes that one shard may hold.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: usize,
    used: Cell<usize>,
    freed: Notify,
}

impl Budget {
    pub(crate) fn new(limit: usize) -> Rc<Self> {
        Rc::new(Self {
            limit,
            used: Cell::new(0),
            freed: Notify::new(),
        })
    }

    /// Waits until `bytes` are free. If nothing at all is held the permit is given even if it exceeds the limit: a batch is answered whole however large it is.
    pub(crate) async fn reserve(self: &Rc<Self>, bytes: usize) -> Permit {
        loop {
            let used = self.used.get();
            if used == 0 || used.saturating_add(bytes) <= self.limit {
                self.used.set(used.saturating_add(bytes));
                // Another waiter may fit too.
                self.freed.notify_one();
                return Permit {
                    budget: Rc::clone(self),
                    bytes: Cell::new(bytes),
                };
            }
            self.freed.notified().await;
        }
    }

    #[cfg(test)]
    pub(crate) fn used(&self) -> usize {
        self.used.get()
    }
}

/// A share of the budget, given back on drop.
#[derive(Debug)]
pub(crate) struct Permit {
    budget: Rc<Budget>,
    bytes: Cell<usize>,
}

impl Permit {
    /// Sets the share to the real size of the frame, which is known after it was read.
    pub(crate) fn resize(&self, bytes: usize) {
        let before = self.bytes.replace(bytes);
        self.budget.used.set(
            self.budget
                .used
                .get()
                .saturating_sub(before)
                .saturating_add(bytes),
        );
        if bytes < before {
            self.budget.freed.notify_one();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.resize(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn waits_for_what_was_given_back() {
        let budget = Budget::new(100);
        let first = budget.reserve(80).await;
        let blocked =
            tokio::time::timeout(std::time::Duration::from_millis(20), budget.reserve(30)).await;
        assert!(blocked.is_err());
        first.resize(60);
        let second = budget.reserve(30).await;
        assert_eq!(budget.used(), 90);
        drop((first, second));
        assert_eq!(budget.used(), 0);
        let _huge = budget.reserve(1000).await;
    }
}
