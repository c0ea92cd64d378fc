//! Batches that a stock broker would not append as they are: records missing inside, timestamps of the broker, timestamps relative to a delete horizon.

use standfast_wire::batch::{RawBatch, TimestampType};

use crate::classify::unsupported;
use crate::slow::SlowPath;
use crate::startup::Refusal;

/// Appends the same records, encoded again.
pub(crate) async fn run(_path: &mut SlowPath<'_>, batch: &RawBatch) -> Result<(), Refusal> {
    let header = &batch.header;
    let what = if header.attributes.timestamp_type() == TimestampType::LogAppendTime {
        "a batch with LogAppendTime, which the destination would replace by its own clock; mirroring of it is not built yet".to_owned()
    } else if header.attributes.has_delete_horizon() {
        "a batch rewritten by compaction (delete horizon set); mirroring of it is not built yet"
            .to_owned()
    } else {
        format!(
            "a batch of {} records over {} offsets (compaction); mirroring of gaps is not built yet",
            header.record_count,
            i64::from(header.last_offset_delta) + 1
        )
    };
    Err(unsupported(format!("source offset {}: {what}", header.base_offset)).into())
}
