//! Does on the poll thread what the application has asked for: pauses, seeks, commits.
//!
//! What the application sees changes at once, in the shared table and in the partitions. Here the client follows.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::oneshot;

use super::Key;
use super::assignment::Assignment;
use super::context::WorkerContext;
use super::held;
use super::offsets::{self, ASK};
use super::shared::Request;
use crate::error::Result;
use crate::ffi;

/// Pause between two attempts to bring the client to a position. It takes no word of the cluster.
const RETRY: Duration = Duration::from_millis(200);

/// Pause between two questions where a seek leads to; records are not read during one.
const ASK_AGAIN: Duration = Duration::from_secs(3);

impl Assignment {
    /// Whether there was something to do.
    pub(super) fn follow(&mut self, consumer: &BaseConsumer<WorkerContext>) -> bool {
        let context = consumer.context();
        let is_asked = context.shared.asked.load(Relaxed);
        let is_due = self.follow_at.is_some_and(|at| Instant::now() >= at);
        // What is asked for during a flip is for the generation that reads from now on.
        if !(is_asked || is_due) || !context.shared.is_current(context.source.generation) {
            return false;
        }
        context.shared.asked.store(false, Relaxed);
        self.follow_at = None;
        self.adopt_sought(context);
        self.resolve_seeks(consumer);
        self.follow_pauses(consumer);
        self.settle(consumer);
        self.serve_requests(consumer);
        is_asked
    }

    /// Takes over the partitions that the application has put in the place of others by a seek.
    pub(super) fn adopt_sought(&mut self, context: &WorkerContext) {
        let table = context.shared.table();
        if table.generation != context.source.generation {
            return;
        }
        for (key, running) in self.running_mut() {
            let owned = table.owned.get(&key);
            if let Some(owned) = owned.filter(|owned| !Arc::ptr_eq(owned, &running.partition)) {
                running.begin(Arc::clone(owned));
            }
        }
    }

    /// Asks the cluster where seeks lead to.
    fn resolve_seeks(&mut self, consumer: &BaseConsumer<WorkerContext>) {
        let context = consumer.context();
        let seeks = context.shared.table().seeks.clone();
        for (key, (number, to)) in seeks {
            let Some(running) = self.get_running_mut(&key) else {
                // Held: looked at when its start is.
                self.retry_at = None;
                continue;
            };
            match offsets::find(consumer, &key, to) {
                Ok(offset) => {
                    let sought = running.partition.seek(offset);
                    let generation = context.source.generation;
                    if context
                        .shared
                        .end_seek(generation, &key, number, Some(&sought))
                    {
                        running.begin(sought);
                    }
                }
                Err(reason) => {
                    tracing::warn!(
                        client = context.log.client.as_str(),
                        topic = key.0,
                        partition = key.1,
                        reason,
                        "a seek waits"
                    );
                    self.follow_at = Some(Instant::now() + ASK_AGAIN);
                }
            }
        }
    }

    fn follow_pauses(&mut self, consumer: &BaseConsumer<WorkerContext>) {
        let context = consumer.context();
        let (mut pause, mut resume) = (Vec::new(), Vec::new());
        {
            // Locked throughout: the application must not pause a partition again between the look and its going on.
            let table = context.shared.table();
            for (key, running) in self.running_mut() {
                running.paused = table.paused.contains(&key);
                if running.paused {
                    pause.push(key);
                } else if running.partition.is_paused() {
                    (running.reading, running.fetched) = running.partition.read_again();
                    running.settled = false;
                    resume.push(key);
                }
            }
        }
        self.pause_client(consumer, pause);
        if !self.paused {
            self.resume_client(consumer, resume);
        }
    }

    /// Stops or resumes reading of all partitions, because the application is slow. What it has paused itself stays so.
    pub(super) fn set_paused(&mut self, consumer: &BaseConsumer<WorkerContext>, paused: bool) {
        self.paused = paused;
        let all = self.running_mut().filter(|(_, running)| !running.paused);
        let keys = all.map(|(key, _)| key).collect();
        match paused {
            true => self.pause_client(consumer, keys),
            false => self.resume_client(consumer, keys),
        }
    }

    /// Makes the client fetch no more of these partitions.
    pub(super) fn pause_client(
        &mut self,
        consumer: &BaseConsumer<WorkerContext>,
        mut keys: Vec<Key>,
    ) {
        keys.retain(|key| self.paused_at_client.insert(key.clone()));
        report(consumer, consumer.pause(&list_of(&keys)));
    }

    pub(super) fn resume_client(
        &mut self,
        consumer: &BaseConsumer<WorkerContext>,
        mut keys: Vec<Key>,
    ) {
        keys.retain(|key| self.paused_at_client.remove(key));
        report(consumer, consumer.resume(&list_of(&keys)));
    }

    /// Brings the client to the positions that were sought. Until it is there, what it reads of the partition is thrown away.
    fn settle(&mut self, consumer: &BaseConsumer<WorkerContext>) {
        let mut list = TopicPartitionList::new();
        for ((topic, number), running) in self.running_mut() {
            if !running.settled {
                // Positions are not negative, so this cannot fail.
                let _ = list.add_partition_offset(&topic, number, Offset::Offset(running.fetched));
            }
        }
        if list.count() == 0 {
            return;
        }
        let count = list.count();
        let moved: Vec<Key> = match consumer.seek_partitions(list, ASK) {
            Ok(answer) => ffi::committed_offsets(&answer)
                .into_iter()
                .filter(|entry| !entry.failed)
                .map(|entry| (entry.topic, entry.partition))
                .collect(),
            Err(error) => {
                let client = consumer.context().log.client.as_str();
                tracing::debug!(client, %error, "the client cannot seek yet");
                Vec::new()
            }
        };
        if moved.len() < count {
            // Not fetching yet, right after an assignment.
            self.follow_at = Some(Instant::now() + RETRY);
        }
        for key in moved {
            if let Some(running) = self.get_running_mut(&key) {
                running.settled = true;
            }
        }
    }

    /// Answers what the application waits for.
    pub(super) fn serve_requests(&mut self, consumer: &BaseConsumer<WorkerContext>) {
        let context = consumer.context();
        if !context.shared.is_current(context.source.generation) {
            return;
        }
        let mut questions = Vec::new();
        for request in consumer.context().shared.take_requests() {
            match request {
                Request::Commit { generation, reply } => {
                    self.commit_for(consumer, generation, reply);
                }
                Request::Committed { key, reply } => questions.push((key, reply)),
            }
        }
        if questions.is_empty() {
            return;
        }
        let known = held::fetch_committed(consumer, questions.iter().map(|(key, _)| key));
        let shared = &consumer.context().shared;
        for (key, reply) in questions {
            let answer = match &known {
                Ok(known) => Ok(known.get(&key).map(|(committed, _)| committed.offset)),
                Err(reason) => Err(shared.not_answered(reason.clone())),
            };
            // Nobody waits any more: no fault.
            let _ = reply.send(answer);
        }
    }

    fn commit_for(
        &mut self,
        consumer: &BaseConsumer<WorkerContext>,
        generation: u64,
        reply: Option<oneshot::Sender<Result<()>>>,
    ) {
        let context = consumer.context();
        let shared = &context.shared;
        let present = context.source.generation;
        // Before the first generation there was nothing to commit that this one does not know.
        let refusal = if generation != 0 && generation != present {
            Some(shared.has_moved())
        } else if !self.commit(consumer) {
            Some(shared.not_committed("the cluster takes no commits at the moment".to_owned()))
        } else if shared.awaits_assignment(present) || self.holds_uncommitted() {
            Some(shared.not_committed(
                "partitions are on their way to the new cluster; commit again when they are assigned".to_owned(),
            ))
        } else {
            None
        };
        match (reply, refusal) {
            (Some(reply), None) => self.commits.wait(reply),
            (Some(reply), Some(error)) => drop(reply.send(Err(error))),
            (None, Some(error)) => {
                tracing::warn!(client = context.log.client.as_str(), %error, "a commit that was asked for failed");
            }
            (None, None) => {}
        }
    }
}

fn list_of(keys: &[Key]) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(keys.len());
    for (topic, number) in keys {
        list.add_partition(topic, *number);
    }
    list
}

fn report(consumer: &BaseConsumer<WorkerContext>, outcome: rdkafka::error::KafkaResult<()>) {
    if let Err(error) = outcome {
        let client = consumer.context().log.client.as_str();
        tracing::warn!(client, %error, "reading could not be paused or resumed");
    }
}
