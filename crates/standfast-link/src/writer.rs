//! Writers: a few connections per destination broker, each owned by one task; partitions are spread over them.
//!
//! A request takes at most one batch of each waiting partition (a broker refuses two), several partitions share a request, and at most five
//! requests are in flight. So no partition ever has more than five batches in flight, and all of them travel over one connection, in order.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use standfast_wire::batch::RestampedBatch;
use standfast_wire::produce::{self, ProduceResult};
use standfast_wire::{FrameReader, FrameWriter, ResponseError};
use tokio::sync::Notify;

use crate::budget::Permit;
use crate::contain::contain;
use crate::description::MirrorTopicError;
use crate::partition::{Doubt, Failure, Sent, Verdict};
use crate::refusal;
use crate::shard::{self, Shared, WriterKey};

/// How long the destination may take to replicate a batch to its in-sync replicas.
const PRODUCE_TIMEOUT_MS: i32 = 8_000;

/// Partitions in one request.
const MAX_PARTITIONS: usize = 256;

/// What a writer's connection has before and behind it.
#[derive(Debug, Default)]
pub(crate) struct WriterQueue {
    /// Partitions with something to send.
    ready: RefCell<VecDeque<usize>>,
    /// Requests without an answer, oldest first.
    requests: RefCell<VecDeque<Request>>,
    wake: Notify,
    /// Why the connection ends, once it does.
    end: RefCell<Option<String>>,
    ended: Notify,
    /// The broker's session is about to end (KIP-368) and nothing is in flight: the connection is to be replaced.
    renew: Cell<bool>,
    /// The connection is closed and its tasks are gone.
    gone: Cell<bool>,
}

#[derive(Debug)]
struct Request {
    correlation_id: i32,
    sent_at: Instant,
    parts: Vec<(usize, Sent)>,
}

impl WriterQueue {
    pub(crate) fn push(&self, index: usize) {
        self.ready.borrow_mut().push_back(index);
        self.wake.notify_one();
    }

    /// When the oldest request without an answer was sent.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.requests.borrow().front().map(|r| r.sent_at)
    }

    /// Whether a request without an answer holds a batch of such a partition.
    pub(crate) fn carries(&self, wanted: impl Fn(usize) -> bool) -> bool {
        let requests = self.requests.borrow();
        let mut parts = requests.iter().flat_map(|request| &request.parts);
        parts.any(|(index, _)| wanted(*index))
    }

    /// Ends the connection.
    pub(crate) fn close(&self, why: &str) {
        self.end.borrow_mut().get_or_insert_with(|| why.to_owned());
        self.ended.notify_one();
    }

    /// Whether something may still be sent.
    pub(crate) fn is_open(&self) -> bool {
        !self.gone.get()
    }
}

/// Writes to one broker until the connection is lost or closed.
pub(crate) async fn run(shard: Shared, key: WriterKey, queue: Rc<WriterQueue>) {
    let idle = loop {
        let idle = write(&shard, key, &queue).await;
        if !queue.renew.take() || queue.end.borrow().is_some() {
            break idle;
        }
    };
    queue.requests.borrow_mut().clear();
    queue.gone.set(true);
    let text = queue.end.borrow().clone().unwrap_or_default();
    shard::destination_lost(&shard, key, &text, idle);
}

/// Writes over one connection until it ends. `true`: nothing was in flight then.
async fn write(shard: &Shared, key: WriterKey, queue: &Rc<WriterQueue>) -> bool {
    let destination = shard.borrow().context.destination.clone();
    let opened = tokio::select! {
        opened = destination.open_raw(key.0) => Some(opened),
        () = queue.ended.notified() => None,
    };
    let mut idle = false;
    match opened {
        Some(Ok(connection)) => {
            let broker = connection.broker().to_string();
            let expires_at = connection.expires_at();
            let (reader, writer) = connection.into_split();
            // Two tasks, so that an answer does not poll the sender and this one sleeps until the end.
            let sender = spawn(
                queue,
                "sender",
                send(Rc::clone(shard), Rc::clone(queue), writer, expires_at),
            );
            let receiver = spawn(
                queue,
                "receiver",
                receive(Rc::clone(shard), Rc::clone(queue), reader),
            );
            queue.ended.notified().await;
            idle = queue.requests.borrow().is_empty();
            for task in [sender, receiver] {
                task.abort();
                let _ = task.await;
            }
            let mut end = queue.end.borrow_mut();
            if let Some(text) = end.as_mut().filter(|text| !text.contains(&broker)) {
                *text = format!("broker {broker}: {text}");
            }
        }
        Some(Err(error)) => queue.close(&refusal::text(&error)),
        None => {}
    }
    idle
}

/// One half of the connection; a panic in it ends the connection.
fn spawn(
    queue: &Rc<WriterQueue>,
    what: &'static str,
    half: impl Future<Output = ()> + 'static,
) -> tokio::task::JoinHandle<()> {
    let queue = Rc::clone(queue);
    tokio::task::spawn_local(async move {
        if let Err(text) = contain(what, half).await {
            queue.close(&text);
        }
    })
}

async fn send(
    shard: Shared,
    queue: Rc<WriterQueue>,
    mut writer: FrameWriter,
    expires_at: Option<tokio::time::Instant>,
) {
    let (max_in_flight, client_id, lease) = {
        let borrowed = shard.borrow();
        let options = &borrowed.context.options;
        (
            options.produce.max_in_flight,
            options.destination.client_id.clone(),
            borrowed.context.share.lease.clone(),
        )
    };
    let mut correlation_id = 0i32;
    loop {
        if expires_at.is_some_and(|at| tokio::time::Instant::now() >= at) {
            if queue.requests.borrow().is_empty() {
                queue.renew.set(true);
                return queue.ended.notify_one();
            }
            queue.wake.notified().await;
            continue;
        }
        if queue.requests.borrow().len() >= max_in_flight {
            queue.wake.notified().await;
            continue;
        }
        let Collected { parts, permits } = collect(&shard, &queue);
        if parts.is_empty() {
            if queue.ready.borrow().is_empty() {
                queue.wake.notified().await;
            }
            continue;
        }
        correlation_id = correlation_id.wrapping_add(1);
        let frame = {
            let borrowed = shard.borrow();
            let named: Vec<(&str, i32, RestampedBatch)> = parts
                .iter()
                .filter_map(|(index, _, batch)| {
                    let id = &borrowed.slots.get(*index)?.partition.id;
                    Some((&*id.topic, id.partition, batch.clone()))
                })
                .collect();
            produce::encode(
                correlation_id,
                &client_id,
                -1,
                PRODUCE_TIMEOUT_MS,
                None,
                &named,
            )
        };
        let remembered = parts
            .iter()
            .map(|(index, sent, _)| (*index, *sent))
            .collect();
        drop(parts);
        queue.requests.borrow_mut().push_back(Request {
            correlation_id,
            sent_at: Instant::now(),
            parts: remembered,
        });
        let broker = Arc::clone(writer.broker());
        if let Err(error) = lease.guard(broker, writer.write(&frame)).await {
            return queue.close(&error.to_string());
        }
        // The bytes are with the operating system now: nothing is sent twice from here, a doubt fetches again.
        drop(permits);
    }
}

struct Collected {
    parts: Vec<(usize, Sent, RestampedBatch)>,
    permits: Vec<Rc<Permit>>,
}

/// Takes one batch of each waiting partition, in turn, up to the size of a request.
fn collect(shard: &Shared, queue: &WriterQueue) -> Collected {
    let mut collected = Collected {
        parts: Vec::new(),
        permits: Vec::new(),
    };
    let mut bytes = 0;
    let mut verdicts = Vec::new();
    {
        let mut borrowed = shard.borrow_mut();
        let options = Arc::clone(&borrowed.context.options);
        let waiting = queue.ready.borrow().len().min(MAX_PARTITIONS);
        for _ in 0..waiting {
            let Some(index) = queue.ready.borrow_mut().pop_front() else {
                break;
            };
            let Some(slot) = borrowed.slots.get_mut(index) else {
                continue;
            };
            if bytes > 0
                && bytes + slot.partition.next_len(options.join_batches)
                    > options.produce.request_max_bytes
            {
                queue.ready.borrow_mut().push_front(index);
                break;
            }
            slot.listed = false;
            if !slot.partition.is_ready(options.produce.max_in_flight) {
                continue;
            }
            let wanted_before = slot
                .partition
                .wants(options.fetch.partition_max_bytes)
                .is_some();
            let Some(next) = slot.partition.take(options.join_batches) else {
                continue;
            };
            slot.waiting_since.get_or_insert_with(Instant::now);
            match next.batch.restamp(next.stamp) {
                Ok(batch) => {
                    bytes += batch.total_len();
                    collected.parts.push((index, next.sent, batch));
                    collected.permits.push(next.permit);
                }
                Err(error) => verdicts.push((index, slot.partition.damaged(&error))),
            }
            let wants = slot
                .partition
                .wants(options.fetch.partition_max_bytes)
                .is_some();
            let fetcher = slot.fetcher;
            borrowed.list(index);
            if wants
                && !wanted_before
                && let Some(wake) = fetcher.and_then(|broker| borrowed.fetchers.get(&broker))
            {
                wake.wake();
            }
        }
    }
    // Partitions of one topic must stand next to each other in the request.
    {
        let borrowed = shard.borrow();
        collected.parts.sort_by(|a, b| {
            let topic = |index: usize| borrowed.slots.get(index).map(|s| &*s.partition.id.topic);
            topic(a.0).cmp(&topic(b.0)).then(a.0.cmp(&b.0))
        });
    }
    for (index, verdict) in verdicts {
        shard::apply(shard, index, verdict);
    }
    collected
}

async fn receive(shard: Shared, queue: Rc<WriterQueue>, mut reader: FrameReader) {
    loop {
        let taken = match reader.read().await {
            Ok(frame) => answered(&shard, &queue, frame),
            Err(error) => Err(error.to_string()),
        };
        if let Err(text) = taken {
            return queue.close(&text);
        }
        queue.wake.notify_one();
    }
}

fn answered(shard: &Shared, queue: &WriterQueue, frame: Bytes) -> Result<(), String> {
    let results = produce::decode(frame).map_err(|error| error.to_string())?;
    let request = queue.requests.borrow_mut().pop_front();
    let request = request
        .filter(|r| r.correlation_id == results.correlation_id)
        .ok_or("an answer came that belongs to no request")?;
    if results.partitions.len() != request.parts.len() {
        return Err(format!(
            "{} partitions were sent, {} answered",
            request.parts.len(),
            results.partitions.len()
        ));
    }
    for (place, (index, sent)) in request.parts.into_iter().enumerate() {
        let verdict = {
            let mut borrowed = shard.borrow_mut();
            let Some(slot) = borrowed.slots.get_mut(index) else {
                continue;
            };
            if slot.partition.generation() != sent.generation {
                continue;
            }
            let id = &slot.partition.id;
            let is_it = |r: &&ProduceResult| r.partition == id.partition && *r.topic == *id.topic;
            // Often, but not always, a broker answers in the order of the request.
            let result = results.partitions.get(place).filter(is_it);
            let result = result.or_else(|| results.partitions.iter().find(is_it));
            let held_before = !slot.partition.fetches();
            let verdict = match result {
                Some(result) => judge(slot, &sent, result),
                None => Verdict::StartAgain(Doubt::destination(
                    "the answer does not name the partition",
                )),
            };
            slot.waiting_since = (slot.partition.in_flight() > 0).then(Instant::now);
            let wake = (held_before && slot.partition.fetches())
                .then_some(slot.fetcher)
                .flatten();
            borrowed.list(index);
            if let Some(wake) = wake.and_then(|broker| borrowed.fetchers.get(&broker)) {
                wake.wake();
            }
            verdict
        };
        shard::apply(shard, index, verdict);
    }
    Ok(())
}

fn judge(slot: &mut shard::Slot, sent: &Sent, result: &ProduceResult) -> Verdict {
    let Some(code) = ResponseError::try_from_code(result.error_code) else {
        return slot
            .partition
            .acknowledged(sent, result.base_offset, result.log_append_time);
    };
    let too_large = [
        ResponseError::MessageTooLarge,
        ResponseError::RecordListTooLarge,
    ];
    if sent.joined && too_large.contains(&code) {
        // Not the source's batch is too large, but ours.
        slot.partition.join_no_more();
        let text = format!(
            "offset {}: joined batches are too large for the mirror topic, going on without",
            sent.base_offset
        );
        return Verdict::StartAgain(Doubt::destination(text));
    }
    if code == ResponseError::MessageTooLarge {
        // The limit is raised there.
        return Verdict::Slow;
    }
    consequence(sent.base_offset, code, &result.error_message)
}

/// What follows from an error that the destination answers to the batch at `offset`.
pub(crate) fn consequence(offset: i64, code: ResponseError, message: &str) -> Verdict {
    let refused =
        |why: String| Verdict::Fail(Failure::new(MirrorTopicError::DestinationRefused, why));
    let words = if message.is_empty() {
        String::new()
    } else {
        format!(": {message}")
    };
    match code {
        ResponseError::RecordListTooLarge => refused(format!(
            "offset {offset}: the batch is larger than a segment of the mirror topic; raise its segment.bytes, then resume the mirror"
        )),
        ResponseError::MessageTooLarge => refused(format!(
            "offset {offset}: the destination refuses the batch as too large ({code:?}); raise max.message.bytes of the mirror topic"
        )),
        ResponseError::InvalidTimestamp => refused(format!(
            "offset {offset}: the destination refuses the timestamps{words}; raise message.timestamp.before.max.ms and after.max.ms of the mirror topic"
        )),
        ResponseError::InvalidRecord
        | ResponseError::UnsupportedForMessageFormat
        | ResponseError::PolicyViolation
        | ResponseError::UnsupportedCompressionType => refused(format!(
            "offset {offset}: the destination refuses the batch: {code:?} ({}){words}",
            code.code()
        )),
        _ => Verdict::StartAgain(
            Doubt::destination(format!(
                "offset {offset}: Produce: {code:?} ({}){words}",
                code.code()
            ))
            .with_code(code),
        ),
    }
}
