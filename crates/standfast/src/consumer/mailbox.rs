//! Records read ahead: filled by the poll threads, emptied by the application.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;

use super::message::Message;
use super::partition::Partition;
use crate::error::Error;

/// Something for the application.
#[derive(Debug)]
pub(super) enum Item {
    Record {
        partition: Arc<Partition>,
        /// Which reading of the partition it comes from.
        reading: u32,
        message: Message,
    },
    /// The link's filler at this offset: moves the position, is not shown.
    Filler {
        partition: Arc<Partition>,
        reading: u32,
        offset: i64,
    },
    Failure(Error),
}

/// A bounded queue with one reader.
#[derive(Debug)]
pub(super) struct Mailbox {
    state: Mutex<State>,
    emptied: Condvar,
    reader: AtomicWaker,
    max_records: usize,
    max_bytes: usize,
}

#[derive(Debug)]
struct State {
    items: VecDeque<Item>,
    bytes: usize,
    closed: bool,
}

impl Mailbox {
    pub(super) fn new(max_records: usize, max_bytes: usize) -> Self {
        Self {
            state: Mutex::new(State {
                items: VecDeque::new(),
                bytes: 0,
                closed: false,
            }),
            emptied: Condvar::new(),
            reader: AtomicWaker::new(),
            max_records: max_records.max(1),
            max_bytes: max_bytes.max(1),
        }
    }

    /// Moves items in while there is room; the rest stays in `batch`. True if all went in.
    pub(super) fn fill(&self, batch: &mut VecDeque<Item>) -> bool {
        {
            let mut state = self.lock();
            if state.closed {
                batch.clear();
                return true;
            }
            while self.has_room(&state) {
                let Some(item) = batch.pop_front() else { break };
                state.bytes += item.size();
                state.items.push_back(item);
            }
        }
        self.reader.wake();
        batch.is_empty()
    }

    /// Waits until there is room, or for `timeout`. True if there is room.
    pub(super) fn wait_for_room(&self, timeout: Duration) -> bool {
        let state = self.lock();
        let (state, _) = self
            .emptied
            .wait_timeout_while(state, timeout, |state| {
                !self.has_room(state) && !state.closed
            })
            .unwrap_or_else(PoisonError::into_inner);
        self.has_room(&state) || state.closed
    }

    /// Takes everything there is into `local`. Ready with false when closed and empty.
    pub(super) fn poll_take(&self, cx: &mut Context<'_>, local: &mut VecDeque<Item>) -> Poll<bool> {
        if let Some(taken) = self.take(local) {
            return Poll::Ready(taken);
        }
        self.reader.register(cx.waker());
        // Once more: an item may have come before the waker was in place.
        match self.take(local) {
            Some(taken) => Poll::Ready(taken),
            None => Poll::Pending,
        }
    }

    /// Whether so many items are there, or as many as there can be. Otherwise the reader is woken by the next ones.
    pub(super) fn holds(&self, cx: &Context<'_>, wanted: usize) -> bool {
        self.reader.register(cx.waker());
        let state = self.lock();
        state.items.len() >= wanted || !self.has_room(&state) || state.closed
    }

    fn take(&self, local: &mut VecDeque<Item>) -> Option<bool> {
        let mut state = self.lock();
        if state.items.is_empty() {
            return state.closed.then_some(false);
        }
        std::mem::swap(&mut state.items, local);
        state.bytes = 0;
        drop(state);
        self.emptied.notify_all();
        Some(true)
    }

    /// Wakes the reader for another reason than a new item.
    pub(super) fn wake_reader(&self) {
        self.reader.wake();
    }

    pub(super) fn register_reader(&self, cx: &Context<'_>) {
        self.reader.register(cx.waker());
    }

    /// What is in it may still be read; nothing more comes.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.emptied.notify_all();
        self.reader.wake();
    }

    fn has_room(&self, state: &State) -> bool {
        state.items.len() < self.max_records && state.bytes < self.max_bytes
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Item {
    fn size(&self) -> usize {
        match self {
            Self::Record { message, .. } => message.size(),
            Self::Filler { .. } | Self::Failure(_) => 0,
        }
    }
}
