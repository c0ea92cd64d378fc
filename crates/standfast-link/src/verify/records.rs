//! Compares a piece of two logs record by record, where bytes cannot tell: one side was encoded anew (LogAppendTime, compaction), or has other batches.
//!
//! For a restore, which must not take for lost what the source holds. It decompresses; `verify` does not.

use std::iter::Peekable;

use standfast_wire::batch::RawBatch;

use super::compare::Span;
use crate::filler::{self, Form};
use crate::rewrite::{Decoded, decoding};

/// Bytes of one side's batches in one piece, as they are in the log. A piece with more is judged by its bytes alone.
const PIECE_BYTES_MAX: usize = 32 << 20;

/// Records of one side in one piece; filler is not counted.
const PIECE_RECORDS_MAX: usize = 4_000_000;

/// What the records of a piece say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judged {
    /// Every record of the mirror stands on the source: same offset, timestamp, key, value and headers.
    Same,
    /// The mirror has none there, or filler only.
    NoRecord,
    /// Where the mirror has a record the source has none, and compaction can have taken it.
    Unproven,
    /// The source has another record there, or never had one.
    Different,
}

/// The batches of one side of a piece.
#[derive(Debug, Default)]
pub(super) struct Kept {
    batches: Vec<RawBatch>,
    bytes: usize,
    /// Offsets are missing, between batches or inside one.
    compacted: bool,
    /// Too many bytes, or a marker.
    incomparable: bool,
}

impl Kept {
    pub(super) fn push(&mut self, span: &Span) {
        match span {
            Span::Gap { .. } => self.compacted = true,
            Span::Batch(batch) => {
                self.bytes = self.bytes.saturating_add(batch.bytes.len());
                self.compacted |= !batch.header.is_dense();
                self.incomparable |=
                    batch.header.attributes.is_control() || self.bytes > PIECE_BYTES_MAX;
                if self.incomparable {
                    self.batches.clear();
                } else {
                    self.batches.push(batch.clone());
                }
            }
        }
    }
}

/// `None`: the records cannot be compared.
pub(super) async fn judge(source: Kept, mirror: Kept) -> Option<Judged> {
    if source.incomparable || mirror.incomparable {
        return None;
    }
    decoding(move || compare(&source, &mirror)).await.ok()?
}

fn compare(source: &Kept, mirror: &Kept) -> Option<Judged> {
    let ours = digests(&mirror.batches)?;
    if ours.is_empty() {
        return Some(Judged::NoRecord);
    }
    let theirs = digests(&source.batches)?;
    let mut theirs = theirs.into_iter().peekable();
    let mut judged = Judged::Same;
    for record in ours {
        match at(&mut theirs, record.offset) {
            Some(found) if found == record => {}
            None if source.compacted => judged = Judged::Unproven,
            _ => return Some(Judged::Different),
        }
    }
    Some(judged)
}

fn at(records: &mut Peekable<impl Iterator<Item = Digest>>, offset: i64) -> Option<Digest> {
    while records.next_if(|r| r.offset < offset).is_some() {}
    records.next_if(|r| r.offset == offset)
}

/// A record: its offset, timestamp and attributes, and a CRC of key, value and headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Digest {
    offset: i64,
    timestamp: i64,
    attributes: u8,
    length: usize,
    crc: u64,
}

/// The records without filler, by offset; `None` if a batch is damaged or there are too many.
fn digests(batches: &[RawBatch]) -> Option<Vec<Digest>> {
    let filler = [Form::Light, Form::Keyed].map(filler::content);
    let mut digests = Vec::new();
    for batch in batches {
        batch.verify_crc().ok()?;
        let seeds = filler::mark_of(batch).is_some();
        let decoded = Decoded::new(batch).ok()?;
        for (record, timestamp) in decoded.records() {
            let [light, keyed] = &filler;
            if record.content == keyed || (seeds && record.content == light) {
                continue;
            }
            if digests.len() >= PIECE_RECORDS_MAX {
                return None;
            }
            digests.push(Digest {
                offset: batch.header.base_offset + record.offset_delta,
                timestamp,
                attributes: record.attributes,
                length: record.content.len(),
                crc: crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, record.content),
            });
        }
    }
    Some(digests)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::filler::{Shape, assemble};
    use crate::records::{Record, put};

    /// A batch at offset 10 over ten offsets.
    fn kept(records: &[(i64, &[u8])], attributes: u16, timestamp: i64) -> Kept {
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
            base_timestamp: timestamp,
            max_timestamp: 7,
            count: 10,
        };
        let mut bytes = assemble(shape, &body).unwrap().bytes.to_vec();
        bytes[57..61].copy_from_slice(&(records.len() as i32).to_be_bytes());
        let crc = crc_fast::crc32_iscsi(&bytes[21..]);
        bytes[17..21].copy_from_slice(&crc.to_be_bytes());
        let mut kept = Kept::default();
        kept.push(&Span::Batch(RawBatch::new(bytes.into()).unwrap()));
        kept.compacted = false;
        kept
    }

    #[test]
    fn records_decide_not_their_encoding() {
        let filler = filler::content(Form::Keyed);
        let source = || kept(&[(0, b"a"), (4, &filler), (9, b"c")], 0, 7);
        let judge = |mirror: Kept| compare(&source(), &mirror).unwrap();
        // LogAppendTime: the largest timestamp is that of all records.
        assert_eq!(judge(kept(&[(0, b"a"), (9, b"c")], 8, 1)), Judged::Same);
        // Compaction has taken one here, which is no loss.
        assert_eq!(judge(kept(&[(9, b"c")], 0, 7)), Judged::Same);
        assert_eq!(judge(kept(&[(2, &filler)], 0, 7)), Judged::NoRecord);
        for other in [
            kept(&[(0, b"a"), (9, b"c")], 0, 1),
            kept(&[(0, b"b")], 0, 7),
            kept(&[(4, b"b")], 0, 7),
            kept(&[(5, b"b")], 0, 7),
        ] {
            assert_eq!(judge(other), Judged::Different);
        }
        let mut compacted = source();
        compacted.compacted = true;
        let taken = kept(&[(0, b"a"), (5, b"b")], 0, 7);
        assert_eq!(compare(&compacted, &taken), Some(Judged::Unproven));
        let changed = kept(&[(5, b"b"), (9, b"x")], 0, 7);
        assert_eq!(compare(&compacted, &changed), Some(Judged::Different));
    }
}
