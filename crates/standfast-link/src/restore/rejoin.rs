//! Start-up of a partition whose log was emptied by a restore: it goes on where the old log ended.

use crate::calls::{self, LogRange};
use crate::filler::{self, Mark};
use crate::numbering::Numbering;
use crate::partition::Doubt;
use crate::seed;
use crate::startup::{Refusal, Request, source};
use crate::transactions;

use super::RestorePhase;
use standfast_wire::batch::RawBatch;

/// Whether the topic was restored and has not mirrored since.
pub(crate) fn is_pending(request: &Request) -> bool {
    let lifecycle = &request.context.options.lifecycle;
    lifecycle.restore_phase(&request.id.topic) == Some(RestorePhase::PendingRestore)
}

/// Not before the source has passed the end of the emptied log: below it stands what the source wrote at the offsets of the lost tail.
pub(crate) fn waits(source: LogRange, destination: LogRange) -> Option<Refusal> {
    (destination.start >= destination.end && destination.end > source.end).then(|| {
        Refusal::Later(Doubt::destination(format!(
            "restored: waits until the source, now at offset {}, has passed offset {}, where the mirror's old log ended",
            source.end, destination.end
        )))
    })
}

/// Where an emptied log goes on: at its end, or at the next boundary of the source's batches, or at the source's log start. What lies between is filled and deleted.
/// `None`: the log is not empty.
pub(crate) async fn position(
    request: &Request,
    last: Option<&RawBatch>,
    first: i64,
    log: LogRange,
    producer_id: i64,
) -> Result<Option<i64>, Refusal> {
    // Left behind by an engine that ended between filling and deleting.
    let filled = last.filter(|batch| {
        matches!(filler::mark_of(batch), Some(Mark::Seed(_)))
            && batch.header.producer_id == producer_id
    });
    if log.end == 0 || (last.is_some() && filled.is_none()) {
        return Ok(None);
    }
    let target = if log.end < first {
        first
    } else {
        let found = calls::batch_at(&request.context.source, &request.id, log.end).await;
        let inside = |batch: &RawBatch| batch.header.base_offset < log.end;
        let batch = found.map_err(source)?.filter(inside);
        batch.map_or(log.end, |batch| batch.header.next_offset())
    };
    let numbering = match filled.and_then(Numbering::of_batch) {
        Some(numbering) => numbering,
        None if log.end == target => Numbering::default(),
        None => transactions::plain_numbering(request, log.end, producer_id).await?,
    };
    seed::run(request, log.end, target, producer_id, numbering).await?;
    // The brokers may forget it: see `beginning`.
    let lifecycle = &request.context.options.lifecycle;
    lifecycle.set_start_offset(&request.id.topic, request.id.partition, target);
    Ok(Some(target))
}
