//! Transactions on two real Kafka clusters, with the file discovery backend.
#![allow(clippy::unwrap_used, missing_docs)]

// Shared with the other tests; not all of it is used here.
#[allow(dead_code)]
#[path = "../failover/harness.rs"]
mod harness;

mod flip;
mod pipeline;
mod steady;
