//! The fence behind a stop: what an engine that fell silent may still send is refused by the brokers.
//!
//! An engine that shares a link looks at its lease before each write, but it can be frozen between that look and the system call, and its kernel can hold bytes that it
//! has written. While the link mirrors, such a straggler is harmless: it repeats what the partition's new owner has written, under the same producer id and sequence number.
//! Once the topic belongs to applications it is not: its sequence number is the next one of the link's id, so the broker would append it behind their records.
//!
//! So when a partition is given away while such an engine may be about, a transaction without data is aborted under the link's producer id. Its marker raises the id's epoch in the
//! partition (seen on Kafka 4.1.0: an older epoch is refused from then on, INVALID_PRODUCER_EPOCH, 47; the next batch of the new epoch must have sequence number 0). It takes
//! one offset and is no record for any consumer. The link's transactional ids get a new epoch as well; there the coordinator refuses the old one.

use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use standfast_wire::{Cluster, Error, ResponseError};
use tracing::{info, warn};

use crate::handle::LinkHandle;
use crate::options::LinkName;
use crate::partition::PartitionId;
use crate::transactions::{self, TimeoutFound};

/// How long the destination may take for all of it.
const FENCE_MAX: Duration = Duration::from_secs(5);

/// Tries when somebody else raises the epoch in between: an agent that keeps the id from expiring, or fences too.
const TRIES: u32 = 3;

/// Partitions at a time whose transactional ids are renewed.
const RENEWALS_AT_A_TIME: usize = 16;

/// Between two looks whether the markers are written.
const MARKER_POLL: Duration = Duration::from_millis(10);

impl LinkHandle {
    /// To be called once the topics of a stopped link belong to applications for good, because it puts a marker behind each log that the source does not have. Does nothing unless
    /// an engine that shares the link fell silent within the last half hour. Answers how many partitions were fenced.
    ///
    /// # Errors
    /// Why it may have come to nothing; that engine, should it wake, may then append the one request that it was about to send.
    pub async fn fence(&self) -> Result<usize, crate::Error> {
        let inner = &self.inner;
        let Some(destination) = inner.destination.get() else {
            return Err(crate::Error::NotConnected {
                link: inner.options.name.to_string(),
                cluster: "destination",
            });
        };
        let ids = self.partitions(destination, None).await?;
        Ok(self.fence_some(destination, &ids).await)
    }

    /// As [`LinkHandle::fence`], of some partitions. What fails is logged: a stop is not undone for it.
    pub(crate) async fn fence_some(&self, destination: &Cluster, ids: &[PartitionId]) -> usize {
        let Some(silent) = self.inner.share.stragglers() else {
            return 0;
        };
        if ids.is_empty() {
            return 0;
        }
        let link = &self.inner.options.name;
        let error = match tokio::time::timeout(FENCE_MAX, raise(destination, link, ids)).await {
            Ok(Ok(())) => {
                info!(link = %link, partitions = ids.len(), silent_for = ?silent, "what an agent that fell silent may still send is refused from now on");
                return ids.len();
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("not done within {FENCE_MAX:?}"),
        };
        warn!(link = %link, error, "an agent of the link that fell silent is not fenced: should it wake, one request of it may still be appended");
        0
    }
}

/// Raises the epoch of all that the link writes under in these partitions.
async fn raise(cluster: &Cluster, link: &LinkName, ids: &[PartitionId]) -> Result<(), Error> {
    let name = link.transactional_id();
    let each = ids.iter().cloned();
    let timeout = &TimeoutFound::default();
    let slots =
        each.map(|id| async move { transactions::renew(timeout, cluster, link, &id).await });
    let slots = futures_util::stream::iter(slots).buffer_unordered(RENEWALS_AT_A_TIME);
    let (plain, slots) = tokio::join!(
        raise_plain(cluster, &name, ids),
        slots.try_collect::<Vec<()>>()
    );
    slots?;
    plain
}

async fn raise_plain(cluster: &Cluster, name: &str, ids: &[PartitionId]) -> Result<(), Error> {
    let mut tries = 0;
    loop {
        tries += 1;
        match mark(cluster, name, ids).await {
            Err(error) if tries < TRIES && is_overtaken(&error) => {}
            other => return other,
        }
    }
}

async fn mark(cluster: &Cluster, name: &str, ids: &[PartitionId]) -> Result<(), Error> {
    let identity = cluster.init_producer_id(Some(name)).await?;
    cluster
        .add_partitions_to_transaction(name, identity, ids)
        .await?;
    cluster.end_transaction(name, identity, false).await?;
    // The answer comes before the markers are in the logs.
    loop {
        let found = cluster.describe_transaction(name).await?;
        if found.is_none_or(|found| !found.state.starts_with("Prepare")) {
            return Ok(());
        }
        tokio::time::sleep(MARKER_POLL).await;
    }
}

fn is_overtaken(error: &Error) -> bool {
    matches!(
        error.code(),
        Some(
            ResponseError::InvalidProducerEpoch
                | ResponseError::ProducerFenced
                | ResponseError::ConcurrentTransactions
        )
    )
}
