//! What librdkafka calls back into for one generation of a consumer, and how that generation ends.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::statistics::Statistics;
use rdkafka::types::RDKafkaRespErr;

use super::ConsumerShared;
use super::assignment::Assignment;
use super::message::Source;
use crate::client_log::ClientLog;
use crate::event::FleetEvent;
use crate::{ffi, reaper};

/// Receives librdkafka's events for one generation. They come on the thread that polls.
pub(super) struct WorkerContext {
    // No cycle: the worker's thread owns the client.
    pub(super) shared: Arc<ConsumerShared>,
    pub(super) source: Arc<Source>,
    pub(super) log: ClientLog,
    pub(super) state: Mutex<Assignment>,
}

impl WorkerContext {
    pub(super) fn state(&self) -> MutexGuard<'_, Assignment> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for WorkerContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.log.line(level, facility, message);
    }

    fn stats(&self, _: Statistics) {}

    fn error(&self, error: KafkaError, reason: &str) {
        self.log.error(&error, reason);
    }
}

impl ConsumerContext for WorkerContext {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        event: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
        let partitions: Vec<_> = ffi::committed_offsets(list)
            .into_iter()
            .map(|entry| (entry.topic, entry.partition))
            .collect();
        let mut state = self.state();
        match event {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                state.assign(consumer, partitions)
            }
            _ => state.revoke(consumer, &partitions),
        }
    }
}

/// How long a consumer that has moved to another cluster stays a member of its group on the old one. Members hear of a flip at
/// different times, and one that has not heard of it yet would be given the partitions of those that have left, and hand out on the
/// old cluster what they hand out on the new one.
const STAY: Duration = Duration::from_secs(5);

/// Sends an old client to the reaper. Never blocks. `member`: see [`reaper::Farewell`].
pub(super) fn retire(consumer: BaseConsumer<WorkerContext>, member: TopicPartitionList) {
    let context = Arc::clone(consumer.context());
    let (client, cluster) = (context.log.client.clone(), context.log.cluster.clone());
    let shared = Arc::clone(&context.shared);
    let events = shared.fleet.events.clone();
    drop(context);
    let has_moved = {
        let cluster = cluster.clone();
        move || shared.has_left(&cluster)
    };
    let stays = member.count() > 0 && has_moved();
    if stays && let Err(error) = consumer.pause(&member) {
        tracing::debug!(client = client.as_str(), %error, "an old client fetches on until it is taken down");
    }
    let handed_in = Instant::now();
    let name = client.clone();
    let farewell = reaper::Farewell::new(consumer, member);
    let retirement = reaper::Retirement::of_consumer(farewell, move || {
        let took = handed_in.elapsed();
        let _ = events.send(FleetEvent::ClientRetired {
            client,
            cluster,
            took,
        });
    });
    let stay = stays.then(|| reaper::Stay {
        until: handed_in + STAY,
        while_wanted: Box::new(has_moved),
    });
    reaper::retire_after(name.as_str(), stay, retirement);
}
