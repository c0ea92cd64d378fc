//! How far the application has come in one partition: what it was handed, and what it has acknowledged.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::orphans::{Answer, Orphans};
use super::window::Window;
use crate::record::RecordId;

/// Records of one partition that were handed out and not acknowledged, before no more are handed out: bounds memory
/// if the application forgets to acknowledge.
pub const MAX_UNACKNOWLEDGED: usize = 100_000;

/// One assignment of one partition. It ends with a flip or a rebalance; after a flip its successor on the new cluster
/// takes over what was handed out.
#[derive(Debug)]
pub(crate) struct Partition {
    pub(crate) topic: Arc<str>,
    pub(crate) number: i32,
    progress: Mutex<Progress>,
}

#[derive(Debug)]
struct Progress {
    stage: Stage,
    /// The application has paused it: what is read ahead is thrown away, to be read again.
    paused: bool,
    /// Counts the times that reading began again at the position; what was read ahead before that is thrown away.
    reading: u32,
    /// Offset of the next record to be handed out.
    next: i64,
    /// Handed out, oldest first, from the oldest unacknowledged on.
    pending: VecDeque<Pending>,
    /// What was handed out, here or by whoever read the partition before.
    seen: Window,
    /// Of that, what stands before the commit point: what a successor after a crash may leave out.
    done: Window,
    /// Handed out on the previous cluster at offsets that mean something else here.
    orphans: Orphans,
    /// The position comes from a seek that the group may not know of: its committed offset is older.
    sought: bool,
    /// Where the last seek led to.
    sought_at: Option<i64>,
    /// The commit point that the group knows, or that was there at the beginning; -1: none.
    known: i64,
    /// The last commit that the group has taken.
    confirmed: Option<Confirmed>,
    successor: Option<Arc<Partition>>,
}

/// A commit that the group has taken: the offset and the window's text.
pub(crate) type Confirmed = (i64, String);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Records may be handed out.
    Live,
    /// A flip has begun: acknowledgements count, for the successor to come.
    Frozen,
    /// The partition went to another member or cluster.
    Ended,
}

#[derive(Debug, Clone, Copy)]
struct Pending {
    offset: i64,
    /// The generation that handed it out: after a flip another record may stand at the same offset.
    generation: u64,
    acknowledged: bool,
    id: Option<RecordId>,
}

/// Generation of a record that stands for one handed out elsewhere.
const ELSEWHERE: u64 = 0;

/// Whether a record may go to the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HandOut {
    Yes,
    /// It has been handed out before: leave it out. The position has moved past it.
    Repeated,
    /// The assignment has ended: throw the record away, it is read again by whoever owns the partition now.
    Ended,
    /// Too many records are unacknowledged.
    TooMany,
}

impl Partition {
    /// `window`: what whoever read before has seen, as committed.
    pub(crate) fn new(topic: Arc<str>, number: i32, start: i64, window: Window) -> Arc<Self> {
        Self::with(topic, number, Progress::new(start, window))
    }

    /// A partition that was not read before and is begun by a seek.
    pub(crate) fn sought(topic: Arc<str>, number: i32, offset: i64) -> Arc<Self> {
        let mut progress = Progress::new(offset, Window::default());
        (progress.sought, progress.known) = (true, -1);
        progress.sought_at = Some(offset);
        Self::with(topic, number, progress)
    }

    fn with(topic: Arc<str>, number: i32, progress: Progress) -> Arc<Self> {
        Arc::new(Self {
            topic,
            number,
            progress: Mutex::new(progress),
        })
    }

    /// The application goes to `offset`. What it was handed before is not acknowledged any more, neither here nor in a commit.
    ///
    /// Forwards, what comes again is still known. Backwards nothing is: records that were handed out are to come again, also
    /// those whose first one was lost with a cluster and whose second one was left out. So each that stands in the log from
    /// `offset` on is handed out, once.
    pub(crate) fn seek(&self, offset: i64) -> Arc<Self> {
        let mut old = self.lock();
        old.stage = Stage::Ended;
        let seen = match offset >= old.next {
            true => old.seen.clone(),
            false => Window::default(),
        };
        let mut progress = Progress::new(offset, seen);
        (progress.sought, progress.known) = (true, -1);
        progress.sought_at = Some(offset);
        progress.paused = old.paused;
        Self::with(Arc::clone(&self.topic), self.number, progress)
    }

    /// The partition goes on at `start` on another cluster. What was handed out below `start` is the same record there
    /// and still waits for its acknowledgement; the rest comes again there if its producer is on the wrapper, and is left out
    /// then. `window`: what others have committed meanwhile.
    pub(crate) fn succeed(self: &Arc<Self>, start: i64, window: &Window) -> Arc<Self> {
        let mut old = self.lock();
        old.stage = Stage::Ended;
        let pending = std::mem::take(&mut old.pending);
        let (mut seen, mut done) = (std::mem::take(&mut old.seen), std::mem::take(&mut old.done));
        seen.merge(window);
        done.merge(window);
        let mut orphans = std::mem::take(&mut old.orphans);
        for record in pending.iter().filter(|record| record.offset >= start) {
            let Some(id) = record.id else { continue };
            if record.generation == ELSEWHERE {
                orphans.gone(id);
            } else {
                orphans.add((record.generation, record.offset), id, record.acknowledged);
            }
        }
        let progress = Progress {
            pending: pending
                .into_iter()
                .filter(|record| record.offset < start)
                .collect(),
            done,
            orphans,
            sought: old.sought,
            known: old.known,
            confirmed: old.confirmed.take(),
            ..Progress::new(start, seen)
        };
        let successor = Self::with(Arc::clone(&self.topic), self.number, progress);
        old.successor = Some(Arc::clone(&successor));
        successor
    }

    /// Asks to hand the record at `offset`, read ahead in `reading`, to the application, and notes that it was.
    pub(crate) fn hand_out(
        &self,
        offset: i64,
        reading: u32,
        generation: u64,
        id: Option<RecordId>,
    ) -> HandOut {
        let mut progress = self.lock();
        if !progress.takes(offset, reading) {
            return HandOut::Ended;
        }
        if progress.pending.len() >= MAX_UNACKNOWLEDGED {
            return HandOut::TooMany;
        }
        progress.next = offset + 1;
        if let Some(id) = id {
            if progress.seen.has(id) {
                progress.leave_out(offset, id);
                return HandOut::Repeated;
            }
            progress.seen.note(id);
        }
        progress.pending.push_back(Pending {
            offset,
            generation,
            acknowledged: false,
            id,
        });
        HandOut::Yes
    }

    /// Goes past a record that the application is not shown. False if the assignment has ended.
    pub(crate) fn pass(&self, offset: i64, reading: u32) -> bool {
        let mut progress = self.lock();
        let takes = progress.takes(offset, reading);
        if takes {
            progress.next = offset + 1;
        }
        takes
    }

    /// Marks a record as processed; false if that does not count any more.
    pub(crate) fn acknowledge(self: &Arc<Self>, offset: i64, generation: u64) -> bool {
        self.in_newest(|progress| progress.acknowledge(offset, generation))
            .unwrap_or(false)
    }

    /// Marks every record up to and including this one.
    pub(crate) fn acknowledge_through(self: &Arc<Self>, offset: i64, generation: u64) -> bool {
        self.in_newest(|progress| progress.acknowledge_through(offset, generation))
            .unwrap_or(false)
    }

    /// Marks every record that was handed out.
    pub(crate) fn acknowledge_all(self: &Arc<Self>) {
        self.in_newest(Progress::acknowledge_all);
    }

    /// Works on the partition that goes on for this one, after any number of flips; `None` if there is none.
    fn in_newest<T>(self: &Arc<Self>, work: impl FnOnce(&mut Progress) -> T) -> Option<T> {
        let mut newest = Arc::clone(self);
        loop {
            let successor = {
                let mut progress = newest.lock();
                match &progress.successor {
                    Some(successor) => Arc::clone(successor),
                    None if progress.stage == Stage::Ended => return None,
                    None => return Some(work(&mut progress)),
                }
            };
            newest = successor;
        }
    }

    /// Stops handing out because the application says so. Acknowledgements count.
    pub(crate) fn pause(&self, paused: bool) {
        self.lock().paused = paused;
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.lock().paused
    }

    /// Ends a pause: reading begins again at the position. The number of the reading, and where it begins.
    pub(crate) fn read_again(&self) -> (u32, i64) {
        let mut progress = self.lock();
        progress.paused = false;
        progress.reading = progress.reading.wrapping_add(1);
        (progress.reading, progress.next)
    }

    /// The number of the present reading.
    pub(crate) fn reading(&self) -> u32 {
        self.lock().reading
    }

    /// Whether the position comes from a seek that the group may not know of.
    pub(crate) fn is_sought(&self) -> bool {
        self.lock().sought
    }

    /// Whether nothing was read since a seek.
    pub(crate) fn is_at_seek(&self) -> bool {
        let progress = self.lock();
        progress.sought_at == Some(progress.next)
    }

    /// The group has taken a commit of this partition.
    pub(crate) fn confirm(&self, point: i64, seen: Option<String>) {
        let mut progress = self.lock();
        (progress.sought, progress.known) = (false, point);
        if let Some(seen) = seen {
            progress.confirmed = Some((point, seen));
        }
    }

    /// The last commit that the group has taken, where that is kept.
    pub(crate) fn confirmed(&self) -> Option<Confirmed> {
        self.lock().confirmed.clone()
    }

    /// Whether something is acknowledged, or was sought, that no commit has told the group.
    pub(crate) fn is_uncommitted(&self) -> bool {
        let progress = self.lock();
        progress.commit_point() > progress.known
    }

    /// Whether the application has records that it has not acknowledged.
    pub(crate) fn is_unacknowledged(&self) -> bool {
        let progress = self.lock();
        progress.pending.iter().any(|record| !record.acknowledged)
    }

    /// Ends the assignment: nothing is handed out, nothing counts any more.
    pub(crate) fn end(&self) {
        self.lock().stage = Stage::Ended;
    }

    /// Stops handing out; acknowledgements go on counting for the successor.
    pub(crate) fn freeze(&self) {
        let mut progress = self.lock();
        if progress.stage == Stage::Live {
            progress.stage = Stage::Frozen;
        }
    }

    /// Offset of the next record to be handed out.
    pub(crate) fn next(&self) -> i64 {
        self.lock().next
    }

    /// Everything before this offset is acknowledged.
    #[cfg(test)]
    pub(crate) fn commit_point(&self) -> i64 {
        self.lock().commit_point()
    }

    /// The commit point, if it is above `committed`, and what was seen before it, as text of at most `limit` bytes.
    pub(crate) fn commit_after(&self, committed: i64, limit: usize) -> Option<(i64, String)> {
        let progress = self.lock();
        let point = progress.commit_point();
        (point > committed).then(|| (point, progress.done.text(limit)))
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress {
    fn new(start: i64, window: Window) -> Self {
        Self {
            stage: Stage::Live,
            paused: false,
            reading: 0,
            next: start,
            pending: VecDeque::new(),
            seen: window.clone(),
            done: window,
            orphans: Orphans::default(),
            sought: false,
            sought_at: None,
            known: start,
            confirmed: None,
            successor: None,
        }
    }

    fn takes(&self, offset: i64, reading: u32) -> bool {
        self.stage == Stage::Live && !self.paused && reading == self.reading && offset >= self.next
    }

    fn commit_point(&self) -> i64 {
        let oldest = self.pending.front();
        oldest.map_or(self.next, |oldest| oldest.offset)
    }

    /// Goes past a repetition. If the application still has the first one, its acknowledgement is waited for.
    fn leave_out(&mut self, offset: i64, id: RecordId) {
        let waits = self.orphans.came(id, offset);
        self.pending.push_back(Pending {
            offset,
            generation: ELSEWHERE,
            acknowledged: !waits,
            id: Some(id),
        });
        self.forget_acknowledged();
    }

    fn acknowledge(&mut self, offset: i64, generation: u64) -> bool {
        let (offset, generation) = match self.orphans.acknowledge((generation, offset)) {
            None => (offset, generation),
            Some(Answer::Noted) => return true,
            Some(Answer::Of(offset)) => (offset, ELSEWHERE),
        };
        let Ok(index) = self
            .pending
            .binary_search_by_key(&offset, |record| record.offset)
        else {
            return false;
        };
        let Some(record) = self
            .pending
            .get_mut(index)
            .filter(|record| record.generation == generation)
        else {
            return false;
        };
        record.acknowledged = true;
        self.forget_acknowledged();
        true
    }

    fn acknowledge_through(&mut self, offset: i64, generation: u64) -> bool {
        let place = (generation, offset);
        let is_orphan = self.orphans.has(place);
        if is_orphan {
            for place in self.orphans.up_to(place) {
                self.acknowledge(place.1, place.0);
            }
        } else if !self.acknowledge(offset, generation) {
            return false;
        }
        // What was handed out before an orphan stands in front, handed out by the same generation or an older one.
        let is_earlier = |record: &Pending| match is_orphan {
            true => (ELSEWHERE + 1..=generation).contains(&record.generation),
            false => record.offset <= offset,
        };
        for record in self.pending.iter_mut().filter(|record| is_earlier(record)) {
            record.acknowledged = true;
        }
        self.forget_acknowledged();
        true
    }

    fn acknowledge_all(&mut self) {
        for place in self.orphans.places() {
            self.acknowledge(place.1, place.0);
        }
        for record in &mut self.pending {
            // A repetition whose first one waits has been acknowledged with it, just now.
            record.acknowledged = true;
        }
        self.forget_acknowledged();
    }

    fn forget_acknowledged(&mut self) {
        while self
            .pending
            .front()
            .is_some_and(|oldest| oldest.acknowledged)
        {
            let done = self.pending.pop_front();
            if let Some(id) = done.and_then(|record| record.id) {
                self.done.note(id);
            }
        }
    }
}

#[cfg(test)]
mod tests;
