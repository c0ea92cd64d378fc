//! One fetcher per source broker: one task, one socket, all partitions that this broker leads in one request.
//!
//! Reading goes on ahead of the acknowledgements, bounded per partition and by the shard's memory budget.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use standfast_wire::batch::batches;
use standfast_wire::fetch::{
    self, FetchPosition, FetchRequest, FetchTopic, FetchedPartition, FetchedTopic, TopicId,
};
use standfast_wire::{BrokerId, FrameReader, FrameWriter, ResponseError};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::budget::Permit;
use crate::contain::contain;
use crate::partition::{Doubt, Verdict};
use crate::refusal;
use crate::shard::{self, Shared};

/// A fetch may be answered this much later than `fetch.max_wait` before the broker counts as lost.
const OVERDUE: Duration = Duration::from_secs(5);

/// How long a fetch may wait while other partitions of this broker had no room; they are asked for again right after it.
const HELD_BACK_WAIT_MS: i32 = 5;

/// Wakes a fetcher that has nothing to ask for.
#[derive(Debug, Default)]
pub(crate) struct FetcherWake(Notify);

impl FetcherWake {
    pub(crate) fn wake(&self) {
        self.0.notify_one();
    }
}

/// Reads from `broker` until the connection is lost.
pub(crate) async fn run(shard: Shared, broker: BrokerId, wake: Rc<FetcherWake>) {
    let (Ok(text) | Err(text)) = contain("fetcher", read(Rc::clone(&shard), broker, wake)).await;
    shard::source_lost(&shard, broker, &text);
}

/// Reads until a connection is lost; why it was. One whose authentication runs out is replaced between two requests (KIP-368).
async fn read(shard: Shared, broker: BrokerId, wake: Rc<FetcherWake>) -> String {
    loop {
        if let Some(lost) = read_once(&shard, broker, &wake).await {
            return lost;
        }
    }
}

/// `None`: the broker's session is about to end, nothing else is wrong.
async fn read_once(shard: &Shared, broker: BrokerId, wake: &FetcherWake) -> Option<String> {
    let source = shard.borrow().context.source.clone();
    match source.open_raw(broker).await {
        Ok(connection) => {
            let expires_at = connection.expires_at();
            let versions = connection.versions().clone();
            let (reader, writer) = connection.into_split();
            let topic_ids = shard
                .borrow()
                .slots
                .iter()
                .all(|slot| !slot.source_topic_id.is_nil());
            match fetch::negotiate(&versions, topic_ids) {
                Ok(version) => {
                    Fetcher {
                        shard: Rc::clone(shard),
                        broker,
                        reader,
                        writer,
                        version,
                        correlation_id: 0,
                        first: 0,
                        expires_at,
                    }
                    .copy(wake)
                    .await
                }
                Err(error) => Some(error.to_string()),
            }
        }
        Err(error) => Some(refusal::text(&error)),
    }
}

struct Fetcher {
    shard: Shared,
    broker: BrokerId,
    reader: FrameReader,
    writer: FrameWriter,
    version: i16,
    correlation_id: i32,
    /// Which partition stands first in the next request: the broker fills its answer in order, so the turn goes round.
    first: usize,
    /// The broker cuts the connection soon after (KIP-368).
    expires_at: Option<Instant>,
}

/// A partition in a request: its slot and the generation it was asked for.
#[derive(Debug, Clone, Copy)]
struct Asked {
    index: usize,
    generation: u32,
    topic_id: TopicId,
    partition: i32,
    offset: i64,
}

impl Fetcher {
    async fn copy(mut self, wake: &FetcherWake) -> Option<String> {
        let (budget, rate, max_bytes, overdue) = {
            let borrowed = self.shard.borrow();
            let fetch = &borrowed.context.options.fetch;
            (
                Rc::clone(&borrowed.budget),
                Arc::clone(&borrowed.context.rate),
                fetch.max_bytes,
                fetch.max_wait + OVERDUE,
            )
        };
        loop {
            rate.ready().await;
            let permit = budget.reserve(max_bytes).await;
            if self.expires_at.is_some_and(|at| Instant::now() >= at) {
                return None;
            }
            let (request, asked) = self.request();
            if asked.is_empty() {
                drop(permit);
                wake.0.notified().await;
                continue;
            }
            let exchange = async {
                self.writer.write(&[request]).await?;
                self.reader.read().await
            };
            let frame = match tokio::time::timeout(overdue, exchange).await {
                Ok(Ok(frame)) => frame,
                Ok(Err(error)) => return Some(error.to_string()),
                Err(_) => {
                    return Some(format!(
                        "broker {}: no answer to Fetch within {overdue:?}",
                        self.reader.broker()
                    ));
                }
            };
            rate.took(frame.len());
            permit.resize(frame.len());
            if let Err(text) = self.take_in(frame, &asked, &Rc::new(permit)) {
                return Some(text);
            }
            // The socket is often readable again at once; let the writers run first.
            tokio::task::yield_now().await;
        }
    }

    fn request(&mut self) -> (Bytes, Vec<Asked>) {
        self.correlation_id = self.correlation_id.wrapping_add(1);
        let borrowed = self.shard.borrow();
        let options = &borrowed.context.options;
        let rate = &borrowed.context.rate;
        let partition_max_bytes = bounded(rate.slice(options.fetch.partition_max_bytes));
        let mut held_back = false;
        let mut asked = Vec::new();
        let mut topics: Vec<FetchTopic> = Vec::new();
        let count = borrowed.slots.len().max(1);
        self.first = (self.first + 1) % count;
        let turn = (0..count).map(|n| (n + self.first) % count);
        for (index, slot) in turn.filter_map(|i| borrowed.slots.get(i).map(|s| (i, s))) {
            let partition = &slot.partition;
            if slot.fetcher != Some(self.broker) {
                continue;
            }
            let Some(offset) = partition.wants(options.fetch.partition_max_bytes) else {
                held_back |= partition.fetches();
                continue;
            };
            let (topic_id, number) = (slot.source_topic_id, partition.id.partition);
            asked.push(Asked {
                index,
                generation: partition.generation(),
                topic_id,
                partition: number,
                offset,
            });
            let position = FetchPosition {
                partition: number,
                current_leader_epoch: -1,
                offset,
                last_fetched_epoch: -1,
                max_bytes: partition_max_bytes,
            };
            match topics.last_mut().filter(|t| t.name == slot.source_topic) {
                Some(topic) => topic.partitions.push(position),
                None => topics.push(FetchTopic {
                    name: slot.source_topic.clone(),
                    topic_id,
                    partitions: vec![position],
                }),
            }
        }
        let max_wait_ms = i32::try_from(options.fetch.max_wait.as_millis()).unwrap_or(i32::MAX);
        let request = FetchRequest {
            max_wait_ms: if held_back {
                HELD_BACK_WAIT_MS.min(max_wait_ms)
            } else {
                max_wait_ms
            },
            max_bytes: bounded(rate.slice(options.fetch.max_bytes)),
            topics,
            ..FetchRequest::default()
        };
        (
            fetch::encode(
                self.correlation_id,
                &options.source.client_id,
                self.version,
                &request,
            ),
            asked,
        )
    }

    fn take_in(&self, frame: Bytes, asked: &[Asked], permit: &Rc<Permit>) -> Result<(), String> {
        let lost = |reason: String| {
            format!(
                "broker {}: Fetch v{} answer cannot be used: {reason}",
                self.reader.broker(),
                self.version
            )
        };
        let response =
            fetch::decode(frame, self.version).map_err(|error| lost(error.to_string()))?;
        if response.correlation_id != self.correlation_id {
            return Err(lost("it belongs to another request".to_owned()));
        }
        if let Some(code) = ResponseError::try_from_code(response.error_code) {
            return Err(lost(format!("{code:?}")));
        }
        let partitions = response.topics.iter().flat_map(|t| t.partitions.iter());
        let all_empty = partitions.into_iter().all(|p| p.records.is_empty());
        let mut turn = asked.iter().cycle();
        for topic in response.topics {
            for fetched in topic.partitions.iter() {
                // The broker answers in the order of the request, so the search ends at once.
                let found = turn
                    .by_ref()
                    .take(asked.len())
                    .find(|a| a.partition == fetched.partition && self.is_topic(a, &topic));
                if let Some(found) = found {
                    // The first partition is answered with a batch if it has one; others may find the answer full.
                    let is_first = asked.first().is_some_and(|a| a.index == found.index);
                    let verdict = self.partition(found, fetched, permit, all_empty || is_first);
                    shard::apply(&self.shard, found.index, verdict);
                }
            }
        }
        Ok(())
    }

    fn is_topic(&self, asked: &Asked, topic: &FetchedTopic) -> bool {
        if self.version >= fetch::VERSION_TOPIC_IDS {
            return asked.topic_id == topic.topic_id;
        }
        self.shard
            .borrow()
            .slots
            .get(asked.index)
            .is_some_and(|slot| *slot.source_topic == *topic.name)
    }

    /// `had_room`: if no records are answered, the broker has none.
    fn partition(
        &self,
        asked: &Asked,
        fetched: &FetchedPartition,
        permit: &Rc<Permit>,
        had_room: bool,
    ) -> Verdict {
        let mut borrowed = self.shard.borrow_mut();
        let Some(slot) = borrowed.slots.get_mut(asked.index) else {
            return Verdict::GoOn;
        };
        if slot.partition.generation() != asked.generation {
            return Verdict::GoOn;
        }
        if let Some(code) = ResponseError::try_from_code(fetched.error_code) {
            return Verdict::StartAgain(
                Doubt::source(format!(
                    "broker {}: Fetch: {code:?} ({})",
                    self.reader.broker(),
                    code.code()
                ))
                .with_code(code),
            );
        }
        slot.partition
            .status
            .source_answered(fetched.high_watermark);
        if fetched.records.is_empty() {
            return if had_room {
                slot.partition.hollow(asked.offset, fetched.high_watermark)
            } else {
                Verdict::GoOn
            };
        }
        let verdict =
            slot.partition
                .fetched(asked.offset, batches(fetched.records.clone()), permit);
        borrowed.list(asked.index);
        verdict
    }
}

fn bounded(bytes: usize) -> i32 {
    i32::try_from(bytes).unwrap_or(i32::MAX)
}
