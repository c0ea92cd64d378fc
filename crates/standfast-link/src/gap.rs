//! Offsets that hold no record on the source: missing before a batch, or a batch that compaction has emptied. Filler takes them.

use standfast_wire::batch::RawBatch;

use crate::description::MirrorTopicError;
use crate::filler::{self, Form, Mark};
use crate::partition::{Doubt, Failure};
use crate::slow::{Appended, SlowPath};
use crate::startup::Refusal;

/// Offsets in one batch of filler: 0.8 MB, below the usual limit of 1 MiB per batch.
pub(crate) const BATCH_OFFSETS: i64 = 400_000;

/// A destination that refuses even this many offsets per batch as too large cannot hold the gap.
const MIN_BATCH_OFFSETS: i64 = 10;

/// Moves the position over the missing offsets up to `target`. Time-based retention must not take filler for older, or newer, than what stands around it: `timestamp` is that
/// of a neighbour.
pub(crate) async fn run(
    path: &mut SlowPath<'_>,
    target: i64,
    timestamp: i64,
) -> Result<(), Refusal> {
    let timestamp = timestamp.max(0);
    let mut size = BATCH_OFFSETS;
    let mut template: Option<RawBatch> = None;
    while path.position() < target {
        path.check()?;
        let count = size.min(target - path.position());
        let batch = match template.take().filter(|t| t.header.next_offset() == count) {
            Some(batch) => batch,
            None => filler::build(Mark::Gap, Form::Keyed, count, timestamp)
                .await
                .map_err(|text| Refusal::Later(Doubt::destination(text)))?,
        };
        match path.try_append(&batch).await? {
            Appended::Yes => {}
            Appended::TooLarge | Appended::AboveSegment if count / 2 >= MIN_BATCH_OFFSETS => {
                size = count / 2
            }
            Appended::TooLarge | Appended::AboveSegment => {
                let text = format!(
                    "the destination refuses filler of {count} offsets as too large; raise max.message.bytes of the mirror topic"
                );
                return Err(Failure::new(MirrorTopicError::DestinationRefused, text).into());
            }
        }
        template = Some(batch);
    }
    Ok(())
}
