//! Which mirrors run: the one part of a link's state that the logs do not hold, because it is the operator's will.
//!
//! The engine reads it, the handle changes it, and whoever runs the link keeps it over restarts (the agent: in a file).

mod change;
mod state;

use std::collections::BTreeSet;
use std::sync::Arc;

use standfast_wire::TopicPrefix;
use tokio::sync::watch;

use crate::Error;
use crate::description::PartitionState;
use crate::names;
use crate::restore::{RestorePhase, RestoreState};
pub use change::{MirrorChange, TransitionErrorCode};
pub use state::{RunningState, StopOrder, TopicState, Wanted};

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
}
