//! Reads a topic of one cluster forward, one partition at a time.

use std::collections::{BTreeSet, VecDeque};

use standfast_wire::batch::RawBatch;
use standfast_wire::{Cluster, ClusterOptions, ResponseError};

use super::VerifyError;
use super::compare::Span;
use crate::calls::{self, LogRange};
use crate::partition::PartitionId;

/// Bytes asked for per fetch and side.
const FETCH_BYTES: i32 = 2 << 20;

const CLEANUP_POLICY: &str = "cleanup.policy";

/// One topic on one cluster.
pub(super) struct Log {
    pub(super) role: &'static str,
    pub(super) cluster: Cluster,
    pub(super) topic: String,
    pub(super) partitions: BTreeSet<i32>,
}

impl Log {
    pub(super) async fn open(
        role: &'static str,
        options: &ClusterOptions,
        topic: &str,
    ) -> Result<Self, VerifyError> {
        let failed = |error| VerifyError::Cluster {
            cluster: role,
            error,
        };
        let cluster = Cluster::connect(options.clone()).await.map_err(failed)?;
        let metadata = cluster.topics(&[topic]).await.map_err(failed)?;
        let partitions: BTreeSet<i32> = metadata
            .topics
            .get(topic)
            .map(|found| found.partitions.keys().copied().collect())
            .unwrap_or_default();
        if partitions.is_empty() {
            let what = format!("topic {topic:?}, or the user may not describe it");
            return Err(VerifyError::Missing {
                cluster: role,
                what,
            });
        }
        Ok(Self {
            role,
            cluster,
            topic: topic.to_owned(),
            partitions,
        })
    }

    pub(super) fn id(&self, partition: i32) -> PartitionId {
        PartitionId::new(self.topic.as_str(), partition)
    }

    pub(super) fn failed(&self, error: standfast_wire::Error) -> VerifyError {
        VerifyError::Cluster {
            cluster: self.role,
            error,
        }
    }

    pub(super) async fn range(&self, partition: i32) -> Result<LogRange, VerifyError> {
        calls::log_range(&self.cluster, &self.id(partition))
            .await
            .map_err(|error| self.failed(error))
    }

    pub(super) async fn compacts(&self) -> Result<bool, VerifyError> {
        let configs = calls::topic_configs(&self.cluster, &self.topic)
            .await
            .map_err(|error| self.failed(error))?;
        let policy = configs
            .get(CLEANUP_POLICY)
            .and_then(|config| config.value.as_deref());
        Ok(policy.is_some_and(|policy| policy.split(',').any(|part| part.trim() == "compact")))
    }
}

/// Reads one partition forward.
pub(super) struct Cursor<'l> {
    pub(super) log: &'l Log,
    partition: i32,
    at: i64,
    /// The log's end as it was listed.
    pub(super) end: i64,
    fetched: VecDeque<RawBatch>,
    /// Nothing stands between `at` and the end.
    hollow: bool,
}

impl<'l> Cursor<'l> {
    pub(super) fn new(log: &'l Log, partition: i32, at: i64, end: i64) -> Self {
        Self {
            log,
            partition,
            at,
            end,
            fetched: VecDeque::new(),
            hollow: false,
        }
    }

    /// Whether a fetch is due before [`Cursor::next`].
    pub(super) fn is_dry(&self) -> bool {
        self.fetched.is_empty() && self.at < self.end && !self.hollow
    }

    /// Fetches if need be. `false`: the log no longer begins where this cursor stands.
    pub(super) async fn fill(&mut self) -> Result<bool, VerifyError> {
        if !self.is_dry() {
            return Ok(true);
        }
        let fetched = self
            .log
            .cluster
            .fetch_batches(&self.log.topic, self.partition, self.at, FETCH_BYTES)
            .await;
        let fetched = match fetched {
            Ok(fetched) => fetched,
            Err(error) if error.code() == Some(ResponseError::OffsetOutOfRange) => {
                let range = self.log.range(self.partition).await?;
                if range.start > self.at {
                    return Ok(false);
                }
                return Err(self.shorter(range.end));
            }
            Err(error) => return Err(self.log.failed(error)),
        };
        let at = self.at;
        self.fetched = fetched.batches.into();
        self.fetched.retain(|batch| batch.header.next_offset() > at);
        if self.fetched.is_empty() {
            if fetched.high_watermark < self.end {
                return Err(self.shorter(fetched.high_watermark));
            }
            self.hollow = true;
        }
        Ok(true)
    }

    /// The next stretch of the log; `None` at its end.
    pub(super) fn next(&mut self) -> Option<Span> {
        if self.at >= self.end {
            return None;
        }
        let to = self
            .fetched
            .front()
            .map_or(self.end, |batch| batch.header.base_offset);
        if to > self.at {
            let span = Span::Gap { to };
            self.at = to;
            return Some(span);
        }
        let batch = self.fetched.pop_front()?;
        self.at = batch.header.next_offset();
        Some(Span::Batch(batch))
    }

    fn shorter(&self, end: i64) -> VerifyError {
        VerifyError::Moved {
            cluster: self.log.role,
            partition: self.log.id(self.partition).to_string(),
            reason: format!(
                "the log ended at offset {} and now ends at {end}: it was truncated or created again, or its leader has just changed",
                self.end
            ),
        }
    }
}
