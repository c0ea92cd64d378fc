//! Resting: partitions of a shard that are told to pause or stop, and to go on.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use uuid::Uuid;

use crate::description::{MirrorTopicError, PartitionState};
use crate::partition::PartitionId;
use crate::shard::{self, Shared, Slot};
use crate::writer::WriterQueue;

/// How often it is looked whether all in flight is answered.
const DRAIN_POLL: Duration = Duration::from_millis(2);

/// What the control plane orders.
#[derive(Debug)]
pub(crate) struct RestOrder {
    pub(crate) topics: Arc<HashSet<Arc<str>>>,
    /// Of these topics only these partitions; `None`: all.
    pub(crate) only: Option<Arc<HashSet<PartitionId>>>,
    /// Paused, Stopped or Elsewhere.
    pub(crate) state: PartitionState,
    pub(crate) deadline: Instant,
    /// `true`: all that was sent is answered.
    pub(crate) done: oneshot::Sender<bool>,
}

/// A partition that rests from now on, what is said of it, and its turn, by which a resume in between is seen.
struct Resting {
    turn: u32,
    trouble: Option<(MirrorTopicError, String)>,
}

/// Fetches and sends nothing more for these topics; answers when what is in flight is answered or the deadline has passed.
pub(crate) fn rest(shard: &Shared, order: RestOrder) {
    let mut resting = HashMap::new();
    for (index, slot) in shard.borrow_mut().slots.iter_mut().enumerate() {
        let id = &slot.partition.id;
        let meant = order.only.as_ref().is_none_or(|only| only.contains(id));
        if !meant || !order.topics.contains(&id.topic) {
            continue;
        }
        slot.turn = slot.turn.wrapping_add(1);
        slot.stopping.cancel();
        slot.partition.stop();
        slot.fetcher = None;
        let trouble = slot.partition.status.trouble();
        resting.insert(
            index,
            Resting {
                turn: slot.turn,
                trouble,
            },
        );
    }
    tokio::task::spawn_local(settle(Rc::clone(shard), resting, order));
}

async fn settle(shard: Shared, resting: HashMap<usize, Resting>, order: RestOrder) {
    let drained = loop {
        if !is_busy(&shard, &resting) {
            break true;
        }
        if Instant::now() >= order.deadline {
            break false;
        }
        tokio::time::sleep(DRAIN_POLL).await;
    };
    if !drained {
        close_connections(&shard, &resting).await;
    }
    for (index, before) in resting {
        let mut borrowed = shard.borrow_mut();
        let Some(slot) = borrowed.slots.get_mut(index) else {
            continue;
        };
        if slot.turn != before.turn {
            continue;
        }
        slot.partition.reset();
        (slot.writer, slot.listed, slot.waiting_since) = (None, false, None);
        let failed = slot.partition.status.state() == PartitionState::Failed;
        slot.terminal = true;
        match order.state {
            // What is wrong with it is still to be seen, and only a resume starts it again.
            PartitionState::Paused if failed => {}
            PartitionState::Paused | PartitionState::Elsewhere => {
                slot.partition.status.enter(order.state, None);
            }
            state => {
                let trouble = if failed {
                    slot.partition.status.trouble()
                } else {
                    before.trouble
                };
                slot.partition.status.enter(state, trouble);
            }
        }
    }
    let _ = order.done.send(drained);
}

/// Whether anything of these partitions may still be appended by this shard.
fn is_busy(shard: &Shared, resting: &HashMap<usize, Resting>) -> bool {
    let borrowed = shard.borrow();
    let starting = |index: &usize| borrowed.slots.get(*index).is_some_and(|s| s.starters > 0);
    resting.keys().any(starting) || borrowed.writers.values().any(|q| carries(q, resting))
}

fn carries(queue: &WriterQueue, resting: &HashMap<usize, Resting>) -> bool {
    queue.carries(|index| resting.contains_key(&index))
}

/// Closing the sockets is what makes sure that nothing more is sent. The other partitions on them start again.
async fn close_connections(shard: &Shared, resting: &HashMap<usize, Resting>) {
    let queues: Vec<Rc<WriterQueue>> = shard
        .borrow()
        .writers
        .values()
        .filter(|queue| carries(queue, resting))
        .map(Rc::clone)
        .collect();
    for queue in &queues {
        queue.close("a mirror topic was stopped while the broker did not answer");
    }
    while queues.iter().any(|queue| queue.is_open()) {
        tokio::task::yield_now().await;
    }
}

/// Starts the partitions of these topics again from their logs, those that FAILED too. Running ones go on.
pub(crate) fn resume(shard: &Shared, topics: &HashMap<Arc<str>, Uuid>) {
    let mut indexes = Vec::new();
    {
        let mut borrowed = shard.borrow_mut();
        let stopping = borrowed.stopping.clone();
        let share = borrowed.context.share.clone();
        let mut moved = Vec::new();
        for (index, slot) in borrowed.slots.iter_mut().enumerate() {
            let Some(topic_id) = topics.get(&slot.partition.id.topic) else {
                continue;
            };
            if !share.holds(&slot.partition.id) {
                give_away(slot);
                continue;
            }
            if wake(slot, *topic_id) {
                slot.stopping = stopping.child_token();
                moved.push((*topic_id, slot.partition.id.partition, index));
                indexes.push(index);
            }
        }
        for (topic_id, partition, index) in moved {
            borrowed.by_topic_id.insert((topic_id, partition), index);
        }
    }
    for index in indexes {
        shard::begin(shard, index);
    }
}

/// It is not this engine's; one that still runs is told to rest by an order of its own.
fn give_away(slot: &mut Slot) {
    if slot.terminal {
        slot.partition.status.enter(PartitionState::Elsewhere, None);
    }
}

/// `false`: it runs already.
fn wake(slot: &mut Slot, topic_id: Uuid) -> bool {
    if !slot.terminal && !slot.stopping.is_cancelled() {
        return false;
    }
    slot.turn = slot.turn.wrapping_add(1);
    slot.terminal = false;
    slot.source_topic_id = topic_id;
    slot.partition.reset();
    slot.partition.resume();
    (slot.writer, slot.listed, slot.waiting_since) = (None, false, None);
    slot.partition.status.enter(PartitionState::Starting, None);
    true
}
