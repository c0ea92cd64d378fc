//! The producer's log: every record that waits for an acknowledgement, in the order in which it was given.
//!
//! Records are handed to the present client in this order and nowhere else. A flip sets the mark back to the oldest
//! unresolved record, so that records are resent in their order and ahead of new ones. Acknowledged records that the new
//! cluster does not have come back from [`Replay`], each at its old place in the order.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use super::client::{Hand, ProducerClient};
use super::delivery::{Ack, Completion};
use super::replay::{Limits, Place, Replay};
use super::room::Vacated;
use crate::error::{Error, Result};
use crate::ffi::{Lent, Report, SentHeaders};
use crate::record::Record;
use crate::warm::MAX_TOPICS;

/// One record and the one who waits for it.
#[derive(Debug)]
pub(super) struct Entry {
    record: Lent,
    completion: Completion,
    room: Taken,
    /// Handed to a client at least once.
    was_handed: bool,
    /// The partition that was chosen for it then, if it has no key to choose by.
    chosen: Option<i32>,
}

/// The room that a record takes in the producer's buffers.
#[derive(Debug)]
pub(super) struct Taken {
    /// Given back with the acknowledgement.
    pub(super) bytes: u32,
    /// In the replay buffer, if records must not go unprotected: given back when the record is safe.
    pub(super) replay: Option<OwnedSemaphorePermit>,
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
    /// Room of resolved records.
    pub(super) vacated: Vacated,
    unresolved: usize,
    pub(super) replay: Replay,
    /// Topics that were sent to, of which standby clients keep the metadata; at most [`MAX_TOPICS`].
    pub(super) topics: BTreeSet<Arc<str>>,
    /// One allocation of a topic's name for all its records.
    last_topic: Arc<str>,
    /// Of the records to be sent again, those below this sequence have been handed to the present client.
    replayed: u64,
}

/// What was ended by an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resolved {
    /// Nothing: it had ended before.
    Nothing,
    /// A send.
    Send,
    /// The repetition of a record that an earlier cluster had acknowledged.
    Replay,
}

/// What came of handing records on.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Handed {
    /// Records handed on that an earlier client had had already.
    pub(super) resent: usize,
    /// Of those, records that an earlier cluster had acknowledged.
    pub(super) replayed: usize,
    /// There are more, and the client would take them.
    pub(super) more: bool,
    /// There are more, and the client will take them in a moment: it is asking for a topic's partitions.
    pub(super) is_asking: bool,
}

impl Handed {
    fn stopped_by(self, hand: Hand) -> Self {
        Self {
            is_asking: hand == Hand::Asking,
            ..self
        }
    }
}

impl SendLog {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            entries: VecDeque::new(),
            first: 0,
            next: 0,
            generation: NO_GENERATION,
            gate: Gate::Closed,
            closed: false,
            vacated: Vacated::default(),
            unresolved: 0,
            replay: Replay::new(limits),
            topics: BTreeSet::new(),
            last_topic: Arc::default(),
            replayed: 0,
        }
    }

    /// Appends a record; its sequence and its topic's name.
    pub(super) fn push(
        &mut self,
        mut record: Record,
        completion: Completion,
        room: Taken,
    ) -> (u64, Arc<str>) {
        let sequence = self.end();
        if record.topic != self.last_topic {
            self.last_topic = match self.topics.get(&record.topic) {
                Some(known) => Arc::clone(known),
                None => Arc::clone(&record.topic),
            };
            if self.topics.len() < MAX_TOPICS {
                self.topics.insert(Arc::clone(&self.last_topic));
            }
        }
        if !Arc::ptr_eq(&record.topic, &self.last_topic) {
            record.topic = Arc::clone(&self.last_topic);
        }
        self.entries.push_back(Some(Entry {
            record: Lent::new(record),
            completion,
            room,
            was_handed: false,
            chosen: None,
        }));
        self.unresolved += 1;
        (sequence, Arc::clone(&self.last_topic))
    }

    /// Sequence of the next record to be pushed.
    pub(super) fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// Sequence of the oldest unresolved record, or of the next one.
    pub(super) fn first_unresolved(&self) -> u64 {
        let oldest = self.replay.waiting().first_key_value();
        oldest.map_or(self.first, |(sequence, _)| self.first.min(*sequence))
    }

    /// Sequence of the next record to be handed to the present client.
    pub(super) fn handed_up_to(&self) -> u64 {
        self.next
    }

    pub(super) fn unresolved(&self) -> usize {
        self.unresolved + self.replay.waiting().len()
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Cuts the present client off: its reports do not count any more and every unresolved record is to be handed
    /// on again. The client, for the reaper.
    pub(super) fn cut_off(&mut self) -> Option<Arc<ProducerClient>> {
        self.generation = NO_GENERATION;
        (self.next, self.replayed) = (self.first, 0);
        let client = match std::mem::replace(&mut self.gate, Gate::Closed) {
            Gate::Open(client) | Gate::Fenced(client) => client,
            Gate::Closed => return None,
        };
        let records = self
            .entries
            .iter_mut()
            .flatten()
            .map(|entry| &mut entry.record);
        records
            .chain(self.replay.waiting_records())
            .for_each(|record| client.leave_behind(record));
        Some(client)
    }

    /// Makes room for the client of `generation`: everything unresolved is to be handed to it.
    pub(super) fn install(&mut self, generation: u64) {
        self.generation = generation;
        (self.next, self.replayed) = (self.first, 0);
    }

    /// Hands up to `limit` records to the present client, in order. `hand` gets the partition that
    /// an earlier client was given for the record.
    pub(super) fn hand_on(
        &mut self,
        limit: usize,
        mut hand: impl FnMut(
            &ProducerClient,
            u64,
            &mut Lent,
            Option<i32>,
            Option<SentHeaders>,
        ) -> Result<Hand>,
    ) -> (Handed, Vec<(u64, Error)>) {
        let mut handed = Handed::default();
        let mut refused = Vec::new();
        let Gate::Open(client) = &self.gate else {
            return (handed, refused);
        };
        let client = Arc::clone(client);
        for _ in 0..limit {
            if let Some((sequence, record)) = self.replay.next_waiting(self.replayed..self.next) {
                match hand(&client, sequence, record, None, None) {
                    Ok(Hand::Taken(_)) => {
                        handed.resent += 1;
                        handed.replayed += 1;
                    }
                    Ok(hand) => return (handed.stopped_by(hand), refused),
                    Err(error) => refused.push((sequence, error)),
                }
                self.replayed = sequence + 1;
                continue;
            }
            let Some(slot) = self.entries.get_mut((self.next - self.first) as usize) else {
                return (handed, refused);
            };
            if let Some(entry) = slot {
                let spare = self.replay.spent().pop_headers();
                match hand(&client, self.next, &mut entry.record, entry.chosen, spare) {
                    Ok(Hand::Taken(chosen)) => {
                        entry.chosen = chosen.or(entry.chosen);
                        handed.resent += usize::from(entry.was_handed);
                        entry.was_handed = true;
                    }
                    Ok(hand) => return (handed.stopped_by(hand), refused),
                    Err(error) => refused.push((self.next, error)),
                }
            }
            self.next += 1;
        }
        let mut again = self.replay.waiting().range(self.replayed..);
        handed.more = self.next < self.end() || again.next().is_some();
        (handed, refused)
    }

    /// Ends a record; an acknowledged one is kept until a standby has it. `report`: the client's that it was handed to.
    pub(super) fn resolve(
        &mut self,
        sequence: u64,
        result: Result<Ack>,
        report: Option<Report>,
    ) -> Resolved {
        let place = result.as_ref().ok().map(|ack| Place {
            partition: ack.partition,
            offset: ack.offset,
            epoch: ack.epoch,
        });
        let index = sequence.checked_sub(self.first);
        let slot = index.and_then(|index| self.entries.get_mut(index as usize));
        let Some(entry) = slot.and_then(Option::take) else {
            let Some(waiting) = self.replay.take_waiting(sequence) else {
                return Resolved::Nothing;
            };
            let (record, headers) = waiting.record.end(report);
            self.replay.spent().push_headers(headers);
            if let (Some(place), Some(record)) = (place, record) {
                self.replay.keep(sequence, record, place, waiting.room);
            }
            return Resolved::Replay;
        };
        self.unresolved -= 1;
        self.vacated.add(entry.room.bytes);
        let replay_room = entry.room.replay;
        // Nobody waits: the send was dropped or timed out.
        let _ = entry.completion.send(result.map_err(Box::new));
        let (record, headers) = entry.record.end(report);
        self.replay.spent().push_headers(headers);
        if let (Some(place), Some(record)) = (place, record) {
            self.replay.keep(sequence, record, place, replay_room);
        }
        while let Some(None) = self.entries.front() {
            self.entries.pop_front();
            self.first += 1;
        }
        // Never behind the front: a record that was refused before it was handed on.
        self.next = self.next.max(self.first);
        Resolved::Send
    }

    /// Ends every record with [`Error::Closed`]. The client must have been cut off.
    pub(super) fn close(&mut self) {
        self.closed = true;
        self.first = self.end();
        self.next = self.first;
        self.unresolved = 0;
        self.replay.clear();
        for entry in self.entries.drain(..).flatten() {
            let _ = entry.completion.send(Err(Box::new(Error::Closed)));
        }
    }
}
