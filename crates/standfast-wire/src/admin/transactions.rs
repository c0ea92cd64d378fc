//! Producer ids and transactions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use kafka_protocol::messages::add_partitions_to_txn_request::AddPartitionsToTxnTopic;
use kafka_protocol::messages::describe_producers_request::TopicRequest;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{
    AddPartitionsToTxnRequest, DescribeProducersRequest, DescribeTransactionsRequest,
    EndTxnRequest, InitProducerIdRequest, ProduceRequest, TransactionalId,
};
use tokio::time::Instant;

use super::{
    PerPartition, by_topic, match_answers, milliseconds, ok_or_code, str_bytes, topic_name,
};
use crate::batch::RestampedBatch;
use crate::cluster::{Cluster, CoordinatorKind};
use crate::connection::Connection;
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
    /// Its coordinator aborts a transaction that is open for longer.
    pub timeout: Duration,
    /// Partitions in the current transaction.
    pub partitions: Vec<TopicPartition>,
}

/// The answer to one batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appended {
    /// Why it was refused; `None` if it is in the log.
    pub code: Option<ResponseError>,
    /// The broker's words on a refusal.
    pub message: Option<String>,
    /// Offset that the first record has got; -1 if refused.
    pub base_offset: i64,
    /// See [`ProduceResult::log_append_time`](crate::produce::ProduceResult::log_append_time).
    pub log_append_time: i64,
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

impl Connection {
    /// Appends one batch of a transaction (Produce v12): the broker adds the partition to the transaction itself (KIP-890). Outside one, `transactional_id` is `None`.
    ///
    /// # Errors
    /// [`Error::UnsupportedApi`] before Kafka 4.0 or while the cluster's `transaction.version` is below 2, or the request failed. A refusal of the batch is in the answer.
    pub async fn produce_one(
        &self,
        transactional_id: Option<&str>,
        partition: &TopicPartition,
        batch: &RestampedBatch,
        timeout: Duration,
    ) -> Result<Appended, Error> {
        epoch_per_transaction(self)?;
        let version = self
            .versions()
            .negotiate_within::<ProduceRequest>(PRODUCE_VERSION, PRODUCE_VERSION)?;
        let mut records = BytesMut::with_capacity(batch.total_len());
        records.extend_from_slice(&batch.header);
        records.extend_from_slice(&batch.body);
        let data = PartitionProduceData::default()
            .with_index(partition.partition)
            .with_records(Some(records.freeze()));
        let topic = TopicProduceData::default()
            .with_name(topic_name(&partition.topic))
            .with_partition_data(vec![data]);
        let request = ProduceRequest::default()
            .with_transactional_id(transactional_id.map(|id| TransactionalId(str_bytes(id))))
            .with_acks(-1)
            .with_timeout_ms(milliseconds(timeout))
            .with_topic_data(vec![topic]);
        let response = self.call_with(request, version, timeout).await?;
        let answer = response
            .responses
            .into_iter()
            .flat_map(|topic| topic.partition_responses)
            .next()
            .ok_or_else(|| Error::Closed {
                broker: Arc::clone(self.broker()),
                detail: " with an answer that names no partition",
            })?;
        Ok(Appended {
            code: ResponseError::try_from_code(answer.error_code),
            message: answer.error_message.map(|text| text.to_string()),
            base_offset: answer.base_offset,
            log_append_time: answer.log_append_time_ms,
        })
    }
}

/// A transaction has an epoch of its own from this level of `transaction.version` on (KIP-890, second part).
const TRANSACTION_VERSION: i16 = 2;
const END_VERSION: i16 = 5;
const PRODUCE_VERSION: i16 = 12;
/// The highest version for clients.
const ADD_PARTITIONS_MAX: i16 = 3;
/// Wait before asking a coordinator again that is still writing the markers of the transaction before.
const BUSY_PAUSE: Duration = Duration::from_millis(3);

/// The version of EndTxn to use, if the cluster gives each transaction its own epoch.
fn epoch_per_transaction(connection: &Connection) -> Result<i16, Error> {
    let level = connection.versions().feature_level("transaction.version");
    if level < TRANSACTION_VERSION {
        return Err(Error::UnsupportedApi {
            broker: Arc::clone(connection.broker()),
            api: "transaction.version",
            supported: "2 (Kafka 4.0; `kafka-features upgrade --feature transaction.version=2`)"
                .to_owned(),
            offered: level.to_string(),
        });
    }
    connection
        .versions()
        .negotiate_within::<EndTxnRequest>(END_VERSION, END_VERSION)
}

fn moved_coordinator(error: &Error) -> bool {
    match error.code() {
        Some(code) => matches!(
            code,
            ResponseError::NotCoordinator
                | ResponseError::CoordinatorNotAvailable
                | ResponseError::CoordinatorLoadInProgress
        ),
        None => true,
    }
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
        self.init_producer_id_within(transactional_id, self.options().request_timeout)
            .await
    }

    /// As [`Cluster::init_producer_id`], with the time after which the coordinator aborts a transaction that is left open.
    ///
    /// # Errors
    /// INVALID_TRANSACTION_TIMEOUT (50) above the broker's `transaction.max.timeout.ms` (15 minutes unless it is set), and as there.
    pub async fn init_producer_id_within(
        &self,
        transactional_id: Option<&str>,
        transaction_timeout: Duration,
    ) -> Result<ProducerIdentity, Error> {
        let request = InitProducerIdRequest::default()
            .with_transactional_id(transactional_id.map(|id| TransactionalId(str_bytes(id))))
            .with_transaction_timeout_ms(milliseconds(transaction_timeout))
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
                let name = self.prefix().add(topic.topic.0.as_str());
                let each = topic.partitions.iter();
                each.map(move |partition| TopicPartition::new(Arc::clone(&name), *partition))
            });
            TransactionDescription {
                producer_id: state.producer_id.0,
                epoch: state.producer_epoch,
                state: state.transaction_state.to_string(),
                started_at_ms: state.transaction_start_time_ms,
                timeout: Duration::from_millis(
                    state.transaction_timeout_ms.max(0).unsigned_abs().into(),
                ),
                partitions: partitions.collect(),
            }
        }))
    }

    /// Commits or aborts the transaction of exactly this epoch (EndTxn v5, KIP-890); answers the identity that the next transaction has.
    ///
    /// The broker compares and sets: each end raises the epoch by one. A repeat with the same outcome is answered as the first time, anything older is
    /// refused (PRODUCER_FENCED, 90) and cannot end a later transaction. The answer comes *before* the marker is in the log.
    ///
    /// # Errors
    /// [`Error::UnsupportedApi`] before Kafka 4.0 or while the cluster's `transaction.version` is below 2; [`Error::Server`]; or the request failed.
    pub async fn end_transaction(
        &self,
        transactional_id: &str,
        identity: ProducerIdentity,
        commit: bool,
    ) -> Result<ProducerIdentity, Error> {
        let request = EndTxnRequest::default()
            .with_transactional_id(TransactionalId(str_bytes(transactional_id)))
            .with_producer_id(identity.producer_id.into())
            .with_producer_epoch(identity.epoch)
            .with_committed(commit);
        let deadline = Instant::now() + self.options().request_timeout;
        loop {
            let attempt = self.end_once(transactional_id, request.clone()).await;
            let busy = matches!(&attempt, Err(error) if error.code() == Some(ResponseError::ConcurrentTransactions));
            match attempt {
                Err(_) if busy && Instant::now() < deadline => tokio::time::sleep(BUSY_PAUSE).await,
                attempt => return attempt,
            }
        }
    }

    async fn end_once(
        &self,
        transactional_id: &str,
        request: EndTxnRequest,
    ) -> Result<ProducerIdentity, Error> {
        let kind = CoordinatorKind::Transaction;
        let broker = self.coordinator(kind, transactional_id).await?;
        let connection = self.connection(broker).await?;
        let version = epoch_per_transaction(&connection)?;
        let answered = connection
            .call_with(request, version, self.options().request_timeout)
            .await
            .and_then(
                |response| match ResponseError::try_from_code(response.error_code) {
                    None => Ok(ProducerIdentity {
                        producer_id: response.producer_id.0,
                        epoch: response.producer_epoch,
                    }),
                    Some(code) => Err(Error::server(
                        connection.broker(),
                        "EndTxn",
                        Some(transactional_id),
                        code,
                        None,
                    )),
                },
            );
        if answered.as_ref().is_err_and(moved_coordinator) {
            self.forget_coordinator(kind, transactional_id);
        }
        answered
    }

    /// Adds a partition to the transaction without writing to it: its end then puts a marker there all the same.
    ///
    /// # Errors
    /// [`Error::Server`], or the request failed.
    pub async fn add_partition_to_transaction(
        &self,
        transactional_id: &str,
        identity: ProducerIdentity,
        partition: &TopicPartition,
    ) -> Result<(), Error> {
        let partitions = std::slice::from_ref(partition);
        self.add_partitions_to_transaction(transactional_id, identity, partitions)
            .await
    }

    /// As [`Cluster::add_partition_to_transaction`], several in one call.
    ///
    /// # Errors
    /// As there; if one of them cannot be added, none is.
    pub async fn add_partitions_to_transaction(
        &self,
        transactional_id: &str,
        identity: ProducerIdentity,
        partitions: &[TopicPartition],
    ) -> Result<(), Error> {
        self.writable()?;
        let mut topics: BTreeMap<&Arc<str>, Vec<i32>> = BTreeMap::new();
        for partition in partitions {
            topics
                .entry(&partition.topic)
                .or_default()
                .push(partition.partition);
        }
        let topics = topics.into_iter().map(|(topic, partitions)| {
            AddPartitionsToTxnTopic::default()
                .with_name(topic_name(topic))
                .with_partitions(partitions)
        });
        let request = AddPartitionsToTxnRequest::default()
            .with_v3_and_below_transactional_id(TransactionalId(str_bytes(transactional_id)))
            .with_v3_and_below_producer_id(identity.producer_id.into())
            .with_v3_and_below_producer_epoch(identity.epoch)
            .with_v3_and_below_topics(topics.collect());
        let deadline = Instant::now() + self.options().request_timeout;
        loop {
            let broker = self
                .coordinator(CoordinatorKind::Transaction, transactional_id)
                .await?;
            let connection = self.connection(broker).await?;
            let version = connection
                .versions()
                .negotiate_within::<AddPartitionsToTxnRequest>(0, ADD_PARTITIONS_MAX)?;
            let response = connection
                .call_with(request.clone(), version, self.options().request_timeout)
                .await?;
            let code = response
                .results_by_topic_v3_and_below
                .iter()
                .flat_map(|topic| &topic.results_by_partition)
                .find_map(|result| ResponseError::try_from_code(result.partition_error_code));
            let Some(code) = code else { return Ok(()) };
            if code != ResponseError::ConcurrentTransactions || Instant::now() >= deadline {
                let error = Error::server(
                    connection.broker(),
                    "AddPartitionsToTxn",
                    Some(transactional_id),
                    code,
                    None,
                );
                if moved_coordinator(&error) {
                    self.forget_coordinator(CoordinatorKind::Transaction, transactional_id);
                }
                return Err(error);
            }
            tokio::time::sleep(BUSY_PAUSE).await;
        }
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
