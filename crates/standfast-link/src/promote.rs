//! Promote: stops a mirror when it holds all of the source's log, and only then.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use standfast_wire::Cluster;
use tracing::{info, warn};

use crate::acls;
use crate::calls;
use crate::configs;
use crate::description::PartitionState;
use crate::groups;
use crate::handle::LinkHandle;
use crate::lifecycle::{MirrorChange, TransitionErrorCode, Wanted};
use crate::link::Inner;
use crate::partition::PartitionId;
use crate::topics::{self, Topic};
use crate::transitions::{Refusal, Transition};

/// Between two looks at the source's log ends.
const POLL: Duration = Duration::from_millis(100);

/// How long the last requests of a mirror that has caught up may take.
const DRAIN: Duration = Duration::from_secs(5);

/// How long the last run of the group offsets, of the configs and of the ACLs may take each.
const LAST_SYNC_MAX: Duration = Duration::from_secs(10);

type Reasons = HashMap<Arc<str>, Refusal>;

/// Clears the marks when the promotion ends in whatever way, also when its caller went away.
struct Marks<'a> {
    inner: &'a Inner,
    topics: HashSet<Arc<str>>,
}

impl Drop for Marks<'_> {
    fn drop(&mut self) {
        self.inner.end_promotion(&self.topics);
        self.inner.look_again.notify_one();
    }
}

impl LinkHandle {
    /// Stops mirrors for good as soon as they hold all of the source's log: then the last offsets are compared on both clusters, group offsets, configs and
    /// ACLs are carried over once more (what could not be is a warning), and the topics belong to the destination. A mirror that does not get there within `deadline` (a producer still
    /// writes to the source, say) goes on mirroring. May be called again.
    pub async fn promote(&self, topics: &[&str], deadline: Duration) -> Vec<MirrorChange> {
        let (go, mut refused) = self.sort_out(topics, Transition::Promote);
        let (stopped, open): (HashSet<Arc<str>>, HashSet<Arc<str>>) = go
            .iter()
            .map(Arc::clone)
            .partition(|t| self.lifecycle().wanted(t) == Wanted::Stopped);
        let mut warnings = Warnings::default();
        let left = self
            .catch_up(open, Instant::now() + deadline, &mut warnings)
            .await;
        let done = go.into_iter().filter(|t| !left.contains_key(t));
        let done: HashSet<Arc<str>> = done.chain(stopped).collect();
        info!(link = %self.inner.options.name, promoted = done.len(), left = left.len(), "mirrors promoted");
        refused.extend(left);
        let mut changes = self.stopped(topics, &done, refused).await;
        for change in &mut changes {
            if done.contains(&*change.mirror_topic_name) {
                change.warnings = warnings.of(&change.mirror_topic_name);
            }
        }
        changes
    }

    /// Answers those that did not get there, and why.
    async fn catch_up(
        &self,
        mut open: HashSet<Arc<str>>,
        until: Instant,
        warnings: &mut Warnings,
    ) -> Reasons {
        let inner = &*self.inner;
        let _marks = Marks {
            inner,
            topics: open.clone(),
        };
        for topic in inner.topics().iter_mut() {
            if open.contains(&topic.name()) {
                topic.promoting = true;
            }
        }
        let mut reasons = Reasons::new();
        let mut given_up = Reasons::new();
        while !open.is_empty() {
            self.drop_superseded(&mut open, &mut given_up);
            match self.level(&open, &mut reasons).await {
                Ok(level) => {
                    for done in self.finish(level, &mut reasons, warnings).await {
                        open.remove(&done);
                    }
                }
                Err(refusal) => {
                    let all = open.iter().map(|t| (Arc::clone(t), refusal.clone()));
                    reasons.extend(all);
                }
            }
            if Instant::now() >= until {
                break;
            }
            if !open.is_empty() {
                tokio::time::sleep(POLL).await;
            }
        }
        for topic in open {
            let reason = reasons.remove(&topic).unwrap_or_else(|| {
                (
                    TransitionErrorCode::LagNotZero,
                    "the mirror did not catch up in time; it goes on mirroring".to_owned(),
                )
            });
            given_up.insert(topic, reason);
        }
        given_up
    }

    /// Topics that something else changed meanwhile.
    fn drop_superseded(&self, open: &mut HashSet<Arc<str>>, given_up: &mut Reasons) {
        let stopped = self.inner.stop.is_cancelled();
        for topic in self.inner.topics().iter() {
            if open.contains(&topic.name()) && (stopped || !topic.promoting) {
                open.remove(&topic.name());
                let reason = if stopped {
                    (
                        TransitionErrorCode::LinkNotRunning,
                        "the link was stopped by a failover or switchover",
                    )
                } else {
                    (
                        TransitionErrorCode::Superseded,
                        "it was paused, resumed or failed over while it was being promoted",
                    )
                };
                given_up.insert(topic.name(), (reason.0, reason.1.to_owned()));
            }
        }
    }

    fn clusters(&self) -> Result<(&Cluster, &Cluster), Refusal> {
        self.both_clusters().map_err(|error| {
            (
                TransitionErrorCode::SourceUnavailable,
                format!("{error}; without it use failover"),
            )
        })
    }

    /// The topics whose mirrors hold all that the source has now.
    async fn level(
        &self,
        open: &HashSet<Arc<str>>,
        reasons: &mut Reasons,
    ) -> Result<HashSet<Arc<str>>, Refusal> {
        let (source, _) = self.clusters()?;
        let names: Vec<&str> = open.iter().map(|t| &**t).collect();
        let unavailable = |text: String| {
            let text = format!("{text}; without it use failover");
            (TransitionErrorCode::SourceUnavailable, text)
        };
        let metadata = source
            .topics(&names)
            .await
            .map_err(|e| unavailable(format!("the source did not answer: {e}")))?;
        let positions: Vec<(PartitionId, Option<i64>)> = {
            let topics = self.inner.topics();
            let wanted = topics.iter().filter(|t| open.contains(&t.name()));
            wanted.flat_map(Topic::active_positions).collect()
        };
        let ids: Vec<PartitionId> = positions.iter().map(|(id, _)| id.clone()).collect();
        let ends = calls::log_ends(source, &ids).await;
        let mut level = open.clone();
        for topic in open {
            let there = metadata.topics.get(topic).map_or(0, |t| t.partitions.len());
            let here = ids.iter().filter(|id| id.topic == *topic).count();
            if there == 0 {
                level.remove(topic);
                let (_, why) = topics::why_missing(&self.inner, &metadata, topic);
                let reason = unavailable(format!(
                    "{why}, so nobody can say whether the mirror holds all of it"
                ));
                reasons.insert(Arc::clone(topic), reason);
            } else if there != here {
                level.remove(topic);
                let text = format!(
                    "the source has {there} partitions, {here} are mirrored so far; the mirror goes on"
                );
                reasons.insert(Arc::clone(topic), (TransitionErrorCode::LagNotZero, text));
            }
        }
        for (id, position) in positions {
            let reason = match (ends.get(&id), position) {
                (Some(Ok(end)), Some(position)) if position >= *end => continue,
                (Some(Ok(end)), position) => lag(&id, *end, position),
                (Some(Err(text)), _) => unavailable(format!("the source did not answer: {text}")),
                (None, _) => unavailable(format!("the source named no log end of {id}")),
            };
            if level.remove(&id.topic) || !reasons.contains_key(&id.topic) {
                reasons.insert(Arc::clone(&id.topic), reason);
            }
        }
        Ok(level)
    }

    /// Stops mirrors that have caught up and looks once more; those whose source has grown meanwhile mirror on.
    async fn finish(
        &self,
        level: HashSet<Arc<str>>,
        reasons: &mut Reasons,
        warnings: &mut Warnings,
    ) -> Vec<Arc<str>> {
        if level.is_empty() {
            return Vec::new();
        }
        let inner = &*self.inner;
        inner.hold(&level);
        let drained = self
            .rest(&level, PartitionState::Stopped, Instant::now() + DRAIN)
            .await;
        let told = self.pause_elsewhere(&level, reasons).await;
        let equal = if drained && told {
            self.compare_ends(&level, reasons).await
        } else {
            HashSet::new()
        };
        if !equal.is_empty() {
            self.carry_groups(warnings).await;
            self.carry_configs(&equal, warnings).await;
        }
        let done = inner.conclude(&level, &equal);
        if inner.share.is_shared() {
            let left = level.iter().filter(|t| !done.contains(t));
            let left = left.filter(|t| self.lifecycle().wanted(t) == Wanted::Paused);
            self.lifecycle().set(left.map(|t| &**t), Wanted::Active);
        }
        inner.look_again.notify_one();
        if !done.is_empty() {
            // Only now are those released that let producers write there.
            self.carry_acls(warnings).await;
        }
        done
    }

    /// The other agents of a shared link let these mirrors rest too. Whatever becomes of this promotion, a pause does no harm.
    async fn pause_elsewhere(&self, level: &HashSet<Arc<str>>, reasons: &mut Reasons) -> bool {
        if !self.inner.share.is_shared() {
            return true;
        }
        self.lifecycle()
            .set(level.iter().map(|t| &**t), Wanted::Paused);
        self.tell(level, reasons).await
    }

    /// The topics whose logs end at the same offsets on both clusters.
    async fn compare_ends(
        &self,
        level: &HashSet<Arc<str>>,
        reasons: &mut Reasons,
    ) -> HashSet<Arc<str>> {
        let Ok((source, destination)) = self.clusters() else {
            return HashSet::new();
        };
        let ids: Vec<PartitionId> = {
            let topics = self.inner.topics();
            let wanted = topics.iter().filter(|t| level.contains(&t.name()));
            wanted.flat_map(Topic::ids).collect()
        };
        let mirrored = calls::log_ends(destination, &ids).await;
        let original = calls::log_ends(source, &ids).await;
        let mut equal = level.clone();
        for id in ids {
            let reason = match (original.get(&id), mirrored.get(&id)) {
                (Some(Ok(a)), Some(Ok(b))) if a == b => continue,
                (Some(Ok(a)), Some(Ok(b))) => lag(&id, *a, Some(*b)),
                (Some(Err(text)), _) => (
                    TransitionErrorCode::SourceUnavailable,
                    format!("the source did not answer: {text}"),
                ),
                (_, other) => (
                    TransitionErrorCode::DestinationUnavailable,
                    format!("the log end of {id} is not known: {other:?}"),
                ),
            };
            equal.remove(&id.topic);
            reasons.insert(Arc::clone(&id.topic), reason);
        }
        equal
    }

    async fn carry_groups(&self, warnings: &mut Warnings) {
        let Ok((source, destination)) = self.clusters() else {
            return;
        };
        let carried = groups::sync(&self.inner, source, destination);
        if tokio::time::timeout(LAST_SYNC_MAX, carried).await.is_err() {
            warn!(link = %self.inner.options.name, "group offsets were not all carried over once more before mirrors were promoted; the last known ones stand");
            warnings.all.push(format!(
                "group offsets were not all carried over within {LAST_SYNC_MAX:?}; the last known ones stand"
            ));
        }
        let groups = self.inner.groups();
        let failed = groups.iter().filter_map(|g| Some((g, g.error.as_ref()?)));
        let failed = failed.map(|(g, error)| format!("offsets of group {:?}: {error}", g.group));
        warnings.all.extend(failed);
    }

    async fn carry_configs(&self, topics: &HashSet<Arc<str>>, warnings: &mut Warnings) {
        let Ok((source, destination)) = self.clusters() else {
            return;
        };
        let topics: Vec<Arc<str>> = topics.iter().map(Arc::clone).collect();
        let mut before = HashMap::new();
        let carried = configs::sync(&self.inner, source, destination, &topics, &mut before);
        match tokio::time::timeout(LAST_SYNC_MAX, carried).await {
            Ok(errors) => warnings.of_topic.extend(errors),
            Err(_) => warnings.all.push(format!(
                "configs were not all compared within {LAST_SYNC_MAX:?}"
            )),
        }
    }

    async fn carry_acls(&self, warnings: &mut Warnings) {
        let carried = acls::run_now(&self.inner);
        let outcome = tokio::time::timeout(LAST_SYNC_MAX, carried).await;
        let outcome = outcome.unwrap_or_else(|_| Err(format!("not within {LAST_SYNC_MAX:?}")));
        if let Err(text) = outcome {
            warnings.all.push(format!(
                "ACLs were not carried over, producers may still be refused: {text}"
            ));
        }
    }
}

/// What could not be carried over once more.
#[derive(Debug, Default)]
struct Warnings {
    all: Vec<String>,
    of_topic: HashMap<Arc<str>, String>,
}

impl Warnings {
    fn of(&self, topic: &str) -> Vec<String> {
        let configs = self.of_topic.get(topic);
        let configs = configs.map(|text| format!("configs were not carried over: {text}"));
        let mut warnings: Vec<String> = configs.into_iter().collect();
        for text in &self.all {
            if !warnings.contains(text) {
                warnings.push(text.clone());
            }
        }
        warnings
    }
}

fn lag(id: &PartitionId, source: i64, mirror: Option<i64>) -> Refusal {
    let mirror = mirror.map_or_else(|| "nowhere yet".to_owned(), |at| format!("at {at}"));
    let text = format!(
        "{id} ends at {source} on the source and {mirror} on the mirror; stop the producers, or fail over. The mirror goes on"
    );
    (TransitionErrorCode::LagNotZero, text)
}
