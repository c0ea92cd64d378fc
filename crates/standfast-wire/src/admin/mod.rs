//! Admin calls, thin and typed. Those about partitions take many at once, group them by leader, and repeat what failed
//! for reasons that pass.

mod acls;
mod configs;
mod groups;
mod list_groups;
mod list_transactions;
mod offsets;
mod topics;
mod transactions;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use kafka_protocol::messages::TopicName;
use kafka_protocol::protocol::{Request, StrBytes};
use tokio::task::JoinSet;

use crate::cluster::Cluster;
use crate::connection::Connection;
use crate::error::{Error, ResponseError};
use crate::metadata::{BrokerId, TopicPartition};

pub use acls::{AclBinding, AclOperation, AclPattern, AclPermission, AclResource};
pub use configs::{ConfigChange, ConfigEntry, ConfigResource};
pub use groups::{CommittedOffset, GroupDescription};
pub use list_transactions::ListedTransaction;
pub use offsets::{FetchedBatches, ListedOffset, Look, OffsetSpec};
pub use topics::NewTopic;
pub use transactions::{ActiveProducer, Appended, ProducerIdentity, TransactionDescription};

/// Partitions put into one request.
const PARTITIONS_PER_REQUEST: usize = 2000;

/// One result per partition, in no particular order.
pub type PerPartition<T> = Vec<(TopicPartition, Result<T, Error>)>;

/// What one leader answered about each partition, with the question for a repeat.
type Answers<Q, T> = Vec<(TopicPartition, Q, Result<T, Error>)>;

impl Cluster {
    /// What a broker's code and words say about `subject`.
    fn outcome(
        &self,
        api: &'static str,
        subject: &str,
        code: i16,
        message: Option<&str>,
    ) -> Result<(), Error> {
        match ResponseError::try_from_code(code) {
            None => Ok(()),
            Some(code) => Err(Error::server(
                &self.bootstrap(),
                api,
                Some(subject),
                code,
                message,
            )),
        }
    }

    /// Asks every broker the same, for what only the broker that coordinates it knows. `code`: the error code of an answer.
    ///
    /// # Errors
    /// A broker did not answer, or refused: what the others know would have holes.
    async fn ask_every_broker<R: Request + Clone>(
        &self,
        api: &'static str,
        request: R,
        code: impl Fn(&R::Response) -> i16,
    ) -> Result<Vec<R::Response>, Error> {
        let metadata = self.refresh_metadata().await?;
        let mut answers = Vec::with_capacity(metadata.brokers.len());
        for broker in metadata.brokers.keys() {
            let mut retry = self.retry();
            let answer = loop {
                let attempt = async {
                    let connection = self.connection(*broker).await?;
                    let answer = connection.call(request.clone()).await?;
                    match ResponseError::try_from_code(code(&answer)) {
                        None => Ok(answer),
                        Some(code) => {
                            Err(Error::server(connection.broker(), api, None, code, None))
                        }
                    }
                };
                match attempt.await {
                    Ok(answer) => break answer,
                    Err(error) => retry.after(error).await?,
                }
            };
            answers.push(answer);
        }
        Ok(answers)
    }

    /// Asks the leader of each partition, all leaders at the same time. `ask` sends one request about many partitions and
    /// must return one answer for each of them.
    async fn per_leader<Q, T, A, F>(
        &self,
        questions: Vec<(TopicPartition, Q)>,
        ask: A,
    ) -> PerPartition<T>
    where
        Q: Clone + Send + 'static,
        T: Send + 'static,
        A: Fn(Connection, Vec<(TopicPartition, Q)>) -> F + Clone + Send + 'static,
        F: Future<Output = Result<Answers<Q, T>, Error>> + Send + 'static,
    {
        let mut done = Vec::with_capacity(questions.len());
        let mut open = questions;
        let mut retry = self.retry();
        loop {
            let mut failed: Answers<Q, T> = Vec::new();
            let mut requests = JoinSet::new();
            for (leader, questions) in self.by_leader(open, &mut failed).await {
                for chunk in questions.chunks(PARTITIONS_PER_REQUEST) {
                    requests.spawn(self.clone().ask_leader(leader, chunk.to_vec(), ask.clone()));
                }
            }
            while let Some(joined) = requests.join_next().await {
                failed.extend(joined.unwrap_or_default());
            }
            let mut last = None;
            open = Vec::new();
            let mut errors = Vec::new();
            for (partition, question, answer) in failed {
                match answer {
                    Err(error) if error.is_retriable() => {
                        if error.is_stale_metadata() {
                            self.invalidate_leader(&partition.topic, partition.partition);
                        }
                        last = Some(error.clone());
                        open.push((partition, question));
                        errors.push(error);
                    }
                    answer => done.push((partition, answer)),
                }
            }
            let Some(last) = last else { return done };
            if retry.after(last).await.is_err() {
                let partitions = open.into_iter().map(|(partition, _)| partition);
                done.extend(partitions.zip(errors.into_iter().map(Err)));
                return done;
            }
        }
    }

    /// Groups partitions by leader, with at most one metadata request. Those without a leader go to `failed`.
    async fn by_leader<Q, T>(
        &self,
        questions: Vec<(TopicPartition, Q)>,
        failed: &mut Answers<Q, T>,
    ) -> BTreeMap<BrokerId, Vec<(TopicPartition, Q)>> {
        let unknown = |(partition, _): &&(TopicPartition, Q)| {
            self.cached_leader(&partition.topic, partition.partition)
                .is_none()
        };
        let mut topics: Vec<&str> = questions
            .iter()
            .filter(unknown)
            .map(|(partition, _)| &*partition.topic)
            .collect();
        topics.sort_unstable();
        topics.dedup();
        let refreshed = if topics.is_empty() {
            Ok(())
        } else {
            self.topics(&topics).await.map(|_| ())
        };
        let metadata = self.metadata();
        let mut grouped: BTreeMap<BrokerId, Vec<(TopicPartition, Q)>> = BTreeMap::new();
        for (partition, question) in questions {
            let leader = match &refreshed {
                Ok(()) => self.leader_in(&metadata, &partition.topic, partition.partition),
                Err(error) => Err(error.clone()),
            };
            match leader {
                Ok(leader) => grouped
                    .entry(leader)
                    .or_default()
                    .push((partition, question)),
                Err(error) => failed.push((partition, question, Err(error))),
            }
        }
        grouped
    }

    async fn ask_leader<Q, T, A, F>(
        self,
        leader: BrokerId,
        questions: Vec<(TopicPartition, Q)>,
        ask: A,
    ) -> Answers<Q, T>
    where
        Q: Clone + Send + 'static,
        A: Fn(Connection, Vec<(TopicPartition, Q)>) -> F,
        F: Future<Output = Result<Answers<Q, T>, Error>>,
    {
        let prefix = self.prefix();
        let answers = match self.connection(leader).await {
            Ok(connection) if prefix.is_empty() => ask(connection, questions.clone()).await,
            Ok(connection) => {
                let asked = renamed(questions.clone(), |name| prefix.own_name(name).into());
                let answered = ask(connection, asked).await;
                answered.map(|mut answers| {
                    for (partition, ..) in &mut answers {
                        partition.topic = prefix.add(&partition.topic);
                    }
                    answers
                })
            }
            Err(error) => Err(error),
        };
        answers.unwrap_or_else(|error| {
            let each = questions.into_iter();
            each.map(|(partition, question)| (partition, question, Err(error.clone())))
                .collect()
        })
    }
}

/// The same questions about topics that have other names on the wire.
fn renamed<Q>(
    mut questions: Vec<(TopicPartition, Q)>,
    rename: impl Fn(&str) -> Arc<str>,
) -> Vec<(TopicPartition, Q)> {
    for (partition, _) in &mut questions {
        partition.topic = rename(&partition.topic);
    }
    questions
}

/// Puts partitions of the same topic together, as requests want them.
fn by_topic<Q>(questions: &[(TopicPartition, Q)]) -> BTreeMap<&Arc<str>, Vec<(i32, &Q)>> {
    let mut topics: BTreeMap<&Arc<str>, Vec<(i32, &Q)>> = BTreeMap::new();
    for (partition, question) in questions {
        topics
            .entry(&partition.topic)
            .or_default()
            .push((partition.partition, question));
    }
    topics
}

/// Gives each question its answer; what the broker has left out is an error.
fn match_answers<Q, T>(
    connection: &Connection,
    api: &'static str,
    questions: Vec<(TopicPartition, Q)>,
    mut answers: BTreeMap<TopicPartition, Result<T, ResponseError>>,
) -> Answers<Q, T> {
    let each = questions.into_iter().map(|(partition, question)| {
        let answer = match answers.remove(&partition) {
            Some(answer) => answer,
            None => Err(ResponseError::UnknownServerError),
        };
        let subject = partition.to_string();
        let answer = answer
            .map_err(|code| Error::server(connection.broker(), api, Some(&subject), code, None));
        (partition, question, answer)
    });
    each.collect()
}

/// `Err` if `code` is one.
fn ok_or_code<T>(code: i16, value: T) -> Result<T, ResponseError> {
    match ResponseError::try_from_code(code) {
        None => Ok(value),
        Some(code) => Err(code),
    }
}

fn topic_name(name: &str) -> TopicName {
    TopicName(str_bytes(name))
}

fn str_bytes(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

/// A duration as the protocol's i32 milliseconds.
fn milliseconds(duration: std::time::Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}
