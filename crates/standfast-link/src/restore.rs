//! Restore of a returned cluster: what only the mirror's log holds is exported, then deleted, and the mirror goes on.
//!
//! After an unplanned failover the old primary may hold a *lost tail*: records that were never mirrored. Start-up finds that the logs differ and FAILS, and nothing is
//! written. A restore
//! 1. finds the tail of each partition: from the first offset that is not proven to be the source's to the log's end. The logs decide; a handoff is a hint that saves reading;
//! 2. exports it, always, and waits until the export is durable. If that fails nothing is deleted;
//! 3. *fast*: aborts what applications left open (its markers would be written later), looks that the log has not grown meanwhile, and deletes its records up to its end.
//!    *full*: deletes and creates the topic;
//! 4. lets the mirror go on through start-up: behind the old log's end as soon as the source has passed it, or from the source's beginning.
//!
//! A restart in the middle begins again with step 1, which finds what is left.

mod admission;
mod export;
mod kept;
mod open;
mod record;
mod recreate;
pub(crate) mod rejoin;
mod setup;
mod tail;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use tracing::{error, info};

use crate::description::{MirrorStatus, MirrorTopicError, PartitionState, StoppedMirror};
use crate::handle::LinkHandle;
use crate::lifecycle::{Lifecycle, MirrorChange, TransitionErrorCode, Wanted};
use crate::link::Inner;
use crate::partition::PartitionId;
use crate::transitions::Refusal;
pub use export::LostTail;
pub use kept::TopicShape;

/// Topics restored at a time.
const AT_A_TIME: usize = 4;

/// How often restores that a former engine left behind, and those that wait for the source, are looked at.
const LOOK: Duration = Duration::from_millis(250);

/// Between two tries to create a deleted topic again.
const CREATE_AGAIN: Duration = Duration::from_secs(5);

/// How long what is in flight may take to be answered before a topic is restored.
const REST_DRAIN: Duration = Duration::from_secs(5);

/// How a mirror is restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum RestoreMode {
    /// All records of a partition with a lost tail are deleted (its offsets are not); it goes on when the source has passed the end of its old log. Older records
    /// then stand on the source only.
    #[default]
    Fast,
    /// The topic is deleted, created again, and mirrored from the source's log start.
    Full,
}

/// Where lost tails are exported to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RestoreExport {
    /// One new file of JSON lines per topic in this folder.
    Folder(PathBuf),
    /// This new file; only for a single topic.
    File(PathBuf),
    /// The topic `standfast.lost.<topic>` on the destination.
    Topic,
}

/// How far a restore has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum RestorePhase {
    /// The lost tail is being exported and deleted.
    PendingSetupForRestore,
    /// That is done; the mirror waits for the source, or starts.
    PendingRestore,
}

/// What is remembered of a restore until the mirror runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreState {
    /// How far it has come.
    pub phase: RestorePhase,
    /// How it is done.
    pub mode: RestoreMode,
    /// Where the lost tail goes.
    pub export: RestoreExport,
    /// What the mirror goes back to if the restore fails: STOPPED, or FAILED by start-up.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub was_stopped: bool,
    /// Mode full, from just before the topic is deleted until it is there again: what it is created with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recreate: Option<TopicShape>,
}

/// What to restore, and how.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// How.
    pub mode: RestoreMode,
    /// Where lost tails go.
    pub export: RestoreExport,
    /// Per topic and partition the offset up to which both logs were once the same (of a handoff). A hint: the logs decide.
    pub hints: BTreeMap<String, Vec<Option<i64>>>,
    /// Only say what would be truncated.
    pub dry_run: bool,
}

/// The lost tail of one partition. Confluent's name and fields, but for the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionTruncation {
    /// Partition number.
    pub partition_id: i32,
    /// First offset of the tail.
    pub offset_truncated_to: i64,
    /// Records in the tail.
    pub messages_truncated: i64,
    /// Where the log ended. Ours.
    pub log_end_offset: i64,
}

/// What became of one mirror that was to be restored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MirrorRestore {
    /// Names, state and error.
    #[serde(flatten)]
    pub change: MirrorChange,
    /// Records in all lost tails of the topic.
    pub messages_truncated: i64,
    /// One entry per partition with a lost tail.
    pub partition_level_truncation_data: Vec<PartitionTruncation>,
    /// Where they were exported to; `None` if there were none, or nothing was done.
    pub export: Option<LostTail>,
}

/// What a restore of one topic found and did.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome {
    pub(crate) truncations: Vec<PartitionTruncation>,
    pub(crate) export: Option<LostTail>,
}

/// The topics that a task of this engine is restoring.
#[derive(Debug, Default)]
pub(crate) struct Restores(Mutex<HashSet<Arc<str>>>);

impl Restores {
    /// `None`: another task is at it.
    fn begin(&self, topic: &Arc<str>) -> Option<UnderWay<'_>> {
        let mut set = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        set.insert(Arc::clone(topic)).then(|| UnderWay {
            restores: self,
            topic: Arc::clone(topic),
        })
    }
}

struct UnderWay<'r> {
    restores: &'r Restores,
    topic: Arc<str>,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let set = &self.restores.0;
        set.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.topic);
    }
}

/// What an operator is shown: a restore hides the states that a mirror passes through on its way.
pub(crate) fn shown(status: MirrorStatus, phase: Option<RestorePhase>) -> MirrorStatus {
    match (status, phase) {
        (_, Some(RestorePhase::PendingSetupForRestore)) => MirrorStatus::PendingSetupForRestore,
        (
            MirrorStatus::Active | MirrorStatus::PendingMirror,
            Some(RestorePhase::PendingRestore),
        ) => MirrorStatus::PendingRestore,
        (status, _) => status,
    }
}

/// A mirror that was stopped while it was being restored does not hold the source's log up to its end.
pub(crate) fn stopped_meanwhile(lifecycle: &Lifecycle, stopped: &mut StoppedMirror) {
    if lifecycle.restore_phase(&stopped.topic).is_none()
        || stopped.state_before == PartitionState::Active
    {
        return;
    }
    stopped.destination_log_end_offset = None;
    stopped.rpo_records = None;
    let text = "it was being restored and does not hold the source's log";
    stopped.error = Some(match stopped.error.take() {
        Some(error) => format!("{text}; {error}"),
        None => text.to_owned(),
    });
}

impl LinkHandle {
    /// Restores mirrors that are FAILED or STOPPED: exports what only they hold, deletes it, and lets them mirror again. Returns when that is done; then they are
    /// PENDING_RESTORE until they run. Whoever calls this must know that the destination is not the cluster that applications write to.
    pub async fn restore(&self, topics: &[&str], options: &RestoreOptions) -> Vec<MirrorRestore> {
        let (go, mut refused) = self.sort_out_restore(topics, options);
        let mut outcomes = HashMap::new();
        if !go.is_empty() {
            let stopped = self.inner.stop.cancelled();
            let work = async {
                if options.dry_run {
                    self.survey_all(&go, options).await
                } else {
                    self.restore_all(&go, options).await
                }
            };
            let done = tokio::select! {
                done = work => done,
                () = stopped => {
                    let text = "the link was stopped meanwhile; run it again";
                    let refuse = |topic: &Arc<str>| (Arc::clone(topic), Err((TransitionErrorCode::LinkNotRunning, text.to_owned())));
                    go.iter().map(refuse).collect()
                }
            };
            for (topic, outcome) in done {
                match outcome {
                    Ok(outcome) => drop(outcomes.insert(topic, outcome)),
                    Err(refusal) => drop(refused.insert(topic, refusal)),
                }
            }
        }
        let changes = self.changes(topics, refused);
        let each = changes.into_iter().map(|change| {
            let outcome: Outcome = outcomes
                .remove(&*change.mirror_topic_name)
                .unwrap_or_default();
            let truncated = outcome.truncations.iter().map(|t| t.messages_truncated);
            MirrorRestore {
                change,
                messages_truncated: truncated.sum(),
                partition_level_truncation_data: outcome.truncations,
                export: outcome.export,
            }
        });
        each.collect()
    }

    async fn survey_all(
        &self,
        topics: &[Arc<str>],
        options: &RestoreOptions,
    ) -> HashMap<Arc<str>, Result<Outcome, Refusal>> {
        // Owned: a closure over references makes a future that cannot be spawned.
        let each = topics.iter().cloned().map(|topic| async move {
            let found = setup::survey(self, &topic, hints(options, &topic)).await;
            let outcome = found
                .and_then(|survey| survey.admits(options.mode, &topic).map(|()| survey))
                .map(|survey| Outcome {
                    truncations: survey.truncations(),
                    export: None,
                })
                .map_err(|text| (TransitionErrorCode::RestoreFailed, text));
            (topic, outcome)
        });
        futures_util::stream::iter(each)
            .buffer_unordered(AT_A_TIME)
            .collect()
            .await
    }

    async fn restore_all(
        &self,
        topics: &[Arc<str>],
        options: &RestoreOptions,
    ) -> HashMap<Arc<str>, Result<Outcome, Refusal>> {
        let lifecycle = self.lifecycle();
        for stopped in [true, false] {
            let state = RestoreState {
                phase: RestorePhase::PendingSetupForRestore,
                mode: options.mode,
                export: options.export.clone(),
                was_stopped: stopped,
                recreate: None,
            };
            let of = |t: &&Arc<str>| (lifecycle.wanted(t) == Wanted::Stopped) == stopped;
            let these: Vec<&str> = topics.iter().filter(of).map(|t| &**t).collect();
            // Those that were stopped come first: from here on they are no longer.
            let these = these.into_iter().filter(|t| {
                lifecycle.restore_phase(t) != Some(RestorePhase::PendingSetupForRestore)
            });
            let these: Vec<&str> = these.collect();
            lifecycle.set_restore(these, &state);
        }
        let each = topics.iter().cloned().map(|topic| async move {
            let Some(_under_way) = self.inner.restores.begin(&topic) else {
                let text = "the mirror is being restored already".to_owned();
                return (topic, Err((TransitionErrorCode::RestoreInProgress, text)));
            };
            let done = self.restore_one(&topic, hints(options, &topic)).await;
            (topic, done)
        });
        futures_util::stream::iter(each)
            .buffer_unordered(AT_A_TIME)
            .collect()
            .await
    }

    /// Restores one topic whose state says PENDING_SETUP_FOR_RESTORE, and notes the result there.
    async fn restore_one(
        &self,
        topic: &Arc<str>,
        hints: &[Option<i64>],
    ) -> Result<Outcome, Refusal> {
        let lifecycle = self.lifecycle();
        let Some(mut state) = restore_of(lifecycle, topic) else {
            let text = "another command changed the mirror meanwhile".to_owned();
            return Err((TransitionErrorCode::Superseded, text));
        };
        // Of a shared link all of its partitions come here until it mirrors again.
        let known = self
            .inner
            .topics()
            .iter()
            .find(|t| t.name() == *topic)
            .map(|t| t.ids().collect());
        let ids: Vec<PartitionId> = known.unwrap_or_default();
        let gathered = self.inner.share.gathered(&ids).await;
        let only = HashSet::from([Arc::clone(topic)]);
        let until = Instant::now() + REST_DRAIN;
        self.rest(&only, PartitionState::Paused, until).await;
        let done = match gathered {
            Ok(()) => setup::run(self, topic, &mut state, hints).await,
            Err(text) => Err(setup::Failed {
                text: format!("other agents of the link may still mirror it: {text}"),
                topic_is_gone: state.recreate.is_some(),
            }),
        };
        for known in self.inner.topics().iter_mut() {
            if known.name() == *topic {
                known.begin_again();
            }
        }
        let result = match done {
            Ok(outcome) => {
                info!(link = %self.inner.options.name, topic = %topic, mode = ?state.mode, export = ?outcome.export, truncated = ?outcome.truncations, "mirror restored");
                state.phase = RestorePhase::PendingRestore;
                state.recreate = None;
                lifecycle.set_restore([&**topic], &state);
                if self.inner.share.is_shared() {
                    // Others are to look at the topic anew.
                    lifecycle.repeat([&**topic]);
                }
                Ok(outcome)
            }
            Err(failed) if failed.topic_is_gone => {
                let text = format!("{}; it is tried again every {CREATE_AGAIN:?}", failed.text);
                if let Some(known) = self.inner.topics().iter_mut().find(|t| t.name() == *topic) {
                    known.set_trouble(MirrorTopicError::DestinationRefused, text.clone(), false);
                }
                Err((TransitionErrorCode::RestoreFailed, text))
            }
            Err(setup::Failed { text, .. }) => {
                error!(link = %self.inner.options.name, topic = %topic, reason = text, "restore failed");
                let wanted = if state.was_stopped {
                    Wanted::Stopped
                } else {
                    Wanted::Active
                };
                lifecycle.end_restore(topic, wanted);
                Err((TransitionErrorCode::RestoreFailed, text))
            }
        };
        self.inner.look_again.notify_one();
        result
    }
}

fn hints<'o>(options: &'o RestoreOptions, topic: &str) -> &'o [Option<i64>] {
    options.hints.get(topic).map_or(&[], Vec::as_slice)
}

fn restore_of(lifecycle: &Lifecycle, topic: &str) -> Option<RestoreState> {
    let state = lifecycle.state();
    let restore = state.topics.get(topic)?.restore.clone()?;
    (restore.phase == RestorePhase::PendingSetupForRestore).then_some(restore)
}

/// Goes on with restores that a former engine did not finish, and ends those whose mirrors run.
pub(crate) async fn keep(inner: Arc<Inner>) {
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let handle = LinkHandle {
        inner: Arc::clone(&inner),
    };
    let mut not_before: HashMap<Arc<str>, Instant> = HashMap::new();
    loop {
        tick.tick().await;
        not_before.retain(|_, at| *at > Instant::now());
        let state = inner.options.lifecycle.state();
        let restoring = state
            .topics
            .iter()
            .filter_map(|(name, topic)| Some((name, topic.restore.as_ref()?.phase)));
        for (name, phase) in restoring {
            let name: Arc<str> = Arc::from(name.as_str());
            match phase {
                RestorePhase::PendingRestore => {
                    if runs(&inner, &name) {
                        info!(link = %inner.options.name, topic = %name, "restored mirror is active");
                        inner.options.lifecycle.end_restore(&name, Wanted::Active);
                    }
                }
                RestorePhase::PendingSetupForRestore if not_before.contains_key(&name) => {}
                RestorePhase::PendingSetupForRestore if !inner.share.is_member() => {}
                RestorePhase::PendingSetupForRestore => {
                    let Some(_under_way) = inner.restores.begin(&name) else {
                        continue;
                    };
                    info!(link = %inner.options.name, topic = %name, "going on with a restore that was not finished");
                    // Its failure is logged, and the mirror shows why it is FAILED.
                    let done = handle.restore_one(&name, &[]).await;
                    if done.is_err() {
                        not_before.insert(name.clone(), Instant::now() + CREATE_AGAIN);
                    }
                }
            }
        }
    }
}

/// Whether every partition has gone through start-up and mirrors.
fn runs(inner: &Inner, name: &str) -> bool {
    let topics = inner.topics();
    let Some(topic) = topics.iter().find(|t| &*t.name() == name) else {
        return false;
    };
    let partitions = topic.partitions();
    !partitions.is_empty()
        && partitions
            .iter()
            .all(|p| p.state() == PartitionState::Active)
}
