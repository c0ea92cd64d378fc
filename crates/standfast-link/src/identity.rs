//! The producer id on the destination that all engines of a link share.
//!
//! It belongs to the transactional id `standfast-<link>`, so the destination itself keeps it: no store of ours. Every batch is sent outside any transaction
//! under (that id, epoch 0, sequence = offset). One id for all engines is what makes two of them harmless: with two ids, both first batches on an empty partition
//! would be accepted. An id that is merely found in the last batch of the log is never taken over: after a failback it can be an application's own.
//!
//! Seen on Kafka 4.1.0:
//! - The coordinator's log is created by the first FindCoordinator for a transactional id; before that DescribeTransactions and InitProducerId answer NOT_COORDINATOR (16),
//!   then COORDINATOR_LOAD_IN_PROGRESS (14) for a moment, so FindCoordinator is part of each try.
//! - DescribeTransactions answers TRANSACTIONAL_ID_NOT_FOUND (105) for a new id; InitProducerId allocates; another InitProducerId keeps the id and bumps the epoch only.
//! - Plain idempotent batches of epoch 0 are accepted while the coordinator's epoch is 2 or 3, also when it is bumped between two batches.
//! - The last five batches are recognised as repeats (answered with their first offset), older or overlapping ones and gaps get OUT_OF_ORDER_SEQUENCE_NUMBER (45).
//! - A partition without state of the id accepts any first sequence; sequences wrap from 2^31 - 1 to 0, inside a batch or between two.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use standfast_wire::Cluster;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::calls;
use crate::link::Inner;
use crate::partition::Side;
use crate::shard::Command;

/// A transactional id expires after 7 days without use (`transactional.id.expiration.ms`); each InitProducerId counts as use and costs one of 32,767 epochs.
const KEEP_ALIVE: Duration = Duration::from_secs(24 * 3600);
/// The first one comes sooner, so that an agent that is restarted every few hours keeps the id too.
const FIRST_KEEP_ALIVE: Duration = Duration::from_secs(3600);

/// Finds the id, or has it allocated; retries without end.
pub(crate) async fn find(inner: &Inner, destination: &Cluster) {
    let mut wait = inner.options.backoff.min;
    loop {
        match resolve(inner, destination).await {
            Ok(id) => {
                inner.set_trouble(Side::Destination, None);
                inner.producer_id.store(id, Ordering::Release);
                return;
            }
            Err(error) => {
                warn!(link = %inner.options.name, %error, "no producer id from the destination, trying again");
                inner.set_trouble(Side::Destination, Some(&error));
            }
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(inner.options.backoff.max);
    }
}

async fn resolve(inner: &Inner, destination: &Cluster) -> Result<i64, standfast_wire::Error> {
    let transactional_id = inner.options.name.transactional_id();
    match calls::described_producer_id(destination, &transactional_id).await? {
        Some(id) => Ok(id),
        None => calls::init_producer_id(destination, &transactional_id).await,
    }
}

/// Keeps the id from expiring and notices if it is another one nevertheless.
pub(crate) async fn keep(inner: Arc<Inner>, destination: Cluster) {
    let transactional_id = inner.options.name.transactional_id();
    let mut keep_alive_at = Instant::now() + FIRST_KEEP_ALIVE;
    loop {
        tokio::time::sleep(inner.live().metadata_refresh).await;
        let due = Instant::now() >= keep_alive_at;
        let found = if due {
            calls::init_producer_id(&destination, &transactional_id).await
        } else {
            resolve(&inner, &destination).await
        };
        let id = match found {
            Ok(id) => id,
            Err(error) => {
                warn!(link = %inner.options.name, %error, "the producer id could not be looked up");
                continue;
            }
        };
        if due {
            keep_alive_at = Instant::now() + KEEP_ALIVE;
        }
        let before = inner.producer_id.swap(id, Ordering::AcqRel);
        if before != id {
            info!(link = %inner.options.name, before, id, "the link has another producer id on the destination, starting all partitions again");
            for shard in inner.all_shards() {
                let _: Result<(), _> = shard.send(Command::NewProducerId).await;
            }
        }
    }
}
