//! Mirror topics: created with the source's partition count and configuration, grown when the source grows, refused when they are not ours to write.

mod topic;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use standfast_wire::{Error as WireError, TopicMetadata};
use tracing::info;
use uuid::Uuid;

use crate::description::{MirrorTopicError, PartitionState};
use crate::discover;
use crate::handle::LinkHandle;
use crate::link::Inner;
use crate::partition::{PartitionId, Side};
use crate::shard::{Command, Context, NewPartition};
use crate::status::PartitionStatus;
use crate::{calls, configs, names, refusal, start, startup};
pub(crate) use topic::{Topic, status, status_of};

/// How long what is in flight may take to be answered when a mirror is found running that should rest.
const REST_DRAIN: Duration = Duration::from_secs(5);

/// Looks at all topics at each metadata refresh; sooner while something is missing, and at once when a command changed what is wanted.
pub(crate) async fn keep(inner: Arc<Inner>, context: Context) {
    let mut wait = inner.options.backoff.min;
    loop {
        let settled = look(&inner, &context).await;
        let pause = if settled {
            wait = inner.options.backoff.min;
            inner.live().metadata_refresh
        } else {
            let pause = wait;
            wait = (wait * 2).min(inner.options.backoff.max);
            pause
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = inner.look_again.notified() => {}
        }
    }
}

/// Lets rest what should rest and does not: a command came while the topic was being looked at, or the state was changed while no engine ran.
pub(crate) async fn let_rest(inner: &Arc<Inner>) {
    let handle = LinkHandle {
        inner: Arc::clone(inner),
    };
    for state in [PartitionState::Paused, PartitionState::Stopped] {
        let awake: HashSet<Arc<str>> = inner
            .topics()
            .iter()
            .filter(|t| inner.rest_of(&t.name) == Some(state) && !t.rests(state))
            .map(Topic::name)
            .collect();
        if !awake.is_empty() {
            handle
                .rest(&awake, state, Instant::now() + REST_DRAIN)
                .await;
        }
    }
}

/// Looks at all topics once. `false`: something is missing, look again soon.
async fn look(inner: &Arc<Inner>, context: &Context) -> bool {
    let_rest(inner).await;
    let source = discover::source_topics(inner, &context.source).await;
    inner.set_trouble(Side::Source, source.as_ref().err());
    let names = inner.topic_names();
    let asked: Vec<&str> = names.iter().map(|name| &**name).collect();
    let destination = context.destination.topics(&asked).await;
    inner.set_trouble(Side::Destination, destination.as_ref().err());
    let (Ok(source), Ok(destination)) = (source, destination) else {
        return false;
    };
    let brokers = destination.brokers.len();
    let missing: Vec<(Arc<str>, TopicMetadata)> = names
        .iter()
        .filter(|name| rest_of(inner, name).is_none() && found(&destination, name).is_none())
        .filter_map(|name| Some((Arc::clone(name), found(&source, name)?)))
        .collect();
    let created = discover::create_missing(inner, context, &missing, brokers).await;
    let mut resumed = HashMap::new();
    let mut settled = true;
    for name in &names {
        let rest = rest_of(inner, name);
        if rest == Some(PartitionState::Stopped) {
            continue;
        }
        let Some(original) = found(&source, name) else {
            settled &= rest.is_some();
            let (error, text) = why_missing(inner, &source, name);
            with_topic(inner, name, |t| {
                if !t.failed {
                    t.set_trouble(error, text, false);
                }
            });
            continue;
        };
        if with_topic(inner, name, |t| t.failed) == Some(true) {
            continue;
        }
        if rest.is_none() && recreated(inner, name, original.topic_id).await {
            continue;
        }
        let mirror = found(&destination, name);
        let ensured = if rest.is_some() || created.contains(name) {
            Ok(())
        } else {
            ensure(inner, context, name, &original, mirror, brokers).await
        };
        let ensured = match ensured {
            Ok(()) if rest.is_none() && is_new(inner, name) => {
                let partitions = original.partitions.len();
                let decided = start::decide(inner, context, name, partitions).await;
                decided.map_err(Refused::from)
            }
            other => other,
        };
        match ensured {
            Ok(()) => {
                if begin(inner, name, &original, rest).await {
                    resumed.insert(Arc::clone(name), original.topic_id);
                }
            }
            Err(Refused::Later(error, text)) => {
                settled = false;
                with_topic(inner, name, |t| t.set_trouble(error, text, false));
            }
            Err(Refused::Fail(error, text)) => {
                fail_partitions(inner, name, error, &text).await;
                with_topic(inner, name, |t| t.set_trouble(error, text, true));
            }
        }
    }
    if !resumed.is_empty() {
        let resumed = Arc::new(resumed);
        for shard in inner.all_shards() {
            let _ = shard.send(Command::Resume(Arc::clone(&resumed))).await;
        }
    }
    settled
}

/// The state in which a topic should rest. What another agent restores is left alone: it may just be deleted there, and not yet created again.
fn rest_of(inner: &Inner, name: &str) -> Option<PartitionState> {
    let elsewhere = || inner.share.restored_elsewhere(name).is_some();
    let rest = inner.rest_of(name);
    rest.or_else(|| elsewhere().then_some(PartitionState::Paused))
}

fn found(metadata: &standfast_wire::Metadata, name: &str) -> Option<TopicMetadata> {
    metadata
        .topics
        .get(name)
        .filter(|t| t.error.is_none() && !t.partitions.is_empty())
        .cloned()
}

/// Why the source's answer does not describe the topic.
pub(crate) fn why_missing(
    inner: &Inner,
    source: &standfast_wire::Metadata,
    name: &str,
) -> (MirrorTopicError, String) {
    let own = inner.options.prefix.own_name(name);
    match source.topics.get(name).and_then(|topic| topic.error) {
        Some(code) if refusal::is_authorization(code) => (
            MirrorTopicError::AuthorizationError,
            format!(
                "AUTHORIZATION_ERROR: source: {code:?} for topic {own:?}: the link's user needs DESCRIBE and READ"
            ),
        ),
        _ => (
            MirrorTopicError::SourceTopicMayBeDeleted,
            format!("the source does not know topic {own:?}"),
        ),
    }
}

fn with_topic<T>(inner: &Inner, name: &str, change: impl FnOnce(&mut Topic) -> T) -> Option<T> {
    inner
        .topics()
        .iter_mut()
        .find(|t| &*t.name == name)
        .map(change)
}

/// Its partitions were not started yet, or all start again.
fn is_new(inner: &Inner, name: &str) -> bool {
    with_topic(inner, name, |t| t.again || t.partitions.is_empty()).unwrap_or(false)
}

async fn fail_partitions(inner: &Inner, name: &str, error: MirrorTopicError, text: &str) {
    for shard in inner.all_shards() {
        let _ = shard
            .send(Command::Fail {
                topic: name.into(),
                error,
                text: text.to_owned(),
            })
            .await;
    }
}

/// Whether the source topic is another one than the one that this run began with.
async fn recreated(inner: &Inner, name: &str, found: Uuid) -> bool {
    let before =
        with_topic(inner, name, |t| *t.source_topic_id.get_or_insert(found)).unwrap_or(found);
    if before == found {
        return false;
    }
    let own = inner.options.prefix.own_name(name);
    let text = startup::recreated(own, before, found);
    fail_partitions(inner, name, MirrorTopicError::SourceTopicIdChanged, &text).await;
    with_topic(inner, name, |t| {
        t.set_trouble(MirrorTopicError::SourceTopicIdChanged, text, true)
    });
    true
}

enum Refused {
    Later(MirrorTopicError, String),
    Fail(MirrorTopicError, String),
}

impl From<WireError> for Refused {
    fn from(error: WireError) -> Self {
        let kind = refusal::topic_error(&error, MirrorTopicError::Unknown);
        Self::Later(kind, refusal::text(&error))
    }
}

impl From<start::Unknown> for Refused {
    fn from(unknown: start::Unknown) -> Self {
        match unknown {
            start::Unknown::Source(error) => error.into(),
            start::Unknown::Offset(text) => Self::Later(
                MirrorTopicError::NoError,
                format!("it is not known yet where the mirror begins: {text}"),
            ),
        }
    }
}

async fn ensure(
    inner: &Inner,
    context: &Context,
    name: &str,
    original: &TopicMetadata,
    mirror: Option<TopicMetadata>,
    brokers: usize,
) -> Result<(), Refused> {
    let wanted = i32::try_from(original.partitions.len()).unwrap_or(i32::MAX);
    let Some(mirror) = mirror else {
        if let Some(why) = names::not_a_mirror(&inner.options.prefix, name) {
            return Err(Refused::Fail(MirrorTopicError::DestinationRefused, why));
        }
        has_duties(inner, name)?;
        let original_configs = calls::topic_configs(&context.source, name).await?;
        let factor = replication_factor(inner, original, brokers);
        calls::create_topic(
            &context.destination,
            name,
            wanted,
            factor,
            configs::at_creation(
                &original_configs,
                &inner.live().config_exclude,
                factor,
                &inner.options.prefix,
            ),
        )
        .await?;
        info!(
            topic = name,
            partitions = wanted,
            replication_factor = factor,
            "mirror topic created"
        );
        return Ok(());
    };
    let found = i32::try_from(mirror.partitions.len()).unwrap_or(i32::MAX);
    let known = with_topic(inner, name, |t| t.partitions.len()).unwrap_or(0);
    if known > 0 && found == wanted {
        return Ok(());
    }
    let found_configs = calls::topic_configs(&context.destination, name).await?;
    if let Some(text) = configs::unfit(name, &found_configs) {
        return Err(Refused::Fail(MirrorTopicError::DestinationRefused, text));
    }
    if found == wanted {
        return Ok(());
    }
    if found < wanted && configs::is_ours(&found_configs) {
        has_duties(inner, name)?;
        calls::grow_topic(&context.destination, name, wanted).await?;
        info!(
            topic = name,
            from = found,
            to = wanted,
            "mirror topic grown with the source"
        );
        return Ok(());
    }
    let hint = if found > wanted {
        "delete the mirror topic"
    } else {
        "it was not created by Standfast; delete it, or give it the same count"
    };
    Err(Refused::Fail(
        MirrorTopicError::SourcePartitionsDecreased,
        format!(
            "topic {name:?} has {wanted} partitions on the source and {found} on the destination; {hint}"
        ),
    ))
}

/// Topics are created and grown by one of the agents that share a link.
fn has_duties(inner: &Inner, name: &str) -> Result<(), Refused> {
    if inner.share.has_duties() {
        return Ok(());
    }
    Err(Refused::Later(
        MirrorTopicError::NoError,
        format!("topic {name:?} on the destination waits for the agent that has the link's duties"),
    ))
}

pub(crate) fn replication_factor(inner: &Inner, original: &TopicMetadata, brokers: usize) -> i16 {
    let source = original
        .partitions
        .values()
        .map(|p| p.replicas.len())
        .max()
        .unwrap_or(1)
        .max(1);
    inner
        .live()
        .replication_factor
        .unwrap_or_else(|| i16::try_from(source.min(brokers.max(1))).unwrap_or(1))
}

/// Hands partitions that are not known yet to their shards, to mirror or to rest there. `true`: others are to be resumed.
async fn begin(
    inner: &Inner,
    name: &str,
    original: &TopicMetadata,
    rest: Option<PartitionState>,
) -> bool {
    let mut new = Vec::new();
    let resume;
    {
        let mut topics = inner.topics();
        let mut index: usize = topics.iter().map(|t| t.partitions.len()).sum();
        let Some(topic) = topics.iter_mut().find(|t| &*t.name == name) else {
            return false;
        };
        if topic.held {
            return false;
        }
        let resting = |p: &Arc<PartitionStatus>| {
            matches!(
                p.state(),
                PartitionState::Paused | PartitionState::Stopped | PartitionState::Elsewhere
            )
        };
        resume = rest.is_none() && (topic.again || topic.partitions.iter().any(resting));
        if rest.is_none() {
            (topic.trouble, topic.failed, topic.again) = (None, false, false);
        }
        while topic.partitions.len() < original.partitions.len() {
            let status = Arc::new(PartitionStatus::new());
            let partition = i32::try_from(topic.partitions.len()).unwrap_or(i32::MAX);
            topic.partitions.push(Arc::clone(&status));
            let id = PartitionId {
                topic: topic.name(),
                partition,
            };
            let elsewhere = !inner.share.holds(&id);
            new.push((
                index,
                NewPartition {
                    id,
                    source_topic_id: original.topic_id,
                    status,
                    rest: rest.or_else(|| elsewhere.then_some(PartitionState::Elsewhere)),
                },
            ));
            index += 1;
        }
    }
    for (index, partition) in new {
        if let Some(shard) = inner.shard(index) {
            let _ = shard.send(Command::Add(vec![partition])).await;
        }
    }
    resume
}
