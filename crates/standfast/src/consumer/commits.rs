//! What a generation tells its group, and what became of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use rdkafka::TopicPartitionList;
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::sync::oneshot;

use super::context::WorkerContext;
use super::partition::Partition;
use super::shared::ConsumerShared;
use super::window::MAX_TEXT;
use crate::error::Result;
use crate::ffi::CommitQueue;
use crate::stats::add;

/// Commits that wait for an answer; with more of them nothing new is sent, the next commit covers it.
const MAX_UNANSWERED: usize = 16;

/// Commits of one generation.
#[derive(Debug, Default)]
pub(super) struct Commits {
    /// Where answers come in; `None` before the generation reads and after it has ended.
    queue: Option<CommitQueue>,
    /// Number of the last commit that was sent.
    number: u64,
    /// Not answered yet, by their numbers.
    unanswered: BTreeMap<u64, Vec<Part>>,
    waiters: Vec<Waiter>,
    /// By how much the windows are shorter than usual, because the broker takes less metadata.
    window_cut: usize,
}

/// A partition's part of a commit.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) partition: Arc<Partition>,
    pub(super) point: i64,
    /// The window's text, where it may be needed again.
    pub(super) seen: Option<String>,
}

/// An application that waits for all commits up to a number.
#[derive(Debug)]
struct Waiter {
    until: u64,
    reply: oneshot::Sender<Result<()>>,
}

impl Commits {
    pub(super) fn begin(&mut self, consumer: &BaseConsumer<WorkerContext>) {
        self.queue = CommitQueue::new(consumer);
    }

    /// The generation has ended: nothing more is committed. Who waits for an answer is told so.
    pub(super) fn end(&mut self) {
        *self = Self::default();
    }

    /// Whether a commit can be sent.
    pub(super) fn takes_more(&self) -> bool {
        self.queue.is_some() && self.unanswered.len() < MAX_UNANSWERED
    }

    /// Longest text of a window.
    pub(super) fn limit(&self) -> usize {
        MAX_TEXT.saturating_sub(self.window_cut)
    }

    /// Sends a commit and does not wait.
    pub(super) fn send(
        &mut self,
        consumer: &BaseConsumer<WorkerContext>,
        offsets: &TopicPartitionList,
        parts: Vec<Part>,
    ) -> Result<(), RDKafkaErrorCode> {
        let Some(queue) = &self.queue else {
            return Err(RDKafkaErrorCode::State);
        };
        self.number += 1;
        queue.commit(consumer, offsets, self.number)?;
        self.unanswered.insert(self.number, parts);
        Ok(())
    }

    /// Answers `reply` when every commit that was sent until now is answered.
    pub(super) fn wait(&mut self, reply: oneshot::Sender<Result<()>>) {
        self.waiters.push(Waiter {
            until: self.number,
            reply,
        });
        self.answer_waiters();
    }

    pub(super) fn has_waiters(&self) -> bool {
        !self.waiters.is_empty()
    }

    /// Takes in what became of earlier commits. How many are still to be answered, and whether one has failed.
    pub(super) fn collect(&mut self, context: &WorkerContext) -> (usize, bool) {
        let mut has_failed = false;
        while let Some((number, answer)) = self.queue.as_ref().and_then(CommitQueue::answer) {
            let parts = self.unanswered.remove(&number).unwrap_or_default();
            match answer {
                Ok(()) => {
                    add(&context.shared.fleet.counters.commits, 1);
                    for part in parts {
                        part.partition.confirm(part.point, part.seen);
                    }
                }
                Err(error) => {
                    has_failed = true;
                    self.failed(context, number, error);
                }
            }
        }
        self.answer_waiters();
        (self.unanswered.len(), has_failed)
    }

    /// Commit `number` has failed, or was not sent.
    pub(super) fn failed(&mut self, context: &WorkerContext, number: u64, error: RDKafkaErrorCode) {
        add(&context.shared.fleet.counters.commits_failed, 1);
        if error == RDKafkaErrorCode::OffsetMetadataTooLarge {
            // Half as much as before, down to nothing.
            self.window_cut += (MAX_TEXT - self.window_cut).div_ceil(2);
            tracing::warn!(
                client = context.log.client.as_str(),
                bytes = MAX_TEXT - self.window_cut,
                "the broker takes less metadata with a commit (offset.metadata.max.bytes): fewer repetitions will be known \
                 after a restart"
            );
        }
        self.refuse_waiters(&context.shared, number, error);
        let error = KafkaError::ConsumerCommit(error);
        context.log.error(
            &error,
            "offsets could not be committed, the next commit covers them",
        );
    }

    /// Number of the commit that was sent last.
    pub(super) fn latest(&self) -> u64 {
        self.number
    }

    fn refuse_waiters(&mut self, shared: &ConsumerShared, number: u64, error: RDKafkaErrorCode) {
        let (refused, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.waiters)
            .into_iter()
            .partition(|waiter| waiter.until >= number);
        self.waiters = rest;
        for waiter in refused {
            // Nobody waits any more: no fault.
            let _ = waiter
                .reply
                .send(Err(shared.not_committed(error.to_string())));
        }
    }

    fn answer_waiters(&mut self) {
        let oldest = self.unanswered.keys().next().copied().unwrap_or(u64::MAX);
        let (answered, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.waiters)
            .into_iter()
            .partition(|waiter| waiter.until < oldest);
        self.waiters = rest;
        for waiter in answered {
            let _ = waiter.reply.send(Ok(()));
        }
    }
}
