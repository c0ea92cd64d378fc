//! What librdkafka calls back into for one generation of a consumer, and how that generation ends.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

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

/// Sends an old client to the reaper. Never blocks.
pub(super) fn retire(consumer: BaseConsumer<WorkerContext>, owned: TopicPartitionList) {
    let context = Arc::clone(consumer.context());
    let (client, cluster) = (context.log.client.clone(), context.log.cluster.clone());
    let events = context.shared.fleet.events.clone();
    drop(context);
    let started = Instant::now();
    reaper::retire(
        client.clone().as_str(),
        Box::new(move || {
            reaper::take_down(consumer, owned);
            let took = started.elapsed();
            let _ = events.send(FleetEvent::ClientRetired {
                client,
                cluster,
                took,
            });
        }),
    );
}
