//! What a consumer's parts share, and which generation may read.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use standfast_discovery::{ClusterName, Epoch};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::Key;
use super::handle::SeekTo;
use super::handover::{SETTLES, UNTOLD};
use super::mailbox::Mailbox;
use super::partition::Partition;
use super::rebalance::{Change, Listener};
use super::start::{Carried, MissingOffset, Own, Reader};
use super::subscription::Subscription;
use crate::client_config::Properties;
use crate::error::{Error, Result};
use crate::event::ClientName;
use crate::fleet::FleetShared;
use crate::target::Target;

/// What the application's handle, the driver and the workers share.
#[derive(Debug)]
pub(crate) struct ConsumerShared {
    pub(super) fleet: Arc<FleetShared>,
    pub(super) name: ClientName,
    pub(super) reader: Reader,
    pub(super) group: String,
    pub(super) subscription: Subscription,
    pub(super) properties: Properties,
    pub(super) policy: MissingOffset,
    pub(super) commit_interval: Duration,
    /// Only what the application asks for is committed.
    pub(super) manual_commit: bool,
    pub(super) listener: Option<Listener>,
    pub(super) show_id_header: bool,
    pub(super) show_filler: bool,
    pub(super) leave_out_repeated: bool,
    pub(super) mailbox: Mailbox,
    pub(super) table: Mutex<Table>,
    /// For the worker that reads.
    pub(super) requests: Mutex<VecDeque<Request>>,
    /// The application has asked for something since the worker looked.
    pub(super) asked: AtomicBool,
    /// The application forgot to acknowledge; see `wait_for_acks`.
    pub(super) blocked: AtomicBool,
    pub(super) closing: AtomicBool,
    pub(super) closed: CancellationToken,
}

/// Which generation reads, and what it took over. Workers of older generations are refused.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) generation: u64,
    /// This one and older ones may not take over any more.
    pub(super) forbidden: u64,
    pub(super) cluster: Option<ClusterName>,
    pub(super) cluster_id: Option<String>,
    pub(super) epoch: Epoch,
    /// When this consumer last came from another cluster.
    pub(super) moved: Option<Instant>,
    /// Partitions that are read.
    pub(super) owned: HashMap<Key, Arc<Partition>>,
    /// Partitions that were read on the previous cluster and have not been assigned since.
    pub(super) carried: HashMap<Key, Carried>,
    /// What the application knows that it has.
    pub(super) assigned: BTreeSet<Key>,
    /// The generation whose group said so.
    pub(super) assigned_by: u64,
    /// What the application has paused.
    pub(super) paused: BTreeSet<Key>,
    /// Seeks for which the cluster must be asked, or whose partition is not read yet. Numbered, so that a later one is not taken
    /// for an earlier one.
    pub(super) seeks: HashMap<Key, (u64, SeekTo)>,
    pub(super) seek_number: u64,
}

/// Requests that wait for a worker; more are refused.
const MAX_REQUESTS: usize = 1_024;

/// Something that the application asks the cluster by the worker.
#[derive(Debug)]
pub(super) enum Request {
    Commit {
        /// The generation that read when it was asked for.
        generation: u64,
        reply: Option<oneshot::Sender<Result<()>>>,
    },
    Committed {
        key: Key,
        reply: oneshot::Sender<Result<Option<i64>>>,
    },
}

impl ConsumerShared {
    /// Makes `generation` the one that reads: from here on nothing of an older one reaches the application, and the
    /// positions stand. False if a newer one was faster.
    pub(super) fn take_over(&self, generation: u64, target: &Target, cluster_id: &str) -> bool {
        let mut table = self.table();
        if generation <= table.generation.max(table.forbidden) {
            return false;
        }
        let same_cluster = table.cluster_id.as_deref() == Some(cluster_id);
        let (from, before) = (table.epoch, table.generation);
        // Over flips in quick succession nobody comes to read what he was not told about.
        let was_long = table.moved.is_none_or(|moved| moved.elapsed() >= UNTOLD);
        for carried in table.carried.values_mut() {
            carried.same_cluster &= same_cluster;
            let may_be_read = carried.assigned_in != before && (was_long || carried.handed_over);
            carried.outdated |= !same_cluster && may_be_read;
            carried.handed_over = false;
        }
        let owned = std::mem::take(&mut table.owned);
        for (key, partition) in owned {
            partition.freeze();
            let carried = Carried {
                partition,
                from,
                same_cluster,
                assigned_in: before,
                outdated: false,
                handed_over: false,
            };
            table.carried.insert(key, carried);
        }
        if !same_cluster && table.cluster_id.is_some() {
            table.moved = Some(Instant::now());
        }
        table.generation = generation;
        table.cluster = Some(target.cluster.clone());
        table.cluster_id = Some(cluster_id.to_owned());
        table.epoch = target.epoch;
        true
    }

    /// Forbids `generation` to take over; false if it already has.
    pub(super) fn forbid(&self, generation: u64) -> bool {
        let mut table = self.table();
        table.forbidden = generation;
        table.generation != generation
    }

    /// What is known of a partition that was assigned. It stays known until reading begins: there may be a flip before.
    pub(super) fn carried(&self, generation: u64, key: &Key) -> Option<Carried> {
        let mut table = self.table();
        if table.generation != generation {
            return None;
        }
        let carried = table.carried.get_mut(key)?;
        (carried.assigned_in, carried.handed_over) = (generation, true);
        Some(carried.clone())
    }

    /// What is known of a partition is of no use.
    pub(super) fn forget_carried(&self, generation: u64, key: &Key) {
        let mut table = self.table();
        if table.generation == generation {
            table.carried.remove(key);
        }
    }

    /// The group has been joined again: what was lost with the session and has not come back is somebody else's.
    pub(super) fn outdate_lost(&self, generation: u64) {
        let mut table = self.table();
        let Table {
            carried, assigned, ..
        } = &mut *table;
        for (key, carried) in carried {
            carried.outdated |= carried.assigned_in == generation && !assigned.contains(key);
        }
    }

    /// What was read and was not assigned here, once each: on earlier clusters, or on this one until the session was lost. `outdated`: also what
    /// another member may have read since a flip. `waits`: not what is to be acknowledged.
    pub(super) fn left_over(
        &self,
        generation: u64,
        outdated: bool,
        waits: bool,
    ) -> Vec<(Key, Carried)> {
        let mut table = self.table();
        if table.generation != generation {
            return Vec::new();
        }
        let Table {
            carried, assigned, ..
        } = &mut *table;
        let is_told = |key: &Key, c: &Carried| match c.same_cluster {
            true => !assigned.contains(key),
            false => outdated || !c.outdated,
        };
        let is_ready = |c: &Carried| !waits || !c.partition.is_unacknowledged();
        let is_ours = |key: &Key, c: &Carried| !c.handed_over && is_told(key, c) && is_ready(c);
        let left = carried.iter_mut();
        left.filter(|(key, carried)| is_ours(key, carried))
            .map(|(key, carried)| {
                carried.handed_over = true;
                (key.clone(), carried.clone())
            })
            .collect()
    }

    /// What was told and is still somebody else's.
    pub(super) fn told(&self, generation: u64) -> Vec<(Key, Carried)> {
        let table = self.table();
        let told = table.carried.iter();
        told.filter(|_| table.generation == generation)
            .filter(|(key, carried)| carried.handed_over && !table.assigned.contains(*key))
            .map(|(key, carried)| (key.clone(), carried.clone()))
            .collect()
    }

    /// Whether this consumer came from another cluster so short a time ago that other members may still be on their way.
    pub(super) fn has_just_moved(&self) -> bool {
        let moved = self.table().moved;
        moved.is_some_and(|moved| moved.elapsed() < SETTLES)
    }

    /// A partition was given back that was not read yet: another member gets it, and is told the position.
    pub(super) fn put_back(&self, generation: u64, key: &Key) {
        let mut table = self.table();
        if table.generation == generation
            && let Some(carried) = table.carried.get_mut(key)
        {
            (carried.assigned_in, carried.handed_over) = (0, false);
        }
    }

    /// How far a partition was read that is not read just now. Should it be assigned again, or after a flip, reading goes on there.
    pub(super) fn carry(&self, generation: u64, key: &Key, partition: Arc<Partition>) {
        let from = self.epoch();
        let mut table = self.table();
        if table.generation == generation {
            let carried = Carried {
                partition,
                from,
                same_cluster: true,
                assigned_in: generation,
                outdated: false,
                handed_over: false,
            };
            table.carried.insert(key.clone(), carried);
        }
    }

    /// Whether the application has paused it.
    pub(super) fn own(&self, generation: u64, key: &Key, partition: &Arc<Partition>) -> bool {
        let mut table = self.table();
        let is_paused = table.paused.contains(key);
        partition.pause(is_paused);
        if table.seeks.contains_key(key) {
            // Sought again just now: what would be read here is not to be handed out.
            partition.end();
        }
        if table.generation == generation {
            table.carried.remove(key);
            table.owned.insert(key.clone(), Arc::clone(partition));
        } else {
            partition.end();
        }
        is_paused
    }

    pub(super) fn disown(&self, generation: u64, key: &Key) {
        let mut table = self.table();
        if table.generation == generation {
            table.owned.remove(key);
        }
    }

    /// What is read, or was before the flip and has not been assigned since.
    pub(super) fn partitions(&self) -> Vec<Arc<Partition>> {
        let table = self.table();
        let carried = table.carried.values().map(|carried| &carried.partition);
        table.owned.values().chain(carried).cloned().collect()
    }

    /// Notes what the group has assigned; what is new and what is gone for the application.
    pub(super) fn note_assigned(&self, generation: u64, keys: &[Key]) -> Change {
        let mut table = self.table();
        if table.generation != generation {
            return Change::default();
        }
        let is_first = std::mem::replace(&mut table.assigned_by, generation) != generation;
        let change = Change::between(&table.assigned, keys, is_first);
        for key in &change.gone {
            table.assigned.remove(key);
            table.seeks.remove(key);
        }
        table.assigned.extend(change.added.iter().cloned());
        change
    }

    /// Notes what the group has taken away; that of which the application knew.
    pub(super) fn note_revoked(&self, generation: u64, keys: &[Key], is_lost: bool) -> Vec<Key> {
        let mut table = self.table();
        if table.generation != generation {
            return Vec::new();
        }
        let revoked = keys.iter().filter(|key| table.assigned.contains(*key));
        let revoked: Vec<Key> = revoked.cloned().collect();
        for key in &revoked {
            table.assigned.remove(key);
            // What is lost may come back as it was.
            if !is_lost {
                table.seeks.remove(key);
            }
        }
        revoked
    }

    /// Whether something that is acknowledged belongs to partitions that the group has not decided about since a flip.
    pub(super) fn awaits_assignment(&self, generation: u64) -> bool {
        let table = self.table();
        let mut carried = table.carried.values();
        table.assigned_by != generation && carried.any(|carried| carried.partition.is_uncommitted())
    }

    pub(super) fn pause(&self, keys: impl Iterator<Item = Key>) {
        let mut table = self.table();
        for key in keys {
            if let Some(partition) = table.owned.get(&key) {
                partition.pause(true);
            }
            table.paused.insert(key);
        }
        self.asked.store(true, Relaxed);
    }

    /// The worker lets a partition go on when it has gone back to where it was paused.
    pub(super) fn resume(&self, keys: impl Iterator<Item = Key>) {
        let mut table = self.table();
        for key in keys {
            table.paused.remove(&key);
        }
        self.asked.store(true, Relaxed);
    }

    /// False if the partition is not assigned.
    pub(super) fn seek(&self, key: Key, to: SeekTo) -> bool {
        let mut table = self.table();
        if !table.assigned.contains(&key) {
            return false;
        }
        match (to, table.owned.get(&key).cloned()) {
            (SeekTo::Offset(offset), Some(partition)) => {
                table.seeks.remove(&key);
                table.owned.insert(key, partition.seek(offset));
            }
            (_, partition) => {
                if let Some(partition) = partition {
                    partition.end();
                }
                table.seek_number += 1;
                let number = table.seek_number;
                table.seeks.insert(key, (number, to));
            }
        }
        self.asked.store(true, Relaxed);
        true
    }

    pub(super) fn pending_seek(&self, key: &Key) -> Option<(u64, SeekTo)> {
        self.table().seeks.get(key).copied()
    }

    /// The seek has been carried out, and led to `sought` if the partition is read. False if there was another one meanwhile.
    pub(super) fn end_seek(
        &self,
        generation: u64,
        key: &Key,
        number: u64,
        sought: Option<&Arc<Partition>>,
    ) -> bool {
        let mut table = self.table();
        let is_latest = |(latest, _): &(u64, SeekTo)| *latest == number;
        if table.generation != generation || !table.seeks.get(key).is_some_and(is_latest) {
            return false;
        }
        table.seeks.remove(key);
        if let Some(sought) = sought {
            sought.pause(table.paused.contains(key));
            table.owned.insert(key.clone(), Arc::clone(sought));
        }
        true
    }

    pub(super) fn position(&self, key: &Key) -> Option<i64> {
        let table = self.table();
        if table.seeks.contains_key(key) || !table.assigned.contains(key) {
            return None;
        }
        let carried = || table.carried.get(key).map(|carried| &carried.partition);
        let partition = table.owned.get(key).or_else(carried)?;
        Some(partition.next())
    }

    pub(super) fn ask(&self, request: Request) -> Result<()> {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        if requests.len() >= MAX_REQUESTS {
            return Err(self.not_committed(format!(
                "{MAX_REQUESTS} requests wait for the cluster already"
            )));
        }
        requests.push_back(request);
        self.asked.store(true, Relaxed);
        Ok(())
    }

    pub(super) fn take_requests(&self) -> VecDeque<Request> {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *requests)
    }

    pub(super) fn not_committed(&self, reason: String) -> Error {
        Error::NotCommitted {
            group: self.group.clone(),
            reason,
        }
    }

    pub(super) fn not_answered(&self, reason: String) -> Error {
        Error::OffsetsUnknown {
            group: self.group.clone(),
            reason,
        }
    }

    pub(super) fn has_moved(&self) -> Error {
        self.not_committed("the consumer moved to another client meanwhile".to_owned())
    }

    pub(super) fn is_current(&self, generation: u64) -> bool {
        self.table().generation == generation
    }

    /// The epoch now; grows with the record also while the cluster stays.
    pub(super) fn epoch(&self) -> Epoch {
        let mut table = self.table();
        let live = self.fleet.targets.borrow();
        // A target on the way to another cluster is not this generation's epoch.
        if let Some(live) = live.as_ref().filter(|live| live.epoch > table.epoch)
            && table.cluster.as_ref() == Some(&live.cluster)
        {
            table.epoch = live.epoch;
        }
        table.epoch
    }

    pub(super) fn target(&self) -> Option<Arc<Target>> {
        self.fleet.targets.borrow().clone()
    }

    /// Whether there is a partition that can go on at its own position.
    pub(super) fn has_usable_position(&self, target: &Target) -> bool {
        self.table()
            .carried
            .iter()
            .any(|((topic, number), carried)| {
                Own::from(carried).is_usable(|from| target.handoffs.bound(topic, *number, from))
            })
    }

    /// Whether this consumer reads from another cluster than `cluster`, and is to go on doing so.
    pub(super) fn has_left(&self, cluster: &ClusterName) -> bool {
        let is_elsewhere = self.table().cluster.as_ref() != Some(cluster);
        let returns = || {
            self.target()
                .is_some_and(|target| target.cluster == *cluster)
        };
        is_elsewhere && !self.is_closing() && !returns()
    }

    pub(super) fn begin_close(&self) {
        self.closing.store(true, Relaxed);
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Relaxed)
    }

    /// Everything that the application knows that it has; it knows that it has nothing any more.
    pub(super) fn take_assigned(&self) -> Vec<Key> {
        std::mem::take(&mut self.table().assigned)
            .into_iter()
            .collect()
    }

    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
