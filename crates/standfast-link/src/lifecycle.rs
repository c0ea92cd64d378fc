//! Which mirrors run: the one part of a link's state that the logs do not hold, because it is the operator's will.
//!
//! The engine reads it, the handle changes it, and whoever runs the link keeps it over restarts (the agent: in a file).

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use standfast_wire::TopicPrefix;
use tokio::sync::watch;

use crate::Error;
use crate::description::{MirrorStatus, PartitionLag, PartitionState};
use crate::filters::Filter;
use crate::names;
use crate::restore::{RestorePhase, RestoreState};
use crate::status::now_ms;

/// What a mirror topic should do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Wanted {
    /// Mirror.
    #[default]
    Active,
    /// Neither fetch nor write until it is resumed.
    Paused,
    /// Promoted or failed over: the topic belongs to the destination, and nothing of the link writes there.
    Stopped,
}

/// What is remembered of one mirror topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct TopicState {
    /// What it should do.
    pub state: Wanted,
    /// Created by a command: mirrored although neither names nor filters of the options take it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub created: bool,
    /// Orders the commands on this topic: of two agents that share the link, the later one counts. 0: no command came.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub changed: u64,
    /// A restore that has not come to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore: Option<RestoreState>,
    /// Where its partitions begin, if that was decided to be elsewhere than at the source's log start. Forgotten when the mirror is stopped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub start_offsets: Vec<i64>,
}

/// All mirrors are to rest, because an operation on the fleet is under way or has ended at another cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct StopOrder {
    /// What the operation goes by: the epoch of the fleet record that it began with.
    pub token: u64,
    /// It stands; `false`: it was taken back.
    pub active: bool,
    /// See [`TopicState::changed`].
    pub changed: u64,
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde asks for a reference"
)]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// What is remembered of a link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct RunningState {
    /// The link as a whole is paused.
    pub paused: bool,
    /// Topics that were paused, stopped, created by a command, or found by a filter, by their mirrors' names. Others are active.
    pub topics: BTreeMap<String, TopicState>,
    /// What stands in front of the names of the mirrors.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub prefix: String,
    /// See [`TopicState::changed`], for `paused`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub paused_changed: u64,
    /// Of a link that several agents share: the last order to stop all of it. It stands until it is taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<StopOrder>,
    /// Grows with each change in this process.
    #[serde(skip)]
    pub revision: u64,
}

/// The running state of a link, shared by its engine, its handles and whoever keeps it. Cheap to clone; clones are the same state.
#[derive(Debug, Clone, Default)]
pub struct Lifecycle {
    state: Arc<watch::Sender<RunningState>>,
    /// Which revision is kept, if somebody keeps it.
    pub(crate) kept: Arc<watch::Sender<Option<u64>>>,
}

impl Lifecycle {
    /// Begins with what was remembered.
    pub fn new(state: RunningState) -> Self {
        Self {
            state: Arc::new(watch::Sender::new(state)),
            kept: Arc::default(),
        }
    }

    /// The state now.
    pub fn state(&self) -> RunningState {
        self.state.borrow().clone()
    }

    /// Follows the changes.
    pub fn subscribe(&self) -> watch::Receiver<RunningState> {
        self.state.subscribe()
    }

    /// Remembers the link's prefix.
    ///
    /// # Errors
    /// The link had another one before.
    pub(crate) fn keep_prefix(&self, prefix: &TopicPrefix) -> Result<(), Error> {
        names::check_same_prefix(&self.state.borrow(), prefix)?;
        self.change(|state| {
            let changed = state.prefix != prefix.as_str();
            state.prefix = prefix.to_string();
            changed
        });
        Ok(())
    }

    /// What a topic should do, apart from a pause of the whole link.
    pub fn wanted(&self, topic: &str) -> Wanted {
        self.state.borrow().wanted(topic)
    }

    /// The state in which a topic should rest; `None`: it should mirror.
    pub(crate) fn rest_of(&self, topic: &str) -> Option<PartitionState> {
        let state = self.state.borrow();
        match state.wanted(topic) {
            _ if state.stop_token().is_some() => Some(PartitionState::Stopped),
            Wanted::Stopped => Some(PartitionState::Stopped),
            Wanted::Paused => Some(PartitionState::Paused),
            Wanted::Active => {
                let rests = state.paused
                    || state.restore_phase(topic) == Some(RestorePhase::PendingSetupForRestore);
                rests.then_some(PartitionState::Paused)
            }
        }
    }

    /// How far the restore of a topic has come; `None`: it is not being restored.
    pub fn restore_phase(&self, topic: &str) -> Option<RestorePhase> {
        self.state.borrow().restore_phase(topic)
    }

    /// The topics whose restore has not come to its end.
    pub(crate) fn restoring(&self) -> BTreeSet<String> {
        let state = self.state.borrow();
        let topics = state.topics.iter().filter(|(_, t)| t.restore.is_some());
        topics.map(|(name, _)| name.clone()).collect()
    }

    /// Says that topics are being restored, and how far that is. They mirror afterwards, whatever they did before.
    pub(crate) fn set_restore<'a>(
        &self,
        topics: impl IntoIterator<Item = &'a str>,
        restore: &RestoreState,
    ) {
        self.change(|state| {
            let (mut changed, at) = (false, state.next_change());
            for topic in topics {
                let entry = state.topics.entry(topic.to_owned()).or_default();
                changed |= entry.restore.as_ref() != Some(restore);
                if entry.restore.is_none() {
                    // The log is to begin elsewhere.
                    changed |= !std::mem::take(&mut entry.start_offsets).is_empty();
                }
                entry.restore = Some(restore.clone());
                if std::mem::replace(&mut entry.state, Wanted::Active) != Wanted::Active {
                    (entry.changed, changed) = (at, true);
                }
            }
            changed
        });
    }

    /// The restore of a topic is over; `wanted` says what the mirror should do from now on.
    pub(crate) fn end_restore(&self, topic: &str, wanted: Wanted) {
        self.change(|state| {
            let at = state.next_change();
            let Some(entry) = state.topics.get_mut(topic) else {
                return false;
            };
            let mut changed = entry.restore.take().is_some();
            if std::mem::replace(&mut entry.state, wanted) != wanted {
                (entry.changed, changed) = (at, true);
            }
            changed
        });
    }

    /// Whether the link as a whole is paused.
    pub fn is_paused(&self) -> bool {
        self.state.borrow().paused
    }

    /// Pauses the link as a whole, or ends that.
    pub fn set_paused(&self, paused: bool) {
        self.change(|state| {
            let changed = std::mem::replace(&mut state.paused, paused) != paused;
            if changed {
                state.paused_changed = state.next_change();
            }
            changed
        });
    }

    /// Says what topics should do.
    pub fn set<'a>(&self, topics: impl IntoIterator<Item = &'a str>, wanted: Wanted) {
        self.change(|state| {
            let (mut changed, at) = (false, state.next_change());
            for topic in topics {
                let entry = state.topics.entry(topic.to_owned()).or_default();
                if std::mem::replace(&mut entry.state, wanted) != wanted {
                    (entry.changed, changed) = (at, true);
                }
                if wanted == Wanted::Stopped {
                    changed |= entry.restore.take().is_some();
                    entry.start_offsets.clear();
                }
            }
            changed
        });
    }

    /// The same command once more: other agents of the link are to take it as new.
    pub(crate) fn repeat<'a>(&self, topics: impl IntoIterator<Item = &'a str>) {
        self.change(|state| {
            let at = state.next_change();
            for topic in topics {
                state.topics.entry(topic.to_owned()).or_default().changed = at;
            }
            true
        });
    }

    /// Orders all mirrors of a shared link to stop (`Some`), or takes that back.
    pub fn set_stop(&self, token: Option<u64>) {
        self.change(|state| {
            if state.stop_token() == token {
                return false;
            }
            let changed = state.next_change();
            let before = state.stop.map_or(0, |stop| stop.token);
            state.stop = Some(StopOrder {
                token: token.unwrap_or(before),
                active: token.is_some(),
                changed,
            });
            true
        });
    }

    /// Takes over what another agent of the link was told later than this one. Answers the topics that it changed.
    pub(crate) fn adopt(&self, theirs: &RunningState) -> Vec<String> {
        let mut topics = Vec::new();
        self.change(|state| state.merge(theirs, &mut topics));
        topics
    }

    /// Remembers topics that a filter found, or (`created`) that a command asks for.
    pub(crate) fn note<'a>(&self, topics: impl IntoIterator<Item = &'a str>, created: bool) {
        self.change(|state| {
            let (mut changed, at) = (false, state.next_change());
            for topic in topics {
                let known = state.topics.contains_key(topic);
                let entry = state.topics.entry(topic.to_owned()).or_default();
                if created && !entry.created {
                    (entry.created, entry.changed, changed) = (true, at, true);
                }
                changed |= !known;
            }
            changed
        });
    }

    /// Where a partition was decided to begin.
    pub(crate) fn start_offset(&self, topic: &str, partition: i32) -> Option<i64> {
        let state = self.state.borrow();
        let offsets = &state.topics.get(topic)?.start_offsets;
        offsets.get(usize::try_from(partition).ok()?).copied()
    }

    /// Remembers where the partitions of a topic begin.
    pub(crate) fn set_start_offsets(&self, topic: &str, offsets: Vec<i64>) {
        self.change(|state| {
            state
                .topics
                .entry(topic.to_owned())
                .or_default()
                .start_offsets = offsets;
            true
        });
    }

    /// Another agent is restoring these topics, whose logs are to begin elsewhere: an empty one would be taken for one that has not reached its beginning yet.
    pub(crate) fn forget_starts<'a>(&self, topics: impl IntoIterator<Item = &'a String>) {
        self.change(|state| {
            let mut changed = false;
            for topic in topics {
                if let Some(entry) = state.topics.get_mut(topic) {
                    changed |= !std::mem::take(&mut entry.start_offsets).is_empty();
                }
            }
            changed
        });
    }

    /// Remembers where one partition begins.
    pub(crate) fn set_start_offset(&self, topic: &str, partition: i32, offset: i64) {
        let Ok(index) = usize::try_from(partition) else {
            return;
        };
        self.change(|state| {
            let offsets = &mut state
                .topics
                .entry(topic.to_owned())
                .or_default()
                .start_offsets;
            if offsets.len() <= index {
                offsets.resize(index + 1, 0);
            }
            let before = std::mem::replace(&mut offsets[index], offset);
            before != offset
        });
    }

    fn change(&self, change: impl FnOnce(&mut RunningState) -> bool) {
        self.state.send_if_modified(|state| {
            let changed = change(state);
            if changed {
                state.revision += 1;
            }
            changed
        });
    }
}

impl RunningState {
    /// The names of all mirrors of a link: of the topics that are named, then of those that filters found or commands created.
    pub fn mirrors(
        &self,
        prefix: &TopicPrefix,
        named: &[String],
        filters: &[Filter],
    ) -> Vec<String> {
        let mut mirrors: Vec<String> = named.iter().map(|n| prefix.add(n).to_string()).collect();
        let known: HashSet<&str> = mirrors.iter().map(String::as_str).collect();
        let further = self.topics.iter().filter(|(name, topic)| {
            !known.contains(name.as_str())
                && (topic.created || names::admits(prefix, filters, name))
        });
        let further: Vec<String> = further.map(|(name, _)| name.clone()).collect();
        mirrors.extend(further);
        mirrors
    }

    /// The operation for which all mirrors are to rest, if one is.
    pub fn stop_token(&self) -> Option<u64> {
        self.stop.filter(|stop| stop.active).map(|stop| stop.token)
    }

    /// What commands have changed, without what the filters alone have found.
    pub(crate) fn commanded(&self) -> Self {
        let mut state = self.clone();
        state.topics.retain(|_, topic| topic.changed > 0);
        // A restore is the work of the one engine that was told to.
        state.topics.values_mut().for_each(|t| t.restore = None);
        for topic in state.topics.values_mut() {
            topic.start_offsets.clear();
        }
        state
    }

    /// Takes over what was changed later there; `topics` gets the names of those that were.
    pub(crate) fn merge(&mut self, theirs: &Self, topics: &mut Vec<String>) -> bool {
        let mut changed = false;
        if theirs.paused_changed > self.paused_changed {
            (self.paused, self.paused_changed) = (theirs.paused, theirs.paused_changed);
            changed = true;
        }
        let at = |stop: &Option<StopOrder>| stop.map_or(0, |stop| stop.changed);
        if at(&theirs.stop) > at(&self.stop) {
            self.stop = theirs.stop;
            changed = true;
        }
        for (name, topic) in &theirs.topics {
            let ours = self.topics.get(name);
            let before = ours.map_or(0, |ours| ours.changed);
            if topic.changed > before {
                let restore = ours.and_then(|ours| ours.restore.clone());
                // Where a mirror begins is read from the log by other agents.
                let start_offsets = ours.map(|ours| ours.start_offsets.clone());
                let stopped = topic.state == Wanted::Stopped;
                let taken = TopicState {
                    restore: restore.filter(|_| !stopped),
                    start_offsets: start_offsets.filter(|_| !stopped).unwrap_or_default(),
                    ..topic.clone()
                };
                self.topics.insert(name.clone(), taken);
                topics.push(name.clone());
                changed = true;
            }
        }
        changed
    }

    /// The latest change of all.
    pub(crate) fn newest(&self) -> u64 {
        let topics = self.topics.values().map(|topic| topic.changed);
        let stop = self.stop.map(|stop| stop.changed);
        topics
            .chain(stop)
            .chain([self.paused_changed])
            .max()
            .unwrap_or(0)
    }

    /// A moment later than all before: by the clock, or one step on if a clock went back.
    fn next_change(&self) -> u64 {
        let now = u64::try_from(now_ms()).unwrap_or(0);
        now.max(self.newest() + 1)
    }

    /// What a topic should do, apart from a pause of the whole link.
    pub fn wanted(&self, topic: &str) -> Wanted {
        self.topics.get(topic).map_or(Wanted::Active, |t| t.state)
    }

    /// How far the restore of a topic has come; `None`: it is not being restored.
    pub fn restore_phase(&self, topic: &str) -> Option<RestorePhase> {
        let restore = self.topics.get(topic)?.restore.as_ref();
        restore.map(|restore| restore.phase)
    }
}

/// Why a mirror did not change its state as it was told to. Confluent's `mirror_state_transition_errors` have such codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[non_exhaustive]
pub enum TransitionErrorCode {
    /// The link has no such mirror.
    UnknownMirror,
    /// A name that cannot be mirrored.
    InvalidTopic,
    /// The mirror is paused; resume it first.
    MirrorPaused,
    /// The mirror was stopped by promote or failover.
    MirrorStopped,
    /// The mirror is FAILED.
    MirrorFailed,
    /// The mirror runs already.
    MirrorExists,
    /// The source was not reached.
    SourceUnavailable,
    /// The destination was not reached, so its log ends are not known.
    DestinationUnavailable,
    /// The mirror did not reach the end of the source's log in time; it goes on mirroring.
    LagNotZero,
    /// The mirror did not start in time; it goes on trying.
    NotStarted,
    /// Requests of the mirror were still unanswered when the time was up; their connections were closed.
    NotDrained,
    /// Other agents that share the link have not confirmed it; until their session has ended they may still write.
    NotConfirmed,
    /// Something else changed the mirror meanwhile.
    Superseded,
    /// Only a mirror that is FAILED or STOPPED can be restored.
    NotRestorable,
    /// The mirror is being restored.
    RestoreInProgress,
    /// The restore stopped before anything was deleted; the message says why.
    RestoreFailed,
    /// The mirror's log holds records that the source does not have: it can only go on after a restore.
    RestoreNeeded,
    /// The link does not run.
    LinkNotRunning,
    /// The state could not be saved: a restart would not know of it.
    NotSaved,
}

/// What became of one mirror topic that was told to change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MirrorChange {
    /// The link's name.
    pub link_name: String,
    /// Topic on the destination.
    pub mirror_topic_name: String,
    /// Topic on the source.
    pub source_topic_name: String,
    /// State afterwards.
    pub mirror_status: MirrorStatus,
    /// Why it did not change, or not cleanly. `None`: it is as it was told to be.
    pub error_code: Option<TransitionErrorCode>,
    /// The same in words, with what to do.
    pub error_message: Option<String>,
    /// What a promotion could not carry over once more (group offsets, configs, ACLs). The mirror is stopped all the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Per partition. After a promote or failover the destination's log end is as the destination itself said.
    pub mirror_lags: Vec<PartitionLag>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_change_makes_a_revision() {
        let lifecycle = Lifecycle::default();
        lifecycle.set(["a", "b"], Wanted::Paused);
        assert_eq!(lifecycle.state().revision, 1);
        lifecycle.set(["a"], Wanted::Paused);
        lifecycle.set_paused(false);
        lifecycle.note(["a"], false);
        assert_eq!(lifecycle.state().revision, 1);
        lifecycle.note(["a", "c"], true);
        lifecycle.set_paused(true);
        let state = lifecycle.state();
        assert_eq!((state.revision, state.paused), (3, true));
        assert_eq!(
            (state.wanted("a"), state.wanted("c"), state.wanted("x")),
            (Wanted::Paused, Wanted::Active, Wanted::Active)
        );
    }

    #[test]
    fn of_two_agents_the_later_command_counts_and_topics_do_not_disturb_each_other() {
        let (east, west) = (Lifecycle::default(), Lifecycle::default());
        east.set(["a"], Wanted::Paused);
        west.set(["b"], Wanted::Stopped);
        west.note(["found"], false);
        west.adopt(&east.state().commanded());
        west.set(["a"], Wanted::Active);
        assert_eq!(east.adopt(&west.state().commanded()), ["a", "b"]);
        let state = east.state();
        assert_eq!(
            (state.wanted("a"), state.wanted("b"), state.topics.len()),
            (Wanted::Active, Wanted::Stopped, 2)
        );
        // What is older changes nothing, also when it comes again.
        assert!(west.adopt(&east.state()).is_empty());
        east.set_stop(Some(7));
        west.adopt(&east.state());
        assert_eq!(west.rest_of("a"), Some(PartitionState::Stopped));
        west.set_stop(None);
        east.adopt(&west.state());
        assert_eq!((east.state().stop_token(), east.rest_of("a")), (None, None));
    }

    #[test]
    fn where_a_topic_began_is_forgotten_when_another_agent_restores_it() {
        let lifecycle = Lifecycle::default();
        for topic in ["a", "b"] {
            lifecycle.set_start_offset(topic, 1, 60);
        }
        lifecycle.forget_starts(&["a".to_owned(), "unknown".to_owned()]);
        let begins = |topic| lifecycle.start_offset(topic, 1);
        assert_eq!((begins("a"), begins("b")), (None, Some(60)));
        assert_eq!(lifecycle.state().topics.len(), 2);
    }

    #[test]
    fn only_what_is_known_can_be_read() {
        let text = r#"{"paused":false,"topics":{"a":{"state":"STOPPED"}}}"#;
        let state: RunningState = serde_json::from_str(text).unwrap();
        assert_eq!(state.wanted("a"), Wanted::Stopped);
        assert_eq!(serde_json::to_string(&state).unwrap(), text);
        for bad in [
            r#"{"paused":false}"#,
            r#"{"paused":false,"topics":{},"more":1}"#,
            r#"{"paused":false,"topics":{"a":{"state":"GONE"}}}"#,
            r#"{"paused":false,"topics":{"a":{"state":"PAUSED","x":1}}}"#,
        ] {
            assert!(serde_json::from_str::<RunningState>(bad).is_err(), "{bad}");
        }
    }
}
