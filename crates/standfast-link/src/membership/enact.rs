//! Doing what the group says: partitions that are no longer this engine's rest, those that are run.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;
use tracing::warn;

use crate::description::{MirrorTopicError, PartitionState};
use crate::handle::LinkHandle;
use crate::lifecycle::Wanted;
use crate::link::Inner;
use crate::partition::PartitionId;
use crate::shard::Command;
use crate::topics::{self, Topic};

use super::View;

/// How long what is in flight may take to be answered when a partition is given away.
const DRAIN: Duration = Duration::from_secs(5);

/// How often it is looked whether the lease has ended.
const LEASE_CHECK: Duration = Duration::from_millis(200);

/// How often it is looked whether every partition does what the assignment says. A data thread that looked at the lease just before it was renewed puts a
/// partition to rest after everything else has been set going.
const SECOND_LOOK: Duration = Duration::from_secs(1);

/// Acts whenever the share changes or the lease ends or begins.
pub(crate) async fn keep(inner: Arc<Inner>) {
    let Some(shared) = inner.share.shared.clone() else {
        return std::future::pending().await;
    };
    let mut tick = tokio::time::interval(LEASE_CHECK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut held, mut acted_at) = (false, Instant::now());
    loop {
        tokio::select! {
            () = shared.act.notified() => {}
            _ = tick.tick() => {
                if inner.share.lease.is_valid() == held && acted_at.elapsed() < SECOND_LOOK {
                    continue;
                }
            }
        }
        let valid = inner.share.lease.is_valid();
        if held && !valid {
            warn!(link = %inner.options.name, "the lease on the link has ended; its partitions rest here until the group's coordinator answers again");
        }
        held = valid;
        let generation = shared.view.borrow().generation;
        act(&inner).await;
        acted_at = Instant::now();
        let is_new =
            |view: &mut View| std::mem::replace(&mut view.enacted, generation) != generation;
        if shared.view.send_if_modified(is_new) {
            shared.speak.notify_one();
        }
    }
}

/// Another agent was told something about these topics.
pub(super) fn note(inner: &Inner, changed: &[String]) {
    if changed.is_empty() {
        return;
    }
    let state = inner.options.lifecycle.state();
    let mut topics = inner.topics();
    let known: HashSet<Arc<str>> = topics.iter().map(Topic::name).collect();
    for name in changed {
        if !known.contains(name.as_str())
            && state.topics.get(name).is_some_and(|topic| topic.created)
        {
            topics.push(Topic::new(name, &inner.options.prefix));
        }
    }
    let active = |name: &str| state.wanted(name) == Wanted::Active;
    for topic in topics.iter_mut() {
        let name = topic.name();
        if !changed.iter().any(|c| **c == *name) {
            continue;
        }
        if active(&name) && (topic.has_failed() || topic.has_stopped()) {
            topic.begin_again();
        }
        if !active(&name) && topic.promoting && state.wanted(&name) == Wanted::Stopped {
            (topic.promoting, topic.held) = (false, false);
        }
    }
    drop(topics);
    inner.look_again.notify_one();
}

async fn act(inner: &Arc<Inner>) {
    topics::let_rest(inner).await;
    let (mut away, mut back, mut unknown) = (HashSet::new(), HashMap::new(), false);
    {
        let topics = inner.topics();
        for topic in topics.iter() {
            let rest = inner.rest_of(&topic.name());
            for (id, status) in topic.ids().zip(topic.partitions()) {
                let resting = matches!(
                    status.state(),
                    PartitionState::Elsewhere | PartitionState::Paused | PartitionState::Stopped
                );
                match (inner.share.holds(&id), resting) {
                    (false, false) => drop(away.insert(id)),
                    (false, true) if status.state() == PartitionState::Elsewhere => {
                        let trouble = inner.share.failed_elsewhere(&id);
                        let trouble = trouble.map(|text| (MirrorTopicError::Unknown, text));
                        status.enter(PartitionState::Elsewhere, trouble);
                    }
                    (true, true) if rest.is_none() && !topic.held => {
                        match topic.source_topic_id() {
                            Some(topic_id) => drop(back.insert(topic.name(), topic_id)),
                            None => unknown = true,
                        }
                    }
                    _ => {}
                }
            }
        }
    }
    if !away.is_empty() {
        let handle = LinkHandle {
            inner: Arc::clone(inner),
        };
        let names: HashSet<Arc<str>> = away
            .iter()
            .map(|id: &PartitionId| Arc::clone(&id.topic))
            .collect();
        handle
            .rest_some(
                &names,
                Some(away),
                PartitionState::Elsewhere,
                Instant::now() + DRAIN,
            )
            .await;
    }
    if !back.is_empty() {
        let back = Arc::new(back);
        for shard in inner.all_shards() {
            let _ = shard.send(Command::Resume(Arc::clone(&back))).await;
        }
    }
    if unknown || has_unknown(inner) {
        inner.look_again.notify_one();
    }
}

/// Whether partitions were assigned that this engine has not found yet.
fn has_unknown(inner: &Inner) -> bool {
    let Some(shared) = &inner.share.shared else {
        return false;
    };
    let topics = inner.topics();
    let known: usize = topics
        .iter()
        .flat_map(Topic::ids)
        .filter(|id| shared.view.borrow().mine.contains(id))
        .count();
    known < shared.view.borrow().mine.len()
}
