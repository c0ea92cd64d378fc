//! Where a consumer starts to read a partition: the rule, apart from how its inputs are found.

use std::sync::Arc;

use standfast_discovery::Epoch;
use uuid::Uuid;

use super::partition::Partition;
use super::window::Window;
use crate::event::StartReason;
use crate::ffi::CommittedOffset;
use crate::target::Bound;

/// Prefix of the metadata of the wrapper's commits. The epoch follows, then ` seen=` and a [`Window`] if there is one, then ` open=` and a
/// [`Reader`] from a member that reads on; later versions may append more after a blank.
const LABEL: &str = "standfast-1 epoch=";

const SEEN: &str = " seen=";

const OPEN: &str = "open=";

/// One consumer, as its commits name it: chosen at random.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reader(u32);

impl Reader {
    pub(crate) fn random() -> Self {
        Self(Uuid::new_v4().as_fields().0)
    }
}

/// What to do where the group has no offset, or one that the log does not have (any more).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MissingOffset {
    /// Hold the partition, report it ([`PartitionHeld`](crate::FleetEvent::PartitionHeld)) and look again until the
    /// group's offset has arrived. Nothing is skipped, nothing read twice.
    #[default]
    Error,
    /// Read from the log start offset. Nothing is skipped.
    Earliest,
    /// Read from the log end: skips what is there.
    Latest,
}

/// A partition that this consumer read on the previous cluster.
#[derive(Debug, Clone)]
pub(crate) struct Carried {
    pub(crate) partition: Arc<Partition>,
    /// The last epoch under which it was read.
    pub(crate) from: Epoch,
    /// The present cluster is the same: a rebuilt client, other addresses.
    pub(crate) same_cluster: bool,
    /// The generation that was last assigned it; 0 if it was given to another member since.
    pub(crate) assigned_in: u64,
    /// Another member has read it since.
    pub(crate) outdated: bool,
    /// Its position was told to the group on this cluster.
    pub(crate) handed_over: bool,
}

/// The group's committed offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Committed {
    pub(crate) offset: i64,
    /// The epoch under which the wrapper committed it; `None` for anybody else's commit.
    pub(crate) epoch: Option<Epoch>,
    /// Who committed it was reading on, and has not given the partition up: more may have been acknowledged.
    pub(crate) open: Option<Reader>,
}

/// Everything that is known about a partition when it is assigned.
#[derive(Debug)]
pub(crate) struct Known {
    /// Own position and the epoch it comes from.
    pub(crate) own: Option<Own>,
    pub(crate) committed: Option<Committed>,
    /// Log start and log end here; `None` if not asked yet or not answered.
    pub(crate) range: Option<(i64, i64)>,
    /// The position was found out of range: check it.
    pub(crate) verify: bool,
    pub(crate) policy: MissingOffset,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Own {
    pub(crate) next: i64,
    pub(crate) from: Epoch,
    pub(crate) same_cluster: bool,
    /// It was sought, and the group may not know.
    pub(crate) sought: bool,
}

impl From<&Carried> for Own {
    fn from(carried: &Carried) -> Self {
        Self {
            next: carried.partition.next(),
            from: carried.from,
            same_cluster: carried.same_cluster,
            sought: carried.partition.is_sought(),
        }
    }
}

/// The rule's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Start {
    At {
        offset: i64,
        reason: StartReason,
    },
    /// The range of the log decides: ask for it and call again.
    NeedRange,
    Hold {
        reason: String,
    },
}

impl Known {
    /// Decides. `bound` tells up to where the logs are equal, for who comes from an epoch.
    pub(crate) fn decide(&self, bound: impl Fn(Epoch) -> Bound) -> Start {
        let own = self.own.filter(|own| own.is_usable(&bound));
        let start = match (own, self.committed) {
            (Some(own), committed) => own.start(committed, bound),
            (None, Some(committed)) => committed.start(bound),
            (None, None) => {
                return self.by_policy("the group has no committed offset on this cluster");
            }
        };
        match start {
            Start::At { offset, .. } if self.verify => match self.range {
                None => Start::NeedRange,
                Some((low, high)) if (low..=high).contains(&offset) => start,
                Some((low, high)) => self.by_policy(&format!(
                    "offset {offset} is out of range, the log holds {low} to {high}"
                )),
            },
            other => other,
        }
    }

    fn by_policy(&self, what: &str) -> Start {
        let at = |offset| Start::At {
            offset,
            reason: StartReason::Policy,
        };
        match (self.policy, self.range) {
            (MissingOffset::Error, _) => Start::Hold {
                reason: format!(
                    "{what}; it is looked for again until it is there, or choose on_missing_offset(Earliest or Latest)"
                ),
            },
            (_, None) => Start::NeedRange,
            (MissingOffset::Earliest, Some((low, _))) => at(low),
            (MissingOffset::Latest, Some((_, high))) => at(high),
        }
    }
}

impl Own {
    /// Whether the position means anything here: the two logs are known to be equal up to somewhere. The new cluster's
    /// log end would not do: it may hold records that were produced after the flip.
    pub(crate) fn is_usable(self, bound: impl Fn(Epoch) -> Bound) -> bool {
        self.same_cluster || bound(self.from) != Bound::Unknown
    }

    fn start(self, committed: Option<Committed>, bound: impl Fn(Epoch) -> Bound) -> Start {
        let mirrored = match (self.same_cluster, bound(self.from)) {
            (false, Bound::Below(offset)) => offset,
            (false, Bound::Pending) => {
                return Start::Hold {
                    reason: "the handoff of the flip is being read".to_owned(),
                };
            }
            _ => self.next,
        };
        // A commit made after the flip, or further on in the same log: another member has been reading here meanwhile. But a
        // seek is newer than what the group knows.
        let is_newer = |c: &Committed| {
            !self.sought && (self.same_cluster || c.epoch.is_some_and(|e| e > self.from))
        };
        if let Some(newer) = committed.filter(is_newer)
            && newer.offset > self.next.min(mirrored)
        {
            return Start::At {
                offset: newer.offset,
                reason: StartReason::Committed,
            };
        }
        if self.next <= mirrored {
            return Start::At {
                offset: self.next,
                reason: StartReason::OwnPosition,
            };
        }
        Start::At {
            offset: mirrored,
            reason: StartReason::Handoff,
        }
    }
}

impl Committed {
    /// Of an answer to an offset fetch; `None` if the group has no offset there.
    pub(crate) fn of(entry: &CommittedOffset) -> Option<Self> {
        Some(Self {
            offset: entry.offset?,
            epoch: labelled_epoch(&entry.metadata),
            open: labelled_open(&entry.metadata),
        })
    }

    fn start(self, bound: impl Fn(Epoch) -> Bound) -> Start {
        let offset = match self.epoch.map(bound) {
            // Committed before a flip, for records that the flip has lost.
            Some(Bound::Below(mirrored)) => self.offset.min(mirrored),
            // It may be above what was mirrored: records would be skipped.
            Some(Bound::Pending) => {
                return Start::Hold {
                    reason: "the handoff of the flip is being read".to_owned(),
                };
            }
            Some(Bound::Unknown) | None => self.offset,
        };
        Start::At {
            offset,
            reason: if offset < self.offset {
                StartReason::Handoff
            } else {
                StartReason::Committed
            },
        }
    }
}

/// Metadata of a commit under `epoch`; `seen` is a window's text.
pub(crate) fn label(epoch: Epoch, seen: &str) -> String {
    if seen.is_empty() {
        return format!("{LABEL}{}", epoch.0);
    }
    format!("{LABEL}{}{SEEN}{seen}", epoch.0)
}

/// The same of a member that reads on.
pub(crate) fn open_label(epoch: Epoch, seen: &str, reader: Reader) -> String {
    format!("{} {OPEN}{:08x}", label(epoch, seen), reader.0)
}

/// The member that read on, in the metadata of its commit.
fn labelled_open(metadata: &[u8]) -> Option<Reader> {
    let text = std::str::from_utf8(metadata).ok()?;
    let mut words = text.strip_prefix(LABEL)?.split(' ').skip(1);
    let reader = words.find_map(|word| word.strip_prefix(OPEN))?;
    u32::from_str_radix(reader, 16).ok().map(Reader)
}

/// The window in the metadata of a commit; empty if there is none.
pub(crate) fn labelled_window(metadata: &[u8]) -> Window {
    let text = std::str::from_utf8(metadata).ok();
    let rest = text.and_then(|text| text.strip_prefix(LABEL)?.split_once(SEEN));
    let seen = rest.and_then(|(_, rest)| rest.split(' ').next());
    seen.map(Window::parse).unwrap_or_default()
}

/// The epoch in the metadata of a commit; `None` if the wrapper did not write it.
pub(crate) fn labelled_epoch(metadata: &[u8]) -> Option<Epoch> {
    let rest = std::str::from_utf8(metadata).ok()?.strip_prefix(LABEL)?;
    rest.split(' ').next()?.parse().ok().map(Epoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(own: Option<i64>, committed: Option<(i64, Option<u64>)>) -> Known {
        Known {
            own: own.map(|next| Own {
                next,
                from: Epoch(4),
                same_cluster: false,
                sought: false,
            }),
            committed: committed.map(|(offset, epoch)| Committed {
                offset,
                open: None,
                epoch: epoch.map(Epoch),
            }),
            range: None,
            verify: false,
            policy: MissingOffset::Error,
        }
    }

    fn at(offset: i64, reason: StartReason) -> Start {
        Start::At { offset, reason }
    }

    #[test]
    fn own_position_is_limited_by_the_handoff() {
        let below = |b| move |_| Bound::Below(b);
        assert_eq!(
            known(Some(7), Some((5, None))).decide(below(9)),
            at(7, StartReason::OwnPosition)
        );
        assert_eq!(
            known(Some(7), Some((5, None))).decide(below(6)),
            at(6, StartReason::Handoff)
        );
        assert_eq!(
            known(Some(7), None).decide(below(7)),
            at(7, StartReason::OwnPosition)
        );
        // A stale commit from an earlier stay on this cluster must not win.
        assert_eq!(
            known(Some(7), Some((50, Some(4)))).decide(below(9)),
            at(7, StartReason::OwnPosition)
        );
        // One made after the flip does.
        assert_eq!(
            known(Some(7), Some((50, Some(5)))).decide(below(9)),
            at(50, StartReason::Committed)
        );
    }

    #[test]
    fn without_a_handoff_the_own_position_means_nothing() {
        let mut k = known(Some(7), Some((3, None)));
        assert_eq!(k.decide(|_| Bound::Unknown), at(3, StartReason::Committed));
        assert!(matches!(k.decide(|_| Bound::Pending), Start::Hold { .. }));
        k.committed = None;
        assert!(matches!(k.decide(|_| Bound::Unknown), Start::Hold { .. }));
        // The same cluster needs none of it.
        if let Some(own) = &mut k.own {
            own.same_cluster = true;
        }
        assert_eq!(
            k.decide(|_| Bound::Unknown),
            at(7, StartReason::OwnPosition)
        );
        // Another member has read on while this one was not in the group.
        k.committed = Some(Committed {
            open: None,
            offset: 9,
            epoch: Some(Epoch(4)),
        });
        assert_eq!(k.decide(|_| Bound::Unknown), at(9, StartReason::Committed));
        // But not where this one has sought since.
        if let Some(own) = &mut k.own {
            own.sought = true;
        }
        assert_eq!(
            k.decide(|_| Bound::Unknown),
            at(7, StartReason::OwnPosition)
        );
    }

    /// A commit of an earlier epoch may lie above what was mirrored.
    #[test]
    fn a_committed_offset_waits_for_the_handoff() {
        let k = known(None, Some((9, Some(3))));
        assert!(matches!(k.decide(|_| Bound::Pending), Start::Hold { .. }));
        assert_eq!(k.decide(|_| Bound::Below(6)), at(6, StartReason::Handoff));
        // Somebody else's commit has no epoch: there is nothing to wait for.
        let k = known(None, Some((9, None)));
        assert_eq!(k.decide(|_| Bound::Pending), at(9, StartReason::Committed));
    }

    #[test]
    fn committed_offsets_and_the_policy() {
        assert_eq!(
            known(None, Some((5, None))).decide(|_| Bound::Below(2)),
            at(5, StartReason::Committed)
        );
        assert_eq!(
            known(None, Some((5, Some(3)))).decide(|_| Bound::Below(2)),
            at(2, StartReason::Handoff)
        );
        let mut k = known(None, None);
        assert!(matches!(k.decide(|_| Bound::Unknown), Start::Hold { .. }));
        k.policy = MissingOffset::Earliest;
        assert_eq!(k.decide(|_| Bound::Unknown), Start::NeedRange);
        k.range = Some((3, 9));
        assert_eq!(k.decide(|_| Bound::Unknown), at(3, StartReason::Policy));
        k.policy = MissingOffset::Latest;
        assert_eq!(k.decide(|_| Bound::Unknown), at(9, StartReason::Policy));
    }

    #[test]
    fn an_offset_out_of_range_is_held_or_left_to_the_policy() {
        let mut k = known(None, Some((5, None)));
        k.verify = true;
        assert_eq!(k.decide(|_| Bound::Unknown), Start::NeedRange);
        k.range = Some((8, 12));
        assert!(matches!(k.decide(|_| Bound::Unknown), Start::Hold { .. }));
        k.policy = MissingOffset::Earliest;
        assert_eq!(k.decide(|_| Bound::Unknown), at(8, StartReason::Policy));
    }

    #[test]
    fn labels() {
        assert_eq!(
            labelled_epoch(label(Epoch(17), "").as_bytes()),
            Some(Epoch(17))
        );
        assert_eq!(
            labelled_epoch(b"standfast-1 epoch=3 window=abc"),
            Some(Epoch(3))
        );
        let with_window = label(Epoch(3), "a-1,b-2");
        assert_eq!(labelled_epoch(with_window.as_bytes()), Some(Epoch(3)));
        assert_eq!(
            labelled_window(with_window.as_bytes()),
            Window::parse("a-1,b-2")
        );
        assert_eq!(labelled_window(b"standfast-1 epoch=3"), Window::default());
        for seen in ["", "a-1,b-2"] {
            let open = open_label(Epoch(3), seen, Reader(0xab));
            assert_eq!(labelled_epoch(open.as_bytes()), Some(Epoch(3)));
            assert_eq!(labelled_window(open.as_bytes()), Window::parse(seen));
            assert_eq!(labelled_open(open.as_bytes()), Some(Reader(0xab)));
            assert_eq!(labelled_open(label(Epoch(3), seen).as_bytes()), None);
        }
        for text in [
            "open=ab open=ab",
            "standfast-1 epoch=3 open=",
            "standfast-1 epoch=3 open=123456789",
        ] {
            assert_eq!(labelled_open(text.as_bytes()), None);
        }
        for foreign in [
            &b""[..],
            b"offset by hand",
            b"standfast-1 epoch=",
            b"\xff\xfe",
        ] {
            assert_eq!(labelled_epoch(foreign), None);
        }
    }
}
