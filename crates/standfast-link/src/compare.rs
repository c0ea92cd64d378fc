//! Whether the destination's last batch is what this link makes of the source's log there. Start-up goes on only if nothing contradicts it.

use standfast_wire::batch::{HEADER_LEN, RawBatch};

use crate::calls;
use crate::classify::{self, Hole, Kind};
use crate::filler::{self, Mark};
use crate::join::JOINED_BYTES;
use crate::partition::Doubt;
use crate::records::Record;
use crate::rewrite::{Decoded, decoding};
use crate::startup::{Refusal, Request, source};
use crate::transactions;

/// Emptied batches in a row that are looked at behind one batch of filler.
const MAX_EMPTY: usize = 10_000;

/// Bytes of the source's log that are read at a time behind one joined batch, and in all: a record of 7 bytes may have a header of 61 of its own.
const PARTS_BYTES: i32 = 256 << 10;
const JOINED_PARTS_MAX: usize = 16 * JOINED_BYTES;

/// What contradicts that `last` is the mirror of the source's log at its offsets. `log_start` is the source's.
///
/// - The source's batch there is plain: all that mirroring keeps must be equal.
/// - `last` is filler for a gap: the source must hold no record at its offsets.
/// - `last` was joined of several: they must hold the same records.
/// - The source's batch was rewritten by its compaction, or carries LogAppendTime: every record that it still holds must stand in `last`, with its offset, timestamp and bytes, and
///   `last` must carry this link's stamp. Compaction may have taken the others, or the whole batch, since they were mirrored.
pub(crate) async fn contradiction(
    request: &Request,
    last: &RawBatch,
    log_start: i64,
    producer_id: i64,
) -> Result<Option<String>, Refusal> {
    let (base, next) = (last.header.base_offset, last.header.next_offset());
    let original = calls::batch_at(&request.context.source, &request.id, base.max(log_start))
        .await
        .map_err(source)?;
    let Some(original) = original else {
        if is_ours(request, last, producer_id).await? && reads_are_local(request).await? {
            // The source's log ends in a gap there (compaction): nothing is left that could contradict.
            return Ok(None);
        }
        return Err(none_at(base));
    };
    let Some(exact) = difference(&original, last) else {
        return Ok(None);
    };
    if !is_ours(request, last, producer_id).await? {
        return held_otherwise(original, last, exact).await;
    }
    if filler::mark_of(last) == Some(Mark::Gap) {
        return record_behind(request, original, next).await;
    }
    let header = original.header;
    if header.base_offset >= next {
        return Ok(None);
    }
    if header.base_offset > base || header.next_offset() < next {
        return joined(request, original, last).await;
    }
    if (header.base_offset, header.next_offset()) != (base, next) {
        return Ok(Some(exact));
    }
    match classify::admit(&header, base) {
        Ok(Kind::Hole(Hole::Empty)) => Ok(None),
        Ok(Kind::Hole(Hole::Altered)) => compare_records(original, last).await,
        Ok(Kind::Hole(Hole::Transactional)) if classify::is_altered(&header) => {
            compare_records(original, last).await
        }
        _ => Ok(Some(exact)),
    }
}

async fn compare_records(original: RawBatch, last: &RawBatch) -> Result<Option<String>, Refusal> {
    let mirror = last.clone();
    decoding(move || missing(&[original], &mirror)).await
}

/// A batch that an application wrote here while this was the primary: the source was its mirror then, and may hold it joined with others in front of it, or
/// encoded again. The same records, and nothing behind them.
async fn held_otherwise(
    original: RawBatch,
    last: &RawBatch,
    exact: String,
) -> Result<Option<String>, Refusal> {
    let (theirs, ours) = (&original.header, &last.header);
    let copied = |header| {
        matches!(
            classify::admit(header, header.base_offset),
            Ok(Kind::Plain | Kind::Hole(Hole::Altered | Hole::Transactional))
        )
    };
    let encloses =
        theirs.base_offset <= ours.base_offset && theirs.next_offset() == ours.next_offset();
    if !encloses || !copied(theirs) || !copied(ours) {
        return Ok(Some(exact));
    }
    let mirror = last.clone();
    let differs = decoding(move || missing(&[mirror], &original)).await?;
    Ok(differs.map(|_| exact))
}

/// Compares a batch that was joined of several (see [`crate::join`]) with those that the source holds at its offsets, from `first` on.
async fn joined(
    request: &Request,
    first: RawBatch,
    last: &RawBatch,
) -> Result<Option<String>, Refusal> {
    let next = last.header.next_offset();
    let (mut parts, mut bytes) = (vec![first], 0);
    loop {
        let Some(end) = parts.last().map(|b| b.header.next_offset()) else {
            return Ok(None);
        };
        if end > next {
            return Ok(Some(format!(
                "a batch of the source ends at offset {}",
                end - 1
            )));
        }
        if end == next {
            break;
        }
        let found = calls::batches_at(&request.context.source, &request.id, end, PARTS_BYTES)
            .await
            .map_err(source)?;
        let before = parts.len();
        for batch in found {
            let header = &batch.header;
            if header.base_offset >= next || header.next_offset() <= end {
                continue;
            }
            bytes += batch.bytes.len();
            parts.push(batch);
        }
        if bytes > JOINED_PARTS_MAX {
            return Ok(Some("the source holds more than that there".to_owned()));
        }
        if parts.len() == before {
            // Compaction has emptied the rest of it, or nothing is there any more to contradict.
            break;
        }
    }
    for part in &parts {
        let header = &part.header;
        match classify::admit(header, header.base_offset) {
            Ok(Kind::Plain | Kind::Hole(Hole::Empty | Hole::Altered)) => {}
            _ => {
                return Ok(Some(format!(
                    "the source's batch at offset {} is not of the kind that is joined",
                    header.base_offset
                )));
            }
        }
    }
    let mirror = last.clone();
    decoding(move || missing(&parts, &mirror)).await
}

async fn reads_are_local(request: &Request) -> Result<bool, Refusal> {
    calls::reads_are_local(&request.context.source, &request.id.topic)
        .await
        .map_err(source)
}

async fn batch_at(request: &Request, offset: i64) -> Result<RawBatch, Refusal> {
    let batch = calls::batch_at(&request.context.source, &request.id, offset)
        .await
        .map_err(source)?;
    batch.ok_or_else(|| none_at(offset))
}

fn none_at(offset: i64) -> Refusal {
    Refusal::Later(Doubt::source(format!(
        "the source answered no batch at offset {offset}"
    )))
}

/// Stamped as this link stamps what it writes, outside of transactions or in one.
async fn is_ours(request: &Request, batch: &RawBatch, producer_id: i64) -> Result<bool, Refusal> {
    let header = &batch.header;
    if header.attributes.is_transactional() {
        return transactions::is_own(request, header.producer_id).await;
    }
    Ok(header.producer_id == producer_id)
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

/// The first record of `originals` that `mirror`, a batch of the same offsets, does not hold.
fn missing(originals: &[RawBatch], mirror: &RawBatch) -> Option<String> {
    let incomparable = |text| Some(format!("it cannot be compared: {text}"));
    let ours = match Decoded::new(mirror) {
        Ok(ours) => ours,
        Err(text) => return incomparable(text),
    };
    let mut held = ours.records();
    for original in originals {
        let theirs = match Decoded::new(original) {
            Ok(theirs) => theirs,
            Err(text) => return incomparable(text),
        };
        for (record, timestamp) in theirs.records() {
            let offset = original.header.base_offset + record.offset_delta;
            let ours = |r: &Record<'_>| mirror.header.base_offset + r.offset_delta;
            let found = held.find(|(r, _)| ours(r) >= offset);
            let same = found.is_some_and(|(r, t)| {
                (ours(&r), r.attributes, r.content, t)
                    == (offset, record.attributes, record.content, timestamp)
            });
            if !same {
                return Some(format!("the record at offset {offset} differs"));
            }
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
        assert_eq!(missing(&[batch(&[(1, b"b")], 0)], &mirror), None);
        assert_eq!(
            missing(&[batch(&[(0, b"a"), (2, b"c")], 0x40)], &mirror),
            None
        );
        let others: [&[(i64, &[u8])]; 2] = [&[(1, b"x")], &[(0, b"a"), (2, b"b")]];
        for other in others {
            assert!(missing(&[batch(other, 0)], &mirror).is_some());
        }
        assert!(missing(&[batch(&[(1, b"b")], 0)], &batch(&[(0, b"a")], 0)).is_some());
    }
}
