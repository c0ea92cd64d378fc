//! A producer that follows the active cluster.

mod builder;
mod client;
mod delivery;
mod driver;
mod log;
pub(crate) mod partitioner;
mod replay;
mod room;
mod shared;
mod spent;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::TryAcquireError;
use tokio_util::sync::DropGuard;
use uuid::Uuid;

pub use self::builder::{DEFAULT_BUFFER_BYTES, DEFAULT_BUFFER_RECORDS, ProducerBuilder};
pub use self::delivery::DeliveryFuture;
use self::log::Taken;
pub use self::partitioner::Partitioner;
pub use self::replay::{DEFAULT_REPLAY_AGE, DEFAULT_REPLAY_BYTES, Overflow};
pub(crate) use self::shared::ProducerShared;
use crate::error::{Error, Result};
use crate::record::{Delivery, Record};

/// A producer that follows the active cluster. Cheap to clone; closed with the last clone.
///
/// A send resolves when the cluster that is active *now* has acknowledged the record. What is unacknowledged when
/// the active cluster changes is sent to the new one, in the order in which it was given, ahead of new records. The
/// order per key and per partition therefore holds across a failover. A record that the old cluster had stored without its
/// acknowledgement getting through may stand in the log twice; both have the same [`RecordId`](crate::RecordId), and the wrapper's consumers
/// drop the second.
///
/// **Nothing is lost with a cluster** as long as the producer lives: an acknowledged record is kept until every other cluster of
/// the fleet is seen to hold it ([`replay_bytes`](ProducerBuilder::replay_bytes)). After a flip, those that the new cluster
/// does not hold are sent again, to the same partition, in their order and ahead of new ones: where the handoff names the
/// partition, all at or above its offset, else all that the cluster was not seen to hold while it was a standby. After a planned
/// switchover that is none. To see what a standby holds, the producer's credentials need DESCRIBE and READ on the topic
/// there; without them nothing is let go before the bound is reached.
///
/// While the fleet is fenced (planned switchover) sends wait.
///
/// ```
/// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/mock_fleet.rs"));
/// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let (fleet, _servers) = mock_fleet().await?;
/// use std::time::Duration;
/// use standfast::Record;
///
/// let producer = fleet.producer().property("linger.ms", "5").build().await?;
/// let first = producer.send(Record::to("orders").key("customer-7").payload("1")).await?; // the active cluster has it
/// assert_eq!((first.partition, first.offset), (0, 0));
///
/// // Many in flight: they wait for room, and their order is that of the log.
/// let mut deliveries = Vec::new();
/// for order in 2..=100 {
///     deliveries.push(producer.enqueue(Record::to("orders").payload(order.to_string())).await?);
/// }
/// producer.flush(Duration::from_secs(30)).await?;
/// for (delivery, offset) in deliveries.into_iter().zip(1..) {
///     assert_eq!(delivery.await?.offset, offset);
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct FailoverProducer {
    shared: Arc<ProducerShared>,
    _shutdown: Arc<DropGuard>,
}

impl FailoverProducer {
    /// Sends a record and waits for the acknowledgement; first for room in the buffer, if it is full.
    ///
    /// There is no time limit: put `tokio::time::timeout` around it if you need one. A record whose send is dropped
    /// after it got into the buffer is sent all the same.
    ///
    /// # Errors
    /// [`Error::Refused`] if the cluster will never take this record, [`Error::RecordTooLarge`], [`Error::Closed`].
    pub async fn send(&self, record: Record) -> Result<Delivery> {
        self.enqueue(record).await?.await
    }

    /// Puts a record into the buffer, waiting for room, and returns the future of its acknowledgement. The order of
    /// `enqueue` calls is the order in the log.
    ///
    /// # Errors
    /// [`Error::RecordTooLarge`], [`Error::Closed`].
    pub async fn enqueue(&self, record: Record) -> Result<DeliveryFuture> {
        let bytes = self.shared.permits_for(&record)?;
        let closed = |_| Error::Closed;
        // In the same order as the records: waiting for the one must not let others overtake in the next.
        let replay = match (&self.shared.replay, self.shared.overflow) {
            (Some(replay), Overflow::Block) => Some(
                Arc::clone(replay)
                    .acquire_many_owned(bytes)
                    .await
                    .map_err(closed)?,
            ),
            (Some(_), _) => self.shared.replay_room(bytes)?,
            (None, _) => None,
        };
        self.shared.take_room(bytes).await?;
        self.shared.admit(record, Taken { bytes, replay })
    }

    /// Puts a record into the buffer if there is room.
    ///
    /// # Errors
    /// [`Error::BufferFull`], [`Error::Unprotected`], [`Error::RecordTooLarge`], [`Error::Closed`].
    pub fn try_send(&self, record: Record) -> Result<DeliveryFuture> {
        let bytes = self.shared.permits_for(&record)?;
        let replay = self.shared.replay_room(bytes)?;
        self.shared
            .try_take_room(bytes)
            .map_err(|error| match error {
                TryAcquireError::Closed => Error::Closed,
                TryAcquireError::NoPermits => Error::BufferFull {
                    unresolved: self.unresolved(),
                },
            })?;
        self.shared.admit(record, Taken { bytes, replay })
    }

    /// Waits until every record given so far is acknowledged or refused.
    ///
    /// # Errors
    /// [`Error::FlushTimeout`]; the records are kept and sent on.
    pub async fn flush(&self, timeout: Duration) -> Result<()> {
        let end = self.shared.lock().end();
        if tokio::time::timeout(timeout, self.shared.resolved_up_to(end))
            .await
            .is_ok()
        {
            return Ok(());
        }
        Err(Error::FlushTimeout {
            unresolved: self.unresolved(),
            waited: timeout,
        })
    }

    /// Records that wait for an acknowledgement.
    pub fn unresolved(&self) -> usize {
        self.shared.lock().unresolved()
    }

    /// The id of this producer instance: the first half of its records' [`RecordId`](crate::RecordId)s.
    pub fn instance(&self) -> Uuid {
        self.shared.instance
    }
}

#[cfg(test)]
mod tests;
