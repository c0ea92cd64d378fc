//! Start-up of one partition: reads where the destination's log ends, proves that it is the source's log up to there, and names the position to go on from.
//!
//! There is no checkpoint: the logs are the state. This is also the one way back from any doubt while running. Nothing is written here but filler (see [`crate::seed`]).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use standfast_wire::BrokerId;
use standfast_wire::batch::RawBatch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use crate::beginning;
use crate::calls::{self, LogRange};
use crate::compare;
use crate::description::MirrorTopicError;
use crate::filler::{self, Mark};
use crate::numbering::Numbering;
use crate::partition::{Doubt, Failure, PartitionId, Side};
use crate::refusal;
use crate::restore::rejoin;
use crate::seed;
use crate::shard::Context;
use crate::status::PartitionStatus;
use crate::transactions;

/// A source that ends below the destination is asked again for so long: after a leader change the high watermark may lag for a moment (KIP-207).
const WATERMARK_SETTLES: Duration = Duration::from_secs(5);
const WATERMARK_POLL: Duration = Duration::from_millis(200);

/// What helps a mirror whose log is no longer the source's.
const WAY_BACK: &str =
    "`standfast mirror restore` exports what only this mirror holds, deletes it and mirrors on";

/// Start-ups of a link that read batches, at a time; each may hold two batches in memory.
pub(crate) const MAX_READING: usize = 4;

/// What start-up needs.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) context: Context,
    pub(crate) id: PartitionId,
    pub(crate) source_topic_id: Uuid,
    pub(crate) status: Arc<PartitionStatus>,
    pub(crate) stopping: CancellationToken,
    /// Cancelled as soon as it seeds, which takes long.
    pub(crate) seeding: CancellationToken,
}

/// Both logs are equal up to `position`.
#[derive(Debug, Clone)]
pub(crate) struct Started {
    pub(crate) position: i64,
    pub(crate) source_start: i64,
    pub(crate) source_end: i64,
    pub(crate) source_leader: BrokerId,
    pub(crate) destination_leader: BrokerId,
    pub(crate) producer_id: i64,
    pub(crate) numbering: Numbering,
    /// The destination has a transaction of the link open at the position.
    pub(crate) inside_transaction: bool,
}

/// Why the partition does not run.
#[derive(Debug)]
pub(crate) enum Refusal {
    Fail(Failure),
    Later(Doubt),
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self::Fail(failure)
    }
}

/// Runs start-up once.
pub(crate) async fn run(request: &Request) -> Result<Started, Refusal> {
    let Request { context, id, .. } = request;
    let source_leader = source_leader(request).await?;
    let destination_leader = context
        .destination
        .leader(&id.topic, id.partition)
        .await
        .map_err(destination)?;
    let producer_id = context.producer_id.load(Ordering::Acquire);
    if producer_id < 0 {
        return Err(Refusal::Later(Doubt::destination(
            "the link has no producer id yet",
        )));
    }
    let (source_log, destination_log) = settle(request, producer_id).await?;
    let destination_log = beginning::find_again(request, source_log, destination_log).await?;
    let one_of_few = if destination_log.end == 0 && source_log.start == 0 {
        // Nothing to read.
        None
    } else {
        let permit = context.reading.acquire().await;
        Some(permit.map_err(|e| Refusal::Later(Doubt::destination(e.to_string())))?)
    };
    let first = first_whole(request, source_log, destination_log).await?;
    let last = last_batch(request, destination_log).await?;
    let inside_transaction = last
        .as_ref()
        .is_some_and(|(_, stable)| *stable < destination_log.end);
    let last = last.map(|(batch, _)| batch);
    let known = known_numbering(last.as_ref(), destination_log.end, producer_id);
    let rejoined = if rejoin::is_pending(request) {
        rejoin::position(request, last.as_ref(), first, destination_log, producer_id).await?
    } else {
        None
    };
    let position = match (rejoined, last) {
        (Some(position), _) => position,
        (None, None) if destination_log.end == 0 => {
            let target = chosen(request, source_log, first);
            drop(one_of_few);
            seed::run(request, 0, target, producer_id, Numbering::default()).await?
        }
        // The filler is gone, but the start is not reached.
        (None, None) if decided(request).is_some_and(|start| start > destination_log.end) => {
            let target = chosen(request, source_log, first).max(destination_log.end);
            drop(one_of_few);
            let numbering =
                transactions::plain_numbering(request, destination_log.end, producer_id).await?;
            seed::run(request, destination_log.end, target, producer_id, numbering).await?
        }
        (None, None) if destination_log.end < first => {
            return Err(gone(first, destination_log).into());
        }
        (None, None) => {
            // All of it was deleted there (retention, or a restore). Nothing contradicts the source.
            warn!(partition = %id, offset = destination_log.end, "the destination's log is empty, going on from its end without a comparison");
            destination_log.end
        }
        (None, Some(last))
            if seeding_to(&last, producer_id, source_log, destination_log).is_some() =>
        {
            let target = seeding_to(&last, producer_id, source_log, destination_log);
            // What the source's retention took meanwhile is left out as well.
            let target = target.unwrap_or(first).max(first);
            if target > source_log.end {
                return Err(truncated(format!(
                    "the destination is being filled up to offset {target}, but the source's log now ends at {}: it is not the log that this mirror began with",
                    source_log.end
                ))
                .into());
            }
            drop(one_of_few);
            seed::run(
                request,
                destination_log.end,
                target,
                producer_id,
                known.unwrap_or_default(),
            )
            .await?
        }
        (None, Some(_)) if destination_log.end < first => {
            return Err(gone(first, destination_log).into());
        }
        (None, Some(last)) => {
            compare(request, &last, source_log, destination_log, producer_id).await?;
            destination_log.end
        }
    };
    let numbering = match known {
        Some(numbering) => numbering,
        None => transactions::plain_numbering(request, position, producer_id).await?,
    };
    Ok(Started {
        position,
        source_start: source_log.start,
        source_end: source_log.end,
        source_leader,
        destination_leader,
        producer_id,
        numbering,
        inside_transaction,
    })
}

/// Where an empty mirror begins: as was decided, but neither below nor above what the source holds.
fn chosen(request: &Request, source_log: LogRange, first: i64) -> i64 {
    decided(request).map_or(first, |offset| offset.min(source_log.end).max(first))
}

/// Where the mirror was decided to begin.
pub(crate) fn decided(request: &Request) -> Option<i64> {
    let (id, lifecycle) = (&request.id, &request.context.options.lifecycle);
    lifecycle.start_offset(&id.topic, id.partition)
}

/// Up to where the destination is being filled, if its last batch is filler of that kind. Filler of a link in front of this one is compared like any batch.
fn seeding_to(
    last: &RawBatch,
    producer_id: i64,
    source_log: LogRange,
    destination_log: LogRange,
) -> Option<i64> {
    let ours = last.header.producer_id == producer_id || destination_log.end <= source_log.start;
    match filler::mark_of(last) {
        Some(Mark::Seed(target)) if ours && target >= destination_log.end => Some(target),
        _ => None,
    }
}

/// The first offset that can be mirrored: the source's log start, or the base offset of the batch that it lies in, which the source still holds whole.
async fn first_whole(
    request: &Request,
    source_log: LogRange,
    destination_log: LogRange,
) -> Result<i64, Refusal> {
    if source_log.start == 0
        || destination_log.end >= source_log.start
        || source_log.start >= source_log.end
    {
        return Ok(source_log.start);
    }
    let batch = calls::batch_at(&request.context.source, &request.id, source_log.start)
        .await
        .map_err(source)?;
    Ok(batch.map_or(source_log.start, |batch| {
        batch.header.base_offset.min(source_log.start)
    }))
}

pub(crate) fn destination(error: standfast_wire::Error) -> Refusal {
    Refusal::Later(Doubt::failed(Side::Destination, &error))
}

pub(crate) fn source(error: standfast_wire::Error) -> Refusal {
    Refusal::Later(Doubt::failed(Side::Source, &error))
}

fn truncated(text: String) -> Failure {
    Failure::new(MirrorTopicError::UnexpectedTruncation, text)
}

fn diverged(text: String) -> Failure {
    Failure::new(
        MirrorTopicError::Diverged,
        format!("DIVERGED: {text}; nothing more is written. {WAY_BACK}"),
    )
}

/// The topic's name on the source.
pub(crate) fn own_name(request: &Request) -> &str {
    request.context.options.prefix.own_name(&request.id.topic)
}

/// Why a mirror does not go on: its source topic is another one by now.
pub(crate) fn recreated(own_name: &str, before: Uuid, found: Uuid) -> String {
    format!(
        "topic {own_name:?} was deleted and created again on the source (topic id {before} became {found}); its records are not those of this mirror"
    )
}

async fn source_leader(request: &Request) -> Result<BrokerId, Refusal> {
    let id = &request.id;
    let found = calls::topic_id(&request.context.source, &id.topic)
        .await
        .map_err(source)?;
    match found {
        None => {
            let mut doubt = Doubt::source(format!(
                "the source does not know topic {:?}",
                own_name(request)
            ));
            doubt.error = MirrorTopicError::SourceTopicMayBeDeleted;
            return Err(Refusal::Later(doubt));
        }
        // So a broker names a topic that the link's user may not describe.
        Some(found) if found.is_nil() && !request.source_topic_id.is_nil() => {
            let metadata = request.context.source.metadata();
            let code = metadata.topics.get(&*id.topic).and_then(|t| t.error);
            let mut doubt = Doubt::source(format!(
                "the source does not tell the id of topic {:?} ({code:?})",
                own_name(request)
            ));
            if code.is_some_and(refusal::is_authorization) {
                doubt.error = MirrorTopicError::AuthorizationError;
                doubt.text = format!("{}: {}", refusal::AUTHORIZATION, doubt.text);
            }
            return Err(Refusal::Later(doubt));
        }
        Some(found) if found != request.source_topic_id => {
            let text = recreated(own_name(request), request.source_topic_id, found);
            return Err(Failure::new(MirrorTopicError::SourceTopicIdChanged, text).into());
        }
        Some(_) => {}
    }
    request
        .context
        .source
        .leader(&id.topic, id.partition)
        .await
        .map_err(source)
}

/// Reads both logs' ends; the source must not end below the destination.
async fn settle(request: &Request, producer_id: i64) -> Result<(LogRange, LogRange), Refusal> {
    let Request { context, id, .. } = request;
    let began = tokio::time::Instant::now();
    loop {
        // The destination first: a source record that arrives in between must not look like a foreign one.
        let destination_log = calls::log_range(&context.destination, id)
            .await
            .map_err(destination)?;
        let source_log = calls::log_range(&context.source, id)
            .await
            .map_err(source)?;
        if destination_log.end <= source_log.end {
            return Ok((source_log, destination_log));
        }
        if rejoin::is_pending(request)
            && let Some(later) = rejoin::waits(source_log, destination_log)
        {
            return Err(later);
        }
        let last = last_batch(request, destination_log).await?;
        if let Some((last, _)) = last.filter(|(last, _)| {
            last.header.producer_id != producer_id && !last.header.attributes.is_transactional()
        }) {
            return Err(foreign(&last, source_log, destination_log).into());
        }
        if began.elapsed() > WATERMARK_SETTLES {
            return Err(truncated(format!(
                "the source ends at offset {}, below offset {} that was mirrored already (unclean leader election, or the topic was created again)",
                source_log.end, destination_log.end
            ))
            .into());
        }
        tokio::time::sleep(WATERMARK_POLL).await;
    }
}

fn foreign(last: &RawBatch, source_log: LogRange, destination_log: LogRange) -> Failure {
    diverged(format!(
        "the destination ends at offset {}, the source at {}; the destination's batch at offset {} (producer id {}) was not written by this link",
        destination_log.end, source_log.end, last.header.base_offset, last.header.producer_id
    ))
}

/// What the log's last batch tells; `None` if it was not written under the link's producer id.
fn known_numbering(last: Option<&RawBatch>, end: i64, producer_id: i64) -> Option<Numbering> {
    match last {
        Some(last) if last.header.producer_id == producer_id => Numbering::of_batch(last),
        None if end == 0 => Some(Numbering::default()),
        _ => None,
    }
}

/// The last batch, and the log's last stable offset.
async fn last_batch(request: &Request, log: LogRange) -> Result<Option<(RawBatch, i64)>, Refusal> {
    if log.start >= log.end {
        return Ok(None);
    }
    let found = calls::batch_and_stable(&request.context.destination, &request.id, log.end - 1)
        .await
        .map_err(destination)?;
    match found {
        Some((batch, stable)) if batch.header.next_offset() == log.end => Ok(Some((batch, stable))),
        // It moved on since the log end was read: another engine of this link is at work.
        Some(_) | None => Err(Refusal::Later(Doubt::destination(
            "the destination's log moved while it was read",
        ))),
    }
}

fn gone(first: i64, destination_log: LogRange) -> Failure {
    truncated(format!(
        "the source now holds nothing below offset {first}: its retention took offsets {} to {} before they were mirrored",
        destination_log.end,
        first - 1
    ))
}

async fn compare(
    request: &Request,
    last: &RawBatch,
    source_log: LogRange,
    destination_log: LogRange,
    producer_id: i64,
) -> Result<(), Refusal> {
    if destination_log.end <= source_log.start {
        // The source no longer has the batch. What this link wrote itself, at that end, is the source's.
        let transactional = last.header.attributes.is_transactional();
        if last.header.producer_id == producer_id
            || (transactional && transactions::is_own(request, last.header.producer_id).await?)
        {
            info!(partition = %request.id, offset = destination_log.end, "the source's retention took the last mirrored batch, going on from its log start");
            return Ok(());
        }
        return Err(foreign(last, source_log, destination_log).into());
    }
    match compare::contradiction(request, last, source_log.start, producer_id).await? {
        None => Ok(()),
        Some(_) if aborted_here(request, last).await? => Err(diverged(format!(
            "offset {}: the transaction that the link had open there was aborted, by a failover or because no engine went on with it in time; brokers with a larger transaction.max.timeout.ms wait longer",
            last.header.base_offset
        ))
        .into()),
        Some(what) => Err(diverged(format!(
            "the last batch on the destination (offsets {} to {}, producer id {}) is not the source's: {what}",
            last.header.base_offset,
            destination_log.end - 1,
            last.header.producer_id
        ))
        .into()),
    }
}

/// The batch is an abort marker of the link's own transaction, which the source has not there.
async fn aborted_here(request: &Request, last: &RawBatch) -> Result<bool, Refusal> {
    let aborted = transactions::outcome(last) == Some(transactions::Outcome::Abort);
    Ok(aborted && transactions::is_own(request, last.header.producer_id).await?)
}
