//! The partitions of one generation: where they start, how far they were read, what is committed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer, RebalanceProtocol};
use rdkafka::{Offset, TopicPartitionList};

use super::Key;
use super::commits::{Commits, Part};
use super::context::WorkerContext;
use super::handover::{self, Handover};
use super::held::{Held, Started, fetch_committed};
use super::partition::Partition;
use super::rebalance::{self, RebalanceEvent};
use super::start::{Committed, label, open_label};
use crate::event::FleetEvent;

/// Pause between two attempts to find the start of held partitions.
const RETRY: Duration = Duration::from_millis(500);

/// The same while a position is about to be handed over.
const HANDOVER_RETRY: Duration = Duration::from_millis(150);

/// Between two looks for acknowledgements.
const ACKNOWLEDGED_LOOK: Duration = Duration::from_millis(5);

#[derive(Debug, Default)]
pub(super) struct Assignment {
    running: HashMap<String, HashMap<i32, Running>>,
    held: BTreeMap<Key, Held>,
    /// Nothing is read, because the application is slow.
    pub(super) paused: bool,
    /// Partitions that the client does not fetch, for that reason or because the application has paused them. It remembers
    /// that beyond an assignment.
    pub(super) paused_at_client: BTreeSet<Key>,
    pub(super) retry_at: Option<Instant>,
    /// When what the application has asked for is to be tried again.
    pub(super) follow_at: Option<Instant>,
    /// Partitions are held while the handoff of the flip is being read.
    pub(super) awaits_handoff: bool,
    pub(super) commits: Commits,
    handover: Handover,
}

#[derive(Debug)]
pub(super) struct Running {
    pub(super) partition: Arc<Partition>,
    /// The partition's reading to which what is read ahead belongs.
    pub(super) reading: u32,
    /// Offset after the last record that was read ahead.
    pub(super) fetched: i64,
    /// The client is to be brought to `fetched`; what it reads until then is thrown away.
    pub(super) settled: bool,
    /// The application has paused it.
    pub(super) paused: bool,
    /// The last commit that was sent here; -1: none.
    committed: i64,
    /// The group's commit says that its member reads on.
    open: bool,
    /// It is given up.
    parting: bool,
}

impl Running {
    /// Goes on with a partition that was sought.
    pub(super) fn begin(&mut self, partition: Arc<Partition>) {
        (self.reading, self.fetched) = (partition.reading(), partition.next());
        (self.settled, self.committed) = (false, -1);
        self.partition = partition;
    }
}

impl Assignment {
    /// Takes newly assigned partitions in and assigns those to the client whose start is known.
    pub(super) fn assign(&mut self, consumer: &BaseConsumer<WorkerContext>, partitions: Vec<Key>) {
        let context = consumer.context();
        let generation = context.source.generation;
        let change = context.shared.note_assigned(generation, &partitions);
        rebalance::tell(&context.shared, RebalanceEvent::Lost, change.gone);
        for key in partitions {
            let carried = context.shared.carried(generation, &key);
            self.held.insert(key, Held::new(carried));
        }
        context.shared.outdate_lost(generation);
        rebalance::tell(&context.shared, RebalanceEvent::Assigned, change.added);
        let started = self.find_starts(consumer);
        self.begin(consumer, &started);
        self.handover.begin();
    }

    /// Tells the group the positions of partitions that others read on.
    pub(super) fn hand_over(&mut self, consumer: &BaseConsumer<WorkerContext>) {
        self.handover.serve(consumer, &mut self.commits);
    }

    /// Looks again for the start of held partitions.
    pub(super) fn retry_held(&mut self, consumer: &BaseConsumer<WorkerContext>) {
        let is_early = self.retry_at.is_some_and(|at| Instant::now() < at);
        if self.held.is_empty() || (is_early && !self.handoff_has_come(consumer)) {
            return;
        }
        let started = self.find_starts(consumer);
        if !started.is_empty() {
            self.begin(consumer, &started);
        }
    }

    /// Reads partitions, and tells the group so at once: should the session end before the next commit, whoever gets them then waits for
    /// this member's position.
    fn begin(&mut self, consumer: &BaseConsumer<WorkerContext>, started: &[Key]) {
        self.apply(consumer, started);
        if !consumer.context().shared.manual_commit {
            self.commit(consumer);
        }
    }

    fn handoff_has_come(&self, consumer: &BaseConsumer<WorkerContext>) -> bool {
        let target = || consumer.context().shared.target();
        self.awaits_handoff && target().is_some_and(|target| !target.handoffs.pending)
    }

    /// Gives partitions back. What was acknowledged is committed first.
    pub(super) fn revoke(&mut self, consumer: &BaseConsumer<WorkerContext>, partitions: &[Key]) {
        let lost = consumer.assignment_lost();
        let context = consumer.context();
        let (shared, generation) = (&context.shared, context.source.generation);
        self.adopt_sought(context);
        for key in partitions {
            if let Some(running) = self.get_running_mut(key) {
                running.partition.freeze();
                running.parting = true;
            }
        }
        let told = shared.note_revoked(generation, partitions, lost);
        let event = match lost {
            true => RebalanceEvent::Lost,
            false => RebalanceEvent::Revoked,
        };
        rebalance::tell(shared, event, told);
        if !lost && !shared.manual_commit {
            self.wait_for_acknowledgements(context, partitions);
        }
        self.serve_requests(consumer);
        if !lost && !shared.manual_commit {
            self.commit(consumer);
        }
        let mut removed = TopicPartitionList::new();
        for key in partitions {
            if self.held.remove(key).is_some() && !lost {
                shared.put_back(generation, key);
            }
            let numbers = self.running.get_mut(&key.0);
            if let Some(running) = numbers.and_then(|numbers| numbers.remove(&key.1)) {
                removed.add_partition(&key.0, key.1);
                self.let_go(context, key, running, lost);
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

    /// What the application has of these partitions, it may be about to acknowledge.
    fn wait_for_acknowledgements(&mut self, context: &WorkerContext, partitions: &[Key]) {
        let until = Instant::now() + handover::ACKNOWLEDGED;
        let mut is_awaited = |key| {
            let running = self.get_running_mut(key);
            running.is_some_and(|running| running.partition.is_unacknowledged())
        };
        let reads =
            || !context.shared.is_closing() && context.shared.is_current(context.source.generation);
        while partitions.iter().any(&mut is_awaited) && reads() && Instant::now() < until {
            std::thread::sleep(ACKNOWLEDGED_LOOK);
        }
    }

    fn let_go(&mut self, context: &WorkerContext, key: &Key, running: Running, lost: bool) {
        let (shared, generation) = (&context.shared, context.source.generation);
        shared.disown(generation, key);
        if lost {
            shared.carry(generation, key, running.partition);
        } else if shared.is_current(generation) {
            running.partition.end();
        }
    }

    /// The partition of a record that was just read, and the reading that it belongs to; moves the read-ahead mark.
    pub(super) fn read(
        &mut self,
        topic: &str,
        number: i32,
        offset: i64,
    ) -> Option<(&Arc<Partition>, u32)> {
        let running = self.running.get_mut(topic)?.get_mut(&number)?;
        if !running.settled {
            return None;
        }
        running.fetched = offset + 1;
        Some((&running.partition, running.reading))
    }

    /// Sends a commit for everything that was acknowledged since the last one. Does not wait. False if it could not.
    pub(super) fn commit(&mut self, consumer: &BaseConsumer<WorkerContext>) -> bool {
        let context = consumer.context();
        if !context.shared.is_current(context.source.generation) || !self.commits.takes_more() {
            return false;
        }
        let epoch = context.shared.epoch();
        let limit = self.commits.limit();
        let mut offsets = TopicPartitionList::new();
        let mut parts = Vec::new();
        for (topic, numbers) in &mut self.running {
            for (number, running) in numbers {
                let is_to_close = running.open && running.parting;
                let known = if is_to_close { -1 } else { running.committed };
                let Some((point, seen)) = running.partition.commit_after(known, limit) else {
                    continue;
                };
                let mut entry = offsets.add_partition(topic, *number);
                if entry.set_offset(Offset::Offset(point)).is_ok() {
                    // Whoever commits by hand means what is committed.
                    running.open = !running.parting && !context.shared.manual_commit;
                    entry.set_metadata(match running.open {
                        true => open_label(epoch, &seen, context.shared.reader),
                        false => label(epoch, &seen),
                    });
                    running.committed = point;
                    parts.push(Part {
                        partition: Arc::clone(&running.partition),
                        point,
                        // Whoever commits by hand may have more acknowledged than is to be handed over.
                        seen: context.shared.manual_commit.then_some(seen),
                    });
                }
            }
        }
        if offsets.count() == 0 {
            return true;
        }
        let sent = self.commits.send(consumer, &offsets, parts);
        if let Err(error) = sent {
            self.commits.failed(context, self.commits.latest(), error);
            self.forget_commits();
        }
        sent.is_ok()
    }

    /// Says goodbye to everything with the next commit.
    pub(super) fn part(&mut self) {
        for (_, running) in self.running_mut() {
            running.parting = true;
        }
    }

    /// Takes in what became of earlier commits; how many are still to be answered.
    pub(super) fn collect_commits(&mut self, context: &WorkerContext) -> usize {
        let (unanswered, has_failed) = self.commits.collect(context);
        if has_failed {
            self.forget_commits();
        }
        unanswered
    }

    /// A commit failed: the next one covers everything again.
    fn forget_commits(&mut self) {
        for running in self.running.values_mut().flat_map(HashMap::values_mut) {
            running.committed = -1;
        }
    }

    /// Whether something that is acknowledged belongs to partitions that are held.
    pub(super) fn holds_uncommitted(&self) -> bool {
        let carried = self.held.values().filter_map(|held| held.carried.as_ref());
        carried
            .into_iter()
            .any(|carried| carried.partition.is_uncommitted())
    }

    pub(super) fn running_mut(&mut self) -> impl Iterator<Item = (Key, &mut Running)> {
        self.running.iter_mut().flat_map(|(topic, numbers)| {
            let numbers = numbers.iter_mut();
            numbers.map(|(number, running)| ((topic.clone(), *number), running))
        })
    }

    pub(super) fn get_running_mut(&mut self, (topic, number): &Key) -> Option<&mut Running> {
        self.running.get_mut(topic)?.get_mut(number)
    }

    /// The log does not have an offset that was asked for: hold every partition and check its position. librdkafka does
    /// not say which one it was.
    pub(super) fn check_positions(&mut self, consumer: &BaseConsumer<WorkerContext>) {
        let context = consumer.context();
        self.adopt_sought(context);
        for (topic, numbers) in self.running.drain() {
            for (number, running) in numbers {
                let key = (topic.clone(), number);
                running.partition.freeze();
                context.shared.disown(context.source.generation, &key);
                let (shared, generation) = (&context.shared, context.source.generation);
                shared.carry(generation, &key, running.partition);
                if let Some(carried) = shared.carried(generation, &key) {
                    self.held.insert(key, Held::to_verify(carried));
                }
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

    /// What the group has assigned: running partitions and held ones.
    pub(super) fn assigned_list(&self) -> TopicPartitionList {
        let mut list = self.running_list();
        for (topic, number) in self.held.keys() {
            list.add_partition(topic, *number);
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
            _ => {
                let list = self.running_list();
                for (_, running) in self.running_mut() {
                    running.settled = true;
                }
                consumer.assign(&list)
            }
        };
        if let Err(error) = outcome {
            let client = consumer.context().log.client.as_str();
            tracing::error!(client, %error, "partitions could not be assigned; a rebalance will bring them again");
        }
        let is_paused = |key: &Key| {
            let numbers = self.running.get(&key.0);
            let running = numbers.and_then(|numbers| numbers.get(&key.1));
            self.paused || running.is_some_and(|running| running.paused)
        };
        let (pause, resume) = started.iter().cloned().partition(is_paused);
        self.pause_client(consumer, pause);
        self.resume_client(consumer, resume);
    }

    /// Moves held partitions whose start can be found to the running ones; which.
    fn find_starts(&mut self, consumer: &BaseConsumer<WorkerContext>) -> Vec<Key> {
        self.retry_at = Some(Instant::now() + RETRY);
        self.awaits_handoff = false;
        let context = consumer.context();
        let Some(target) = context.shared.target() else {
            return Vec::new();
        };
        let fetched = fetch_committed(consumer, self.held.keys());
        self.handover.asked(fetched.is_ok());
        let mut committed = match fetched {
            Ok(committed) => committed,
            Err(reason) => {
                for (key, held) in &mut self.held {
                    held.tell(&context.shared, key, &reason);
                }
                return Vec::new();
            }
        };
        let moved = context.shared.has_just_moved();
        let mut started = Vec::new();
        for (key, mut held) in std::mem::take(&mut self.held) {
            let known = committed.remove(&key);
            let at = known.as_ref().map(|(committed, _)| *committed);
            let bound = |from| target.handoffs.bound(&key.0, key.1, from);
            let is_passed = handover::is_passed(at, target.epoch, context.shared.reader);
            let knows = !is_passed && held.carried.as_ref().is_some_and(|c| !c.outdated);
            let sought = context.shared.pending_seek(&key).is_some();
            let since = (
                held.since,
                self.handover.counts_from().unwrap_or(held.since),
            );
            let flipped = (target.epoch, target.since);
            if !knows && !sought && handover::is_awaited(at, since, moved, flipped, bound) {
                self.retry_at = Some(Instant::now() + HANDOVER_RETRY);
                self.held.insert(key, held);
                continue;
            }
            match held.start(consumer, &target, &key, known) {
                Ok(start) => {
                    self.start(context, &key, start, at);
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
        started: Started,
        committed: Option<Committed>,
    ) {
        let (topic, number) = key;
        let Started {
            partition,
            offset,
            reason,
        } = started;
        let client = context.log.client.clone();
        tracing::info!(
            client = client.as_str(),
            topic,
            partition = number,
            offset,
            ?reason,
            "partition is read"
        );
        let generation = context.source.generation;
        let paused = context.shared.own(generation, key, &partition);
        context.shared.fleet.emit(FleetEvent::PartitionStarted {
            client,
            topic: topic.clone(),
            partition: *number,
            offset,
            reason,
        });
        let shared = &context.shared;
        let open = committed.is_some_and(|committed| committed.open.is_some());
        let says_so = |c: &Committed| {
            shared.manual_commit
                || (c.open == Some(shared.reader) && c.epoch == Some(shared.epoch()))
        };
        // Anything but the group's own offset is worth a commit, so that a restart finds it.
        let is_known = |c: &Committed| c.offset == offset && says_so(c);
        let committed = committed.filter(is_known).map_or(-1, |_| offset);
        let running = Running {
            reading: partition.reading(),
            partition,
            fetched: offset,
            settled: true,
            paused,
            committed,
            open,
            parting: false,
        };
        self.running
            .entry(topic.clone())
            .or_default()
            .insert(*number, running);
    }
}
