//! Any bytes as Produce and Fetch answers: no panic, no allocation beyond what the frame can hold.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use standfast_wire::{fetch, produce};

fuzz_target!(|data: &[u8]| {
    let Some((version, frame)) = data.split_first() else {
        return;
    };
    let frame = Bytes::copy_from_slice(frame);
    let _ = fetch::decode(frame.clone(), i16::from(version % 20));
    let _ = produce::decode(frame);
});
