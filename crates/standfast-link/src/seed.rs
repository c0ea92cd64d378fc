//! Seeding: fills an empty destination partition with filler up to the offset that the mirror begins at and deletes the filler, so that offsets can be equal.
//!
//! Seen on Kafka 4.1.0: 600,000 offsets per gzip batch of 0.8 MB in 0.05 to 0.2 s. Filler carries the link's producer id and sequence = offset like any mirrored batch,
//! so two engines that seed at once do not disturb each other. A restart in the middle goes on: filler is recognised by its mark (see [`crate::filler`]).

use std::time::Duration;

use standfast_wire::batch::RawBatch;
use standfast_wire::{FrameReader, FrameWriter, ResponseError};
use tracing::info;

use crate::calls;
use crate::description::{MirrorTopicError, PartitionState};
use crate::filler::{self, Form, Mark};
use crate::numbering::Numbering;
use crate::partition::{Doubt, Failure};
use crate::startup::{Refusal, Request, destination};

/// Offsets in one filler batch: 0.8 MB, below the usual limit of 1 MiB per batch.
const BATCH_OFFSETS: i64 = 600_000;

/// A destination that refuses even this many offsets per batch as too large cannot be seeded.
const MIN_BATCH_OFFSETS: i64 = 100;

/// Filler is deleted after so many batches, so that it does not pile up on the destination's disk.
const DELETE_EVERY: u32 = 64;

/// Partitions of a link that are seeded at a time; each holds one batch of filler.
pub(crate) const SEEDS_AT_ONCE: usize = 8;

/// Appending one filler batch takes the destination up to a second.
const PRODUCE_TIMEOUT_MS: i32 = 25_000;
const PRODUCE_OVERDUE: Duration = Duration::from_secs(30);

/// Fills from `from` up to `target`, deletes the filler and answers `target`. `numbering` is true at `from`.
pub(crate) async fn run(
    request: &Request,
    from: i64,
    target: i64,
    producer_id: i64,
    numbering: Numbering,
) -> Result<i64, Refusal> {
    if target == 0 {
        return Ok(0);
    }
    if from < target {
        request.status.enter(PartitionState::Seeding, None);
        request.status.set_seed_target(target);
        // Other partitions may start up meanwhile; a few may seed.
        request.seeding.cancel();
        let _one_of_few = tokio::select! {
            permit = request.context.seeds.acquire() => permit,
            () = request.stopping.cancelled() => return Err(stopped()),
        };
        info!(partition = %request.id, from, target, "seeding the destination up to the offset that the mirror begins at");
        fill(request, from, target, (producer_id, numbering)).await?;
    }
    calls::delete_records(&request.context.destination, &request.id, target)
        .await
        .map_err(destination)?;
    Ok(target)
}

async fn fill(
    request: &Request,
    from: i64,
    target: i64,
    producer: (i64, Numbering),
) -> Result<(), Refusal> {
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
    let mut form = Form::Light;
    let mut template: Option<RawBatch> = None;
    while at < target {
        if request.stopping.is_cancelled() {
            return Err(stopped());
        }
        let count = size.min(target - at);
        let batch = match template.take().filter(|t| t.header.next_offset() == count) {
            Some(batch) => batch,
            None => filler::build(Mark::Seed(target), form, count, timestamp)
                .await
                .map_err(|text| Refusal::Later(Doubt::destination(text)))?,
        };
        match append(&mut connection, request, &batch, at, producer).await? {
            Appended::Yes => {
                at += count;
                since_delete += 1;
            }
            Appended::NeedsKeys if form == Form::Light => {
                form = Form::Keyed;
                continue;
            }
            Appended::TooLarge if count / 2 >= MIN_BATCH_OFFSETS => size = count / 2,
            Appended::TooLarge | Appended::NeedsKeys => {
                let text = format!(
                    "the destination refuses filler of {count} offsets (as too large, or invalid); raise max.message.bytes of the mirror topic"
                );
                return Err(Failure::new(MirrorTopicError::DestinationRefused, text).into());
            }
        }
        template = Some(batch);
        request.status.set_next_fetch(at);
        request.status.set_position(at);
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

fn stopped() -> Refusal {
    Refusal::Later(Doubt::destination("stopped while seeding"))
}

enum Appended {
    Yes,
    TooLarge,
    /// A compacted topic refuses records without a key.
    NeedsKeys,
}

async fn append(
    connection: &mut (FrameReader, FrameWriter),
    request: &Request,
    batch: &RawBatch,
    at: i64,
    (producer_id, numbering): (i64, Numbering),
) -> Result<Appended, Refusal> {
    let later = |text: String| Refusal::Later(Doubt::destination(text));
    let stamp = numbering.stamp(producer_id, at);
    let batch = batch.restamp(stamp).map_err(|e| later(e.to_string()))?;
    let id = &request.id;
    let client_id = &request.context.options.destination.client_id;
    let produced = calls::produce_one(
        connection,
        &request.context.share.lease,
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
        Some(ResponseError::InvalidRecord) => Ok(Appended::NeedsKeys),
        Some(code) => {
            let text = format!("seeding at offset {at}: Produce: {code:?} ({})", code.code());
            Err(Refusal::Later(Doubt::destination(text).with_code(code)))
        }
    }
}
