//! How a shard takes partitions over and starts them: after a wait, through start-up and, where that is due, the slow path, to its fetcher and writer.

use std::collections::hash_map::Entry;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::info;

use super::{NewPartition, Shared, Slot, apply};
use crate::contain::contain;
use crate::description::PartitionState;
use crate::fetcher::{self, FetcherWake};
use crate::options::LinkOptions;
use crate::partition::{Doubt, Partition, Verdict};
use crate::slow;
use crate::startup::{self, Refusal, Started};
use crate::writer;

/// Start-ups at a time; most of their time they wait for answers. Those that read batches are bounded by [`startup::MAX_READING`].
pub(super) const MAX_STARTING: usize = 32;

/// How a partition goes on after start-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// Read and written by the shard.
    Fast,
    /// Past the holes at its position first.
    Slow,
}

pub(super) fn add(shard: &Shared, new: NewPartition) {
    let index = {
        let mut borrowed = shard.borrow_mut();
        let index = borrowed.slots.len();
        let stopping = borrowed.stopping.child_token();
        let prefix = &borrowed.context.options.prefix;
        let source_topic = match prefix.is_empty() {
            true => Arc::clone(&new.id.topic),
            false => prefix.own_name(&new.id.topic).into(),
        };
        borrowed
            .by_topic_id
            .insert((new.source_topic_id, new.id.partition), index);
        borrowed.slots.push(Slot {
            source_topic,
            partition: Partition::new(new.id, new.status),
            source_topic_id: new.source_topic_id,
            fetcher: None,
            writer: None,
            listed: false,
            waiting_since: None,
            starting: stopping.child_token(),
            terminal: new.rest.is_some(),
            stopping,
            turn: 0,
            starters: 0,
        });
        index
    };
    match new.rest {
        None => begin(shard, index),
        Some(state) => {
            if let Some(slot) = shard.borrow().slots.get(index) {
                slot.partition.status.enter(state, None);
            }
        }
    }
}

/// Starts a partition (again), after a wait that grows with the tries.
pub(crate) fn begin(shard: &Shared, index: usize) {
    begin_at(shard, index, Pace::Fast);
}

pub(super) fn begin_at(shard: &Shared, index: usize, pace: Pace) {
    if let Some(slot) = shard.borrow_mut().slots.get_mut(index) {
        slot.starters += 1;
    }
    let shard = Rc::clone(shard);
    tokio::task::spawn_local(async move {
        let outcome = contain("start-up", start(&shard, index, pace)).await;
        if let Some(slot) = shard.borrow_mut().slots.get_mut(index) {
            slot.starters = slot.starters.saturating_sub(1);
        }
        if let Err(text) = outcome {
            apply(&shard, index, Verdict::StartAgain(Doubt::destination(text)));
        }
    });
}

async fn start(shard: &Shared, index: usize, pace: Pace) {
    let (wait, starting, stopping) = {
        let mut borrowed = shard.borrow_mut();
        let options = Arc::clone(&borrowed.context.options);
        let starting = Rc::clone(&borrowed.starting);
        let Some(slot) = borrowed.slots.get_mut(index) else {
            return;
        };
        let stopping = slot.stopping.child_token();
        slot.starting = stopping.clone();
        let wait = match pace {
            Pace::Fast => backoff(&options, slot.partition.attempts),
            Pace::Slow => Duration::ZERO,
        };
        if pace == Pace::Fast {
            slot.partition.attempts = slot.partition.attempts.saturating_add(1);
        }
        (wait, starting, stopping)
    };
    tokio::select! {
        () = tokio::time::sleep(wait) => {}
        () = stopping.cancelled() => {}
    }
    let one_of_few = tokio::select! {
        Ok(permit) = starting.acquire() => permit,
        () = stopping.cancelled() => return,
        else => return,
    };
    let (control, request) = {
        let mut borrowed = shard.borrow_mut();
        let context = borrowed.context.clone();
        let Some(slot) = borrowed.slots.get_mut(index) else {
            return;
        };
        let slot_rest = context.rest_of(&slot.partition.id);
        if slot.terminal || stopping.is_cancelled() {
            return;
        }
        // An order to rest may have come before the order to begin.
        if let Some(rest) = slot_rest {
            slot.terminal = true;
            slot.partition.status.enter(rest, None);
            return;
        }
        let request = startup::Request {
            context: context.clone(),
            id: slot.partition.id.clone(),
            source_topic_id: slot.source_topic_id,
            status: Arc::clone(&slot.partition.status),
            stopping: stopping.clone(),
            seeding: CancellationToken::new(),
        };
        (context.control, request)
    };
    let status = Arc::clone(&request.status);
    let ahead_seeding = request.seeding.clone();
    let (ahead, slow) = (request.clone(), request);
    let mut running =
        AbortOnDropHandle::new(control.spawn(async move { startup::run(&ahead).await }));
    let seeding = async {
        ahead_seeding.cancelled().await;
        drop(one_of_few);
        std::future::pending::<()>().await;
    };
    let mut outcome = tokio::select! {
        outcome = &mut running => outcome,
        () = seeding => return,
        // Reading is simply dropped, so that a stop never waits for a dead source; seeding ends by itself after the batch under way.
        () = stopping.cancelled() => {
            if status.state() == PartitionState::Seeding {
                let _ = running.await;
            }
            return;
        }
    };
    if let Ok(Ok(started)) = &outcome
        && (pace == Pace::Slow || started.inside_transaction)
    {
        // Ends by itself soon after `stopping`, with nothing left in flight.
        let started = started.clone();
        outcome = AbortOnDropHandle::new(control.spawn(slow::run(slow, started))).await;
    }
    if stopping.is_cancelled() {
        return;
    }
    match outcome {
        Ok(Ok(started)) => attach(shard, index, &started),
        Ok(Err(Refusal::Fail(failure))) => apply(shard, index, Verdict::Fail(failure)),
        Ok(Err(Refusal::Later(doubt))) => apply(shard, index, Verdict::StartAgain(doubt)),
        Err(panicked) => apply(
            shard,
            index,
            Verdict::StartAgain(Doubt::destination(format!("start-up ended: {panicked}"))),
        ),
    }
}

fn backoff(options: &LinkOptions, attempts: u32) -> Duration {
    if attempts == 0 {
        return Duration::ZERO;
    }
    let longest = options
        .backoff
        .min
        .saturating_mul(1 << attempts.min(16))
        .min(options.backoff.max);
    rand::rng().random_range(longest / 2..=longest)
}

/// Both logs are equal up to the position: read and write from there.
fn attach(shard: &Shared, index: usize, started: &Started) {
    let mut borrowed = shard.borrow_mut();
    let connections = borrowed.context.options.produce.connections_per_broker;
    let Some(slot) = borrowed.slots.get_mut(index) else {
        return;
    };
    if slot.terminal {
        return;
    }
    // A broker works on one request of a connection at a time: side by side, two connections keep two of its threads busy.
    let key = (started.destination_leader, index % connections);
    slot.fetcher = Some(started.source_leader);
    slot.partition.status.source_answered(started.source_end);
    slot.partition.run_from(started);
    info!(partition = %slot.partition.id, offset = started.position, source_end = started.source_end, "mirroring");
    let fetcher = borrowed.fetchers.get(&started.source_leader).map(Rc::clone);
    match fetcher {
        Some(wake) => wake.wake(),
        None => {
            let wake = Rc::new(FetcherWake::default());
            borrowed
                .fetchers
                .insert(started.source_leader, Rc::clone(&wake));
            tokio::task::spawn_local(fetcher::run(Rc::clone(shard), started.source_leader, wake));
        }
    }
    let queue = match borrowed.writers.entry(key) {
        Entry::Occupied(occupied) => Rc::clone(occupied.get()),
        Entry::Vacant(vacant) => {
            let queue = Rc::clone(vacant.insert(Rc::default()));
            tokio::task::spawn_local(writer::run(Rc::clone(shard), key, Rc::clone(&queue)));
            queue
        }
    };
    if let Some(slot) = borrowed.slots.get_mut(index) {
        slot.writer = Some((key, queue));
    }
}
