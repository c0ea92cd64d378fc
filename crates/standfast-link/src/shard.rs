//! A shard: one operating system thread that owns some partitions and every socket that copies their data.
//!
//! All tasks of a shard run on one single-threaded runtime and share its state without locks or cross-thread wake-ups; no borrow lives across an await.
//! Calls to the control plane (metadata, log ends, start-up) run on the runtime that runs the link.

mod starting;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::{Duration, Instant};

use standfast_wire::BrokerId;
use standfast_wire::Cluster;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};
use uuid::Uuid;

use crate::budget::Budget;
use crate::description::{MirrorTopicError, PartitionState};
use crate::fetcher::FetcherWake;
use crate::membership::Share;
use crate::options::LinkOptions;
use crate::partition::{Doubt, Failure, Partition, PartitionId, Side, Verdict};
use crate::rate::RateLimit;
use crate::rest::{self, RestOrder};
use crate::status::PartitionStatus;
use crate::transactions::TimeoutFound;
use crate::writer::WriterQueue;
pub(crate) use starting::begin;
use starting::{MAX_STARTING, Pace, add, begin_at};

/// How often stalled partitions and overdue requests are looked for.
const TICK: Duration = Duration::from_millis(250);

/// A partition whose oldest request waits longer gives up its queue, so that its memory serves the others.
const STALLED_AFTER: Duration = Duration::from_secs(1);

/// A produce request without an answer for so long ends its connection.
const PRODUCE_OVERDUE: Duration = Duration::from_secs(10);

const NO_LEASE: &str = "the lease on the link has ended";

/// Commands waiting for a shard.
pub(crate) const COMMAND_QUEUE: usize = 64;

/// What the control plane tells a shard.
#[derive(Debug)]
pub(crate) enum Command {
    /// Mirror these partitions from now on.
    Add(Vec<NewPartition>),
    /// The destination's log end is not where the idle mirror left it.
    Suspect {
        id: PartitionId,
        position: i64,
        found: i64,
    },
    /// Stop these partitions for good.
    Fail {
        topic: Arc<str>,
        error: MirrorTopicError,
        text: String,
    },
    /// The producer id of the link changed: every partition starts again.
    NewProducerId,
    /// Fetch and append nothing more for some topics, until they are resumed.
    Rest(RestOrder),
    /// Start the partitions of these topics (with the source's topic id) again, if they rest or FAILED.
    Resume(Arc<HashMap<Arc<str>, Uuid>>),
    /// Append nothing more; answers when all in flight is answered or the deadline has passed. `true`: all was answered.
    Stop {
        deadline: Instant,
        done: oneshot::Sender<bool>,
    },
}

/// A partition to mirror.
#[derive(Debug, Clone)]
pub(crate) struct NewPartition {
    pub(crate) id: PartitionId,
    pub(crate) source_topic_id: Uuid,
    pub(crate) status: Arc<PartitionStatus>,
    /// It rests in this state until it is resumed.
    pub(crate) rest: Option<PartitionState>,
}

/// What all shards of a link share.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    pub(crate) options: Arc<LinkOptions>,
    pub(crate) source: Cluster,
    pub(crate) destination: Cluster,
    pub(crate) producer_id: Arc<AtomicI64>,
    pub(crate) transaction_timeout: Arc<TimeoutFound>,
    /// What of the link is this engine's; with the lease, without which nothing may be written.
    pub(crate) share: Share,
    pub(crate) rate: Arc<RateLimit>,
    /// The runtime of the control plane.
    pub(crate) control: tokio::runtime::Handle,
    /// One permit per start-up that reads batches.
    pub(crate) reading: Arc<Semaphore>,
    /// One permit per partition that is at work on the slow path.
    pub(crate) slow_paths: Arc<Semaphore>,
    /// One permit per partition that is being seeded.
    pub(crate) seeds: Arc<Semaphore>,
}

impl Context {
    /// The state in which a partition should rest; `None`: this engine should mirror it.
    pub(crate) fn rest_of(&self, id: &PartitionId) -> Option<PartitionState> {
        let told = self.options.lifecycle.rest_of(&id.topic);
        told.or_else(|| (!self.share.holds(id)).then_some(PartitionState::Elsewhere))
    }
}

pub(crate) type Shared = Rc<RefCell<Shard>>;

/// Connection of a shard to a destination broker.
pub(crate) type WriterKey = (BrokerId, usize);

pub(crate) struct Slot {
    pub(crate) partition: Partition,
    /// The topic as the source calls it.
    pub(crate) source_topic: Arc<str>,
    pub(crate) source_topic_id: Uuid,
    pub(crate) fetcher: Option<BrokerId>,
    pub(crate) writer: Option<(WriterKey, Rc<WriterQueue>)>,
    /// Already in its writer's ready queue.
    pub(crate) listed: bool,
    /// Oldest request that is not answered.
    pub(crate) waiting_since: Option<Instant>,
    /// It does not run until it is resumed: FAILED, paused or stopped.
    pub(crate) terminal: bool,
    /// Cancelled when it is told to rest; a resume gives it a new one.
    pub(crate) stopping: CancellationToken,
    /// Grows with each order to rest or resume.
    pub(crate) turn: u32,
    /// Start-ups under way; they may seed.
    pub(crate) starters: u32,
    /// Ends the start-up or slow path under way.
    starting: CancellationToken,
}

pub(crate) struct Shard {
    pub(crate) context: Context,
    pub(crate) slots: Vec<Slot>,
    pub(crate) by_topic_id: HashMap<(Uuid, i32), usize>,
    pub(crate) fetchers: HashMap<BrokerId, Rc<FetcherWake>>,
    pub(crate) writers: HashMap<WriterKey, Rc<WriterQueue>>,
    pub(crate) budget: Rc<Budget>,
    starting: Rc<Semaphore>,
    pub(crate) stopping: CancellationToken,
}

/// Runs a shard on its own thread until `shutdown`; ends what it started.
pub(crate) fn spawn(
    index: usize,
    context: Context,
    commands: mpsc::Receiver<Command>,
    shutdown: CancellationToken,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::Builder::new()
        .name(format!("standfast-link-{index}"))
        .spawn(move || {
            let budget = Budget::new(context.options.memory_bytes / context.options.shards);
            let shard = Rc::new(RefCell::new(Shard {
                context,
                slots: Vec::new(),
                by_topic_id: HashMap::new(),
                fetchers: HashMap::new(),
                writers: HashMap::new(),
                budget,
                starting: Rc::new(Semaphore::new(MAX_STARTING)),
                stopping: CancellationToken::new(),
            }));
            let local = LocalSet::new();
            // A task of its own: the root of a local set is polled on every wake-up of any task.
            let serving = local.spawn_local(serve(shard, commands, shutdown));
            let _ended = local.block_on(&runtime, serving);
            // Dropping the set drops every task and socket: nothing is sent after this.
        })
}

async fn serve(shard: Shared, mut commands: mpsc::Receiver<Command>, shutdown: CancellationToken) {
    let mut tick = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            command = commands.recv() => match command {
                Some(command) => obey(&shard, command),
                None => return,
            },
            _ = tick.tick() => look_for_stalls(&shard),
        }
    }
}

fn obey(shard: &Shared, command: Command) {
    match command {
        Command::Add(partitions) => {
            for new in partitions {
                add(shard, new);
            }
        }
        Command::Suspect {
            id,
            position,
            found,
        } => {
            let index = shard
                .borrow()
                .slots
                .iter()
                .position(|s| s.partition.id == id && s.partition.idle_at() == Some(position));
            if let Some(index) = index {
                let text =
                    format!("the destination ends at offset {found}, the mirror at {position}");
                apply(shard, index, Verdict::StartAgain(Doubt::destination(text)));
            }
        }
        Command::Fail { topic, error, text } => {
            let indexes: Vec<usize> = {
                let borrowed = shard.borrow();
                (0..borrowed.slots.len())
                    .filter(|i| {
                        borrowed
                            .slots
                            .get(*i)
                            .is_some_and(|s| s.partition.id.topic == topic)
                    })
                    .collect()
            };
            for index in indexes {
                apply(
                    shard,
                    index,
                    Verdict::Fail(Failure::new(error, text.clone())),
                );
            }
        }
        Command::NewProducerId => {
            let count = shard.borrow().slots.len();
            for index in 0..count {
                if shard
                    .borrow()
                    .slots
                    .get(index)
                    .is_some_and(|s| s.partition.is_running())
                {
                    apply(
                        shard,
                        index,
                        Verdict::StartAgain(Doubt::destination("the link's producer id changed")),
                    );
                }
            }
        }
        Command::Rest(order) => rest::rest(shard, order),
        Command::Resume(topics) => rest::resume(shard, &topics),
        Command::Stop { deadline, done } => {
            tokio::task::spawn_local(stop(Rc::clone(shard), deadline, done));
        }
    }
}

/// Draws the consequence of an answer. The only place where a partition leaves the running state.
pub(crate) fn apply(shard: &Shared, index: usize, verdict: Verdict) {
    let again = {
        let mut borrowed = shard.borrow_mut();
        let (source, destination) = (
            borrowed.context.source.clone(),
            borrowed.context.destination.clone(),
        );
        let Some(slot) = borrowed.slots.get_mut(index) else {
            return;
        };
        if verdict == Verdict::GoOn || slot.terminal {
            return;
        }
        // Of the whole shard, or of this partition alone.
        let stopping = slot.stopping.is_cancelled();
        let id = slot.partition.id.clone();
        slot.partition.reset();
        (slot.fetcher, slot.writer, slot.listed, slot.waiting_since) = (None, None, false, None);
        slot.starting.cancel();
        match verdict {
            Verdict::GoOn => None,
            Verdict::Slow => {
                debug!(partition = %id, "a batch that cannot be copied as it is, going on on the slow path");
                (!stopping).then_some(Pace::Slow)
            }
            Verdict::StartAgain(doubt) => {
                debug!(partition = %id, reason = %doubt.text, "partition starts again");
                let (state, cluster) = match doubt.side {
                    // One topic that may not be read does not make the source unavailable.
                    Side::Source if doubt.error == MirrorTopicError::AuthorizationError => {
                        (PartitionState::Retrying, source)
                    }
                    Side::Source => (PartitionState::SourceUnavailable, source),
                    Side::Destination => (PartitionState::Retrying, destination),
                };
                cluster.invalidate_leader(&id.topic, id.partition);
                slot.partition
                    .status
                    .enter(state, Some((doubt.error, doubt.text)));
                (!stopping).then_some(Pace::Fast)
            }
            Verdict::Fail(failure) => {
                error!(partition = %id, error = ?failure.error, reason = %failure.text, "mirror partition FAILED, nothing more is written to it");
                slot.terminal = true;
                slot.partition
                    .status
                    .enter(PartitionState::Failed, Some((failure.error, failure.text)));
                None
            }
        }
    };
    if let Some(pace) = again {
        begin_at(shard, index, pace);
    }
}

/// The connection to a source broker is gone: every partition read over it is in doubt.
pub(crate) fn source_lost(shard: &Shared, broker: BrokerId, text: &str) {
    let indexes = attached(shard, |slot| slot.fetcher == Some(broker));
    if !indexes.is_empty() {
        warn!(
            broker = broker.0,
            partitions = indexes.len(),
            reason = text,
            "source broker lost, retrying"
        );
    }
    shard.borrow_mut().fetchers.remove(&broker);
    for index in indexes {
        apply(shard, index, Verdict::StartAgain(Doubt::source(text)));
    }
}

/// The connection to a destination broker is gone: every partition written over it is in doubt. `idle`: nothing was in flight, so that a broker may just
/// have closed a connection that was not used for long.
pub(crate) fn destination_lost(shard: &Shared, key: WriterKey, text: &str, idle: bool) {
    let indexes = attached(shard, |slot| {
        slot.writer
            .as_ref()
            .is_some_and(|(writer, _)| *writer == key)
    });
    if !indexes.is_empty() && !idle {
        warn!(
            broker = key.0.0,
            partitions = indexes.len(),
            reason = text,
            "destination broker lost, retrying"
        );
    }
    shard.borrow_mut().writers.remove(&key);
    for index in indexes {
        apply(shard, index, Verdict::StartAgain(Doubt::destination(text)));
    }
}

fn attached(shard: &Shared, belongs: impl Fn(&Slot) -> bool) -> Vec<usize> {
    shard
        .borrow()
        .slots
        .iter()
        .enumerate()
        .filter(|(_, slot)| belongs(slot))
        .map(|(index, _)| index)
        .collect()
}

impl Shard {
    /// Puts a partition into its writer's queue if it has something to send.
    pub(crate) fn list(&mut self, index: usize) {
        let max_in_flight = self.context.options.produce.max_in_flight;
        let Some(slot) = self.slots.get_mut(index) else {
            return;
        };
        if slot.listed || !slot.partition.is_ready(max_in_flight) {
            return;
        }
        let Some((_, queue)) = &slot.writer else {
            return;
        };
        slot.listed = true;
        queue.push(index);
    }
}

fn look_for_stalls(shard: &Shared) {
    close_without_lease(shard);
    let overdue: Vec<WriterKey> = shard
        .borrow()
        .writers
        .iter()
        .filter(|(_, queue)| {
            queue
                .oldest()
                .is_some_and(|at| at.elapsed() > PRODUCE_OVERDUE)
        })
        .map(|(key, _)| *key)
        .collect();
    for key in overdue {
        let queue = shard.borrow().writers.get(&key).map(Rc::clone);
        if let Some(queue) = queue {
            queue.close(&format!("no answer to Produce within {PRODUCE_OVERDUE:?}"));
        }
    }
    let mut borrowed = shard.borrow_mut();
    for slot in &mut borrowed.slots {
        if slot
            .waiting_since
            .is_some_and(|at| at.elapsed() > STALLED_AFTER)
        {
            slot.partition.shed();
        }
    }
}

/// What waits for room in a socket is not sent any more.
fn close_without_lease(shard: &Shared) {
    let borrowed = shard.borrow();
    if !borrowed.context.share.lease.is_valid() {
        for queue in borrowed.writers.values() {
            queue.close(NO_LEASE);
        }
    }
}

async fn stop(shard: Shared, deadline: Instant, done: oneshot::Sender<bool>) {
    {
        let mut borrowed = shard.borrow_mut();
        borrowed.stopping.cancel();
        for slot in &mut borrowed.slots {
            slot.partition.stop();
        }
    }
    let busy = |shard: &Shared| {
        let borrowed = shard.borrow();
        borrowed.slots.iter().any(|slot| slot.starters > 0)
            || borrowed
                .writers
                .values()
                .any(|queue| queue.oldest().is_some())
    };
    let mut drained = true;
    while busy(&shard) {
        if Instant::now() >= deadline {
            drained = false;
            break;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    // Closing the sockets is what makes sure that nothing more is sent. It is no trouble of a partition that was well until here.
    let troubles: Vec<_> = (shard.borrow().slots.iter())
        .map(|slot| slot.partition.status.trouble())
        .collect();
    let queues: Vec<Rc<WriterQueue>> = shard
        .borrow_mut()
        .writers
        .drain()
        .map(|(_, queue)| queue)
        .collect();
    for queue in &queues {
        queue.close("the mirrors were stopped");
    }
    while queues.iter().any(|queue| queue.is_open()) {
        tokio::task::yield_now().await;
    }
    for (index, trouble) in troubles.into_iter().enumerate() {
        let mut borrowed = shard.borrow_mut();
        let Some(slot) = borrowed.slots.get_mut(index) else {
            continue;
        };
        slot.partition.reset();
        (slot.fetcher, slot.writer) = (None, None);
        if !slot.terminal {
            slot.terminal = true;
            slot.partition
                .status
                .enter(PartitionState::Stopped, trouble);
        }
    }
    let _ = done.send(drained);
}
