//! How long a transaction of the link may stay open on the destination before its coordinator aborts it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use standfast_wire::{Cluster, Error, ResponseError};
use tracing::info;

/// Longest first. A mirror whose engine ended inside a transaction has so long to be taken up again. Brokers say only whether they take a time
/// (`transaction.max.timeout.ms`, 15 minutes by default), so the first one that is taken counts.
const TIMEOUTS: [Duration; 8] = [
    Duration::from_secs(24 * 3600),
    Duration::from_secs(12 * 3600),
    Duration::from_secs(6 * 3600),
    Duration::from_secs(3 * 3600),
    Duration::from_secs(3600),
    Duration::from_secs(30 * 60),
    Duration::from_secs(15 * 60),
    Duration::from_secs(60),
];

/// Which of [`TIMEOUTS`] the destination took last.
#[derive(Debug, Default)]
pub(crate) struct TimeoutFound(AtomicUsize);

impl TimeoutFound {
    /// Has a transactional id allocated, with the longest timeout that the destination takes.
    pub(super) async fn allocate(&self, cluster: &Cluster, name: &str) -> Result<(), Error> {
        let from = self.0.load(Ordering::Relaxed);
        let mut refused = None;
        for (index, timeout) in TIMEOUTS.iter().enumerate().skip(from) {
            match cluster.init_producer_id_within(Some(name), *timeout).await {
                Err(error) if error.code() == Some(ResponseError::InvalidTransactionTimeout) => {
                    refused = Some(error);
                }
                other => {
                    other?;
                    if self.0.swap(index, Ordering::Relaxed) != index {
                        info!(timeout = ?timeout, "longest transaction that the destination allows (transaction.max.timeout.ms of its brokers)");
                    }
                    return Ok(());
                }
            }
        }
        refused.map_or(Ok(()), Err)
    }
}
