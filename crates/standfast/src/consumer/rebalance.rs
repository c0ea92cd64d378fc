//! What the application is told about its partitions.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use super::Key;
use super::handle::ConsumerHandle;
use super::shared::ConsumerShared;
use crate::event::FleetEvent;

/// A partition of a topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    /// The topic.
    pub topic: String,
    /// The partition, counted from 0.
    pub partition: i32,
}

impl TopicPartition {
    /// Names a partition.
    pub fn new(topic: impl Into<String>, partition: i32) -> Self {
        Self {
            topic: topic.into(),
            partition,
        }
    }

    pub(super) fn key(&self) -> Key {
        (self.topic.clone(), self.partition)
    }
}

impl From<Key> for TopicPartition {
    fn from((topic, partition): Key) -> Self {
        Self { topic, partition }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

/// A change of the partitions that a consumer reads.
///
/// A flip changes nothing by itself: partitions that the group gives back to this consumer on the new cluster go on, and the
/// application is not told. It is told what it has got in addition, and what it has lost to another member.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RebalanceEvent {
    /// The group has given these partitions to the consumer. None of them is read before
    /// [`on_rebalance`](crate::ConsumerBuilder::on_rebalance) returns: it may seek.
    Assigned(Vec<TopicPartition>),
    /// These partitions go to another member, or the consumer closes. Nothing of them is handed out any more. What is
    /// acknowledged until [`on_rebalance`](crate::ConsumerBuilder::on_rebalance) returns is still committed (with
    /// [`manual_commit`](crate::ConsumerBuilder::manual_commit): if it is asked for until then).
    Revoked(Vec<TopicPartition>),
    /// These partitions are gone, and nothing can be committed for them: the group went on without this consumer, or gave
    /// them to another member on the new cluster after a flip. What the application does with records of them, another
    /// member does too.
    Lost(Vec<TopicPartition>),
}

type Callback = dyn Fn(&ConsumerHandle, &RebalanceEvent) + Send + Sync;

/// What the application wants to be called with.
#[derive(Clone)]
pub(super) struct Listener(Arc<Callback>);

impl Listener {
    pub(super) fn new(
        listener: impl Fn(&ConsumerHandle, &RebalanceEvent) + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(listener))
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listener")
    }
}

/// What an assignment changes for the application.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) added: Vec<Key>,
    pub(super) gone: Vec<Key>,
}

impl Change {
    /// From what the application knows to what the group says. `is_first`: of a generation, hence all there is; later ones only
    /// add, what goes is revoked apart.
    pub(super) fn between(known: &BTreeSet<Key>, assigned: &[Key], is_first: bool) -> Self {
        let gone = known.iter().filter(|key| !assigned.contains(key));
        Self {
            added: assigned
                .iter()
                .filter(|key| !known.contains(*key))
                .cloned()
                .collect(),
            gone: match is_first {
                true => gone.cloned().collect(),
                false => Vec::new(),
            },
        }
    }
}

/// Tells an event, if it names a partition. Waits for the application's listener. No lock may be held that its handle takes.
pub(super) fn tell(
    shared: &Arc<ConsumerShared>,
    event: fn(Vec<TopicPartition>) -> RebalanceEvent,
    keys: Vec<Key>,
) {
    if keys.is_empty() {
        return;
    }
    let event = event(keys.into_iter().map(TopicPartition::from).collect());
    tracing::debug!(client = shared.name.as_str(), ?event, "rebalanced");
    if let Some(Listener(listener)) = &shared.listener {
        listener(&ConsumerHandle::new(shared), &event);
    }
    shared.fleet.emit(FleetEvent::Rebalanced {
        client: shared.name.clone(),
        event,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flip_tells_only_what_it_changes() {
        let key = |number| ("t".to_owned(), number);
        let known = BTreeSet::from([key(0), key(1)]);
        let first = Change::between(&known, &[key(1), key(2)], true);
        assert_eq!((first.added, first.gone), (vec![key(2)], vec![key(0)]));
        let more = Change::between(&known, &[key(2)], false);
        assert_eq!((more.added, more.gone), (vec![key(2)], vec![]));
        let same = Change::between(&known, &[key(0), key(1)], true);
        assert_eq!(same, Change::default());
    }
}
