//! Kafka clusters.

mod broker;
mod protocol;
mod secure;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::obtain::obtain_tiered_storage;
use crate::process::ServerProcess;
use crate::scratch::Scratch;
use crate::{Error, KafkaInstall, Namespace, Result, Server, Terminal, obtain};
use broker::{Broker, random_id};
use protocol::{Client, Metadata};

/// A cluster that is not ready by then has failed. Generous, for machines that build at the same time.
const READY_DEADLINE: Duration = Duration::from_secs(120);
/// A broker that does not end by then after SIGTERM is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(30);
/// A created topic must have leaders on every broker by then.
const TOPIC_DEADLINE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);
/// A reserved port may still be taken by a program that does not use this crate; then other ports are tried.
const MAX_START_ATTEMPTS: u32 = 3;
const NONE: i16 = 0;
const UNKNOWN_TOPIC_OR_PARTITION: i16 = 3;
const LEADER_NOT_AVAILABLE: i16 = 5;
const NOT_LEADER_OR_FOLLOWER: i16 = 6;
const LOG_END: i64 = -1;
const LOG_START: i64 = -2;

/// What tiered storage needs, but for the jar. The folder is relative to the broker's.
const TIERED: [(&str, &str); 7] = [
    ("remote.log.storage.system.enable", "true"),
    (
        "remote.log.storage.manager.class.name",
        "org.apache.kafka.server.log.remote.storage.LocalTieredStorage",
    ),
    ("remote.log.metadata.manager.listener.name", "PLAINTEXT"),
    (
        "rlmm.config.remote.log.metadata.topic.replication.factor",
        "1",
    ),
    ("rlmm.config.remote.log.metadata.topic.num.partitions", "1"),
    ("rsm.config.dir", "tiered"),
    ("remote.log.manager.task.interval.ms", "200"),
];

/// What a cluster is to be like. Made by [`KafkaCluster::builder`].
#[derive(Debug, Clone)]
pub struct KafkaBuilder {
    name: String,
    brokers: usize,
    sasl_users: Vec<(String, String)>,
    secure: secure::Secure,
    properties: Vec<(String, String)>,
    heap_mb: u32,
    full_jit: bool,
    archive_to: Option<std::path::PathBuf>,
    tiered: bool,
    parent: Option<std::path::PathBuf>,
    network: Option<Arc<Namespace>>,
}

impl KafkaBuilder {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            brokers: 1,
            sasl_users: Vec::new(),
            secure: secure::Secure::default(),
            properties: Vec::new(),
            heap_mb: 320,
            full_jit: false,
            archive_to: None,
            tiered: false,
            parent: None,
            network: None,
        }
    }

    /// Runs the brokers in a network of their own, so that they can be [cut off](KafkaCluster::cut_off).
    #[must_use]
    pub fn network(mut self, network: Namespace) -> Self {
        self.network = Some(Arc::new(network));
        self
    }

    /// The address of all listeners.
    fn host(&self) -> Ipv4Addr {
        let network = self.network.as_ref();
        network.map_or(Ipv4Addr::LOCALHOST, |network| network.address())
    }

    /// Number of brokers. With 1 or 2 the first broker is the only controller; with more the first three are, so that any one may be lost.
    #[must_use]
    pub fn brokers(mut self, count: usize) -> Self {
        self.brokers = count.max(1);
        self
    }

    /// Adds a SASL_PLAINTEXT listener (mechanism PLAIN) and a user on it. May be called for several users.
    #[must_use]
    pub fn sasl_plain(mut self, user: &str, password: &str) -> Self {
        self.sasl_users.push((user.to_owned(), password.to_owned()));
        self
    }

    /// Adds a listener with TLS; `identity` is a private key (PKCS #8) and its certificate chain, in PEM.
    #[must_use]
    pub fn tls(mut self, identity: &str) -> Self {
        self.secure.identity = Some(identity.to_owned());
        self
    }

    /// The TLS listener demands client certificates signed by this authority (PEM).
    #[must_use]
    pub fn client_certificates(mut self, authority: &str) -> Self {
        self.secure.client_authority = Some(authority.to_owned());
        self
    }

    /// A user of SCRAM-SHA-512 on the TLS listener. May be called for several users.
    #[must_use]
    pub fn scram_user(mut self, user: &str, password: &str) -> Self {
        let login = (user.to_owned(), password.to_owned());
        self.secure.scram_users.push(login);
        self
    }

    /// OAUTHBEARER on the TLS listener, with tokens that nobody signed (Kafka's own for tests).
    #[must_use]
    pub fn oauth_unsigned(mut self) -> Self {
        self.secure.oauth = true;
        self
    }

    /// Kafka's own authorizer: users need ACLs, but for those of the PLAINTEXT listener.
    #[must_use]
    pub fn authorizer(mut self) -> Self {
        self.secure.authorizer = true;
        self
    }

    /// Sets a broker property, over the defaults of this crate.
    #[must_use]
    pub fn property(mut self, key: &str, value: &str) -> Self {
        self.properties.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Heap of each broker in MiB; default 320.
    #[must_use]
    pub fn heap_mb(mut self, heap: u32) -> Self {
        self.heap_mb = heap;
        self
    }

    /// Runs the JVM with its normal collector and compilers, as in production, for benchmarks. The default favours a quick start.
    #[must_use]
    pub fn full_jit(mut self) -> Self {
        self.full_jit = true;
        self
    }

    /// Tiered storage (KIP-405) in a folder of the cluster, for topics with `remote.storage.enable`: Kafka's own for tests.
    #[must_use]
    pub fn tiered_storage(mut self) -> Self {
        self.tiered = true;
        self
    }

    /// Keeps the brokers' data in a folder of its own under `parent`, in place of the system's folder for temporary files.
    #[must_use]
    pub fn data_under(mut self, parent: &Path) -> Self {
        self.parent = Some(parent.to_owned());
        self
    }

    /// Obtains Kafka if need be and starts the cluster; returns when every broker serves requests.
    pub fn start(self) -> Result<KafkaCluster> {
        let install = obtain(&[Server::Kafka], &Terminal::new())?
            .kafka
            .ok_or_else(|| Error::Obtain {
                server: "Kafka".to_owned(),
                detail: "nothing was installed".to_owned(),
            })?;
        self.start_with(&install)
    }

    fn start_with(mut self, install: &KafkaInstall) -> Result<KafkaCluster> {
        if std::mem::take(&mut self.tiered) {
            let jar = obtain_tiered_storage(&install.version, &Terminal::new())?;
            for (key, value) in TIERED {
                self = self.property(key, value);
            }
            self = self.property(
                "remote.log.storage.manager.class.path",
                &jar.to_string_lossy(),
            );
        }
        let mut attempt = 1;
        loop {
            let mut cluster = KafkaCluster::prepare(self.clone(), install)?;
            match cluster.restart() {
                Ok(()) => return Ok(cluster),
                Err(Error::Start { log, .. })
                    if attempt < MAX_START_ATTEMPTS && log.contains("already in use") =>
                {
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// A running Kafka cluster in KRaft mode on loopback. Dropping it kills the brokers and removes their data.
///
/// Defaults that differ from Kafka's: `auto.create.topics.enable=false`, `group.initial.rebalance.delay.ms=0`, 4 partitions for the
/// offsets and transaction topics, a broker session of 3 s (so that a lost broker is noticed soon).
#[derive(Debug)]
pub struct KafkaCluster {
    // Before the scratch folder: the processes must be gone when it is removed.
    brokers: Vec<Broker>,
    settings: KafkaBuilder,
    install: KafkaInstall,
    cluster_id: String,
    scratch: Scratch,
}

impl KafkaCluster {
    /// Starts a cluster of one broker.
    pub fn start(name: &str) -> Result<Self> {
        Self::builder(name).start()
    }

    /// A cluster with other than the default settings.
    #[must_use]
    pub fn builder(name: &str) -> KafkaBuilder {
        KafkaBuilder::new(name)
    }

    fn prepare(settings: KafkaBuilder, install: &KafkaInstall) -> Result<Self> {
        let name = format!("kafka-{}", settings.name);
        let scratch = match &settings.parent {
            Some(parent) => Scratch::inside(parent, &name)?,
            None => Scratch::new(&name)?,
        };
        let cluster_id = random_id()?;
        let brokers = (0..settings.brokers)
            .map(|index| Broker::reserve(index, scratch.path(), &settings))
            .collect::<Result<Vec<_>>>()?;
        let cluster = Self {
            brokers,
            settings,
            install: install.clone(),
            cluster_id,
            scratch,
        };
        for broker in &cluster.brokers {
            broker.format(&cluster)?;
        }
        Ok(cluster)
    }

    /// The name given at the start.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// Addresses of the PLAINTEXT listeners, `127.0.0.1:port[,…]`. The same after a restart.
    #[must_use]
    pub fn bootstrap(&self) -> String {
        self.brokers
            .iter()
            .map(Broker::address)
            .collect::<Vec<_>>()
            .join(",")
    }

    /// Addresses of the SASL_PLAINTEXT listeners, if [`KafkaBuilder::sasl_plain`] was called.
    #[must_use]
    pub fn sasl_bootstrap(&self) -> Option<String> {
        let addresses: Option<Vec<String>> =
            self.brokers.iter().map(Broker::sasl_address).collect();
        addresses.map(|addresses| addresses.join(","))
    }

    /// Addresses of the TLS listeners, if [`KafkaBuilder::tls`] was called.
    #[must_use]
    pub fn tls_bootstrap(&self) -> Option<String> {
        let addresses: Option<Vec<String>> =
            self.brokers.iter().map(Broker::secure_address).collect();
        addresses.map(|addresses| addresses.join(","))
    }

    /// The cluster id, as `DescribeCluster` answers it.
    #[must_use]
    pub fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    /// Process ids of the running brokers.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        self.brokers
            .iter()
            .filter_map(|broker| broker.process.as_ref())
            .map(ServerProcess::pid)
            .collect()
    }

    /// The folder with the data and logs (`broker-N/log`).
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.scratch.path()
    }

    /// Kills every broker with SIGKILL, as when a region is lost.
    pub fn kill(&mut self) {
        self.brokers
            .iter_mut()
            .for_each(|broker| broker.process = None);
    }

    /// Kills the broker with this index (from 0).
    pub fn kill_broker(&mut self, index: usize) {
        if let Some(broker) = self.brokers.get_mut(index) {
            broker.process = None;
        }
    }

    /// Ends every broker in order (SIGTERM).
    pub fn stop_gracefully(&mut self) {
        let processes: Vec<ServerProcess> = self
            .brokers
            .iter_mut()
            .filter_map(|broker| broker.process.take())
            .collect();
        processes
            .iter()
            .for_each(|process| process.signal(Signal::SIGTERM));
        processes
            .into_iter()
            .for_each(|process| process.stop(STOP_DEADLINE));
    }

    /// Ends the broker with this index (from 0) in order (SIGTERM); it hands over its leaderships first.
    pub fn stop_broker(&mut self, index: usize) {
        if let Some(process) = self
            .brokers
            .get_mut(index)
            .and_then(|broker| broker.process.take())
        {
            process.stop(STOP_DEADLINE);
        }
    }

    /// Starts the brokers that do not run, on the same ports and data; returns when all serve requests and every partition has a leader.
    pub fn restart(&mut self) -> Result<()> {
        self.restart_some(0..self.brokers.len())
    }

    /// Starts the broker with this index (from 0) if it does not run.
    pub fn restart_broker(&mut self, index: usize) -> Result<()> {
        self.restart_some(index..index + 1)
    }

    fn restart_some(&mut self, mut indexes: std::ops::Range<usize>) -> Result<()> {
        let network = self.settings.network.clone();
        let mut start = || {
            indexes.try_for_each(|index| self.spawn(index))?;
            self.wait_until_ready()
        };
        match network {
            Some(network) => network.inside(start),
            None => start(),
        }
    }

    /// Whether the cluster has a network of its own.
    #[must_use]
    pub fn can_be_cut_off(&self) -> bool {
        self.settings.network.is_some()
    }

    /// Drops all packets to and from the cluster, or lets them through again: nobody is told, and it works on. Nothing happens to
    /// one without a [network](KafkaBuilder::network) of its own.
    pub fn cut_off(&self, cut: bool) -> Result<()> {
        match &self.settings.network {
            Some(network) => network.drop_packets(cut),
            None => Ok(()),
        }
    }

    /// Freezes every broker (SIGSTOP): connections stay open, nothing is answered.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets frozen brokers go on (SIGCONT).
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Runs one of Kafka's own tools, for example `org.apache.kafka.tools.TopicCommand`, to its end. Takes a JVM start, 1 to 2 seconds.
    pub fn tool(&self, java_main_class: &str, args: &[&str]) -> Result<Output> {
        self.tool_command(java_main_class, args)
            .output()
            .map_err(Error::io(format!("run {java_main_class}")))
    }

    /// The command that [`tool`](Self::tool) runs, to be spawned or changed.
    #[must_use]
    pub fn tool_command(&self, java_main_class: &str, args: &[&str]) -> Command {
        let mut command = Command::new(&self.install.java);
        command.args([
            "-Xmx256m",
            "-XX:TieredStopAtLevel=1",
            "-XX:+UseSerialGC",
            "-XX:-UsePerfData",
        ]);
        command.arg(format!(
            "-Djava.io.tmpdir={}",
            self.scratch.path().display()
        ));
        if let Some(archive) = &self.install.archive {
            command.arg(format!("-XX:SharedArchiveFile={}", archive.display()));
        }
        command
            .args(["-cp", &self.install.class_path, java_main_class])
            .args(args);
        command
    }

    /// Creates a topic with as many replicas as the cluster has brokers (3 at most); returns when every broker knows its leaders.
    pub fn create_topic(
        &self,
        name: &str,
        partitions: i32,
        configs: &[(&str, &str)],
    ) -> Result<()> {
        let mut client = Client::connect(self.any_running()?)?;
        let replication = self.brokers.len().min(3) as i16;
        let (code, message) = client.create_topic(name, partitions, replication, configs)?;
        if code != NONE {
            return Err(self.refused(&format!("create topic {name}"), code, &message));
        }
        let complete = |metadata: &Metadata| {
            metadata.topics.first().is_some_and(|topic| {
                topic.error == NONE
                    && topic.leaders.len() == partitions.max(1) as usize
                    && topic.leaders.iter().all(|(_, leader)| *leader >= 0)
            })
        };
        self.wait_for_metadata(name, complete)?;
        self.log_end_offsets(name).map(drop)
    }

    /// Deletes a topic; returns when no broker knows it any more.
    pub fn delete_topic(&self, name: &str) -> Result<()> {
        let code = Client::connect(self.any_running()?)?.delete_topic(name)?;
        if code != NONE {
            return Err(self.refused(&format!("delete topic {name}"), code, ""));
        }
        self.wait_for_metadata(name, |metadata| {
            metadata
                .topics
                .first()
                .is_some_and(|topic| topic.error != NONE)
        })
    }

    /// The log end offset of each partition of a topic.
    pub fn log_end_offsets(&self, topic: &str) -> Result<Vec<i64>> {
        self.offsets(topic, LOG_END)
    }

    /// The log start offset of each partition of a topic.
    pub fn log_start_offsets(&self, topic: &str) -> Result<Vec<i64>> {
        self.offsets(topic, LOG_START)
    }

    /// Asks again while leadership moves: Metadata names a new leader a little before that broker has taken over.
    fn offsets(&self, topic: &str, timestamp: i64) -> Result<Vec<i64>> {
        let deadline = Instant::now() + TOPIC_DEADLINE;
        loop {
            let refused = match self.offsets_once(topic, timestamp)? {
                Ok(offsets) => return Ok(offsets),
                Err(refused) => refused,
            };
            if Instant::now() > deadline {
                return Err(refused);
            }
            thread::sleep(POLL);
        }
    }

    fn offsets_once(&self, topic: &str, timestamp: i64) -> Result<Result<Vec<i64>>> {
        let metadata = Client::connect(self.any_running()?)?.metadata(Some(&[topic]))?;
        let Some(state) = metadata.topics.first().filter(|state| state.error == NONE) else {
            return Err(self.refused(
                &format!("find topic {topic}"),
                UNKNOWN_TOPIC_OR_PARTITION,
                "no such topic",
            ));
        };
        let mut offsets = vec![-1; state.leaders.len()];
        for broker in &self.brokers {
            let led =
                |(partition, leader): &(i32, i32)| (*leader == broker.id).then_some(*partition);
            let partitions: Vec<i32> = state.leaders.iter().filter_map(led).collect();
            if partitions.is_empty() {
                continue;
            }
            for (partition, code, offset) in
                Client::connect(broker.socket())?.list_offsets(topic, &partitions, timestamp)?
            {
                let refused =
                    self.refused(&format!("list offsets of {topic}-{partition}"), code, "");
                match code {
                    NONE => {}
                    UNKNOWN_TOPIC_OR_PARTITION | LEADER_NOT_AVAILABLE | NOT_LEADER_OR_FOLLOWER => {
                        return Ok(Err(refused));
                    }
                    _ => return Err(refused),
                }
                if let Some(slot) = usize::try_from(partition)
                    .ok()
                    .and_then(|index| offsets.get_mut(index))
                {
                    *slot = offset;
                }
            }
        }
        if offsets.contains(&-1) {
            return Ok(Err(self.refused(
                &format!("list offsets of {topic}"),
                LEADER_NOT_AVAILABLE,
                "no leader",
            )));
        }
        Ok(Ok(offsets))
    }

    fn spawn(&mut self, index: usize) -> Result<()> {
        let Some(broker) = self.brokers.get(index) else {
            return Ok(());
        };
        if broker.process.is_some() {
            return Ok(());
        }
        let process = broker.spawn(self)?;
        if let Some(broker) = self.brokers.get_mut(index) {
            broker.process = Some(process);
        }
        Ok(())
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + READY_DEADLINE;
        let running = self
            .brokers
            .iter()
            .filter(|broker| broker.process.is_some())
            .count();
        let all = running == self.brokers.len();
        for broker in self
            .brokers
            .iter_mut()
            .filter(|broker| broker.process.is_some())
        {
            loop {
                let state =
                    Client::connect(broker.socket()).and_then(|mut client| client.metadata(None));
                let seen = match state {
                    Ok(state) if state.serves(&self.cluster_id, running, all) => break,
                    Ok(state) => format!("it knows {} of {running} brokers", state.brokers.len()),
                    Err(error) => error.to_string(),
                };
                if let Some(failure) = broker.failure(Instant::now() > deadline, &seen) {
                    return Err(failure);
                }
                thread::sleep(POLL);
            }
        }
        Ok(())
    }

    fn wait_for_metadata(&self, topic: &str, done: impl Fn(&Metadata) -> bool) -> Result<()> {
        let deadline = Instant::now() + TOPIC_DEADLINE;
        for broker in self
            .brokers
            .iter()
            .filter(|broker| broker.process.is_some())
        {
            let mut client = Client::connect(broker.socket())?;
            while !done(&client.metadata(Some(&[topic]))?) {
                if Instant::now() > deadline {
                    let detail = format!(
                        "the change to topic {topic} was not seen within {TOPIC_DEADLINE:?}"
                    );
                    return Err(Error::Answer {
                        server: "Kafka",
                        address: broker.address(),
                        detail,
                    });
                }
                thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(())
    }

    fn any_running(&self) -> Result<SocketAddr> {
        let running = self.brokers.iter().find(|broker| broker.process.is_some());
        running
            .map(Broker::socket)
            .ok_or_else(|| self.refused("ask the cluster", -1, "no broker runs"))
    }

    fn refused(&self, what: &str, code: i16, message: &str) -> Error {
        let detail = format!("{what}: error code {code} {message}");
        Error::Answer {
            server: "Kafka",
            address: self.bootstrap(),
            detail,
        }
    }

    fn signal(&self, signal: Signal) {
        self.brokers
            .iter()
            .filter_map(|broker| broker.process.as_ref())
            .for_each(|process| process.signal(signal));
    }
}

impl Metadata {
    fn serves(&self, cluster_id: &str, brokers: usize, need_leaders: bool) -> bool {
        let led = || {
            self.topics
                .iter()
                .flat_map(|topic| &topic.leaders)
                .all(|(_, leader)| *leader >= 0)
        };
        self.cluster_id == cluster_id
            && self.brokers.len() == brokers
            && self.controller >= 0
            && (!need_leaders || led())
    }
}

/// Runs one broker so that the JVM writes a class data sharing archive when it ends.
pub(crate) fn warm_up_for_archive(install: &KafkaInstall, archive: &Path) -> Result<()> {
    let mut builder = KafkaBuilder::new("archive");
    builder.archive_to = Some(archive.to_owned());
    let mut cluster = builder.start_with(install)?;
    cluster.create_topic("warm-up", 1, &[])?;
    cluster.log_end_offsets("warm-up")?;
    cluster.stop_gracefully();
    Ok(())
}

#[cfg(test)]
mod tests;
