//! Transactions that applications left open on a returned cluster. Their markers would be written later, at offsets that belong to the mirror.

use std::time::{Duration, Instant};

use standfast_wire::{Cluster, ResponseError};
use tracing::warn;

use crate::calls;
use crate::partition::PartitionId;

/// How long all of them may take to end.
const ENDED_WITHIN: Duration = Duration::from_secs(60);
/// A transaction that no coordinator knows is looked for so long: its marker may just be on the way.
const HANGING_AFTER: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);

/// Aborts them, by taking their transactional ids over (InitProducerId), and waits until the markers are in the logs.
pub(crate) async fn abort(cluster: &Cluster, ids: &[PartitionId]) -> Result<(), String> {
    let began = Instant::now();
    loop {
        let undecided = calls::undecided(cluster, ids).await;
        if undecided.is_empty() {
            return Ok(());
        }
        let mut producers = Vec::new();
        for (id, found) in cluster.describe_producers(&undecided).await {
            let found = found.map_err(|error| format!("destination: {id}: {error}"))?;
            let open = found.iter().filter(|p| p.transaction_start_offset >= 0);
            producers.extend(open.map(|p| p.producer_id));
        }
        producers.sort_unstable();
        producers.dedup();
        let listed = cluster
            .list_undecided_transactions(&producers)
            .await
            .map_err(|error| format!("destination: {error}"))?;
        for open in listed.iter().filter(|t| t.state == "Ongoing") {
            warn!(
                transactional_id = open.transactional_id,
                producer_id = open.producer_id,
                "an application left this transaction open on the returned cluster; it is aborted, and its producer fenced"
            );
            match cluster.init_producer_id(Some(&open.transactional_id)).await {
                // The abort is under way, and the producer fenced; its marker is not written yet.
                Err(error) if error.code() == Some(ResponseError::ConcurrentTransactions) => {}
                Err(error) if !error.is_retriable() => {
                    return Err(format!(
                        "destination: the open transaction of {:?} cannot be aborted: {error}",
                        open.transactional_id
                    ));
                }
                _ => {}
            }
        }
        let hanging = !producers.is_empty() && listed.is_empty();
        if began.elapsed() > ENDED_WITHIN || (hanging && began.elapsed() > HANGING_AFTER) {
            return Err(format!(
                "transactions stay open on the destination in {} and {} more partitions (producer ids {producers:?}); abort them there (`kafka-transactions.sh abort`), then restore again",
                undecided
                    .first()
                    .map_or_else(String::new, ToString::to_string),
                undecided.len().saturating_sub(1)
            ));
        }
        tokio::time::sleep(POLL).await;
    }
}
