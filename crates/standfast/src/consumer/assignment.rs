//! The partitions of one generation: where they start, how far they were read, what is committed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer, RebalanceProtocol};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};

use super::ConsumerShared;
use super::context::WorkerContext;
use super::handover;
use super::partition::Partition;
use super::start::{Carried, Committed, Known, Own, Start, label, labelled_window};
use super::window::{MAX_TEXT, Window};
use crate::event::{FleetEvent, StartReason};
use crate::ffi::{self, CommitQueue};
use crate::stats::add;
use crate::target::Target;

/// One question to the coordinator or a leader. Asked on the poll thread; heartbeats go on meanwhile.
const ASK: Duration = Duration::from_secs(3);

/// Pause between two attempts to find the start of held partitions.
const RETRY: Duration = Duration::from_millis(500);

/// The same while a position is about to be handed over.
const HANDOVER_RETRY: Duration = Duration::from_millis(150);

type Key = (String, i32);

#[derive(Debug, Default)]
pub(super) struct Assignment {
    running: HashMap<String, HashMap<i32, Running>>,
    held: BTreeMap<Key, Held>,
    /// Taken away while the group could not be told how far they were read; should they come back, reading goes on there.
    lost: HashMap<Key, Carried>,
    pub(super) paused: bool,
    retry_at: Option<Instant>,
    /// Partitions are held while the handoff of the flip is being read.
    pub(super) awaits_handoff: bool,
    /// Answers to commits; `None` once the generation has ended.
    commits: Option<CommitQueue>,
    /// Commits that were not answered yet.
    unanswered: usize,
    /// By how much the windows are shorter than usual, because the broker takes less metadata.
    window_cut: usize,
    /// Partitions were assigned; see what was not.
    must_hand_over: bool,
}

#[derive(Debug)]
struct Running {
    partition: Arc<Partition>,
    /// Offset after the last record that was read ahead.
    fetched: i64,
    /// The last commit that was sent here; -1: none.
    committed: i64,
}

#[derive(Debug)]
struct Held {
    carried: Option<Carried>,
    since: Instant,
    verify: bool,
    /// The reason that was reported.
    told: Option<String>,
}

impl Assignment {
    /// Takes newly assigned partitions in and assigns those to the client whose start is known.
    pub(super) fn assign(&mut self, consumer: &BaseConsumer<WorkerContext>, partitions: Vec<Key>) {
        let context = consumer.context();
        for key in partitions {
            let carried = context
                .shared
                .take_carried(context.source.generation, &key)
                .or_else(|| self.lost.remove(&key));
            self.held.insert(
                key,
                Held {
                    carried,
                    since: Instant::now(),
                    verify: false,
                    told: None,
                },
            );
        }
        let started = self.find_starts(consumer);
        self.apply(consumer, &started);
        self.must_hand_over = true;
    }

    /// Tells the group the positions of partitions that others read on.
    pub(super) fn hand_over(&mut self, consumer: &BaseConsumer<WorkerContext>) {
        let (true, Some(queue)) = (self.must_hand_over, &self.commits) else {
            return;
        };
        let context = consumer.context();
        let target = context.shared.target();
        // While the handoff is being read, positions mean nothing yet.
        let Some(target) = target.filter(|target| !target.handoffs.pending) else {
            return;
        };
        self.must_hand_over = false;
        let limit = MAX_TEXT.saturating_sub(self.window_cut);
        match handover::hand_over(consumer, queue, &target, limit) {
            Ok(commits) => self.unanswered += commits,
            Err(error) => {
                tracing::warn!(
                    client = context.log.client.as_str(),
                    error,
                    "positions could not be handed over"
                )
            }
        }
    }

    /// Looks again for the start of held partitions.
    pub(super) fn retry_held(&mut self, consumer: &BaseConsumer<WorkerContext>) {
        let is_early = self.retry_at.is_some_and(|at| Instant::now() < at);
        if self.held.is_empty() || (is_early && !self.handoff_has_come(consumer)) {
            return;
        }
        let started = self.find_starts(consumer);
        if !started.is_empty() {
            self.apply(consumer, &started);
        }
    }

    fn handoff_has_come(&self, consumer: &BaseConsumer<WorkerContext>) -> bool {
        let target = || consumer.context().shared.target();
        self.awaits_handoff && target().is_some_and(|target| !target.handoffs.pending)
    }

    /// Gives partitions back. What was acknowledged is committed first.
    pub(super) fn revoke(&mut self, consumer: &BaseConsumer<WorkerContext>, partitions: &[Key]) {
        let lost = consumer.assignment_lost();
        if !lost {
            self.commit(consumer);
        }
        let context = consumer.context();
        let mut removed = TopicPartitionList::new();
        for key in partitions {
            if let Some(held) = self.held.remove(key)
                && let Some(carried) = held.carried
            {
                context
                    .shared
                    .put_back(context.source.generation, key.clone(), carried);
            }
            let running = self
                .running
                .get_mut(&key.0)
                .and_then(|numbers| numbers.remove(&key.1));
            if let Some(running) = running {
                context.shared.disown(context.source.generation, key);
                removed.add_partition(&key.0, key.1);
                if lost {
                    running.partition.freeze();
                    let carried = Carried {
                        partition: running.partition,
                        from: context.shared.epoch(),
                        same_cluster: true,
                        handed_over: false,
                    };
                    self.lost.insert(key.clone(), carried);
                } else {
                    running.partition.end();
                }
            }
        }
        let outcome = match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_unassign(&removed),
            _ => consumer.unassign(),
        };
        if let Err(error) = outcome {
            tracing::warn!(client = context.log.client.as_str(), %error, "partitions could not be given back");
        }
    }

    /// The partition of a record that was just read; moves the read-ahead mark.
    pub(super) fn read(
        &mut self,
        topic: &str,
        number: i32,
        offset: i64,
    ) -> Option<&Arc<Partition>> {
        let running = self.running.get_mut(topic)?.get_mut(&number)?;
        running.fetched = offset + 1;
        Some(&running.partition)
    }

    /// Sends a commit for everything that was acknowledged since the last one. Does not wait.
    pub(super) fn commit(&mut self, consumer: &BaseConsumer<WorkerContext>) {
        let context = consumer.context();
        if !context.shared.is_current(context.source.generation) {
            return;
        }
        let epoch = context.shared.epoch();
        let limit = MAX_TEXT.saturating_sub(self.window_cut);
        let mut offsets = TopicPartitionList::new();
        for (topic, numbers) in &mut self.running {
            for (number, running) in numbers {
                let Some((point, seen)) = running.partition.commit_after(running.committed, limit)
                else {
                    continue;
                };
                let mut entry = offsets.add_partition(topic, *number);
                if entry.set_offset(Offset::Offset(point)).is_ok() {
                    entry.set_metadata(label(epoch, &seen));
                    running.committed = point;
                }
            }
        }
        let (true, Some(queue)) = (offsets.count() > 0, &self.commits) else {
            return;
        };
        match queue.commit(consumer, &offsets) {
            Ok(()) => self.unanswered += 1,
            Err(error) => self.commit_failed(context, error),
        }
    }

    /// Takes in what became of earlier commits; how many are still to be answered.
    pub(super) fn collect_commits(&mut self, context: &WorkerContext) -> usize {
        while let Some(answer) = self.commits.as_ref().and_then(CommitQueue::answer) {
            self.unanswered = self.unanswered.saturating_sub(1);
            match answer {
                Ok(()) => add(&context.shared.fleet.counters.commits, 1),
                Err(error) => self.commit_failed(context, error),
            }
        }
        self.unanswered
    }

    /// The generation has ended: nothing more is committed.
    pub(super) fn end_commits(&mut self) {
        self.commits = None;
        self.unanswered = 0;
    }

    pub(super) fn begin_commits(&mut self, consumer: &BaseConsumer<WorkerContext>) {
        self.commits = CommitQueue::new(consumer);
    }

    fn commit_failed(&mut self, context: &WorkerContext, error: RDKafkaErrorCode) {
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
        let error = KafkaError::ConsumerCommit(error);
        context.log.error(
            &error,
            "offsets could not be committed, the next commit covers them",
        );
        self.forget_commits();
    }

    /// A commit failed: the next one covers everything again.
    fn forget_commits(&mut self) {
        for running in self.running.values_mut().flat_map(HashMap::values_mut) {
            running.committed = -1;
        }
    }

    /// The log does not have an offset that was asked for: hold every partition and check its position. librdkafka does
    /// not say which one it was.
    pub(super) fn check_positions(&mut self, consumer: &BaseConsumer<WorkerContext>) {
        let context = consumer.context();
        let epoch = context.shared.epoch();
        for (topic, numbers) in self.running.drain() {
            for (number, running) in numbers {
                running.partition.freeze();
                let carried = Carried {
                    partition: running.partition,
                    from: epoch,
                    same_cluster: true,
                    handed_over: false,
                };
                let held = Held {
                    carried: Some(carried),
                    since: Instant::now(),
                    verify: true,
                    told: None,
                };
                self.held.insert((topic.clone(), number), held);
            }
        }
        let clear = match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer
                .assignment()
                .and_then(|all| consumer.incremental_unassign(&all)),
            _ => consumer.assign(&TopicPartitionList::new()),
        };
        if let Err(error) = clear {
            tracing::warn!(client = context.log.client.as_str(), %error, "partitions could not be held for a check");
        }
        self.retry_at = None;
        self.retry_held(consumer);
    }

    /// Stops or resumes reading of all partitions, because the application is slow.
    pub(super) fn set_paused(&mut self, consumer: &BaseConsumer<WorkerContext>, paused: bool) {
        let all = self.running_list();
        let outcome = if paused {
            consumer.pause(&all)
        } else {
            consumer.resume(&all)
        };
        match outcome {
            Ok(()) => self.paused = paused,
            Err(error) => {
                let client = consumer.context().log.client.as_str();
                tracing::warn!(client, paused, %error, "reading could not be paused or resumed");
            }
        }
    }

    /// All running partitions, each with the offset to be read next.
    pub(super) fn running_list(&self) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for (topic, numbers) in &self.running {
            for (number, running) in numbers {
                // An offset from a log or a broker is never negative, so this cannot fail.
                let _ = list.add_partition_offset(topic, *number, Offset::Offset(running.fetched));
            }
        }
        list
    }

    fn apply(&mut self, consumer: &BaseConsumer<WorkerContext>, started: &[Key]) {
        let outcome = match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => {
                let mut added = TopicPartitionList::new();
                for (topic, number) in started {
                    let running = self
                        .running
                        .get(topic)
                        .and_then(|numbers| numbers.get(number));
                    if let Some(running) = running {
                        let _ = added.add_partition_offset(
                            topic,
                            *number,
                            Offset::Offset(running.fetched),
                        );
                    }
                }
                consumer.incremental_assign(&added)
            }
            // The eager protocol knows only whole assignments; running partitions go on where they were.
            _ => consumer.assign(&self.running_list()),
        };
        if let Err(error) = outcome {
            let client = consumer.context().log.client.as_str();
            tracing::error!(client, %error, "partitions could not be assigned; a rebalance will bring them again");
        }
        if self.paused {
            self.set_paused(consumer, true);
        }
    }

    /// Moves held partitions whose start can be found to the running ones; which.
    fn find_starts(&mut self, consumer: &BaseConsumer<WorkerContext>) -> Vec<Key> {
        self.retry_at = Some(Instant::now() + RETRY);
        self.awaits_handoff = false;
        let context = consumer.context();
        let Some(target) = context.shared.target() else {
            return Vec::new();
        };
        let mut committed = match self.fetch_committed(consumer) {
            Ok(committed) => committed,
            Err(reason) => {
                for (key, held) in &mut self.held {
                    held.tell(&context.shared, key, &reason);
                }
                return Vec::new();
            }
        };
        let mut started = Vec::new();
        for (key, mut held) in std::mem::take(&mut self.held) {
            let known = committed.remove(&key);
            let at = known.as_ref().map(|(committed, _)| *committed);
            let bound = |from| target.handoffs.bound(&key.0, key.1, from);
            if held.carried.is_none() && handover::is_awaited(at, held.since, bound) {
                self.retry_at = Some(Instant::now() + HANDOVER_RETRY);
                self.held.insert(key, held);
                continue;
            }
            match held.find_start(consumer, &target, &key, at) {
                Ok((offset, reason)) => {
                    self.start(context, &key, held, offset, reason, known);
                    started.push(key);
                }
                Err(reason) => {
                    self.awaits_handoff |= target.handoffs.pending;
                    held.tell(&context.shared, &key, &reason);
                    self.held.insert(key, held);
                }
            }
        }
        started
    }

    fn start(
        &mut self,
        context: &WorkerContext,
        key: &Key,
        held: Held,
        offset: i64,
        reason: StartReason,
        known: Option<(Committed, Window)>,
    ) {
        let (topic, number) = key;
        let (committed, window) = known.unzip();
        let window = window.unwrap_or_default();
        let partition = match held.carried {
            Some(carried) => carried.partition.succeed(offset, &window),
            None => Partition::new(topic.as_str().into(), *number, offset, window),
        };
        let client = context.log.client.clone();
        tracing::info!(
            client = client.as_str(),
            topic,
            partition = number,
            offset,
            ?reason,
            "partition is read"
        );
        context
            .shared
            .own(context.source.generation, key, &partition);
        context.shared.fleet.emit(FleetEvent::PartitionStarted {
            client,
            topic: topic.clone(),
            partition: *number,
            offset,
            reason,
        });
        // Anything but the group's own offset is worth a commit, so that a restart finds it.
        let committed = committed.map_or(-1, |c| if c.offset == offset { offset } else { -1 });
        let running = Running {
            partition,
            fetched: offset,
            committed,
        };
        self.running
            .entry(topic.clone())
            .or_default()
            .insert(*number, running);
    }

    fn fetch_committed(
        &self,
        consumer: &BaseConsumer<WorkerContext>,
    ) -> Result<HashMap<Key, (Committed, Window)>, String> {
        if self.held.is_empty() {
            return Ok(HashMap::new());
        }
        let mut list = TopicPartitionList::with_capacity(self.held.len());
        for (topic, number) in self.held.keys() {
            list.add_partition(topic, *number);
        }
        let answer = consumer
            .committed_offsets(list, ASK)
            .map_err(|error| format!("the group's offsets cannot be read: {error}"))?;
        let entries = ffi::committed_offsets(&answer);
        if entries.iter().any(|entry| entry.failed) {
            return Err("the group's offsets cannot be read for every partition".to_owned());
        }
        let known = entries.into_iter().filter_map(|entry| {
            let committed = Committed::of(&entry)?;
            let window = labelled_window(&entry.metadata);
            Some(((entry.topic, entry.partition), (committed, window)))
        });
        Ok(known.collect())
    }
}

impl Held {
    fn find_start(
        &mut self,
        consumer: &BaseConsumer<WorkerContext>,
        target: &Target,
        key: &Key,
        committed: Option<Committed>,
    ) -> Result<(i64, StartReason), String> {
        let (topic, number) = (key.0.as_str(), key.1);
        self.drop_useless_position(target, key);
        let mut known = Known {
            own: self.carried.as_ref().map(Own::from),
            committed,
            range: None,
            verify: self.verify,
            policy: consumer.context().shared.policy,
        };
        loop {
            match known.decide(|from| target.handoffs.bound(topic, number, from)) {
                Start::At { offset, reason } => return Ok((offset, reason)),
                Start::Hold { reason } => return Err(reason),
                Start::NeedRange => {
                    let range = consumer
                        .fetch_watermarks(topic, number, ASK)
                        .map_err(|error| {
                            format!("log start and log end cannot be read: {error}")
                        })?;
                    known.range = Some(range);
                }
            }
        }
    }

    /// What was read on a cluster whose log is not known to be equal says nothing about this one.
    fn drop_useless_position(&mut self, target: &Target, (topic, number): &Key) {
        let useless = self.carried.take_if(|carried| {
            !Own::from(&*carried).is_usable(|from| target.handoffs.bound(topic, *number, from))
        });
        if let Some(carried) = useless {
            tracing::warn!(
                topic,
                partition = number,
                position = carried.partition.next(),
                "no handoff for the partition: the group's committed offset decides instead of the own position"
            );
            carried.partition.end();
        }
    }

    /// Reports once per reason why the partition is held.
    fn tell(&mut self, shared: &ConsumerShared, (topic, number): &Key, reason: &str) {
        if self.told.as_deref() == Some(reason) {
            return;
        }
        self.told = Some(reason.to_owned());
        tracing::warn!(
            client = shared.name.as_str(),
            topic,
            partition = number,
            reason,
            "partition is held"
        );
        shared.fleet.emit(FleetEvent::PartitionHeld {
            client: shared.name.clone(),
            topic: topic.clone(),
            partition: *number,
            reason: reason.to_owned(),
        });
    }
}
