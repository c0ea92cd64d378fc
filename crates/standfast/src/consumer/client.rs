//! A consumer's Kafka client before it reads: how it is made, connected, and kept ready on a standby.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::ConsumerShared;
use super::assignment::Assignment;
use super::context::{WorkerContext, retire};
use super::message::Source;
use crate::client_config::{self, Role};
use crate::client_log::ClientLog;
use crate::error::{Error, Result};
use crate::target::Target;
use crate::warm::{self, Kind, Warmable};

/// Generation of the clients of standbys, which never read for the application; those that do are counted from 1.
const STANDBY: u64 = 0;

/// A client that has not subscribed: connected, also with the group's coordinator, and no member.
pub(super) struct ConsumerClient(pub(super) BaseConsumer<WorkerContext>);

impl std::fmt::Debug for ConsumerClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConsumerClient").finish_non_exhaustive()
    }
}

impl Warmable for ConsumerClient {
    fn serve(&self) {
        while self.0.poll(Duration::ZERO).is_some() {}
    }

    fn keep_warm(&self, topics: &[String]) -> bool {
        self.serve();
        warm::keep_warm(self.0.client(), topics)
    }

    fn prove(&self, topic: Option<&str>, timeout: Duration) -> Option<String> {
        self.serve();
        warm::prove(self.0.client(), topic, timeout)
    }
}

pub(super) fn standby_kind(shared: &Arc<ConsumerShared>) -> Kind<ConsumerClient> {
    let (maker, asker, user) = (Arc::clone(shared), Arc::clone(shared), Arc::clone(shared));
    Kind {
        make: Box::new(move |target| make(&maker, target, STANDBY)),
        ask: Box::new(move |consumer, timeout| {
            cluster_id(&consumer.0, asker.subscription.names(), timeout)
        }),
        discard: Box::new(|consumer| retire(consumer.0, TopicPartitionList::new())),
        topics: Box::new(move || user.subscription.names().to_vec()),
    }
}

pub(super) fn make(
    shared: &Arc<ConsumerShared>,
    target: &Target,
    generation: u64,
) -> Result<ConsumerClient> {
    let role = Role::Consumer {
        group: shared.group.clone(),
    };
    let config = client_config::for_target(&role, &shared.properties, target)?;
    let context = WorkerContext {
        shared: Arc::clone(shared),
        source: Arc::new(Source {
            generation,
            epoch: target.epoch,
            cluster: target.cluster.clone(),
        }),
        log: ClientLog::new(shared.name.clone(), target.cluster.clone()),
        state: Mutex::new(Assignment::default()),
    };
    let made = BaseConsumer::from_config_and_context(&config, context);
    made.map(ConsumerClient)
        .map_err(|error| Error::Configuration {
            reason: error.to_string(),
        })
}

/// Asks for the cluster's id, and makes librdkafka connect for it.
///
/// librdkafka connects a consumer by itself only if its main thread happens to look for the group's coordinator after the
/// bootstrap addresses were added (2.12.1: `rd_kafka_brokers_add0` takes the coordinator's placeholder for a broker that it
/// knew before). Otherwise nothing is connected until its next timer, a second later: seen in one start of four. A question
/// for metadata connects at once, and the topic's metadata is needed next anyway.
pub(super) fn cluster_id(
    consumer: &BaseConsumer<WorkerContext>,
    topics: &[String],
    timeout: Duration,
) -> Option<String> {
    // Serves librdkafka's log lines, which would pile up otherwise.
    while consumer.poll(Duration::ZERO).is_some() {}
    let asked = Instant::now();
    // Whether the topic is there does not matter here; with patterns only, all are asked for.
    let _ = consumer.fetch_metadata(topics.first().map(String::as_str), timeout);
    let left = timeout.saturating_sub(asked.elapsed());
    consumer.client().fetch_cluster_id(left)
}
