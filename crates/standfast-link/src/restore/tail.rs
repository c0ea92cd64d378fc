//! The lost tail of a partition: what stands in it, and how its transactions ended.

use std::collections::HashMap;

use standfast_wire::batch::RawBatch;
use standfast_wire::{Cluster, Error};

use super::record::Transaction;
use crate::partition::PartitionId;
use crate::transactions::{Outcome, outcome};

/// Bytes asked for at a time.
const FETCH_BYTES: i32 = 2 << 20;

/// Offsets in front of a tail that are searched for the beginning of transactions that end in it.
const LOOK_BACK: i64 = 100_000;

/// Markers that are remembered of one tail.
const MARKERS_MAX: usize = 4_000_000;

/// The tail `[from, to)` of a partition.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tail {
    pub(crate) from: i64,
    pub(crate) to: i64,
    /// Data records in it.
    pub(crate) records: i64,
    /// Per producer its markers, in the order of their offsets.
    markers: HashMap<i64, Vec<(i64, Outcome)>>,
    /// Transactional batches in front of it whose transaction is committed in it, as (base offset, producer id), by offset.
    pub(crate) committed_in_front: Vec<(i64, i64)>,
}

impl Tail {
    pub(crate) fn is_empty(&self) -> bool {
        self.from >= self.to
    }

    /// How the transaction of a batch ended; `None`: it is not of a transaction.
    pub(crate) fn transaction(&self, batch: &RawBatch) -> Option<Transaction> {
        let header = &batch.header;
        if !header.attributes.is_transactional() {
            return None;
        }
        let markers = self.markers.get(&header.producer_id);
        let next = markers.and_then(|markers| {
            let at = markers.partition_point(|(offset, _)| *offset < header.base_offset);
            markers.get(at)
        });
        Some(match next {
            Some((_, Outcome::Commit)) => Transaction::Committed,
            Some((_, Outcome::Abort)) => Transaction::Aborted,
            None => Transaction::Open,
        })
    }

    /// Reads the tail once: counts its records and notes its markers.
    pub(crate) async fn survey(
        cluster: &Cluster,
        id: &PartitionId,
        from: i64,
        to: i64,
        log_start: i64,
    ) -> Result<Self, Failed> {
        let mut tail = Self {
            from,
            to,
            ..Self::default()
        };
        let mut count = 0;
        let mut reader = Reader::new(cluster, id, from, to);
        while let Some(batches) = reader.next().await? {
            for batch in batches {
                if let Some(ended) = outcome(&batch) {
                    count += 1;
                    let of = tail.markers.entry(batch.header.producer_id).or_default();
                    of.push((batch.header.base_offset, ended));
                } else if !batch.header.attributes.is_control() {
                    tail.records += records_from(&batch, from);
                }
            }
            if count > MARKERS_MAX {
                return Err(Failed::Content(format!(
                    "{id}: more than {MARKERS_MAX} transactions in the lost tail"
                )));
            }
        }
        tail.look_back(cluster, id, log_start).await?;
        Ok(tail)
    }

    /// A transaction may begin in front of the tail and be committed in it: on the source only its beginning stands, and is aborted.
    async fn look_back(
        &mut self,
        cluster: &Cluster,
        id: &PartitionId,
        log_start: i64,
    ) -> Result<(), Failed> {
        let commits = |(_, ended): &(i64, Outcome)| *ended == Outcome::Commit;
        let first_commits = |markers: &Vec<(i64, Outcome)>| markers.first().is_some_and(commits);
        let mut open: HashMap<i64, Vec<i64>> = (self.markers.iter())
            .filter(|(_, markers)| first_commits(markers))
            .map(|(producer_id, _)| (*producer_id, Vec::new()))
            .collect();
        let begin = log_start.max(self.from - LOOK_BACK);
        if open.is_empty() || begin >= self.from {
            return Ok(());
        }
        let mut reader = Reader::new(cluster, id, begin, self.from);
        while let Some(batches) = reader.next().await? {
            for batch in batches {
                let header = &batch.header;
                let Some(bases) = open.get_mut(&header.producer_id) else {
                    continue;
                };
                if header.attributes.is_control() {
                    bases.clear();
                } else if header.attributes.is_transactional() {
                    bases.push(header.base_offset);
                }
            }
        }
        self.committed_in_front = open
            .into_iter()
            .flat_map(|(producer_id, bases)| bases.into_iter().map(move |base| (base, producer_id)))
            .collect();
        self.committed_in_front.sort_unstable();
        Ok(())
    }
}

/// Data records of a batch at or above an offset, by its header (a batch that `from` lies in is counted by its offsets).
fn records_from(batch: &RawBatch, from: i64) -> i64 {
    let header = &batch.header;
    if header.base_offset >= from {
        i64::from(header.record_count)
    } else {
        (header.next_offset() - from).clamp(0, i64::from(header.record_count))
    }
}

/// Why a tail could not be read.
#[derive(Debug)]
pub(crate) enum Failed {
    Cluster(Error),
    Content(String),
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cluster(error) => write!(f, "destination: {error}"),
            Self::Content(text) => f.write_str(text),
        }
    }
}

/// Reads the batches of `[at, to)`, in their order.
pub(crate) struct Reader<'c> {
    cluster: &'c Cluster,
    id: &'c PartitionId,
    at: i64,
    to: i64,
}

impl<'c> Reader<'c> {
    pub(crate) fn new(cluster: &'c Cluster, id: &'c PartitionId, from: i64, to: i64) -> Self {
        Self {
            cluster,
            id,
            at: from,
            to,
        }
    }

    /// The next batches; `None` at the end. Each is undamaged.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<RawBatch>>, Failed> {
        if self.at >= self.to {
            return Ok(None);
        }
        let fetched = self
            .cluster
            .fetch_batches(&self.id.topic, self.id.partition, self.at, FETCH_BYTES)
            .await
            .map_err(Failed::Cluster)?;
        if fetched.high_watermark < self.to {
            return Err(Failed::Content(format!(
                "{}: the destination's log ended at offset {} and now ends at {}",
                self.id, self.to, fetched.high_watermark
            )));
        }
        if fetched.log_start_offset > self.at {
            return Err(Failed::Content(format!(
                "{}: the destination's retention took offsets {} to {} before they were exported; set retention.ms and retention.bytes of the topic to -1 for as long as the restore takes",
                self.id,
                self.at,
                fetched.log_start_offset - 1
            )));
        }
        if fetched.batches.is_empty() {
            // Never taken for the end of the tail: that would be a silent loss.
            return Err(Failed::Content(format!(
                "{}: the destination answered nothing at offset {}, below its log end",
                self.id, self.at
            )));
        }
        let mut batches = fetched.batches;
        batches.retain(|b| b.header.next_offset() > self.at && b.header.base_offset < self.to);
        for batch in &batches {
            batch.verify_crc().map_err(|error| {
                Failed::Content(format!(
                    "{}: the batch at offset {}: {error}",
                    self.id, batch.header.base_offset
                ))
            })?;
        }
        // Nothing more: compaction has emptied the rest.
        self.at = batches.last().map_or(self.to, |b| b.header.next_offset());
        Ok(Some(batches))
    }
}

/// Whether `[from, to)` holds markers only; what an abort adds to a log.
pub(crate) async fn only_markers(
    cluster: &Cluster,
    id: &PartitionId,
    from: i64,
    to: i64,
) -> Result<bool, Failed> {
    let mut reader = Reader::new(cluster, id, from, to);
    while let Some(batches) = reader.next().await? {
        if batches.iter().any(|b| !b.header.attributes.is_control()) {
            return Ok(false);
        }
    }
    Ok(true)
}
