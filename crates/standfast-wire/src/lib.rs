//! Kafka connections and the RecordBatch header view, in pure Rust.
