use bytes::{BufMut, Bytes, BytesMut};

use super::*;

#[derive(Clone)]
struct Made {
    base: i64,
    /// One value per record; `None` leaves a hole.
    values: Vec<Option<u8>>,
    attributes: u16,
    timestamp: i64,
}

fn batch(base: i64, values: &[u8]) -> Made {
    Made {
        base,
        values: values.iter().copied().map(Some).collect(),
        attributes: 0,
        timestamp: 7,
    }
}

fn raw(made: &Made) -> RawBatch {
    let mut body = BytesMut::new();
    let mut count = 0;
    for (delta, value) in made.values.iter().enumerate() {
        let Some(value) = value else { continue };
        count += 1;
        // length, attributes, timestamp delta, offset delta, null key, one byte of value, no headers
        body.put_slice(&[14, 0, 0, (delta * 2) as u8, 1, 2, *value, 0]);
    }
    finish(made, count, &body)
}

fn marker(base: i64, kind: u8, coordinator_epoch: u8) -> RawBatch {
    let body = [
        32,
        0,
        0,
        0,
        8,
        0,
        0,
        0,
        kind,
        12,
        0,
        0,
        0,
        0,
        0,
        coordinator_epoch,
        0,
    ];
    let made = Made {
        attributes: 0b11_0000,
        ..batch(base, &[1])
    };
    finish(&made, 1, &body)
}

fn finish(made: &Made, count: i32, body: &[u8]) -> RawBatch {
    let mut covered = BytesMut::new();
    covered.put_u16(made.attributes);
    covered.put_i32(made.values.len() as i32 - 1);
    covered.put_i64(made.timestamp);
    covered.put_i64(made.timestamp);
    covered.put_i64(-1);
    covered.put_i16(-1);
    covered.put_i32(-1);
    covered.put_i32(count);
    covered.put_slice(body);
    let mut whole = BytesMut::new();
    whole.put_i64(made.base);
    whole.put_i32(covered.len() as i32 + 9);
    whole.put_i32(0);
    whole.put_i8(2);
    whole.put_u32(crc_fast::crc32_iscsi(&covered));
    whole.put_slice(&covered);
    RawBatch::new(whole.freeze()).unwrap()
}

fn side(spans: Vec<Span>, at: i64) -> Side {
    let mut side = Side::at(at);
    spans.into_iter().for_each(|span| side.push(span));
    side
}

fn pair(theirs: RawBatch, ours: RawBatch) -> Compared {
    let at = theirs.header.base_offset;
    judge(
        side(vec![Span::Batch(theirs)], at),
        side(vec![Span::Batch(ours)], at),
        false,
    )
}

fn difference(compared: Compared) -> (i64, DifferenceKind) {
    match compared {
        Compared::Different(found) => (found.offset, found.kind),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_same_batch_is_equal_whatever_the_producer_and_the_leader_epoch() {
    let one = raw(&batch(5, &[1, 2, 3]));
    let mut restamped = one.bytes.to_vec();
    restamped[12..16].copy_from_slice(&9i32.to_be_bytes());
    restamped[43..51].copy_from_slice(&77i64.to_be_bytes());
    let crc = crc_fast::crc32_iscsi(&restamped[21..]);
    restamped[17..21].copy_from_slice(&crc.to_be_bytes());
    let other = RawBatch::new(Bytes::from(restamped)).unwrap();
    assert_eq!(pair(one, other), Compared::Equal);
}

#[test]
fn a_changed_record_is_found_at_its_offset() {
    let found = pair(raw(&batch(5, &[1, 2, 3])), raw(&batch(5, &[1, 9, 3])));
    assert_eq!(difference(found), (6, DifferenceKind::Records));
    let compressed = |values: &[u8]| {
        raw(&Made {
            attributes: 1,
            ..batch(5, values)
        })
    };
    let found = pair(compressed(&[1, 2, 3]), compressed(&[1, 9, 3]));
    assert_eq!(difference(found), (5, DifferenceKind::Records));
}

#[test]
fn headers_count() {
    let one = batch(5, &[1, 2]);
    let later = Made {
        timestamp: 8,
        ..one.clone()
    };
    let other_bits = Made {
        attributes: 2,
        ..one.clone()
    };
    for (other, kind) in [
        (later, DifferenceKind::Timestamps),
        (other_bits, DifferenceKind::Attributes),
    ] {
        assert_eq!(difference(pair(raw(&one), raw(&other))), (5, kind));
    }
}

#[test]
fn a_damaged_batch_is_named_with_its_side() {
    let good = raw(&batch(5, &[1, 2]));
    let mut bytes = good.bytes.to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    let bad = RawBatch::new(Bytes::from(bytes)).unwrap();
    let found = pair(bad.clone(), good.clone());
    assert_eq!(difference(found), (5, DifferenceKind::DamagedOnSource));
    let found = pair(good, bad);
    assert_eq!(difference(found), (5, DifferenceKind::DamagedOnDestination));
}

#[test]
fn holes_on_the_source_are_not_compared() {
    // A sparse batch against a dense one, and a gap against filler.
    let sparse = Made {
        values: vec![Some(1), None, Some(3)],
        ..batch(5, &[])
    };
    let found = pair(raw(&sparse), raw(&batch(5, &[1, 0, 3])));
    assert_eq!(found, Compared::NotComparable(Reason::Filler));
    let gap = side(vec![Span::Gap { to: 8 }], 5);
    let filler = side(vec![Span::Batch(raw(&batch(5, &[0, 0, 0])))], 5);
    assert_eq!(
        judge(gap.clone(), filler.clone(), false),
        Compared::NotComparable(Reason::Filler)
    );
    let both = side(vec![Span::Gap { to: 8 }], 5);
    assert_eq!(judge(gap.clone(), both.clone(), false), Compared::Nothing);
}

#[test]
fn a_hole_on_the_mirror_is_a_difference_unless_it_compacts() {
    let whole = side(vec![Span::Batch(raw(&batch(5, &[1, 2, 3])))], 5);
    let gap = side(vec![Span::Gap { to: 8 }], 5);
    let found = difference(judge(whole.clone(), gap.clone(), false));
    assert_eq!(found, (5, DifferenceKind::MissingOnDestination));
    assert_eq!(
        judge(whole.clone(), gap.clone(), true),
        Compared::NotComparable(Reason::Compacted)
    );
    let sparse = Made {
        values: vec![Some(1), None, Some(3)],
        ..batch(5, &[])
    };
    let sparse = side(vec![Span::Batch(raw(&sparse))], 5);
    assert_eq!(
        judge(whole.clone(), sparse.clone(), true),
        Compared::NotComparable(Reason::Compacted)
    );
    let found = difference(judge(whole.clone(), sparse.clone(), false));
    assert_eq!(found, (5, DifferenceKind::RecordCount));
}

fn batches_side(all: &[Made]) -> Side {
    let spans = all.iter().map(|made| Span::Batch(raw(made))).collect();
    side(spans, all[0].base)
}

#[test]
fn joined_batches_are_equal_if_their_records_are() {
    let apart = batches_side(&[batch(5, &[1]), batch(6, &[2]), batch(7, &[3, 4])]);
    let together = batches_side(&[batch(5, &[1, 2, 3, 4])]);
    let judged = judge(apart.clone(), together.clone(), false);
    assert_eq!(judged, Compared::Joined);
    let judged = judge(together, apart.clone(), true);
    assert_eq!(judged, Compared::Joined);
    // Cut elsewhere, and still the same records.
    let otherwise = batches_side(&[batch(5, &[1, 2, 3]), batch(8, &[4])]);
    assert_eq!(judge(apart.clone(), otherwise, false), Compared::Joined);

    let one_differs = batches_side(&[batch(5, &[1, 2, 9, 4])]);
    let found = difference(judge(apart.clone(), one_differs, false));
    assert_eq!(found, (7, DifferenceKind::Records));
    let later = Made {
        timestamp: 8,
        ..batch(5, &[1, 2, 3, 4])
    };
    let found = difference(judge(apart.clone(), batches_side(&[later]), false));
    assert_eq!(found, (5, DifferenceKind::Records));
    let mut damaged = raw(&batch(5, &[1, 2, 3, 4])).bytes.to_vec();
    damaged[HEADER_LEN + 6] ^= 1;
    let damaged = RawBatch::new(damaged.into()).unwrap();
    let damaged = side(vec![Span::Batch(damaged)], 5);
    let found = difference(judge(apart, damaged, false));
    assert_eq!(found, (5, DifferenceKind::DamagedOnDestination));
}

#[test]
fn other_boundaries_of_compressed_batches_are_a_difference() {
    let compressed = |base, values: &[u8]| Made {
        attributes: 1,
        ..batch(base, values)
    };
    let one = batches_side(&[compressed(5, &[1, 2])]);
    let two = batches_side(&[compressed(5, &[1]), compressed(6, &[2])]);
    let found = difference(judge(one, two, true));
    assert_eq!(found, (5, DifferenceKind::Boundaries));
}

#[test]
fn append_time_batches_are_written_anew() {
    let theirs = Made {
        attributes: 0b1000,
        ..batch(5, &[1, 2])
    };
    let found = pair(raw(&theirs), raw(&batch(5, &[1, 2])));
    assert_eq!(found, Compared::NotComparable(Reason::ReEncoded));
}

#[test]
fn markers_are_compared_by_outcome() {
    assert_eq!(
        pair(marker(5, 1, 3), marker(5, 1, 8)),
        Compared::NotComparable(Reason::Marker)
    );
    assert_eq!(pair(marker(5, 1, 3), marker(5, 1, 3)), Compared::Equal);
    let found = pair(marker(5, 1, 3), marker(5, 0, 3));
    assert_eq!(difference(found), (5, DifferenceKind::Marker));
    let found = pair(raw(&batch(5, &[1])), marker(5, 0, 3));
    assert_eq!(difference(found), (5, DifferenceKind::Marker));
}
