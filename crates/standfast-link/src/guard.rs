//! Watches idle mirrors: a foreign write moves the destination's log end although the link wrote nothing. Busy mirrors notice by the offset of their next acknowledgement.

use std::sync::Arc;

use standfast_wire::Cluster;
use tracing::debug;

use crate::calls;
use crate::link::Inner;
use crate::partition::PartitionId;
use crate::shard::Command;
use crate::topics::Topic;

/// Compares the destination's log ends with the idle positions, at every `guard_interval`.
pub(crate) async fn keep(inner: Arc<Inner>, destination: Cluster) {
    let mut tick = tokio::time::interval(inner.options.guard_interval);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        look(&inner, &destination).await;
    }
}

fn idle(inner: &Inner) -> Vec<(PartitionId, i64)> {
    let topics = inner.topics();
    let positions = topics
        .iter()
        .flat_map(|t: &Topic| t.ids().zip(t.partitions()));
    positions
        .filter_map(|(id, status)| Some((id, status.idle_position()?)))
        .collect()
}

async fn look(inner: &Inner, destination: &Cluster) {
    let before = idle(inner);
    if before.is_empty() {
        return;
    }
    let ids: Vec<PartitionId> = before.iter().map(|(id, _)| id.clone()).collect();
    let ends = calls::log_ends(destination, &ids).await;
    for (id, position) in before {
        match ends.get(&id) {
            // Whether it still stands there is checked by the shard, which alone knows.
            Some(Ok(found)) if *found != position => {
                for shard in inner.all_shards() {
                    let _ = shard
                        .send(Command::Suspect {
                            id: id.clone(),
                            position,
                            found: *found,
                        })
                        .await;
                }
            }
            Some(Err(error)) => debug!(partition = %id, %error, "log end not known"),
            _ => {}
        }
    }
}
