//! Compares two logs piece by piece. Pure: what is fetched from where is not known here.
//!
//! A piece is the shortest stretch of offsets at whose ends both logs have a batch boundary. Where the link copies batches as they are, that is one batch on each side.

use standfast_wire::batch::{BatchHeader, Compression, HEADER_LEN, RawBatch, TimestampType};

use super::{Difference, DifferenceKind};
use crate::records;

/// Longest length prefix of a record (a varint of 32 bits).
const VARINT_MAX: usize = 5;

/// Records of one piece that are compared one by one: more than the link joins into one batch.
const JOINED_RECORDS_MAX: usize = 16 << 10;

/// What the comparison of one piece found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Compared {
    /// Neither side has records here.
    Nothing,
    Equal,
    /// The same records in other batches: the link joins tiny ones under lag.
    Joined,
    /// The bytes cannot be the same, by design.
    NotComparable(Reason),
    Different(Difference),
}

/// Why the bytes of a piece cannot be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// Compaction left a hole on the source, which the mirror fills.
    Filler,
    /// The source's batch had to be written anew for the mirror to keep its timestamps.
    ReEncoded,
    /// A transaction marker; the outcome is the same, the rest of it is the destination's own.
    Marker,
    /// The destination has compacted its log on its own.
    Compacted,
}

/// A stretch of one log.
#[derive(Debug, Clone)]
pub(super) enum Span {
    /// No record stands at these offsets.
    Gap {
        to: i64,
    },
    Batch(RawBatch),
}

/// The spans of one log within a piece. Holds at most one batch and the CRCs of [`JOINED_RECORDS_MAX`] records, whatever the length of the piece.
#[derive(Debug, Clone)]
pub(super) struct Side {
    start: i64,
    end: i64,
    spans: usize,
    batches: usize,
    only: Option<RawBatch>,
    /// The records of several batches, or why they are not known.
    records: Result<Vec<Digest>, Unknown>,
    gap: bool,
    sparse: bool,
    append_time: bool,
    horizon: bool,
}

impl Side {
    pub(super) fn at(offset: i64) -> Self {
        Self {
            start: offset,
            end: offset,
            spans: 0,
            batches: 0,
            only: None,
            records: Ok(Vec::new()),
            gap: false,
            sparse: false,
            append_time: false,
            horizon: false,
        }
    }

    pub(super) fn end(&self) -> i64 {
        self.end
    }

    pub(super) fn is_empty(&self) -> bool {
        self.spans == 0
    }

    pub(super) fn push(&mut self, span: Span) {
        self.spans += 1;
        if let Some(first) = self.only.take() {
            self.digest(&first);
        }
        match span {
            Span::Gap { to } => {
                self.gap = true;
                self.end = to;
            }
            Span::Batch(batch) => {
                let header = &batch.header;
                self.batches += 1;
                self.sparse |= !header.is_dense();
                self.append_time |= is_append_time(header);
                self.horizon |= header.attributes.has_delete_horizon();
                self.end = header.next_offset();
                if self.spans == 1 {
                    self.only = Some(batch);
                } else {
                    self.digest(&batch);
                }
            }
        }
    }

    /// Notes the records of one batch among several.
    fn digest(&mut self, batch: &RawBatch) {
        let Ok(known) = &mut self.records else { return };
        if let Err(unknown) = digests(batch, known) {
            self.records = Err(unknown);
        }
    }

    /// The records of all batches of the piece.
    fn into_records(mut self) -> Result<Vec<Digest>, Unknown> {
        if let Some(only) = self.only.take() {
            self.digest(&only);
        }
        self.records
    }
}

/// One record: its offset, and a CRC over all else that mirroring keeps of it.
type Digest = (i64, u32);

/// Why the records of a batch are not known.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Unknown {
    /// Compressed, a marker, or too many: the link joins none of these.
    NotJoined,
    Damaged(i64, String),
}

/// Notes the records of an uncompressed batch in `known`.
fn digests(batch: &RawBatch, known: &mut Vec<Digest>) -> Result<(), Unknown> {
    let header = &batch.header;
    if let Err(error) = batch.verify_crc() {
        return Err(Unknown::Damaged(header.base_offset, error.to_string()));
    }
    if header.attributes.0 != 0 {
        return Err(Unknown::NotJoined);
    }
    for record in records::walk(batch.bytes.get(HEADER_LEN..).unwrap_or_default()) {
        let record = record.map_err(|_| Unknown::NotJoined)?;
        if known.len() >= JOINED_RECORDS_MAX {
            return Err(Unknown::NotJoined);
        }
        let mut crc = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
        let timestamp = header.base_timestamp.wrapping_add(record.timestamp_delta);
        crc.update(&timestamp.to_be_bytes());
        crc.update(&[record.attributes]);
        crc.update(record.content);
        let crc = u32::try_from(crc.finalize()).unwrap_or(u32::MAX);
        known.push((header.base_offset + record.offset_delta, crc));
    }
    Ok(())
}

/// Judges the records of a piece that has other batches on one side than on the other. `None`: they are not known.
fn judge_records(source: Side, mirror: Side) -> Option<Compared> {
    let start = source.start;
    let (theirs, ours) = match (source.into_records(), mirror.into_records()) {
        (Ok(theirs), Ok(ours)) => (theirs, ours),
        (Err(Unknown::Damaged(offset, text)), _) => {
            return Some(different(offset, DifferenceKind::DamagedOnSource, text));
        }
        (_, Err(Unknown::Damaged(offset, text))) => {
            return Some(different(
                offset,
                DifferenceKind::DamagedOnDestination,
                text,
            ));
        }
        _ => return None,
    };
    if theirs == ours {
        return Some(Compared::Joined);
    }
    let at = theirs.iter().zip(&ours).find(|(a, b)| a != b);
    let offset = at.map_or(start, |(a, b)| a.0.min(b.0));
    let detail = format!("the record at offset {offset} differs");
    Some(different(offset, DifferenceKind::Records, detail))
}

/// Judges a piece whose ends are the same on both sides. `mirror_compacts`: the mirror topic's cleanup policy includes compaction.
pub(super) fn judge(source: Side, mirror: Side, mirror_compacts: bool) -> Compared {
    if let (Some(theirs), Some(ours)) = (&source.only, &mirror.only) {
        return judge_batches(theirs, ours, mirror_compacts);
    }
    if source.batches == 0 && mirror.batches == 0 {
        return Compared::Nothing;
    }
    if mirror.gap && !mirror_compacts {
        return different(
            source.start,
            DifferenceKind::MissingOnDestination,
            format!(
                "the destination has no record at some of the offsets {} to {}",
                source.start,
                source.end - 1
            ),
        );
    }
    if source.gap || source.sparse {
        return Compared::NotComparable(Reason::Filler);
    }
    if source.append_time || source.horizon {
        return Compared::NotComparable(Reason::ReEncoded);
    }
    if mirror_compacts && (mirror.gap || mirror.sparse || mirror.horizon) {
        return Compared::NotComparable(Reason::Compacted);
    }
    let start = source.start;
    let detail = format!(
        "the offsets {start} to {} are in {} batches on the source and in {} on the destination",
        source.end - 1,
        source.batches,
        mirror.batches
    );
    judge_records(source, mirror)
        .unwrap_or_else(|| different(start, DifferenceKind::Boundaries, detail))
}

fn judge_batches(theirs: &RawBatch, ours: &RawBatch, mirror_compacts: bool) -> Compared {
    let (a, b) = (&theirs.header, &ours.header);
    let at = a.base_offset;
    for (batch, kind) in [
        (theirs, DifferenceKind::DamagedOnSource),
        (ours, DifferenceKind::DamagedOnDestination),
    ] {
        if let Err(error) = batch.verify_crc() {
            return different(batch.header.base_offset, kind, error.to_string());
        }
    }
    if a.base_offset != b.base_offset {
        let detail = format!(
            "a batch begins at offset {} on the source and at {} on the destination",
            a.base_offset, b.base_offset
        );
        return different(
            a.base_offset.min(b.base_offset),
            DifferenceKind::Boundaries,
            detail,
        );
    }
    let same_body = theirs.bytes.get(HEADER_LEN..) == ours.bytes.get(HEADER_LEN..);
    if same_body && header_difference(a, b).is_none() {
        return Compared::Equal;
    }
    if a.attributes.is_control() || b.attributes.is_control() {
        return judge_markers(theirs, ours);
    }
    if !a.is_dense() {
        return Compared::NotComparable(Reason::Filler);
    }
    if is_append_time(a) || a.attributes.has_delete_horizon() {
        return if a.record_count == b.record_count {
            Compared::NotComparable(Reason::ReEncoded)
        } else {
            different(
                at,
                DifferenceKind::RecordCount,
                values("records", a.record_count, b.record_count),
            )
        };
    }
    if mirror_compacts && (!b.is_dense() || b.attributes.has_delete_horizon()) {
        return Compared::NotComparable(Reason::Compacted);
    }
    match header_difference(a, b) {
        Some((kind, detail)) => different(at, kind, detail),
        None => {
            let offset = first_differing_record(theirs, ours).unwrap_or(at);
            different(
                offset,
                DifferenceKind::Records,
                format!("the record bytes differ in the batch at offset {at}"),
            )
        }
    }
}

/// A marker's offset and outcome are the source's, its coordinator epoch and timestamp the destination's own.
fn judge_markers(theirs: &RawBatch, ours: &RawBatch) -> Compared {
    let at = theirs.header.base_offset;
    match (theirs.control_type(), ours.control_type()) {
        (Some(a), Some(b)) if a == b => Compared::NotComparable(Reason::Marker),
        (a, b) => {
            let name = |outcome| match outcome {
                Some(0) => "an abort marker".to_owned(),
                Some(1) => "a commit marker".to_owned(),
                Some(other) => format!("a control record of type {other}"),
                None => "no control record".to_owned(),
            };
            let detail = format!("{} on the source, {} on the destination", name(a), name(b));
            different(at, DifferenceKind::Marker, detail)
        }
    }
}

fn is_append_time(header: &BatchHeader) -> bool {
    header.attributes.timestamp_type() == TimestampType::LogAppendTime
}

fn header_difference(a: &BatchHeader, b: &BatchHeader) -> Option<(DifferenceKind, String)> {
    use DifferenceKind::{Attributes, Boundaries, RecordCount, Timestamps};
    if a.last_offset_delta != b.last_offset_delta {
        let detail = values(
            "last offset delta",
            a.last_offset_delta,
            b.last_offset_delta,
        );
        return Some((Boundaries, detail));
    }
    if a.record_count != b.record_count {
        return Some((
            RecordCount,
            values("records", a.record_count, b.record_count),
        ));
    }
    if a.base_timestamp != b.base_timestamp {
        let detail = values("base timestamp", a.base_timestamp, b.base_timestamp);
        return Some((Timestamps, detail));
    }
    if a.max_timestamp != b.max_timestamp {
        let detail = values("largest timestamp", a.max_timestamp, b.max_timestamp);
        return Some((Timestamps, detail));
    }
    (a.attributes != b.attributes).then(|| {
        let detail = values("attribute bits", a.attributes.0, b.attributes.0);
        (Attributes, detail)
    })
}

/// Offset of the first record that differs; only uncompressed batches let it be seen.
fn first_differing_record(theirs: &RawBatch, ours: &RawBatch) -> Option<i64> {
    if theirs.header.attributes.compression() != Compression::None {
        return None;
    }
    let (a, b) = (
        theirs.bytes.get(HEADER_LEN..)?,
        ours.bytes.get(HEADER_LEN..)?,
    );
    let differs = a.iter().zip(b).position(|(x, y)| x != y)?;
    let mut rest = a;
    let mut offset = theirs.header.base_offset;
    loop {
        let length = usize::try_from(varint(&mut rest)?).ok()?;
        rest = rest.get(length..)?;
        if a.len() - rest.len() > differs {
            return Some(offset);
        }
        offset += 1;
    }
}

/// Reads a zigzag varint off the front.
fn varint(rest: &mut &[u8]) -> Option<i64> {
    let mut value = 0u64;
    for (index, byte) in rest.iter().take(VARINT_MAX).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            *rest = rest.get(index + 1..)?;
            return i64::try_from(value >> 1)
                .ok()
                .map(|half| half ^ -i64::from(value & 1 == 1));
        }
    }
    None
}

fn values(what: &str, source: impl std::fmt::Display, mirror: impl std::fmt::Display) -> String {
    format!("{what}: {source} on the source, {mirror} on the destination")
}

fn different(offset: i64, kind: DifferenceKind, detail: String) -> Compared {
    Compared::Different(Difference {
        offset,
        kind,
        detail,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
