//! The partitions that a generation reads: the eager protocol, which gives and takes all of them together.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::producer::Producer;
use rdkafka::{Offset, TopicPartitionList};

use super::Shared;
use super::clients::{InputContext, Reader};
use super::flow::{Input, Reason};
use super::worker::LAST_RECORDS;
use crate::consumer::{Committed, Known, Partition, Start, Told, Window, labelled_window};
use crate::event::{FleetEvent, StartReason};
use crate::ffi;

/// One question to the coordinator or a leader. Asked on the poll thread; heartbeats go on meanwhile.
const ASK: Duration = Duration::from_secs(3);

/// Pause between two attempts to find the start of held partitions.
const RETRY: Duration = Duration::from_millis(500);

#[derive(Debug, Default)]
pub(super) struct Inputs {
    running: HashMap<String, HashMap<i32, Running>>,
    held: BTreeMap<(String, i32), Held>,
    retry_at: Option<Instant>,
    is_paused: bool,
    /// Counts the changes after which something else is read next than before.
    pub(super) version: u64,
    /// librdkafka could not abort: this generation is of no use any more.
    pub(super) broken: Option<String>,
}

#[derive(Debug)]
struct Running {
    partition: Arc<Partition>,
    /// Offset after the last record that was read ahead.
    fetched: i64,
}

#[derive(Debug, Default)]
struct Held {
    /// The position was found out of range.
    verify: bool,
    told: Told,
}

impl Inputs {
    /// Takes newly assigned partitions in.
    pub(super) fn assign(&mut self, reader: &Reader, partitions: Vec<(String, i32)>) {
        self.version += 1;
        self.held
            .extend(partitions.into_iter().map(|key| (key, Held::default())));
        self.find_starts(reader);
        self.apply(reader);
    }

    /// Gives all partitions back.
    pub(super) fn revoke(&mut self, reader: &Reader) {
        self.version += 1;
        self.running.clear();
        self.held.clear();
        reader.context().clear_inputs();
        if let Err(error) = reader.unassign() {
            tracing::warn!(client = reader.context().log.client.as_str(), %error, "partitions could not be given back");
        }
    }

    /// Aborts the open transaction if there is something in it, and begins the next.
    pub(super) fn abort(&mut self, context: &InputContext, reason: Reason, limit: Duration) {
        let shared = &context.shared;
        let open = shared.flow().content_of(context.source.generation);
        if open.is_none() {
            return;
        }
        shared.change_of(context.source.generation, |flow| {
            ((), flow.abort(reason, false))
        });
        ffi::flush(context.base.client(), LAST_RECORDS);
        let aborted = context.base.abort_transaction(limit);
        if let Err(error) = aborted.and_then(|()| context.base.begin_transaction()) {
            self.broken = Some(error.to_string());
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

    /// Reads on from what is committed: a transaction was aborted.
    pub(super) fn rewind(&mut self, reader: &Reader) {
        let context = reader.context();
        let flow = context.shared.flow();
        if !flow.is_present(context.source.generation) {
            return;
        }
        for (key, offset) in flow.inputs() {
            let numbers = self.running.get_mut(&*key.0);
            if let Some(running) = numbers.and_then(|numbers| numbers.get_mut(&key.1)) {
                running.fetched = offset;
            }
        }
        drop(flow);
        if !self.running.is_empty() {
            self.apply(reader);
        }
    }

    /// Looks again for the start of held partitions.
    pub(super) fn retry_held(&mut self, reader: &Reader) {
        let is_early = self.retry_at.is_some_and(|at| Instant::now() < at);
        if !self.held.is_empty() && !is_early && self.find_starts(reader) {
            self.apply(reader);
        }
    }

    /// The log does not have an offset that was asked for: hold every partition and check what is committed.
    pub(super) fn check_positions(&mut self, reader: &Reader) {
        self.version += 1;
        for (topic, numbers) in self.running.drain() {
            for number in numbers.into_keys() {
                let held = Held {
                    verify: true,
                    told: Told::default(),
                };
                self.held.insert((topic.clone(), number), held);
            }
        }
        reader.context().clear_inputs();
        self.retry_at = None;
        self.find_starts(reader);
        self.apply(reader);
    }

    /// Stops or resumes reading, because the application is slow.
    pub(super) fn set_paused(&mut self, reader: &Reader, paused: bool) {
        if self.is_paused == paused {
            return;
        }
        let all = self.owned();
        let outcome = if paused {
            reader.pause(&all)
        } else {
            reader.resume(&all)
        };
        match outcome {
            Ok(()) => self.is_paused = paused,
            Err(error) => {
                let client = reader.context().log.client.as_str();
                tracing::warn!(client, paused, %error, "reading could not be paused or resumed");
            }
        }
    }

    /// All running partitions, each with the offset to be read next.
    pub(super) fn owned(&self) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for (topic, numbers) in &self.running {
            for (number, running) in numbers {
                // An offset from a log or a broker is never negative, so this cannot fail.
                let _ = list.add_partition_offset(topic, *number, Offset::Offset(running.fetched));
            }
        }
        list
    }

    fn apply(&mut self, reader: &Reader) {
        self.is_paused = false;
        if let Err(error) = reader.assign(&self.owned()) {
            let client = reader.context().log.client.as_str();
            tracing::error!(client, %error, "partitions could not be assigned; a rebalance will bring them again");
        }
    }

    /// Moves held partitions whose start can be found to the running ones; whether there was one.
    fn find_starts(&mut self, reader: &Reader) -> bool {
        self.retry_at = Some(Instant::now() + RETRY);
        let shared = Arc::clone(&reader.context().shared);
        let mut committed = match self.fetch_committed(reader) {
            Ok(committed) => committed,
            Err(reason) => {
                for (key, held) in &mut self.held {
                    held.tell(&shared, key, &reason);
                }
                return false;
            }
        };
        let mut found = false;
        for (key, mut held) in std::mem::take(&mut self.held) {
            let known = committed.remove(&key);
            match held.find_start(
                reader,
                &key,
                known.as_ref().map(|(committed, _)| *committed),
            ) {
                Ok((offset, reason)) => {
                    let window = known.map(|(_, window)| window).unwrap_or_default();
                    self.start(reader.context(), key, offset, reason, window);
                    found = true;
                }
                Err(reason) => {
                    held.tell(&shared, &key, &reason);
                    self.held.insert(key, held);
                }
            }
        }
        found
    }

    fn start(
        &mut self,
        context: &InputContext,
        (topic, number): (String, i32),
        offset: i64,
        reason: StartReason,
        window: Window,
    ) {
        let shared = &context.shared;
        let client = shared.name.clone();
        tracing::info!(
            client = client.as_str(),
            topic,
            partition = number,
            offset,
            ?reason,
            "partition is read"
        );
        let partition = Partition::new(topic.as_str().into(), number, offset, Window::default());
        let input = Input::new(Arc::clone(&partition), offset, window);
        shared.change_of(context.source.generation, |flow| {
            (flow.add_input(input), None)
        });
        shared.fleet.emit(FleetEvent::PartitionStarted {
            client,
            topic: topic.clone(),
            partition: number,
            offset,
            reason,
        });
        let running = Running {
            partition,
            fetched: offset,
        };
        self.running
            .entry(topic)
            .or_default()
            .insert(number, running);
    }

    #[allow(clippy::type_complexity)]
    fn fetch_committed(
        &self,
        reader: &Reader,
    ) -> Result<HashMap<(String, i32), (Committed, Window)>, String> {
        if self.held.is_empty() {
            return Ok(HashMap::new());
        }
        let mut list = TopicPartitionList::with_capacity(self.held.len());
        for (topic, number) in self.held.keys() {
            list.add_partition(topic, *number);
        }
        // Stable offsets only (KIP-447): one that an open transaction is about to commit is waited for.
        let answer = reader
            .committed_offsets(list, ASK)
            .map_err(|error| format!("the group's offsets cannot be read: {error}"))?;
        let entries = ffi::committed_offsets(&answer);
        if entries.iter().any(|entry| entry.failed) {
            return Err("the group's offsets cannot be read for every partition".to_owned());
        }
        {
            let mut flow = reader.context().shared.flow();
            for entry in &entries {
                flow.outputs.note_commit(&entry.metadata);
            }
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
    /// Never the own position: output and position must be of one transaction.
    fn find_start(
        &mut self,
        reader: &Reader,
        (topic, number): &(String, i32),
        committed: Option<Committed>,
    ) -> Result<(i64, StartReason), String> {
        let shared = &reader.context().shared;
        let target = shared.fleet.targets.borrow().clone();
        let Some(target) = target else {
            return Err("there is no active cluster".to_owned());
        };
        let mut known = Known {
            own: None,
            committed,
            range: None,
            verify: self.verify,
            policy: shared.policy,
        };
        loop {
            match known.decide(|from| target.handoffs.bound(topic, *number, from)) {
                Start::At { offset, reason } => return Ok((offset, reason)),
                Start::Hold { reason } => return Err(reason),
                Start::NeedRange => {
                    let range = reader.fetch_watermarks(topic, *number, ASK);
                    let unknown = |error: KafkaError| {
                        format!("log start and log end cannot be read: {error}")
                    };
                    known.range = Some(range.map_err(unknown)?);
                }
            }
        }
    }

    fn tell(&mut self, shared: &Shared, key: &(String, i32), reason: &str) {
        self.told.tell(&shared.fleet, &shared.name, key, reason);
    }
}
