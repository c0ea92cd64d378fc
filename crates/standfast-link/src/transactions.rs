//! Transactions of the source, reproduced on the destination.

use standfast_wire::batch::RawBatch;

use crate::classify::unsupported;
use crate::slow::{Progress, SlowPath};
use crate::startup::Refusal;

/// Reproduces `batches`, what was fetched from [`SlowPath::position`] on; the first is a batch or a marker of a transaction. May stop behind any of
/// them, having told [`SlowPath::advance`] how far it came.
pub(crate) async fn run(
    _path: &mut SlowPath<'_>,
    batches: &[RawBatch],
) -> Result<Progress, Refusal> {
    let Some(first) = batches.first() else {
        return Ok(Progress::Advanced);
    };
    let what = if first.header.attributes.is_control() {
        "a transaction marker"
    } else {
        "a batch of a transaction"
    };
    Err(unsupported(format!(
        "source offset {}: {what}; mirroring of transactions is not built yet",
        first.header.base_offset
    ))
    .into())
}
