//! A producer that follows the active cluster.

mod builder;
mod client;
mod driver;
mod log;
pub(crate) mod partitioner;
mod replay;
mod spent;

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use standfast_discovery::{ClusterName, Epoch};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, TryAcquireError, oneshot, watch};
use tokio_util::sync::DropGuard;
use uuid::Uuid;

pub use self::builder::{DEFAULT_BUFFER_BYTES, DEFAULT_BUFFER_RECORDS, ProducerBuilder};
use self::log::{Gate, Handed, Resolved, Room, SendLog};
pub use self::partitioner::Partitioner;
use self::partitioner::Rule;
pub use self::replay::{DEFAULT_REPLAY_AGE, DEFAULT_REPLAY_BYTES, Overflow};
use crate::client_config::Properties;
use crate::error::{Error, Result};
use crate::event::{ClientName, FleetEvent};
use crate::ffi::SentHeaders;
use crate::fleet::FleetShared;
use crate::record::{Delivery, Record, RecordId};
use crate::stats::add;

/// Records handed to librdkafka per hold of the lock by a send or a delivery report.
const BURST: usize = 64;

/// A producer that follows the active cluster. Cheap to clone; closed with the last clone.
///
/// A send resolves when the cluster that is active *now* has acknowledged the record. What is unacknowledged when
/// the active cluster changes is sent to the new one, in the order in which it was given, ahead of new records. The
/// order per key and per partition therefore holds across a failover. A record that the old cluster had stored without its
/// acknowledgement getting through may stand in the log twice; both have the same [`RecordId`], and the wrapper's consumers
/// drop the second.
///
/// **Nothing is lost with a cluster** as long as the producer lives: an acknowledged record is kept until every other cluster of
/// the fleet is seen to hold it ([`replay_bytes`](ProducerBuilder::replay_bytes)). After a flip, those that the new cluster
/// does not hold are sent again, to the same partition, in their order and ahead of new ones: where the handoff names the
/// partition, all at or above its offset, else all that the cluster was not seen to hold while it was a standby. After a planned
/// switchover that is none. To see what a standby holds, the producer's credentials need DESCRIBE and READ on the topic
/// there; without them nothing is let go before the bound is reached.
///
/// While the fleet is fenced (planned switchover) sends wait.
///
/// ```
/// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/mock_fleet.rs"));
/// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let (fleet, _servers) = mock_fleet().await?;
/// use std::time::Duration;
/// use standfast::Record;
///
/// let producer = fleet.producer().property("linger.ms", "5").build().await?;
/// let first = producer.send(Record::to("orders").key("customer-7").payload("1")).await?; // the active cluster has it
/// assert_eq!((first.partition, first.offset), (0, 0));
///
/// // Many in flight: they wait for room, and their order is that of the log.
/// let mut deliveries = Vec::new();
/// for order in 2..=100 {
///     deliveries.push(producer.enqueue(Record::to("orders").payload(order.to_string())).await?);
/// }
/// producer.flush(Duration::from_secs(30)).await?;
/// for (delivery, offset) in deliveries.into_iter().zip(1..) {
///     assert_eq!(delivery.await?.offset, offset);
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct FailoverProducer {
    shared: Arc<ProducerShared>,
    _shutdown: Arc<DropGuard>,
}

impl FailoverProducer {
    /// Sends a record and waits for the acknowledgement; first for room in the buffer, if it is full.
    ///
    /// There is no time limit: put `tokio::time::timeout` around it if you need one. A record whose send is dropped
    /// after it got into the buffer is sent all the same.
    ///
    /// # Errors
    /// [`Error::Refused`] if the cluster will never take this record, [`Error::RecordTooLarge`], [`Error::Closed`].
    pub async fn send(&self, record: Record) -> Result<Delivery> {
        self.enqueue(record).await?.await
    }

    /// Puts a record into the buffer, waiting for room, and returns the future of its acknowledgement. The order of
    /// `enqueue` calls is the order in the log.
    ///
    /// # Errors
    /// [`Error::RecordTooLarge`], [`Error::Closed`].
    pub async fn enqueue(&self, record: Record) -> Result<DeliveryFuture> {
        let bytes = self.shared.permits_for(&record)?;
        let closed = |_| Error::Closed;
        // In the same order as the records: waiting for the one must not let others overtake in the next.
        let replay = match (&self.shared.replay, self.shared.overflow) {
            (Some(replay), Overflow::Block) => Some(
                Arc::clone(replay)
                    .acquire_many_owned(bytes)
                    .await
                    .map_err(closed)?,
            ),
            (Some(_), _) => self.shared.replay_room(bytes)?,
            (None, _) => None,
        };
        let count = Arc::clone(&self.shared.records)
            .acquire_owned()
            .await
            .map_err(closed)?;
        let room = Arc::clone(&self.shared.bytes)
            .acquire_many_owned(bytes)
            .await
            .map_err(closed)?;
        let room = Room {
            _records: count,
            _bytes: room,
            replay,
        };
        self.shared.admit(record, room)
    }

    /// Puts a record into the buffer if there is room.
    ///
    /// # Errors
    /// [`Error::BufferFull`], [`Error::Unprotected`], [`Error::RecordTooLarge`], [`Error::Closed`].
    pub fn try_send(&self, record: Record) -> Result<DeliveryFuture> {
        let bytes = self.shared.permits_for(&record)?;
        let replay = self.shared.replay_room(bytes)?;
        let refused = |error| match error {
            TryAcquireError::Closed => Error::Closed,
            TryAcquireError::NoPermits => Error::BufferFull {
                unresolved: self.unresolved(),
            },
        };
        let count = Arc::clone(&self.shared.records)
            .try_acquire_owned()
            .map_err(refused)?;
        let room = Arc::clone(&self.shared.bytes)
            .try_acquire_many_owned(bytes)
            .map_err(refused)?;
        let room = Room {
            _records: count,
            _bytes: room,
            replay,
        };
        self.shared.admit(record, room)
    }

    /// Waits until every record given so far is acknowledged or refused.
    ///
    /// # Errors
    /// [`Error::FlushTimeout`]; the records are kept and sent on.
    pub async fn flush(&self, timeout: Duration) -> Result<()> {
        let end = self.shared.lock().end();
        if tokio::time::timeout(timeout, self.shared.resolved_up_to(end))
            .await
            .is_ok()
        {
            return Ok(());
        }
        Err(Error::FlushTimeout {
            unresolved: self.unresolved(),
            waited: timeout,
        })
    }

    /// Records that wait for an acknowledgement.
    pub fn unresolved(&self) -> usize {
        self.shared.lock().unresolved()
    }

    /// The id of this producer instance: the first half of its records' [`RecordId`]s.
    pub fn instance(&self) -> Uuid {
        self.shared.instance
    }
}

/// The acknowledgement of a record, to come. Dropping it does not take the record back.
#[derive(Debug)]
pub struct DeliveryFuture {
    answer: oneshot::Receiver<Result<Delivery>>,
    id: RecordId,
}

impl DeliveryFuture {
    /// The record's id.
    pub fn id(&self) -> RecordId {
        self.id
    }
}

impl Future for DeliveryFuture {
    type Output = Result<Delivery>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.answer)
            .poll(cx)
            .map(|answer| answer.unwrap_or(Err(Error::Closed)))
    }
}

/// What the application's handles, the driver and the clients' callbacks share.
#[derive(Debug)]
pub(crate) struct ProducerShared {
    fleet: Arc<FleetShared>,
    name: ClientName,
    instance: Uuid,
    properties: Properties,
    rule: Rule,
    /// Admission, handing on and the swap of clients must see the same order: one lock, never held across an await.
    log: Mutex<SendLog>,
    records: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    byte_limit: usize,
    /// Room in the replay buffer, if none may go unprotected.
    replay: Option<Arc<Semaphore>>,
    replay_limit: usize,
    overflow: Overflow,
    /// Records and bytes kept, as last counted.
    kept: Mutex<(usize, usize)>,
    epoch: AtomicU64,
    generations: AtomicU64,
    resolved: Notify,
    flushers: AtomicUsize,
    /// The last generation that reported a fatal error, and the error.
    broken: watch::Sender<(u64, String)>,
}

impl ProducerShared {
    pub(crate) fn properties(&self) -> &Properties {
        &self.properties
    }

    fn lock(&self) -> MutexGuard<'_, SendLog> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn id(&self, sequence: u64) -> RecordId {
        RecordId {
            producer: self.instance,
            sequence,
        }
    }

    fn epoch(&self) -> Epoch {
        Epoch(self.epoch.load(Relaxed))
    }

    fn next_generation(&self) -> u64 {
        self.generations.fetch_add(1, Relaxed) + 1
    }

    fn permits_for(&self, record: &Record) -> Result<u32> {
        let bytes = record.size();
        let limit = match &self.replay {
            Some(_) => self.byte_limit.min(self.replay_limit),
            None => self.byte_limit,
        };
        match u32::try_from(bytes) {
            Ok(permits) if bytes <= limit => Ok(permits),
            _ => Err(Error::RecordTooLarge { bytes, limit }),
        }
    }

    /// Room in the replay buffer, at once or not at all.
    fn replay_room(&self, bytes: u32) -> Result<Option<OwnedSemaphorePermit>> {
        let Some(replay) = &self.replay else {
            return Ok(None);
        };
        match Arc::clone(replay).try_acquire_many_owned(bytes) {
            Ok(room) => Ok(Some(room)),
            Err(TryAcquireError::Closed) => Err(Error::Closed),
            Err(TryAcquireError::NoPermits) => Err(Error::Unprotected {
                kept_bytes: self.replay_limit - replay.available_permits(),
                limit: self.replay_limit,
            }),
        }
    }

    fn admit(&self, mut record: Record, room: Room) -> Result<DeliveryFuture> {
        record.stamp_now();
        let (completion, answer) = oneshot::channel();
        let mut log = self.lock();
        if log.closed {
            return Err(Error::Closed);
        }
        let sequence = log.push(record, completion, room);
        add(&self.fleet.counters.records_sent, 1);
        add(&self.fleet.counters.records_unresolved, 1);
        self.hand_on_locked(&mut log, BURST);
        let spent = log.replay.spent().pop();
        drop(log);
        drop(spent);
        Ok(DeliveryFuture {
            answer,
            id: self.id(sequence),
        })
    }

    fn hand_on(&self, limit: usize) -> Handed {
        self.hand_on_locked(&mut self.lock(), limit)
    }

    fn hand_on_locked(&self, log: &mut SendLog, limit: usize) -> Handed {
        let (handed, refused) = log.hand_on(limit, |client, sequence, record, wish| {
            client.hand(self.id(sequence), record, wish)
        });
        add(&self.fleet.counters.records_resent, handed.resent);
        add(&self.fleet.counters.records_replayed, handed.replayed);
        for (sequence, error) in refused {
            self.resolve_locked(log, sequence, Err(error));
        }
        handed
    }

    fn resolve_locked(&self, log: &mut SendLog, sequence: u64, result: Result<Delivery>) {
        let counters = &self.fleet.counters;
        let refusal = result.as_ref().err().map(ToString::to_string);
        let counter = match (log.resolve(sequence, result), refusal) {
            (Resolved::Nothing, _) => return,
            (Resolved::Send, None) => Some(&counters.records_acknowledged),
            (Resolved::Send, Some(_)) => Some(&counters.records_refused),
            (Resolved::Replay, None) => None,
            (Resolved::Replay, Some(reason)) => {
                tracing::error!(
                    client = self.name.as_str(), id = %self.id(sequence), reason,
                    "a record that the lost cluster had acknowledged is refused by the active one"
                );
                Some(&counters.replays_refused)
            }
        };
        if let Some(counter) = counter {
            add(counter, 1);
        }
        counters.records_unresolved.fetch_sub(1, Relaxed);
        if self.flushers.load(Relaxed) > 0 {
            self.resolved.notify_waiters();
        }
    }

    /// Looks after the kept records: lets old ones go, counts, tells.
    fn keep_house(&self) {
        let (held, let_go, spent) = {
            let replay = &mut self.lock().replay;
            replay.sweep(Instant::now());
            let spent = (replay.take_surplus(), replay.spent().take_idle());
            (replay.held(), replay.take_let_go(), spent)
        };
        drop(spent);
        let counters = &self.fleet.counters;
        {
            let mut known = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            let before = std::mem::replace(&mut *known, held);
            for (gauge, now, before) in [
                (&counters.records_kept, held.0, before.0),
                (&counters.bytes_kept, held.1, before.1),
            ] {
                add(gauge, now);
                gauge.fetch_sub(before as u64, Relaxed);
            }
        }
        if let_go > 0 {
            counters.records_unprotected.fetch_add(let_go, Relaxed);
            tracing::warn!(
                client = self.name.as_str(),
                records = let_go,
                "acknowledged records are no longer protected: no standby was seen to hold them in time"
            );
            self.fleet.emit(FleetEvent::Unprotected {
                client: self.name.clone(),
                records: let_go,
            });
        }
    }

    /// Partitions of which records wait for `standby` to hold them.
    pub(crate) fn open_partitions(&self, standby: &ClusterName) -> Vec<(String, i32)> {
        let log = self.lock();
        let open = log.replay.open(standby).into_iter();
        open.map(|(topic, partition)| (topic.to_owned(), partition))
            .collect()
    }

    /// A kept record below `end`, for a comparison with what stands there on a standby.
    pub(crate) fn sample(&self, topic: &str, partition: i32, end: i64) -> Option<(i64, RecordId)> {
        let (offset, sequence) = self.lock().replay.sample(topic, partition, end)?;
        Some((offset, self.id(sequence)))
    }

    /// A standby holds these partitions up to these offsets.
    pub(crate) fn note_ends(
        &self,
        flip: Instant,
        standby: &ClusterName,
        ends: &[(String, i32, i64)],
    ) {
        {
            let mut log = self.lock();
            for (topic, partition, end) in ends {
                log.replay.note_end(flip, standby, topic, *partition, *end);
            }
        }
        self.keep_house();
    }

    /// A delivery report of the client of `generation`.
    fn delivered(
        &self,
        generation: u64,
        sequence: u64,
        result: Result<Delivery>,
        headers: Option<SentHeaders>,
    ) {
        let mut log = self.lock();
        if log.generation() != generation {
            if result.is_ok() {
                add(&self.fleet.counters.late_acknowledgements, 1);
            }
            return;
        }
        self.resolve_locked(&mut log, sequence, result);
        self.hand_on_locked(&mut log, BURST);
        if let Some(headers) = headers {
            log.replay.spent().push_headers(headers);
        }
        let surplus = log.replay.take_surplus();
        drop(log);
        drop(surplus);
    }

    /// The client of `generation` is of no use any more.
    fn report_broken(&self, generation: u64, reason: &str) {
        if self.lock().generation() == generation {
            self.broken.send_replace((generation, reason.to_owned()));
        }
    }

    /// Waits until the present client is reported broken; why.
    async fn broken(&self) -> String {
        let mut broken = self.broken.subscribe();
        loop {
            let (generation, reason) = broken.borrow_and_update().clone();
            if generation != 0 && generation == self.lock().generation() {
                return reason;
            }
            if broken.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    fn set_fenced(&self, fenced: bool) {
        let mut log = self.lock();
        log.gate = match (std::mem::replace(&mut log.gate, Gate::Closed), fenced) {
            (Gate::Open(client) | Gate::Fenced(client), true) => Gate::Fenced(client),
            (Gate::Open(client) | Gate::Fenced(client), false) => Gate::Open(client),
            (Gate::Closed, _) => Gate::Closed,
        };
    }

    /// Stops handing on and lets the present client finish what it has, for a bounded time.
    async fn drain(&self, limit: Duration) {
        self.set_fenced(true);
        let handed = self.lock().handed_up_to();
        if tokio::time::timeout(limit, self.resolved_up_to(handed))
            .await
            .is_err()
        {
            tracing::warn!(
                client = self.name.as_str(),
                ?limit,
                "old Kafka client did not finish in time, its records are sent again"
            );
        }
    }

    /// Waits until every record before `end` is resolved.
    async fn resolved_up_to(&self, end: u64) {
        self.flushers.fetch_add(1, Relaxed);
        let _leave = Flusher(&self.flushers);
        loop {
            let mut progress = std::pin::pin!(self.resolved.notified());
            // Registered before the look, so that no progress is missed.
            progress.as_mut().enable();
            if self.lock().first_unresolved() >= end {
                return;
            }
            progress.await;
        }
    }

    fn close(&self) {
        self.records.close();
        self.bytes.close();
        if let Some(replay) = &self.replay {
            replay.close();
        }
        let old = {
            let mut log = self.lock();
            let unresolved = log.unresolved() as u64;
            self.fleet
                .counters
                .records_unresolved
                .fetch_sub(unresolved, Relaxed);
            log.close();
            log.cut_off()
        };
        self.keep_house();
        self.resolved.notify_waiters();
        if let Some(client) = old {
            client.retire(self);
        }
    }
}

impl Drop for ProducerShared {
    fn drop(&mut self) {
        // The runtime may have been dropped under the driver.
        self.close();
    }
}

struct Flusher<'a>(&'a AtomicUsize);

impl Drop for Flusher<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests;
