//! The work of a restore on one topic: survey, export, delete.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use standfast_wire::admin::NewTopic;
use standfast_wire::{Cluster, Metadata, ResponseError, TopicMetadata};
use tracing::info;

use super::export::{self, LinesFile, LostTopic, Sink};
use super::tail::{self, Tail};
use super::{Outcome, PartitionTruncation, RestoreExport, RestoreMode, RestoreState, open};
use crate::handle::LinkHandle;
use crate::partition::PartitionId;
use crate::{calls, configs};

use crate::verify::Logs;

/// How long a deleted topic may take to be gone, and a created one to be there.
const RECREATED_WITHIN: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

const CLEANUP_POLICY: &str = "cleanup.policy";

/// What a topic's partitions hold that the source does not.
pub(super) struct Survey {
    configs: BTreeMap<String, calls::ConfigValue>,
    mirror: Option<TopicMetadata>,
    source_partitions: i32,
    tails: Vec<(PartitionId, Tail)>,
}

impl Survey {
    pub(super) fn truncations(&self) -> Vec<PartitionTruncation> {
        let lost = self.tails.iter().filter(|(_, tail)| !tail.is_empty());
        lost.map(|(id, tail)| PartitionTruncation {
            partition_id: id.partition,
            offset_truncated_to: tail.from,
            messages_truncated: tail.records,
            log_end_offset: tail.to,
        })
        .collect()
    }

    fn has_policy(&self, policy: &str) -> bool {
        let value = self.configs.get(CLEANUP_POLICY);
        value
            .and_then(|c| c.value.as_deref())
            .is_some_and(|v| v.split(',').any(|part| part.trim() == policy))
    }
}

/// Compares the logs of all partitions and reads the tails.
pub(super) async fn survey(
    link: &LinkHandle,
    topic: &Arc<str>,
    hints: &[Option<i64>],
) -> Result<Survey, String> {
    let (source, destination) = link.both_clusters().map_err(|e| e.to_string())?;
    let metadata = source.topics(&[topic]).await.map_err(at("source"))?;
    let original = found(&metadata, topic).ok_or_else(|| {
        format!("the source does not know topic {topic:?}, so nothing can be compared with it")
    })?;
    let metadata = destination
        .topics(&[topic])
        .await
        .map_err(at("destination"))?;
    let source_partitions = i32::try_from(original.partitions.len()).unwrap_or(i32::MAX);
    let Some(mirror) = found(&metadata, topic) else {
        return Ok(Survey {
            configs: BTreeMap::new(),
            mirror: None,
            source_partitions,
            tails: Vec::new(),
        });
    };
    let configs = calls::topic_configs(destination, topic)
        .await
        .map_err(at("destination"))?;
    let mut survey = Survey {
        configs,
        source_partitions,
        tails: Vec::new(),
        mirror: None,
    };
    let compacts = survey.has_policy("compact");
    for partition in mirror.partitions.keys().copied() {
        let id = PartitionId::new(&**topic, partition);
        let log = calls::log_range(destination, &id)
            .await
            .map_err(at("destination"))?;
        let from = if original.partitions.contains_key(&partition) {
            let logs = Logs {
                source,
                mirror: destination,
                id: &id,
                compacts,
            };
            let hint = usize::try_from(partition).ok().and_then(|n| hints.get(n));
            logs.divergence(log, hint.copied().flatten())
                .await
                .map_err(|e| e.to_string())?
        } else {
            log.start
        };
        let tail = Tail::survey(destination, &id, from, log.end, log.start)
            .await
            .map_err(|e| e.to_string())?;
        survey.tails.push((id, tail));
    }
    survey.mirror = Some(mirror);
    Ok(survey)
}

fn found(metadata: &Metadata, topic: &str) -> Option<TopicMetadata> {
    let found = metadata.topics.get(topic)?;
    (found.error.is_none() && !found.partitions.is_empty()).then(|| found.clone())
}

fn at(side: &'static str) -> impl Fn(standfast_wire::Error) -> String {
    move |error| format!("{side}: {error}")
}

/// Exports and deletes. An error says what was not done; nothing is deleted before the export is complete.
pub(super) async fn run(
    link: &LinkHandle,
    topic: &Arc<str>,
    state: &RestoreState,
    hints: &[Option<i64>],
) -> Result<Outcome, String> {
    let survey = survey(link, topic, hints).await?;
    let (_, destination) = link.both_clusters().map_err(|e| e.to_string())?;
    let Some(mirror) = &survey.mirror else {
        return Ok(Outcome::default());
    };
    let lost: Vec<&(PartitionId, Tail)> =
        survey.tails.iter().filter(|(_, t)| !t.is_empty()).collect();
    if state.mode == RestoreMode::Fast && !lost.is_empty() && !survey.has_policy("delete") {
        return Err(format!(
            "topic {topic:?} has cleanup.policy=compact: brokers delete no records from it, and its older records would be missed; use `--mode full`"
        ));
    }
    let export = match lost.as_slice() {
        [] => None,
        lost => Some(write_out(link, destination, topic, mirror, state, lost).await?),
    };
    let outcome = Outcome {
        truncations: survey.truncations(),
        export,
    };
    let deleted = match state.mode {
        RestoreMode::Fast if lost.is_empty() => Ok(()),
        RestoreMode::Fast => delete_records(destination, &lost).await,
        RestoreMode::Full => recreate(destination, topic, &survey, mirror).await,
    };
    deleted.map_err(|text| match &outcome.export {
        None => text,
        Some(export) => format!("exported to {}, but: {text}", place(export)),
    })?;
    Ok(outcome)
}

fn place(export: &super::LostTail) -> String {
    match (&export.file, &export.topic) {
        (Some(file), _) => file.display().to_string(),
        (None, Some(topic)) => format!("topic {topic}"),
        (None, None) => "nowhere".to_owned(),
    }
}

async fn write_out(
    link: &LinkHandle,
    destination: &Cluster,
    topic: &Arc<str>,
    mirror: &TopicMetadata,
    state: &RestoreState,
    lost: &[&(PartitionId, Tail)],
) -> Result<super::LostTail, String> {
    let name = link.inner.options.name.as_str();
    let failed =
        |text: String| format!("the lost tail was not exported, so nothing was deleted: {text}");
    let begun = async {
        Ok(match &state.export {
            RestoreExport::Topic => {
                let factor = mirror.partitions.values().map(|p| p.replicas.len()).max();
                let factor = i16::try_from(factor.unwrap_or(1)).unwrap_or(1);
                Sink::Topic(Box::new(
                    LostTopic::begin(destination, topic, factor).await?,
                ))
            }
            RestoreExport::File(path) => Sink::File(LinesFile::begin(path.clone()).await?),
            RestoreExport::Folder(folder) => {
                let path = export::path_in(folder.clone(), name, topic).await?;
                Sink::File(LinesFile::begin(path).await?)
            }
        })
    };
    let mut sink = begun.await.map_err(failed)?;
    for (id, tail) in lost {
        sink.tail(destination, id, tail).await.map_err(failed)?;
    }
    let export = sink.finish().await.map_err(failed)?;
    info!(link = name, topic = %topic, export = place(&export), records = export.records, "lost tail exported");
    Ok(export)
}

/// What the logs have grown by since the export may be markers of transactions, nothing else.
async fn ends_after(
    destination: &Cluster,
    tails: &[&(PartitionId, Tail)],
) -> Result<Vec<(PartitionId, i64)>, String> {
    let mut ends = Vec::with_capacity(tails.len());
    for (id, tail) in tails {
        let log = calls::log_range(destination, id)
            .await
            .map_err(at("destination"))?;
        let unexported = log.end > tail.to
            && !tail::only_markers(destination, id, tail.to.max(log.start), log.end)
                .await
                .map_err(|e| e.to_string())?;
        if unexported || log.end < tail.to {
            return Err(format!(
                "{id}: the log ended at offset {} when it was exported and ends at {} now; an application still writes there, stop it and restore again. Nothing was deleted",
                tail.to, log.end
            ));
        }
        ends.push((id.clone(), log.end));
    }
    Ok(ends)
}

async fn delete_records(
    destination: &Cluster,
    lost: &[&(PartitionId, Tail)],
) -> Result<(), String> {
    let ids: Vec<PartitionId> = lost.iter().map(|(id, _)| id.clone()).collect();
    open::abort(destination, &ids).await?;
    let ends = ends_after(destination, lost).await?;
    for (id, deleted) in destination.delete_records(&ends).await {
        deleted.map_err(|error| format!("destination: {id}: records were not deleted: {error}"))?;
    }
    Ok(())
}

/// Deletes the topic and creates it again, with its own configuration and replication factor and the source's number of partitions.
async fn recreate(
    destination: &Cluster,
    topic: &Arc<str>,
    survey: &Survey,
    mirror: &TopicMetadata,
) -> Result<(), String> {
    let all: Vec<&(PartitionId, Tail)> = survey.tails.iter().collect();
    ends_after(destination, &all).await?;
    let factor = mirror.partitions.values().map(|p| p.replicas.len()).max();
    let factor = i16::try_from(factor.unwrap_or(1)).unwrap_or(1);
    let new = NewTopic {
        name: topic.to_string(),
        partitions: survey.source_partitions,
        replication_factor: factor,
        configs: configs::at_creation(&survey.configs, &[], factor),
    };
    let deleted = destination.delete_topics(&[topic]).await;
    for (_, deleted) in deleted.map_err(at("destination"))? {
        deleted.map_err(|e| format!("destination: the topic was not deleted: {e}"))?;
    }
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
                return Err(format!(
                    "destination: the topic is deleted and could not be created again: {error}"
                ));
            }
        }
    }
    destination.forget_topic(topic);
    loop {
        let metadata = destination
            .topics(&[topic])
            .await
            .map_err(at("destination"))?;
        let there = found(&metadata, topic)
            .filter(|t| t.topic_id != mirror.topic_id || t.topic_id.is_nil());
        if there.is_some() {
            return Ok(());
        }
        if began.elapsed() > RECREATED_WITHIN {
            return Err(format!(
                "destination: topic {topic:?} was created again and is not seen within {RECREATED_WITHIN:?}"
            ));
        }
        tokio::time::sleep(POLL).await;
    }
}
