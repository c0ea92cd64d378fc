//! Failover on two real Kafka clusters, with the file discovery backend.
#![allow(clippy::unwrap_used, missing_docs)]

mod away;
mod before;
mod connect;
mod consumer;
mod control;
mod fleet;
mod frozen;
mod harness;
mod members;
mod partition;
mod producer;
mod replay;
mod sessions;
