//! Transactions of the source, reproduced on the destination: the same data at the same offsets, the same marker behind it.
//!
//! The data of a source transaction is written in a transaction of the link's own (see [`slots`]); the source's marker becomes EndTxn. Only what lies below the source's last
//! stable offset is read, so every outcome is known beforehand, and a transaction is open on the destination for as long as it takes to copy it.
//!
//! Seen on Kafka 4.1.0 (`transaction.version` 2, KIP-890):
//! - Each transaction has an epoch of its own, from sequence 0 on. EndTxn compares and sets that epoch: a repeat is answered as before, one for an older epoch is refused
//!   (PRODUCER_FENCED, 90), so a late EndTxn of another engine cannot end a later transaction. The marker carries the new epoch.
//! - EndTxn answers before the marker is in the log; a Fetch that waits at the marker's offset is answered as soon as it is.
//! - The plain producer id goes on with its own next sequence number between and inside transactions; sequence = offset is refused there (OUT_OF_ORDER_SEQUENCE_NUMBER, 45),
//!   hence [`Numbering`](crate::numbering::Numbering).
//! - A partition that was added to a transaction and never written to gets a marker all the same: that is how a marker without data is reproduced.

mod slots;
mod timeout;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use standfast_wire::admin::{Look, ProducerIdentity};
use standfast_wire::batch::{ProducerStamp, RawBatch};
use standfast_wire::fetch::Isolation;
use standfast_wire::{Cluster, Connection, Error, ResponseError};
use tracing::warn;

use crate::calls;
use crate::classify::{self, unsupported};
use crate::description::MirrorTopicError;
use crate::options::LinkName;
use crate::oversize;
use crate::partition::{Doubt, Failure, PartitionId};
use crate::rewrite;
use crate::slow::{Progress, SlowPath, refusal, stopped};
use crate::startup::{Refusal, Request, destination};
use crate::writer::consequence;

pub(crate) use slots::{Writers, is_own, plain_numbering, renew};
pub(crate) use timeout::TimeoutFound;

/// How long the destination may take for a batch, and for a marker to appear.
const OVERDUE: Duration = Duration::from_secs(10);

/// How long one Fetch waits for a marker.
const MARKER_WAIT: Duration = Duration::from_millis(500);

/// Wait before a batch is sent again whose transactional id is still busy with the transaction before.
const BUSY_PAUSE: Duration = Duration::from_millis(3);

/// Partitions at a time in which open transactions are aborted.
const ABORTS_AT_A_TIME: usize = 16;

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Commit,
    Abort,
}

/// Reproduces the first of `batches`, a batch or a marker of a transaction at [`SlowPath::position`].
pub(crate) async fn run(
    path: &mut SlowPath<'_>,
    batches: &[RawBatch],
) -> Result<Progress, Refusal> {
    let Some(batch) = batches.first() else {
        return Ok(Progress::Advanced);
    };
    if path.last_stable_offset >= 0 && batch.header.base_offset >= path.last_stable_offset {
        return Ok(Progress::NotYet);
    }
    let mut writers = match path.writers.take() {
        Some(writers) => writers,
        None => Writers::find(path.request, path.position(), slots::ROTATION).await?,
    };
    let done = if batch.header.attributes.is_control() {
        end(path, &mut writers, batch).await
    } else {
        append(path, &mut writers, batch).await
    };
    path.set_inside_transaction(writers.any_open());
    path.writers = Some(writers);
    done.map(|()| Progress::Advanced)
}

/// Appends a batch of a transaction under the link's own one for that source producer.
async fn append(
    path: &mut SlowPath<'_>,
    writers: &mut Writers,
    batch: &RawBatch,
) -> Result<(), Refusal> {
    let (header, position) = (&batch.header, path.position());
    let encoded;
    let batch = if classify::is_altered(header) {
        encoded = rewrite::encoded(batch).await?;
        &encoded
    } else {
        batch
    };
    let index = writers
        .of_producer(path.request, position, header.producer_id)
        .await?;
    let Some(slot) = writers.slots.get(index) else {
        return Err(stopped());
    };
    let sequence = slot.next_sequence;
    let stamp = ProducerStamp {
        producer_id: slot.identity.producer_id,
        producer_epoch: slot.identity.epoch,
        base_sequence: sequence,
    };
    let restamped = batch.restamp(stamp).map_err(|e| later(e.to_string()))?;
    let began = Instant::now();
    let appended = loop {
        path.check()?;
        let answer = writers
            .connection
            .produce_one(
                Some(&slot.transactional_id),
                &path.request.id,
                &restamped,
                OVERDUE,
            )
            .await
            .map_err(|error| cannot(position, error))?;
        match answer.code {
            _ if began.elapsed() > OVERDUE => break answer,
            Some(ResponseError::ConcurrentTransactions) => {}
            Some(ResponseError::MessageTooLarge) => {
                oversize::raise(path.request, position, batch.bytes.len()).await?;
            }
            _ => break answer,
        }
        tokio::time::sleep(BUSY_PAUSE).await;
    };
    if let Some(code) = appended.code {
        let words = appended.message.unwrap_or_default();
        return Err(refusal(consequence(position, code, &words)));
    }
    if appended.base_offset != position {
        return Err(diverged(format!(
            "the source's batch at offset {position} was appended at offset {} on the destination: something else wrote into the mirror topic",
            appended.base_offset
        )));
    }
    if appended.log_append_time != -1 && appended.log_append_time != header.max_timestamp {
        let text = format!(
            "offset {position}: the destination replaces timestamps (message.timestamp.type=LogAppendTime); set CreateTime on the mirror topic"
        );
        return Err(Failure::new(MirrorTopicError::DestinationRefused, text).into());
    }
    if let Some(slot) = writers.slots.get_mut(index) {
        slot.next_sequence = sequence.wrapping_add(batch.header.record_count) & i32::MAX;
        slot.open_for = Some(header.producer_id);
    }
    path.advance_beside(
        header.next_offset(),
        batch.bytes.len(),
        header.max_timestamp,
    );
    Ok(())
}

/// Ends the link's own transaction as the source's marker says, and waits until the marker stands at the same offset.
async fn end(
    path: &mut SlowPath<'_>,
    writers: &mut Writers,
    batch: &RawBatch,
) -> Result<(), Refusal> {
    let (header, position) = (&batch.header, path.position());
    let Some(outcome) = outcome(batch).filter(|_| header.next_offset() == position + 1) else {
        return Err(unsupported(format!(
            "source offset {position}: a control batch that is no commit or abort marker"
        ))
        .into());
    };
    let id = &path.request.id;
    let index = writers
        .of_producer(path.request, position, header.producer_id)
        .await?;
    let Some(slot) = writers.slots.get(index) else {
        return Err(stopped());
    };
    let (name, before) = (slot.transactional_id.clone(), slot.identity);
    let cluster = &path.request.context.destination;
    if slot.open_for.is_none() {
        cluster
            .add_partition_to_transaction(&name, before, id)
            .await
            .map_err(|error| cannot(position, error))?;
    }
    // The marker takes the log's end, whatever that is, so it must be the right one.
    let log_end = cluster.leader_log_end(id).await.map_err(destination)?;
    if log_end != position {
        return Err(later(format!(
            "the destination ends at offset {log_end}, not at the marker's offset {position}"
        )));
    }
    path.check()?;
    let after = cluster
        .end_transaction(&name, before, outcome == Outcome::Commit)
        .await
        .map_err(|error| cannot(position, error))?;
    let marker = await_marker(path.request, &writers.connection, position).await?;
    check_marker(&marker, position, outcome, before)?;
    writers.ended(index, after, position + 1);
    path.advance_beside(position + 1, batch.bytes.len(), header.max_timestamp);
    Ok(())
}

/// The batch at the marker's offset, as soon as it is there.
async fn await_marker(
    request: &Request,
    connection: &Connection,
    position: i64,
) -> Result<RawBatch, Refusal> {
    let look = Look {
        offset: position,
        max_bytes: 1,
        max_wait: MARKER_WAIT,
        isolation: Isolation::ReadUncommitted,
    };
    let began = Instant::now();
    while began.elapsed() < OVERDUE {
        let fetched = request
            .context
            .destination
            .fetch_on(connection, &request.id.topic, request.id.partition, look)
            .await
            .map_err(destination)?;
        let batch = fetched.batches.into_iter().next();
        if let Some(batch) = batch.filter(|b| b.header.next_offset() > position) {
            return Ok(batch);
        }
    }
    Err(later(format!(
        "no marker at offset {position} within {OVERDUE:?}"
    )))
}

/// Whether the marker that was just written stands where the source's does.
fn check_marker(
    marker: &RawBatch,
    position: i64,
    wanted: Outcome,
    writer: ProducerIdentity,
) -> Result<(), Refusal> {
    let found = outcome(marker);
    let header = &marker.header;
    if header.base_offset == position
        && header.producer_id == writer.producer_id
        && found == Some(wanted)
    {
        return Ok(());
    }
    Err(diverged(format!(
        "the source has a {wanted:?} marker at offset {position}, the destination a batch of producer id {} at offset {} ({found:?})",
        header.producer_id, header.base_offset
    )))
}

/// What a marker says; `None` if the batch is none.
pub(crate) fn outcome(batch: &RawBatch) -> Option<Outcome> {
    match batch.control_type()? {
        0 => Some(Outcome::Abort),
        1 => Some(Outcome::Commit),
        _ => None,
    }
}

/// Aborts what the link has left open in these partitions on the destination, as a failover must: the rest of it will not come. Answers how many were
/// aborted per partition, or why not. Each abort marker takes one offset more than the source has.
pub(crate) async fn abort_open(
    destination: &Cluster,
    link: &LinkName,
    ids: &[PartitionId],
) -> HashMap<PartitionId, Result<usize, String>> {
    let undecided = calls::undecided(destination, ids).await;
    let each = undecided.into_iter().map(|id| async move {
        let aborted = slots::abort(destination, link, &id).await;
        match &aborted {
            Ok(0) => {}
            Ok(count) => {
                warn!(partition = %id, count, "transactions that were mirrored in part are aborted on the destination");
            }
            Err(error) => {
                warn!(partition = %id, %error, "a transaction that was mirrored in part may be left open on the destination; its coordinator aborts it after the transaction timeout");
            }
        }
        (id, aborted.map_err(|e| e.to_string()))
    });
    futures_util::stream::iter(each)
        .buffer_unordered(ABORTS_AT_A_TIME)
        .collect()
        .await
}

fn later(text: String) -> Refusal {
    Refusal::Later(Doubt::destination(text))
}

fn diverged(text: String) -> Refusal {
    let text = format!("DIVERGED: {text}; nothing more is written");
    Failure::new(MirrorTopicError::Diverged, text).into()
}

/// A destination that cannot do it at all, or did not this time.
fn cannot(position: i64, error: Error) -> Refusal {
    match error {
        Error::UnsupportedApi { .. } => Failure::new(
            MirrorTopicError::DestinationRefused,
            format!("offset {position}: the destination cannot take transactions: {error}"),
        )
        .into(),
        error => destination(error),
    }
}

/// Name of the link's transactional id number `slot` for a partition. Neither link nor topic names hold a slash, so no two partitions share one.
fn transactional_id(link: &LinkName, id: &PartitionId, slot: usize) -> Arc<str> {
    let link = link.transactional_id();
    format!("{link}/{}/{}/{slot}", id.topic, id.partition).into()
}

#[cfg(test)]
mod tests {
    use bytes::{BufMut, Bytes, BytesMut};

    use super::*;

    fn control(body: &[u8]) -> RawBatch {
        let mut b = BytesMut::new();
        b.put_i64(5);
        b.put_i32(49 + body.len() as i32);
        b.put_i32(3);
        b.put_i8(2);
        b.put_u32(0);
        b.put_i16(0x30);
        b.put_i32(0);
        b.put_slice(&[0; 16]);
        b.put_slice(&[0xff; 14]);
        b.put_i32(1);
        b.put_slice(body);
        RawBatch::new(Bytes::from(b)).unwrap()
    }

    #[test]
    fn markers_are_told_apart_and_cut_ones_are_none() {
        let commit = [0x20, 0, 0, 0, 8, 0, 0, 0, 1, 0x0c, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(outcome(&control(&commit)), Some(Outcome::Commit));
        let mut abort = commit;
        abort[8] = 0;
        assert_eq!(outcome(&control(&abort)), Some(Outcome::Abort));
        for length in 0..9 {
            assert_eq!(outcome(&control(&commit[..length])), None);
        }
        assert_eq!(outcome(&control(&[0x80; 40])), None);
    }
}
