//! Finding the source's topics, and creating many mirror topics with few requests.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError};

use standfast_wire::admin::{ConfigResource, NewTopic};
use standfast_wire::{Cluster, Metadata, ResponseError, TopicMetadata};
use tracing::{debug, info};
use uuid::Uuid;

use crate::calls;
use crate::configs;
use crate::filters;
use crate::link::Inner;
use crate::live::Live;
use crate::names;
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
        let all = source.all_topics().await?;
        let left_out = left_out(inner, source, &all).await?;
        add_found(inner, &all, &left_out);
    }
    let names = inner.topic_names();
    let names: Vec<&str> = names.iter().map(|name| &**name).collect();
    source.topics(&names).await
}

/// Topics that the filters take and the link does not have yet.
fn new_topics(live: &Live, known: &[Topic], metadata: &Metadata) -> Vec<Arc<str>> {
    let known: HashSet<Arc<str>> = known.iter().map(Topic::name).collect();
    let there = metadata.topics.iter();
    there
        .filter(|(_, topic)| topic.error.is_none() && !topic.is_internal)
        .map(|(name, _)| name)
        .filter(|name| !known.contains(*name))
        .filter(|name| names::admits(&live.prefix, &live.topic_filters, name))
        .cloned()
        .collect()
}

/// Of the new topics those that are mirrors of a link with a prefix themselves, and that no filter takes by their whole name. Two links that take everything
/// and lead both ways would otherwise mirror `orders` as `eu.orders`, that as `us.eu.orders`, and so on without end. Only links with a prefix look.
async fn left_out(
    inner: &Inner,
    source: &Cluster,
    metadata: &Metadata,
) -> Result<HashSet<Arc<str>>, standfast_wire::Error> {
    let live = inner.live();
    if live.prefix.is_empty() {
        return Ok(HashSet::new());
    }
    let id = |name: &Arc<str>| metadata.topics.get(name).map(|t| t.topic_id);
    let mut new = new_topics(&live, &inner.topics(), metadata);
    new.retain(|name| !filters::names(&live.topic_filters, live.prefix.own_name(name)));
    let seen = || {
        inner
            .left_out
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    };
    let (mut left_out, unknown): (HashSet<Arc<str>>, Vec<Arc<str>>) = {
        let mut seen = seen();
        let there: HashSet<Uuid> = metadata.topics.values().map(|t| t.topic_id).collect();
        seen.retain(|topic| there.contains(topic));
        let (known, unknown): (Vec<_>, Vec<_>) = new
            .into_iter()
            .partition(|name| id(name).is_some_and(|id| seen.contains(&id)));
        (known.into_iter().collect(), unknown)
    };
    for chunk in unknown.chunks(TOPICS_PER_REQUEST) {
        for (name, configs) in calls::configs_of_topics(source, chunk).await? {
            // One whose configs may not be read is refused later, with the reason.
            if !configs.is_ok_and(|configs| configs::is_prefixed_mirror(&configs)) {
                continue;
            }
            info!(link = %inner.options.name, topic = live.prefix.own_name(&name), "this topic of the source is a mirror with a prefix itself, the filters leave it out unless one takes it by its whole name");
            seen().extend(id(&name).filter(|id| !id.is_nil()));
            left_out.insert(name);
        }
    }
    Ok(left_out)
}

fn add_found(inner: &Inner, metadata: &Metadata, left_out: &HashSet<Arc<str>>) {
    let mut topics = inner.topics();
    // Read under the lock: an update of the filters cannot come in between.
    let live = inner.live();
    let mut found = new_topics(&live, &topics, metadata);
    found.retain(|name| !left_out.contains(name));
    for name in &found {
        info!(link = %inner.options.name, topic = live.prefix.own_name(name), "a filter takes this topic of the source, mirroring it");
        topics.push(Topic::new(name, &live.prefix));
    }
    drop(topics);
    let found = found.iter().map(|name| &**name);
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
                &inner.options.prefix,
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
