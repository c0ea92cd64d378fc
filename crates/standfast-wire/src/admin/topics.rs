//! Topics: create, delete, grow.

use std::collections::BTreeMap;

use kafka_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use kafka_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_protocol::messages::delete_topics_request::DeleteTopicState;
use kafka_protocol::messages::{CreatePartitionsRequest, CreateTopicsRequest, DeleteTopicsRequest};

use super::{milliseconds, str_bytes, topic_name};
use crate::cluster::Cluster;
use crate::error::{Error, ResponseError};
use crate::fetch::TopicId;

/// A topic to create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTopic {
    /// Topic name.
    pub name: String,
    /// Number of partitions; -1 for the broker's default.
    pub partitions: i32,
    /// Number of replicas; -1 for the broker's default.
    pub replication_factor: i16,
    /// Configs that differ from the broker's defaults.
    pub configs: BTreeMap<String, String>,
}

/// One result per topic, in the broker's order.
type PerTopic<T> = Vec<(String, Result<T, Error>)>;

impl Cluster {
    /// Creates topics. Gives the id of each (nil before Kafka 2.8).
    ///
    /// With `validate_only` nothing is created, but the answer is the same.
    ///
    /// # Errors
    /// The request as a whole failed; what is wrong with one topic is in its result.
    pub async fn create_topics(
        &self,
        topics: &[NewTopic],
        validate_only: bool,
    ) -> Result<PerTopic<TopicId>, Error> {
        self.writable()?;
        let creatable = topics.iter().map(|topic| {
            let configs = topic.configs.iter().map(|(name, value)| {
                CreatableTopicConfig::default()
                    .with_name(str_bytes(name))
                    .with_value(Some(str_bytes(value)))
            });
            CreatableTopic::default()
                .with_name(topic_name(&topic.name))
                .with_num_partitions(topic.partitions)
                .with_replication_factor(topic.replication_factor)
                .with_configs(configs.collect())
        });
        let request = CreateTopicsRequest::default()
            .with_topics(creatable.collect())
            .with_timeout_ms(milliseconds(self.options().request_timeout))
            .with_validate_only(validate_only);
        let response = self
            .call_controller(request, |response| {
                not_controller(response.topics.iter().map(|topic| topic.error_code))
            })
            .await?;
        let results = response.topics.into_iter().map(|topic| {
            let name = topic.name.0.to_string();
            let message = topic.error_message.as_deref();
            let result = self.topic_result("CreateTopics", &name, topic.error_code, message);
            (name, result.map(|()| topic.topic_id))
        });
        Ok(results.collect())
    }

    /// Creates one topic and gives its id.
    ///
    /// # Errors
    /// [`Error::Server`] such as TOPIC_ALREADY_EXISTS, or the request failed.
    pub async fn create_topic(&self, topic: NewTopic) -> Result<TopicId, Error> {
        let name = topic.name.clone();
        self.only(
            "CreateTopics",
            &name,
            self.create_topics(&[topic], false).await?,
        )
    }

    /// Deletes topics and all their records.
    ///
    /// # Errors
    /// The request as a whole failed; what is wrong with one topic is in its result.
    pub async fn delete_topics(&self, names: &[&str]) -> Result<PerTopic<()>, Error> {
        self.writable()?;
        let connection = self.some_connection().await?;
        let request = DeleteTopicsRequest::default()
            .with_timeout_ms(milliseconds(self.options().request_timeout));
        let request = if connection.version_for::<DeleteTopicsRequest>()? >= 6 {
            let named = |name: &&str| DeleteTopicState::default().with_name(Some(topic_name(name)));
            request.with_topics(names.iter().map(named).collect())
        } else {
            request.with_topic_names(names.iter().map(|name| topic_name(name)).collect())
        };
        let response = self
            .call_controller(request, |response| {
                not_controller(response.responses.iter().map(|topic| topic.error_code))
            })
            .await?;
        let results = response.responses.into_iter().map(|topic| {
            let name = topic
                .name
                .map(|name| name.0.to_string())
                .unwrap_or_default();
            let message = topic.error_message.as_deref();
            let result = self.topic_result("DeleteTopics", &name, topic.error_code, message);
            (name, result)
        });
        Ok(results.collect())
    }

    /// Grows topics to the given *total* number of partitions.
    ///
    /// # Errors
    /// The request as a whole failed; what is wrong with one topic is in its result (INVALID_PARTITIONS if it has as many).
    pub async fn create_partitions(&self, totals: &[(&str, i32)]) -> Result<PerTopic<()>, Error> {
        self.writable()?;
        let topics = totals.iter().map(|(name, total)| {
            CreatePartitionsTopic::default()
                .with_name(topic_name(name))
                .with_count(*total)
                .with_assignments(None)
        });
        let request = CreatePartitionsRequest::default()
            .with_topics(topics.collect())
            .with_timeout_ms(milliseconds(self.options().request_timeout));
        let response = self
            .call_controller(request, |response| {
                not_controller(response.results.iter().map(|topic| topic.error_code))
            })
            .await?;
        let results = response.results.into_iter().map(|topic| {
            let name = topic.name.0.to_string();
            let message = topic.error_message.as_deref();
            let result = self.topic_result("CreatePartitions", &name, topic.error_code, message);
            (name, result)
        });
        Ok(results.collect())
    }

    fn topic_result(
        &self,
        api: &'static str,
        name: &str,
        code: i16,
        message: Option<&str>,
    ) -> Result<(), Error> {
        self.outcome(api, &format!("topic {name}"), code, message)
    }

    /// The one result of a call about one thing.
    pub(super) fn only<T>(
        &self,
        api: &'static str,
        subject: &str,
        results: Vec<(String, Result<T, Error>)>,
    ) -> Result<T, Error> {
        let found = results.into_iter().find(|(name, _)| name == subject);
        found.map_or_else(
            || {
                Err(Error::server(
                    &self.bootstrap(),
                    api,
                    Some(subject),
                    ResponseError::UnknownServerError,
                    Some("the answer leaves it out"),
                ))
            },
            |(_, result)| result,
        )
    }
}

/// Before KRaft a broker that has just lost the controller's role refuses each topic on its own.
fn not_controller(mut codes: impl Iterator<Item = i16>) -> Option<ResponseError> {
    codes
        .any(|code| code == ResponseError::NotController.code())
        .then_some(ResponseError::NotController)
}
