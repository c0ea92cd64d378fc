//! Which batches of the source can be reproduced on a stock broker, offset for offset.
//!
//! What cannot be is refused here with its offset, before anything of it is written. Transactions, compaction gaps and LogAppendTime have
//! their own way of being mirrored (see DESIGN.md "Holes"); until it is built they end here.

use standfast_wire::batch::{BatchError, BatchHeader, TimestampType};

use crate::description::MirrorTopicError;
use crate::partition::Failure;

/// Checks that `header` is the next batch of the log at `expected` and that the destination can hold it as it is.
pub(crate) fn admit(header: &BatchHeader, expected: i64) -> Result<(), Failure> {
    let offset = header.base_offset;
    let unsupported = |what: &str| {
        Err(Failure::new(
            MirrorTopicError::UnsupportedMessageFormat,
            format!("source offset {offset}: {what}"),
        ))
    };
    if offset < expected {
        return Err(Failure::new(
            MirrorTopicError::Diverged,
            format!(
                "the destination ends at offset {expected}, inside the source's batch of offsets {offset} to {}; it was not written by this link",
                header.next_offset() - 1
            ),
        ));
    }
    if offset > expected {
        return unsupported(&format!(
            "offsets {expected} to {} are missing on the source (compaction or aborted appends); mirroring of gaps is not built yet",
            offset - 1
        ));
    }
    if header.attributes.is_control() {
        return unsupported("a transaction marker; mirroring of transactions is not built yet");
    }
    if header.attributes.is_transactional() {
        return unsupported("a batch of a transaction; mirroring of transactions is not built yet");
    }
    if header.attributes.timestamp_type() == TimestampType::LogAppendTime {
        return unsupported(
            "a batch with LogAppendTime, which the destination would replace by its own clock; mirroring of it is not built yet",
        );
    }
    if header.attributes.has_delete_horizon() {
        return unsupported(
            "a batch rewritten by compaction (delete horizon set); mirroring of it is not built yet",
        );
    }
    if !header.is_dense() {
        return unsupported(&format!(
            "a batch of {} records over {} offsets (compaction); mirroring of gaps is not built yet",
            header.record_count,
            i64::from(header.last_offset_delta) + 1
        ));
    }
    Ok(())
}

/// What an unreadable batch of the source means. `None`: damaged, which another fetch may heal.
pub(crate) fn unreadable(error: &BatchError) -> Option<Failure> {
    match error {
        BatchError::Format { .. } => Some(Failure::new(
            MirrorTopicError::UnsupportedMessageFormat,
            format!("source: {error}"),
        )),
        _ => None,
    }
}
