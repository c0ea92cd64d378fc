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
    successor: Option<Arc<Partition>>,
}

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
        Arc::new(Self {
            topic,
            number,
            progress: Mutex::new(Progress {
                stage: Stage::Live,
                next: start,
                pending: VecDeque::new(),
                seen: window.clone(),
                done: window,
                orphans: Orphans::default(),
                successor: None,
            }),
        })
    }

    /// The partition goes on at `start` on another cluster. What was handed out below `start` is the same record there
    /// and still waits for its acknowledgement; the rest comes again there if its producer is on the wrapper, and is left out
    /// then. `window`: what others have committed meanwhile.
    pub(crate) fn succeed(self: &Arc<Self>, start: i64, window: &Window) -> Arc<Self> {
        let mut old = self.lock();
        old.stage = Stage::Ended;
        let pending = std::mem::take(&mut old.pending);
        let (mut seen, mut done) = (old.seen.clone(), old.done.clone());
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
        let successor = Arc::new(Self {
            topic: Arc::clone(&self.topic),
            number: self.number,
            progress: Mutex::new(Progress {
                stage: Stage::Live,
                next: start,
                pending: pending
                    .into_iter()
                    .filter(|record| record.offset < start)
                    .collect(),
                seen,
                done,
                orphans,
                successor: None,
            }),
        });
        old.successor = Some(Arc::clone(&successor));
        successor
    }

    /// Asks to hand the record at `offset` to the application, and notes that it was.
    pub(crate) fn hand_out(&self, offset: i64, generation: u64, id: Option<RecordId>) -> HandOut {
        let mut progress = self.lock();
        if progress.stage != Stage::Live || offset < progress.next {
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
    pub(crate) fn pass(&self, offset: i64) -> bool {
        let mut progress = self.lock();
        if progress.stage != Stage::Live || offset < progress.next {
            return false;
        }
        progress.next = offset + 1;
        true
    }

    /// Marks a record as processed; false if that does not count any more.
    pub(crate) fn acknowledge(&self, offset: i64, generation: u64) -> bool {
        let successor = {
            let mut progress = self.lock();
            match &progress.successor {
                Some(successor) => Arc::clone(successor),
                None => {
                    return progress.stage != Stage::Ended
                        && progress.acknowledge(offset, generation);
                }
            }
        };
        successor.acknowledge(offset, generation)
    }

    /// Marks every record up to and including this one.
    pub(crate) fn acknowledge_through(&self, offset: i64, generation: u64) -> bool {
        let successor = {
            let mut progress = self.lock();
            match &progress.successor {
                Some(successor) => Arc::clone(successor),
                None => {
                    return progress.stage != Stage::Ended
                        && progress.acknowledge_through(offset, generation);
                }
            }
        };
        successor.acknowledge_through(offset, generation)
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
mod tests {
    use super::*;

    fn partition(start: i64, handed: std::ops::Range<i64>) -> Arc<Partition> {
        let partition = Partition::new("t".into(), 0, start, Window::default());
        for offset in handed {
            assert_eq!(partition.hand_out(offset, 1, None), HandOut::Yes);
        }
        partition
    }

    #[test]
    fn commit_point_waits_for_the_oldest() {
        let p = partition(10, 10..15);
        assert_eq!(p.commit_point(), 10);
        assert!(p.acknowledge(12, 1));
        assert_eq!(p.commit_point(), 10);
        assert!(p.acknowledge(10, 1));
        assert_eq!(p.commit_point(), 11);
        assert!(p.acknowledge_through(13, 1));
        assert_eq!(p.commit_point(), 14);
        assert!(!p.acknowledge(13, 1), "twice");
        assert!(!p.acknowledge(14, 2), "another generation's record");
        assert!(p.acknowledge(14, 1));
        assert_eq!(p.commit_point(), 15);
    }

    #[test]
    fn what_is_passed_needs_no_acknowledgement() {
        let p = partition(10, 10..11);
        assert!(p.pass(11) && p.pass(12));
        assert_eq!((p.next(), p.commit_point()), (13, 10));
        assert!(!p.acknowledge(11, 1), "never handed out");
        assert!(p.acknowledge(10, 1));
        assert_eq!(p.commit_point(), 13);
        assert!(!p.pass(12), "behind the position");
        p.freeze();
        assert!(!p.pass(13));
        assert_eq!(p.commit_point(), 13);
    }

    #[test]
    fn nothing_is_handed_out_twice_or_after_the_end() {
        let p = partition(10, 10..12);
        assert_eq!(p.hand_out(11, 1, None), HandOut::Ended);
        p.end();
        assert_eq!(p.hand_out(12, 1, None), HandOut::Ended);
        assert!(
            !p.acknowledge(10, 1),
            "the partition belongs to somebody else"
        );
    }

    #[test]
    fn acks_below_the_handoff_count_on_the_new_cluster() {
        let old = partition(0, 0..8);
        old.freeze();
        let new = old.succeed(5, &Window::default());
        assert_eq!((new.next(), new.commit_point()), (5, 0));
        assert!(old.acknowledge_through(4, 1));
        assert_eq!(new.commit_point(), 5);
        assert!(!old.acknowledge(6, 1), "never mirrored");
        assert_eq!(new.hand_out(5, 2, None), HandOut::Yes);
        assert!(!old.acknowledge(5, 1), "another record stands there now");
        assert_eq!(new.commit_point(), 5);
        assert!(new.acknowledge(5, 2));
        assert_eq!(new.commit_point(), 6);
    }

    #[test]
    fn acks_given_between_flip_and_resumption_count() {
        let old = partition(0, 0..3);
        old.freeze();
        assert_eq!(old.hand_out(3, 1, None), HandOut::Ended);
        assert!(old.acknowledge(0, 1));
        assert_eq!(old.succeed(3, &Window::default()).commit_point(), 1);
    }

    #[test]
    fn forgotten_acks_stop_the_flow() {
        let p = partition(0, 0..MAX_UNACKNOWLEDGED as i64);
        let next = MAX_UNACKNOWLEDGED as i64;
        assert_eq!(p.hand_out(next, 1, None), HandOut::TooMany);
        assert!(p.acknowledge(0, 1));
        assert_eq!(p.hand_out(next, 1, None), HandOut::Yes);
    }

    fn id(sequence: u64) -> Option<RecordId> {
        Some(RecordId {
            producer: uuid::Uuid::from_u64_pair(7, 7),
            sequence,
        })
    }

    #[test]
    fn a_record_that_comes_again_is_left_out_and_passed() {
        let p = partition(0, 0..0);
        for (offset, sequence) in [(0, 10), (1, 11), (2, 15)] {
            assert_eq!(p.hand_out(offset, 1, id(sequence)), HandOut::Yes);
        }
        assert_eq!(p.hand_out(3, 1, id(11)), HandOut::Repeated);
        assert_eq!(p.hand_out(4, 1, None), HandOut::Yes, "no id");
        assert_eq!(p.commit_point(), 0);
        for offset in [0, 1, 2, 4] {
            assert!(p.acknowledge(offset, 1));
        }
        assert_eq!(p.hand_out(5, 1, id(15)), HandOut::Repeated);
        assert_eq!(p.commit_point(), 6, "past the repetition at the end");
    }

    #[test]
    fn what_was_handed_out_above_the_handoff_is_left_out_and_its_acknowledgement_counts() {
        let old = partition(0, 0..0);
        for offset in 0..8 {
            assert_eq!(old.hand_out(offset, 1, id(offset as u64)), HandOut::Yes);
        }
        // The group's offset is 2; 6 was acknowledged out of order.
        assert!(old.acknowledge(0, 1) && old.acknowledge(1, 1) && old.acknowledge(6, 1));
        old.freeze();
        assert!(old.acknowledge(5, 1), "between the clusters");
        let new = old.succeed(4, &Window::default());
        // The producer sends 4 to 8 again.
        for (offset, sequence) in [(4, 4), (5, 5), (6, 6), (7, 7)] {
            assert_eq!(new.hand_out(offset, 2, id(sequence)), HandOut::Repeated);
        }
        assert_eq!(new.hand_out(8, 2, id(8)), HandOut::Yes);
        let (point, text) = new.commit_after(-1, 1_000).expect("commit");
        assert_eq!(point, 2);
        let committed = Window::parse(&text);
        let after_crash = Partition::new("t".into(), 0, point, committed);
        assert_eq!(
            after_crash.hand_out(2, 1, id(2)),
            HandOut::Yes,
            "at least once"
        );
        assert!(
            old.acknowledge_through(4, 1),
            "the application still has 4 from the old cluster"
        );
        assert_eq!(new.commit_point(), 7);
        assert!(old.acknowledge(7, 1));
        assert_eq!(new.commit_point(), 8);
        assert!(!old.acknowledge(7, 1), "twice");
        assert!(new.acknowledge(8, 2));
        assert_eq!(new.commit_point(), 9);
    }

    #[test]
    fn the_committed_window_holds_what_stands_before_the_commit_point_only() {
        let p = partition(0, 0..0);
        for offset in 0..5 {
            assert_eq!(p.hand_out(offset, 1, id(offset as u64)), HandOut::Yes);
        }
        for offset in [0, 1, 3] {
            assert!(p.acknowledge(offset, 1));
        }
        let (point, text) = p.commit_after(1, 1_000).expect("commit");
        assert_eq!(point, 2);
        assert_eq!(p.commit_after(2, 1_000), None, "nothing new");
        let next = Partition::new("t".into(), 0, 0, Window::parse(&text));
        assert_eq!(next.hand_out(0, 1, id(1)), HandOut::Repeated);
        assert_eq!(next.hand_out(1, 1, id(2)), HandOut::Yes);
        assert!(next.acknowledge(1, 1));
        assert_eq!(next.commit_point(), 2);
    }
}
