//! Filler: records of ours that take offsets at which the source holds no record, so that offsets stay equal.
//!
//! On a compacted mirror topic a broker refuses records without a key (INVALID_RECORD), so filler has one: always the same, so that compaction keeps one record of it at most,
//! and with a null value, so that after `delete.retention.ms` it keeps none. Consumers tell it by [`is_filler_record`]. Whole batches of filler are recognised by the comment in
//! their gzip header, which survives as it is because mirror topics have `compression.type=producer`.

use std::io::Write;

use bytes::{BufMut, Bytes, BytesMut};
use flate2::{Compression, GzBuilder};
use standfast_wire::batch::{BatchError, HEADER_LEN, RawBatch};

use crate::records::{self, Record, put_varint};

/// Key of every filler record on a mirror topic.
pub const FILLER_KEY: &[u8] = b"standfast.filler";

/// Name of the one header of a filler record; its value is null.
pub const FILLER_HEADER: &str = "standfast.filler";

/// Whether a record is filler of the link, which an application should not see: it has the key [`FILLER_KEY`], no value, and the header [`FILLER_HEADER`] alone.
pub fn is_filler_record<'a>(
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    header_names: impl IntoIterator<Item = &'a str>,
) -> bool {
    key == Some(FILLER_KEY)
        && value.is_none()
        && header_names.into_iter().eq(std::iter::once(FILLER_HEADER))
}

const SEED: &str = "standfast filler ";
const GAP: &str = "standfast gap";
/// Longest comment: the longer one with a number.
const COMMENT_MAX: usize = SEED.len() + 20;

/// What a batch of filler stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    /// Offsets below the one that the mirror begins at, which is named: a restart goes on to the same. Deleted when they are all there.
    Seed(i64),
    /// Offsets missing on the source.
    Gap,
}

impl Mark {
    fn comment(self) -> String {
        match self {
            Self::Seed(target) => format!("{SEED}{target}"),
            Self::Gap => GAP.to_owned(),
        }
    }

    fn of_comment(comment: &str) -> Option<Self> {
        if comment == GAP {
            return Some(Self::Gap);
        }
        let target: i64 = comment.strip_prefix(SEED)?.parse().ok()?;
        (target >= 0).then_some(Self::Seed(target))
    }
}

/// How filler records look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Null key, null value: a third smaller, for records that nobody ever sees.
    Light,
    /// With key and header.
    Keyed,
}

/// gzip: magic, method deflate, flags with the comment bit, 6 bytes of time and system, then the comment and a zero byte.
const COMMENT_AT: usize = HEADER_LEN + 10;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// What a batch of filler stands for; `None` if it is none.
pub(crate) fn mark_of(batch: &RawBatch) -> Option<Mark> {
    let bytes = &batch.bytes;
    if bytes.get(HEADER_LEN..HEADER_LEN + 2) != Some(&GZIP_MAGIC) {
        return None;
    }
    let comment = bytes.get(COMMENT_AT..)?;
    let end = comment
        .iter()
        .take(COMMENT_MAX)
        .position(|byte| *byte == 0)?;
    Mark::of_comment(std::str::from_utf8(comment.get(..end)?).ok()?)
}

/// Key, value and headers of a filler record.
pub(crate) fn content(form: Form) -> Bytes {
    let mut content = BytesMut::new();
    let mut text = |bytes: Option<&[u8]>| {
        put_varint(&mut content, bytes.map_or(-1, |b| b.len() as i64));
        content.put_slice(bytes.unwrap_or_default());
    };
    match form {
        Form::Light => {
            text(None);
            text(None);
            put_varint(&mut content, 0);
        }
        Form::Keyed => {
            text(Some(FILLER_KEY));
            text(None);
            put_varint(&mut content, 1);
            let mut text = |bytes: Option<&[u8]>| {
                put_varint(&mut content, bytes.map_or(-1, |b| b.len() as i64));
                content.put_slice(bytes.unwrap_or_default());
            };
            text(Some(FILLER_HEADER.as_bytes()));
            text(None);
        }
    }
    content.freeze()
}

/// Builds a batch of `count` filler records; the same bytes for the same input. Its base offset is 0.
pub(crate) async fn build(
    mark: Mark,
    form: Form,
    count: i64,
    timestamp: i64,
) -> Result<RawBatch, String> {
    tokio::task::spawn_blocking(move || filler(mark, form, count, timestamp))
        .await
        .map_err(|e| e.to_string())?
}

fn filler(mark: Mark, form: Form, count: i64, timestamp: i64) -> Result<RawBatch, String> {
    let content = content(form);
    let mut gzip = GzBuilder::new()
        .comment(mark.comment())
        .write(Vec::new(), Compression::new(6));
    let mut record = BytesMut::new();
    for offset_delta in 0..count {
        record.clear();
        let one = Record {
            attributes: 0,
            timestamp_delta: 0,
            offset_delta,
            content: &content,
        };
        records::put(&mut record, one);
        gzip.write_all(&record).map_err(|e| e.to_string())?;
    }
    let body = gzip.finish().map_err(|e| e.to_string())?;
    let shape = Shape {
        base_offset: 0,
        attributes: GZIP,
        base_timestamp: timestamp,
        max_timestamp: timestamp,
        count,
    };
    assemble(shape, &body).map_err(|e| e.to_string())
}

/// Codec bits of gzip.
pub(crate) const GZIP: u16 = 1;

/// What the header of a dense batch says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) base_offset: i64,
    pub(crate) attributes: u16,
    pub(crate) base_timestamp: i64,
    pub(crate) max_timestamp: i64,
    pub(crate) count: i64,
}

/// A dense batch without a producer around compressed records.
pub(crate) fn assemble(shape: Shape, body: &[u8]) -> Result<RawBatch, BatchError> {
    let count = i32::try_from(shape.count).unwrap_or(i32::MAX);
    let mut covered = BytesMut::with_capacity(HEADER_LEN + body.len());
    covered.put_u16(shape.attributes);
    covered.put_i32(count - 1);
    covered.put_i64(shape.base_timestamp);
    covered.put_i64(shape.max_timestamp);
    covered.put_i64(-1);
    covered.put_i16(-1);
    covered.put_i32(-1);
    covered.put_i32(count);
    covered.put_slice(body);
    let mut whole = BytesMut::with_capacity(21 + covered.len());
    whole.put_i64(shape.base_offset);
    whole.put_i32(i32::try_from(covered.len() + 9).unwrap_or(i32::MAX));
    whole.put_i32(-1);
    whole.put_i8(2);
    whole.put_u32(crc_fast::crc32_iscsi(&covered));
    whole.put_slice(&covered);
    RawBatch::new(Bytes::from(whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filler_is_recognised_and_fits_a_batch() {
        for (mark, form, count) in [
            (Mark::Seed(1_000_000_000_000), Form::Light, 600_000),
            (Mark::Gap, Form::Keyed, crate::gap::BATCH_OFFSETS),
        ] {
            let batch = filler(mark, form, count, 1).unwrap();
            assert_eq!(mark_of(&batch), Some(mark));
            assert!(batch.header.is_dense());
            batch.verify_crc().unwrap();
            assert_eq!(batch.header.next_offset(), count);
            assert!(batch.bytes.len() < 1_000_000, "{}", batch.bytes.len());
            let mut other = batch.bytes.to_vec();
            other[COMMENT_AT] ^= 1;
            let other = RawBatch {
                header: batch.header,
                bytes: other.into(),
            };
            assert_eq!(mark_of(&other), None);
        }
    }

    #[test]
    fn only_our_own_records_are_filler() {
        assert!(is_filler_record(Some(FILLER_KEY), None, [FILLER_HEADER]));
        assert!(!is_filler_record(Some(FILLER_KEY), None, []));
        assert!(!is_filler_record(
            Some(FILLER_KEY),
            Some(b""),
            [FILLER_HEADER]
        ));
        assert!(!is_filler_record(Some(b"k"), None, [FILLER_HEADER]));
    }
}
