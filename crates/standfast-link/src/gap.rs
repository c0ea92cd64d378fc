//! Offsets that hold no record on the source: missing before a batch, or a batch that compaction has emptied.

use standfast_wire::batch::RawBatch;

use crate::classify::unsupported;
use crate::slow::SlowPath;
use crate::startup::Refusal;

/// Moves the position over the missing offsets up to `target`, where `next` begins or (if it is empty) ends.
pub(crate) async fn run(
    path: &mut SlowPath<'_>,
    target: i64,
    _next: &RawBatch,
) -> Result<(), Refusal> {
    let position = path.position();
    Err(unsupported(format!(
        "source offset {target}: offsets {position} to {} are missing on the source (compaction or aborted appends); mirroring of gaps is not built yet",
        target - 1
    ))
    .into())
}
