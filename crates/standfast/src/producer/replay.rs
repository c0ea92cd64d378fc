//! Acknowledged records that a standby is not known to hold yet.
//!
//! Mirroring is asynchronous: what the active cluster has acknowledged is lost with it until the mirror has it. So the
//! producer keeps such records. They are let go when every standby's log is seen to reach past them (same offsets on both
//! sides), and after a flip, when the handoff says that the new cluster has them. What it does not have is sent again.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use standfast_discovery::{ClusterName, Epoch};
use tokio::sync::OwnedSemaphorePermit;

use super::spent::{Spent, Waste};
use crate::ffi::Lent;
use crate::record::Record;
use crate::target::Bound;

/// Bytes of acknowledged records that a producer keeps, by default.
pub const DEFAULT_REPLAY_BYTES: usize = 64 * 1024 * 1024;

/// How long an acknowledged record is kept at most, by default. Longer than the restart of a link, a standby's broker or an
/// agent takes; not so long that a topic without a mirror fills the memory for nothing.
pub const DEFAULT_REPLAY_AGE: Duration = Duration::from_secs(600);

/// Bytes that a kept record takes beyond [`Record::size`].
const KEPT_OVERHEAD: usize = 128;

/// Offset of a record whose acknowledgement did not name one.
const UNKNOWN: i64 = -1;

/// What a producer does when its replay buffer is full.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Overflow {
    /// Sends on and lets the oldest records go unprotected, counted in
    /// [`records_unprotected`](crate::Stats::records_unprotected) and told by
    /// [`FleetEvent::Unprotected`](crate::FleetEvent::Unprotected). A standby that is away does not hold the application up.
    #[default]
    Unprotected,
    /// A send waits until a standby holds enough. Nothing goes unprotected, but a standby or a mirror that is away for long
    /// stops the application. Every topic that is written to must be mirrored to every standby.
    Block,
    /// As `Block`, but a send fails with [`Error::Unprotected`](crate::Error::Unprotected) instead of waiting.
    Fail,
}

/// How much is kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) bytes: usize,
    pub(super) age: Duration,
    pub(super) overflow: Overflow,
}

/// A record, where it stands on the cluster that has acknowledged it, and its room in the replay buffer.
#[derive(Debug)]
struct Kept {
    sequence: u64,
    record: Record,
    offset: i64,
    epoch: Epoch,
    at: Instant,
    room: Option<OwnedSemaphorePermit>,
}

impl Kept {
    fn size(&self) -> usize {
        self.record.size() + KEPT_OVERHEAD
    }
}

/// A record that is to be sent again, to the partition that it had.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) record: Lent,
    pub(super) room: Option<OwnedSemaphorePermit>,
}

/// One partition: oldest record first, in the order of offsets, which is that of the sequences.
#[derive(Debug, Default)]
struct Lane {
    kept: VecDeque<Kept>,
    /// Log ends that the standbys have shown.
    ends: Vec<(ClusterName, i64)>,
}

#[derive(Debug)]
pub(super) struct Replay {
    limits: Limits,
    topics: BTreeMap<Arc<str>, Vec<Lane>>,
    stock: Stock,
    standbys: Vec<ClusterName>,
    /// The flip to which standbys and log ends belong.
    flip: Option<Instant>,
    /// By sequence.
    waiting: BTreeMap<u64, Waiting>,
    let_go: u64,
}

/// What the lanes hold together, and what they held.
#[derive(Debug, Default)]
struct Stock {
    records: usize,
    bytes: usize,
    spent: Spent,
}

impl Stock {
    fn take_in(&mut self, kept: &Kept) {
        (self.records, self.bytes) = (self.records + 1, self.bytes + kept.size());
    }

    fn take_out(&mut self, kept: &Kept) {
        (self.records, self.bytes) = (self.records - 1, self.bytes - kept.size());
    }

    fn let_go(&mut self, kept: Kept) {
        self.take_out(&kept);
        self.spent.push(kept.record);
    }
}

/// What an acknowledgement says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) partition: i32,
    pub(super) offset: i64,
    pub(super) epoch: Epoch,
}

impl Replay {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            topics: BTreeMap::new(),
            stock: Stock::default(),
            standbys: Vec::new(),
            flip: None,
            waiting: BTreeMap::new(),
            let_go: 0,
        }
    }

    /// What finished records have left behind.
    pub(super) fn spent(&mut self) -> &mut Spent {
        &mut self.stock.spent
    }

    /// What is more than may be in memory, together with what is kept.
    pub(super) fn take_surplus(&mut self) -> Waste {
        let bound = self.limits.bytes.saturating_sub(self.stock.bytes);
        self.stock.spent.take_down_to(bound)
    }

    /// Records and bytes kept.
    pub(super) fn held(&self) -> (usize, usize) {
        (self.stock.records, self.stock.bytes)
    }

    /// Records that went unprotected since the last call.
    pub(super) fn take_let_go(&mut self) -> u64 {
        std::mem::take(&mut self.let_go)
    }

    pub(super) fn waiting(&self) -> &BTreeMap<u64, Waiting> {
        &self.waiting
    }

    /// The first one with a sequence in `range`.
    pub(super) fn next_waiting(&mut self, range: Range<u64>) -> Option<(u64, &mut Lent)> {
        let from = (range.start < range.end).then_some(range)?;
        let (sequence, waiting) = self.waiting.range_mut(from).next()?;
        Some((*sequence, &mut waiting.record))
    }

    pub(super) fn waiting_records(&mut self) -> impl Iterator<Item = &mut Lent> {
        self.waiting.values_mut().map(|waiting| &mut waiting.record)
    }

    /// Takes out a record that the new cluster has answered for.
    pub(super) fn take_waiting(&mut self, sequence: u64) -> Option<Waiting> {
        self.waiting.remove(&sequence)
    }

    /// Keeps an acknowledged record, if there is a standby to wait for.
    pub(super) fn keep(
        &mut self,
        sequence: u64,
        record: Record,
        place: Place,
        room: Option<OwnedSemaphorePermit>,
    ) {
        let index = usize::try_from(place.partition);
        let is_kept = self.limits.bytes > 0 && !self.standbys.is_empty();
        let (Ok(index), true) = (index, is_kept) else {
            self.stock.spent.push(record);
            return;
        };
        let lanes = match self.topics.get_mut(&record.topic) {
            Some(lanes) => lanes,
            None => self.topics.entry(Arc::clone(&record.topic)).or_default(),
        };
        if lanes.len() <= index {
            lanes.resize_with(index + 1, Lane::default);
        }
        let Some(lane) = lanes.get_mut(index) else {
            return;
        };
        let kept = Kept {
            sequence,
            record,
            offset: place.offset,
            epoch: place.epoch,
            at: Instant::now(),
            room,
        };
        self.stock.take_in(&kept);
        lane.kept.push_back(kept);
        if self.stock.bytes > self.limits.bytes && self.limits.overflow == Overflow::Unprotected {
            self.make_room();
        }
    }

    /// Lets the oldest records go, down to a little below the bound, so that not every record has to look for them.
    fn make_room(&mut self) {
        let target = self.limits.bytes - self.limits.bytes / 16;
        let mut lanes: Vec<&mut Lane> = self.topics.values_mut().flatten().collect();
        let oldest = |lane: &Lane| lane.kept.front().map(|kept| kept.sequence);
        let mut order: BinaryHeap<Reverse<(u64, usize)>> = lanes
            .iter()
            .enumerate()
            .filter_map(|(index, lane)| Some(Reverse((oldest(lane)?, index))))
            .collect();
        while self.stock.bytes > target
            && let Some(Reverse((_, index))) = order.pop()
        {
            let Some(lane) = lanes.get_mut(index) else {
                continue;
            };
            if let Some(kept) = lane.kept.pop_front() {
                self.stock.let_go(kept);
                self.let_go += 1;
            }
            if let Some(sequence) = oldest(lane) {
                order.push(Reverse((sequence, index)));
            }
        }
    }

    /// Lets records go that are too old. Only with [`Overflow::Unprotected`]: the others promise that none goes.
    pub(super) fn sweep(&mut self, now: Instant) {
        if self.limits.overflow != Overflow::Unprotected {
            return;
        }
        for lane in self.topics.values_mut().flatten() {
            let old = |kept: &Kept| now.saturating_duration_since(kept.at) > self.limits.age;
            while lane.kept.front().is_some_and(old)
                && let Some(kept) = lane.kept.pop_front()
            {
                self.stock.let_go(kept);
                self.let_go += 1;
            }
        }
    }

    /// The fleet's other clusters, after the flip at `flip`.
    pub(super) fn set_standbys(&mut self, standbys: Vec<ClusterName>, flip: Instant) {
        if self.flip.replace(flip) != Some(flip) {
            for lane in self.topics.values_mut().flatten() {
                lane.ends.clear();
            }
        }
        if self.standbys != standbys {
            self.standbys = standbys;
            for lane in self.topics.values_mut().flatten() {
                lane.trim(&self.standbys, &mut self.stock);
            }
        }
    }

    /// Partitions of which records are kept that `standby` is not known to hold.
    pub(super) fn open(&self, standby: &ClusterName) -> Vec<(&str, i32)> {
        let mut open = Vec::new();
        for (topic, lanes) in &self.topics {
            for (lane, number) in lanes.iter().zip(0..) {
                let end = lane.end(standby);
                if lane
                    .kept
                    .back()
                    .is_some_and(|kept| kept.offset == UNKNOWN || kept.offset >= end)
                {
                    open.push((topic.as_ref(), number));
                }
            }
        }
        open
    }

    /// The newest kept record below `end`, to be compared: its offset and sequence.
    pub(super) fn sample(&self, topic: &str, partition: i32, end: i64) -> Option<(i64, u64)> {
        let lane = self
            .topics
            .get(topic)?
            .get(usize::try_from(partition).ok()?)?;
        let newest = lane.kept.iter().rev();
        newest
            .filter(|kept| (0..end).contains(&kept.offset))
            .map(|kept| (kept.offset, kept.sequence))
            .next()
    }

    /// A standby has shown that it holds a partition up to `end` (exclusive).
    pub(super) fn note_end(
        &mut self,
        flip: Instant,
        standby: &ClusterName,
        topic: &str,
        partition: i32,
        end: i64,
    ) {
        if self.flip != Some(flip) {
            return;
        }
        let index = usize::try_from(partition).ok();
        let lane = index.and_then(|index| self.topics.get_mut(topic)?.get_mut(index));
        let Some(lane) = lane else { return };
        match lane.ends.iter_mut().find(|(name, _)| name == standby) {
            Some((_, known)) => *known = end,
            None => lane.ends.push((standby.clone(), end)),
        }
        lane.trim(&self.standbys, &mut self.stock);
    }

    /// `cluster` is the active one now: lets go what it holds, and has the rest sent again. `bound` tells up to where it
    /// holds the log of an epoch; where nobody knows, what it has shown as a standby counts. Returns how many are sent again.
    pub(super) fn move_to(
        &mut self,
        cluster: &ClusterName,
        same_cluster: bool,
        bound: impl Fn(&str, i32, Epoch) -> Bound,
    ) -> usize {
        let before = self.waiting.len();
        for (topic, lanes) in &mut self.topics {
            for (lane, number) in lanes.iter_mut().zip(0..) {
                let end = lane.end(cluster);
                let mut stays = VecDeque::new();
                // From the newest on: a record without an offset stands before the next one that has one.
                let mut offset = i64::MAX;
                while let Some(mut kept) = lane.kept.pop_back() {
                    if kept.offset != UNKNOWN {
                        offset = kept.offset;
                    }
                    let is_there = match bound(topic, number, kept.epoch) {
                        Bound::Below(handoff) => offset < handoff,
                        _ if same_cluster => {
                            stays.push_front(kept);
                            continue;
                        }
                        _ => offset < end,
                    };
                    if is_there {
                        self.stock.let_go(kept);
                        continue;
                    }
                    self.stock.take_out(&kept);
                    kept.record.partition = Some(number);
                    let waiting = Waiting {
                        record: Lent::new(kept.record),
                        room: kept.room,
                    };
                    self.waiting.insert(kept.sequence, waiting);
                }
                lane.kept = stays;
            }
        }
        self.waiting.len() - before
    }

    pub(super) fn is_empty(&self) -> bool {
        self.stock.records == 0
    }

    /// Lets everything go.
    pub(super) fn clear(&mut self) {
        self.topics.clear();
        self.waiting.clear();
        self.stock = Stock::default();
    }
}

impl Lane {
    /// Up to where a standby is known to hold the partition.
    fn end(&self, standby: &ClusterName) -> i64 {
        let shown = self.ends.iter().find(|(name, _)| name == standby);
        shown.map_or(0, |(_, end)| *end)
    }

    /// Lets go what all standbys hold.
    fn trim(&mut self, standbys: &[ClusterName], stock: &mut Stock) {
        let held_by_all = standbys.iter().map(|standby| self.end(standby)).min();
        let bound = held_by_all.unwrap_or(i64::MAX);
        let mut count = 0;
        for (kept, number) in self.kept.iter().zip(1..) {
            if kept.offset >= bound {
                break;
            }
            // One without an offset goes with the next that has one.
            if kept.offset != UNKNOWN || standbys.is_empty() {
                count = number;
            }
        }
        for kept in self.kept.drain(..count) {
            stock.let_go(kept);
        }
    }
}

#[cfg(test)]
mod tests;
