use super::*;

fn partition(start: i64, handed: std::ops::Range<i64>) -> Arc<Partition> {
    let partition = Partition::new("t".into(), 0, start, Window::default());
    for offset in handed {
        assert_eq!(partition.hand_out(offset, 0, 1, None), HandOut::Yes);
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
    assert!(p.pass(11, 0) && p.pass(12, 0));
    assert_eq!((p.next(), p.commit_point()), (13, 10));
    assert!(!p.acknowledge(11, 1), "never handed out");
    assert!(p.acknowledge(10, 1));
    assert_eq!(p.commit_point(), 13);
    assert!(!p.pass(12, 0), "behind the position");
    p.freeze();
    assert!(!p.pass(13, 0));
    assert_eq!(p.commit_point(), 13);
}

#[test]
fn nothing_is_handed_out_twice_or_after_the_end() {
    let p = partition(10, 10..12);
    assert_eq!(p.hand_out(11, 0, 1, None), HandOut::Ended);
    p.end();
    assert_eq!(p.hand_out(12, 0, 1, None), HandOut::Ended);
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
    assert_eq!(new.hand_out(5, 0, 2, None), HandOut::Yes);
    assert!(!old.acknowledge(5, 1), "another record stands there now");
    assert_eq!(new.commit_point(), 5);
    assert!(new.acknowledge(5, 2));
    assert_eq!(new.commit_point(), 6);
}

#[test]
fn acks_given_between_flip_and_resumption_count() {
    let old = partition(0, 0..3);
    old.freeze();
    assert_eq!(old.hand_out(3, 0, 1, None), HandOut::Ended);
    assert!(old.acknowledge(0, 1));
    assert_eq!(old.succeed(3, &Window::default()).commit_point(), 1);
}

#[test]
fn forgotten_acks_stop_the_flow() {
    let p = partition(0, 0..MAX_UNACKNOWLEDGED as i64);
    let next = MAX_UNACKNOWLEDGED as i64;
    assert_eq!(p.hand_out(next, 0, 1, None), HandOut::TooMany);
    assert!(p.acknowledge(0, 1));
    assert_eq!(p.hand_out(next, 0, 1, None), HandOut::Yes);
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
        assert_eq!(p.hand_out(offset, 0, 1, id(sequence)), HandOut::Yes);
    }
    assert_eq!(p.hand_out(3, 0, 1, id(11)), HandOut::Repeated);
    assert_eq!(p.hand_out(4, 0, 1, None), HandOut::Yes, "no id");
    assert_eq!(p.commit_point(), 0);
    for offset in [0, 1, 2, 4] {
        assert!(p.acknowledge(offset, 1));
    }
    assert_eq!(p.hand_out(5, 0, 1, id(15)), HandOut::Repeated);
    assert_eq!(p.commit_point(), 6, "past the repetition at the end");
}

#[test]
fn what_was_handed_out_above_the_handoff_is_left_out_and_its_acknowledgement_counts() {
    let old = partition(0, 0..0);
    for offset in 0..8 {
        assert_eq!(old.hand_out(offset, 0, 1, id(offset as u64)), HandOut::Yes);
    }
    // The group's offset is 2; 6 was acknowledged out of order.
    assert!(old.acknowledge(0, 1) && old.acknowledge(1, 1) && old.acknowledge(6, 1));
    old.freeze();
    assert!(old.acknowledge(5, 1), "between the clusters");
    let new = old.succeed(4, &Window::default());
    // The producer sends 4 to 8 again.
    for (offset, sequence) in [(4, 4), (5, 5), (6, 6), (7, 7)] {
        assert_eq!(new.hand_out(offset, 0, 2, id(sequence)), HandOut::Repeated);
    }
    assert_eq!(new.hand_out(8, 0, 2, id(8)), HandOut::Yes);
    let (point, text) = new.commit_after(-1, 1_000).expect("commit");
    assert_eq!(point, 2);
    let committed = Window::parse(&text);
    let after_crash = Partition::new("t".into(), 0, point, committed);
    assert_eq!(
        after_crash.hand_out(2, 0, 1, id(2)),
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
        assert_eq!(p.hand_out(offset, 0, 1, id(offset as u64)), HandOut::Yes);
    }
    for offset in [0, 1, 3] {
        assert!(p.acknowledge(offset, 1));
    }
    let (point, text) = p.commit_after(1, 1_000).expect("commit");
    assert_eq!(point, 2);
    assert_eq!(p.commit_after(2, 1_000), None, "nothing new");
    let next = Partition::new("t".into(), 0, 0, Window::parse(&text));
    assert_eq!(next.hand_out(0, 0, 1, id(1)), HandOut::Repeated);
    assert_eq!(next.hand_out(1, 0, 1, id(2)), HandOut::Yes);
    assert!(next.acknowledge(1, 1));
    assert_eq!(next.commit_point(), 2);
}

#[test]
fn nothing_is_handed_out_of_a_paused_partition_and_reading_begins_again_behind_it() {
    let p = partition(10, 10..12);
    p.pause(true);
    assert_eq!(p.hand_out(12, 0, 1, None), HandOut::Ended);
    assert!(!p.pass(12, 0));
    assert!(p.acknowledge(10, 1), "acknowledgements count");
    assert_eq!(p.read_again(), (1, 12));
    assert_eq!(
        p.hand_out(13, 0, 1, None),
        HandOut::Ended,
        "read ahead before the pause: 12 was thrown away"
    );
    assert_eq!(p.hand_out(12, 1, 1, None), HandOut::Yes);
    assert_eq!(p.commit_point(), 11);
}

#[test]
fn a_seek_ends_what_was_before_it() {
    let old = partition(10, 10..20);
    assert!(old.acknowledge(10, 1) && old.is_uncommitted());
    let back = old.seek(5);
    assert_eq!(old.hand_out(20, 0, 1, None), HandOut::Ended);
    assert!(!old.acknowledge_through(19, 1), "from before the seek");
    assert_eq!((back.next(), back.commit_point()), (5, 5));
    assert!(back.is_sought() && back.is_uncommitted());
    back.confirm(5, None);
    assert!(!back.is_sought() && !back.is_uncommitted());
    let ahead = back.seek(90);
    assert_eq!((ahead.next(), ahead.commit_point()), (90, 90));
}

#[test]
fn a_seek_backwards_brings_records_again_and_forwards_it_leaves_repetitions_out() {
    let p = partition(0, 0..0);
    for offset in 0..8 {
        assert_eq!(p.hand_out(offset, 0, 1, id(offset as u64)), HandOut::Yes);
    }
    let ahead = p.seek(9);
    assert_eq!(ahead.hand_out(9, 0, 1, id(7)), HandOut::Repeated);
    let back = ahead.seek(3);
    for offset in 3..8 {
        let again = back.hand_out(offset, 0, 1, id(offset as u64));
        assert_eq!(again, HandOut::Yes, "{offset}");
    }
    assert_eq!(back.hand_out(9, 0, 1, id(7)), HandOut::Repeated);
    let (_, text) = back.seek(2).commit_after(-1, 1_000).expect("commit");
    assert_eq!(text, "", "whoever goes on from there gets them again too");
}

#[test]
fn all_is_acknowledged_also_what_was_lost_with_a_cluster() {
    let old = partition(0, 0..0);
    for offset in 0..4 {
        assert_eq!(old.hand_out(offset, 0, 1, id(offset as u64)), HandOut::Yes);
    }
    let new = old.succeed(2, &Window::default());
    new.acknowledge_all();
    assert_eq!(new.commit_point(), 2);
    for offset in 2..4 {
        let again = new.hand_out(offset, 0, 2, id(offset as u64));
        assert_eq!(again, HandOut::Repeated);
    }
    assert_eq!(new.commit_point(), 4);
}
