//! What of a batch is the source's and what not, byte by byte, where the link does not copy it as it is: the table in the README.

use std::io::Read;
use std::ops::Range;

use standfast_wire::batch::TimestampType;

use super::*;

// The header, by the README's table.
const BASE_OFFSET: Range<usize> = 0..8;
const LENGTH: Range<usize> = 8..12;
const LEADER_EPOCH: Range<usize> = 12..16;
const CRC: Range<usize> = 17..21;
const ATTRIBUTES: Range<usize> = 21..23;
const LAST_OFFSET_DELTA: Range<usize> = 23..27;
const BASE_TIMESTAMP: Range<usize> = 27..35;
const MAX_TIMESTAMP: Range<usize> = 35..43;
const PRODUCER: Range<usize> = 43..57;
const COUNT: Range<usize> = 57..61;

fn number(batch: &RawBatch, field: Range<usize>) -> i64 {
    let bytes = &batch.bytes[field];
    bytes.iter().fold(0, |n, byte| n << 8 | i64::from(*byte))
}

/// Every byte of the header outside of `free` is the same.
fn assert_same_header(a: &RawBatch, b: &RawBatch, free: &[Range<usize>]) {
    let foreign: Vec<usize> = (0..HEADER_LEN)
        .filter(|at| a.bytes[*at] != b.bytes[*at])
        .filter(|at| !free.iter().any(|field| field.contains(at)))
        .collect();
    let headers = [a, b].map(|batch| batch.bytes[..HEADER_LEN].to_vec());
    assert!(
        foreign.is_empty(),
        "bytes {foreign:?} differ\n{headers:02x?}"
    );
}

/// The records of an uncompressed batch, whatever its other attributes.
fn records_of(batch: &RawBatch) -> Vec<Flat> {
    let mut plain = batch.clone();
    plain.header.attributes.0 = 0;
    let mut records = flat(&plain);
    if batch.header.attributes.timestamp_type() == TimestampType::LogAppendTime {
        records
            .iter_mut()
            .for_each(|record| record.1 = batch.header.max_timestamp);
    }
    records
}

fn is_filler_of(record: &Flat) -> bool {
    let contains = |part: &[u8]| record.3.windows(part.len()).any(|w| w == part);
    contains(FILLER_KEY) && contains(FILLER_HEADER.as_bytes())
}

/// The row "rewritten batches".
fn assert_rewritten(theirs: &RawBatch, ours: &RawBatch) {
    let free = [
        LENGTH,
        LEADER_EPOCH,
        CRC,
        ATTRIBUTES,
        BASE_TIMESTAMP,
        PRODUCER,
        COUNT,
    ];
    assert_same_header(theirs, ours, &free);
    let cleared = number(theirs, ATTRIBUTES) & !0x48;
    assert_eq!(number(ours, ATTRIBUTES), cleared);
    assert_eq!(number(ours, COUNT), number(ours, LAST_OFFSET_DELTA) + 1);
    let (mut wanted, found) = (records_of(theirs), records_of(ours));
    // The base timestamp is that of the first record of the source.
    assert_eq!(number(ours, BASE_TIMESTAMP), wanted[0].1);
    let (filler, kept): (Vec<Flat>, Vec<Flat>) = found.into_iter().partition(is_filler_of);
    assert_eq!(kept, wanted);
    wanted.extend(filler.iter().cloned());
    assert_eq!(wanted.len() as i64, number(ours, COUNT));
    let newest = number(theirs, MAX_TIMESTAMP);
    assert!(filler.iter().all(|record| record.1 == newest));
}

/// The row "filler": `behind` is the source's next batch.
fn assert_filler(filler: &RawBatch, behind: &RawBatch) {
    assert_eq!(number(filler, ATTRIBUTES), 1);
    assert_eq!(number(filler, COUNT), number(filler, LAST_OFFSET_DELTA) + 1);
    let newest = number(behind, MAX_TIMESTAMP);
    assert_eq!(number(filler, BASE_TIMESTAMP), newest);
    assert_eq!(number(filler, MAX_TIMESTAMP), newest);
    let body = &filler.bytes[HEADER_LEN..];
    // gzip with a comment in its header.
    assert_eq!(&body[..4], [0x1f, 0x8b, 8, 0x10]);
    assert!(body[10..].starts_with(b"standfast gap\0"));
    let mut plain = filler.bytes[..HEADER_LEN].to_vec();
    let mut unpack = flate2::read::GzDecoder::new(body);
    unpack.read_to_end(&mut plain).expect("gzip");
    let mut unpacked = filler.clone();
    unpacked.bytes = plain.into();
    let records = records_of(&unpacked);
    assert_eq!(records.len() as i64, number(filler, COUNT));
    assert!(records.iter().all(is_filler_of));
}

/// The row "transactions": what of a marker is the destination's own.
fn assert_marker(theirs: &RawBatch, ours: &RawBatch) {
    let free = [
        LEADER_EPOCH,
        CRC,
        BASE_TIMESTAMP,
        MAX_TIMESTAMP,
        PRODUCER.start..PRODUCER.start + 10,
    ];
    assert_same_header(theirs, ours, &free);
    // Length, attributes, two deltas, key (version, type), value (version, coordinator epoch), no headers: only that epoch may differ.
    let body = |batch: &RawBatch| batch.bytes[HEADER_LEN..].to_vec();
    let (a, b) = (body(theirs), body(ours));
    assert_eq!((a.len(), b.len()), (17, 17), "{a:02x?} {b:02x?}");
    let epoch = 12..16;
    let differing: Vec<usize> = (0..a.len()).filter(|at| a[*at] != b[*at]).collect();
    assert!(
        differing.iter().all(|at| epoch.contains(at)),
        "{a:02x?} {b:02x?}"
    );
}

async fn mirror(link: &str, topic: &str) -> (Vec<RawBatch>, Vec<RawBatch>) {
    let (source, destination) = clusters();
    let (from, to) = (connect(source).await, connect(destination).await);
    let running = Running::start(link_options(link, source, destination, &[topic]));
    running.wait_caught_up(&from, topic).await;
    let id = running.handle.describe().producer_id.expect("an id");
    running.end().await;
    let both = (
        read_all(&from, topic, 0).await,
        read_all(&to, topic, 0).await,
    );
    // The link's stamp: its producer id, epoch 0, the offset as sequence.
    for batch in both.1.iter().filter(|b| b.control_type().is_none()) {
        if !batch.header.attributes.is_transactional() {
            assert_eq!(number(batch, 43..51), id);
            assert_eq!(number(batch, 51..53), 0);
        }
    }
    both
}

#[tokio::test(flavor = "multi_thread")]
async fn of_rewritten_batches_filler_and_markers_the_bytes_differ_that_the_readme_names() {
    let (source, _) = clusters();
    let from = connect(source).await;

    let clock = [("message.timestamp.type", "LogAppendTime")];
    source
        .create_topic("bytes-clock", 1, &clock)
        .expect("a topic");
    append_some(&from, "bytes-clock", 0, 3).await;
    let (theirs, ours) = mirror("bytes-clock", "bytes-clock").await;
    assert_eq!((theirs.len(), ours.len()), (3, 3));
    for (a, b) in theirs.iter().zip(&ours) {
        assert_eq!(number(a, ATTRIBUTES), 8);
        assert_rewritten(a, b);
    }

    // Kept tombstones carry a delete horizon (attribute bit 6).
    let mut compacted = COMPACTED;
    compacted[3] = ("delete.retention.ms", "86400000");
    source
        .create_topic("bytes-keys", 1, &compacted)
        .expect("a topic");
    let of = |keys: &[&str]| {
        let records: Vec<Record> = keys.iter().map(|key| Record::new(key, "v")).collect();
        batch(&records, PLAIN)
    };
    let tombstone = Record {
        key: Some(b"t".to_vec()),
        ..Record::default()
    };
    append(&from, "bytes-keys", 0, &of(&["a", "b", "c"]))
        .await
        .unwrap();
    append(&from, "bytes-keys", 0, &of(&["x", "x", "x"]))
        .await
        .unwrap();
    append(
        &from,
        "bytes-keys",
        0,
        &batch(&[Record::new("d", "v"), tombstone], PLAIN),
    )
    .await
    .unwrap();
    wait_for("compacted", || async {
        append(&from, "bytes-keys", 0, &of(&["a", "x"]))
            .await
            .unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        let all = read_all(&from, "bytes-keys", 0).await;
        let horizon = all.iter().any(|b| b.header.attributes.has_delete_horizon());
        let gone = all.iter().all(|b| !(3..6).contains(&b.header.base_offset));
        horizon && gone
    })
    .await;
    compact_no_more(&from, "bytes-keys").await;
    let (theirs, ours) = mirror("bytes-keys", "bytes-keys").await;
    let (mut sparse, mut horizons, mut fillers) = (0, 0, 0);
    for mine in &ours {
        let at = number(mine, BASE_OFFSET);
        let behind = theirs.iter().find(|b| b.header.next_offset() > at);
        let behind = behind.expect("a batch of the source");
        let header = &behind.header;
        if header.base_offset > at || header.record_count == 0 {
            assert_filler(mine, behind);
            fillers += 1;
        } else if !header.is_dense() || header.attributes.has_delete_horizon() {
            assert_rewritten(behind, mine);
            sparse += u32::from(!header.is_dense());
            horizons += u32::from(header.attributes.has_delete_horizon());
        }
    }
    assert!(
        sparse > 0 && horizons > 0 && fillers > 0,
        "{sparse} {horizons} {fillers}"
    );

    source
        .create_topic("bytes-marker", 1, &[])
        .expect("a topic");
    for (name, commit) in [("bytes-a", true), ("bytes-b", false)] {
        let identity = from.init_producer_id(Some(name)).await.unwrap();
        let id = standfast_wire::TopicPartition::new("bytes-marker", 0);
        let added = from.add_partition_to_transaction(name, identity, &id).await;
        added.expect("added");
        from.end_transaction(name, identity, commit).await.unwrap();
    }
    wait_for("the markers", || async {
        log_ends(&from, "bytes-marker").await == [2]
    })
    .await;
    let (theirs, ours) = mirror("bytes-marker", "bytes-marker").await;
    assert_eq!((theirs.len(), ours.len()), (2, 2));
    for (a, b) in theirs.iter().zip(&ours) {
        assert_marker(a, b);
    }
}
