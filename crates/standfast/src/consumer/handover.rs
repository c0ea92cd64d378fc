//! A partition that goes to another member of the group in the course of a failover.
//!
//! The lost cluster's group offsets are carried over now and then, so the new cluster's are behind. The member that read the
//! partition knows better: it commits its position and window on the new cluster, once, when the partition was not assigned
//! to it. The member that got it waits a moment for that.
//!
//! A member that has lost its session does the same when it is back, for what was acknowledged and could not be committed. That it did not give
//! its partitions up shows in its last commit, which says that it reads on.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};
use standfast_discovery::Epoch;

use super::Key;
use super::commits::Commits;
use super::context::WorkerContext;
use super::start::{Carried, Committed, Reader, label};
use crate::ffi;
use crate::stats::add;
use crate::target::{Bound, Target};

/// How long the new owner waits for the old one's position: a rebalance brings all members the news at about the same time.
const GRACE: Duration = Duration::from_millis(1_500);

/// The same soon after a flip ([`SETTLES`]): the member that read until then may still be on its way, or wait for a rebalance of which
/// the others hear with their next heartbeat, 3 s later. Only if it died with the cluster is this waited for nothing.
const MOVED_GRACE: Duration = Duration::from_secs(5);

/// After the last assignment, how long the members that read until the flip go first. Then those tell their positions who read before: over
/// flips in quick succession nobody may have begun to read a partition in between. Shorter than [`MOVED_GRACE`].
const LAST_RESORT: Duration = Duration::from_millis(2_500);

/// So long after a move nobody reads a partition that another member read until then, unless that one has told its position. Shorter
/// than [`GRACE`] by what members may hear of a flip apart.
pub(super) const UNTOLD: Duration = Duration::from_secs(1);

/// So long after a flip the group is not taken for settled.
pub(super) const SETTLES: Duration = Duration::from_secs(30);

/// In all nobody waits longer for a position, however often the group rebalances meanwhile. Longer than a session (10 s) and [`MOVED_GRACE`]:
/// where the coordinator is silent for longer than the former, partitions are assigned anew.
const PATIENCE: Duration = Duration::from_secs(15);

/// So long after positions were told it is looked whether the group has them. Members that tell of one partition at the same time do not
/// see each other, and the one that knows less may be the last; a commit may fail in a rebalance. Both within [`LAST_RESORT`].
const LOOKS: [Duration; 2] = [Duration::from_millis(400), Duration::from_millis(1_200)];

/// A partition that goes to another member waits so long for the acknowledgement of what the application has of it. What is acknowledged
/// later is handed out again there.
pub(super) const ACKNOWLEDGED: Duration = Duration::from_millis(500);

/// One question to the coordinator.
const ASK: Duration = Duration::from_secs(3);

/// Whether the member that read the partition before the flip may still tell its position. `since`: when the partition was assigned, and
/// when those began to count who tell ([`Handover::counts_from`]). `moved`: this consumer came here from another cluster a moment
/// ago. `now` and `flipped`: the epoch, and when this consumer heard of the flip.
pub(super) fn is_awaited(
    committed: Option<Committed>,
    since: (Instant, Instant),
    moved: bool,
    (now, flipped): (Epoch, Instant),
    bound: impl Fn(Epoch) -> Bound,
) -> bool {
    let is_old = |epoch| bound(epoch) != Bound::Unknown;
    // Who read on under an earlier epoch has something to tell only if there is a handoff.
    let is_open =
        committed.is_some_and(|c| c.open.is_some() && c.epoch.is_some_and(|epoch| epoch >= now));
    let is_stale = match committed {
        // The group's offsets have not been carried over yet.
        None => moved,
        Some(committed) => is_open || committed.epoch.is_some_and(is_old),
    };
    let is_soon = is_open || moved || flipped.elapsed() < SETTLES;
    let (assigned, counted_from) = since;
    let grace = if is_soon { MOVED_GRACE } else { GRACE };
    is_stale && assigned.max(counted_from).elapsed() < grace && assigned.elapsed() < PATIENCE
}

/// Whether another member than `reader` has begun to read the partition here and has not given it up. What `reader` knows of it from before does
/// not count then.
pub(super) fn is_passed(committed: Option<Committed>, now: Epoch, reader: Reader) -> bool {
    committed.is_some_and(|committed| {
        let is_of_now = committed.epoch.is_some_and(|epoch| epoch >= now);
        is_of_now && committed.open.is_some_and(|by| by != reader)
    })
}

/// What a member has to tell since partitions were last assigned to it.
#[derive(Debug, Default)]
pub(super) struct Handover {
    assigned_at: Option<Instant>,
    is_silent: bool,
    /// The group's coordinator did not answer until then.
    silent_until: Option<Instant>,
    /// What was not assigned then is still to be told.
    must: bool,
    /// Positions were told that another member may have passed since.
    told_all: bool,
    told: Told,
}

impl Handover {
    /// Partitions were assigned.
    pub(super) fn begin(&mut self) {
        self.must = true;
        self.assigned_at = Some(Instant::now());
    }

    /// The group's coordinator was asked. While it does not answer, neither can others tell it anything.
    pub(super) fn asked(&mut self, is_answered: bool) {
        if std::mem::replace(&mut self.is_silent, !is_answered) && is_answered {
            self.silent_until = Some(Instant::now());
        }
    }

    /// With what those begin to count who tell.
    pub(super) fn counts_from(&self) -> Option<Instant> {
        self.assigned_at.max(self.silent_until)
    }

    /// Tells what is to be told by now.
    pub(super) fn serve(&mut self, consumer: &BaseConsumer<WorkerContext>, commits: &mut Commits) {
        let context = consumer.context();
        let (shared, generation) = (&context.shared, context.source.generation);
        let had = |time| self.assigned_at.is_some_and(|at| at.elapsed() >= time);
        let is_late = !self.told_all && had(LAST_RESORT) && shared.has_just_moved();
        let looks = self.told.is_to_look();
        if !self.must && !is_late && !looks {
            return;
        }
        // While the handoff is being read, positions mean nothing yet.
        let Some(target) = shared.target().filter(|target| !target.handoffs.pending) else {
            return;
        };
        // Whoever commits by hand tells what was committed.
        let waits = !had(ACKNOWLEDGED) && !shared.manual_commit;
        let mut left = Vec::new();
        if self.must || is_late {
            self.must = waits;
            self.told_all |= is_late;
            left = shared.left_over(generation, self.told_all, waits);
        }
        let is_new = !left.is_empty();
        if looks {
            let mut told = shared.told(generation);
            told.retain(|(key, _)| left.iter().all(|(new, _)| new != key));
            left.append(&mut told);
        }
        let outcome = hand_over(consumer, commits, &target, left);
        if is_new {
            self.told.told();
        } else if looks {
            let is_over = outcome.is_ok() || !shared.has_just_moved();
            self.told.looked(is_over);
        }
        if let Err(error) = outcome {
            let client = context.log.client.as_str();
            tracing::warn!(client, error, "positions could not be handed over");
        }
    }
}

/// When positions were told last, and how often it was looked since whether the group has them.
#[derive(Debug, Default)]
struct Told(Option<(Instant, usize)>);

impl Told {
    fn is_to_look(&self) -> bool {
        let due = |(at, looks): (Instant, usize)| Some(at.elapsed() >= *LOOKS.get(looks)?);
        self.0.and_then(due).unwrap_or_default()
    }

    fn told(&mut self) {
        self.0 = Some((Instant::now(), 0));
    }

    /// One look is over; it counts if the group has answered.
    fn looked(&mut self, is_answered: bool) {
        if let Some((at, looks)) = &mut self.0 {
            match is_answered {
                true => *looks += 1,
                false => *at = Instant::now(),
            }
        }
    }
}

/// Commits the positions of partitions that this member read on an earlier cluster and was not assigned here, where the group does not
/// know as much.
fn hand_over(
    consumer: &BaseConsumer<WorkerContext>,
    commits: &mut Commits,
    target: &Target,
    left: Vec<(Key, Carried)>,
) -> Result<(), String> {
    let context = consumer.context();
    let shared = &context.shared;
    let mut list = TopicPartitionList::with_capacity(left.len());
    for ((topic, number), _) in &left {
        list.add_partition(topic, *number);
    }
    if left.is_empty() {
        return Ok(());
    }
    let found = consumer
        .committed_offsets(list, ASK)
        .map_err(|error| error.to_string())?;
    let found = ffi::committed_offsets(&found);
    let mut offsets = TopicPartitionList::new();
    for (key, carried) in left {
        let known = found
            .iter()
            .find(|entry| (&entry.topic, entry.partition) == (&key.0, key.1));
        let committed = known.and_then(Committed::of);
        let done = match shared.manual_commit {
            true => carried.partition.confirmed(),
            false => carried.partition.commit_after(-1, commits.limit()),
        };
        let bound = |from| target.handoffs.bound(&key.0, key.1, from);
        let told = match carried.same_cluster {
            true => position_of_lost(&carried, done, committed, shared.reader),
            false => position(&carried, done, committed, bound),
        };
        let Some((offset, seen)) = told else {
            continue;
        };
        let mut entry = offsets.add_partition(&key.0, key.1);
        if entry.set_offset(Offset::Offset(offset)).is_ok() {
            entry.set_metadata(label(told_under(&carried, shared.epoch()), &seen));
        }
    }
    if offsets.count() == 0 {
        return Ok(());
    }
    commits
        .send(consumer, &offsets, Vec::new())
        .map_err(|error| error.to_string())?;
    let client = context.log.client.as_str();
    tracing::info!(
        client,
        partitions = offsets.count(),
        "positions are handed over to the members that read on"
    );
    add(
        &shared.fleet.counters.positions_handed_over,
        offsets.count(),
    );
    Ok(())
}

/// The epoch with which a position is told. Who may know better goes by it: an outdated position must leave room for a certain one, and for
/// waiting for it.
fn told_under(carried: &Carried, now: Epoch) -> Epoch {
    if carried.outdated { carried.from } else { now }
}

/// What to commit for a partition of which this much is done: nothing if its position means nothing here, or somebody reads it
/// here already.
fn position(
    carried: &Carried,
    done: Option<(i64, String)>,
    committed: Option<Committed>,
    bound: impl Fn(Epoch) -> Bound,
) -> Option<(i64, String)> {
    let (point, seen) = done?;
    let Bound::Below(mirrored) = bound(carried.from) else {
        return None;
    };
    let point = point.min(mirrored);
    let is_better = committed.is_none_or(|committed| match committed.epoch {
        // Another's certain position, or the new owner's own.
        Some(epoch) if epoch > carried.from => false,
        // Told already, if it is told under the epoch that it comes from.
        Some(epoch) if epoch == carried.from && carried.outdated => committed.offset < point,
        _ => true,
    });
    is_better.then_some((point, seen))
}

/// The same for a partition that `reader` lost with the session on this cluster, or with a client that was built anew: nothing if the last
/// commit is not its own, so that the new owner's stays.
fn position_of_lost(
    carried: &Carried,
    done: Option<(i64, String)>,
    committed: Option<Committed>,
    reader: Reader,
) -> Option<(i64, String)> {
    let (point, seen) = done?;
    let is_better = committed.is_some_and(|committed| {
        let is_from_before = committed.epoch.is_some_and(|epoch| epoch <= carried.from);
        committed.open == Some(reader) && is_from_before && committed.offset <= point
    });
    is_better.then_some((point, seen))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consumer::partition::Partition;
    use crate::consumer::window::Window;

    fn carried() -> Carried {
        let partition = Partition::new("t".into(), 0, 0, Window::default());
        for offset in 0..10 {
            partition.hand_out(offset, 0, 1, None);
        }
        partition.acknowledge_through(7, 1);
        Carried {
            partition,
            from: Epoch(4),
            same_cluster: false,
            assigned_in: 1,
            outdated: false,
            handed_over: false,
        }
    }

    fn committed(offset: i64, epoch: u64) -> Option<Committed> {
        Some(Committed {
            offset,
            open: None,
            epoch: Some(Epoch(epoch)),
        })
    }

    #[test]
    fn the_position_is_what_was_acknowledged_and_mirrored() {
        let position = |committed, bound| {
            let carried = carried();
            let done = carried.partition.commit_after(-1, 100);
            position(&carried, done, committed, |_| bound).map(|(offset, _)| offset)
        };
        assert_eq!(position(None, Bound::Below(20)), Some(8));
        assert_eq!(position(committed(3, 4), Bound::Below(6)), Some(6));
        assert_eq!(position(committed(3, 4), Bound::Unknown), None);
        assert_eq!(
            position(committed(9, 5), Bound::Below(20)),
            None,
            "the new owner's"
        );
    }

    #[test]
    fn what_others_may_have_passed_gives_way_to_what_is_certain() {
        let outdated = Carried {
            from: Epoch(2),
            outdated: true,
            ..carried()
        };
        let (told, bound) = (told_under(&outdated, Epoch(5)), |_| Bound::Below(20));
        let committed = Some(Committed {
            offset: 3,
            open: None,
            epoch: Some(told),
        });
        let certain = carried();
        let done = certain.partition.commit_after(-1, 100);
        let better = position(&certain, done, committed, bound);
        assert_eq!(better.map(|(offset, _)| offset), Some(8));
        let now = Instant::now();
        let flipped = (Epoch(5), now);
        assert!(is_awaited(committed, (now, now), true, flipped, bound));
        // And not the other way round.
        let committed = Some(Committed {
            offset: 8,
            open: None,
            epoch: Some(told_under(&certain, Epoch(5))),
        });
        let done = outdated.partition.commit_after(-1, 100);
        assert_eq!(position(&outdated, done, committed, bound), None);
    }

    #[test]
    fn of_two_that_tell_at_once_the_one_that_knows_more_has_the_last_word() {
        let read_until = |epoch| Carried {
            from: Epoch(epoch),
            outdated: true,
            ..carried()
        };
        let tells = |carried: &Carried, group: Option<Committed>| {
            let done = carried.partition.commit_after(-1, 100);
            let told = position(carried, done, group, |_| Bound::Below(20));
            told.map(|(offset, _)| (offset, told_under(carried, Epoch(9))))
        };
        let (less, more) = (read_until(2), read_until(4));
        let group = committed(3, 1);
        assert_eq!(tells(&less, group), Some((8, Epoch(2))));
        assert_eq!(tells(&more, group), Some((8, Epoch(4))));
        // What either finds when it looks again, whoever was the last.
        assert_eq!(tells(&more, committed(8, 2)), Some((8, Epoch(4))));
        assert_eq!(tells(&less, committed(8, 2)), None);
        assert_eq!(tells(&more, committed(8, 4)), None);
        assert_eq!(tells(&less, committed(8, 4)), None);
        assert_eq!(tells(&more, committed(5, 4)), Some((8, Epoch(4))));
    }

    #[test]
    fn what_was_told_is_looked_at_twice_and_more_often_without_an_answer() {
        let mut told = Told::default();
        assert!(!told.is_to_look());
        told.told();
        assert!(!told.is_to_look(), "at once");
        let later = |told: &mut Told| {
            if let Some((at, _)) = &mut told.0 {
                *at = at.checked_sub(LOOKS[1]).expect("uptime");
            }
            told.is_to_look()
        };
        assert!(later(&mut told));
        told.looked(false);
        assert!(!told.is_to_look());
        for is_last in [false, true] {
            assert!(later(&mut told));
            told.looked(true);
            assert_eq!(later(&mut told), !is_last);
        }
    }

    #[test]
    fn only_a_commit_from_before_the_flip_is_waited_for_and_not_for_long() {
        let now = Instant::now();
        let flipped_after = |flip: u64| {
            move |from: Epoch| {
                if from.0 < flip {
                    Bound::Below(1)
                } else {
                    Bound::Unknown
                }
            }
        };
        let ago = |time: Duration| now.checked_sub(time).expect("uptime");
        let long_ago = ago(SETTLES);
        for (committed, since, moved, flipped, awaited) in [
            (committed(3, 4), now, false, long_ago, true),
            (committed(3, 5), now, false, now, false),
            (committed(3, 5), now, true, now, false),
            (None, now, false, now, false),
            (None, now, true, now, true),
            (committed(3, 4), ago(GRACE * 2), false, long_ago, false),
            (committed(3, 4), ago(GRACE * 2), false, now, true),
            (committed(3, 4), ago(GRACE * 2), true, long_ago, true),
            (None, ago(MOVED_GRACE * 2), true, now, false),
        ] {
            let flipped_at = (Epoch(5), flipped);
            let found = is_awaited(
                committed,
                (since, since),
                moved,
                flipped_at,
                flipped_after(5),
            );
            assert_eq!(found, awaited, "{committed:?} {moved} {flipped:?}");
        }
    }

    #[test]
    fn who_has_told_its_position_waits_for_who_has_read_on() {
        let (mine, other) = (Reader::random(), Reader::random());
        let is_passed = |open, epoch| {
            let group = committed(8, epoch).map(|known| Committed { open, ..known });
            is_passed(group, Epoch(5), mine)
        };
        assert!(is_passed(Some(other), 5));
        assert!(!is_passed(Some(other), 4), "on the old cluster");
        assert!(!is_passed(Some(mine), 5));
        assert!(!is_passed(None, 5), "told, or given up");
    }

    #[test]
    fn silence_of_the_coordinator_does_not_count() {
        let mut handover = Handover::default();
        handover.asked(true);
        assert_eq!(handover.counts_from(), None);
        handover.begin();
        let assigned_at = handover.counts_from();
        handover.asked(false);
        assert_eq!(handover.counts_from(), assigned_at, "it is not over yet");
        handover.asked(true);
        let answered_at = handover.counts_from();
        assert!(answered_at > assigned_at);
        handover.asked(true);
        assert_eq!(handover.counts_from(), answered_at);
    }

    #[test]
    fn who_knows_better_counts_from_the_last_rebalance_but_not_for_ever() {
        let now = Instant::now();
        let ago = |time: Duration| now.checked_sub(time).expect("uptime");
        let flipped = (Epoch(5), now);
        let bound = |_| Bound::Below(1);
        let is_awaited = |since| is_awaited(committed(3, 4), since, true, flipped, bound);
        assert!(is_awaited((ago(MOVED_GRACE * 2), now)));
        assert!(!is_awaited((ago(PATIENCE), now)));
        assert!(!is_awaited((ago(MOVED_GRACE), ago(MOVED_GRACE))));
    }

    #[test]
    fn who_lost_its_session_tells_what_the_group_does_not_know() {
        let lost = Carried {
            same_cluster: true,
            outdated: true,
            ..carried()
        };
        let (mine, other) = (Reader::random(), Reader::random());
        let tells = |group: Option<Committed>| {
            let done = lost.partition.commit_after(-1, 100);
            position_of_lost(&lost, done, group, mine).is_some()
        };
        let says = |offset, epoch, open| {
            tells(committed(offset, epoch).map(|known| Committed { open, ..known }))
        };
        assert!(says(3, 4, Some(mine)));
        assert!(says(8, 4, Some(mine)), "so that nobody waits");
        assert!(!says(9, 4, Some(mine)), "it has read on since");
        assert!(!says(8, 4, Some(other)), "the new owner's");
        assert!(!says(3, 5, Some(mine)), "from after a flip");
        assert!(!says(3, 4, None), "told already, or set by hand");
        assert!(!tells(None));
        let now = Instant::now();
        let ago = now.checked_sub(GRACE * 2).expect("uptime");
        let long_ago = now.checked_sub(SETTLES).expect("uptime");
        for (open, epoch, awaited) in [
            (Some(other), 4, true),
            (None, 4, false),
            (Some(other), 5, false),
        ] {
            let known = committed(3, 4).map(|known| Committed { open, ..known });
            let flipped = (Epoch(epoch), long_ago);
            let found = is_awaited(known, (ago, ago), false, flipped, |_| Bound::Unknown);
            assert_eq!(found, awaited, "{open:?} {epoch}");
        }
    }
}
