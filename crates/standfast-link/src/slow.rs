//! The slow path of one partition: past what cannot be copied as it is, one batch in flight, then back to the shard.
//!
//! It runs on the control plane, with connections of its own. Whatever is written here follows from the source's log alone and carries the link's producer id, epoch 0 and
//! sequence = offset (transactions apart, see [`crate::transactions`]), so two engines of a link still write one log. Every acknowledgement must name the source's offset.

mod source;

use std::time::{Duration, Instant};

use standfast_wire::batch::{RawBatch, batches};
use standfast_wire::{FrameReader, FrameWriter, ResponseError};
use tokio::sync::OwnedSemaphorePermit;
use tracing::debug;

use crate::classify::{self, Hole, Kind};
use crate::description::{MirrorTopicError, PartitionState};
use crate::partition::{Doubt, Failure, Verdict};
use crate::startup::{Refusal, Request, Started, destination, source};
use crate::status::now_ms;
use crate::transactions::Writers;
use crate::writer::consequence;
use crate::{calls, gap, oversize, rewrite, transactions};
use source::Source;

/// Partitions of a link at work on the slow path at a time; each holds one answer of the source in memory.
pub(crate) const MAX_SLOW: usize = 64;

/// So many plain batches in a row end the slow path: fewer would cost more start-ups than they save.
const CALM: u32 = 32;

/// So long at the log's end ends it too.
const LINGER: Duration = Duration::from_secs(1);

/// While other partitions wait for a permit, one gives its own back after so long.
const STINT: Duration = Duration::from_secs(5);

/// A partition that is told to stop inside a transaction has so long to finish it: an open one could not be taken up again after the transaction timeout.
const FINISH: Duration = Duration::from_millis(500);

/// Between two looks at a source that must move before the destination can ([`Progress::NotYet`]).
const NOT_YET_WAIT: Duration = Duration::from_millis(20);

/// A batch that is damaged when fetched so often in a row is given up.
const MAX_DAMAGED: u32 = 5;

/// How long the destination may take for a batch.
const PRODUCE_TIMEOUT_MS: i32 = 8_000;
const PRODUCE_OVERDUE: Duration = Duration::from_secs(10);

/// What a handler reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// The position has moved.
    Advanced,
    /// Nothing can be written before the source has moved on (an open transaction). Asked again after a wait, without a permit.
    NotYet,
}

/// Whether the destination took a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Appended {
    Yes,
    /// Above `max.message.bytes`.
    TooLarge,
    AboveSegment,
}

/// A partition on the slow path: both logs are equal up to [`SlowPath::position`].
pub(crate) struct SlowPath<'a> {
    pub(crate) request: &'a Request,
    pub(crate) producer_id: i64,
    /// The source's last stable offset as last seen: the outcome of every transaction below it is known.
    pub(crate) last_stable_offset: i64,
    /// The link's own transactions, once one was met.
    pub(crate) writers: Option<Writers>,
    started: Started,
    /// The last answer of the source held no record at all.
    nothing_there: bool,
    source: Source,
    destination: (FrameReader, FrameWriter),
    /// The last Produce ended with its connection.
    connection_lost: bool,
    /// When a stop was noticed inside a transaction.
    stopping_since: Option<Instant>,
}

/// Runs until the next batches can be copied as they are, or the log's end is reached. Answers where to go on.
pub(crate) async fn run(request: Request, started: Started) -> Result<Started, Refusal> {
    let mut permit = Some(acquire(&request).await?);
    let mut path = SlowPath::open(&request, started).await?;
    path.resume().await?;
    let (began, mut busy_at, mut plain, mut damaged) = (Instant::now(), Instant::now(), 0, 0);
    let mut nothing_up_to = None;
    loop {
        if permit.is_none() {
            permit = Some(acquire(&request).await?);
        }
        let fetched = path.fetch().await?;
        match path.copy(&fetched, &mut plain, &mut damaged).await? {
            Some(Progress::Advanced) => busy_at = Instant::now(),
            Some(Progress::NotYet) => {
                permit = None;
                tokio::time::sleep(NOT_YET_WAIT).await;
                continue;
            }
            None => {}
        }
        if path.started.inside_transaction {
            continue;
        }
        if fetched.is_empty() && path.last_stable_offset < path.started.source_end {
            // What is there is not decided; the source answers as soon as it is.
            permit = None;
            continue;
        }
        if path.nothing_there && path.position() < path.started.source_end {
            // Nothing stands there up to the log's end: what did was compacted away. Seen twice, so that no moment's view is filled in.
            let end = path.started.source_end;
            if nothing_up_to.replace(end) == Some(end) {
                if path.reads_are_local().await? {
                    path.fill_to(end).await?;
                } else {
                    permit = None;
                }
                busy_at = Instant::now();
            }
            continue;
        }
        nothing_up_to = None;
        let others_wait = request.context.slow_paths.available_permits() == 0;
        if plain >= CALM
            || busy_at.elapsed() > LINGER
            || (others_wait && (fetched.is_empty() || began.elapsed() > STINT))
        {
            debug!(partition = %request.id, offset = path.position(), "leaving the slow path");
            return Ok(path.started);
        }
    }
}

async fn acquire(request: &Request) -> Result<OwnedSemaphorePermit, Refusal> {
    let permit = request.context.slow_paths.clone().acquire_owned();
    tokio::select! {
        permit = permit => permit.map_err(|_| stopped()),
        () = request.stopping.cancelled() => Err(stopped()),
    }
}

/// Nobody looks at it: a partition that stops ignores what start-up answers.
pub(crate) fn stopped() -> Refusal {
    Refusal::Later(Doubt::destination("stopped"))
}

impl<'a> SlowPath<'a> {
    async fn open(request: &'a Request, started: Started) -> Result<Self, Refusal> {
        let opened = async {
            let source = Source::open(request, &started).await?;
            let destination = request
                .context
                .destination
                .open_raw(started.destination_leader)
                .await
                .map_err(destination)?
                .into_split();
            Ok::<_, Refusal>((source, destination))
        };
        let (source, destination) = tokio::select! {
            opened = opened => opened?,
            () = request.stopping.cancelled() => return Err(stopped()),
        };
        request.status.source_answered(started.source_end);
        request.status.set_next_fetch(started.position);
        request.status.set_position(started.position);
        request.status.enter(PartitionState::Active, None);
        Ok(Self {
            request,
            producer_id: started.producer_id,
            last_stable_offset: -1,
            writers: None,
            started,
            nothing_there: false,
            source,
            destination,
            connection_lost: false,
            stopping_since: None,
        })
    }

    async fn reads_are_local(&self) -> Result<bool, Refusal> {
        let asked = calls::reads_are_local(&self.request.context.source, &self.request.id.topic);
        tokio::select! {
            local = asked => local.map_err(source),
            () = self.request.stopping.cancelled() => Err(stopped()),
        }
    }

    /// Puts filler up to the source's end.
    async fn fill_to(&mut self, end: i64) -> Result<(), Refusal> {
        self.check()?;
        debug!(partition = %self.request.id, offset = self.position(), end, "the source's log ends in a gap");
        let newest = self.request.status.newest_timestamp();
        gap::run(self, end, newest.unwrap_or_else(now_ms)).await
    }

    /// Offset of the next batch on both sides.
    pub(crate) fn position(&self) -> i64 {
        self.started.position
    }

    /// The destination holds the mirror up to `next_offset`: `bytes` more, the newest record of `timestamp`.
    pub(crate) fn advance(&mut self, next_offset: i64, bytes: usize, timestamp: i64) {
        let status = &self.request.status;
        let offsets = (next_offset - self.started.position).unsigned_abs();
        self.started.position = next_offset;
        status.mirrored(bytes as u64, offsets, timestamp);
        status.set_next_fetch(next_offset);
        status.set_position(next_offset);
    }

    /// As [`SlowPath::advance`], for what was not written under the plain producer id: its sequence numbers stay where they are.
    pub(crate) fn advance_beside(&mut self, next_offset: i64, bytes: usize, timestamp: i64) {
        self.started.numbering.shift += next_offset - self.started.position;
        self.advance(next_offset, bytes, timestamp);
    }

    /// Takes over transactions that were open on the destination before.
    async fn resume(&mut self) -> Result<(), Refusal> {
        if self.started.inside_transaction {
            let writers = Writers::find(self.request, self.position(), 0).await?;
            self.started.inside_transaction = writers.any_open();
            self.writers = Some(writers);
        }
        Ok(())
    }

    /// The destination has a transaction open here, or no longer; nothing but the slow path can go on with one.
    pub(crate) fn set_inside_transaction(&mut self, inside: bool) {
        self.started.inside_transaction = inside;
    }

    /// Whether to write no more: a stop, or another producer id.
    pub(crate) fn check(&mut self) -> Result<(), Refusal> {
        use std::sync::atomic::Ordering;
        if self.request.stopping.is_cancelled() {
            let since = *self.stopping_since.get_or_insert_with(Instant::now);
            if !self.started.inside_transaction || since.elapsed() > FINISH {
                return Err(stopped());
            }
        }
        if !self.request.context.share.lease.is_valid() {
            return Err(stopped());
        }
        if self.request.context.producer_id.load(Ordering::Acquire) != self.producer_id {
            return Err(Refusal::Later(Doubt::destination(
                "the link's producer id changed",
            )));
        }
        Ok(())
    }

    /// The batches that the source holds from the position on; none if it has none yet.
    async fn fetch(&mut self) -> Result<Vec<RawBatch>, Refusal> {
        let from = self.position().max(self.started.source_start);
        let inside = self.started.inside_transaction;
        let stopped_for_good = async {
            self.request.stopping.cancelled().await;
            if inside {
                tokio::time::sleep(FINISH).await;
            }
        };
        let rate = &self.request.context.rate;
        let fetched = async {
            rate.ready().await;
            self.source.fetch(self.request, from).await
        };
        let fetched = tokio::select! {
            fetched = fetched => fetched?,
            () = stopped_for_good => return Err(stopped()),
        };
        self.request.status.source_answered(fetched.high_watermark);
        self.started.source_end = fetched.high_watermark;
        self.last_stable_offset = fetched.last_stable_offset;
        self.nothing_there = fetched.records.is_empty();
        let mut taken = Vec::new();
        for batch in batches(fetched.records) {
            match batch {
                Ok(batch) if batch.header.next_offset() <= self.position() => {}
                Ok(batch) => taken.push(batch),
                Err(error) => match classify::unreadable(&error) {
                    // What stands before it is mirrored first.
                    Some(_) if !taken.is_empty() => break,
                    Some(failure) => return Err(failure.into()),
                    None => return Err(Refusal::Later(Doubt::source(error.to_string()))),
                },
            }
        }
        Ok(taken)
    }

    /// Mirrors what was fetched; `None` if there was nothing.
    async fn copy(
        &mut self,
        fetched: &[RawBatch],
        plain: &mut u32,
        damaged: &mut u32,
    ) -> Result<Option<Progress>, Refusal> {
        let mut progress = None;
        for (n, batch) in fetched.iter().enumerate() {
            if batch.header.next_offset() <= self.position() {
                continue;
            }
            self.check()?;
            if let Err(error) = batch.verify_crc() {
                *damaged += 1;
                if *damaged > MAX_DAMAGED {
                    let text = format!(
                        "source: {error}; fetched {MAX_DAMAGED} times with the same result"
                    );
                    return Err(Failure::new(MirrorTopicError::Unknown, text).into());
                }
                return Ok(progress);
            }
            *damaged = 0;
            // Behind a gap stands the batch itself.
            while batch.header.next_offset() > self.position() {
                let before = self.position();
                if self
                    .step(fetched.get(n..).unwrap_or_default(), batch, plain)
                    .await?
                    == Progress::NotYet
                {
                    return Ok(Some(Progress::NotYet));
                }
                if self.position() <= before {
                    let text = format!("offset {before}: no progress on the slow path");
                    return Err(Refusal::Later(Doubt::source(text)));
                }
            }
            progress = Some(Progress::Advanced);
        }
        Ok(progress)
    }

    /// One step over `batch`, with which `rest` begins.
    async fn step(
        &mut self,
        rest: &[RawBatch],
        batch: &RawBatch,
        plain: &mut u32,
    ) -> Result<Progress, Refusal> {
        let header = &batch.header;
        let hole = match classify::admit(header, self.position())? {
            Kind::Plain => {
                *plain = plain.saturating_add(1);
                self.append(batch).await?;
                return Ok(Progress::Advanced);
            }
            Kind::Hole(hole) => hole,
        };
        *plain = 0;
        debug!(partition = %self.request.id, offset = self.position(), ?hole, "reproducing");
        match hole {
            Hole::Gap => gap::run(self, header.base_offset, header.max_timestamp).await?,
            Hole::Empty => gap::run(self, header.next_offset(), header.max_timestamp).await?,
            Hole::Altered => rewrite::run(self, batch).await?,
            Hole::Marker | Hole::Transactional => return transactions::run(self, rest).await,
        }
        Ok(Progress::Advanced)
    }

    /// Appends the batch whose base offset is the position, and moves the position behind it. The mirror topic's limit is raised if the batch is above it.
    pub(crate) async fn append(&mut self, batch: &RawBatch) -> Result<(), Refusal> {
        let (position, bytes) = (self.position(), batch.bytes.len());
        let (began, mut closed) = (Instant::now(), 0);
        loop {
            match self.try_append(batch).await {
                Ok(Appended::Yes) => return Ok(()),
                Ok(Appended::AboveSegment) => return Err(oversize::above_segment(position, bytes)),
                Ok(Appended::TooLarge) if began.elapsed() > oversize::TAKES_EFFECT => {
                    return Err(refusal(consequence(
                        position,
                        ResponseError::MessageTooLarge,
                        "",
                    )));
                }
                Ok(Appended::TooLarge) => {
                    oversize::raise(self.request, position, bytes).await?;
                    tokio::time::sleep(oversize::EFFECT_POLL).await;
                    self.check()?;
                }
                Err(_) if bytes > oversize::SOLO_BYTES && self.connection_lost => {
                    closed += 1;
                    if closed == oversize::CLOSED_MAX {
                        return Err(oversize::above_requests(position, bytes));
                    }
                    self.check()?;
                    self.reconnect().await?;
                }
                Err(refusal) => return Err(refusal),
            }
        }
    }

    async fn reconnect(&mut self) -> Result<(), Refusal> {
        let cluster = &self.request.context.destination;
        let connection = cluster.open_raw(self.started.destination_leader).await;
        self.destination = connection.map_err(destination)?.into_split();
        Ok(())
    }

    /// As [`SlowPath::append`], but a batch that is too large is no error.
    pub(crate) async fn try_append(&mut self, batch: &RawBatch) -> Result<Appended, Refusal> {
        let position = self.position();
        let stamp = self.started.numbering.stamp(self.producer_id, position);
        let later = |text: String| Refusal::Later(Doubt::destination(text));
        let restamped = batch.restamp(stamp).map_err(|e| later(e.to_string()))?;
        let Request { context, id, .. } = self.request;
        let produced = calls::produce_one(
            &mut self.destination,
            &context.share.lease,
            &context.options.destination.client_id,
            PRODUCE_TIMEOUT_MS,
            (&id.topic, id.partition, restamped),
        );
        let result = match tokio::time::timeout(PRODUCE_OVERDUE, produced).await {
            Ok(result) => {
                self.connection_lost = result.is_err();
                result.map_err(destination)?
            }
            Err(_) => {
                self.connection_lost = false;
                return Err(later(format!(
                    "offset {position}: no answer to Produce within {PRODUCE_OVERDUE:?}"
                )));
            }
        };
        match ResponseError::try_from_code(result.error_code) {
            None if result.base_offset == position => {}
            None => {
                let text = format!(
                    "DIVERGED: the batch for offset {position} was appended at offset {} on the destination: something else wrote into the mirror topic; nothing more is written",
                    result.base_offset
                );
                return Err(Failure::new(MirrorTopicError::Diverged, text).into());
            }
            Some(ResponseError::MessageTooLarge) => return Ok(Appended::TooLarge),
            Some(ResponseError::RecordListTooLarge) => return Ok(Appended::AboveSegment),
            Some(code) => return Err(refusal(consequence(position, code, &result.error_message))),
        }
        let header = &batch.header;
        let next = position + i64::from(header.last_offset_delta) + 1;
        self.advance(next, batch.bytes.len(), header.max_timestamp);
        Ok(Appended::Yes)
    }
}

pub(crate) fn refusal(verdict: Verdict) -> Refusal {
    match verdict {
        Verdict::Fail(failure) => Refusal::Fail(failure),
        Verdict::StartAgain(doubt) => Refusal::Later(doubt),
        Verdict::GoOn | Verdict::Slow => stopped(),
    }
}
