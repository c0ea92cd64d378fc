//! Joining of tiny batches: a broker takes one batch per partition and request, so a backlog of batches with a few records each is bound by requests. Neighbours that wait
//! are put into one batch: the records keep their offsets, timestamps and bytes, the boundaries between the batches go.
//!
//! Nothing is allocated per record, and nothing is decompressed: compressed batches are copied as they are.

use bytes::{BufMut, BytesMut};
use standfast_wire::batch::{BatchHeader, HEADER_LEN, RawBatch};

use crate::records::{self, Record};

/// So many batches of one partition that wait to be sent are a lag; while there are fewer, every batch is copied as it is.
pub(crate) const QUEUED_MIN: usize = 16;

/// Only batches up to this size are joined: larger ones cost more to write again than a request of their own.
const TINY_BYTES: usize = 4 << 10;

/// Size of a joined batch at most.
pub(crate) const JOINED_BYTES: usize = 64 << 10;

/// A record grows by at most this when its deltas become relative to another batch.
const GROWTH_PER_RECORD: usize = 16;

/// Bytes of a batch that its length field does not count.
const LENGTH_OVERHEAD: usize = 12;
/// First byte that the CRC covers.
const CRC_START: usize = 21;

/// Joins batches from the front of `queued` on; how many it took. `None` if not even two can be joined.
pub(crate) fn join<'q>(queued: impl Iterator<Item = &'q RawBatch>) -> Option<(RawBatch, usize)> {
    let mut queued = queued.take_while(|batch| is_tiny(batch)).peekable();
    let first = queued.peek()?.header;
    let mut out = BytesMut::with_capacity(HEADER_LEN + JOINED_BYTES);
    out.put_bytes(0, HEADER_LEN);
    let (mut taken, mut next, mut max_timestamp) = (0, first.base_offset, first.max_timestamp);
    for batch in queued {
        let header = &batch.header;
        let count = usize::try_from(header.record_count).ok()?;
        let most = out.len() + batch.bytes.len() + count * GROWTH_PER_RECORD;
        if most > JOINED_BYTES || header.base_offset != next || batch.verify_crc().is_err() {
            break;
        }
        let before = out.len();
        if put_records(&mut out, &first, batch).is_none() {
            out.truncate(before);
            break;
        }
        (taken, next) = (taken + 1, header.next_offset());
        max_timestamp = max_timestamp.max(header.max_timestamp);
    }
    if taken < 2 {
        return None;
    }
    let count = i32::try_from(next - first.base_offset).ok()?;
    finish(out, &first, count, max_timestamp).map(|joined| (joined, taken))
}

/// Plain, uncompressed, and small.
fn is_tiny(batch: &RawBatch) -> bool {
    let header = &batch.header;
    header.attributes.0 == 0 && header.is_dense() && batch.bytes.len() <= TINY_BYTES
}

/// Appends the records of `batch` with deltas relative to `first`. `None`: they are not what the header says, a broker shall judge them.
fn put_records(out: &mut BytesMut, first: &BatchHeader, batch: &RawBatch) -> Option<()> {
    let header = &batch.header;
    let offset_shift = header.base_offset - first.base_offset;
    let timestamp_shift = header.base_timestamp.checked_sub(first.base_timestamp)?;
    let mut count = 0;
    for record in records::walk(batch.bytes.get(HEADER_LEN..)?) {
        let record = record.ok()?;
        if record.offset_delta != count {
            return None;
        }
        count += 1;
        let moved = Record {
            timestamp_delta: record.timestamp_delta.checked_add(timestamp_shift)?,
            offset_delta: record.offset_delta + offset_shift,
            ..record
        };
        records::put(out, moved);
    }
    (count == i64::from(header.record_count)).then_some(())
}

/// Writes the header and the CRC around the records.
fn finish(
    mut out: BytesMut,
    first: &BatchHeader,
    count: i32,
    max_timestamp: i64,
) -> Option<RawBatch> {
    let length = i32::try_from(out.len() - LENGTH_OVERHEAD).ok()?;
    let mut header: &mut [u8] = out.get_mut(..HEADER_LEN)?;
    header.put_i64(first.base_offset);
    header.put_i32(length);
    header.put_i32(-1);
    header.put_i8(2);
    header.put_u32(0);
    header.put_u16(first.attributes.0);
    header.put_i32(count - 1);
    header.put_i64(first.base_timestamp);
    header.put_i64(max_timestamp);
    header.put_i64(-1);
    header.put_i16(-1);
    header.put_i32(-1);
    header.put_i32(count);
    let crc = crc_fast::crc32_iscsi(out.get(CRC_START..)?);
    out.get_mut(CRC_START - 4..CRC_START)?
        .copy_from_slice(&crc.to_be_bytes());
    RawBatch::new(out.freeze()).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::filler::{Shape, assemble};

    /// Records with these timestamps and sizes, in a batch that begins at `base_offset`.
    fn batch(base_offset: i64, records: &[(i64, usize)], attributes: u16) -> RawBatch {
        let base_timestamp = records[0].0;
        let mut body = Vec::new();
        for (offset_delta, (timestamp, size)) in records.iter().enumerate() {
            let content = vec![*size as u8; *size];
            let one = Record {
                attributes: 0,
                timestamp_delta: timestamp - base_timestamp,
                offset_delta: offset_delta as i64,
                content: &content,
            };
            records::put(&mut body, one);
        }
        let shape = Shape {
            base_offset,
            attributes,
            base_timestamp,
            max_timestamp: records.iter().map(|(t, _)| *t).max().unwrap(),
            count: records.len() as i64,
        };
        assemble(shape, &body).unwrap()
    }

    fn flat(batch: &RawBatch) -> Vec<(i64, i64, Vec<u8>)> {
        let header = &batch.header;
        records::walk(&batch.bytes[HEADER_LEN..])
            .map(|record| {
                let r = record.unwrap();
                let offset = header.base_offset + r.offset_delta;
                (
                    offset,
                    header.base_timestamp + r.timestamp_delta,
                    r.content.to_vec(),
                )
            })
            .collect()
    }

    proptest! {
        #[test]
        fn records_keep_offset_timestamp_and_bytes(
            sizes in proptest::collection::vec(proptest::collection::vec((0i64..1 << 45, 0usize..900), 1..5), 2..200),
        ) {
            let mut batches: Vec<RawBatch> = Vec::new();
            for records in &sizes {
                let base = batches.last().map_or(7, |b| b.header.next_offset());
                batches.push(batch(base, records, 0));
            }
            let (joined, taken) = join(batches.iter()).unwrap();
            joined.verify_crc().unwrap();
            prop_assert!(taken >= 2 && joined.bytes.len() <= JOINED_BYTES);
            prop_assert!(joined.header.is_dense());
            let parts = &batches[..taken];
            prop_assert_eq!(joined.header.next_offset(), parts.last().unwrap().header.next_offset());
            let newest = parts.iter().map(|b| b.header.max_timestamp).max().unwrap();
            prop_assert_eq!(joined.header.max_timestamp, newest);
            let apart: Vec<_> = parts.iter().flat_map(flat).collect();
            prop_assert_eq!(flat(&joined), apart);
        }
    }

    #[test]
    fn what_is_not_plain_is_left_alone() {
        let plain = |base| batch(base, &[(5, 10), (6, 10)], 0);
        let taken = |batches: &[RawBatch]| join(batches.iter()).map(|(_, taken)| taken);
        assert_eq!(taken(&[plain(0), plain(2), plain(4)]), Some(3));
        let compressed = batch(4, &[(5, 10)], 1);
        assert_eq!(taken(&[plain(0), plain(2), compressed.clone()]), Some(2));
        assert_eq!(taken(&[compressed, plain(5)]), None);
        assert_eq!(taken(&[plain(0), plain(3)]), None);
        let large = batch(2, &[(5, TINY_BYTES)], 0);
        assert_eq!(taken(&[plain(0), large]), None);
        let mut damaged = plain(4).bytes.to_vec();
        damaged[HEADER_LEN + 3] ^= 1;
        let damaged = RawBatch::new(damaged.into()).unwrap();
        assert_eq!(taken(&[plain(0), plain(2), damaged]), Some(2));
        // A batch whose records are not where its header says, with a CRC that fits.
        let mut astray = plain(4).bytes.to_vec();
        astray[HEADER_LEN + 3] ^= 2;
        let crc = crc_fast::crc32_iscsi(&astray[CRC_START..]);
        astray[17..21].copy_from_slice(&crc.to_be_bytes());
        let astray = RawBatch::new(astray.into()).unwrap();
        astray.verify_crc().unwrap();
        assert_eq!(taken(&[plain(0), plain(2), astray]), Some(2));
    }
}
