//! What is kept, let go and sent again.

use super::*;

fn cluster(name: &str) -> ClusterName {
    ClusterName::new(name).expect("name")
}

fn replay(bytes: usize, overflow: Overflow, standbys: &[&str]) -> (Replay, Instant) {
    let mut replay = Replay::new(Limits {
        bytes,
        age: Duration::from_secs(60),
        overflow,
    });
    let flip = Instant::now();
    replay.set_standbys(standbys.iter().map(|name| cluster(name)).collect(), flip);
    (replay, flip)
}

fn keep(replay: &mut Replay, partition: i32, sequence: u64, offset: i64) {
    let place = Place {
        partition,
        offset,
        epoch: Epoch(1),
    };
    replay.keep(sequence, Record::to("t").payload("12345678"), place, None);
}

#[test]
fn a_record_goes_when_every_standby_has_shown_it() {
    let (mut replay, flip) = replay(1 << 20, Overflow::Unprotected, &["east", "north"]);
    for offset in 0..10 {
        keep(&mut replay, 0, offset as u64, offset);
    }
    replay.note_end(flip, &cluster("east"), "t", 0, 7);
    assert_eq!(replay.held().0, 10, "north is not known to have any");
    assert_eq!(replay.sample("t", 0, 7), Some((6, 6)));
    replay.note_end(flip, &cluster("north"), "t", 0, 5);
    assert_eq!(replay.held().0, 5);
    replay.note_end(Instant::now(), &cluster("north"), "t", 0, 9);
    assert_eq!(replay.held().0, 5, "an answer from before another flip");
    assert_eq!(replay.open(&cluster("east")), [("t", 0)]);
    replay.note_end(flip, &cluster("north"), "t", 0, 10);
    replay.note_end(flip, &cluster("east"), "t", 0, 10);
    assert_eq!(replay.held(), (0, 0));
    assert!(replay.open(&cluster("east")).is_empty());
}

#[test]
fn without_a_standby_nothing_is_kept() {
    let (mut replay, flip) = replay(1 << 20, Overflow::Unprotected, &[]);
    keep(&mut replay, 0, 0, 0);
    assert!(replay.is_empty());
    replay.set_standbys(vec![cluster("east")], flip);
    keep(&mut replay, 0, 1, 1);
    assert_eq!(replay.held().0, 1);
    replay.set_standbys(Vec::new(), flip);
    assert_eq!(replay.held(), (0, 0), "the standby left the record");
}

#[test]
fn at_the_bound_the_oldest_of_all_partitions_go_and_are_counted() {
    let (mut replay, _) = replay(10_000, Overflow::Unprotected, &["east"]);
    for n in 0..200 {
        keep(&mut replay, (n % 3) as i32, n, (n / 3) as i64);
    }
    let (records, bytes) = replay.held();
    assert!(bytes <= 10_000 && records > 20, "{records}, {bytes}");
    assert_eq!(replay.take_let_go(), 200 - records as u64);
    let oldest = 200 - records as u64;
    assert_eq!(
        replay
            .sample("t", 0, i64::MAX)
            .map(|(_, sequence)| sequence),
        Some(198)
    );
    let waiting = replay.move_to(&cluster("east"), false, |_, _, _| Bound::Unknown);
    assert_eq!(waiting, records);
    assert!(replay.waiting().keys().all(|sequence| *sequence >= oldest));
    assert_eq!(replay.held(), (0, 0));
}

#[test]
fn what_is_kept_and_what_waits_to_be_freed_share_the_bound() {
    let (mut replay, flip) = replay(10_000, Overflow::Unprotected, &["east"]);
    for n in 0..30 {
        keep(&mut replay, 0, n, n as i64);
    }
    let size = replay.held().1 / 30 - KEPT_OVERHEAD;
    replay.note_end(flip, &cluster("east"), "t", 0, 30);
    for n in 30..60 {
        keep(&mut replay, 0, n, n as i64);
    }
    drop(replay.take_surplus());
    let waiting = std::iter::from_fn(|| replay.spent().pop()).count();
    assert!((1..30).contains(&waiting), "{waiting}");
    assert!(replay.held().1 + waiting * size <= 10_000, "{waiting}");
}

#[test]
fn age_counts_only_where_records_may_go_unprotected() {
    for (overflow, left) in [(Overflow::Unprotected, 0), (Overflow::Block, 1)] {
        let (mut replay, _) = replay(10_000, overflow, &["east"]);
        keep(&mut replay, 0, 0, 0);
        replay.sweep(Instant::now() + Duration::from_secs(59));
        assert_eq!(replay.held().0, 1);
        replay.sweep(Instant::now() + Duration::from_secs(61));
        assert_eq!(replay.held().0, left);
    }
}

#[test]
fn a_flip_decides_by_handoff_then_by_what_was_seen() {
    let flipped = |bound: Bound, seen: i64, same: bool| {
        let (mut replay, flip) = replay(1 << 20, Overflow::Unprotected, &["east", "north"]);
        // The acknowledgement of 2 named no offset: it stands below 3.
        for (sequence, offset) in [(0, 0), (1, 1), (2, UNKNOWN), (3, 3), (4, 4)] {
            keep(&mut replay, 0, sequence, offset);
        }
        replay.note_end(flip, &cluster("east"), "t", 0, seen);
        replay.move_to(&cluster("east"), same, |_, _, _| bound);
        let again: Vec<u64> = replay.waiting().keys().copied().collect();
        (again, replay.held().0)
    };
    assert_eq!(flipped(Bound::Below(3), 0, false), (vec![2, 3, 4], 0));
    assert_eq!(flipped(Bound::Below(4), 0, false), (vec![4], 0));
    assert_eq!(flipped(Bound::Below(5), 0, false), (vec![], 0));
    assert_eq!(flipped(Bound::Unknown, 4, false), (vec![4], 0));
    assert_eq!(flipped(Bound::Unknown, 0, false).0.len(), 5);
    assert_eq!(
        flipped(Bound::Unknown, 0, true),
        (vec![], 5),
        "a new client of the same cluster"
    );
}
