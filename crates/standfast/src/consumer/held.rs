//! Partitions that the group has assigned and whose start is not known yet.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::Key;
use super::context::WorkerContext;
use super::handle::SeekTo;
use super::offsets::{self, ASK};
use super::partition::Partition;
use super::shared::ConsumerShared;
use super::start::{Carried, Committed, Known, Own, Start, labelled_window};
use super::window::Window;
use crate::event::{ClientName, FleetEvent, StartReason};
use crate::ffi;
use crate::fleet::FleetShared;
use crate::target::{Bound, Target};

#[derive(Debug)]
pub(super) struct Held {
    pub(super) carried: Option<Carried>,
    pub(super) since: Instant,
    pub(super) verify: bool,
    told: Told,
}

/// A partition that can be read.
pub(super) struct Started {
    pub(super) partition: Arc<Partition>,
    pub(super) offset: i64,
    pub(super) reason: StartReason,
}

/// What the group has committed for a partition.
pub(super) type KnownCommit = (Committed, Window);

/// Whether what comes with the group's offset is to be added to what this consumer knows of repetitions. Where reading begins in
/// front of that offset it is of use only if another member has read here: this one has seen as much, and behind a seek backwards an older
/// commit would swallow what is to come again.
fn adds_to(carried: &Carried, committed: Option<Committed>, start: i64) -> bool {
    let is_passed = committed.is_some_and(|committed| committed.offset <= start);
    carried.outdated || (is_passed && !carried.partition.is_sought())
}

/// What the group has committed for these partitions.
pub(super) fn fetch_committed<'a>(
    consumer: &BaseConsumer<WorkerContext>,
    keys: impl Iterator<Item = &'a Key>,
) -> Result<HashMap<Key, KnownCommit>, String> {
    let mut list = TopicPartitionList::new();
    for (topic, number) in keys {
        list.add_partition(topic, *number);
    }
    if list.count() == 0 {
        return Ok(HashMap::new());
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

impl Held {
    pub(super) fn new(carried: Option<Carried>) -> Self {
        Self {
            carried,
            since: Instant::now(),
            verify: false,
            told: Told::default(),
        }
    }

    /// One whose position is to be compared with the log.
    pub(super) fn to_verify(carried: Carried) -> Self {
        Self {
            verify: true,
            ..Self::new(Some(carried))
        }
    }

    /// Where to start; or why that is not known.
    pub(super) fn start(
        &mut self,
        consumer: &BaseConsumer<WorkerContext>,
        target: &Target,
        key: &Key,
        known: Option<KnownCommit>,
    ) -> Result<Started, String> {
        let context = consumer.context();
        if let Some((number, to)) = context.shared.pending_seek(key) {
            let offset = self.find_sought(consumer, target, key, to)?;
            let generation = context.source.generation;
            if !context.shared.end_seek(generation, key, number, None) {
                return Err("the application has sought again".to_owned());
            }
            let partition = match self.carried.take() {
                Some(carried) => carried.partition.seek(offset),
                None => Partition::sought(key.0.as_str().into(), key.1, offset),
            };
            let reason = StartReason::Seek;
            return Ok(Started {
                partition,
                offset,
                reason,
            });
        }
        let (committed, window) = known.unzip();
        let (offset, reason) = self.find_start(consumer, target, key, committed)?;
        let window = window.unwrap_or_default();
        let partition = match self.carried.take() {
            // The log does not have what was sought, so the policy is where the seek leads to.
            Some(carried) if reason == StartReason::Policy && carried.partition.is_at_seek() => {
                carried.partition.seek(offset)
            }
            Some(carried) if adds_to(&carried, committed, offset) => {
                carried.partition.succeed(offset, &window)
            }
            Some(carried) => carried.partition.succeed(offset, &Window::default()),
            None => Partition::new(key.0.as_str().into(), key.1, offset, window),
        };
        Ok(Started {
            partition,
            offset,
            reason,
        })
    }

    /// An offset that was sought while the partition moved is limited by the handoff, as a position is.
    fn find_sought(
        &self,
        consumer: &BaseConsumer<WorkerContext>,
        target: &Target,
        key: &Key,
        to: SeekTo,
    ) -> Result<i64, String> {
        let offset = offsets::find(consumer, key, to)?;
        let from_elsewhere = self
            .carried
            .as_ref()
            .filter(|carried| !carried.same_cluster);
        let (SeekTo::Offset(_), Some(carried)) = (to, from_elsewhere) else {
            return Ok(offset);
        };
        match target.handoffs.bound(&key.0, key.1, carried.from) {
            Bound::Below(mirrored) => Ok(offset.min(mirrored)),
            Bound::Unknown => Ok(offset),
            Bound::Pending => Err("the handoff of the flip is being read".to_owned()),
        }
    }

    fn find_start(
        &mut self,
        consumer: &BaseConsumer<WorkerContext>,
        target: &Target,
        key: &Key,
        committed: Option<Committed>,
    ) -> Result<(i64, StartReason), String> {
        let (topic, number) = (key.0.as_str(), key.1);
        self.drop_useless_position(consumer.context(), target, key);
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
    fn drop_useless_position(&mut self, context: &WorkerContext, target: &Target, key: &Key) {
        let (topic, number) = key;
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
            let generation = context.source.generation;
            context.shared.forget_carried(generation, key);
        }
    }

    /// Reports once per reason why the partition is held.
    pub(super) fn tell(&mut self, shared: &ConsumerShared, key: &Key, reason: &str) {
        self.told.tell(&shared.fleet, &shared.name, key, reason);
    }
}

/// The last reason that was reported for holding a partition.
#[derive(Debug, Default)]
pub(crate) struct Told(Option<String>);

impl Told {
    /// Reports once per reason.
    pub(crate) fn tell(
        &mut self,
        fleet: &FleetShared,
        client: &ClientName,
        (topic, number): &Key,
        reason: &str,
    ) {
        if self.0.as_deref() == Some(reason) {
            return;
        }
        self.0 = Some(reason.to_owned());
        tracing::warn!(
            client = client.as_str(),
            topic,
            partition = number,
            reason,
            "partition is held"
        );
        fleet.emit(FleetEvent::PartitionHeld {
            client: client.clone(),
            topic: topic.clone(),
            partition: *number,
            reason: reason.to_owned(),
        });
    }
}
