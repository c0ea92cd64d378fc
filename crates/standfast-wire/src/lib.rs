//! Kafka connections and the RecordBatch header view, in pure Rust.
//!
//! - [`batch`]: the 61-byte header of a record batch: parse it, check the CRC, restamp it for another cluster without copying.
#![forbid(unsafe_code)]

pub mod batch;
mod crc;
