//! Where a mirror begins: at the source's log start, at its end, or at a time.
//!
//! The offsets are decided once, when the mirror topic is still empty, and kept with the running state. From then on the destination's log says them as well: the
//! filler below them carries its target (see [`crate::filler`]), and behind it the log begins there. So a restart goes on to the same offset, and of two engines
//! that decided differently the one whose batch was appended has decided for both.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use standfast_wire::Error as WireError;
use standfast_wire::admin::OffsetSpec;
use standfast_wire::fetch::Isolation;
use tracing::info;

use crate::calls;
use crate::link::Inner;
use crate::partition::PartitionId;
use crate::shard::Context;

/// Where the mirror of a topic begins. Partitions that the source topic gets later are mirrored from their beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MirrorStart {
    /// At the source's log start: all that there is.
    #[default]
    Earliest,
    /// At the source's log end (its last stable offset: no transaction is cut in two).
    Latest,
    /// At the batch that holds the first record with this timestamp or a later one, in milliseconds since 1970; at the end if there is none.
    Timestamp(i64),
}

/// What could not be asked.
#[derive(Debug)]
pub(crate) enum Unknown {
    Source(WireError),
    Offset(String),
}

/// Decides where the partitions of a topic begin, if that is not `earliest` and nothing was decided or mirrored yet.
pub(crate) async fn decide(
    inner: &Inner,
    context: &Context,
    topic: &str,
    partitions: usize,
) -> Result<(), Unknown> {
    let start = inner.live().start_of(topic);
    let lifecycle = &inner.options.lifecycle;
    if start == MirrorStart::Earliest || lifecycle.start_offset(topic, 0).is_some() {
        return Ok(());
    }
    let ids: Vec<PartitionId> = (0..partitions)
        .map(|n| PartitionId::new(topic, i32::try_from(n).unwrap_or(i32::MAX)))
        .collect();
    let ours = calls::log_ends(&context.destination, &ids).await;
    for id in &ids {
        match ours.get(id) {
            Some(Ok(0)) => {}
            // It has begun before.
            Some(Ok(_)) => return Ok(()),
            Some(Err(text)) => return Err(Unknown::Offset(format!("destination: {text}"))),
            None => return Err(Unknown::Offset(format!("destination: no log end of {id}"))),
        }
    }
    let ends = offsets(context, &ids, OffsetSpec::Latest, Isolation::ReadCommitted).await?;
    let mut starts = match start {
        MirrorStart::Timestamp(at) => {
            let spec = OffsetSpec::Timestamp(at);
            offsets(context, &ids, spec, Isolation::ReadUncommitted).await?
        }
        _ => ends.clone(),
    };
    for (id, offset) in &mut starts {
        let end = ends.get(id).copied().unwrap_or(*offset);
        if *offset < 0 {
            *offset = end;
        } else if *offset < end {
            let batch = calls::batch_at(&context.source, id, *offset)
                .await
                .map_err(Unknown::Source)?;
            *offset = batch.map_or(*offset, |b| b.header.base_offset.min(*offset));
        }
    }
    let starts: Vec<i64> = ids
        .iter()
        .map(|id| starts.get(id).copied().unwrap_or_default())
        .collect();
    info!(link = %inner.options.name, topic, ?start, offsets = ?starts, "decided where the mirror begins");
    lifecycle.set_start_offsets(topic, starts);
    Ok(())
}

async fn offsets(
    context: &Context,
    ids: &[PartitionId],
    spec: OffsetSpec,
    isolation: Isolation,
) -> Result<HashMap<PartitionId, i64>, Unknown> {
    let found = calls::log_offsets(&context.source, ids, spec, isolation).await;
    let unknown = |text: String| Unknown::Offset(format!("source: {text}"));
    let mut offsets = HashMap::new();
    for id in ids {
        let missing = || Err(format!("no offset of {id}"));
        let offset = found.get(id).cloned().unwrap_or_else(missing);
        offsets.insert(id.clone(), offset.map_err(unknown)?);
    }
    Ok(offsets)
}
