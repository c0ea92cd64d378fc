//! Batches that a stock broker would not append as they are: records missing inside (compaction), timestamps of the source's broker (LogAppendTime), or relative to a delete
//! horizon (KIP-534). The same records at the same offsets with the same timestamps, in another encoding; filler takes the offsets between.

use standfast_wire::batch::{Compression, HEADER_LEN, RawBatch, TimestampType};
use tokio::sync::Semaphore;

use crate::classify::unsupported;
use crate::codec::{self, MAX_RECORDS_BYTES};
use crate::filler::{self, Form, GZIP, Shape};
use crate::partition::Doubt;
use crate::records::{self, Record};
use crate::slow::SlowPath;
use crate::startup::Refusal;

/// Batches decoded at a time in the whole process; each takes up to some 200 MiB in the worst case, usually a few.
const MAX_DECODING: usize = 2;
static DECODING: Semaphore = Semaphore::const_new(MAX_DECODING);

/// Filler of more bytes than this, and than the records themselves, is compressed in any case.
const FILLER_UNCOMPRESSED_MAX: usize = 4 << 10;

/// Codec and transaction bits: what is kept of the attributes.
const KEPT_ATTRIBUTES: u16 = 0b1_0111;
const CODEC_BITS: u16 = 0b111;

/// Appends the records of `batch`, encoded again.
pub(crate) async fn run(path: &mut SlowPath<'_>, batch: &RawBatch) -> Result<(), Refusal> {
    let encoded = encoded(batch).await?;
    path.append(&encoded).await
}

/// The records of `batch` as a stock broker appends them.
pub(crate) async fn encoded(batch: &RawBatch) -> Result<RawBatch, Refusal> {
    let offset = batch.header.base_offset;
    let original = batch.clone();
    let encoded = decoding(move || encode(&original)).await?;
    let refused = |text| unsupported(format!("source: the batch at offset {offset}: {text}"));
    Ok(encoded.map_err(refused)?)
}

/// Runs work that decodes batches, a few at a time.
pub(crate) async fn decoding<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refusal> {
    let later = |text: String| Refusal::Later(Doubt::source(text));
    let _one_of_few = DECODING.acquire().await.map_err(|e| later(e.to_string()))?;
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| later(e.to_string()))
}

/// A batch's records, uncompressed.
pub(crate) struct Decoded<'a> {
    batch: &'a RawBatch,
    bytes: Vec<u8>,
}

impl<'a> Decoded<'a> {
    pub(crate) fn new(batch: &'a RawBatch) -> Result<Self, String> {
        let body = batch.bytes.get(HEADER_LEN..).unwrap_or_default();
        let bytes = codec::decompress(batch.header.attributes.compression(), body)?;
        let decoded = Self { batch, bytes };
        decoded.check()?;
        Ok(decoded)
    }

    /// Offsets that rise within the batch, and as many records as the header says.
    fn check(&self) -> Result<(), String> {
        let header = &self.batch.header;
        let (mut count, mut before) = (0i64, -1);
        for record in records::walk(&self.bytes) {
            let record = record?;
            if record.offset_delta <= before
                || record.offset_delta > i64::from(header.last_offset_delta)
            {
                return Err("its records are not in the order of their offsets".to_owned());
            }
            (before, count) = (record.offset_delta, count + 1);
        }
        if count != i64::from(header.record_count) {
            return Err(format!(
                "it states {} records and holds {count}",
                header.record_count
            ));
        }
        Ok(())
    }

    /// The records with their timestamps.
    pub(crate) fn records(&self) -> impl Iterator<Item = (Record<'_>, i64)> {
        let header = &self.batch.header;
        let append_time = header.attributes.timestamp_type() == TimestampType::LogAppendTime;
        records::walk(&self.bytes).filter_map(move |record| {
            let record = record.ok()?;
            let timestamp = if append_time {
                header.max_timestamp
            } else {
                header.base_timestamp.saturating_add(record.timestamp_delta)
            };
            Some((record, timestamp))
        })
    }
}

/// The same records in a dense batch with their own timestamps.
pub(crate) fn encode(batch: &RawBatch) -> Result<RawBatch, String> {
    let header = &batch.header;
    let decoded = Decoded::new(batch)?;
    let Some((_, base_timestamp)) = decoded.records().next() else {
        return Err("it holds no record".to_owned());
    };
    let count = i64::from(header.last_offset_delta) + 1;
    let filler = filler::content(Form::Keyed);
    let mut out = Vec::with_capacity(decoded.bytes.len());
    let (mut next, mut filler_bytes) = (0, 0);
    let mut fill = |out: &mut Vec<u8>, next: &mut i64, until: i64| {
        let before = out.len();
        while *next < until {
            if out.len() > MAX_RECORDS_BYTES {
                return Err(format!(
                    "with filler for {count} offsets its records take more than {} MiB",
                    MAX_RECORDS_BYTES >> 20
                ));
            }
            let one = Record {
                attributes: 0,
                timestamp_delta: header.max_timestamp.saturating_sub(base_timestamp),
                offset_delta: *next,
                content: &filler,
            };
            records::put(out, one);
            *next += 1;
        }
        filler_bytes += out.len() - before;
        Ok(())
    };
    for (record, timestamp) in decoded.records() {
        fill(&mut out, &mut next, record.offset_delta)?;
        let one = Record {
            timestamp_delta: timestamp.saturating_sub(base_timestamp),
            ..record
        };
        records::put(&mut out, one);
        next = record.offset_delta + 1;
    }
    fill(&mut out, &mut next, count)?;
    let mut attributes = header.attributes.0 & KEPT_ATTRIBUTES;
    let mut codec = header.attributes.compression();
    if filler_bytes > FILLER_UNCOMPRESSED_MAX.max(decoded.bytes.len()) {
        codec = Compression::Gzip;
        attributes = attributes & !CODEC_BITS | GZIP;
    }
    drop(decoded);
    let shape = Shape {
        base_offset: header.base_offset,
        attributes,
        base_timestamp,
        max_timestamp: header.max_timestamp,
        count,
    };
    filler::assemble(shape, &codec::compress(codec, out)?).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::put;

    /// Records at the given deltas with timestamps `1000 + delta`, in a batch of `count` offsets.
    fn sparse(deltas: &[i64], count: i64, attributes: u16, base_timestamp: i64) -> RawBatch {
        let mut body = Vec::new();
        for delta in deltas {
            let content = [2, b'k', 2, b'0' + *delta as u8, 0];
            let timestamp_delta = 1000 + delta - base_timestamp;
            put(
                &mut body,
                Record {
                    attributes: 0,
                    timestamp_delta,
                    offset_delta: *delta,
                    content: &content,
                },
            );
        }
        let shape = Shape {
            base_offset: 50,
            attributes,
            base_timestamp,
            max_timestamp: 2000,
            count,
        };
        let whole = filler::assemble(shape, &body).unwrap();
        let mut bytes = whole.bytes.to_vec();
        bytes[57..61].copy_from_slice(&(deltas.len() as i32).to_be_bytes());
        let crc = crc_fast::crc32_iscsi(&bytes[21..]);
        bytes[17..21].copy_from_slice(&crc.to_be_bytes());
        RawBatch::new(bytes.into()).unwrap()
    }

    #[test]
    fn offsets_bytes_and_timestamps_stay() {
        for (attributes, base) in [(0, 1000), (0x40, 99_999)] {
            let original = sparse(&[1, 4, 5], 9, attributes, base);
            assert!(!original.header.is_dense());
            let encoded = encode(&original).unwrap();
            encoded.verify_crc().unwrap();
            assert!(encoded.header.is_dense());
            assert_eq!(encoded.header.attributes.0, 0);
            let decoded = Decoded::new(&encoded).unwrap();
            let found: Vec<_> = decoded
                .records()
                .map(|(r, t)| (r.offset_delta, r.content.to_vec(), t))
                .collect();
            assert_eq!(found.len(), 9);
            let filler = filler::content(Form::Keyed);
            for (delta, content, timestamp) in found {
                if [1, 4, 5].contains(&delta) {
                    assert_eq!(
                        (content, timestamp),
                        (vec![2, b'k', 2, b'0' + delta as u8, 0], 1000 + delta)
                    );
                } else {
                    assert_eq!((content.as_slice(), timestamp), (&*filler, 2000));
                }
            }
        }
        let append_time = encode(&sparse(&[0, 1], 2, 0x08, 1000)).unwrap();
        assert!(
            Decoded::new(&append_time)
                .unwrap()
                .records()
                .all(|(_, t)| t == 2000)
        );
    }

    #[test]
    fn a_batch_over_too_many_offsets_is_refused_by_its_size() {
        let error = encode(&sparse(&[0], 10_000_000, 0, 1000)).unwrap_err();
        assert!(error.contains("64 MiB"), "{error}");
    }
}
