//! Compares a mirror with its source, batch by batch, without decompressing anything.
//!
//! Two connections of its own, two answers of at most [`log::FETCH_BYTES`] (or one batch) in memory, whatever the size of the topics. Mirroring may go on meanwhile: compared is what
//! both clusters held when the partition's turn came. Works on any pair of topics, also when no link runs.

mod compare;
mod log;
mod prefix;
mod records;
mod report;

use std::collections::BTreeSet;

use standfast_wire::{Cluster, ClusterOptions};

use compare::{Compared, Reason, Side, Span, judge};
use log::{Cursor, Log};
pub(crate) use prefix::Logs;
pub use report::{
    Difference, DifferenceKind, NotComparable, PartitionVerified, VerifyProgress, VerifyReport,
    VerifyResult,
};

/// How often retention may overtake the comparison of one partition before it is given up.
const OVERTAKEN_MAX: u32 = 100;
/// What to compare.
#[derive(Debug, Clone)]
pub struct VerifyOptions {
    /// The cluster that was mirrored.
    pub source: ClusterOptions,
    /// The cluster that holds the mirror.
    pub destination: ClusterOptions,
    /// Topic on the source.
    pub source_topic: String,
    /// Topic on the destination.
    pub mirror_topic: String,
    /// Only this partition.
    pub partition: Option<i32>,
    /// First offset to compare; `None`: the larger of both log starts.
    pub from: Option<i64>,
    /// Offset before which to end; `None`: the smaller of both log ends.
    pub to: Option<i64>,
}

/// Why two topics could not be compared.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// A cluster was not reached, or refused.
    #[error("{cluster} cluster: {error}")]
    Cluster {
        /// `source` or `destination`.
        cluster: &'static str,
        /// What happened.
        error: standfast_wire::Error,
    },
    /// A cluster does not have the topic or the partition.
    #[error("the {cluster} cluster has no {what}")]
    Missing {
        /// `source` or `destination`.
        cluster: &'static str,
        /// The topic or partition.
        what: String,
    },
    /// The range of offsets is empty.
    #[error("from offset {from} to offset {to} is no range; `from` must be smaller")]
    Range {
        /// First offset.
        from: i64,
        /// Offset before which to end.
        to: i64,
    },
    /// A log became shorter, or retention removed records faster than they were compared.
    #[error("{cluster} cluster, {partition}: {reason}")]
    Moved {
        /// `source` or `destination`.
        cluster: &'static str,
        /// The partition.
        partition: String,
        /// What was seen.
        reason: String,
    },
}

const SOURCE: &str = "source";
const DESTINATION: &str = "destination";

/// Compares two topics. `progress` is called after each fetch.
///
/// # Errors
/// A cluster cannot be asked, or does not have the topic. A difference is no error: it is in the report.
pub async fn verify(
    options: VerifyOptions,
    progress: impl Fn(VerifyProgress) + Send + Sync,
) -> Result<VerifyReport, VerifyError> {
    if let (Some(from), Some(to)) = (options.from, options.to)
        && from >= to
    {
        return Err(VerifyError::Range { from, to });
    }
    let (source, mirror) = tokio::join!(
        Log::open(SOURCE, &options.source, &options.source_topic),
        Log::open(DESTINATION, &options.destination, &options.mirror_topic)
    );
    let (source, mirror) = (source?, mirror?);
    if let Some(partition) = options.partition
        && !source.partitions.contains(&partition)
    {
        let what = format!("partition {partition} of topic {:?}", source.topic);
        return Err(VerifyError::Missing {
            cluster: SOURCE,
            what,
        });
    }
    let wanted: Vec<i32> = source
        .partitions
        .iter()
        .copied()
        .filter(|partition| options.partition.is_none_or(|only| only == *partition))
        .collect();
    let run = Run {
        compacts: mirror.compacts().await?,
        source,
        mirror,
        from: options.from,
        to: options.to,
        num_partitions: wanted.len(),
        progress,
    };
    let mut partitions = Vec::with_capacity(wanted.len());
    let mut bytes = 0;
    for partition in wanted {
        let verified = run.partition(partition, bytes).await?;
        bytes += verified.bytes;
        partitions.push(verified);
    }
    Ok(VerifyReport {
        source_topic_name: options.source_topic.clone(),
        mirror_topic_name: options.mirror_topic.clone(),
        result: outcome(&partitions),
        partitions,
    })
}

/// Whether two logs hold the same at `offset`, as far as the batch that it is in. False if one of them does not reach it.
///
/// # Errors
/// A cluster cannot be asked.
pub async fn same_at(
    source: &Cluster,
    mirror: &Cluster,
    topic: &str,
    partition: i32,
    offset: i64,
) -> Result<bool, VerifyError> {
    let log = |role, cluster: &Cluster| Log {
        role,
        cluster: cluster.clone(),
        topic: topic.to_owned(),
        partitions: BTreeSet::from([partition]),
    };
    let mirror = log(DESTINATION, mirror);
    let run = Run {
        compacts: mirror.compacts().await?,
        source: log(SOURCE, source),
        mirror,
        from: Some(offset),
        to: Some(offset + 1),
        num_partitions: 1,
        progress: |_| {},
    };
    let verified = run.partition(partition, 0).await?;
    Ok(verified.from_offset == offset
        && verified.to_offset > offset
        && verified.first_difference.is_none())
}

fn outcome(partitions: &[PartitionVerified]) -> VerifyResult {
    if partitions.iter().any(|p| p.first_difference.is_some()) {
        VerifyResult::Different
    } else if partitions.iter().any(|p| p.not_comparable.total() > 0) {
        VerifyResult::EqualWhereComparable
    } else {
        VerifyResult::Equal
    }
}

/// One comparison under way.
struct Run<P> {
    source: Log,
    mirror: Log,
    compacts: bool,
    from: Option<i64>,
    to: Option<i64>,
    num_partitions: usize,
    progress: P,
}

/// Why a stretch of a partition was left.
enum Left {
    Compared,
    /// The log no longer begins where it did.
    Overtaken,
}

impl<P: Fn(VerifyProgress) + Send + Sync> Run<P> {
    async fn partition(
        &self,
        partition: i32,
        bytes_before: u64,
    ) -> Result<PartitionVerified, VerifyError> {
        let mut verified = PartitionVerified {
            partition,
            ..PartitionVerified::default()
        };
        if !self.mirror.partitions.contains(&partition) {
            verified.first_difference = Some(Difference {
                offset: 0,
                kind: DifferenceKind::PartitionMissing,
                detail: "the destination does not have the partition".to_owned(),
            });
            return Ok(verified);
        }
        // The destination first: what it holds then must be on the source afterwards.
        let (mirror, source) = (
            self.mirror.range(partition).await?,
            self.source.range(partition).await?,
        );
        verified.source_log_start_offset = source.start;
        verified.source_log_end_offset = source.end;
        verified.destination_log_start_offset = mirror.start;
        verified.destination_log_end_offset = mirror.end;
        verified.only_on_source = (source.end - mirror.end).max(0);
        verified.only_on_destination = (mirror.end - source.end).max(0);
        let both = (source.start.max(mirror.start), source.end.min(mirror.end));
        let mut at = self.from.map_or(both.0, |from| from.max(both.0));
        let to = self.to.map_or(both.1, |to| to.min(both.1)).max(at);
        (verified.from_offset, verified.to_offset) = (at, to);
        for _ in 0..OVERTAKEN_MAX {
            let ends = (source.end, mirror.end);
            match self
                .stretch(&mut at, to, ends, &mut verified, bytes_before)
                .await?
            {
                Left::Compared => return Ok(verified),
                Left::Overtaken => {
                    let (mirror, source) = (
                        self.mirror.range(partition).await?,
                        self.source.range(partition).await?,
                    );
                    let start = source.start.max(mirror.start).min(to);
                    verified.overtaken_by_retention += (start - at).max(0);
                    at = at.max(start);
                }
            }
        }
        Err(VerifyError::Moved {
            cluster: SOURCE,
            partition: self.source.id(partition).to_string(),
            reason: "retention removes records faster than they are compared; compare with --from nearer to the end".to_owned(),
        })
    }

    /// Compares from `at` on, up to the first difference.
    async fn stretch(
        &self,
        at: &mut i64,
        to: i64,
        ends: (i64, i64),
        verified: &mut PartitionVerified,
        bytes_before: u64,
    ) -> Result<Left, VerifyError> {
        let partition = verified.partition;
        let mut theirs = Cursor::new(&self.source, partition, *at, ends.0);
        let mut ours = Cursor::new(&self.mirror, partition, *at, ends.1);
        while *at < to {
            let (mut source, mut mirror) = (Side::at(*at), Side::at(*at));
            while source.is_empty() || mirror.is_empty() || source.end() != mirror.end() {
                if theirs.is_dry() || ours.is_dry() {
                    let filled = tokio::join!(theirs.fill(), ours.fill());
                    if !(filled.0? && filled.1?) {
                        return Ok(Left::Overtaken);
                    }
                    (self.progress)(VerifyProgress {
                        partition,
                        num_partitions: self.num_partitions,
                        offset: *at,
                        to_offset: to,
                        bytes: bytes_before + verified.bytes,
                    });
                }
                let behind =
                    source.is_empty() || (!mirror.is_empty() && source.end() < mirror.end());
                let (side, cursor) = if behind {
                    (&mut source, &mut theirs)
                } else {
                    (&mut mirror, &mut ours)
                };
                let Some(span) = cursor.next() else {
                    verified.first_difference = Some(Difference {
                        offset: *at,
                        kind: DifferenceKind::Boundaries,
                        detail: format!(
                            "the {}'s log ends at offset {}, inside a batch of the other side",
                            cursor.log.role, cursor.end
                        ),
                    });
                    return Ok(Left::Compared);
                };
                if behind && let Span::Batch(batch) = &span {
                    verified.bytes += batch.bytes.len() as u64;
                }
                side.push(span);
            }
            let end = source.end();
            match judge(source, mirror, self.compacts) {
                Compared::Nothing => {}
                Compared::Equal => verified.equal_batches += 1,
                Compared::Joined => verified.joined_batches += 1,
                Compared::NotComparable(reason) => count(&mut verified.not_comparable, reason),
                Compared::Different(difference) => {
                    verified.first_difference = Some(difference);
                    return Ok(Left::Compared);
                }
            }
            *at = end;
        }
        Ok(Left::Compared)
    }
}

fn count(counts: &mut NotComparable, reason: Reason) {
    let counter = match reason {
        Reason::Filler => &mut counts.filler,
        Reason::ReEncoded => &mut counts.re_encoded,
        Reason::Marker => &mut counts.marker,
        Reason::Compacted => &mut counts.compacted,
    };
    *counter += 1;
}
