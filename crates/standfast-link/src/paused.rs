//! Keeps the lag of paused mirrors and of those that another engine of the link runs true: nothing is fetched here, so both clusters are asked for their log ends.

use std::sync::Arc;
use std::time::Duration;

use crate::calls;
use crate::description::PartitionState;
use crate::link::Inner;
use crate::partition::PartitionId;
use crate::shard::Context;
use crate::status::PartitionStatus;

/// How often they are asked.
const INTERVAL: Duration = Duration::from_secs(1);

/// Paused, or mirrored by another engine.
fn is_quiet(status: &PartitionStatus) -> bool {
    matches!(
        status.state(),
        PartitionState::Paused | PartitionState::Elsewhere
    )
}

pub(crate) async fn keep(inner: Arc<Inner>, context: Context) {
    let mut tick = tokio::time::interval(INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        look(&inner, &context).await;
    }
}

async fn look(inner: &Inner, context: &Context) {
    let paused: Vec<(PartitionId, Arc<PartitionStatus>)> = inner
        .topics()
        .iter()
        .flat_map(|topic| topic.ids().zip(topic.partitions().iter().map(Arc::clone)))
        .filter(|(_, status)| is_quiet(status))
        .collect();
    if paused.is_empty() {
        return;
    }
    let ids: Vec<PartitionId> = paused.iter().map(|(id, _)| id.clone()).collect();
    let (source, destination) = tokio::join!(
        calls::log_ends(&context.source, &ids),
        calls::log_ends(&context.destination, &ids)
    );
    for (id, status) in paused {
        // It may have been resumed meanwhile; then the data thread knows better.
        if !is_quiet(&status) {
            continue;
        }
        if let Some(Ok(end)) = destination.get(&id) {
            status.set_position(*end);
        }
        if let Some(Ok(end)) = source.get(&id) {
            status.source_answered(*end);
        }
    }
}
