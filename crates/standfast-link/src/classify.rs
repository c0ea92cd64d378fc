//! What the next batch of the source is to the destination: the same bytes, a hole that has to be reproduced, or something that cannot be.

use standfast_wire::batch::{BatchError, BatchHeader, TimestampType};

use crate::description::MirrorTopicError;
use crate::partition::Failure;

/// How the next batch can be mirrored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Copied as it is, on the fast path.
    Plain,
    /// Reproduced on the slow path.
    Hole(Hole),
}

/// What a stock broker would not append as it is, or not at that offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hole {
    /// Offsets before the batch are missing (compaction, aborted appends).
    Gap,
    /// The batch holds no record (compaction).
    Empty,
    /// A data batch of a transaction.
    Transactional,
    /// A commit or abort marker.
    Marker,
    /// Some records are missing inside (compaction), or the timestamps are the broker's (LogAppendTime), or relative to a delete horizon.
    Altered,
}

/// Sorts the batch with `header`, which follows position `expected`.
pub(crate) fn admit(header: &BatchHeader, expected: i64) -> Result<Kind, Failure> {
    let offset = header.base_offset;
    if offset < expected {
        return Err(Failure::new(
            MirrorTopicError::Diverged,
            format!(
                "the destination ends at offset {expected}, inside the source's batch of offsets {offset} to {}; it was not written by this link",
                header.next_offset() - 1
            ),
        ));
    }
    let attributes = header.attributes;
    let hole = if offset > expected {
        Hole::Gap
    } else if header.record_count == 0 {
        // Whatever it once held: neither a record nor a marker is left of it.
        Hole::Empty
    } else if attributes.is_control() {
        Hole::Marker
    } else if attributes.is_transactional() {
        Hole::Transactional
    } else if is_altered(header) {
        Hole::Altered
    } else {
        return Ok(Kind::Plain);
    };
    Ok(Kind::Hole(hole))
}

/// Whether a broker would not append the batch as it is, or would replace its timestamps.
pub(crate) fn is_altered(header: &BatchHeader) -> bool {
    let attributes = header.attributes;
    attributes.timestamp_type() == TimestampType::LogAppendTime
        || attributes.has_delete_horizon()
        || !header.is_dense()
}

/// What an unreadable batch of the source means. `None`: damaged, which another fetch may heal.
pub(crate) fn unreadable(error: &BatchError) -> Option<Failure> {
    match error {
        BatchError::Format { .. } => Some(unsupported(format!("source: {error}"))),
        _ => None,
    }
}

/// Content of the source that cannot be reproduced.
pub(crate) fn unsupported(text: String) -> Failure {
    Failure::new(MirrorTopicError::UnsupportedMessageFormat, text)
}
