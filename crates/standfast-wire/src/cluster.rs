//! A cluster: bootstrap, metadata and leader cache, one control connection per broker.

mod bootstrap;
mod calls;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kafka_protocol::messages::{FindCoordinatorRequest, MetadataResponse};
use kafka_protocol::protocol::StrBytes;
use tokio::task::JoinSet;

use self::bootstrap::{Candidate, first_answer, unreachable};
use crate::connection::Connection;
use crate::error::{Error, ResponseError};
use crate::flight::Flight;
use crate::metadata::{BrokerId, Metadata, TopicPartition};
use crate::options::{ClusterOptions, HostPort};
use crate::raw::RawConnection;
use crate::retry::Retry;
use crate::topic_prefix::TopicPrefix;

/// Coordinators remembered; beyond that all are forgotten and asked for again.
const COORDINATORS_MAX: usize = 4096;

/// What a coordinator is asked for (FindCoordinator's key type).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CoordinatorKind {
    /// Consumer groups.
    Group,
    /// Transactional ids.
    Transaction,
}

/// A Kafka cluster. Cheap to clone; all clones share connections and metadata.
#[derive(Debug, Clone)]
pub struct Cluster {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// With the cluster id that was found, so that every later connection is held to it.
    options: ClusterOptions,
    cluster_id: Arc<str>,
    bootstrap: Arc<str>,
    cache: Mutex<Cache>,
    refresh: Flight<Arc<Metadata>>,
    connections: Mutex<Connections>,
}

/// The control connection of each broker, and the address that it was opened to.
type Connections = HashMap<BrokerId, (HostPort, Arc<Flight<Connection>>)>;

#[derive(Debug)]
struct Cache {
    metadata: Arc<Metadata>,
    /// Topics that a refresh asks for.
    interest: BTreeSet<Arc<str>>,
    /// Partitions whose cached leader has proven wrong.
    stale: HashSet<TopicPartition>,
    coordinators: HashMap<(CoordinatorKind, Arc<str>), BrokerId>,
}

impl Cluster {
    /// Connects to the first bootstrap address that answers and learns the brokers and the cluster id.
    ///
    /// # Errors
    /// [`Error::WrongClusterId`] if it is not the expected cluster, [`Error::Unreachable`] if no address answers, and what
    /// makes every address useless, such as [`Error::Authentication`].
    pub async fn connect(options: ClusterOptions) -> Result<Self, Error> {
        if options.bootstrap.is_empty() {
            return Err(Error::Options {
                setting: "bootstrap",
                reason: "no address is given".to_owned(),
            });
        }
        let bootstrap: Arc<str> = options.bootstrap_string().into();
        let candidates = options
            .bootstrap
            .iter()
            .cloned()
            .map(Candidate::Address)
            .collect();
        let response = first_answer(candidates, &options, &bootstrap, Some(&[])).await?;
        let metadata = Arc::new(Metadata::from_response(&response, &options.topic_prefix));
        let cluster_id = Arc::clone(&metadata.cluster_id);
        let options = ClusterOptions {
            expected_cluster_id: Some(cluster_id.to_string()),
            ..options
        };
        let cache = Cache {
            metadata,
            interest: BTreeSet::new(),
            stale: HashSet::new(),
            coordinators: HashMap::new(),
        };
        let shared = Shared {
            options,
            cluster_id,
            bootstrap,
            cache: Mutex::new(cache),
            refresh: Flight::new(),
            connections: Mutex::default(),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// The cluster's id. It never changes: a broker that states another one is refused.
    pub fn cluster_id(&self) -> &str {
        &self.shared.cluster_id
    }

    /// The options that this cluster was connected with, and the cluster id that was found.
    pub fn options(&self) -> &ClusterOptions {
        &self.shared.options
    }

    /// What stands in front of the brokers' topic names in this program.
    pub(crate) fn prefix(&self) -> &TopicPrefix {
        &self.shared.options.topic_prefix
    }

    /// A cluster that is seen with a prefix is one that is read: nothing may be changed there.
    pub(crate) fn writable(&self) -> Result<(), Error> {
        if self.prefix().is_empty() {
            return Ok(());
        }
        Err(Error::Options {
            setting: "prefix",
            reason: format!(
                "the cluster at {} is read with the prefix {:?} in front of its topic names; nothing can be changed there that way",
                self.shared.bootstrap,
                self.prefix()
            ),
        })
    }

    /// The latest metadata: all brokers, and the topics asked for so far.
    pub fn metadata(&self) -> Arc<Metadata> {
        Arc::clone(&self.cache().metadata)
    }

    /// Fetches brokers, controller and the topics asked for so far. Calls at the same time share one request.
    ///
    /// Known brokers are asked first, then the bootstrap addresses; one that does not answer holds nobody up.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::WrongClusterId`] if only brokers of another cluster answer.
    pub async fn refresh_metadata(&self) -> Result<Arc<Metadata>, Error> {
        let cluster = self.clone();
        let attempt = || async move {
            let names: Vec<Arc<str>> = cluster.cache().interest.iter().cloned().collect();
            let response = cluster.ask_metadata(Some(names)).await?;
            Ok(cluster.store(&response, true))
        };
        self.shared
            .refresh
            .join(|_| false, attempt, self.lost())
            .await
    }

    /// Fetches metadata of `names`, now and with each later refresh. A topic that does not exist is in the answer with its error.
    ///
    /// # Errors
    /// As [`Cluster::refresh_metadata`].
    pub async fn topics(&self, names: &[&str]) -> Result<Arc<Metadata>, Error> {
        let names: Vec<Arc<str>> = names.iter().map(|name| Arc::from(*name)).collect();
        self.cache().interest.extend(names.iter().cloned());
        let response = self.ask_metadata(Some(names)).await?;
        Ok(self.store(&response, false))
    }

    /// Fetches metadata of every topic, without adding them to the cache.
    ///
    /// # Errors
    /// As [`Cluster::refresh_metadata`].
    pub async fn all_topics(&self) -> Result<Metadata, Error> {
        let response = self.ask_metadata(None).await?;
        Ok(Metadata::from_response(&response, self.prefix()))
    }

    /// No longer fetches metadata of `topic` with each refresh.
    pub fn forget_topic(&self, topic: &str) {
        let mut cache = self.cache();
        cache.interest.remove(topic);
        Arc::make_mut(&mut cache.metadata).topics.remove(topic);
        cache.stale.retain(|stale| &*stale.topic != topic);
    }

    /// The leader of a partition, from the cache if it is there, young enough and not invalidated.
    ///
    /// # Errors
    /// [`Error::LeaderUnavailable`], [`Error::Server`] if the topic or partition does not exist, or as [`Cluster::refresh_metadata`].
    pub async fn leader(&self, topic: &str, partition: i32) -> Result<BrokerId, Error> {
        if let Some(leader) = self.cached_leader(topic, partition) {
            return Ok(leader);
        }
        let known = self.cache().interest.contains(topic);
        if known {
            self.refresh_metadata().await?;
        }
        // A refresh that was under way may have begun before the topic became known.
        if !known || !self.metadata().topics.contains_key(topic) {
            self.topics(&[topic]).await?;
        }
        self.leader_in(&self.metadata(), topic, partition)
    }

    /// Says that the cached leader of a partition has proven wrong; the next [`Cluster::leader`] asks the cluster.
    pub fn invalidate_leader(&self, topic: &str, partition: i32) {
        self.cache()
            .stale
            .insert(TopicPartition::new(topic, partition));
    }

    /// The control connection to a broker, opened if need be.
    ///
    /// # Errors
    /// [`Error::UnknownBroker`], or as [`Connection::connect`].
    pub async fn connection(&self, broker: BrokerId) -> Result<Connection, Error> {
        let address = self.address(broker)?;
        let flight = self.flight(broker, &address);
        let options = self.shared.options.clone();
        let attempt = || async move { Connection::connect(&address, &options).await };
        flight
            .join(|connection| !connection.is_closed(), attempt, self.lost())
            .await
    }

    /// A new connection to a broker for the data plane to own.
    ///
    /// # Errors
    /// [`Error::UnknownBroker`], or as [`RawConnection::connect`].
    pub async fn open_raw(&self, broker: BrokerId) -> Result<RawConnection, Error> {
        let address = self.address(broker)?;
        RawConnection::connect(&address, &self.shared.options).await
    }

    /// A connection to a broker that nobody else uses: for calls that the broker holds back.
    pub(crate) async fn own_connection(&self, broker: BrokerId) -> Result<Connection, Error> {
        let address = self.address(broker)?;
        Connection::connect(&address, &self.shared.options).await
    }

    /// The broker that coordinates a group or transactional id, from the cache or from any broker.
    ///
    /// # Errors
    /// [`Error::Server`] such as COORDINATOR_NOT_AVAILABLE, or as [`Cluster::refresh_metadata`].
    pub async fn coordinator(&self, kind: CoordinatorKind, key: &str) -> Result<BrokerId, Error> {
        if let Some(broker) = self.cache().coordinators.get(&(kind, Arc::from(key))) {
            return Ok(*broker);
        }
        let name = StrBytes::from_string(key.to_owned());
        let connection = self.some_connection().await?;
        let version = connection.version_for::<FindCoordinatorRequest>()?;
        let mut request = FindCoordinatorRequest::default();
        if version >= 1 {
            request.key_type = match kind {
                CoordinatorKind::Group => 0,
                CoordinatorKind::Transaction => 1,
            };
        }
        if version >= 4 {
            request.coordinator_keys = vec![name];
        } else {
            request.key = name;
        }
        let response = connection
            .call_with(request, version, self.shared.options.request_timeout)
            .await?;
        let (code, node, message) = match response.coordinators.first() {
            Some(found) => (found.error_code, found.node_id, &found.error_message),
            None => (
                response.error_code,
                response.node_id,
                &response.error_message,
            ),
        };
        if let Some(code) = ResponseError::try_from_code(code) {
            let message = message.as_deref();
            return Err(Error::server(
                connection.broker(),
                "FindCoordinator",
                Some(key),
                code,
                message,
            ));
        }
        let broker = BrokerId(node.0);
        if !self.metadata().brokers.contains_key(&broker) {
            self.refresh_metadata().await?;
        }
        let mut cache = self.cache();
        if cache.coordinators.len() >= COORDINATORS_MAX {
            cache.coordinators.clear();
        }
        cache.coordinators.insert((kind, Arc::from(key)), broker);
        Ok(broker)
    }

    /// A connection to some broker: one that is open, else the first that can be opened.
    pub(crate) async fn some_connection(&self) -> Result<Connection, Error> {
        // `HashMap` order differs between processes, which spreads this load over brokers well enough.
        if let Some((_, open)) = self.open_connections().into_iter().next() {
            return Ok(open);
        }
        let mut last = None;
        for round in 0..2 {
            // A second round after a refresh: the brokers may all have moved.
            if round == 1 {
                self.refresh_metadata().await?;
            }
            let mut attempts = JoinSet::new();
            for broker in self.metadata().brokers.keys().copied() {
                let cluster = self.clone();
                attempts.spawn(async move { cluster.connection(broker).await });
            }
            while let Some(joined) = attempts.join_next().await {
                match joined {
                    Ok(Ok(connection)) => return Ok(connection),
                    Ok(Err(error)) => last = Some(error),
                    Err(_) => {}
                }
            }
        }
        Err(unreachable(&self.shared.bootstrap, last))
    }

    /// The bootstrap addresses, to name the cluster in errors that no single broker is to blame for.
    pub(crate) fn bootstrap(&self) -> Arc<str> {
        Arc::clone(&self.shared.bootstrap)
    }

    /// The next call asks which broker coordinates `key`.
    pub(crate) fn forget_coordinator(&self, kind: CoordinatorKind, key: &str) {
        self.cache().coordinators.remove(&(kind, Arc::from(key)));
    }

    pub(crate) fn retry(&self) -> Retry {
        Retry::within(self.shared.options.request_timeout)
    }

    pub(crate) fn leader_in(
        &self,
        metadata: &Metadata,
        topic: &str,
        partition: i32,
    ) -> Result<BrokerId, Error> {
        let missing = |code| {
            let own = self.prefix().own_name(topic);
            Error::server(&self.shared.bootstrap, "Metadata", Some(own), code, None)
        };
        let Some(known) = metadata.topics.get(topic) else {
            return Err(missing(ResponseError::UnknownTopicOrPartition));
        };
        match known.partitions.get(&partition) {
            Some(found) => found.leader.ok_or_else(|| Error::LeaderUnavailable {
                topic: Arc::from(topic),
                partition,
            }),
            None => Err(missing(
                known
                    .error
                    .unwrap_or(ResponseError::UnknownTopicOrPartition),
            )),
        }
    }

    pub(crate) fn cached_leader(&self, topic: &str, partition: i32) -> Option<BrokerId> {
        let cache = self.cache();
        let metadata = &cache.metadata;
        let young = metadata.fetched_at.elapsed() < self.shared.options.metadata_max_age;
        let stale =
            !cache.stale.is_empty() && cache.stale.contains(&TopicPartition::new(topic, partition));
        let leader = metadata.partition(topic, partition)?.leader?;
        (young && !stale && metadata.brokers.contains_key(&leader)).then_some(leader)
    }

    /// Asks brokers with an open connection, then the other known ones, then the bootstrap addresses; the first answer wins.
    async fn ask_metadata(&self, topics: Option<Vec<Arc<str>>>) -> Result<MetadataResponse, Error> {
        // A name without the prefix is no topic here, and is left out of the answer.
        let topics = topics.map(|mut names| {
            if !self.prefix().is_empty() {
                names = names
                    .iter()
                    .filter_map(|name| self.prefix().strip(name))
                    .map(Arc::from)
                    .collect();
            }
            names
        });
        let open: Vec<BrokerId> = self
            .open_connections()
            .into_iter()
            .map(|(id, _)| id)
            .collect();
        let metadata = self.metadata();
        let others = metadata
            .brokers
            .keys()
            .copied()
            .filter(|id| !open.contains(id));
        let mut candidates: Vec<Candidate> = Vec::new();
        candidates.extend(
            open.iter()
                .copied()
                .chain(others)
                .map(|id| Candidate::Known(self.clone(), id)),
        );
        candidates.extend(
            self.shared
                .options
                .bootstrap
                .iter()
                .cloned()
                .map(Candidate::Address),
        );
        first_answer(
            candidates,
            &self.shared.options,
            &self.shared.bootstrap,
            topics.as_deref(),
        )
        .await
    }

    /// Takes an answer into the cache. Only one about every topic of interest (`complete`) makes the cache young again.
    fn store(&self, response: &MetadataResponse, complete: bool) -> Arc<Metadata> {
        let mut fresh = Metadata::from_response(response, self.prefix());
        let mut cache = self.cache();
        if !complete {
            fresh.fetched_at = cache.metadata.fetched_at;
        }
        cache
            .stale
            .retain(|stale| !fresh.topics.contains_key(&stale.topic));
        for (name, topic) in &cache.metadata.topics {
            if !fresh.topics.contains_key(name) {
                fresh.topics.insert(Arc::clone(name), topic.clone());
            }
        }
        let fresh = Arc::new(fresh);
        cache.metadata = Arc::clone(&fresh);
        drop(cache);
        self.connections()
            .retain(|id, (address, _)| fresh.brokers.get(id) == Some(address));
        fresh
    }

    fn address(&self, broker: BrokerId) -> Result<HostPort, Error> {
        let metadata = self.metadata();
        metadata
            .brokers
            .get(&broker)
            .cloned()
            .ok_or_else(|| Error::UnknownBroker {
                broker_id: broker.0,
                cluster_id: Arc::clone(&self.shared.cluster_id),
            })
    }

    fn flight(&self, broker: BrokerId, address: &HostPort) -> Arc<Flight<Connection>> {
        let mut connections = self.connections();
        let entry = connections
            .entry(broker)
            .or_insert_with(|| (address.clone(), Arc::new(Flight::new())));
        if entry.0 != *address {
            *entry = (address.clone(), Arc::new(Flight::new()));
        }
        Arc::clone(&entry.1)
    }

    /// Brokers with an open control connection, in no particular order.
    fn open_connections(&self) -> Vec<(BrokerId, Connection)> {
        let connections = self.connections();
        let latest = connections
            .iter()
            .filter_map(|(id, (_, flight))| Some((*id, flight.peek()?)));
        latest
            .filter(|(_, connection)| !connection.is_closed())
            .collect()
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.shared
            .cache
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.shared
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn lost(&self) -> Error {
        Error::Closed {
            broker: Arc::clone(&self.shared.bootstrap),
            detail: " because the program is ending",
        }
    }
}
