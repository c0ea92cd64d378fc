//! Mirror topics: created with the source's partition count and configuration, grown when the source grows, refused when they are not ours to write.

use std::collections::BTreeMap;
use std::sync::Arc;

use standfast_wire::{Error as WireError, TopicMetadata};
use tracing::{error, info, warn};
use uuid::Uuid;

use crate::calls;
use crate::description::{MirrorDescription, MirrorStatus, MirrorTopicError, PartitionState};
use crate::link::Inner;
use crate::partition::{PartitionId, Side};
use crate::shard::{Command, Context, NewPartition};
use crate::status::{PartitionStatus, now_ms};

/// Set on every mirror topic, whatever the source has: byte identity needs them.
/// A broker must not compress again, must keep the producer's timestamps, and must take records however old or (by a wrong clock) new they are.
const FORCED: [(&str, &str); 4] = [
    ("compression.type", "producer"),
    ("message.timestamp.type", "CreateTime"),
    ("message.timestamp.before.max.ms", "9223372036854775807"),
    ("message.timestamp.after.max.ms", "9223372036854775807"),
];

/// Never carried over: they name brokers or services of the source.
const NEVER: [&str; 3] = [
    "leader.replication.throttled.replicas",
    "follower.replication.throttled.replicas",
    "remote.",
];

/// Carried over even if it is only the source broker's default, so that every batch fits.
const MAX_MESSAGE_BYTES: &str = "max.message.bytes";
const MIN_INSYNC: &str = "min.insync.replicas";

/// Configuration that shows that this link (or another Standfast link) created the topic.
const OURS: &str = "message.timestamp.after.max.ms";

/// One mirror topic as the control plane knows it.
#[derive(Debug)]
pub(crate) struct Topic {
    name: Arc<str>,
    source_topic_id: Option<Uuid>,
    partitions: Vec<Arc<PartitionStatus>>,
    trouble: Option<(MirrorTopicError, String)>,
    failed: bool,
    state_time_ms: i64,
}

impl Topic {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            source_topic_id: None,
            partitions: Vec::new(),
            trouble: None,
            failed: false,
            state_time_ms: now_ms(),
        }
    }

    pub(crate) fn name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }

    pub(crate) fn partitions(&self) -> &[Arc<PartitionStatus>] {
        &self.partitions
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = PartitionId> {
        let name = self.name();
        (0..self.partitions.len()).map(move |n| PartitionId {
            topic: Arc::clone(&name),
            partition: i32::try_from(n).unwrap_or(i32::MAX),
        })
    }

    fn set_trouble(&mut self, error: MirrorTopicError, text: String, failed: bool) {
        if self
            .trouble
            .as_ref()
            .is_none_or(|(_, before)| *before != text)
        {
            self.state_time_ms = now_ms();
            if failed {
                error!(topic = %self.name, reason = %text, "mirror topic FAILED");
            } else {
                warn!(topic = %self.name, reason = %text, "mirror topic waits");
            }
        }
        (self.trouble, self.failed) = (Some((error, text)), failed);
    }

    fn status(&self) -> MirrorStatus {
        let states: Vec<PartitionState> = self.partitions.iter().map(|p| p.state()).collect();
        let any = |wanted: &[PartitionState]| states.iter().any(|s| wanted.contains(s));
        if self.failed || any(&[PartitionState::Failed]) {
            MirrorStatus::Failed
        } else if any(&[PartitionState::Stopped]) {
            MirrorStatus::Stopped
        } else if any(&[PartitionState::SourceUnavailable]) {
            MirrorStatus::SourceUnavailable
        } else if states.is_empty() || any(&[PartitionState::Starting, PartitionState::Seeding]) {
            MirrorStatus::PendingMirror
        } else {
            MirrorStatus::Active
        }
    }

    pub(crate) fn describe(&self, link: &str) -> MirrorDescription {
        let partition_error = self
            .partitions
            .iter()
            .filter_map(|p| p.trouble())
            .map(|(error, _)| error)
            .find(|e| *e != MirrorTopicError::NoError);
        let newest_state = self
            .partitions
            .iter()
            .map(|p| p.state_time_ms())
            .max()
            .unwrap_or(0);
        MirrorDescription {
            link_name: link.to_owned(),
            mirror_topic_name: self.name.to_string(),
            source_topic_name: self.name.to_string(),
            num_partitions: i32::try_from(self.partitions.len()).unwrap_or(i32::MAX),
            mirror_status: self.status(),
            mirror_topic_error: self
                .trouble
                .as_ref()
                .map(|(e, _)| *e)
                .or(partition_error)
                .unwrap_or_default(),
            error: self.trouble.as_ref().map(|(_, text)| text.clone()),
            state_time_ms: newest_state.max(self.state_time_ms),
            mirror_lags: self
                .partitions
                .iter()
                .zip(0..)
                .map(|(p, n)| p.describe(n))
                .collect(),
        }
    }
}

/// The published state of a partition; an empty one if the link never started it.
pub(crate) fn status(topics: &[Topic], id: &PartitionId) -> Arc<PartitionStatus> {
    let known = topics
        .iter()
        .find(|t| t.name == id.topic)
        .and_then(|t| t.partitions.get(usize::try_from(id.partition).ok()?));
    known.map_or_else(|| Arc::new(PartitionStatus::new()), Arc::clone)
}

/// Looks at all topics at each metadata refresh; sooner while something is missing.
pub(crate) async fn keep(inner: Arc<Inner>, context: Context) {
    let mut wait = inner.options.backoff.min;
    loop {
        let settled = look(&inner, &context).await;
        if settled {
            wait = inner.options.backoff.min;
            tokio::time::sleep(inner.options.metadata_refresh).await;
        } else {
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(inner.options.backoff.max);
        }
    }
}

/// Looks at all topics once. `false`: something is missing, look again soon.
async fn look(inner: &Inner, context: &Context) -> bool {
    let names: Vec<&str> = inner.options.topics.iter().map(String::as_str).collect();
    let source = context.source.topics(&names).await;
    inner.set_trouble(Side::Source, source.as_ref().err());
    let destination = context.destination.topics(&names).await;
    inner.set_trouble(Side::Destination, destination.as_ref().err());
    let (Ok(source), Ok(destination)) = (source, destination) else {
        return false;
    };
    let brokers = destination.brokers.len();
    let mut settled = true;
    for name in names {
        let found = |metadata: &standfast_wire::Metadata| {
            metadata
                .topics
                .get(name)
                .filter(|t| t.error.is_none() && !t.partitions.is_empty())
                .cloned()
        };
        let Some(original) = found(&source) else {
            settled = false;
            with_topic(inner, name, |t| {
                if !t.failed {
                    t.set_trouble(
                        MirrorTopicError::SourceTopicMayBeDeleted,
                        format!("the source does not know topic {name:?}"),
                        false,
                    );
                }
            });
            continue;
        };
        if with_topic(inner, name, |t| t.failed) == Some(true) {
            continue;
        }
        if recreated(inner, name, original.topic_id).await {
            continue;
        }
        match ensure(
            inner,
            context,
            name,
            &original,
            found(&destination),
            brokers,
        )
        .await
        {
            Ok(()) => begin(inner, name, &original).await,
            Err(Refused::Later(text)) => {
                settled = false;
                with_topic(inner, name, |t| {
                    t.set_trouble(MirrorTopicError::Unknown, text, false)
                });
            }
            Err(Refused::Fail(error, text)) => {
                fail_partitions(inner, name, error, &text).await;
                with_topic(inner, name, |t| t.set_trouble(error, text, true));
            }
        }
    }
    settled
}

fn with_topic<T>(inner: &Inner, name: &str, change: impl FnOnce(&mut Topic) -> T) -> Option<T> {
    inner
        .topics()
        .iter_mut()
        .find(|t| &*t.name == name)
        .map(change)
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
    let text = format!(
        "topic {name:?} was deleted and created again on the source (topic id {before} became {found}); its records are not those of this mirror"
    );
    fail_partitions(inner, name, MirrorTopicError::SourceTopicIdChanged, &text).await;
    with_topic(inner, name, |t| {
        t.set_trouble(MirrorTopicError::SourceTopicIdChanged, text, true)
    });
    true
}

enum Refused {
    Later(String),
    Fail(MirrorTopicError, String),
}

impl From<WireError> for Refused {
    fn from(error: WireError) -> Self {
        Self::Later(error.to_string())
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
        let configs = calls::topic_configs(&context.source, name).await?;
        let factor = replication_factor(inner, original, brokers);
        calls::create_topic(
            &context.destination,
            name,
            wanted,
            factor,
            mirror_configs(&configs, factor),
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
    let configs = calls::topic_configs(&context.destination, name).await?;
    check_configs(name, &configs)?;
    if found == wanted {
        return Ok(());
    }
    let ours = configs
        .get(OURS)
        .is_some_and(|c| c.is_topic_level && c.value.as_deref() == Some("9223372036854775807"));
    if found < wanted && ours {
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

fn replication_factor(inner: &Inner, original: &TopicMetadata, brokers: usize) -> i16 {
    let source = original
        .partitions
        .values()
        .map(|p| p.replicas.len())
        .max()
        .unwrap_or(1)
        .max(1);
    inner
        .options
        .replication_factor
        .unwrap_or_else(|| i16::try_from(source.min(brokers.max(1))).unwrap_or(1))
}

/// The configuration of a mirror topic: what is set on the source topic itself, the batch size limit, and what byte identity needs.
fn mirror_configs(
    source: &BTreeMap<String, calls::ConfigValue>,
    factor: i16,
) -> BTreeMap<String, String> {
    let mut configs: BTreeMap<String, String> = source
        .iter()
        .filter(|(name, config)| config.is_topic_level || *name == MAX_MESSAGE_BYTES)
        .filter(|(name, _)| !NEVER.iter().any(|never| name.starts_with(never)))
        .filter_map(|(name, config)| Some((name.clone(), config.value.clone()?)))
        .collect();
    if let Some(min) = configs.get_mut(MIN_INSYNC)
        && min.parse::<i16>().is_ok_and(|min| min > factor)
    {
        *min = factor.to_string();
    }
    configs.extend(FORCED.map(|(name, value)| (name.to_owned(), value.to_owned())));
    configs
}

/// A topic that existed before must not change what is written to it.
fn check_configs(
    name: &str,
    configs: &BTreeMap<String, calls::ConfigValue>,
) -> Result<(), Refused> {
    for (config, needed) in FORCED.iter().take(2) {
        if let Some(found) = configs.get(*config).and_then(|c| c.value.as_deref())
            && found != *needed
        {
            let text = format!(
                "topic {name:?} on the destination has {config}={found}; a mirror needs {config}={needed}"
            );
            return Err(Refused::Fail(MirrorTopicError::DestinationRefused, text));
        }
    }
    Ok(())
}

/// Hands partitions that are not mirrored yet to their shards.
async fn begin(inner: &Inner, name: &str, original: &TopicMetadata) {
    let mut new = Vec::new();
    {
        let mut topics = inner.topics();
        let mut index: usize = topics.iter().map(|t| t.partitions.len()).sum();
        let Some(topic) = topics.iter_mut().find(|t| &*t.name == name) else {
            return;
        };
        (topic.trouble, topic.failed) = (None, false);
        while topic.partitions.len() < original.partitions.len() {
            let status = Arc::new(PartitionStatus::new());
            let partition = i32::try_from(topic.partitions.len()).unwrap_or(i32::MAX);
            topic.partitions.push(Arc::clone(&status));
            let id = PartitionId {
                topic: topic.name(),
                partition,
            };
            new.push((
                index,
                NewPartition {
                    id,
                    source_topic_id: original.topic_id,
                    status,
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
}
