//! A batch that leaves a partition's queue, and what is remembered of it until it is acknowledged.

use std::rc::Rc;

use standfast_wire::batch::{ProducerStamp, RawBatch};

use crate::budget::Permit;

/// The batch to send next and what keeps its memory counted.
#[derive(Debug)]
pub(crate) struct ToSend {
    pub(crate) batch: RawBatch,
    pub(crate) stamp: ProducerStamp,
    pub(crate) sent: Sent,
    pub(crate) permit: Rc<Permit>,
}

/// A batch on its way, as the request remembers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sent {
    /// Generation of the partition when the batch was sent; answers for an older one are ignored.
    pub(crate) generation: u32,
    pub(crate) base_offset: i64,
    pub(super) next_offset: i64,
    pub(super) bytes: u64,
    pub(super) max_timestamp: i64,
    /// Several batches of the source in one.
    pub(crate) joined: bool,
}
