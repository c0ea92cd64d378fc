//! One generation of a producer: an rdkafka client of one cluster, its poll thread, its delivery reports.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use rdkafka::statistics::Statistics;

use super::ProducerShared;
use crate::client_log::ClientLog;
use crate::error::{Error, Result};
use crate::event::FleetEvent;
use crate::reaper;
use crate::record::{Delivery, Record, RecordId};
use crate::warm::{self, Warmable};

/// One round of the poll thread; also what stopping it may take.
const POLL: Duration = Duration::from_millis(100);

pub(super) struct ProducerClient {
    base: Arc<BaseProducer<ReportContext>>,
    poll_thread: Mutex<Option<JoinHandle<()>>>,
    stop: Arc<AtomicBool>,
    generation: Arc<AtomicU64>,
    pub(super) log: Arc<ClientLog>,
}

impl std::fmt::Debug for ProducerClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProducerClient")
            .field("log", &self.log)
            .finish_non_exhaustive()
    }
}

impl ProducerClient {
    /// Makes the client and starts its poll thread. Connecting goes on in librdkafka's threads.
    pub(super) fn new(config: &ClientConfig, context: ReportContext) -> KafkaResult<Self> {
        let log = Arc::clone(&context.log);
        let generation = Arc::clone(&context.generation);
        let base = Arc::new(BaseProducer::from_config_and_context(config, context)?);
        let stop = Arc::new(AtomicBool::new(false));
        let (polled, stopped) = (Arc::clone(&base), Arc::clone(&stop));
        let poll_thread = thread::Builder::new()
            .name("standfast-poll".to_owned())
            .spawn(move || {
                while !stopped.load(Relaxed) {
                    polled.poll(POLL);
                }
            })
            .map_err(|error| KafkaError::ClientCreation(format!("poll thread: {error}")))?;
        Ok(Self {
            base,
            poll_thread: Mutex::new(Some(poll_thread)),
            stop,
            generation,
            log,
        })
    }

    /// From now on the client is the one of this generation: a standby's client had none.
    pub(super) fn adopt(&self, generation: u64) {
        self.generation.store(generation, Relaxed);
    }

    /// Kafka's id of the cluster, asked from its brokers. Blocks up to `timeout`.
    pub(super) fn cluster_id(&self, timeout: Duration) -> Option<String> {
        self.base.client().fetch_cluster_id(timeout)
    }

    pub(super) fn set_login(
        &self,
        username: &str,
        password: &str,
    ) -> std::result::Result<(), String> {
        crate::ffi::set_sasl_credentials(self.base.client(), username, password)
    }

    /// Hands a record to librdkafka; never blocks. `Ok(false)`: its queue is full. `Err`: this record can never be sent.
    pub(super) fn hand(&self, id: RecordId, record: &Record) -> Result<bool> {
        let mut native =
            BaseRecord::<[u8], [u8], usize>::with_opaque_to(&record.topic, id.sequence as usize)
                .headers(record.kafka_headers(id));
        native.partition = record.partition;
        native.key = record.key.as_deref();
        native.payload = record.payload.as_deref();
        native.timestamp = record.timestamp_ms;
        match self.base.send(native) {
            Ok(()) => Ok(true),
            Err((error, _)) => match error.rdkafka_error_code() {
                // A fatal client takes nothing more; its successor will.
                Some(RDKafkaErrorCode::QueueFull | RDKafkaErrorCode::Fatal) => Ok(false),
                _ => Err(Error::Refused {
                    cluster: self.log.cluster.clone(),
                    topic: record.topic.clone(),
                    reason: Box::new(error),
                }),
            },
        }
    }

    /// Sends the client to the reaper; never blocks.
    pub(super) fn retire(self: Arc<Self>, shared: &ProducerShared) {
        self.stop.store(true, Relaxed);
        let events = shared.fleet.events.clone();
        let (client, cluster) = (self.log.client.clone(), self.log.cluster.clone());
        let started = Instant::now();
        reaper::retire(
            client.clone().as_str(),
            Box::new(move || {
                let poll_thread = self
                    .poll_thread
                    .lock()
                    .map_or(None, |mut thread| thread.take());
                if let Some(thread) = poll_thread {
                    // It ends within one round; a panic in it is reported by the thread itself.
                    let _ = thread.join();
                }
                // rdkafka purges the queues, takes the reports (which do not count any more) and destroys the client.
                drop(self);
                let took = started.elapsed();
                let _ = events.send(FleetEvent::ClientRetired {
                    client,
                    cluster,
                    took,
                });
            }),
        );
    }
}

impl Warmable for ProducerClient {
    fn serve(&self) {
        // Its poll thread does.
    }

    fn keep_warm(&self, topics: &[String]) -> bool {
        warm::keep_warm(self.base.client(), topics)
    }

    fn prove(&self, topic: Option<&str>, timeout: Duration) -> Option<String> {
        warm::prove(self.base.client(), topic, timeout)
    }
}

impl Drop for ProducerClient {
    fn drop(&mut self) {
        // One that was never used ends with its poll thread.
        self.stop.store(true, Relaxed);
    }
}

/// Receives librdkafka's events for one generation.
pub(super) struct ReportContext {
    // Weak: the producer owns its clients.
    pub(super) shared: Weak<ProducerShared>,
    /// 0: a standby's client, which has nothing to report.
    pub(super) generation: Arc<AtomicU64>,
    pub(super) log: Arc<ClientLog>,
}

impl ReportContext {
    fn generation(&self) -> u64 {
        self.generation.load(Relaxed)
    }
}

impl ClientContext for ReportContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.log.line(level, facility, message);
    }

    fn stats(&self, _: Statistics) {}

    fn error(&self, error: KafkaError, reason: &str) {
        self.log.error(&error, reason);
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal)
            && let Some(shared) = self.shared.upgrade()
        {
            shared.report_broken(self.generation(), reason);
        }
    }
}

impl ProducerContext for ReportContext {
    type DeliveryOpaque = usize;

    fn delivery(&self, report: &DeliveryResult<'_>, sequence: usize) {
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        let sequence = sequence as u64;
        match report {
            Ok(message) => {
                let delivery = Delivery {
                    topic: message.topic().to_owned(),
                    partition: message.partition(),
                    offset: message.offset(),
                    epoch: shared.epoch(),
                    cluster: self.log.cluster.clone(),
                    id: shared.id(sequence),
                };
                shared.delivered(self.generation(), sequence, Ok(delivery));
            }
            Err((error, message)) => match error.rdkafka_error_code() {
                // Not the record's fault: it stays in the log for the next client.
                Some(
                    code @ (RDKafkaErrorCode::PurgeQueue
                    | RDKafkaErrorCode::PurgeInflight
                    | RDKafkaErrorCode::Fatal
                    | RDKafkaErrorCode::MessageTimedOut),
                ) => shared.report_broken(self.generation(), &code.to_string()),
                _ => {
                    let refused = Error::Refused {
                        cluster: self.log.cluster.clone(),
                        topic: message.topic().to_owned(),
                        reason: Box::new(error.clone()),
                    };
                    shared.delivered(self.generation(), sequence, Err(refused));
                }
            },
        }
    }
}
