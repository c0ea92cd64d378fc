//! The producer's log: every record that waits for an acknowledgement, in the order in which it was given.
//!
//! Records are handed to the present client in this order and nowhere else. A flip sets the mark back to the oldest
//! unresolved record, so that records are resent in their order and ahead of new ones.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::client::ProducerClient;
use crate::error::{Error, Result};
use crate::record::{Delivery, Record};

/// Answers a send.
pub(super) type Completion = oneshot::Sender<Result<Delivery>>;

/// One record and the one who waits for it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) record: Record,
    completion: Option<Completion>,
    /// Room in the producer's buffer, given back with the entry.
    permits: Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
    /// Handed to a client at least once.
    was_handed: bool,
}

/// Whether records may be handed on.
#[derive(Debug, Clone)]
pub(super) enum Gate {
    /// To this client.
    Open(Arc<ProducerClient>),
    /// There is a client, but the fleet is fenced: what it has it may finish, it gets nothing new.
    Fenced(Arc<ProducerClient>),
    /// There is no client: at the start, and between two clusters.
    Closed,
}

impl Gate {
    pub(super) fn client(&self) -> Option<&Arc<ProducerClient>> {
        match self {
            Self::Open(client) | Self::Fenced(client) => Some(client),
            Self::Closed => None,
        }
    }
}

/// No client: generations count from 1.
const NO_GENERATION: u64 = 0;

#[derive(Debug)]
pub(super) struct SendLog {
    /// `None`: resolved, waits for its elders to be resolved too.
    entries: VecDeque<Option<Entry>>,
    /// Sequence of the front entry.
    first: u64,
    /// Sequence of the next entry to be handed to the present client.
    next: u64,
    /// Generation of the present client; reports of any other do not count.
    generation: u64,
    pub(super) gate: Gate,
    pub(super) closed: bool,
    unresolved: usize,
}

/// What came of handing records on.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Handed {
    /// Records handed on that an earlier client had had already.
    pub(super) resent: usize,
    /// There are more, and the client would take them.
    pub(super) more: bool,
}

impl SendLog {
    pub(super) fn new() -> Self {
        Self {
            entries: VecDeque::new(),
            first: 0,
            next: 0,
            generation: NO_GENERATION,
            gate: Gate::Closed,
            closed: false,
            unresolved: 0,
        }
    }

    /// Appends a record; its sequence.
    pub(super) fn push(
        &mut self,
        record: Record,
        completion: Completion,
        permits: (OwnedSemaphorePermit, OwnedSemaphorePermit),
    ) -> u64 {
        let sequence = self.end();
        self.entries.push_back(Some(Entry {
            record,
            completion: Some(completion),
            permits: Some(permits),
            was_handed: false,
        }));
        self.unresolved += 1;
        sequence
    }

    /// Sequence of the next record to be pushed.
    pub(super) fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// Sequence of the oldest unresolved record, or of the next one.
    pub(super) fn first_unresolved(&self) -> u64 {
        self.first
    }

    /// Sequence of the next record to be handed to the present client.
    pub(super) fn handed_up_to(&self) -> u64 {
        self.next
    }

    pub(super) fn unresolved(&self) -> usize {
        self.unresolved
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Cuts the present client off: its reports do not count any more and every unresolved record is to be handed
    /// on again. The client, for the reaper.
    pub(super) fn cut_off(&mut self) -> Option<Arc<ProducerClient>> {
        self.generation = NO_GENERATION;
        self.next = self.first;
        match std::mem::replace(&mut self.gate, Gate::Closed) {
            Gate::Open(client) | Gate::Fenced(client) => Some(client),
            Gate::Closed => None,
        }
    }

    /// Makes room for the client of `generation`: everything unresolved is to be handed to it.
    pub(super) fn install(&mut self, generation: u64) {
        self.generation = generation;
        self.next = self.first;
    }

    /// Hands up to `limit` records to the present client, in order. `hand` returns false if the client is full.
    pub(super) fn hand_on(
        &mut self,
        limit: usize,
        mut hand: impl FnMut(&ProducerClient, u64, &Record) -> Result<bool>,
    ) -> (Handed, Vec<(u64, Error)>) {
        let mut handed = Handed::default();
        let mut refused = Vec::new();
        let Gate::Open(client) = &self.gate else {
            return (handed, refused);
        };
        let client = Arc::clone(client);
        for _ in 0..limit {
            let Some(slot) = self.entries.get_mut((self.next - self.first) as usize) else {
                return (handed, refused);
            };
            if let Some(entry) = slot {
                match hand(&client, self.next, &entry.record) {
                    Ok(true) => {
                        handed.resent += usize::from(entry.was_handed);
                        entry.was_handed = true;
                    }
                    Ok(false) => return (handed, refused),
                    Err(error) => refused.push((self.next, error)),
                }
            }
            self.next += 1;
        }
        handed.more = self.next < self.end();
        (handed, refused)
    }

    /// Ends a record. False if it had ended before.
    pub(super) fn resolve(&mut self, sequence: u64, result: Result<Delivery>) -> bool {
        let Some(index) = sequence.checked_sub(self.first) else {
            return false;
        };
        let Some(entry) = self.entries.get_mut(index as usize).and_then(Option::take) else {
            return false;
        };
        self.unresolved -= 1;
        entry.finish(result);
        while let Some(None) = self.entries.front() {
            self.entries.pop_front();
            self.first += 1;
        }
        // Never behind the front: a record that was refused before it was handed on.
        self.next = self.next.max(self.first);
        true
    }

    /// Ends every record with [`Error::Closed`].
    pub(super) fn close(&mut self) {
        self.closed = true;
        self.first = self.end();
        self.next = self.first;
        self.unresolved = 0;
        for entry in self.entries.drain(..).flatten() {
            entry.finish(Err(Error::Closed));
        }
    }
}

impl Entry {
    fn finish(mut self, result: Result<Delivery>) {
        // Room first: who waits for the answer may send at once.
        self.permits = None;
        if let Some(completion) = self.completion.take() {
            // Nobody waits: the send was dropped or timed out.
            let _ = completion.send(result);
        }
    }
}
