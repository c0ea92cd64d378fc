//! Whether the destination's last batch is what this link makes of the source's log there. Start-up goes on only if nothing contradicts it.

use standfast_wire::batch::{HEADER_LEN, RawBatch};

use crate::calls;
use crate::classify::{self, Hole, Kind};
use crate::filler::{self, Mark};
use crate::partition::Doubt;
use crate::rewrite::{Decoded, decoding};
use crate::startup::{Refusal, Request, source};
use crate::transactions;

/// Emptied batches in a row that are looked at behind one batch of filler.
const MAX_EMPTY: usize = 10_000;

/// What contradicts that `last` is the mirror of the source's log at its offsets. `log_start` is the source's.
///
/// - The source's batch there is plain: all that mirroring keeps must be equal.
/// - `last` is filler for a gap: the source must hold no record at its offsets.
/// - The source's batch was rewritten by its compaction, or carries LogAppendTime: every record that it still holds must stand in `last`, with its offset, timestamp and bytes, and
///   `last` must carry this link's stamp. Compaction may have taken the others, or the whole batch, since they were mirrored.
pub(crate) async fn contradiction(
    request: &Request,
    last: &RawBatch,
    log_start: i64,
    producer_id: i64,
) -> Result<Option<String>, Refusal> {
    let (base, next) = (last.header.base_offset, last.header.next_offset());
    let original = batch_at(request, base.max(log_start)).await?;
    let Some(exact) = difference(&original, last) else {
        return Ok(None);
    };
    if !is_ours(last, producer_id) {
        return Ok(Some(exact));
    }
    if filler::mark_of(last) == Some(Mark::Gap) {
        return record_behind(request, original, next).await;
    }
    let header = original.header;
    if header.base_offset >= next {
        return Ok(None);
    }
    if (header.base_offset, header.next_offset()) != (base, next) {
        return Ok(Some(exact));
    }
    match classify::admit(&header, base) {
        Ok(Kind::Hole(Hole::Empty)) => Ok(None),
        Ok(Kind::Hole(Hole::Altered)) => {
            let mirror = last.clone();
            decoding(move || missing(&original, &mirror)).await
        }
        _ => Ok(Some(exact)),
    }
}

async fn batch_at(request: &Request, offset: i64) -> Result<RawBatch, Refusal> {
    let batch = calls::batch_at(&request.context.source, &request.id, offset)
        .await
        .map_err(source)?;
    batch.ok_or_else(|| {
        Refusal::Later(Doubt::source(format!(
            "the source answered no batch at offset {offset}"
        )))
    })
}

/// Stamped as this link stamps what it writes outside transactions.
fn is_ours(batch: &RawBatch, producer_id: i64) -> bool {
    batch.header.producer_id == producer_id && batch.header.producer_epoch == 0
}

/// The first record of the source below `end`, from batch `at` on.
async fn record_behind(
    request: &Request,
    mut at: RawBatch,
    end: i64,
) -> Result<Option<String>, Refusal> {
    for _ in 0..MAX_EMPTY {
        let header = at.header;
        if header.base_offset >= end {
            return Ok(None);
        }
        if header.record_count > 0 {
            return Ok(Some(format!(
                "it is filler, but the source holds records at offsets {} to {}",
                header.base_offset,
                header.next_offset() - 1
            )));
        }
        if header.next_offset() >= end {
            return Ok(None);
        }
        at = batch_at(request, header.next_offset()).await?;
    }
    Ok(Some(
        "too many empty batches on the source to compare".to_owned(),
    ))
}

/// The first record of `original` that `mirror`, a batch of the same offsets, does not hold.
fn missing(original: &RawBatch, mirror: &RawBatch) -> Option<String> {
    let (theirs, ours) = match (Decoded::new(original), Decoded::new(mirror)) {
        (Ok(theirs), Ok(ours)) => (theirs, ours),
        (Err(text), _) | (_, Err(text)) => return Some(format!("it cannot be compared: {text}")),
    };
    let mut held = ours.records();
    for (record, timestamp) in theirs.records() {
        let found = held.find(|(r, _)| r.offset_delta >= record.offset_delta);
        let same = found.is_some_and(|(r, t)| {
            (r.offset_delta, r.attributes, r.content, t)
                == (
                    record.offset_delta,
                    record.attributes,
                    record.content,
                    timestamp,
                )
        });
        if !same {
            let offset = original.header.base_offset + record.offset_delta;
            return Some(format!("the record at offset {offset} differs"));
        }
    }
    None
}

/// What differs in anything that mirroring keeps of a plain batch.
fn difference(source: &RawBatch, mirror: &RawBatch) -> Option<String> {
    let (s, m) = (&source.header, &mirror.header);
    if let Some(outcome) = transactions::outcome(source) {
        // A marker has the time and the coordinator of its own cluster.
        let same = s.base_offset == m.base_offset && transactions::outcome(mirror) == Some(outcome);
        return (!same).then(|| format!("the source has a {outcome:?} marker"));
    }
    let differ = |what: &str, s: i64, m: i64| {
        (s != m).then(|| format!("{what} is {s} on the source, {m} on the destination"))
    };
    differ("base offset", s.base_offset, m.base_offset)
        .or_else(|| {
            differ(
                "last offset delta",
                s.last_offset_delta.into(),
                m.last_offset_delta.into(),
            )
        })
        .or_else(|| differ("record count", s.record_count.into(), m.record_count.into()))
        .or_else(|| differ("first timestamp", s.base_timestamp, m.base_timestamp))
        .or_else(|| differ("largest timestamp", s.max_timestamp, m.max_timestamp))
        .or_else(|| differ("attributes", s.attributes.0.into(), m.attributes.0.into()))
        .or_else(|| {
            (source.bytes.get(HEADER_LEN..) != mirror.bytes.get(HEADER_LEN..))
                .then(|| "the record bytes differ".to_owned())
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filler::{Shape, assemble};
    use crate::records::{Record, put};

    fn batch(records: &[(i64, &[u8])], attributes: u16) -> RawBatch {
        let mut body = Vec::new();
        for (offset_delta, content) in records {
            put(
                &mut body,
                Record {
                    attributes: 0,
                    timestamp_delta: 0,
                    offset_delta: *offset_delta,
                    content,
                },
            );
        }
        let shape = Shape {
            base_offset: 10,
            attributes,
            base_timestamp: 7,
            max_timestamp: 7,
            count: 3,
        };
        let whole = assemble(shape, &body).unwrap();
        let mut bytes = whole.bytes.to_vec();
        bytes[57..61].copy_from_slice(&(records.len() as i32).to_be_bytes());
        RawBatch::new(bytes.into()).unwrap()
    }

    #[test]
    fn every_record_that_is_left_must_be_there() {
        let mirror = batch(&[(0, b"a"), (1, b"b"), (2, b"c")], 0);
        assert_eq!(missing(&batch(&[(1, b"b")], 0), &mirror), None);
        assert_eq!(
            missing(&batch(&[(0, b"a"), (2, b"c")], 0x40), &mirror),
            None
        );
        let others: [&[(i64, &[u8])]; 2] = [&[(1, b"x")], &[(0, b"a"), (2, b"b")]];
        for other in others {
            assert!(missing(&batch(other, 0), &mirror).is_some());
        }
        assert!(missing(&batch(&[(1, b"b")], 0), &batch(&[(0, b"a")], 0)).is_some());
    }
}
