//! A topic on the returned cluster is deleted and created again, or made fit to be a mirror.

use std::sync::Arc;
use std::time::{Duration, Instant};

use standfast_wire::admin::{ConfigChange, ConfigResource, NewTopic};
use standfast_wire::{Cluster, ResponseError, TopicMetadata};
use tracing::info;
use uuid::Uuid;

use super::setup::{Failed, Survey, at, found};
use super::{RestoreState, TopicShape};
use crate::handle::LinkHandle;
use crate::{calls, configs};

/// How long a deleted topic may take to be gone, and a created one to be there.
const RECREATED_WITHIN: Duration = Duration::from_secs(60);
/// How long changed configs may take to be seen.
const SEEN_WITHIN: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);

/// Deletes the topic and creates it again, with its own configuration and replication factor and the source's number of partitions. An engine that is lost in between
/// leaves both in the kept state.
pub(super) async fn run(
    link: &LinkHandle,
    destination: &Cluster,
    topic: &Arc<str>,
    state: &mut RestoreState,
    survey: &Survey,
    mirror: &TopicMetadata,
) -> Result<(), Failed> {
    let factor = mirror.partitions.values().map(|p| p.replicas.len()).max();
    let factor = i16::try_from(factor.unwrap_or(1)).unwrap_or(1);
    let shape = TopicShape {
        configs: configs::at_creation(&survey.configs, &[], factor, &link.inner.options.prefix),
        replication_factor: factor,
    };
    state.recreate = Some(shape.clone());
    link.lifecycle().set_restore([&**topic], state);
    let safe = link.lifecycle().kept().await;
    let deleted = match safe {
        Ok(()) => delete(destination, topic, mirror.topic_id).await,
        Err(text) => Err(text.into()),
    };
    if let Err(failed) = deleted {
        if !failed.topic_is_gone {
            state.recreate = None;
        }
        return Err(failed);
    }
    let partitions = survey.source_partitions;
    create(
        destination,
        topic,
        &shape,
        partitions,
        Some(mirror.topic_id),
    )
    .await
}

async fn delete(destination: &Cluster, topic: &Arc<str>, id: Uuid) -> Result<(), Failed> {
    let deleted = destination.delete_topics(&[topic]).await;
    let deleted = deleted.and_then(|each| each.into_iter().try_for_each(|(_, result)| result));
    let Err(error) = deleted else { return Ok(()) };
    // Refused, or not answered: only in the first case it is still there for certain.
    let refused = error.code().is_some() && !error.is_retriable();
    let still_there = match destination.topics(&[topic]).await {
        Ok(metadata) => found(&metadata, topic).is_some_and(|t| t.topic_id == id),
        Err(_) => false,
    };
    Err(Failed {
        text: format!("destination: the topic was not deleted: {error}"),
        topic_is_gone: !refused && !still_there,
    })
}

/// Creates the topic and waits until it is seen. `before`: the id of the one that was deleted.
pub(super) async fn create(
    destination: &Cluster,
    topic: &Arc<str>,
    shape: &TopicShape,
    partitions: i32,
    before: Option<Uuid>,
) -> Result<(), Failed> {
    let gone = |text: String| Failed {
        text,
        topic_is_gone: true,
    };
    let new = NewTopic {
        name: topic.to_string(),
        partitions,
        replication_factor: shape.replication_factor,
        configs: shape.configs.clone(),
    };
    let began = Instant::now();
    loop {
        match destination.create_topic(new.clone()).await {
            Ok(_) => break,
            // Not gone everywhere yet.
            Err(error)
                if error.code() == Some(ResponseError::TopicAlreadyExists)
                    && began.elapsed() < RECREATED_WITHIN =>
            {
                tokio::time::sleep(POLL).await;
            }
            Err(error) => {
                return Err(gone(format!(
                    "destination: the topic is deleted and could not be created again: {error}"
                )));
            }
        }
    }
    destination.forget_topic(topic);
    loop {
        let metadata = destination.topics(&[topic]).await;
        let metadata = metadata.map_err(at("destination")).map_err(gone)?;
        let there =
            found(&metadata, topic).filter(|t| Some(t.topic_id) != before || t.topic_id.is_nil());
        if there.is_some() {
            return Ok(());
        }
        if began.elapsed() > RECREATED_WITHIN {
            return Err(gone(format!(
                "destination: topic {topic:?} was created again and is not seen within {RECREATED_WITHIN:?}"
            )));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Sets what byte identity needs of a mirror (see [`configs::FORCED`]) on a topic that applications wrote to until now.
pub(super) async fn fit(destination: &Cluster, topic: &Arc<str>) -> Result<(), String> {
    let changes = configs::FORCED.map(|(name, value)| {
        let change = ConfigChange::Set(value.to_owned());
        (name.to_owned(), change)
    });
    let asked = [(ConfigResource::Topic(topic.to_string()), changes.to_vec())];
    let answered = destination.incremental_alter_configs(&asked).await;
    let changed = answered.and_then(|all| all.into_iter().try_for_each(|(_, result)| result));
    changed.map_err(|error| {
        let names = configs::FORCED.map(|(name, _)| name).join(", ");
        format!("destination: {names} of topic {topic:?} could not be set as a mirror needs it: {error}; set them, then restore again")
    })?;
    info!(topic = %topic, "configs set that every mirror needs");
    let began = Instant::now();
    while began.elapsed() < SEEN_WITHIN {
        let now = calls::topic_configs(destination, topic)
            .await
            .map_err(at("destination"))?;
        if configs::unfit(topic, &now).is_none() {
            break;
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}
