//! What the standbys hold: their log ends, asked while producers keep records for them.
//!
//! A mirror has the source's offsets, so a standby whose log reaches past a record holds it, if its log is a mirror. That is
//! not taken for granted: after a failover the old cluster comes back with records that were never mirrored, at offsets that
//! the new one has given to others. So one record of each partition is read from the standby and compared by its id, once
//! per flip, before the log end counts.
//!
//! A client of its own per standby, on a thread of its own: librdkafka's calls block, and no client ever knows two clusters.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::statistics::Statistics;
use rdkafka::{Offset, TopicPartitionList};
use standfast_discovery::ClusterName;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use crate::client_config::{self, Properties, Role};
use crate::client_log::ClientLog;
use crate::event::{ClientName, FleetEvent};
use crate::ffi;
use crate::producer::ProducerShared;
use crate::reaper::{self, Retirement};
use crate::record::{ID_HEADER, RecordId};
use crate::target::Target;
use crate::way_back::WayBack;

/// How often log ends are asked while records wait for them.
const INTERVAL: Duration = Duration::from_millis(500);

/// One question to a standby.
const ASK: Duration = Duration::from_secs(3);

/// How long the comparison of records may take.
const COMPARE: Duration = Duration::from_secs(5);

/// Partitions that are compared at once.
const MAX_COMPARED: usize = 64;

/// Pause before a partition that was not found equal is compared again, and before a topic that could not be asked for is.
const RETRY: Duration = Duration::from_secs(10);

type Key = (String, i32);
type Targets = watch::Receiver<Option<Arc<Target>>>;

/// Starts and ends the watchers; does nothing before there is a producer that wants them.
#[derive(Debug)]
pub(crate) struct StandbyWatch {
    registry: Arc<Registry>,
    targets: Targets,
    events: broadcast::Sender<FleetEvent>,
    shutdown: CancellationToken,
    started: OnceLock<()>,
}

/// The producers that keep records.
#[derive(Debug, Default)]
struct Registry {
    producers: Mutex<Vec<Weak<ProducerShared>>>,
    /// How to get through to a cluster, as the first producer was told.
    properties: OnceLock<Properties>,
}

impl Registry {
    fn producers(&self) -> Vec<Arc<ProducerShared>> {
        let mut all = self
            .producers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        all.retain(|producer| producer.strong_count() > 0);
        all.iter().filter_map(Weak::upgrade).collect()
    }
}

impl StandbyWatch {
    pub(crate) fn new(
        targets: Targets,
        events: broadcast::Sender<FleetEvent>,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            registry: Arc::default(),
            targets,
            events,
            shutdown,
            started: OnceLock::new(),
        }
    }

    /// How to get through to a cluster, as the first producer was told.
    pub(crate) fn properties(&self) -> Properties {
        self.registry.properties.get().cloned().unwrap_or_default()
    }

    /// Tells the producer from now on what the standbys hold.
    pub(crate) fn add(&self, producer: &Arc<ProducerShared>) {
        let properties = || client_config::connection_only(producer.properties());
        self.registry.properties.get_or_init(properties);
        self.registry
            .producers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Arc::downgrade(producer));
        self.started.get_or_init(|| {
            let (registry, events) = (Arc::clone(&self.registry), self.events.clone());
            tokio::spawn(follow(
                registry,
                self.targets.clone(),
                events,
                self.shutdown.clone(),
            ));
        });
    }
}

/// Keeps one watcher per standby.
async fn follow(
    registry: Arc<Registry>,
    mut targets: Targets,
    events: broadcast::Sender<FleetEvent>,
    shutdown: CancellationToken,
) {
    // A watcher ends when its sender is dropped.
    let mut running: HashMap<ClusterName, Sender<()>> = HashMap::new();
    loop {
        let standbys = targets
            .borrow_and_update()
            .as_ref()
            .map(|target| target.standby_names())
            .unwrap_or_default();
        running.retain(|cluster, _| standbys.contains(cluster));
        for cluster in standbys {
            if running.contains_key(&cluster) {
                continue;
            }
            let (stop, stopped) = channel();
            let watcher = Watcher {
                registry: Arc::clone(&registry),
                targets: targets.clone(),
                events: events.clone(),
                name: ClientName::new(format!("standby-{cluster}")),
                cluster: cluster.clone(),
                stopped,
                client: None,
                way_back: WayBack::default(),
                flip: Instant::now(),
                equal: HashSet::new(),
                not_before: HashMap::new(),
                told: None,
            };
            let spawned = thread::Builder::new()
                .name("standfast-watch".to_owned())
                .spawn(move || watcher.run());
            match spawned {
                Ok(_detached) => {
                    running.insert(cluster, stop);
                }
                Err(error) => {
                    tracing::error!(%cluster, %error, "no thread to watch a standby; it is tried again with the next change of the record");
                }
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = targets.changed() => if changed.is_err() { return },
        }
    }
}

/// Watches one standby.
struct Watcher {
    registry: Arc<Registry>,
    targets: Targets,
    events: broadcast::Sender<FleetEvent>,
    name: ClientName,
    cluster: ClusterName,
    stopped: Receiver<()>,
    client: Option<(Arc<Target>, BaseConsumer<StandbyContext>)>,
    way_back: WayBack,
    /// The flip since which comparisons count.
    flip: Instant,
    /// Partitions whose log was found to be a mirror.
    equal: HashSet<Key>,
    /// Partitions that are not to be asked or compared again before a moment.
    not_before: HashMap<Key, Instant>,
    /// What was reported to be wrong.
    told: Option<String>,
}

struct StandbyContext {
    log: ClientLog,
}

impl ClientContext for StandbyContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.log.line(level, facility, message);
    }

    fn stats(&self, _: Statistics) {}

    fn error(&self, error: KafkaError, reason: &str) {
        self.log.error(&error, reason);
    }
}

impl ConsumerContext for StandbyContext {}

/// A record to be compared.
struct Sample {
    key: Key,
    offset: i64,
    id: RecordId,
}

impl Watcher {
    fn run(mut self) {
        while let Err(RecvTimeoutError::Timeout) = self.stopped.recv_timeout(INTERVAL) {
            match self.round() {
                Ok(()) => {}
                Err(reason) => self.tell(&reason),
            }
        }
        self.drop_client();
    }

    /// Asks for what producers wait for, and tells them.
    fn round(&mut self) -> Result<(), String> {
        let Some(target) = self.targets.borrow().clone() else {
            return Ok(());
        };
        let standby = target.standbys.iter().find(|s| s.0.cluster == self.cluster);
        let Some(standby) = standby.map(|standby| Arc::clone(&standby.0)) else {
            return Ok(());
        };
        if target.since != self.flip {
            self.flip = target.since;
            self.equal.clear();
            self.not_before.clear();
        }
        let wanted = self.wanted();
        if wanted.is_empty() {
            self.serve();
            return Ok(());
        }
        self.connect(&standby)?;
        if let Some((target, client)) = &self.client {
            let log = &client.context().log;
            self.way_back
                .look(client.client(), log, &target.entry.bootstrap);
        }
        let mut ends = Vec::new();
        let mut failed = None;
        for (topic, partitions) in &wanted {
            match self.ask_ends(topic, partitions) {
                Ok(found) => ends.extend(found),
                Err(reason) => {
                    // The others are not held up by it, nor is the next round.
                    let later = Instant::now() + RETRY;
                    let keys = partitions.iter().map(|number| (topic.clone(), *number));
                    self.not_before.extend(keys.map(|key| (key, later)));
                    failed = Some(reason);
                }
            }
        }
        let unequal = self.compare_new(&standby, &ends)?;
        ends.retain(|(topic, number, _)| self.equal.contains(&(topic.clone(), *number)));
        for producer in self.registry.producers() {
            producer.note_ends(self.flip, &self.cluster, &ends);
        }
        match failed.or(unequal) {
            Some(reason) => Err(reason),
            None => {
                self.tell_proven();
                Ok(())
            }
        }
    }

    fn wanted(&self) -> BTreeMap<String, BTreeSet<i32>> {
        let now = Instant::now();
        let mut wanted: BTreeMap<String, BTreeSet<i32>> = BTreeMap::new();
        for producer in self.registry.producers() {
            for key in producer.open_partitions(&self.cluster) {
                if self.not_before.get(&key).is_none_or(|at| *at <= now) {
                    wanted.entry(key.0).or_default().insert(key.1);
                }
            }
        }
        wanted
    }

    /// Log ends (high watermarks) of a topic's partitions, one request per leader.
    fn ask_ends(
        &self,
        topic: &str,
        partitions: &BTreeSet<i32>,
    ) -> Result<Vec<(String, i32, i64)>, String> {
        let Some((_, client)) = &self.client else {
            return Ok(Vec::new());
        };
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        for number in partitions {
            // The protocol's question for the end is the timestamp -1, which is how librdkafka writes `End`.
            let added = list.add_partition_offset(topic, *number, Offset::End);
            added.map_err(|error| error.to_string())?;
        }
        let answer = client.offsets_for_times(list, ASK).map_err(|error| {
            format!("log ends of topic {topic:?} cannot be read there: {error}; is it mirrored, and may it be described?")
        })?;
        let found = ffi::committed_offsets(&answer).into_iter();
        let known = found.filter(|entry| !entry.failed);
        Ok(known
            .filter_map(|entry| Some((entry.topic, entry.partition, entry.offset?)))
            .collect())
    }

    /// Compares a record of each partition that has not been compared since the flip; what is wrong, if something is.
    fn compare_new(
        &mut self,
        standby: &Arc<Target>,
        ends: &[(String, i32, i64)],
    ) -> Result<Option<String>, String> {
        let producers = self.registry.producers();
        let mut samples = Vec::new();
        for (topic, number, end) in ends {
            let key = (topic.clone(), *number);
            if self.equal.contains(&key) || samples.len() >= MAX_COMPARED {
                continue;
            }
            let sample = producers
                .iter()
                .find_map(|p| p.sample(topic, *number, *end));
            if let Some((offset, id)) = sample {
                samples.push(Sample { key, offset, id });
            }
        }
        drop(producers);
        if samples.is_empty() {
            return Ok(None);
        }
        let equal = self.compare(standby, &samples)?;
        let mut unequal = None;
        for sample in samples {
            if equal.contains(&sample.key) {
                self.equal.insert(sample.key);
                continue;
            }
            let (topic, number) = &sample.key;
            unequal = Some(format!(
                "topic {topic:?}, partition {number}: the record at offset {} is not readable there, or not the one that was \
                 sent; is the partition a mirror, and may it be read?",
                sample.offset
            ));
            let later = Instant::now() + RETRY;
            self.not_before.insert(sample.key, later);
        }
        Ok(unequal)
    }

    /// Reads the records at the samples' offsets; the partitions where it is the record that was sent.
    fn compare(&self, standby: &Target, samples: &[Sample]) -> Result<HashSet<Key>, String> {
        let consumer = self.make(&Role::StandbyRecords, standby)?;
        let mut list = TopicPartitionList::with_capacity(samples.len());
        for Sample { key, offset, .. } in samples {
            let added = list.add_partition_offset(&key.0, key.1, Offset::Offset(*offset));
            added.map_err(|error| error.to_string())?;
        }
        let mut equal = HashSet::new();
        let mut open: HashMap<Key, &Sample> = samples.iter().map(|s| (s.key.clone(), s)).collect();
        let assigned = consumer.assign(&list).map_err(|error| error.to_string());
        let until = Instant::now() + COMPARE;
        while assigned.is_ok() && !open.is_empty() && Instant::now() < until {
            let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) else {
                continue;
            };
            let key = (message.topic().to_owned(), message.partition());
            let Some(sample) = open.remove(&key) else {
                continue;
            };
            let headers = ffi::headers(&message);
            let header = headers.iter().find(|header| header.key == ID_HEADER);
            let id = header.and_then(|h| RecordId::from_bytes(&key.0, h.value.as_deref()?));
            if message.offset() == sample.offset && id == Some(sample.id) {
                equal.insert(key);
            }
        }
        reaper::retire(
            self.name.as_str(),
            Retirement::new(move || ffi::destroy_without_close(consumer)),
        );
        assigned.map(|()| equal)
    }

    /// Makes the client anew if there is none, or one for other addresses or credentials.
    fn connect(&mut self, standby: &Arc<Target>) -> Result<(), String> {
        let fits = |(made_for, _): &(Arc<Target>, _)| {
            made_for.same_client(standby) && standby.new_login(made_for).is_none()
        };
        if self.client.as_ref().is_some_and(fits) {
            self.serve();
            return Ok(());
        }
        self.drop_client();
        let client = self.make(&Role::StandbyEnds, standby)?;
        let Some(found) = client.client().fetch_cluster_id(ASK) else {
            retire(self.name.as_str(), client);
            return Err(format!("no broker of {} answers", standby.entry.bootstrap));
        };
        if let Some(expected) = standby.entry.cluster_id.as_ref().filter(|id| **id != found) {
            retire(self.name.as_str(), client);
            return Err(format!(
                "the addresses {} lead to cluster {found}, the fleet record says {expected}; correct the record",
                standby.entry.bootstrap
            ));
        }
        self.client = Some((Arc::clone(standby), client));
        Ok(())
    }

    fn make(&self, role: &Role, standby: &Target) -> Result<BaseConsumer<StandbyContext>, String> {
        let none = Properties::new();
        let properties = self.registry.properties.get().unwrap_or(&none);
        let config = client_config::for_target(role, properties, standby)
            .map_err(|error| error.to_string())?;
        let context = StandbyContext {
            log: ClientLog::new(self.name.clone(), self.cluster.clone()),
        };
        BaseConsumer::from_config_and_context(&config, context).map_err(|error| error.to_string())
    }

    /// Takes in librdkafka's log lines, which would pile up otherwise.
    fn serve(&self) {
        if let Some((_, client)) = &self.client {
            while client.poll(Duration::ZERO).is_some() {}
        }
    }

    fn drop_client(&mut self) {
        if let Some((_, client)) = self.client.take() {
            retire(self.name.as_str(), client);
        }
    }

    /// Reports once per reason.
    fn tell(&mut self, reason: &str) {
        if self.told.as_deref() == Some(reason) {
            return;
        }
        self.told = Some(reason.to_owned());
        tracing::warn!(
            standby = %self.cluster, reason,
            "it cannot be seen whether the standby holds what was acknowledged; the records are kept meanwhile"
        );
        let _ = self.events.send(FleetEvent::StandbyUnproven {
            cluster: self.cluster.clone(),
            reason: reason.to_owned(),
        });
    }

    fn tell_proven(&mut self) {
        if self.not_before.values().any(|at| *at > Instant::now()) {
            return;
        }
        if self.told.take().is_some() {
            tracing::info!(standby = %self.cluster, "the standby is seen to hold what was acknowledged again");
            let _ = self.events.send(FleetEvent::StandbyProven {
                cluster: self.cluster.clone(),
            });
        }
    }
}

/// A client without a group: taking it down has no close protocol.
fn retire(name: &str, client: BaseConsumer<StandbyContext>) {
    reaper::retire(name, Retirement::new(move || drop(client)));
}
