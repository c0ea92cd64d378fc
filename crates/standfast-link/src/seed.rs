//! Seeding: fills an empty destination partition with filler up to the source's log start offset and deletes the filler, so that offsets can be equal.
//!
//! Seen on Kafka 4.1.0: 600,000 offsets per gzip batch of 0.8 MB in 0.05 to 0.2 s. Filler carries the link's producer id and sequence = offset like any mirrored batch,
//! so two engines that seed at once do not disturb each other. A restart in the middle goes on: filler is recognised by the comment in its gzip header, which
//! survives as it is because mirror topics have `compression.type=producer`.

use std::io::Write;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use flate2::{Compression, GzBuilder};
use standfast_wire::batch::{HEADER_LEN, ProducerStamp, RawBatch, sequence_of};
use standfast_wire::{FrameReader, FrameWriter, ResponseError};
use tracing::info;

use crate::calls;
use crate::description::{MirrorTopicError, PartitionState};
use crate::partition::{Doubt, Failure};
use crate::startup::{Refusal, Request, destination};

/// Offsets in one filler batch: 0.8 MB, below the usual limit of 1 MiB per batch.
const BATCH_OFFSETS: i64 = 600_000;

/// A destination that refuses even this many offsets per batch as too large cannot be seeded.
const MIN_BATCH_OFFSETS: i64 = 100;

/// Filler is deleted after so many batches, so that it does not pile up on the destination's disk.
const DELETE_EVERY: u32 = 64;

/// Comment in the gzip header of filler.
const MARK: &str = "standfast filler";

/// Key of the first record in a filler batch.
const KEY: &[u8] = b"standfast.filler";

/// gzip: magic, method deflate, flags with the comment bit, 6 bytes of time and system, then the comment.
const GZIP_COMMENT_AT: usize = HEADER_LEN + 10;

/// Appending one filler batch takes the destination up to a second.
const PRODUCE_TIMEOUT_MS: i32 = 25_000;
const PRODUCE_OVERDUE: Duration = Duration::from_secs(30);

/// Whether this engine (or another of the link) wrote the batch to move the log end.
pub(crate) fn is_filler(batch: &RawBatch) -> bool {
    batch.bytes.get(HEADER_LEN..HEADER_LEN + 2) == Some(&[0x1f, 0x8b])
        && batch
            .bytes
            .get(GZIP_COMMENT_AT..GZIP_COMMENT_AT + MARK.len())
            == Some(MARK.as_bytes())
}

/// Fills from `from` up to `target`, deletes the filler and answers `target`.
pub(crate) async fn run(
    request: &Request,
    from: i64,
    target: i64,
    producer_id: i64,
) -> Result<i64, Refusal> {
    if target == 0 {
        return Ok(0);
    }
    if from < target {
        request.status.enter(PartitionState::Seeding, None);
        info!(partition = %request.id, from, target, "seeding the destination up to the source's log start");
        fill(request, from, target, producer_id).await?;
    }
    calls::delete_records(&request.context.destination, &request.id, target)
        .await
        .map_err(destination)?;
    Ok(target)
}

async fn fill(request: &Request, from: i64, target: i64, producer_id: i64) -> Result<(), Refusal> {
    let id = &request.id;
    let timestamp = calls::first_timestamp(&request.context.source, id, target)
        .await
        .unwrap_or_else(|_| crate::status::now_ms());
    let leader = request
        .context
        .destination
        .leader(&id.topic, id.partition)
        .await
        .map_err(destination)?;
    let mut connection = request
        .context
        .destination
        .open_raw(leader)
        .await
        .map_err(destination)?
        .into_split();
    let (mut at, mut size, mut since_delete) = (from, BATCH_OFFSETS, 0);
    let mut template: Option<RawBatch> = None;
    while at < target {
        if request.stopping.is_cancelled() {
            return Err(Refusal::Later(Doubt::destination("stopped while seeding")));
        }
        let count = size.min(target - at);
        let batch = match template.take().filter(|t| t.header.next_offset() == count) {
            Some(batch) => batch,
            None => build(count, timestamp)
                .await
                .map_err(|text| Refusal::Later(Doubt::destination(text)))?,
        };
        match append(&mut connection, request, &batch, at, producer_id).await? {
            Appended::Yes => {
                at += count;
                since_delete += 1;
            }
            Appended::TooLarge if count / 2 >= MIN_BATCH_OFFSETS => size = count / 2,
            Appended::TooLarge => {
                let text = format!(
                    "the destination refuses filler of {count} offsets as too large; raise max.message.bytes of the mirror topic"
                );
                return Err(Failure::new(MirrorTopicError::DestinationRefused, text).into());
            }
        }
        template = Some(batch);
        request.status.set_next_fetch(at);
        if since_delete >= DELETE_EVERY {
            // All but the last batch, by which a restart recognises filler.
            calls::delete_records(&request.context.destination, id, at - 1)
                .await
                .map_err(destination)?;
            since_delete = 0;
        }
    }
    Ok(())
}

enum Appended {
    Yes,
    TooLarge,
}

async fn append(
    connection: &mut (FrameReader, FrameWriter),
    request: &Request,
    batch: &RawBatch,
    at: i64,
    producer_id: i64,
) -> Result<Appended, Refusal> {
    let later = |text: String| Refusal::Later(Doubt::destination(text));
    let stamp = ProducerStamp {
        producer_id,
        producer_epoch: 0,
        base_sequence: sequence_of(at),
    };
    let batch = batch.restamp(stamp).map_err(|e| later(e.to_string()))?;
    let id = &request.id;
    let client_id = &request.context.options.destination.client_id;
    let produced = calls::produce_one(
        connection,
        client_id,
        PRODUCE_TIMEOUT_MS,
        (&id.topic, id.partition, batch),
    );
    let results = match tokio::time::timeout(PRODUCE_OVERDUE, produced).await {
        Ok(results) => results.map_err(destination)?,
        Err(_) => {
            return Err(later(format!(
                "seeding at offset {at}: no answer to Produce within {PRODUCE_OVERDUE:?}"
            )));
        }
    };
    match ResponseError::try_from_code(results.error_code) {
        None if results.base_offset == at => Ok(Appended::Yes),
        None => Err(Failure::new(
            MirrorTopicError::Diverged,
            format!("DIVERGED: filler for offset {at} was appended at offset {}: something else writes into the mirror topic", results.base_offset),
        )
        .into()),
        Some(ResponseError::MessageTooLarge | ResponseError::RecordListTooLarge) => Ok(Appended::TooLarge),
        Some(code) => {
            let text = format!("seeding at offset {at}: Produce: {code:?} ({})", code.code());
            Err(Refusal::Later(Doubt::destination(text).with_code(code)))
        }
    }
}

/// Builds one batch of `count` null records; the same bytes for the same input.
async fn build(count: i64, timestamp: i64) -> Result<RawBatch, String> {
    tokio::task::spawn_blocking(move || filler(count, timestamp))
        .await
        .map_err(|e| e.to_string())?
}

fn filler(count: i64, timestamp: i64) -> Result<RawBatch, String> {
    let mut gzip = GzBuilder::new()
        .comment(MARK)
        .write(Vec::new(), Compression::new(6));
    let mut record = BytesMut::new();
    for delta in 0..count {
        put_record(&mut record, delta, (delta == 0).then_some(KEY));
        gzip.write_all(&record).map_err(|e| e.to_string())?;
    }
    let body = gzip.finish().map_err(|e| e.to_string())?;
    batch(count, timestamp, 1, &body).map_err(|e| e.to_string())
}

fn batch(
    count: i64,
    timestamp: i64,
    attributes: i16,
    body: &[u8],
) -> Result<RawBatch, standfast_wire::batch::BatchError> {
    let count = i32::try_from(count).unwrap_or(i32::MAX);
    let mut covered = BytesMut::with_capacity(HEADER_LEN + body.len());
    covered.put_i16(attributes);
    covered.put_i32(count - 1);
    covered.put_i64(timestamp);
    covered.put_i64(timestamp);
    covered.put_i64(-1);
    covered.put_i16(-1);
    covered.put_i32(-1);
    covered.put_i32(count);
    covered.put_slice(body);
    let mut whole = BytesMut::with_capacity(21 + covered.len());
    whole.put_i64(0);
    whole.put_i32(i32::try_from(covered.len() + 9).unwrap_or(i32::MAX));
    whole.put_i32(-1);
    whole.put_i8(2);
    whole.put_u32(crc_fast::crc32_iscsi(&covered));
    whole.put_slice(&covered);
    RawBatch::new(Bytes::from(whole))
}

fn put_record(out: &mut BytesMut, delta: i64, key: Option<&[u8]>) {
    let mut body = BytesMut::with_capacity(32);
    body.put_u8(0); // attributes
    put_varint(&mut body, 0); // timestamp delta
    put_varint(&mut body, delta);
    put_varint(&mut body, key.map_or(-1, |k| k.len() as i64));
    body.put_slice(key.unwrap_or_default());
    put_varint(&mut body, -1); // value: null
    put_varint(&mut body, 0); // headers
    out.clear();
    put_varint(out, body.len() as i64);
    out.put_slice(&body);
}

fn put_varint(out: &mut impl BufMut, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest > 0x7f {
        out.put_u8((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    out.put_u8(rest as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filler_is_recognised_and_small() {
        let batch = filler(600_000, 1).unwrap();
        assert!(is_filler(&batch));
        assert!(batch.header.is_dense());
        batch.verify_crc().unwrap();
        assert_eq!(batch.header.next_offset(), 600_000);
        assert!(batch.bytes.len() < 1_000_000, "{}", batch.bytes.len());
        let mut other = batch.bytes.to_vec();
        other[GZIP_COMMENT_AT] ^= 1;
        assert!(!is_filler(&RawBatch {
            header: batch.header,
            bytes: other.into()
        }));
    }
}
