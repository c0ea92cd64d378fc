//! Configs of mirror topics: what is carried over when a mirror topic is created and from then on, and what stays the destination's own.
//!
//! [`classes`] says what a mirror topic should have. Here the mirrors that run are kept so.

mod classes;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use standfast_wire::admin::{ConfigChange, ConfigResource};
use standfast_wire::{Cluster, Error as WireError};
use tracing::{debug, info, warn};

use crate::calls;
use crate::description::PartitionState;
use crate::link::Inner;
use crate::refusal;
use crate::shard::Context;
use crate::status::{PartitionStatus, now_ms};
pub use classes::can_be_excluded;
pub(crate) use classes::{
    Configs, FORCED, MAX_MESSAGE_BYTES, at_creation, is_ours, is_prefixed_mirror, unfit,
};
use classes::{Desired, Reverted, by_hand, plan};

/// Topics asked about or changed by one request.
const TOPICS_PER_REQUEST: usize = 100;

/// A new mirror is looked at soon after the start.
const FIRST_LOOK: Duration = Duration::from_secs(1);

/// What became of the configs of one mirror topic.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigSyncDescription {
    /// Milliseconds since 1970 when the mirror's configs were last found or brought in line with the source's.
    pub last_success_ms: Option<i64>,
    /// Manual changes on the mirror that were taken back in this run.
    pub reverted_edits: u64,
    /// The last of them: the config and the value that it had.
    pub last_reverted: Option<String>,
    /// Why the configs are not in line.
    pub error: Option<String>,
}

/// Looks at the configs of all mirrors that run at every `metadata_refresh`.
pub(crate) async fn keep(inner: Arc<Inner>, context: Context) {
    let mut before = HashMap::new();
    let mut wait = FIRST_LOOK;
    loop {
        tokio::time::sleep(wait.min(inner.live().metadata_refresh)).await;
        wait = Duration::MAX;
        if inner.options.lifecycle.is_paused() || !inner.share.has_duties() {
            continue;
        }
        let topics = running(&inner);
        before.retain(|name, _| topics.contains(name));
        sync(
            &inner,
            &context.source,
            &context.destination,
            &topics,
            &mut before,
        )
        .await;
    }
}

/// Mirrors whose log is the source's for all that is known. The configs of a topic that is FAILED may be those of something else.
fn running(inner: &Inner) -> Vec<Arc<str>> {
    let topics = inner.topics();
    let runs = |p: &PartitionStatus| match p.state() {
        PartitionState::Active | PartitionState::Seeding => true,
        PartitionState::Elsewhere => p.trouble().is_none(),
        _ => false,
    };
    topics
        .iter()
        .filter(|t| inner.rest_of(&t.name()).is_none() && !t.has_failed() && !t.held)
        .filter(|t| t.partitions().iter().any(|p| runs(p)))
        .map(crate::topics::Topic::name)
        .collect()
}

/// Brings the configs of some mirrors in line with their sources'. `before`: how each should have been at the last look; what differs from that without
/// the source having changed was changed by hand. Answers why a topic is not in line.
pub(crate) async fn sync(
    inner: &Inner,
    source: &Cluster,
    destination: &Cluster,
    topics: &[Arc<str>],
    before: &mut HashMap<Arc<str>, Desired>,
) -> HashMap<Arc<str>, String> {
    let mut errors = HashMap::new();
    for chunk in topics.chunks(TOPICS_PER_REQUEST) {
        for (topic, outcome) in sync_some(inner, source, destination, chunk, before).await {
            note(inner, &topic, &outcome);
            if let Err(text) = outcome {
                errors.insert(topic, text);
            }
        }
    }
    errors
}

async fn sync_some(
    inner: &Inner,
    source: &Cluster,
    destination: &Cluster,
    topics: &[Arc<str>],
    before: &mut HashMap<Arc<str>, Desired>,
) -> HashMap<Arc<str>, Result<Reverted, String>> {
    let side = |name: &'static str| move |e: &WireError| format!("{name}: {}", refusal::text(e));
    let (theirs, ours) = tokio::join!(
        calls::configs_of_topics(source, topics),
        calls::configs_of_topics(destination, topics)
    );
    let (mut theirs, mut ours) = match (theirs, ours) {
        (Ok(theirs), Ok(ours)) => (theirs, ours),
        (Err(error), _) => return all_failed(topics, &side("source")(&error)),
        (_, Err(error)) => return all_failed(topics, &side("destination")(&error)),
    };
    let metadata = destination.metadata();
    let excluded = inner.live().config_exclude.clone();
    let (mut outcomes, mut changes, mut plans) = (HashMap::new(), Vec::new(), HashMap::new());
    for topic in topics {
        let (theirs, ours) = match (theirs.remove(topic), ours.remove(topic)) {
            (Some(Ok(theirs)), Some(Ok(ours))) => (theirs, ours),
            (Some(Err(error)), _) => {
                outcomes.insert(Arc::clone(topic), Err(side("source")(&error)));
                continue;
            }
            (_, Some(Err(error))) => {
                outcomes.insert(Arc::clone(topic), Err(side("destination")(&error)));
                continue;
            }
            _ => {
                let text = "a cluster left the topic out of its answer".to_owned();
                outcomes.insert(Arc::clone(topic), Err(text));
                continue;
            }
        };
        let replicas = metadata.topics.get(topic).and_then(|t| {
            let most = t.partitions.values().map(|p| p.replicas.len()).max()?;
            i16::try_from(most).ok()
        });
        let replicas = replicas.unwrap_or(i16::MAX);
        let prefix = &inner.options.prefix;
        let (wrong, desired) = plan(&theirs, &ours, &excluded, replicas, prefix);
        let by_hand = by_hand(&wrong, &ours, &desired, before.get(topic));
        if wrong.is_empty() {
            before.insert(Arc::clone(topic), desired);
            outcomes.insert(Arc::clone(topic), Ok(Vec::new()));
        } else {
            changes.push((ConfigResource::Topic(topic.to_string()), wrong));
            plans.insert(Arc::clone(topic), (desired, by_hand));
        }
    }
    if inner.stop.is_cancelled() || changes.is_empty() {
        return outcomes;
    }
    // Stopped meanwhile: its configs are the destination's own.
    changes.retain(|(resource, _)| match resource {
        ConfigResource::Topic(name) => inner.rest_of(name).is_none(),
        ConfigResource::Broker(_) => false,
    });
    for (topic, changed) in change(destination, changes).await {
        let Some((desired, by_hand)) = plans.remove(&topic) else {
            continue;
        };
        let outcome = changed.map(|()| by_hand);
        if outcome.is_ok() {
            before.insert(Arc::clone(&topic), desired);
        }
        outcomes.insert(
            topic,
            outcome.map_err(|text| format!("destination: {text}")),
        );
    }
    outcomes
}

fn all_failed(topics: &[Arc<str>], text: &str) -> HashMap<Arc<str>, Result<Reverted, String>> {
    let failed = topics.iter().map(|t| (Arc::clone(t), Err(text.to_owned())));
    failed.collect()
}

/// Changes configs; where a topic is refused, each of its changes alone, so that one that may not be does not keep the others from it.
async fn change(
    destination: &Cluster,
    changes: Vec<(ConfigResource, Vec<(String, ConfigChange)>)>,
) -> Vec<(Arc<str>, Result<(), String>)> {
    let answered = match destination.incremental_alter_configs(&changes).await {
        Ok(answered) => answered,
        Err(error) => {
            let text = refusal::text(&error);
            let failed = changes.iter().filter_map(|(r, _)| name_of(r));
            return failed.map(|name| (name, Err(text.clone()))).collect();
        }
    };
    let mut results = Vec::new();
    for (resource, result) in answered {
        let Some(name) = name_of(&resource) else {
            continue;
        };
        let wanted = changes.iter().find(|(r, _)| *r == resource);
        let wanted = wanted.map_or(&[][..], |(_, wanted)| wanted.as_slice());
        let result = match result {
            Ok(()) => {
                info!(topic = %name, changes = ?wanted, "configs of the mirror topic brought in line with the source");
                Ok(())
            }
            Err(error)
                if wanted.len() == 1 || error.code().is_none_or(refusal::is_authorization) =>
            {
                Err(refusal::text(&error))
            }
            Err(_) => one_by_one(destination, &resource, wanted).await,
        };
        results.push((name, result));
    }
    results
}

async fn one_by_one(
    destination: &Cluster,
    resource: &ConfigResource,
    changes: &[(String, ConfigChange)],
) -> Result<(), String> {
    let mut refused = Vec::new();
    for one in changes {
        let asked = [(resource.clone(), vec![one.clone()])];
        let answer = destination.incremental_alter_configs(&asked).await;
        let result =
            answer.and_then(|results| results.into_iter().try_for_each(|(_, result)| result));
        if let Err(error) = result {
            refused.push(format!("{}: {}", one.0, refusal::text(&error)));
        }
    }
    if refused.is_empty() {
        Ok(())
    } else {
        Err(refused.join("; "))
    }
}

fn name_of(resource: &ConfigResource) -> Option<Arc<str>> {
    match resource {
        ConfigResource::Topic(name) => Some(Arc::from(name.as_str())),
        ConfigResource::Broker(_) => None,
    }
}

fn note(inner: &Inner, topic: &str, outcome: &Result<Reverted, String>) {
    let mut topics = inner.topics();
    let Some(known) = topics.iter_mut().find(|t| *t.name() == *topic) else {
        return;
    };
    let description = &mut known.config_sync;
    match outcome {
        Ok(reverted) => {
            description.last_success_ms = Some(now_ms());
            description.error = None;
            if let Some(last) = reverted.last() {
                warn!(link = %inner.options.name, topic, found = ?reverted, "configs of the mirror topic were changed by hand, taken back");
                description.reverted_edits += reverted.len() as u64;
                description.last_reverted = Some(last.clone());
            }
        }
        Err(text) => {
            if description.error.as_ref() == Some(text) {
                debug!(link = %inner.options.name, topic, reason = %text, "configs not carried over");
            } else {
                warn!(link = %inner.options.name, topic, reason = %text, "configs not carried over");
            }
            description.error = Some(text.clone());
        }
    }
}
