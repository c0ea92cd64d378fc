//! What the application can tell a consumer, and ask it.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::oneshot;

use super::Message;
use super::rebalance::TopicPartition;
use super::shared::{ConsumerShared, Request};
use crate::error::{Error, Result};
use crate::stats::add;

/// How long [`ConsumerHandle::commit`] and [`ConsumerHandle::committed`] wait for the cluster.
pub const COMMIT_TIMEOUT: Duration = Duration::from_secs(15);

/// Where [`ConsumerHandle::seek`] goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SeekTo {
    /// This offset.
    Offset(i64),
    /// The log start.
    Beginning,
    /// The log end: only what comes from now on.
    End,
    /// The first record with this timestamp or a later one, in milliseconds since 1970; the log end if there is none.
    Timestamp(i64),
}

/// Controls a consumer from any task: acknowledges, commits, pauses, seeks. [`FailoverConsumer`](crate::FailoverConsumer) itself
/// dereferences to it. Cheap to clone; it does not keep the consumer open.
#[derive(Debug, Clone)]
pub struct ConsumerHandle {
    shared: Arc<ConsumerShared>,
}

impl ConsumerHandle {
    pub(super) fn new(shared: &Arc<ConsumerShared>) -> Self {
        Self {
            shared: Arc::clone(shared),
        }
    }

    pub(super) fn shared(&self) -> &Arc<ConsumerShared> {
        &self.shared
    }

    /// Marks a record as processed. The group's offset moves past it once every record before it in the partition is
    /// marked too, so records may be processed and acknowledged in any order. Never blocks; the commit follows within
    /// the commit interval, or with [`commit`](Self::commit) if the consumer commits only then.
    ///
    /// After a failover the acknowledgement of a record from the old cluster counts if the new one holds the record
    /// (its offset is below the handoff), or if its producer is on the wrapper and sends it again. Otherwise it is ignored and
    /// counted in [`Stats`](crate::Stats::acks_ignored). So is one from before a [`seek`](Self::seek) of the partition.
    ///
    /// # Errors
    /// [`Error::Closed`] after [`close`](crate::FailoverConsumer::close).
    pub fn ack(&self, message: &Message) -> Result<()> {
        self.ack_batch(std::slice::from_ref(message))
    }

    /// Marks each of these records as processed.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn ack_batch(&self, messages: &[Message]) -> Result<()> {
        self.refuse_closed()?;
        let is_ignored = |message: &&Message| {
            let (offset, generation) = (message.offset, message.source.generation);
            !message.partition.acknowledge(offset, generation)
        };
        let ignored = messages.iter().filter(is_ignored).count();
        self.acknowledged(ignored);
        Ok(())
    }

    /// Marks a record and all earlier ones of its partition as processed.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn ack_through(&self, message: &Message) -> Result<()> {
        self.refuse_closed()?;
        let (offset, generation) = (message.offset, message.source.generation);
        let counts = message.partition.acknowledge_through(offset, generation);
        self.acknowledged(usize::from(!counts));
        Ok(())
    }

    /// Marks every record that was handed out until now as processed, in all partitions.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn ack_all(&self) -> Result<()> {
        self.refuse_closed()?;
        for partition in self.shared.partitions() {
            partition.acknowledge_all();
        }
        self.acknowledged(0);
        Ok(())
    }

    /// Commits what is acknowledged now, and waits until the group has it, at most [`COMMIT_TIMEOUT`]. Where a
    /// [`seek`](Self::seek) was the last thing, that is the offset it went to.
    ///
    /// An error does not say that nothing was committed. What was not is still acknowledged: the next commit covers it. On a flip
    /// in between, the new cluster's group may know less than what was committed on the old one: commit again.
    ///
    /// # Errors
    /// [`Error::NotCommitted`] if the cluster refused it or did not answer, if the consumer moved to another cluster
    /// meanwhile, or if the group has not given back yet what was acknowledged before a flip. [`Error::Closed`].
    pub async fn commit(&self) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        self.ask_for_commit(Some(reply))?;
        self.answer(answer, ConsumerShared::not_committed).await
    }

    /// As [`commit`](Self::commit), without waiting for it: a failure is logged and counted
    /// ([`Stats::commits_failed`](crate::Stats::commits_failed)). For use in
    /// [`on_rebalance`](crate::ConsumerBuilder::on_rebalance), too.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn request_commit(&self) -> Result<()> {
        self.ask_for_commit(None)
    }

    /// Stops handing out records of these partitions, until [`resume`](Self::resume). What was read ahead is not handed out either;
    /// it is read again later. The other partitions go on, acknowledgements and commits too.
    ///
    /// It holds over flips, and for partitions that go away and come back to this consumer. It may name partitions that
    /// the consumer does not have.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn pause(&self, partitions: &[TopicPartition]) -> Result<()> {
        self.refuse_closed()?;
        self.shared
            .pause(partitions.iter().map(TopicPartition::key));
        self.look_again();
        Ok(())
    }

    /// Hands out records of these partitions again, from where they were paused.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn resume(&self, partitions: &[TopicPartition]) -> Result<()> {
        self.refuse_closed()?;
        self.shared
            .resume(partitions.iter().map(TopicPartition::key));
        Ok(())
    }

    /// The partitions that are paused, whether the consumer has them or not.
    pub fn paused(&self) -> Vec<TopicPartition> {
        let table = self.shared.table();
        table
            .paused
            .iter()
            .cloned()
            .map(TopicPartition::from)
            .collect()
    }

    /// Goes on elsewhere in a partition. What was read ahead is not handed out after this has returned, and acknowledgements of
    /// records from before it do not count any more. The new position is committed in its turn, so it holds after a restart.
    ///
    /// Backwards, records are handed out again, each that stands in the log from there on, once: what the consumer knows of
    /// repetitions is forgotten. Where the cluster must be asked (all but [`SeekTo::Offset`]) that happens in the background
    /// and is tried until it succeeds; until then nothing of the partition is handed out, and it has no
    /// [`position`](Self::position). An offset that the log does not have is for
    /// [`on_missing_offset`](crate::ConsumerBuilder::on_missing_offset).
    ///
    /// It holds over a flip, as any position: if the new cluster has the old one's log only up to an earlier offset, reading goes on there.
    /// Without a handoff (nothing is known about the new log then) the group's offset decides.
    ///
    /// # Errors
    /// [`Error::NotAssigned`]: wait for [`RebalanceEvent::Assigned`](crate::RebalanceEvent::Assigned).
    /// [`Error::Configuration`] for a negative number. [`Error::Closed`].
    pub fn seek(&self, topic: &str, partition: i32, to: SeekTo) -> Result<()> {
        self.refuse_closed()?;
        if let SeekTo::Offset(number) | SeekTo::Timestamp(number) = to
            && number < 0
        {
            return Err(Error::Configuration {
                reason: format!("{to:?}: offsets and times are not negative"),
            });
        }
        if self.shared.seek((topic.to_owned(), partition), to) {
            self.look_again();
            return Ok(());
        }
        Err(Error::NotAssigned {
            topic: topic.to_owned(),
            partition,
        })
    }

    /// The partitions that the group has given to this consumer. During a flip, those of the old cluster, until the group on the
    /// new one has decided.
    pub fn assignment(&self) -> Vec<TopicPartition> {
        let table = self.shared.table();
        table
            .assigned
            .iter()
            .cloned()
            .map(TopicPartition::from)
            .collect()
    }

    /// Offset of the next record of the partition that [`next`](crate::FailoverConsumer::next) would hand out; `None` if the
    /// consumer does not have the partition, or it is not known yet where to read.
    pub fn position(&self, topic: &str, partition: i32) -> Option<i64> {
        self.shared.position(&(topic.to_owned(), partition))
    }

    /// The group's committed offset on the active cluster, asked from it; `None` if there is none.
    ///
    /// # Errors
    /// [`Error::OffsetsUnknown`] if the cluster does not answer within [`COMMIT_TIMEOUT`]. [`Error::Closed`].
    pub async fn committed(&self, topic: &str, partition: i32) -> Result<Option<i64>> {
        let (reply, answer) = oneshot::channel();
        self.refuse_closed()?;
        self.shared.ask(Request::Committed {
            key: (topic.to_owned(), partition),
            reply,
        })?;
        self.answer(answer, ConsumerShared::not_answered).await
    }

    fn ask_for_commit(&self, reply: Option<oneshot::Sender<Result<()>>>) -> Result<()> {
        self.refuse_closed()?;
        let generation = self.shared.table().generation;
        self.shared.ask(Request::Commit { generation, reply })
    }

    async fn answer<T>(
        &self,
        answer: oneshot::Receiver<Result<T>>,
        failed: fn(&ConsumerShared, String) -> Error,
    ) -> Result<T> {
        match tokio::time::timeout(COMMIT_TIMEOUT, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) if self.shared.is_closing() => Err(Error::Closed),
            Ok(Err(_)) => Err(self.shared.has_moved()),
            Err(_) => Err(failed(
                &self.shared,
                format!("the cluster has not answered within {COMMIT_TIMEOUT:?}"),
            )),
        }
    }

    fn acknowledged(&self, ignored: usize) {
        add(&self.shared.fleet.counters.acks_ignored, ignored);
        self.look_again();
    }

    /// Whoever waits for acknowledgements may go on.
    fn look_again(&self) {
        if self.shared.blocked.load(Relaxed) {
            self.shared.mailbox.wake_reader();
        }
    }

    fn refuse_closed(&self) -> Result<()> {
        // While it closes, what the last commit can cover still counts.
        match self.shared.closed.is_cancelled() {
            true => Err(Error::Closed),
            false => Ok(()),
        }
    }
}
