//! The two Kafka clients of a generation, a producer and a consumer of the same cluster.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, Producer, ProducerContext};
use rdkafka::statistics::Statistics;
use rdkafka::types::RDKafkaRespErr;

use super::Shared;
use super::flow::{Flow, Reason};
use super::input::Inputs;
use crate::client_config::{self, Role};
use crate::client_log::ClientLog;
use crate::consumer::Source;
use crate::error::{Error, Result};
use crate::event::FleetEvent;
use crate::ffi;
use crate::reaper::{self, Farewell, Retirement};
use crate::target::Target;
use crate::way_back::WayBack;

/// One round of the poll thread; also what stopping it may take.
const POLL: Duration = Duration::from_millis(100);

/// How long an abort may take that a rebalance waits for.
const REBALANCE_ABORT: Duration = Duration::from_secs(5);

pub(super) type Base = BaseProducer<OutputContext>;
pub(super) type Reader = BaseConsumer<InputContext>;

/// The clients of one generation; none has begun to do anything.
pub(super) struct Clients {
    pub(super) base: Arc<Base>,
    /// `None`: the client only produces.
    pub(super) reader: Option<Reader>,
    poll_thread: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    shared: Arc<Shared>,
    target: Arc<Target>,
    /// Of which the login is in use.
    login: Mutex<Arc<Target>>,
}

impl Clients {
    pub(super) fn new(shared: &Arc<Shared>, target: &Arc<Target>, generation: u64) -> Result<Self> {
        let unusable = |error: KafkaError| Error::Configuration {
            reason: error.to_string(),
        };
        let log = || ClientLog::new(shared.name.clone(), target.cluster.clone());
        let role = Role::Transactional {
            id: shared.id.clone(),
        };
        let config = client_config::for_target(&role, &shared.producer, target)?;
        let base: Base = Base::from_config_and_context(&config, OutputContext { log: log() })
            .map_err(unusable)?;
        let base = Arc::new(base);
        let mut reader = None;
        if !shared.topics.is_empty() {
            let role = Role::TransactionalInput {
                group: shared.group.clone(),
            };
            let config = client_config::for_target(&role, &shared.consumer, target)?;
            let context = InputContext {
                shared: Arc::clone(shared),
                base: Arc::clone(&base),
                source: Arc::new(Source {
                    generation,
                    epoch: target.epoch,
                    cluster: target.cluster.clone(),
                }),
                log: log(),
                state: Mutex::new(Inputs::default()),
            };
            reader = Some(Reader::from_config_and_context(&config, context).map_err(unusable)?);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let (polled, stopped) = (Arc::clone(&base), Arc::clone(&stop));
        let bootstrap = target.entry.bootstrap.clone();
        let poll_thread = thread::Builder::new()
            .name("standfast-poll".to_owned())
            .spawn(move || {
                let mut way_back = WayBack::default();
                while !stopped.load(Relaxed) {
                    polled.poll(POLL);
                    way_back.look(polled.client(), &polled.context().log, &bootstrap);
                }
            })
            .map_err(|error| Error::Configuration {
                reason: format!("poll thread: {error}"),
            })?;
        Ok(Self {
            base,
            reader,
            poll_thread: Some(poll_thread),
            stop,
            shared: Arc::clone(shared),
            target: Arc::clone(target),
            login: Mutex::new(Arc::clone(target)),
        })
    }

    /// Takes up a new password; it is used at the next authentication.
    pub(super) fn follow_login(&self, target: &Arc<Target>) {
        let mut login = self.login.lock().unwrap_or_else(PoisonError::into_inner);
        if Arc::ptr_eq(&login, target) {
            return;
        }
        let old = std::mem::replace(&mut *login, Arc::clone(target));
        let Some((username, password, version)) = target.new_login(&old) else {
            return;
        };
        let of_base = ffi::set_sasl_credentials(self.base.client(), username, password);
        let of_reader = match &self.reader {
            Some(reader) => ffi::set_sasl_credentials(reader.client(), username, password),
            None => Ok(()),
        };
        let (client, cluster) = (self.shared.name.clone(), target.cluster.clone());
        match of_base.and(of_reader) {
            Ok(()) => {
                tracing::info!(client = client.as_str(), %cluster, version, "new credentials are in use");
                self.shared.fleet.emit(FleetEvent::CredentialsApplied {
                    client,
                    cluster,
                    version,
                });
            }
            Err(error) => {
                tracing::error!(client = client.as_str(), %cluster, error, "new credentials were refused")
            }
        }
    }

    /// Kafka's id of the cluster, asked from its brokers: both clients must get there. Blocks up to `timeout`.
    pub(super) fn cluster_id(&self, timeout: Duration) -> Option<String> {
        let asked = Instant::now();
        let found = self.base.client().fetch_cluster_id(timeout)?;
        if let Some(reader) = &self.reader {
            while reader.poll(Duration::ZERO).is_some() {}
            let topic = self.shared.topics.first().map(String::as_str);
            // A question for metadata connects at once: see `consumer/client.rs`.
            let left = || timeout.saturating_sub(asked.elapsed());
            let _ = reader.fetch_metadata(topic, left());
            let same = reader.client().fetch_cluster_id(left())?;
            return Some(same).filter(|same| *same == found);
        }
        Some(found)
    }

    /// Sends both clients to the reaper; never blocks.
    pub(super) fn retire(mut self) {
        self.stop.store(true, Relaxed);
        let events = self.shared.fleet.events.clone();
        let (client, cluster) = (self.shared.name.clone(), self.target.cluster.clone());
        let started = Instant::now();
        let reader = self.reader.take().map(|reader| {
            let owned = reader.context().state().owned();
            let member = reaper::asked_about(owned, self.shared.topics.first());
            Farewell::new(reader, member)
        });
        let name = client.clone();
        let finish = move || {
            if let Some(thread) = self.poll_thread.take() {
                // It ends within one round; a panic in it is reported by the thread itself.
                let _ = thread.join();
            }
            drop(self);
            let took = started.elapsed();
            let _ = events.send(FleetEvent::ClientRetired {
                client,
                cluster,
                took,
            });
        };
        let retirement = match reader {
            Some(farewell) => Retirement::of_consumer(farewell, finish),
            None => Retirement::new(finish),
        };
        reaper::retire(name.as_str(), retirement);
    }
}

/// Receives the producer's events. Whether a record was stored is asked of the commit.
pub(super) struct OutputContext {
    log: ClientLog,
}

impl ClientContext for OutputContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.log.line(level, facility, message);
    }

    fn stats(&self, _: Statistics) {}

    fn error(&self, error: KafkaError, reason: &str) {
        self.log.error(&error, reason);
    }
}

impl ProducerContext for OutputContext {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

impl std::fmt::Debug for OutputContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OutputContext").finish_non_exhaustive()
    }
}

/// Receives the consumer's events. They come on the thread that polls.
pub(super) struct InputContext {
    pub(super) shared: Arc<Shared>,
    pub(super) base: Arc<Base>,
    pub(super) source: Arc<Source>,
    pub(super) log: ClientLog,
    state: Mutex<Inputs>,
}

impl InputContext {
    pub(super) fn state(&self) -> MutexGuard<'_, Inputs> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing is read any more; what was read ahead is forgotten.
    pub(super) fn clear_inputs(&self) {
        let clear = |flow: &mut Flow| (flow.clear_inputs(), None);
        self.shared.change_of(self.source.generation, clear);
    }
}

impl ClientContext for InputContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.log.line(level, facility, message);
    }

    fn stats(&self, _: Statistics) {}

    fn error(&self, error: KafkaError, reason: &str) {
        self.log.error(&error, reason);
    }
}

impl ConsumerContext for InputContext {
    fn rebalance(
        &self,
        reader: &BaseConsumer<Self>,
        event: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
        let partitions: Vec<_> = ffi::committed_offsets(list)
            .into_iter()
            .map(|entry| (entry.topic, entry.partition))
            .collect();
        let mut state = self.state();
        if event == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            state.assign(reader, partitions);
            return;
        }
        // The positions of the open transaction are another member's in a moment.
        state.abort(self, Reason::Rebalance, REBALANCE_ABORT);
        state.revoke(reader);
    }
}
