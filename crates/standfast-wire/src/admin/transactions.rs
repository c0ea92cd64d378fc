//! Producer ids and transactions.

use std::collections::BTreeMap;
use std::sync::Arc;

use kafka_protocol::messages::describe_producers_request::TopicRequest;
use kafka_protocol::messages::{
    DescribeProducersRequest, DescribeTransactionsRequest, InitProducerIdRequest, TransactionalId,
};

use super::{
    PerPartition, by_topic, match_answers, milliseconds, ok_or_code, str_bytes, topic_name,
};
use crate::cluster::{Cluster, CoordinatorKind};
use crate::error::{Error, ResponseError};
use crate::metadata::TopicPartition;

/// A producer id and its epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProducerIdentity {
    /// Producer id.
    pub producer_id: i64,
    /// Epoch; a higher one fences this one.
    pub epoch: i16,
}

/// What the coordinator knows about a transactional id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransactionDescription {
    /// Producer id of the transactional id.
    pub producer_id: i64,
    /// Its epoch.
    pub epoch: i16,
    /// Kafka's word: Empty, Ongoing, PrepareCommit, PrepareAbort, CompleteCommit, CompleteAbort, …
    pub state: String,
    /// When the current transaction began, in milliseconds since 1970; -1 if there is none.
    pub started_at_ms: i64,
    /// Partitions in the current transaction.
    pub partitions: Vec<TopicPartition>,
}

/// A producer that the leader of a partition remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ActiveProducer {
    /// Producer id.
    pub producer_id: i64,
    /// Its epoch.
    pub epoch: i32,
    /// Sequence number of its last record; -1 if none.
    pub last_sequence: i32,
    /// Timestamp of its last record in milliseconds since 1970.
    pub last_timestamp: i64,
    /// First offset of its open transaction; -1 if there is none.
    pub transaction_start_offset: i64,
}

impl Cluster {
    /// Allocates a producer id. With a transactional id its coordinator is asked: a transaction left open is aborted, the
    /// epoch is raised, and whoever held the id before is fenced.
    ///
    /// Right after the start of a cluster the answer is COORDINATOR_LOAD_IN_PROGRESS or COORDINATOR_NOT_AVAILABLE; both are retried.
    ///
    /// # Errors
    /// [`Error::Server`], or the request failed.
    pub async fn init_producer_id(
        &self,
        transactional_id: Option<&str>,
    ) -> Result<ProducerIdentity, Error> {
        let request = InitProducerIdRequest::default()
            .with_transactional_id(transactional_id.map(|id| TransactionalId(str_bytes(id))))
            .with_transaction_timeout_ms(milliseconds(self.options().request_timeout))
            .with_producer_id((-1).into())
            .with_producer_epoch(-1);
        let response = match transactional_id {
            None => {
                self.call_any(request, |response| {
                    ResponseError::try_from_code(response.error_code)
                })
                .await?
            }
            Some(id) => {
                self.call_coordinator(CoordinatorKind::Transaction, id, request, |response| {
                    ResponseError::try_from_code(response.error_code)
                })
                .await?
            }
        };
        Ok(ProducerIdentity {
            producer_id: response.producer_id.0,
            epoch: response.producer_epoch,
        })
    }

    /// What the coordinator knows about a transactional id; `None` if it has never been used (KIP-664, Kafka 3.0).
    ///
    /// # Errors
    /// [`Error::Server`], [`Error::UnsupportedApi`] before Kafka 3.0, or the request failed.
    pub async fn describe_transaction(
        &self,
        transactional_id: &str,
    ) -> Result<Option<TransactionDescription>, Error> {
        let request = DescribeTransactionsRequest::default()
            .with_transactional_ids(vec![TransactionalId(str_bytes(transactional_id))]);
        let response = self
            .call_coordinator(
                CoordinatorKind::Transaction,
                transactional_id,
                request,
                |response| {
                    let code = response
                        .transaction_states
                        .first()
                        .map_or(0, |state| state.error_code);
                    ResponseError::try_from_code(code)
                        .filter(|code| *code != ResponseError::TransactionalIdNotFound)
                },
            )
            .await?;
        let found = response
            .transaction_states
            .into_iter()
            .find(|state| state.error_code == 0);
        Ok(found.map(|state| {
            let partitions = state.topics.iter().flat_map(|topic| {
                let name: Arc<str> = topic.topic.0.as_str().into();
                let each = topic.partitions.iter();
                each.map(move |partition| TopicPartition::new(Arc::clone(&name), *partition))
            });
            TransactionDescription {
                producer_id: state.producer_id.0,
                epoch: state.producer_epoch,
                state: state.transaction_state.to_string(),
                started_at_ms: state.transaction_start_time_ms,
                partitions: partitions.collect(),
            }
        }))
    }

    /// The producers that the leader of each partition remembers (KIP-664, Kafka 2.8).
    pub async fn describe_producers(
        &self,
        partitions: &[TopicPartition],
    ) -> PerPartition<Vec<ActiveProducer>> {
        let questions = partitions
            .iter()
            .map(|partition| (partition.clone(), ()))
            .collect();
        self.per_leader(questions, |connection, questions| async move {
            let topics = by_topic(&questions).into_iter().map(|(topic, partitions)| {
                TopicRequest::default()
                    .with_name(topic_name(topic))
                    .with_partition_indexes(
                        partitions
                            .into_iter()
                            .map(|(partition, ())| partition)
                            .collect(),
                    )
            });
            let request = DescribeProducersRequest::default().with_topics(topics.collect());
            let response = connection.call(request).await?;
            let answers = response.topics.into_iter().flat_map(|topic| {
                let name: Arc<str> = topic.name.0.as_str().into();
                topic.partitions.into_iter().map(move |partition| {
                    let producers =
                        partition
                            .active_producers
                            .iter()
                            .map(|producer| ActiveProducer {
                                producer_id: producer.producer_id.0,
                                epoch: producer.producer_epoch,
                                last_sequence: producer.last_sequence,
                                last_timestamp: producer.last_timestamp,
                                transaction_start_offset: producer.current_txn_start_offset,
                            });
                    let key = TopicPartition::new(Arc::clone(&name), partition.partition_index);
                    (key, ok_or_code(partition.error_code, producers.collect()))
                })
            });
            let answers: BTreeMap<_, _> = answers.collect();
            Ok(match_answers(
                &connection,
                "DescribeProducers",
                questions,
                answers,
            ))
        })
        .await
    }
}
