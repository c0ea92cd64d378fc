//! What the producer's handles, its driver and its clients' callbacks share.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use standfast_discovery::{ClusterName, Epoch};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, TryAcquireError, oneshot, watch};
use uuid::Uuid;

use super::Overflow;
use super::delivery::{Ack, Clusters, DeliveryFuture};
use super::log::{Gate, Handed, Resolved, SendLog, Taken};
use super::partitioner::Rule;
use super::room::Room;
use crate::cache_line::OwnLine;
use crate::client_config::Properties;
use crate::error::{Error, Result};
use crate::event::{ClientName, FleetEvent};
use crate::ffi::Report;
use crate::fleet::FleetShared;
use crate::record::{Record, RecordId};
use crate::stats::add;

/// Records handed to librdkafka per hold of the lock by a send or a delivery report.
pub(super) const BURST: usize = 64;

/// What the application's handles, the driver and the clients' callbacks share.
#[derive(Debug)]
pub(crate) struct ProducerShared {
    pub(super) fleet: Arc<FleetShared>,
    pub(super) name: ClientName,
    pub(super) instance: Uuid,
    pub(super) properties: Properties,
    pub(super) rule: Rule,
    /// Admission, handing on and the swap of clients must see the same order: one lock, never held across an await.
    pub(super) log: OwnLine<Mutex<SendLog>>,
    pub(super) room: Room,
    pub(super) clusters: Arc<Clusters>,
    /// Room in the replay buffer, if none may go unprotected.
    pub(super) replay: Option<Arc<Semaphore>>,
    pub(super) replay_limit: usize,
    pub(super) overflow: Overflow,
    /// Records and bytes kept, as last counted.
    pub(super) kept: Mutex<(usize, usize)>,
    pub(super) epoch: AtomicU64,
    pub(super) generations: AtomicU64,
    pub(super) resolved: Notify,
    pub(super) flushers: AtomicUsize,
    /// The last generation that reported a fatal error, and the error.
    pub(super) broken: watch::Sender<(u64, String)>,
}

impl ProducerShared {
    pub(crate) fn properties(&self) -> &Properties {
        &self.properties
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, SendLog> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn id(&self, sequence: u64) -> RecordId {
        RecordId {
            producer: self.instance,
            sequence,
        }
    }

    pub(super) fn epoch(&self) -> Epoch {
        Epoch(self.epoch.load(Relaxed))
    }

    pub(super) fn next_generation(&self) -> u64 {
        self.generations.fetch_add(1, Relaxed) + 1
    }

    pub(super) fn permits_for(&self, record: &Record) -> Result<u32> {
        let bytes = record.size();
        let limit = match &self.replay {
            Some(_) => self.room.byte_limit().min(self.replay_limit),
            None => self.room.byte_limit(),
        };
        match u32::try_from(bytes) {
            Ok(permits) if bytes <= limit => Ok(permits),
            _ => Err(Error::RecordTooLarge { bytes, limit }),
        }
    }

    /// Room in the replay buffer, at once or not at all.
    pub(super) fn replay_room(&self, bytes: u32) -> Result<Option<OwnedSemaphorePermit>> {
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

    /// Waits for room for a record, in the order of the calls.
    pub(super) async fn take_room(&self, bytes: u32) -> Result<()> {
        let taken = self.room.take(bytes, || self.reclaim());
        taken.await.ok_or(Error::Closed)
    }

    pub(super) fn try_take_room(&self, bytes: u32) -> std::result::Result<(), TryAcquireError> {
        self.room.try_take(bytes, || self.reclaim())
    }

    fn reclaim(&self) {
        self.room.give_back_all(&mut self.lock().vacated);
    }

    pub(super) fn admit(&self, mut record: Record, room: Taken) -> Result<DeliveryFuture> {
        record.stamp_now();
        let (completion, answer) = oneshot::channel();
        let mut log = self.lock();
        if log.closed {
            return Err(Error::Closed);
        }
        let (sequence, topic) = log.push(record, completion, room);
        add(&self.fleet.counters.records_sent, 1);
        self.hand_on_locked(&mut log, BURST);
        let spent = log.replay.spent().pop();
        drop(log);
        drop(spent);
        let (id, clusters) = (self.id(sequence), Arc::clone(&self.clusters));
        Ok(DeliveryFuture::new(answer, id, topic, clusters))
    }

    pub(super) fn hand_on(&self, limit: usize) -> Handed {
        self.hand_on_locked(&mut self.lock(), limit)
    }

    pub(super) fn hand_on_locked(&self, log: &mut SendLog, limit: usize) -> Handed {
        let (handed, refused) = log.hand_on(limit, |client, sequence, record, wish, spare| {
            client.hand(self.id(sequence), record, wish, spare)
        });
        add(&self.fleet.counters.records_resent, handed.resent);
        add(&self.fleet.counters.records_replayed, handed.replayed);
        for (sequence, error) in refused {
            self.resolve_locked(log, sequence, Err(error), None);
        }
        handed
    }

    pub(super) fn resolve_locked(
        &self,
        log: &mut SendLog,
        sequence: u64,
        result: Result<Ack>,
        report: Option<Report>,
    ) {
        let counters = &self.fleet.counters;
        let refusal = result.as_ref().err().map(ToString::to_string);
        let resolved = log.resolve(sequence, result, report);
        self.room.give_back(&mut log.vacated);
        let counter = match (resolved, refusal) {
            (Resolved::Nothing, _) => return,
            (Resolved::Send, None) => &counters.records_acknowledged,
            (Resolved::Send, Some(_)) => &counters.records_refused,
            (Resolved::Replay, None) => &counters.waits_ended,
            (Resolved::Replay, Some(reason)) => {
                tracing::error!(
                    client = self.name.as_str(), id = %self.id(sequence), reason,
                    "a record that the lost cluster had acknowledged is refused by the active one"
                );
                add(&counters.replays_refused, 1);
                &counters.waits_ended
            }
        };
        add(counter, 1);
        if self.flushers.load(Relaxed) > 0 {
            self.resolved.notify_waiters();
        }
    }

    /// Looks after the kept records: lets old ones go, counts, tells.
    pub(super) fn keep_house(&self) {
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
    pub(super) fn delivered(
        &self,
        generation: u64,
        sequence: u64,
        result: Result<Ack>,
        report: Report,
    ) {
        let mut log = self.lock();
        if log.generation() != generation {
            if result.is_ok() {
                add(&self.fleet.counters.late_acknowledgements, 1);
            }
            return;
        }
        self.resolve_locked(&mut log, sequence, result, Some(report));
        self.hand_on_locked(&mut log, BURST);
        let surplus = log.replay.take_surplus();
        drop(log);
        drop(surplus);
    }

    /// The client of `generation` is of no use any more.
    pub(super) fn report_broken(&self, generation: u64, reason: &str) {
        if self.lock().generation() == generation {
            self.broken.send_replace((generation, reason.to_owned()));
        }
    }

    /// Waits until the present client is reported broken; why.
    pub(super) async fn broken(&self) -> String {
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

    pub(super) fn set_fenced(&self, fenced: bool) {
        let mut log = self.lock();
        log.gate = match (std::mem::replace(&mut log.gate, Gate::Closed), fenced) {
            (Gate::Open(client) | Gate::Fenced(client), true) => Gate::Fenced(client),
            (Gate::Open(client) | Gate::Fenced(client), false) => Gate::Open(client),
            (Gate::Closed, _) => Gate::Closed,
        };
    }

    /// Stops handing on and lets the present client finish what it has, for a bounded time.
    pub(super) async fn drain(&self, limit: Duration) {
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
    pub(super) async fn resolved_up_to(&self, end: u64) {
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

    pub(super) fn close(&self) {
        self.room.close();
        if let Some(replay) = &self.replay {
            replay.close();
        }
        let old = {
            let mut log = self.lock();
            let unresolved = log.unresolved();
            add(&self.fleet.counters.waits_ended, unresolved);
            let old = log.cut_off();
            log.close();
            old
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
