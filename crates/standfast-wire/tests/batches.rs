//! The batch view on batches of a real broker's log (`fixtures/`, written by `real_broker.rs`) and on random ones.
#![allow(clippy::unwrap_used)] // helpers of tests

use bytes::{BufMut, Bytes, BytesMut};
use proptest::prelude::*;
use standfast_wire::batch::{
    BatchError, BatchHeader, Compression, HEADER_LEN, ProducerStamp, RawBatch, RestampedBatch,
    TimestampType, batches, sequence_of,
};

const FIXTURES: [(&[u8], Compression); 5] = [
    (include_bytes!("fixtures/none.bin"), Compression::None),
    (include_bytes!("fixtures/gzip.bin"), Compression::Gzip),
    (include_bytes!("fixtures/snappy.bin"), Compression::Snappy),
    (include_bytes!("fixtures/lz4.bin"), Compression::Lz4),
    (include_bytes!("fixtures/zstd.bin"), Compression::Zstd),
];

const STAMP: ProducerStamp = ProducerStamp {
    producer_id: 4711,
    producer_epoch: 3,
    base_sequence: 99,
};

fn joined(restamped: &RestampedBatch) -> RawBatch {
    RawBatch::new([&restamped.header[..], &restamped.body].concat().into()).unwrap()
}

#[test]
fn batches_of_a_real_log_are_read_and_restamped() {
    for (bytes, codec) in FIXTURES {
        let original = RawBatch::new(Bytes::from_static(bytes)).unwrap();
        original.verify_crc().unwrap();
        let header = original.header;
        assert_eq!(header.attributes.compression(), codec);
        assert_eq!(
            header.attributes.timestamp_type(),
            TimestampType::CreateTime
        );
        assert!(!header.attributes.is_transactional() && !header.attributes.is_control());
        assert_eq!(
            (
                header.base_offset,
                header.record_count,
                header.next_offset()
            ),
            (0, 7, 7)
        );
        assert!(header.is_dense() && header.partition_leader_epoch == 0);
        assert_eq!(header.total_len(), bytes.len());

        let restamped = original.restamp(STAMP).unwrap();
        assert_eq!(
            restamped.body.as_ptr(),
            bytes[HEADER_LEN..].as_ptr(),
            "the body is not copied"
        );
        let batch = joined(&restamped);
        assert_eq!(
            batch.header.crc,
            crc32c::crc32c(&batch.bytes[21..]),
            "{codec:?}"
        );
        let expected = BatchHeader {
            base_offset: 0,
            partition_leader_epoch: -1,
            producer_id: STAMP.producer_id,
            producer_epoch: STAMP.producer_epoch,
            base_sequence: STAMP.base_sequence,
            crc: batch.header.crc,
            ..header
        };
        assert_eq!(batch.header, expected);
        assert_eq!(
            batch.bytes[21..43],
            original.bytes[21..43],
            "attributes and timestamps are kept"
        );
        assert_eq!(batch.bytes[57..], original.bytes[57..], "records are kept");
    }
}

#[test]
fn a_log_of_many_batches_is_walked_and_its_cut_off_end_left_out() {
    let log: Bytes = FIXTURES.map(|(bytes, _)| bytes).concat().into();
    let whole: Vec<RawBatch> = batches(log.clone()).map(Result::unwrap).collect();
    assert_eq!(whole.len(), FIXTURES.len());
    for cut in 0..log.len() {
        let part = log.slice(..cut);
        let found: Vec<_> = batches(part.clone()).collect();
        let lengths = FIXTURES.iter().scan(0, |end, (bytes, _)| {
            *end += bytes.len();
            Some(*end)
        });
        let expected = lengths.filter(|end| *end <= cut).count();
        if expected == 0 && cut > 0 {
            assert_eq!(found.len(), 1);
            assert!(
                found[0].is_err(),
                "a cut-off first batch is an error, else the reader would ask for ever"
            );
        } else {
            assert_eq!(found.len(), expected, "cut at {cut}");
            assert!(found.iter().all(Result::is_ok));
        }
    }
}

#[test]
fn old_formats_are_named_not_skipped() {
    // A message of format 1: offset, size, crc, magic 1, attributes, timestamp, null key, null value: 34 bytes.
    let mut message = BytesMut::new();
    message.put_i64(42);
    message.put_i32(22);
    message.put_u32(0);
    message.put_i8(1);
    message.put_slice(&[0; 17]);
    let found: Vec<_> = batches(message.freeze()).collect();
    assert_eq!(
        found,
        [Err(BatchError::Format {
            base_offset: 42,
            magic: 1
        })]
    );
    assert!(
        found[0]
            .as_ref()
            .unwrap_err()
            .to_string()
            .contains("format 1")
    );
}

#[test]
fn impossible_headers_are_refused() {
    let (valid, _) = FIXTURES[0];
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = valid.to_vec();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        BatchHeader::parse(&changed)
    };
    for length in [i32::MIN, -1, 0, 48] {
        assert!(
            matches!(
                with(8, &length.to_be_bytes()),
                Err(BatchError::Length { .. })
            ),
            "{length}"
        );
    }
    assert!(matches!(
        with(0, &i64::MIN.to_be_bytes()),
        Err(BatchError::Offsets { .. })
    ));
    assert!(matches!(
        with(0, &i64::MAX.to_be_bytes()),
        Err(BatchError::Offsets { .. })
    ));
    assert!(matches!(
        with(23, &(-1i32).to_be_bytes()),
        Err(BatchError::Offsets { .. })
    ));
    assert!(matches!(
        with(57, &(-1i32).to_be_bytes()),
        Err(BatchError::Offsets { .. })
    ));
    assert!(
        with(57, &0i32.to_be_bytes()).is_ok(),
        "compaction leaves empty batches"
    );
    assert!(!with(57, &3i32.to_be_bytes()).unwrap().is_dense());
}

#[test]
fn sequences_are_offsets_modulo_2_to_the_31() {
    for (offset, sequence) in [
        (0, 0),
        (1, 1),
        (0x7FFF_FFFF, i32::MAX),
        (0x8000_0000, 0),
        (i64::MAX, i32::MAX),
    ] {
        assert_eq!(sequence_of(offset), sequence, "{offset}");
    }
}

prop_compose! {
    /// A batch with a right CRC and otherwise random fields.
    fn any_batch()(
        body in proptest::collection::vec(any::<u8>(), 0..2000),
        base_offset in 0i64..(1 << 60),
        leader_epoch in any::<i32>(),
        mut covered in proptest::collection::vec(any::<u8>(), HEADER_LEN - 21),
        delta in 0i32..i32::MAX,
        count in 0i32..i32::MAX,
    ) -> Bytes {
        covered[2..6].copy_from_slice(&delta.to_be_bytes());
        covered[36..40].copy_from_slice(&count.to_be_bytes());
        covered.extend_from_slice(&body);
        let mut batch = BytesMut::new();
        batch.put_i64(base_offset);
        batch.put_i32(covered.len() as i32 + 9);
        batch.put_i32(leader_epoch);
        batch.put_i8(2);
        batch.put_u32(crc32c::crc32c(&covered));
        batch.put_slice(&covered);
        batch.freeze()
    }
}

proptest! {
    #[test]
    fn restamping_agrees_with_an_independent_crc(
        bytes in any_batch(),
        producer_id in any::<i64>(),
        producer_epoch in any::<i16>(),
        base_sequence in any::<i32>(),
    ) {
        let original = RawBatch::new(bytes).unwrap();
        let stamp = ProducerStamp { producer_id, producer_epoch, base_sequence };
        let batch = joined(&original.restamp(stamp).unwrap());
        prop_assert_eq!(batch.header.crc, crc32c::crc32c(&batch.bytes[21..]));
        prop_assert_eq!(batch.header.producer_id, producer_id);
        prop_assert_eq!(batch.header.producer_epoch, producer_epoch);
        prop_assert_eq!(batch.header.base_sequence, base_sequence);
        prop_assert_eq!(&batch.bytes[HEADER_LEN..], &original.bytes[HEADER_LEN..]);
        // Back again: only base offset and leader epoch differ from the original.
        let stamp = ProducerStamp {
            producer_id: original.header.producer_id,
            producer_epoch: original.header.producer_epoch,
            base_sequence: original.header.base_sequence,
        };
        let back = joined(&batch.restamp(stamp).unwrap());
        prop_assert_eq!(&back.bytes[16..], &original.bytes[16..]);
    }

    #[test]
    fn a_damaged_batch_is_never_forwarded(bytes in any_batch(), at in 17usize..4000, flip in 1u8..=255) {
        let mut damaged = bytes.to_vec();
        let at = 17 + (at - 17) % (damaged.len() - 17);
        damaged[at] ^= flip;
        // Damage to counts may be seen even before the CRC is computed.
        if let Ok(batch) = RawBatch::new(damaged.into()) {
            let refused = matches!(batch.restamp(STAMP), Err(BatchError::Crc { .. }));
            prop_assert!(refused);
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = BatchHeader::parse(&bytes);
        for batch in batches(Bytes::from(bytes)) {
            let Ok(batch) = batch else { continue };
            let _ = (batch.header.next_offset(), batch.header.is_dense(), format!("{batch:?}"));
            let _ = batch.restamp(STAMP);
        }
    }

    #[test]
    fn damaged_logs_never_panic_and_always_end(
        at in proptest::collection::vec((0usize..1500, any::<u8>()), 1..6),
    ) {
        let mut log = FIXTURES.map(|(bytes, _)| bytes).concat();
        for (at, value) in at {
            let at = at % log.len();
            log[at] = value;
        }
        let walked = batches(log.into()).take(1000).count();
        prop_assert!(walked < 1000);
    }
}
