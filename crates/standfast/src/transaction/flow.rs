//! Where a transactional client stands: what its application and its worker see at the same moment.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use rdkafka::error::RDKafkaErrorCode;
use rdkafka::producer::BaseRecord;
use standfast_discovery::{ClusterName, Epoch};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::clients::Base;
use super::outputs::Outputs;
use crate::consumer::{Message, Partition, Window};
use crate::error::{Error, Result};
use crate::record::{Record, RecordId};
use crate::stats::{Counters, add};

/// Records and bytes read ahead of the application. librdkafka reads ahead on top of it.
const READ_AHEAD_RECORDS: usize = 2_000;
const READ_AHEAD_BYTES: usize = 16 * 1024 * 1024;

pub(super) type Key = (Arc<str>, i32);

/// What the worker is to do.
#[derive(Debug)]
pub(super) enum Order {
    Commit {
        serial: u64,
        reply: oneshot::Sender<Result<(), Abort>>,
    },
    Abort {
        serial: u64,
        reason: Reason,
        reply: Option<oneshot::Sender<()>>,
    },
}

/// Why a transaction was aborted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reason {
    Application,
    Flip,
    Fence,
    Rebalance,
    Kafka(String),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Application => "the application did not commit it",
            Self::Flip => "another cluster is active now",
            Self::Fence => "the fleet is fenced",
            Self::Rebalance => "the group gave partitions to another member",
            Self::Kafka(reason) => reason,
        })
    }
}

/// How a transaction ended that was not committed.
#[derive(Debug, Clone)]
pub(super) struct Abort {
    pub(super) serial: u64,
    pub(super) cluster: ClusterName,
    pub(super) epoch: Epoch,
    pub(super) reason: Reason,
    /// It was being committed.
    pub(super) outcome_unknown: bool,
    pub(super) by_application: bool,
}

impl Abort {
    pub(super) fn error(self) -> Error {
        Error::TransactionAborted {
            cluster: self.cluster,
            reason: self.reason.to_string(),
            outcome_unknown: self.outcome_unknown,
        }
    }
}

/// Something read ahead.
#[derive(Debug)]
pub(super) enum Item {
    Record(Message),
    /// The link's filler: moves the position, is not shown.
    Filler {
        key: Key,
        offset: i64,
    },
    Failure(Error),
}

/// One partition that is read.
#[derive(Debug)]
pub(super) struct Input {
    pub(super) partition: Arc<Partition>,
    /// What is committed: offset, and what was seen before it.
    committed: (i64, Window),
    /// What was handed out.
    next: (i64, Window),
}

impl Input {
    pub(super) fn new(partition: Arc<Partition>, offset: i64, seen: Window) -> Self {
        Self {
            partition,
            committed: (offset, seen.clone()),
            next: (offset, seen),
        }
    }
}

/// The generation that works.
#[derive(Clone)]
pub(super) struct Link {
    pub(super) generation: u64,
    pub(super) base: Arc<Base>,
    pub(super) orders: Sender<Order>,
    pub(super) cluster: ClusterName,
    pub(super) epoch: Epoch,
    pub(super) ended: CancellationToken,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("generation", &self.generation)
            .field("cluster", &self.cluster)
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

/// What became of handing a record over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    Yes,
    /// The client is full.
    Full,
    /// No transaction can be open now; there will be a change.
    NotOpen,
}

#[derive(Debug, Default)]
pub(super) struct Flow {
    link: Option<Link>,
    /// Numbers the transactions.
    serial: u64,
    /// Something was handed out or sent in the present one.
    has_content: bool,
    /// When the first record was sent in it.
    sent_at: Option<Instant>,
    /// It is being committed or aborted.
    is_ending: bool,
    is_committing: bool,
    pub(super) is_fenced: bool,
    pub(super) closed: Option<Error>,
    last_abort: Option<Abort>,
    queue: VecDeque<Item>,
    queued_bytes: usize,
    inputs: HashMap<Key, Input>,
    pub(super) outputs: Outputs,
}

impl Flow {
    /// Whether a transaction can begin.
    pub(super) fn is_ready(&self) -> Result<bool> {
        match &self.closed {
            Some(error) => Err(error.clone()),
            None => Ok(self.link.is_some() && !self.is_ending && !self.is_fenced),
        }
    }

    /// Whether the transaction still is the present one.
    pub(super) fn check(&self, bound: Option<u64>) -> Result<()> {
        match (&self.closed, bound) {
            (Some(error), _) => Err(error.clone()),
            (None, Some(serial)) if serial != self.serial => Err(self.aborted(serial)),
            _ => Ok(()),
        }
    }

    /// The error for a transaction that is not the present one any more.
    pub(super) fn aborted(&self, serial: u64) -> Error {
        if let Some(error) = &self.closed {
            return error.clone();
        }
        let known = self
            .last_abort
            .clone()
            .filter(|abort| abort.serial == serial);
        known.map_or(Error::Closed, Abort::error)
    }

    fn bind(&mut self, bound: &mut Option<u64>) {
        self.has_content = true;
        *bound = Some(self.serial);
    }

    /// The next record for the application.
    pub(super) fn take(
        &mut self,
        bound: &mut Option<u64>,
        counters: &Counters,
    ) -> Result<Option<Message>> {
        self.check(*bound)?;
        if !self.is_ready()? {
            return Ok(None);
        }
        while let Some(item) = self.queue.pop_front() {
            let message = match item {
                Item::Failure(error) => return Err(error),
                Item::Filler { key, offset } => {
                    if let Some(input) = self.inputs.get_mut(&key) {
                        input.next.0 = input.next.0.max(offset + 1);
                        add(&counters.filler_hidden, 1);
                    }
                    continue;
                }
                Item::Record(message) => message,
            };
            self.queued_bytes -= message.size();
            let Some(input) = self.inputs.get_mut(&message.key_of_partition()) else {
                continue;
            };
            if message.offset() < input.next.0 {
                continue;
            }
            input.next.0 = message.offset() + 1;
            if let Some(id) = message.id() {
                if input.next.1.has(id) {
                    add(&counters.records_repeated, 1);
                    continue;
                }
                input.next.1.note(id);
            }
            self.bind(bound);
            add(&counters.records_consumed, 1);
            return Ok(Some(message));
        }
        Ok(None)
    }

    /// Whether the record was handed out in this transaction.
    pub(super) fn has_read(&self, bound: Option<u64>, message: &Message) -> bool {
        let input = self.inputs.get(&message.key_of_partition());
        bound == Some(self.serial)
            && input
                .is_some_and(|input| (input.committed.0..input.next.0).contains(&message.offset()))
    }

    /// Hands a record to the present client; never blocks.
    pub(super) fn send(
        &mut self,
        bound: &mut Option<u64>,
        record: &Record,
        id: RecordId,
    ) -> Result<Sent> {
        self.check(*bound)?;
        if !self.is_ready()? {
            return Ok(Sent::NotOpen);
        }
        let Some(link) = &self.link else {
            return Ok(Sent::NotOpen);
        };
        let mut native =
            BaseRecord::<[u8], [u8]>::to(&record.topic).headers(record.kafka_headers(id));
        native.partition = record.partition;
        native.key = record.key.as_deref();
        native.payload = record.payload.as_deref();
        native.timestamp = record.timestamp_ms;
        let Err((error, _)) = link.base.send(native) else {
            self.sent_at.get_or_insert_with(Instant::now);
            self.outputs.note(&record.topic);
            self.bind(bound);
            return Ok(Sent::Yes);
        };
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::QueueFull) => Ok(Sent::Full),
            // The worker finds out and aborts or ends.
            Some(RDKafkaErrorCode::Fatal) => Ok(Sent::NotOpen),
            Some(RDKafkaErrorCode::State) => {
                self.bind(bound);
                let reason = Reason::Kafka("a record of it could not be stored".to_owned());
                let serial = self.serial;
                self.order(Order::Abort {
                    serial,
                    reason,
                    reply: None,
                });
                Ok(Sent::NotOpen)
            }
            _ => Err(Error::Refused {
                cluster: link.cluster.clone(),
                topic: record.topic.to_string(),
                reason: Box::new(error),
            }),
        }
    }

    /// Gives the worker an order; no transaction can be begun before it is done. A token that ends with the generation;
    /// `None` if there is none that could do it.
    pub(super) fn order(&mut self, order: Order) -> Option<CancellationToken> {
        let link = self.link.as_ref().filter(|_| !self.is_ending)?;
        let is_commit = matches!(order, Order::Commit { .. });
        link.orders.send(order).ok()?;
        (self.is_ending, self.is_committing) = (true, is_commit);
        Some(link.ended.clone())
    }

    /// The application does not want the transaction any more.
    pub(super) fn abandon(
        &mut self,
        bound: Option<u64>,
        reply: Option<oneshot::Sender<()>>,
    ) -> Option<CancellationToken> {
        if bound != Some(self.serial) {
            return None;
        }
        let (serial, reason) = (self.serial, Reason::Application);
        self.order(Order::Abort {
            serial,
            reason,
            reply,
        })
    }

    /// Aborts what is open; a commit that is on its way may end.
    pub(super) fn fence(&mut self) {
        if self.has_content {
            let (serial, reason) = (self.serial, Reason::Fence);
            self.order(Order::Abort {
                serial,
                reason,
                reply: None,
            });
        }
    }

    /// The number of the present transaction of this generation, if there is something in it.
    pub(super) fn content_of(&self, generation: u64) -> Option<u64> {
        (self.is_present(generation) && self.has_content).then_some(self.serial)
    }

    /// Whether the order still concerns the present transaction.
    pub(super) fn is_at(&self, generation: u64, serial: u64) -> bool {
        self.is_present(generation) && self.serial == serial
    }

    /// How the transaction ended before its order was carried out.
    pub(super) fn end_of(&self, serial: u64) -> Option<Abort> {
        self.last_abort
            .clone()
            .filter(|abort| abort.serial == serial)
    }

    /// How long ago the first record of the present transaction was sent.
    pub(super) fn sent_for(&self) -> Option<Duration> {
        self.sent_at.map(|at| at.elapsed())
    }

    /// A generation begins to work.
    pub(super) fn install(&mut self, link: Link) {
        self.link = Some(link);
        (self.is_ending, self.is_committing) = (false, false);
    }

    /// The cluster stays, the epoch is new.
    pub(super) fn set_epoch(&mut self, epoch: Epoch) {
        if let Some(link) = &mut self.link {
            link.epoch = epoch;
        }
    }

    pub(super) fn epoch(&self) -> Option<Epoch> {
        self.link.as_ref().map(|link| link.epoch)
    }

    pub(super) fn is_present(&self, generation: u64) -> bool {
        self.link
            .as_ref()
            .is_some_and(|link| link.generation == generation)
    }

    /// Ends the transaction without a commit: what was handed out since the last commit does not count.
    pub(super) fn abort(&mut self, reason: Reason, outcome_unknown: bool) -> Option<Abort> {
        for input in self.inputs.values_mut() {
            input.next = input.committed.clone();
        }
        self.clear_queue();
        let link = self.link.as_ref()?;
        let abort = Abort {
            serial: self.serial,
            cluster: link.cluster.clone(),
            epoch: link.epoch,
            by_application: reason == Reason::Application,
            reason,
            outcome_unknown,
        };
        let had_content = self.has_content;
        self.next_transaction();
        if !had_content {
            return None;
        }
        self.last_abort = Some(abort.clone());
        Some(abort)
    }

    fn next_transaction(&mut self) {
        self.serial += 1;
        self.has_content = false;
        self.is_committing = false;
        self.sent_at = None;
    }

    /// An order has been carried out.
    pub(super) fn end_order(&mut self) {
        (self.is_ending, self.is_committing) = (false, false);
    }

    /// The generation does not count any more.
    pub(super) fn end_generation(&mut self, reason: Reason) -> Option<Abort> {
        let abort = self.abort(reason, self.is_committing);
        if let Some(link) = self.link.take() {
            link.ended.cancel();
        }
        self.inputs.clear();
        self.end_order();
        abort
    }

    /// What the transaction is to commit: per partition the offset, and what was seen before it as text of at most `limit`
    /// bytes.
    pub(super) fn positions(&self, limit: usize) -> Vec<(Key, i64, String)> {
        let moved = self
            .inputs
            .iter()
            .filter(|(_, input)| input.next.0 != input.committed.0);
        moved
            .map(|(key, input)| (key.clone(), input.next.0, input.next.1.text(limit)))
            .collect()
    }

    /// The transaction is committed.
    pub(super) fn committed(&mut self) {
        for input in self
            .inputs
            .values_mut()
            .filter(|input| input.next.0 != input.committed.0)
        {
            input.committed = input.next.clone();
        }
        self.next_transaction();
    }

    /// Partitions that are read, each with the offset that is committed.
    pub(super) fn inputs(&self) -> impl Iterator<Item = (&Key, i64)> {
        self.inputs
            .iter()
            .map(|(key, input)| (key, input.committed.0))
    }

    pub(super) fn add_input(&mut self, input: Input) {
        let key = (Arc::clone(&input.partition.topic), input.partition.number);
        self.inputs.insert(key, input);
    }

    pub(super) fn clear_inputs(&mut self) {
        self.inputs.clear();
        self.clear_queue();
    }

    fn clear_queue(&mut self) {
        self.queue.clear();
        self.queued_bytes = 0;
    }

    /// Whether more may be read ahead.
    pub(super) fn has_room(&self) -> bool {
        self.queue.len() < READ_AHEAD_RECORDS && self.queued_bytes < READ_AHEAD_BYTES
    }

    pub(super) fn is_half_empty(&self) -> bool {
        self.queue.len() < READ_AHEAD_RECORDS / 2 && self.queued_bytes < READ_AHEAD_BYTES / 2
    }

    /// Puts what was read at the end of the queue.
    pub(super) fn push(&mut self, items: &mut Vec<Item>) {
        for item in items.drain(..) {
            if let Item::Record(message) = &item {
                self.queued_bytes += message.size();
            }
            self.queue.push_back(item);
        }
    }
}
