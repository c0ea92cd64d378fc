//! Finding the source's topics, and creating many mirror topics with few requests.

use std::collections::HashSet;
use std::sync::Arc;

use standfast_wire::admin::{ConfigResource, NewTopic};
use standfast_wire::{Cluster, Metadata, ResponseError, TopicMetadata};
use tracing::{debug, info};

use crate::calls;
use crate::configs;
use crate::filters;
use crate::link::Inner;
use crate::shard::Context;
use crate::topics::{self, Topic};

/// Topics described or created by one request.
const TOPICS_PER_REQUEST: usize = 100;

/// The source's metadata of all mirrored topics; those that the filters newly find are added to the link.
pub(crate) async fn source_topics(
    inner: &Inner,
    source: &Cluster,
) -> Result<Arc<Metadata>, standfast_wire::Error> {
    if !inner.live().topic_filters.is_empty() && !inner.options.lifecycle.is_paused() {
        add_found(inner, &source.all_topics().await?);
    }
    let names = inner.topic_names();
    let names: Vec<&str> = names.iter().map(|name| &**name).collect();
    source.topics(&names).await
}

fn add_found(inner: &Inner, metadata: &Metadata) {
    let mut topics = inner.topics();
    // Read under the lock: an update of the filters cannot come in between.
    let live = inner.live();
    let known: HashSet<Arc<str>> = topics.iter().map(Topic::name).collect();
    let found: Vec<&Arc<str>> = metadata
        .topics
        .iter()
        .filter(|(_, topic)| topic.error.is_none() && !topic.is_internal)
        .map(|(name, _)| name)
        .filter(|name| !known.contains(*name))
        .filter(|name| filters::admits_topic(&live.topic_filters, name))
        .collect();
    for name in &found {
        info!(link = %inner.options.name, topic = %name, "a filter takes this topic of the source, mirroring it");
        topics.push(Topic::new(name));
    }
    drop(topics);
    let found = found.into_iter().map(|name| &**name);
    inner.options.lifecycle.note(found, false);
}

/// Creates mirror topics. What could not be created is left to the caller, who tries each alone and says why it is refused.
pub(crate) async fn create_missing(
    inner: &Inner,
    context: &Context,
    missing: &[(Arc<str>, TopicMetadata)],
    brokers: usize,
) -> HashSet<Arc<str>> {
    let mut created = HashSet::new();
    if !inner.share.has_duties() {
        return created;
    }
    for chunk in missing.chunks(TOPICS_PER_REQUEST) {
        match create(inner, context, chunk, brokers).await {
            Ok(names) => created.extend(names),
            Err(error) => {
                debug!(link = %inner.options.name, %error, "mirror topics not created together");
            }
        }
    }
    created
}

async fn create(
    inner: &Inner,
    context: &Context,
    missing: &[(Arc<str>, TopicMetadata)],
    brokers: usize,
) -> Result<Vec<Arc<str>>, standfast_wire::Error> {
    let resources: Vec<_> = missing
        .iter()
        .map(|(name, _)| ConfigResource::Topic(name.to_string()))
        .collect();
    let described = context.source.describe_configs(&resources).await?;
    let mut new = Vec::new();
    for (resource, configs) in described {
        let ConfigResource::Topic(name) = resource else {
            continue;
        };
        let original = missing.iter().find(|(n, _)| **n == *name);
        let (Some((_, original)), Ok(configs)) = (original, configs) else {
            continue;
        };
        let configs = calls::by_name(configs);
        let replication_factor = topics::replication_factor(inner, original, brokers);
        new.push(NewTopic {
            name,
            partitions: i32::try_from(original.partitions.len()).unwrap_or(i32::MAX),
            replication_factor,
            configs: configs::at_creation(
                &configs,
                &inner.live().config_exclude,
                replication_factor,
            ),
        });
    }
    let results = context.destination.create_topics(&new, false).await?;
    let created: Vec<Arc<str>> = results
        .into_iter()
        .filter(|(_, result)| match result {
            Ok(_) => true,
            // By another engine of the link.
            Err(error) => error.code() == Some(ResponseError::TopicAlreadyExists),
        })
        .map(|(name, _)| Arc::from(name))
        .collect();
    info!(link = %inner.options.name, topics = created.len(), "mirror topics created");
    Ok(created)
}
