//! Whether two logs are the same, byte for byte where the link does not own the bytes.

use standfast_wire::batch::{HEADER_LEN, RawBatch};
use standfast_wire::{Cluster, ClusterOptions};

use crate::load;

const FETCH_BYTES: i32 = 4 << 20;
/// Base offset, length, leader epoch, magic and CRC: the broker's and the link's own, apart from the offset, which is compared as a number.
const AFTER_CRC: usize = 21;
/// Producer id, epoch and base sequence: the link's own.
const STAMP: std::ops::Range<usize> = 43..57;

/// What was compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Compared {
    /// Batches of the mirror.
    pub batches: usize,
    /// Offsets on each side.
    pub records: i64,
}

/// Panics with the first difference between a topic's logs on two clusters; compares raw batches.
///
/// Equal means: the same log ends, the same batch boundaries, and in each batch the same bytes after the CRC field but for
/// producer id, epoch and base sequence (markers: the same outcome at the same offset); a batch that the link joined holds the records of the batches that it was made of. The CRC of
/// each side is checked.
pub fn assert_same_batches(west: &str, east: &str, topic: &str, partitions: i32) -> Compared {
    runtime().block_on(async {
        let (west, east) = (connect(west).await, connect(east).await);
        let mut compared = Compared::default();
        for partition in 0..partitions {
            let (on_west, on_east) = (
                log_of(&west, topic, partition).await,
                log_of(&east, topic, partition).await,
            );
            let mut left = on_west.iter();
            for right in &on_east {
                let end = right.header.next_offset();
                let mut parts: Vec<&RawBatch> = Vec::new();
                while parts
                    .last()
                    .is_none_or(|last| last.header.next_offset() < end)
                {
                    parts.extend(left.next().map(Some).unwrap_or_else(|| {
                        panic!("{topic}-{partition}: west ends before offset {end}")
                    }));
                }
                match parts.as_slice() {
                    [one] => assert_same(topic, partition, one, right),
                    parts => assert_joined(topic, partition, parts, right),
                }
                compared.records += end - right.header.base_offset;
            }
            let end = |log: &[RawBatch]| log.last().map_or(0, |batch| batch.header.next_offset());
            assert_eq!(
                end(&on_west),
                end(&on_east),
                "{topic}-{partition}: log end, west and east"
            );
            compared.batches += on_east.len();
        }
        compared
    })
}

/// Panics with the first difference between what an independent consumer reads on each side.
pub fn assert_same_records(west: &str, east: &str, topic: &str, ends: &[i64]) {
    for (partition, end) in (0i32..).zip(ends) {
        let on_west = load::read(west, topic, partition, *end);
        let on_east = load::read(east, topic, partition, *end);
        assert_eq!(
            on_west.len(),
            on_east.len(),
            "{topic}-{partition}: number of records"
        );
        for (left, right) in on_west.iter().zip(&on_east) {
            assert!(
                left == right,
                "{topic}-{partition}: offset {} differs from offset {}",
                left.offset,
                right.offset
            );
        }
    }
}

fn assert_same(topic: &str, partition: i32, left: &RawBatch, right: &RawBatch) {
    let at = format!("{topic}-{partition} at offset {}", left.header.base_offset);
    left.verify_crc()
        .unwrap_or_else(|error| panic!("{at}, west: {error}"));
    right
        .verify_crc()
        .unwrap_or_else(|error| panic!("{at}, east: {error}"));
    assert_eq!(
        left.header.base_offset, right.header.base_offset,
        "{at}: base offset"
    );
    assert_eq!(left.bytes.len(), right.bytes.len(), "{at}: length");
    if left.header.attributes.is_control() {
        // The destination's coordinator writes markers itself: its clock, its epoch.
        let marker = |batch: &RawBatch| (batch.header.attributes, batch.control_type());
        assert_eq!(marker(left), marker(right), "{at}: marker");
        return;
    }
    let owned = |index: &usize| STAMP.contains(index);
    let header = (AFTER_CRC..HEADER_LEN).filter(|index| !owned(index));
    for index in header {
        assert_eq!(
            left.bytes[index], right.bytes[index],
            "{at}: header byte {index}"
        );
    }
    assert!(
        left.bytes[HEADER_LEN..] == right.bytes[HEADER_LEN..],
        "{at}: records differ"
    );
}

/// The same records, in one batch on the right.
fn assert_joined(topic: &str, partition: i32, parts: &[&RawBatch], right: &RawBatch) {
    let at = format!("{topic}-{partition} at offset {}", right.header.base_offset);
    right
        .verify_crc()
        .unwrap_or_else(|error| panic!("{at}, east: {error}"));
    let mut left = Vec::new();
    for part in parts {
        part.verify_crc()
            .unwrap_or_else(|error| panic!("{at}, west: {error}"));
        left.extend(records(part, &at));
    }
    assert!(left == records(right, &at), "{at}: joined records differ");
}

/// Offset, timestamp, attributes and the rest of each record of an uncompressed batch.
fn records(batch: &RawBatch, at: &str) -> Vec<(i64, i64, u8, Vec<u8>)> {
    assert_eq!(batch.header.attributes.0, 0, "{at}: joined, but not plain");
    let mut rest = &batch.bytes[HEADER_LEN..];
    let mut found = Vec::new();
    while !rest.is_empty() {
        let length = usize::try_from(varint(&mut rest)).expect("a length");
        let (mut record, after) = rest.split_at(length);
        rest = after;
        let attributes = record[0];
        record = &record[1..];
        let timestamp = batch.header.base_timestamp + varint(&mut record);
        let offset = batch.header.base_offset + varint(&mut record);
        found.push((offset, timestamp, attributes, record.to_vec()));
    }
    found
}

fn varint(rest: &mut &[u8]) -> i64 {
    let (mut value, mut shift) = (0u64, 0);
    loop {
        let byte = rest[0];
        *rest = &rest[1..];
        value |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            return (value >> 1) as i64 ^ -((value & 1) as i64);
        }
    }
}

async fn connect(bootstrap: &str) -> Cluster {
    let bootstrap = bootstrap
        .split(',')
        .map(|address| address.parse().expect("host:port"))
        .collect();
    let options = ClusterOptions {
        bootstrap,
        ..ClusterOptions::default()
    };
    Cluster::connect(options).await.expect("connect")
}

async fn log_of(cluster: &Cluster, topic: &str, partition: i32) -> Vec<RawBatch> {
    let mut log: Vec<RawBatch> = Vec::new();
    let mut offset = 0;
    loop {
        let fetched = cluster
            .fetch_batches(topic, partition, offset, FETCH_BYTES)
            .await
            .expect("fetch");
        let Some(last) = fetched.batches.last() else {
            return log;
        };
        offset = last.header.next_offset();
        log.extend(fetched.batches);
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime")
}
