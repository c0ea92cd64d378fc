//! How far the application has come in one partition: what it was handed, and what it has acknowledged.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
}

/// Whether a record may go to the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HandOut {
    Yes,
    /// The assignment has ended: throw the record away, it is read again by whoever owns the partition now.
    Ended,
    /// Too many records are unacknowledged.
    TooMany,
}

impl Partition {
    pub(crate) fn new(topic: Arc<str>, number: i32, start: i64) -> Arc<Self> {
        Arc::new(Self {
            topic,
            number,
            progress: Mutex::new(Progress {
                stage: Stage::Live,
                next: start,
                pending: VecDeque::new(),
                successor: None,
            }),
        })
    }

    /// The partition goes on at `start` on another cluster. What was handed out below `start` is the same record there
    /// and still waits for its acknowledgement; the rest does not exist there.
    pub(crate) fn succeed(self: &Arc<Self>, start: i64) -> Arc<Self> {
        let mut old = self.lock();
        old.stage = Stage::Ended;
        let pending = std::mem::take(&mut old.pending);
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
                successor: None,
            }),
        });
        old.successor = Some(Arc::clone(&successor));
        successor
    }

    /// Asks to hand the record at `offset` to the application, and notes that it was.
    pub(crate) fn hand_out(&self, offset: i64, generation: u64) -> HandOut {
        let mut progress = self.lock();
        if progress.stage != Stage::Live || offset < progress.next {
            return HandOut::Ended;
        }
        if progress.pending.len() >= MAX_UNACKNOWLEDGED {
            return HandOut::TooMany;
        }
        progress.next = offset + 1;
        progress.pending.push_back(Pending {
            offset,
            generation,
            acknowledged: false,
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
    pub(crate) fn commit_point(&self) -> i64 {
        let progress = self.lock();
        progress
            .pending
            .front()
            .map_or(progress.next, |oldest| oldest.offset)
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress {
    fn acknowledge(&mut self, offset: i64, generation: u64) -> bool {
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
        if !self.acknowledge(offset, generation) {
            return false;
        }
        for record in self
            .pending
            .iter_mut()
            .take_while(|record| record.offset <= offset)
        {
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
            self.pending.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(start: i64, handed: std::ops::Range<i64>) -> Arc<Partition> {
        let partition = Partition::new("t".into(), 0, start);
        for offset in handed {
            assert_eq!(partition.hand_out(offset, 1), HandOut::Yes);
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
        assert_eq!(p.hand_out(11, 1), HandOut::Ended);
        p.end();
        assert_eq!(p.hand_out(12, 1), HandOut::Ended);
        assert!(
            !p.acknowledge(10, 1),
            "the partition belongs to somebody else"
        );
    }

    #[test]
    fn acks_below_the_handoff_count_on_the_new_cluster() {
        let old = partition(0, 0..8);
        old.freeze();
        let new = old.succeed(5);
        assert_eq!((new.next(), new.commit_point()), (5, 0));
        assert!(old.acknowledge_through(4, 1));
        assert_eq!(new.commit_point(), 5);
        assert!(!old.acknowledge(6, 1), "never mirrored");
        assert_eq!(new.hand_out(5, 2), HandOut::Yes);
        assert!(!old.acknowledge(5, 1), "another record stands there now");
        assert_eq!(new.commit_point(), 5);
        assert!(new.acknowledge(5, 2));
        assert_eq!(new.commit_point(), 6);
    }

    #[test]
    fn acks_given_between_flip_and_resumption_count() {
        let old = partition(0, 0..3);
        old.freeze();
        assert_eq!(old.hand_out(3, 1), HandOut::Ended);
        assert!(old.acknowledge(0, 1));
        assert_eq!(old.succeed(3).commit_point(), 1);
    }

    #[test]
    fn forgotten_acks_stop_the_flow() {
        let p = partition(0, 0..MAX_UNACKNOWLEDGED as i64);
        let next = MAX_UNACKNOWLEDGED as i64;
        assert_eq!(p.hand_out(next, 1), HandOut::TooMany);
        assert!(p.acknowledge(0, 1));
        assert_eq!(p.hand_out(next, 1), HandOut::Yes);
    }
}
