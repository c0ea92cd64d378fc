//! The work of a restore on one topic: survey, export, delete.

use std::collections::BTreeMap;
use std::sync::Arc;

use standfast_wire::{Cluster, Metadata, TopicMetadata};
use tracing::info;

use super::export::{self, LinesFile, LostTopic, Sink};
use super::tail::{self, Tail};
use super::{
    Outcome, PartitionTruncation, RestoreExport, RestoreMode, RestoreState, open, recreate,
};
use crate::handle::LinkHandle;
use crate::partition::PartitionId;
use crate::{calls, configs};

use crate::verify::Logs;

const CLEANUP_POLICY: &str = "cleanup.policy";

/// What a topic's partitions hold that the source does not.
pub(super) struct Survey {
    pub(super) configs: BTreeMap<String, calls::ConfigValue>,
    mirror: Option<TopicMetadata>,
    pub(super) source_partitions: i32,
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

    /// Whether records of the topic can, and should, be deleted in this mode. Seen on 4.1.0: a broker refuses DeleteRecords while the policy is `compact` alone, and takes it
    /// as soon as it is `compact,delete`. But what goes then is the current value of keys that the source does not write again.
    pub(super) fn admits(&self, mode: RestoreMode, topic: &str) -> Result<(), String> {
        let lost = self.tails.iter().any(|(_, tail)| !tail.is_empty());
        if mode == RestoreMode::Fast && lost && !self.has_policy("delete") {
            return Err(format!(
                "topic {topic:?} has cleanup.policy=compact: in mode fast the mirror would lack the values of all keys that are not written again; use `--mode full`"
            ));
        }
        Ok(())
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
        let own = link.inner.options.prefix.own_name(topic);
        format!("the source does not know topic {own:?}, so nothing can be compared with it")
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

pub(super) fn found(metadata: &Metadata, topic: &str) -> Option<TopicMetadata> {
    let found = metadata.topics.get(topic)?;
    (found.error.is_none() && !found.partitions.is_empty()).then(|| found.clone())
}

pub(super) fn at(side: &'static str) -> impl Fn(standfast_wire::Error) -> String {
    move |error| format!("{side}: {error}")
}

/// Why a restore did not come to its end.
pub(super) struct Failed {
    pub(super) text: String,
    /// The topic is deleted and not there again, or that is not known: only going on helps.
    pub(super) topic_is_gone: bool,
}

impl From<String> for Failed {
    fn from(text: String) -> Self {
        Self {
            text,
            topic_is_gone: false,
        }
    }
}

/// Exports and deletes. An error says what was not done; nothing is deleted before the export is complete, and `state` kept.
pub(super) async fn run(
    link: &LinkHandle,
    topic: &Arc<str>,
    state: &mut RestoreState,
    hints: &[Option<i64>],
) -> Result<Outcome, Failed> {
    let found = survey(link, topic, hints).await;
    let survey = found.map_err(|text| Failed {
        text,
        topic_is_gone: state.recreate.is_some(),
    })?;
    let (_, destination) = link.both_clusters().map_err(|e| e.to_string())?;
    let Some(mirror) = &survey.mirror else {
        if let Some(shape) = &state.recreate {
            recreate::create(destination, topic, shape, survey.source_partitions, None).await?;
        }
        return Ok(Outcome::default());
    };
    survey.admits(state.mode, topic)?;
    let lost: Vec<&(PartitionId, Tail)> =
        survey.tails.iter().filter(|(_, t)| !t.is_empty()).collect();
    let export = match lost.as_slice() {
        [] => None,
        lost => Some(write_out(link, destination, topic, mirror, state, lost).await?),
    };
    let outcome = Outcome {
        truncations: survey.truncations(),
        export,
    };
    let deleted = match state.mode {
        RestoreMode::Fast => delete(link, destination, topic, &survey, &lost).await,
        RestoreMode::Full => {
            let all: Vec<&(PartitionId, Tail)> = survey.tails.iter().collect();
            match ends_after(destination, &all).await {
                Ok(_) => recreate::run(link, destination, topic, state, &survey, mirror).await,
                Err(text) => Err(text.into()),
            }
        }
    };
    deleted.map_err(|failed| match &outcome.export {
        None => failed,
        Some(export) => Failed {
            text: format!("exported to {}, but: {}", place(export), failed.text),
            ..failed
        },
    })?;
    Ok(outcome)
}

/// Mode fast: deletes the records of the partitions that have a tail, and makes the topic fit to be a mirror.
async fn delete(
    link: &LinkHandle,
    destination: &Cluster,
    topic: &Arc<str>,
    survey: &Survey,
    lost: &[&(PartitionId, Tail)],
) -> Result<(), Failed> {
    if !lost.is_empty() {
        link.lifecycle().kept().await?;
        delete_records(destination, lost).await?;
    }
    if configs::unfit(topic, &survey.configs).is_some() {
        recreate::fit(destination, topic).await?;
    }
    Ok(())
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
