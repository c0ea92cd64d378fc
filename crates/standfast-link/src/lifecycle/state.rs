//! What is remembered of a link and its mirrors, as it is kept in a file and told to other agents.

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};
use standfast_wire::TopicPrefix;

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
    pub(super) fn next_change(&self) -> u64 {
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

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde asks for a reference"
)]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

#[cfg(test)]
mod tests {
    use super::*;

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
