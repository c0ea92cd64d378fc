//! Any bytes as the records of a Fetch answer: no panic, the walk ends, and what is restamped has a right CRC.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use standfast_wire::batch::{BatchHeader, ProducerStamp, RawBatch, batches};

fuzz_target!(|data: &[u8]| {
    let _ = BatchHeader::parse(data);
    let stamp = ProducerStamp {
        producer_id: 1,
        producer_epoch: 2,
        base_sequence: 3,
    };
    for batch in batches(Bytes::copy_from_slice(data)).flatten() {
        assert!(batch.header.next_offset() > batch.header.base_offset);
        assert_eq!(batch.header.total_len(), batch.bytes.len());
        if let Ok(restamped) = batch.restamp(stamp) {
            let whole = [&restamped.header[..], &restamped.body].concat();
            let again = RawBatch::new(whole.into()).expect("a restamped batch is a batch");
            again.verify_crc().expect("the CRC of a restamped batch is right");
        }
    }
});
