//! One generation of a producer: an rdkafka client of one cluster, its poll thread, its delivery reports.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseProducer, Producer, ProducerContext};
use rdkafka::statistics::Statistics;

use super::delivery::{Ack, ClusterNumber};
use super::partitioner::{Choice, choosing};
use super::shared::{BURST, ProducerShared};
use crate::client_config::BOOTSTRAP_SERVERS;
use crate::client_log::ClientLog;
use crate::error::{Error, Result};
use crate::event::FleetEvent;
use crate::ffi::{self, Lender, Lent, Loans, Report, SentHeaders};
use crate::reaper::{self, Retirement};
use crate::record::RecordId;
use crate::warm::{self, MAX_TOPICS, Warmable};
use crate::way_back::WayBack;

/// One round of the poll thread; also what stopping it may take.
const POLL: Duration = Duration::from_millis(100);

/// One question for a topic's partitions.
const ASK: Duration = Duration::from_secs(1);

/// Pause before a topic is asked for again.
const ASK_PAUSE: Duration = Duration::from_millis(100);

/// What became of handing a record to librdkafka.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hand {
    /// It has it; in this partition, where the record is to stay if it must be sent again.
    Taken(Option<i32>),
    /// Its queue is full.
    Full,
    /// The topic's partitions are being asked for.
    Asking,
}

type Base = BaseProducer<ReportContext, Choice>;
type Topic = ffi::Topic<ReportContext, Choice>;

pub(super) struct ProducerClient {
    topics: Mutex<Topics>,
    base: Arc<Base>,
    /// Topics whose partitions librdkafka knows, or has been told that there are none: true. Being asked for: false.
    known: Arc<Mutex<HashMap<String, bool>>>,
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
        let mut config = config.clone();
        // It would choose for records without a key itself otherwise, and not tell.
        config.set("sticky.partitioning.linger.ms", "0");
        // Has no effect but one: rust-rdkafka 0.39 crashes in setting a partitioner where no property of topics is set.
        config.set("partitioner", "murmur2_random");
        let base: Arc<Base> = Arc::new(Base::from_config_and_context(&config, context)?);
        let stop = Arc::new(AtomicBool::new(false));
        let (polled, stopped) = (Arc::clone(&base), Arc::clone(&stop));
        let bootstrap = config.get(BOOTSTRAP_SERVERS).unwrap_or_default().to_owned();
        let poll_thread = thread::Builder::new()
            .name("standfast-poll".to_owned())
            .spawn(move || {
                let mut way_back = WayBack::default();
                while !stopped.load(Relaxed) {
                    polled.poll(POLL);
                    way_back.look(polled.client(), &polled.context().log, &bootstrap);
                }
            })
            .map_err(|error| KafkaError::ClientCreation(format!("poll thread: {error}")))?;
        Ok(Self {
            topics: Mutex::default(),
            base,
            known: Arc::default(),
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

    /// Hands a record to librdkafka; never blocks. `wish`: the partition that it had before. `Err`: it can never be sent.
    /// `spare`: headers to be used again.
    pub(super) fn hand(
        &self,
        id: RecordId,
        lent: &mut Lent,
        wish: Option<i32>,
        spare: Option<SentHeaders>,
    ) -> Result<Hand> {
        let choice = self.base.context().choice.rule();
        let record = lent.record();
        let is_free = record.partition.is_none() && choice.is_free(record.key.as_deref());
        if is_free && !self.knows(&record.topic) {
            return Ok(Hand::Asking);
        }
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        let topic = topics.get(&record.topic, &self.base);
        let send = || topic.and_then(|topic| topic.send(lent, id, id.sequence as usize, spare));
        let (sent, chosen) = match is_free {
            true => choosing(wish, send),
            false => (send(), None),
        };
        match sent {
            Ok(()) => Ok(Hand::Taken(chosen)),
            // A fatal client takes nothing more; its successor will.
            Err(RDKafkaErrorCode::QueueFull | RDKafkaErrorCode::Fatal) => Ok(Hand::Full),
            Err(code) => Err(Error::Refused {
                cluster: self.log.cluster.clone(),
                topic: lent.record().topic.to_string(),
                reason: Box::new(KafkaError::MessageProduction(code)),
            }),
        }
    }

    /// Lets a record go on without this client, which may still be reading it.
    pub(super) fn leave_behind(&self, lent: &mut Lent) {
        lent.leave_behind(self.base.context().loans());
    }

    /// Whether librdkafka knows the topic's partitions. If not they are asked for, and handing on goes on afterwards:
    /// librdkafka would choose later, on a thread of its own, and the choice could not be noted.
    fn knows(&self, topic: &str) -> bool {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.get(topic) {
            return *known;
        }
        known.insert(topic.to_owned(), false);
        let (base, stop) = (Arc::clone(&self.base), Arc::clone(&self.stop));
        let (known, name) = (Arc::clone(&self.known), topic.to_owned());
        let spawned = thread::Builder::new()
            .name("standfast-topic".to_owned())
            .spawn(move || ask_for(&name, &base, &stop, &known));
        if let Err(error) = spawned {
            tracing::error!(client = self.log.client.as_str(), topic, %error, "no thread to ask for a topic's partitions");
            // The record goes all the same; only where it went is not noted.
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.insert(topic.to_owned(), true);
        }
        false
    }

    /// Sends the client to the reaper; never blocks.
    pub(super) fn retire(self: Arc<Self>, shared: &ProducerShared) {
        self.stop.store(true, Relaxed);
        let events = shared.fleet.events.clone();
        let (client, cluster) = (self.log.client.clone(), self.log.cluster.clone());
        let started = Instant::now();
        reaper::retire(
            client.clone().as_str(),
            Retirement::new(move || {
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

/// A client's topics, to send to.
#[derive(Default)]
struct Topics {
    /// The last one: nearly always the next one too.
    present: Option<(Arc<str>, Topic)>,
    /// At most [`MAX_TOPICS`]; with more, all are made anew.
    others: HashMap<Arc<str>, Topic>,
}

impl Topics {
    fn get(
        &mut self,
        name: &Arc<str>,
        base: &Arc<Base>,
    ) -> std::result::Result<&Topic, RDKafkaErrorCode> {
        let is_present = matches!(&self.present, Some((present, _)) if present == name);
        if !is_present {
            let topic = match self.others.remove(name) {
                Some(topic) => topic,
                None => Topic::new(base, name)?,
            };
            if self.others.len() >= MAX_TOPICS {
                self.others.clear();
            }
            let before = self.present.replace((Arc::clone(name), topic));
            self.others.extend(before);
        }
        let present = self.present.as_ref().map(|(_, topic)| topic);
        present.ok_or(RDKafkaErrorCode::UnknownTopic)
    }
}

/// Asks for the topic's partitions until the cluster has answered, and hands on what has waited for it.
fn ask_for(topic: &str, base: &Base, stop: &AtomicBool, known: &Mutex<HashMap<String, bool>>) {
    use RDKafkaErrorCode as Code;
    while let Err(error) = base.client().fetch_metadata(Some(topic), ASK) {
        let no_answer = matches!(
            error.rdkafka_error_code(),
            Some(
                Code::OperationTimedOut
                    | Code::BrokerTransportFailure
                    | Code::AllBrokersDown
                    | Code::RequestTimedOut
            )
        );
        // Anything else is said of the record itself when it is handed on.
        if !no_answer {
            break;
        }
        thread::sleep(ASK_PAUSE);
        if stop.load(Relaxed) {
            return;
        }
    }
    // Also where there is no such topic: librdkafka then decides how long to wait for it.
    let mut topics = known.lock().unwrap_or_else(PoisonError::into_inner);
    topics.insert(topic.to_owned(), true);
    drop(topics);
    if let Some(shared) = base.context().shared.upgrade() {
        while shared.hand_on(BURST).more {}
    }
}

impl Warmable for ProducerClient {
    fn serve(&self) {
        // Its poll thread does.
    }

    fn keep_warm(&self, topics: &[String]) -> bool {
        let answered = warm::keep_warm(self.base.client(), topics);
        if answered {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.extend(topics.iter().map(|topic| (topic.clone(), true)));
        }
        answered
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
    shared: Weak<ProducerShared>,
    /// 0: a standby's client, which has nothing to report.
    pub(super) generation: Arc<AtomicU64>,
    pub(super) choice: Choice,
    pub(super) log: Arc<ClientLog>,
    cluster: ClusterNumber,
    loans: Loans,
}

impl Lender for ReportContext {
    fn loans(&self) -> &Loans {
        &self.loans
    }
}

impl ReportContext {
    pub(super) fn new(
        shared: Weak<ProducerShared>,
        choice: Choice,
        cluster: ClusterNumber,
        log: ClientLog,
    ) -> Self {
        Self {
            shared,
            generation: Arc::default(),
            choice,
            log: Arc::new(log),
            cluster,
            loans: Loans::default(),
        }
    }

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

impl ProducerContext<Choice> for ReportContext {
    type DeliveryOpaque = usize;

    fn get_custom_partitioner(&self) -> Option<&Choice> {
        Some(&self.choice)
    }

    fn delivery(&self, report: &DeliveryResult<'_>, number: usize) {
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        let sequence = number as u64;
        match report {
            Ok(message) => {
                let ack = Ack {
                    partition: message.partition(),
                    offset: message.offset(),
                    epoch: shared.epoch(),
                    cluster: self.cluster,
                };
                let report = Report::of(message, number);
                shared.delivered(self.generation(), sequence, Ok(ack), report);
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
                    let report = Report::of(message, number);
                    shared.delivered(self.generation(), sequence, Err(refused), report);
                }
            },
        }
    }
}
