//! A consumer that follows the active cluster.

mod assignment;
mod batch;
mod builder;
mod client;
mod commits;
mod context;
mod driver;
mod follow;
mod handle;
mod handover;
mod held;
mod mailbox;
mod message;
mod offsets;
mod orphans;
mod partition;
mod rebalance;
mod shared;
mod start;
mod subscription;
mod window;
mod worker;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use tokio_util::sync::DropGuard;

pub use self::builder::{
    ConsumerBuilder, DEFAULT_COMMIT_INTERVAL, DEFAULT_READ_AHEAD_BYTES, DEFAULT_READ_AHEAD_RECORDS,
};
pub use self::handle::{COMMIT_TIMEOUT, ConsumerHandle, SeekTo};
pub(crate) use self::held::Told;
use self::mailbox::Item;
pub use self::message::Message;
pub(crate) use self::message::{Source, is_link_filler};
use self::partition::HandOut;
pub use self::partition::MAX_UNACKNOWLEDGED;
pub(crate) use self::partition::Partition;
pub use self::rebalance::{RebalanceEvent, TopicPartition};
use self::shared::ConsumerShared;
pub use self::start::MissingOffset;
pub(crate) use self::start::{Committed, Known, Start, label, labelled_window};
pub(crate) use self::window::{MAX_TEXT, Window};
pub(crate) use self::worker::failure;
use crate::error::Result;
use crate::stats::add;

/// How long [`FailoverConsumer::close`] waits at most.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

type Key = (String, i32);

/// A consumer that follows the active cluster.
///
/// Records come at least once: those that were not acknowledged are read again after a crash or when a partition
/// moves to another member. Across a failover this consumer goes on exactly where it was, at the same offset on the
/// new cluster, or at the handoff offset if it had read further than the mirror.
///
/// **Across a failover each record comes once.** What the wrapper's producers send again is known by its
/// [`RecordId`](crate::RecordId) and left out, also when the first one came from the lost cluster. What is known goes with
/// the group's offsets (in the metadata of the commits), so it holds after a restart and when the partition moves to another
/// member. If the application still has the first one when the second comes, its acknowledgement counts for both. Records
/// of other producers are not touched.
///
/// It dereferences to its [`ConsumerHandle`]: `ack`, `commit`, `pause`, `seek` and the like are there, and other tasks can have a clone.
///
/// Dropping it commits what was acknowledged (but see [`manual_commit`](ConsumerBuilder::manual_commit)) and leaves the group, in the
/// background; [`close`](Self::close) waits for it.
///
/// ```
/// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/mock_fleet.rs"));
/// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let (fleet, _servers) = mock_fleet().await?;
/// # let producer = fleet.producer().build().await?;
/// # producer.send(standfast::Record::to("orders").payload("1")).await?;
/// use standfast::MissingOffset;
///
/// let mut consumer = fleet
///     .consumer("billing")
///     .on_missing_offset(MissingOffset::Earliest) // a new group has no offset yet
///     .subscribe(&["orders"])
///     .await?;
/// while let Some(message) = consumer.next().await {
///     let message = message?;
///     println!("{}-{} at {}: {:?}", message.topic(), message.partition(), message.offset(), message.payload());
///     consumer.ack(&message)?; // committed within a second
/// #     break;
/// }
/// consumer.close().await;
/// # assert_eq!(fleet.snapshot().records_consumed, 1);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct FailoverConsumer {
    handle: ConsumerHandle,
    /// Taken from the mailbox, not handed out yet.
    local: VecDeque<Item>,
    shutdown: DropGuard,
}

impl FailoverConsumer {
    /// The next record; `None` once the consumer is closed. Cancel-safe.
    ///
    /// # Errors
    /// [`Error::Consume`](crate::Error::Consume) for what the application can do something about, such as a missing topic. The consumer goes
    /// on: call it again.
    pub async fn next(&mut self) -> Option<Result<Message>> {
        poll_fn(|cx| self.poll_message(cx)).await
    }

    /// The consumer's controls, for another task.
    pub fn handle(&self) -> ConsumerHandle {
        self.handle.clone()
    }

    /// Commits what was acknowledged (with [`manual_commit`](ConsumerBuilder::manual_commit), what was asked for), leaves the group and
    /// waits for it, at most [`CLOSE_TIMEOUT`].
    pub async fn close(self) {
        let Self {
            handle, shutdown, ..
        } = self;
        drop(shutdown);
        let shared = handle.shared();
        if tokio::time::timeout(CLOSE_TIMEOUT, shared.closed.cancelled())
            .await
            .is_err()
        {
            tracing::warn!(
                client = shared.name.as_str(),
                "the consumer did not close in time, it goes on in the background"
            );
        }
    }

    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Message>>> {
        let shared = self.handle.shared();
        let counters = &shared.fleet.counters;
        loop {
            while let Some(item) = self.local.pop_front() {
                let (partition, reading, message) = match item {
                    Item::Failure(error) => return Poll::Ready(Some(Err(error))),
                    Item::Filler {
                        partition,
                        reading,
                        offset,
                    } => {
                        let passed = partition.pass(offset, reading);
                        let counter = if passed {
                            &counters.filler_hidden
                        } else {
                            &counters.records_discarded
                        };
                        add(counter, 1);
                        continue;
                    }
                    Item::Record {
                        partition,
                        reading,
                        message,
                    } => (partition, reading, message),
                };
                let id = message.id().filter(|_| shared.leave_out_repeated);
                let generation = message.source.generation;
                match partition.hand_out(message.offset, reading, generation, id) {
                    HandOut::Yes => {
                        add(&counters.records_consumed, 1);
                        return Poll::Ready(Some(Ok(message)));
                    }
                    HandOut::Repeated => {
                        tracing::debug!(
                            topic = message.topic(),
                            partition = message.partition(),
                            offset = message.offset,
                            ?id,
                            "a record that came again is left out"
                        );
                        add(&counters.records_repeated, 1);
                    }
                    HandOut::Ended => add(&counters.records_discarded, 1),
                    HandOut::TooMany => {
                        self.local.push_front(Item::Record {
                            partition,
                            reading,
                            message,
                        });
                        return self.wait_for_acks(cx);
                    }
                }
            }
            match shared.mailbox.poll_take(cx, &mut self.local) {
                Poll::Ready(true) => {}
                Poll::Ready(false) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn wait_for_acks(&self, cx: &Context<'_>) -> Poll<Option<Result<Message>>> {
        let shared = self.handle.shared();
        shared.mailbox.register_reader(cx);
        if !shared.blocked.swap(true, Relaxed) {
            tracing::warn!(
                client = shared.name.as_str(),
                limit = MAX_UNACKNOWLEDGED,
                "no more records are handed out until some are acknowledged: call ack() for every record"
            );
        }
        Poll::Pending
    }
}

/// The controls are methods of the handle, so that they are the same for who has the consumer and for who has a handle only.
impl Deref for FailoverConsumer {
    type Target = ConsumerHandle;

    fn deref(&self) -> &ConsumerHandle {
        &self.handle
    }
}

impl Stream for FailoverConsumer {
    type Item = Result<Message>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_message(cx)
    }
}
