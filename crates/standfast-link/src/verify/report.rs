//! What a comparison says: progress, and per partition what is equal, what cannot be compared, and the first difference.

use serde::{Deserialize, Serialize};

/// How far the comparison of a partition has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyProgress {
    /// Partition that is being compared.
    pub partition: i32,
    /// Partitions to compare in all.
    pub num_partitions: usize,
    /// Compared up to this offset.
    pub offset: i64,
    /// The partition's comparison ends there.
    pub to_offset: i64,
    /// Bytes of the source compared so far, in all partitions.
    pub bytes: u64,
}

/// Outcome of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum VerifyResult {
    /// Every batch is the same, or holds the same records as those that the link joined.
    Equal,
    /// No difference was found, but some batches cannot be compared; the counts say why.
    EqualWhereComparable,
    /// At least one partition differs.
    Different,
}

/// What differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[non_exhaustive]
pub enum DifferenceKind {
    /// The records themselves.
    Records,
    /// The number of records in a batch.
    RecordCount,
    /// Timestamps in the batch header.
    Timestamps,
    /// Attribute bits: compression, timestamp type, transaction.
    Attributes,
    /// The same offsets are cut into other batches.
    Boundaries,
    /// A transaction ended otherwise, or a marker stands on one side only.
    Marker,
    /// The destination has no record where the source has one.
    MissingOnDestination,
    /// The source's batch does not match its own CRC.
    DamagedOnSource,
    /// The destination's batch does not match its own CRC.
    DamagedOnDestination,
    /// The destination does not have the partition.
    PartitionMissing,
}

/// The first difference of a partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Offset of the first record that differs; of its batch, if the batch is compressed.
    pub offset: i64,
    /// What differs.
    pub kind: DifferenceKind,
    /// The values on both sides.
    pub detail: String,
}

/// Batches that cannot be the same byte for byte, by design, counted by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotComparable {
    /// Holes that compaction left on the source and that the mirror fills.
    pub filler: u64,
    /// Written anew so that timestamps stay (LogAppendTime).
    pub re_encoded: u64,
    /// Transaction markers with the same outcome.
    pub marker: u64,
    /// Compacted by the destination on its own.
    pub compacted: u64,
}

impl NotComparable {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.filler + self.re_encoded + self.marker + self.compacted
    }
}

/// One partition, compared.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionVerified {
    /// Partition number.
    pub partition: i32,
    /// First offset compared.
    pub from_offset: i64,
    /// Offset before which the comparison ended.
    pub to_offset: i64,
    /// Log start of the source.
    pub source_log_start_offset: i64,
    /// High watermark of the source.
    pub source_log_end_offset: i64,
    /// Log start of the destination.
    pub destination_log_start_offset: i64,
    /// High watermark of the destination, asked before the source's.
    pub destination_log_end_offset: i64,
    /// Offsets at the end that the source has and the destination does not: the mirror is shorter by so many.
    pub only_on_source: i64,
    /// Offsets at the end that the destination has and the source does not: written there after a failover, or by a foreign producer.
    pub only_on_destination: i64,
    /// Offsets that retention removed on one side while they were to be compared.
    pub overtaken_by_retention: i64,
    /// Batches that are the same.
    pub equal_batches: u64,
    /// Stretches that hold the same records in other batches, because the link joined tiny ones.
    #[serde(default)]
    pub joined_batches: u64,
    /// Batches that cannot be the same.
    pub not_comparable: NotComparable,
    /// Bytes of the source compared.
    pub bytes: u64,
    /// The first difference; nothing behind it was compared.
    pub first_difference: Option<Difference>,
}

/// A mirror, compared with its source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Topic on the source.
    pub source_topic_name: String,
    /// Topic on the destination.
    pub mirror_topic_name: String,
    /// The outcome over all partitions.
    pub result: VerifyResult,
    /// One entry per partition compared.
    pub partitions: Vec<PartitionVerified>,
}
