//! Configs of topics and brokers.

use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::incremental_alter_configs_request::{
    AlterConfigsResource, AlterableConfig,
};
use kafka_protocol::messages::{DescribeConfigsRequest, IncrementalAlterConfigsRequest};
use kafka_protocol::protocol::Request;

use super::str_bytes;
use crate::cluster::Cluster;
use crate::error::Error;
use crate::metadata::BrokerId;

/// What has configs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ConfigResource {
    /// A topic.
    Topic(String),
    /// A broker; it is asked itself.
    Broker(BrokerId),
}

impl ConfigResource {
    fn kind(&self) -> i8 {
        match self {
            Self::Topic(_) => 2,
            Self::Broker(_) => 4,
        }
    }

    /// The same with another name for a topic.
    fn named(&self, rename: impl Fn(&str) -> String) -> Self {
        match self {
            Self::Topic(name) => Self::Topic(rename(name)),
            Self::Broker(id) => Self::Broker(*id),
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Topic(name) => name.clone(),
            Self::Broker(id) => id.to_string(),
        }
    }
}

/// One config of a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigEntry {
    /// Config name.
    pub name: String,
    /// Value; `None` if the broker keeps it secret.
    pub value: Option<String>,
    /// Whether the value was set on the resource itself, not inherited from a default (source 1 for topics, 2 for brokers).
    pub is_override: bool,
    /// Whether the broker keeps the value secret.
    pub is_sensitive: bool,
    /// Whether it can be changed.
    pub read_only: bool,
}

/// A change to one config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigChange {
    /// Set the value.
    Set(String),
    /// Go back to the default.
    Delete,
    /// Add to a list.
    Append(String),
    /// Remove from a list.
    Subtract(String),
}

impl ConfigChange {
    fn encode(&self, name: &str) -> AlterableConfig {
        let (operation, value) = match self {
            Self::Set(value) => (0, Some(value)),
            Self::Delete => (1, None),
            Self::Append(value) => (2, Some(value)),
            Self::Subtract(value) => (3, Some(value)),
        };
        AlterableConfig::default()
            .with_name(str_bytes(name))
            .with_config_operation(operation)
            .with_value(value.map(|value| str_bytes(value)))
    }
}

/// One result per resource.
type PerResource<T> = Vec<(ConfigResource, Result<T, Error>)>;

impl Cluster {
    /// Lists the configs of resources, defaults included.
    ///
    /// # Errors
    /// A request failed; what is wrong with one resource is in its result.
    pub async fn describe_configs(
        &self,
        resources: &[ConfigResource],
    ) -> Result<PerResource<Vec<ConfigEntry>>, Error> {
        let mut results = Vec::with_capacity(resources.len());
        let prefix = self.prefix();
        let resources: Vec<ConfigResource> = resources
            .iter()
            .map(|r| r.named(|n| prefix.own_name(n).into()))
            .collect();
        for (target, resources) in by_target(&resources) {
            let described = resources.iter().map(|resource| {
                DescribeConfigsResource::default()
                    .with_resource_type(resource.kind())
                    .with_resource_name(str_bytes(&resource.name()))
                    .with_configuration_keys(None)
            });
            let request = DescribeConfigsRequest::default().with_resources(described.collect());
            let response = self.call_target(target, request).await?;
            for result in response.results {
                let Some(resource) = find(&resources, result.resource_type, &result.resource_name)
                else {
                    continue;
                };
                let outcome = self.resource_result(
                    "DescribeConfigs",
                    &resource,
                    result.error_code,
                    result.error_message.as_deref(),
                );
                let own_source = if matches!(resource, ConfigResource::Topic(_)) {
                    1
                } else {
                    2
                };
                let entries = result.configs.into_iter().map(|config| ConfigEntry {
                    name: config.name.to_string(),
                    value: config.value.map(|value| value.to_string()),
                    is_override: config.config_source == own_source,
                    is_sensitive: config.is_sensitive,
                    read_only: config.read_only,
                });
                let resource = resource.named(|name| prefix.add(name).to_string());
                results.push((resource, outcome.map(|()| entries.collect())));
            }
        }
        Ok(results)
    }

    /// Changes configs, leaving those not named as they are (KIP-339, Kafka 2.3).
    ///
    /// # Errors
    /// A request failed; what is wrong with one resource is in its result.
    pub async fn incremental_alter_configs(
        &self,
        changes: &[(ConfigResource, Vec<(String, ConfigChange)>)],
    ) -> Result<PerResource<()>, Error> {
        self.writable()?;
        let resources: Vec<ConfigResource> = changes
            .iter()
            .map(|(resource, _)| resource.clone())
            .collect();
        let mut results = Vec::with_capacity(resources.len());
        for (target, resources) in by_target(&resources) {
            let altered = changes
                .iter()
                .filter(|(resource, _)| resources.contains(resource));
            let altered = altered.map(|(resource, changes)| {
                AlterConfigsResource::default()
                    .with_resource_type(resource.kind())
                    .with_resource_name(str_bytes(&resource.name()))
                    .with_configs(
                        changes
                            .iter()
                            .map(|(name, change)| change.encode(name))
                            .collect(),
                    )
            });
            let request =
                IncrementalAlterConfigsRequest::default().with_resources(altered.collect());
            let response = self.call_target(target, request).await?;
            for result in response.responses {
                let Some(resource) = find(&resources, result.resource_type, &result.resource_name)
                else {
                    continue;
                };
                let message = result.error_message.as_deref();
                let outcome = self.resource_result(
                    "IncrementalAlterConfigs",
                    &resource,
                    result.error_code,
                    message,
                );
                results.push((resource, outcome));
            }
        }
        Ok(results)
    }

    async fn call_target<R: Request + Clone>(
        &self,
        target: Option<BrokerId>,
        request: R,
    ) -> Result<R::Response, Error> {
        match target {
            Some(broker) => self.connection(broker).await?.call(request).await,
            None => self.call_any(request, |_| None).await,
        }
    }

    fn resource_result(
        &self,
        api: &'static str,
        resource: &ConfigResource,
        code: i16,
        message: Option<&str>,
    ) -> Result<(), Error> {
        let subject = match resource {
            ConfigResource::Topic(name) => format!("topic {name}"),
            ConfigResource::Broker(id) => format!("broker {id}"),
        };
        self.outcome(api, &subject, code, message)
    }
}

/// A broker's configs are asked of that broker, topics' of any.
fn by_target(resources: &[ConfigResource]) -> Vec<(Option<BrokerId>, Vec<ConfigResource>)> {
    let mut targets: std::collections::BTreeMap<Option<BrokerId>, Vec<ConfigResource>> =
        Default::default();
    for resource in resources {
        let target = match resource {
            ConfigResource::Topic(_) => None,
            ConfigResource::Broker(id) => Some(*id),
        };
        targets.entry(target).or_default().push(resource.clone());
    }
    targets.into_iter().collect()
}

fn find(resources: &[ConfigResource], kind: i8, name: &str) -> Option<ConfigResource> {
    let found = resources
        .iter()
        .find(|resource| resource.kind() == kind && resource.name() == name);
    found.cloned()
}
