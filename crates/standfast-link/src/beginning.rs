//! The beginning of a mirror's log, which brokers forget.
//!
//! A broker writes down once a minute where DeleteRecords has moved a log's start (`log.flush.start.offset.checkpoint.interval.ms`). If all replicas are killed before that, what was deleted is there
//! again: filler, and after a fast restore the tail that was lost (seen on Kafka 4.1.0 with SIGKILL). So each start-up of a partition looks, and deletes it again.

use tracing::warn;

use crate::calls::{self, LogRange};
use crate::filler::{self, Mark};
use crate::partition::Doubt;
use crate::startup::{Refusal, Request, decided, destination};
use crate::verify;

/// The destination's log without what stood in front of the mirror's beginning.
pub(crate) async fn find_again(
    request: &Request,
    source_log: LogRange,
    log: LogRange,
) -> Result<LogRange, Refusal> {
    let begins = decided(request).filter(|offset| (log.start + 1..=log.end).contains(offset));
    let found = match begins {
        Some(start) if is_foreign(request, source_log, start - 1).await? => Some(start),
        Some(_) => None,
        None => behind_filler(request, source_log, log).await?,
    };
    let Some(start) = found else {
        return Ok(log);
    };
    warn!(
        partition = %request.id, log_start = log.start, beginning = start,
        "the destination's log begins in front of the mirror's beginning again: its brokers were killed before they had noted the deletion; deleted once more"
    );
    calls::delete_records(&request.context.destination, &request.id, start)
        .await
        .map_err(destination)?;
    Ok(LogRange { start, ..log })
}

/// Whether the source has something else at the offset. What is remembered may be of another log: since then another engine of the link restored
/// the mirror, or the topic was made anew, and what was mirrored into that one stays.
async fn is_foreign(request: &Request, source_log: LogRange, offset: i64) -> Result<bool, Refusal> {
    let Request { context, id, .. } = request;
    let batch = calls::batch_at(&context.destination, id, offset).await;
    if matches!(
        batch
            .map_err(destination)?
            .as_ref()
            .and_then(filler::mark_of),
        Some(Mark::Seed(_))
    ) {
        return Ok(true);
    }
    if !(source_log.start..source_log.end).contains(&offset) {
        return Ok(false);
    }
    let same = verify::same_at(
        &context.source,
        &context.destination,
        &id.topic,
        id.partition,
        offset,
    );
    let same = same.await.map_err(|error| {
        Refusal::Later(Doubt::destination(format!(
            "offset {offset}, in front of the mirror's beginning, cannot be compared: {error}"
        )))
    })?;
    Ok(!same)
}

/// Of a mirror that began at the source's log start only the filler in front tells where.
async fn behind_filler(
    request: &Request,
    source_log: LogRange,
    log: LogRange,
) -> Result<Option<i64>, Refusal> {
    if log.start >= source_log.start || log.start >= log.end {
        return Ok(None);
    }
    let first = calls::batch_at(&request.context.destination, &request.id, log.start).await;
    let first = first.map_err(destination)?;
    Ok(match first.as_ref().and_then(filler::mark_of) {
        // Further up nothing is mirrored yet: seeding goes on, and deletes.
        Some(Mark::Seed(target)) => Some(target).filter(|t| (log.start + 1..log.end).contains(t)),
        _ => None,
    })
}
