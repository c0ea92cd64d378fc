//! Follows the source's log start: what its retention (or DeleteRecords) has taken is deleted from the mirror too, so that both logs begin at the same offset.
//!
//! Only from mirrors that run, whose log was compared with the source's; never beyond what is mirrored. The mirror's own retention may take more: then it starts later.

use std::collections::HashMap;
use std::sync::Arc;

use standfast_wire::Cluster;
use standfast_wire::admin::OffsetSpec;
use standfast_wire::fetch::Isolation;
use tracing::{debug, info, warn};

use crate::calls;
use crate::description::PartitionState;
use crate::link::Inner;
use crate::partition::PartitionId;
use crate::shard::Context;

/// Looks at all log starts at every `metadata_refresh`.
pub(crate) async fn keep(inner: Arc<Inner>, context: Context) {
    let mut told = HashMap::new();
    loop {
        follow(&inner, &context, &mut told).await;
        tokio::time::sleep(inner.live().metadata_refresh).await;
    }
}

async fn follow(inner: &Inner, context: &Context, told: &mut HashMap<PartitionId, String>) {
    let positions: HashMap<PartitionId, i64> = {
        let topics = inner.topics();
        topics
            .iter()
            .flat_map(|t| t.ids().zip(t.partitions()))
            .filter(|(_, status)| status.state() == PartitionState::Active)
            .filter_map(|(id, status)| Some((id, status.position()?)))
            .collect()
    };
    if positions.is_empty() {
        return;
    }
    let ids: Vec<PartitionId> = positions.keys().cloned().collect();
    // Only where the source's log does not begin at 0 is there a question to the destination.
    let mut starts = log_starts(&context.source, &ids).await;
    starts.retain(|_, start| *start > 0);
    let moved: Vec<PartitionId> = starts.keys().cloned().collect();
    if moved.is_empty() {
        return;
    }
    let ours = log_starts(&context.destination, &moved).await;
    let mut deletions = Vec::new();
    for (id, start) in starts {
        let (Some(position), Some(our_start)) = (positions.get(&id), ours.get(&id)) else {
            continue;
        };
        let before = start.min(*position);
        if before > *our_start {
            deletions.push((id, before));
        }
    }
    if deletions.is_empty() || inner.stop.is_cancelled() {
        return;
    }
    let wanted: HashMap<PartitionId, i64> = deletions.iter().cloned().collect();
    for (id, deleted) in context.destination.delete_records(&deletions).await {
        let before = wanted.get(&id).copied().unwrap_or_default();
        match deleted {
            Ok(_) => {
                told.remove(&id);
                info!(partition = %id, before, "followed the source's log start");
            }
            Err(error) => {
                let text = error.to_string();
                if told.get(&id) != Some(&text) {
                    warn!(partition = %id, before, error = %text, "the source's log start is not followed; the link's user needs DELETE on the mirror topic");
                    told.insert(id, text);
                }
            }
        }
    }
}

async fn log_starts(cluster: &Cluster, ids: &[PartitionId]) -> HashMap<PartitionId, i64> {
    let answers = calls::log_offsets(
        cluster,
        ids,
        OffsetSpec::Earliest,
        Isolation::ReadUncommitted,
    )
    .await;
    let mut starts = HashMap::new();
    for (id, start) in answers {
        match start {
            Ok(start) => {
                starts.insert(id, start);
            }
            Err(error) => debug!(partition = %id, %error, "log start not known"),
        }
    }
    starts
}
