//! Offsets of partitions, deletion of records, and single fetches.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::messages::delete_records_request::{
    DeleteRecordsPartition, DeleteRecordsTopic,
};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::{
    BrokerId as ProtocolBrokerId, DeleteRecordsRequest, ListOffsetsRequest,
};

use super::{PerPartition, by_topic, match_answers, milliseconds, ok_or_code, topic_name};
use crate::batch::{RawBatch, batches};
use crate::cluster::Cluster;
use crate::connection::Connection;
use crate::error::{Error, ResponseError};
use crate::fetch::{self, FetchPosition, FetchRequest, FetchTopic, Isolation, TopicId};
use crate::metadata::TopicPartition;

/// Replica id of a consumer: sees up to the high watermark.
const CONSUMER: i32 = -1;
/// Replica id that sees all that the leader has.
const DEBUGGING_CONSUMER: i32 = -2;

/// Which offset of a partition to look up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OffsetSpec {
    /// The log start offset.
    Earliest,
    /// The log end: the high watermark, or the last stable offset with [`Isolation::ReadCommitted`].
    Latest,
    /// The first record with this timestamp or a later one, in milliseconds since 1970.
    Timestamp(i64),
    /// The record with the highest timestamp (KIP-734, Kafka 3.0).
    MaxTimestamp,
}

impl OffsetSpec {
    fn timestamp(self) -> i64 {
        match self {
            Self::Earliest => -2,
            Self::Latest => -1,
            Self::MaxTimestamp => -3,
            Self::Timestamp(timestamp) => timestamp.max(0),
        }
    }
}

/// An offset that was looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListedOffset {
    /// The offset; -1 if no record has the timestamp.
    pub offset: i64,
    /// Timestamp of its record in milliseconds since 1970; -1 for earliest and latest.
    pub timestamp: i64,
    /// Leader epoch of its record; -1 if unknown.
    pub leader_epoch: i32,
}

/// What [`Cluster::fetch_batches`] has read.
#[derive(Debug, Clone, PartialEq)]
pub struct FetchedBatches {
    /// The whole batches, from the one that holds the offset on.
    pub batches: Vec<RawBatch>,
    /// Offset up to which the log is replicated.
    pub high_watermark: i64,
    /// Offset up to which the outcome of every transaction is known.
    pub last_stable_offset: i64,
    /// First offset of the log; -1 if the broker does not say.
    pub log_start_offset: i64,
}

/// One look into a partition's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Offset to start at.
    pub offset: i64,
    /// Bound on the answer in bytes; the first batch is answered whole even if it is longer.
    pub max_bytes: i32,
    /// How long the broker may wait for records.
    pub max_wait: Duration,
    /// Up to where to see.
    pub isolation: Isolation,
}

impl Cluster {
    /// Looks up one offset for each partition.
    pub async fn list_offsets(
        &self,
        partitions: &[(TopicPartition, OffsetSpec)],
        isolation: Isolation,
    ) -> PerPartition<ListedOffset> {
        self.list_offsets_as(CONSUMER, partitions, isolation).await
    }

    /// Where the leader's own log ends: also what is not replicated yet, and so lies above the high watermark.
    ///
    /// A broker answers so to the replica id -2, which Kafka calls the debugging consumer (seen on 4.1.0).
    ///
    /// # Errors
    /// [`Error::Server`], or the request failed.
    pub async fn leader_log_end(&self, partition: &TopicPartition) -> Result<i64, Error> {
        let question = [(partition.clone(), OffsetSpec::Latest)];
        let answers = self
            .list_offsets_as(DEBUGGING_CONSUMER, &question, Isolation::ReadUncommitted)
            .await;
        let missing = || Error::LeaderUnavailable {
            topic: Arc::clone(&partition.topic),
            partition: partition.partition,
        };
        let (_, listed) = answers.into_iter().next().ok_or_else(missing)?;
        Ok(listed?.offset)
    }

    async fn list_offsets_as(
        &self,
        replica_id: i32,
        partitions: &[(TopicPartition, OffsetSpec)],
        isolation: Isolation,
    ) -> PerPartition<ListedOffset> {
        let timeout = self.options().request_timeout;
        self.per_leader(
            partitions.to_vec(),
            move |connection, questions| async move {
                let topics = by_topic(&questions).into_iter().map(|(topic, partitions)| {
                    let partitions = partitions.into_iter().map(|(partition, spec)| {
                        ListOffsetsPartition::default()
                            .with_partition_index(partition)
                            .with_current_leader_epoch(-1)
                            .with_timestamp(spec.timestamp())
                    });
                    ListOffsetsTopic::default()
                        .with_name(topic_name(topic))
                        .with_partitions(partitions.collect())
                });
                let request = ListOffsetsRequest::default()
                    .with_replica_id(ProtocolBrokerId(replica_id))
                    .with_topics(topics.collect());
                let version = connection.version_for::<ListOffsetsRequest>()?;
                let request = if version >= 2 {
                    request.with_isolation_level(isolation.code())
                } else {
                    request
                };
                let request = if version >= 10 {
                    request.with_timeout_ms(milliseconds(timeout))
                } else {
                    request
                };
                let response = connection.call_with(request, version, timeout).await?;
                let answers = response.topics.into_iter().flat_map(|topic| {
                    let name: Arc<str> = topic.name.0.as_str().into();
                    topic.partitions.into_iter().map(move |partition| {
                        let listed = ListedOffset {
                            offset: partition.offset,
                            timestamp: partition.timestamp,
                            leader_epoch: partition.leader_epoch,
                        };
                        let key = TopicPartition::new(Arc::clone(&name), partition.partition_index);
                        (key, ok_or_code(partition.error_code, listed))
                    })
                });
                let answers: BTreeMap<_, _> = answers.collect();
                Ok(match_answers(
                    &connection,
                    "ListOffsets",
                    questions,
                    answers,
                ))
            },
        )
        .await
    }

    /// Deletes the records below an offset of each partition (-1: up to the high watermark). Gives the new log start offsets.
    pub async fn delete_records(&self, partitions: &[(TopicPartition, i64)]) -> PerPartition<i64> {
        if let Err(refused) = self.writable() {
            let each = partitions.iter();
            return each
                .map(|(id, _)| (id.clone(), Err(refused.clone())))
                .collect();
        }
        let timeout = self.options().request_timeout;
        self.per_leader(
            partitions.to_vec(),
            move |connection, questions| async move {
                let topics = by_topic(&questions).into_iter().map(|(topic, partitions)| {
                    let partitions = partitions.into_iter().map(|(partition, offset)| {
                        DeleteRecordsPartition::default()
                            .with_partition_index(partition)
                            .with_offset(*offset)
                    });
                    DeleteRecordsTopic::default()
                        .with_name(topic_name(topic))
                        .with_partitions(partitions.collect())
                });
                let request = DeleteRecordsRequest::default()
                    .with_topics(topics.collect())
                    .with_timeout_ms(milliseconds(timeout));
                let response = connection.call(request).await?;
                let answers = response.topics.into_iter().flat_map(|topic| {
                    let name: Arc<str> = topic.name.0.as_str().into();
                    topic.partitions.into_iter().map(move |partition| {
                        let key = TopicPartition::new(Arc::clone(&name), partition.partition_index);
                        (
                            key,
                            ok_or_code(partition.error_code, partition.low_watermark),
                        )
                    })
                });
                let answers: BTreeMap<_, _> = answers.collect();
                Ok(match_answers(
                    &connection,
                    "DeleteRecords",
                    questions,
                    answers,
                ))
            },
        )
        .await
    }

    /// Reads batches of one partition once, on the control connection: for a look at the log, not for the data plane.
    /// Does not wait for records; sees all up to the high watermark.
    ///
    /// # Errors
    /// [`Error::Server`] such as OFFSET_OUT_OF_RANGE, [`Error::Batch`], or the request failed.
    pub async fn fetch_batches(
        &self,
        topic: &str,
        partition: i32,
        offset: i64,
        max_bytes: i32,
    ) -> Result<FetchedBatches, Error> {
        let mut retry = self.retry();
        loop {
            match self.fetch_once(topic, partition, offset, max_bytes).await {
                Ok(fetched) => return Ok(fetched),
                Err(error) => {
                    if error.is_stale_metadata() {
                        self.invalidate_leader(topic, partition);
                    }
                    retry.after(error).await?;
                }
            }
        }
    }

    async fn fetch_once(
        &self,
        topic: &str,
        partition: i32,
        offset: i64,
        max_bytes: i32,
    ) -> Result<FetchedBatches, Error> {
        let leader = self.leader(topic, partition).await?;
        let connection = self.connection(leader).await?;
        let look = Look {
            offset,
            max_bytes,
            max_wait: Duration::ZERO,
            isolation: Isolation::ReadUncommitted,
        };
        self.fetch_on(&connection, topic, partition, look).await
    }

    /// Reads batches of one partition once, over a connection to its leader. A connection of the caller's own, if `look` may wait: a broker answers
    /// nothing else on it meanwhile.
    ///
    /// # Errors
    /// [`Error::Server`] such as OFFSET_OUT_OF_RANGE, [`Error::Batch`], or the request failed.
    pub async fn fetch_on(
        &self,
        connection: &Connection,
        topic: &str,
        partition: i32,
        look: Look,
    ) -> Result<FetchedBatches, Error> {
        let own_name: Arc<str> = self.prefix().own_name(topic).into();
        let subject = TopicPartition::new(Arc::clone(&own_name), partition);
        let subject: Arc<str> = subject.to_string().into();
        let topic_id = self
            .metadata()
            .topics
            .get(topic)
            .map_or(TopicId::nil(), |topic| topic.topic_id);
        let version = fetch::negotiate(connection.versions(), !topic_id.is_nil())?;
        let request = FetchRequest {
            max_wait_ms: milliseconds(look.max_wait),
            max_bytes: look.max_bytes,
            isolation: look.isolation,
            topics: vec![FetchTopic {
                name: own_name,
                topic_id,
                partitions: vec![FetchPosition {
                    partition,
                    current_leader_epoch: -1,
                    offset: look.offset,
                    last_fetched_epoch: -1,
                    max_bytes: look.max_bytes,
                }],
            }],
            ..FetchRequest::default()
        };
        let encode = |correlation_id, client_id: &str| {
            fetch::encode(correlation_id, client_id, version, &request)
        };
        let patience = self.options().request_timeout + look.max_wait;
        let frame = connection.call_frame("Fetch", patience, encode).await?;
        let response =
            fetch::decode(frame, version).map_err(|error| error.at(connection.broker()))?;
        let fail = |code| Error::server(connection.broker(), "Fetch", Some(&subject), code, None);
        if let Some(code) = ResponseError::try_from_code(response.error_code) {
            return Err(fail(code));
        }
        let mut partitions = response
            .topics
            .into_iter()
            .flat_map(|topic| topic.partitions);
        let fetched = partitions
            .next()
            .ok_or_else(|| fail(ResponseError::UnknownServerError))?;
        if let Some(code) = ResponseError::try_from_code(fetched.error_code) {
            return Err(fail(code));
        }
        let batches: Result<Vec<RawBatch>, _> = batches(fetched.records).collect();
        Ok(FetchedBatches {
            batches: batches.map_err(|source| Error::Batch { subject, source })?,
            high_watermark: fetched.high_watermark,
            last_stable_offset: fetched.last_stable_offset,
            log_start_offset: fetched.log_start_offset,
        })
    }
}
