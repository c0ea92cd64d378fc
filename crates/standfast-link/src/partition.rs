//! One partition of the mirror as a state machine without input or output: what was fetched, what is in flight, what was acknowledged.
//!
//! The log is the state. Whatever casts doubt on the position ends in [`Partition::reset`], which forgets everything; start-up then reads the
//! position from the destination again and compares it with the source.

mod sent;
mod verdict;

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use standfast_wire::batch::RawBatch;

pub(crate) use standfast_wire::TopicPartition as PartitionId;

use crate::budget::Permit;
use crate::classify::{self, Kind};
use crate::description::{MirrorTopicError, PartitionState};
use crate::join::{self, JOINED_BYTES, QUEUED_MIN};
use crate::numbering::Numbering;
use crate::options::MAX_IN_FLIGHT;
use crate::oversize::SOLO_BYTES;
use crate::startup::Started;
use crate::status::PartitionStatus;
pub(crate) use sent::{Sent, ToSend};
use verdict::End;
pub(crate) use verdict::{Doubt, Failure, Side, Verdict};

/// After so long without an acknowledgement only one batch is sent, until it is acknowledged.
///
/// A broker that holds no state of our producer id on the partition (first batch ever, or expired: `producer.id.expiration.ms`) accepts *any* first
/// sequence number. Were two batches in flight then and the first refused, the second would be appended at the first one's offset.
const PIPELINE_AFTER_ACK: Duration = Duration::from_secs(30);

/// Damaged batches in a row until the partition is given up.
const MAX_DAMAGED: u32 = 5;

#[derive(Debug)]
struct Queued {
    batch: RawBatch,
    permit: Rc<Permit>,
}

/// Whether fetching is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hold {
    No,
    /// The destination is slow on this partition: until the next acknowledgement.
    Stalled,
    /// A stop is under way.
    Stopping,
}

/// One partition of the mirror.
#[derive(Debug)]
pub(crate) struct Partition {
    pub(crate) id: PartitionId,
    pub(crate) status: Arc<PartitionStatus>,
    generation: u32,
    running: bool,
    producer_id: i64,
    numbering: Numbering,
    next_fetch: i64,
    /// The source's log start: it can lie inside the first batch, which is answered whole to a fetch from there, but not to one from its base offset.
    floor: i64,
    position: i64,
    queue: VecDeque<Queued>,
    queued_bytes: usize,
    in_flight: VecDeque<Sent>,
    last_ack: Option<Instant>,
    end: Option<End>,
    held: Hold,
    damaged: u32,
    /// The destination takes no joined batches: its limit is too low.
    never_join: bool,
    /// Starts in a row without an acknowledged batch or a quiet time; sets the backoff.
    pub(crate) attempts: u32,
}

impl Partition {
    pub(crate) fn new(id: PartitionId, status: Arc<PartitionStatus>) -> Self {
        Self {
            id,
            status,
            generation: 0,
            running: false,
            producer_id: -1,
            numbering: Numbering::default(),
            next_fetch: 0,
            floor: 0,
            position: 0,
            queue: VecDeque::new(),
            queued_bytes: 0,
            in_flight: VecDeque::new(),
            last_ack: None,
            end: None,
            held: Hold::No,
            damaged: 0,
            never_join: false,
            attempts: 0,
        }
    }

    pub(crate) fn generation(&self) -> u32 {
        self.generation
    }

    pub(crate) fn is_running(&self) -> bool {
        self.running
    }

    /// Start-up found both logs equal up to `position`.
    pub(crate) fn run_from(&mut self, started: &Started) {
        let position = started.position;
        self.floor = started.source_start;
        self.running = true;
        self.producer_id = started.producer_id;
        self.numbering = started.numbering;
        (self.position, self.next_fetch) = (position, position);
        self.last_ack = None;
        self.status.set_next_fetch(position);
        self.status.set_position(position);
        self.status.enter(PartitionState::Active, None);
    }

    /// Forgets what is queued and in flight; the memory is free at once. Answers that still arrive are ignored.
    pub(crate) fn reset(&mut self) {
        self.running = false;
        self.generation = self.generation.wrapping_add(1);
        self.queue.clear();
        self.queued_bytes = 0;
        self.in_flight.clear();
        self.end = None;
        if self.held == Hold::Stalled {
            self.held = Hold::No;
        }
    }

    /// Gives the memory of the queue to other partitions; what was dropped is fetched again after the next acknowledgement.
    pub(crate) fn shed(&mut self) {
        if self.held == Hold::No && !self.in_flight.is_empty() {
            self.held = Hold::Stalled;
            self.drop_queue();
        }
    }

    /// Sends and fetches nothing more; what is in flight is still answered.
    pub(crate) fn stop(&mut self) {
        self.held = Hold::Stopping;
        self.drop_queue();
    }

    /// Takes back a stop; start-up comes next.
    pub(crate) fn resume(&mut self) {
        self.held = Hold::No;
        (self.attempts, self.damaged) = (0, 0);
    }

    fn drop_queue(&mut self) {
        self.queue.clear();
        self.queued_bytes = 0;
        self.end = None;
        self.next_fetch = self
            .in_flight
            .back()
            .map_or(self.position, |sent| sent.next_offset);
        self.status.set_next_fetch(self.next_fetch);
    }

    /// The offset to fetch from, if there is room for more.
    pub(crate) fn wants(&self, queue_max_bytes: usize) -> Option<i64> {
        (self.fetches() && self.queued_bytes < queue_max_bytes)
            .then_some(self.next_fetch.max(self.floor))
    }

    /// Whether it would fetch if there were room.
    pub(crate) fn fetches(&self) -> bool {
        self.running && self.end.is_none() && self.held == Hold::No
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Takes over the batches of the answer to a fetch from `asked`, in order, up to the first that cannot be copied as it is.
    pub(crate) fn fetched(
        &mut self,
        asked: i64,
        batches: impl Iterator<Item = Result<RawBatch, standfast_wire::batch::BatchError>>,
        permit: &Rc<Permit>,
    ) -> Verdict {
        if !self.fetches() || asked != self.next_fetch.max(self.floor) {
            // Asked for before the queue was dropped; it is fetched again.
            return Verdict::GoOn;
        }
        for batch in batches {
            let batch = match batch {
                Ok(batch) => batch,
                Err(error) => match classify::unreadable(&error) {
                    Some(failure) => return self.end_with(End::Fail(failure)),
                    None => return self.damaged(&error),
                },
            };
            if batch.header.next_offset() <= self.next_fetch {
                continue;
            }
            match classify::admit(&batch.header, self.next_fetch) {
                Ok(Kind::Plain) if batch.bytes.len() > SOLO_BYTES => {
                    return self.end_with(End::Slow);
                }
                Ok(Kind::Plain) => {}
                Ok(Kind::Hole(_)) => return self.end_with(End::Slow),
                Err(failure) => return self.end_with(End::Fail(failure)),
            }
            self.next_fetch = batch.header.next_offset();
            self.queued_bytes += batch.bytes.len();
            self.queue.push_back(Queued {
                batch,
                permit: Rc::clone(permit),
            });
        }
        self.status.set_next_fetch(self.next_fetch);
        Verdict::GoOn
    }

    /// The source holds nothing from `asked` up to its end at `source_end`: offsets are missing at the log's end (compaction).
    pub(crate) fn hollow(&self, asked: i64, source_end: i64) -> Verdict {
        if self.fetches() && self.idle_at() == Some(asked) && source_end > asked {
            return Verdict::Slow;
        }
        Verdict::GoOn
    }

    /// A batch whose CRC is wrong: another fetch may heal it (the source's leader may change), else the partition is given up.
    pub(crate) fn damaged(&mut self, error: &standfast_wire::batch::BatchError) -> Verdict {
        self.damaged += 1;
        if self.damaged > MAX_DAMAGED {
            return Verdict::Fail(Failure::new(
                MirrorTopicError::Unknown,
                format!("source: {error}; fetched {MAX_DAMAGED} times with the same result"),
            ));
        }
        Verdict::StartAgain(Doubt::source(error.to_string()))
    }

    /// What was fetched before is still mirrored; then the partition ends.
    fn end_with(&mut self, end: End) -> Verdict {
        self.status.set_next_fetch(self.next_fetch);
        if self.queue.is_empty() && self.in_flight.is_empty() {
            return end.into();
        }
        self.end = Some(end);
        Verdict::GoOn
    }

    /// Whether a batch may be sent now.
    pub(crate) fn is_ready(&self, max_in_flight: usize) -> bool {
        let pipeline = self
            .last_ack
            .is_some_and(|at| at.elapsed() < PIPELINE_AFTER_ACK);
        let limit = if pipeline {
            max_in_flight.min(MAX_IN_FLIGHT)
        } else {
            1
        };
        self.running && !self.queue.is_empty() && self.in_flight.len() < limit
    }

    /// Bytes that would be sent next, at most.
    pub(crate) fn next_len(&self, join: bool) -> usize {
        let front = self.queue.front().map_or(0, |q| q.batch.bytes.len());
        if self.may_join(join) {
            front.max(JOINED_BYTES.min(self.queued_bytes))
        } else {
            front
        }
    }

    fn may_join(&self, join: bool) -> bool {
        join && !self.never_join && self.queue.len() >= QUEUED_MIN
    }

    /// Joined batches were refused for their size: from now on every batch is copied as it is.
    pub(crate) fn join_no_more(&mut self) {
        self.never_join = true;
    }

    /// Takes the next batch; it counts as in flight from here. With `join`, tiny ones that wait are taken together.
    pub(crate) fn take(&mut self, join: bool) -> Option<ToSend> {
        let joined = self
            .may_join(join)
            .then(|| join::join(self.queue.iter().map(|q| &q.batch)))
            .flatten();
        let (mut bytes, mut last) = (0, None);
        for _ in 0..joined.as_ref().map_or(1, |(_, count)| *count) {
            let taken = self.queue.pop_front()?;
            bytes += taken.batch.bytes.len();
            last = Some(taken);
        }
        self.queued_bytes = self.queued_bytes.saturating_sub(bytes);
        // The joined bytes are a copy of their own, bounded by the size of a request; the frame of the last part stands for them.
        let Queued { batch, permit } = last?;
        let is_joined = joined.is_some();
        let batch = joined.map_or(batch, |(joined, _)| joined);
        let header = &batch.header;
        let sent = Sent {
            generation: self.generation,
            base_offset: header.base_offset,
            next_offset: header.next_offset(),
            bytes: bytes as u64,
            max_timestamp: header.max_timestamp,
            joined: is_joined,
        };
        let stamp = self.numbering.stamp(self.producer_id, header.base_offset);
        self.in_flight.push_back(sent);
        Some(ToSend {
            batch,
            stamp,
            sent,
            permit,
        })
    }

    /// The destination's answer for a batch of this generation.
    pub(crate) fn acknowledged(
        &mut self,
        sent: &Sent,
        base_offset: i64,
        log_append_time: i64,
    ) -> Verdict {
        if self.in_flight.pop_front() != Some(*sent) {
            return Verdict::StartAgain(Doubt::destination(format!(
                "the answer for offset {} came out of order",
                sent.base_offset
            )));
        }
        if base_offset != sent.base_offset {
            return Verdict::Fail(Failure::new(
                MirrorTopicError::Diverged,
                format!(
                    "DIVERGED: the source's batch at offset {} was appended at offset {base_offset} on the destination: something else wrote into the mirror topic; nothing more is written",
                    sent.base_offset
                ),
            ));
        }
        // A repeat is answered with the timestamp of the batch that is there.
        if log_append_time != -1 && log_append_time != sent.max_timestamp {
            return Verdict::Fail(Failure::new(
                MirrorTopicError::DestinationRefused,
                format!(
                    "offset {base_offset}: the destination replaces timestamps (message.timestamp.type=LogAppendTime); set CreateTime on the mirror topic"
                ),
            ));
        }
        self.last_ack = Some(Instant::now());
        self.attempts = 0;
        self.damaged = 0;
        self.position = sent.next_offset;
        if self.held == Hold::Stalled {
            self.held = Hold::No;
        }
        self.status.mirrored(
            sent.bytes,
            (sent.next_offset - sent.base_offset).unsigned_abs(),
            sent.max_timestamp,
        );
        self.status.set_position(sent.next_offset);
        if self.queue.is_empty()
            && self.in_flight.is_empty()
            && let Some(end) = self.end.take()
        {
            return end.into();
        }
        Verdict::GoOn
    }

    /// Whether all that was fetched is acknowledged, and up to where.
    pub(crate) fn idle_at(&self) -> Option<i64> {
        (self.running && self.queue.is_empty() && self.in_flight.is_empty())
            .then_some(self.position)
    }
}

#[cfg(test)]
mod tests {
    use bytes::{BufMut, Bytes, BytesMut};
    use standfast_wire::batch::BatchError;

    use super::*;
    use crate::budget::Budget;

    fn batch(base: i64, count: i32, attributes: i16) -> Result<RawBatch, BatchError> {
        let mut b = BytesMut::new();
        b.put_i64(base);
        b.put_i32(49);
        b.put_i32(3);
        b.put_i8(2);
        b.put_u32(0);
        b.put_i16(attributes);
        b.put_i32(count - 1);
        b.put_slice(&[0; 16]);
        b.put_slice(&[0xff; 14]);
        b.put_i32(count);
        RawBatch::new(Bytes::from(b))
    }

    async fn permit() -> Rc<Permit> {
        Rc::new(Budget::new(1 << 20).reserve(1).await)
    }

    fn started(position: i64) -> Started {
        Started {
            position,
            source_start: 0,
            source_end: 0,
            source_leader: standfast_wire::BrokerId(1),
            destination_leader: standfast_wire::BrokerId(1),
            producer_id: 7,
            numbering: Numbering::default(),
            inside_transaction: false,
        }
    }

    fn running() -> Partition {
        let mut partition =
            Partition::new(PartitionId::new("t", 0), Arc::new(PartitionStatus::new()));
        partition.run_from(&started(0));
        partition
    }

    #[tokio::test]
    async fn one_batch_is_sent_until_the_first_acknowledgement_then_five() {
        let (mut partition, permit) = (running(), permit().await);
        let batches = (0..9).map(|n| batch(n * 10, 10, 0));
        assert_eq!(partition.fetched(0, batches, &permit), Verdict::GoOn);
        let first = partition.take(false).unwrap();
        assert_eq!((first.stamp.producer_id, first.stamp.base_sequence), (7, 0));
        assert!(!partition.is_ready(5));
        assert_eq!(partition.acknowledged(&first.sent, 0, -1), Verdict::GoOn);
        for _ in 0..5 {
            assert!(partition.is_ready(5));
            partition.take(false).unwrap();
        }
        assert!(!partition.is_ready(5));
    }

    #[tokio::test]
    async fn another_offset_than_the_sources_is_divergence() {
        let (mut partition, permit) = (running(), permit().await);
        partition.fetched(0, [batch(0, 10, 0)].into_iter(), &permit);
        let sent = partition.take(false).unwrap().sent;
        let Verdict::Fail(failure) = partition.acknowledged(&sent, 1, -1) else {
            panic!("accepted")
        };
        assert_eq!(failure.error, MirrorTopicError::Diverged);
    }

    #[tokio::test]
    async fn what_stands_before_a_hole_is_mirrored_first() {
        let (mut partition, permit) = (running(), permit().await);
        let gap = [batch(0, 10, 0), batch(11, 5, 0)];
        assert_eq!(
            partition.fetched(0, gap.into_iter(), &permit),
            Verdict::GoOn
        );
        assert_eq!(partition.wants(1 << 20), None);
        let sent = partition.take(false).unwrap().sent;
        assert_eq!(partition.acknowledged(&sent, 0, -1), Verdict::Slow);
        for attributes in [0x08, 0x10, 0x20, 0x40] {
            let mut partition = running();
            assert!(matches!(
                partition.fetched(0, [batch(0, 1, attributes)].into_iter(), &permit),
                Verdict::Slow
            ));
        }
    }

    #[tokio::test]
    async fn a_stalled_partition_gives_up_its_queue_and_fetches_it_again() {
        let (mut partition, permit) = (running(), permit().await);
        partition.fetched(0, (0..3).map(|n| batch(n * 10, 10, 0)), &permit);
        let sent = partition.take(false).unwrap().sent;
        partition.shed();
        assert_eq!(
            (partition.wants(1 << 20), Rc::strong_count(&permit)),
            (None, 1)
        );
        assert_eq!(partition.acknowledged(&sent, 0, -1), Verdict::GoOn);
        assert_eq!(partition.wants(1 << 20), Some(10));
        // An answer that was asked for before is ignored, not taken for a gap.
        assert_eq!(
            partition.fetched(30, [batch(30, 10, 0)].into_iter(), &permit),
            Verdict::GoOn
        );
        assert_eq!(partition.wants(1 << 20), Some(10));
    }

    #[tokio::test]
    async fn answers_of_an_earlier_generation_do_not_count() {
        let (mut partition, permit) = (running(), permit().await);
        partition.fetched(0, [batch(0, 10, 0)].into_iter(), &permit);
        let sent = partition.take(false).unwrap().sent;
        partition.reset();
        assert_ne!(sent.generation, partition.generation());
        assert_eq!(partition.idle_at(), None);
    }
}
