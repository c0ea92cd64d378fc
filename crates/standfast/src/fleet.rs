//! The fleet as the application sees it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use standfast_discovery::{
    Discovery, DiscoveryOptions, FleetName, FleetView, FleetWatchHandle, WatchStats,
};
use standfast_secrets::{Secrets, SecretsHandle, SecretsOptions};
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use crate::conductor::{Conductor, Precautions};
use crate::config::FleetOptions;
use crate::consumer::ConsumerBuilder;
use crate::credential_cache::CredentialCache;
use crate::error::{Error, Result};
use crate::event::{ClientName, EVENT_BUFFER, FleetEvent};
use crate::expiry::{self, CredentialExpiry};
use crate::producer::{ProducerBuilder, ProducerShared};
use crate::rehearsal::{self, Rehearsal};
use crate::standby::StandbyWatch;
use crate::stats::{Counters, Stats};
use crate::target::Target;
use crate::transaction::TransactionalBuilder;

/// How long [`Fleet::connect`] waits for the fleet's record and the active cluster's credentials, by default.
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Shortest [`FleetBuilder::lease`].
pub const MIN_LEASE: Duration = Duration::from_secs(3);

/// A fleet: Kafka clusters that stand in for one another. Watches discovery and secrets, and makes producers and
/// consumers that move to whichever cluster is active. Cheap to clone; the watches end with the last clone and the last
/// producer and consumer.
///
/// A flip in one process; it runs, the clusters being librdkafka's mock ones:
///
/// ```
/// use std::collections::BTreeMap;
///
/// use rdkafka::mocking::MockCluster;
/// use standfast::discovery::{
///     ClusterEntry, ClusterName, Discovery, DiscoveryOptions, FleetName, FleetRecord, FleetState,
/// };
/// use standfast::{Fleet, FleetEvent, MissingOffset, Record};
///
/// #[tokio::main]
/// async fn main() -> Result<(), Box<dyn std::error::Error>> {
///     // Two clusters with the topic, and the fleet's record in a folder: in earnest `standfast fleet init` writes it.
///     let (at_west, at_east) = (MockCluster::new(1)?, MockCluster::new(1)?);
///     let (west, east) = (ClusterName::new("west")?, ClusterName::new("east")?);
///     let mut clusters = BTreeMap::new();
///     for (name, cluster) in [(&west, &at_west), (&east, &at_east)] {
///         cluster.create_topic("orders", 1, 1)?;
///         clusters.insert(name.clone(), ClusterEntry::new(cluster.bootstrap_servers()));
///     }
///     let folder = tempfile::tempdir()?;
///     let discovery = Discovery::new(DiscoveryOptions::file(folder.path()))?;
///     let payments = FleetName::new("payments")?;
///     let record = FleetRecord::first(west.clone(), clusters, "an example");
///     discovery.compare_and_set(&payments, None, &record).await?;
///
///     let fleet = Fleet::builder("payments")
///         .discovery(DiscoveryOptions::file(folder.path()))
///         .build()
///         .await?;
///     let producer = fleet.producer().build().await?;
///     let delivery = producer.send(Record::to("orders").payload("1")).await?;
///     assert_eq!(delivery.cluster, west);
///
///     // West is lost: in earnest `standfast failover`.
///     let mut events = fleet.events();
///     let stored = discovery.read(&payments).await?.expect("the record");
///     let flipped = stored.value.next(east.clone(), FleetState::Active, "west is lost");
///     discovery.compare_and_set(&payments, Some(&stored.version), &flipped).await?;
///     drop(at_west);
///     loop {
///         match events.recv().await? {
///             FleetEvent::ClientReady { cluster, .. } if cluster == east => break,
///             event => println!("{event:?}"),
///         }
///     }
///     let delivery = producer.send(Record::to("orders").payload("2")).await?;
///     assert_eq!(delivery.cluster, east);
///
///     // Nobody had mirrored the first record. It was sent again, ahead of the second.
///     let mut consumer = fleet
///         .consumer("billing")
///         .on_missing_offset(MissingOffset::Earliest)
///         .subscribe(&["orders"])
///         .await?;
///     for expected in ["1", "2"] {
///         let message = consumer.next().await.expect("a record")?;
///         assert_eq!(message.payload(), Some(expected.as_bytes()));
///         consumer.ack(&message)?;
///     }
///     assert_eq!(fleet.snapshot().records_replayed, 1);
///     Ok(())
/// }
/// ```
#[derive(Debug, Clone)]
pub struct Fleet {
    shared: Arc<FleetShared>,
}

/// What the producers and consumers of a fleet share.
#[derive(Debug)]
pub(crate) struct FleetShared {
    pub(crate) name: FleetName,
    pub(crate) targets: watch::Receiver<Option<Arc<Target>>>,
    pub(crate) counters: Counters,
    /// Whether clients of the standbys are kept connected.
    pub(crate) warm_standbys: bool,
    pub(crate) events: broadcast::Sender<FleetEvent>,
    standbys: StandbyWatch,
    view: FleetWatchHandle,
    secrets: SecretsHandle,
    client_number: AtomicU64,
    shutdown: CancellationToken,
}

impl Fleet {
    /// Connects to a fleet, configured by the environment and the file it names: see [`FleetOptions::from_env`].
    ///
    /// # Errors
    /// [`Error::Configuration`], [`Error::NoRecord`].
    pub async fn connect(name: &str) -> Result<Self> {
        FleetOptions::from_env()?.builder(name).build().await
    }

    /// Connects to a fleet with explicit options.
    ///
    /// ```
    /// # #[tokio::main] async fn main() {
    /// use std::time::Duration;
    /// use standfast::discovery::DiscoveryOptions;
    /// use standfast::{Error, Fleet};
    ///
    /// let folder = tempfile::tempdir().expect("a folder");
    /// let fleet = Fleet::builder("payments")
    ///     .discovery(DiscoveryOptions::file(folder.path()))
    ///     .connect_timeout(Duration::from_millis(50))
    ///     .build()
    ///     .await;
    /// // Nobody has written the record: the error says what to do.
    /// assert!(matches!(fleet, Err(Error::NoRecord { .. })));
    /// # }
    /// ```
    pub fn builder(name: impl Into<String>) -> FleetBuilder {
        FleetBuilder {
            name: name.into(),
            discovery: None,
            secrets: SecretsOptions::None,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            warm_standbys: true,
            lease: None,
            credential_cache: None,
        }
    }

    /// The fleet's name.
    pub fn name(&self) -> &FleetName {
        &self.shared.name
    }

    /// A producer that follows the active cluster.
    pub fn producer(&self) -> ProducerBuilder {
        ProducerBuilder::new(Arc::clone(&self.shared))
    }

    /// A consumer of `group` that follows the active cluster.
    pub fn consumer(&self, group: impl Into<String>) -> ConsumerBuilder {
        ConsumerBuilder::new(Arc::clone(&self.shared), group.into())
    }

    /// A client that reads, transforms and produces in transactions of the active cluster. `id` is Kafka's `transactional.id`: one
    /// per running instance, the same after its restart.
    pub fn transactional(&self, id: impl Into<String>) -> TransactionalBuilder {
        TransactionalBuilder::new(Arc::clone(&self.shared), id.into())
    }

    /// What discovery knows: the record with the highest epoch seen, and whether it is live.
    pub fn view(&self) -> FleetView {
        self.shared.view.borrow()
    }

    /// Events from now on.
    ///
    /// ```no_run
    /// # async fn example(fleet: &standfast::Fleet) {
    /// use standfast::FleetEvent;
    ///
    /// let mut events = fleet.events();
    /// tokio::spawn(async move {
    ///     while let Ok(event) = events.recv().await {
    ///         if let FleetEvent::FlipBegun { to, .. } = event {
    ///             println!("{to} is the active cluster");
    ///         }
    ///     }
    /// });
    /// # }
    /// ```
    ///
    /// A subscriber that falls behind by more than [`EVENT_BUFFER`] loses the oldest.
    pub fn events(&self) -> broadcast::Receiver<FleetEvent> {
        self.shared.events.subscribe()
    }

    /// Tries whether a flip would work: makes a new client of every standby with the credentials known now, waits at most
    /// `timeout` for it to log in, and compares the cluster's id with the record's. The application's own clients are not
    /// touched. Run it after a change of addresses or secrets, and now and then from a scheduler.
    ///
    /// ```no_run
    /// # async fn example(fleet: &standfast::Fleet) {
    /// for standby in fleet.rehearse(std::time::Duration::from_secs(10)).await {
    ///     match standby.outcome {
    ///         Ok(took) => println!("{} would do, logged in after {took:?}", standby.cluster),
    ///         Err(reason) => eprintln!("{} would not do: {reason}", standby.cluster),
    ///     }
    /// }
    /// # }
    /// ```
    pub async fn rehearse(&self, timeout: Duration) -> Vec<Rehearsal> {
        let properties = self.shared.standbys.properties();
        rehearsal::rehearse(&self.shared, &properties, timeout).await
    }

    /// Counters over all producers and consumers of this fleet.
    pub fn snapshot(&self) -> Stats {
        let now = jiff::Timestamp::now();
        let ends = self.credential_expiries().into_iter();
        Stats {
            credentials_expire_in_seconds: ends.map(|end| end.expiry.seconds_left(now)).min(),
            ..self.shared.counters.snapshot()
        }
    }

    /// What of the clusters' credentials ends, and when: certificates, and a Vault token that nobody renews; the standbys'
    /// too. [`FleetEvent::CredentialsExpire`] tells of it ahead.
    pub fn credential_expiries(&self) -> Vec<CredentialExpiry> {
        let Some(record) = self.view().record else {
            return Vec::new();
        };
        expiry::of_clusters(&record, &self.shared.secrets.status())
    }

    /// What the watch of the fleet record has counted.
    pub fn discovery_stats(&self) -> WatchStats {
        self.shared.view.stats()
    }

    #[cfg(any(feature = "opentelemetry", feature = "prometheus"))]
    pub(crate) fn shared(&self) -> &Arc<FleetShared> {
        &self.shared
    }

    #[cfg(any(feature = "opentelemetry", feature = "prometheus"))]
    pub(crate) fn from_shared(shared: Arc<FleetShared>) -> Self {
        Self { shared }
    }
}

impl FleetShared {
    pub(crate) fn emit(&self, event: FleetEvent) {
        // No subscriber is no fault.
        let _ = self.events.send(event);
    }

    /// Lets a producer know what the standbys hold.
    pub(crate) fn watch_standbys(&self, producer: &Arc<ProducerShared>) {
        self.standbys.add(producer);
    }

    pub(crate) fn client_name(&self, kind: &str) -> ClientName {
        let number = self.client_number.fetch_add(1, Relaxed) + 1;
        ClientName::new(format!("{kind}-{number}"))
    }
}

impl Drop for FleetShared {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// Options of a [`Fleet`], before it is connected.
#[derive(Debug)]
#[must_use]
pub struct FleetBuilder {
    name: String,
    discovery: Option<DiscoveryOptions>,
    secrets: SecretsOptions,
    connect_timeout: Duration,
    warm_standbys: bool,
    lease: Option<Duration>,
    credential_cache: Option<PathBuf>,
}

impl FleetBuilder {
    /// Where the fleet record is kept. Needed.
    pub fn discovery(mut self, options: DiscoveryOptions) -> Self {
        self.discovery = Some(options);
        self
    }

    /// Where credentials are kept. Without it, clusters must need none.
    pub fn secrets(mut self, options: SecretsOptions) -> Self {
        self.secrets = options;
        self
    }

    /// How long [`build`](Self::build) waits for the record and the active cluster's credentials; default
    /// [`DEFAULT_CONNECT_TIMEOUT`]. The cluster itself is not waited for.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Whether every producer and consumer keeps a connected client of each other cluster of the fleet; default true. A producer's
    /// flip then finds it logged in and with its metadata, and a standby that cannot be used shows beforehand. What one costs
    /// while nothing happens is in the project's BENCHMARKS.md. It is made 2 s after a start or a flip.
    pub fn warm_standbys(mut self, warm: bool) -> Self {
        self.warm_standbys = warm;
        self
    }

    /// Lets producers hold new records when discovery has been silent for this long, until it answers again; at least
    /// [`MIN_LEASE`]. By default they go on with what is known for ever.
    ///
    /// It trades availability for a bound on split brain: an application that is cut off from discovery, and not from the old
    /// cluster, would go on writing there after a failover. With a lease of N seconds it stops N seconds after the last word,
    /// so an operator who waits that long knows that it has. What librdkafka had in hand is still finished, and a process that
    /// was frozen may send that on when it wakes. A start from the cache file holds until discovery has answered.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = Some(lease);
        self
    }

    /// Keeps the credentials that are in use in this file (TOML, mode 0600), and starts from it while Vault does not answer.
    ///
    /// By default nothing secret is written to disk, and a start needs Vault; a running application never does. Whoever can read
    /// the file has the clusters' passwords and keys, also after Vault has withdrawn the application's access: put it where only
    /// the application's user can read, best in memory (`/run`). The record's cache is an option of the discovery backend:
    /// [`ConsulOptions::start_from_cache`](standfast_discovery::ConsulOptions::start_from_cache).
    pub fn credential_cache(mut self, file: impl Into<PathBuf>) -> Self {
        self.credential_cache = Some(file.into());
        self
    }

    /// Starts the watches and waits until the active cluster is known.
    ///
    /// # Errors
    /// [`Error::Configuration`], [`Error::Discovery`], [`Error::Secrets`] for unusable options, [`Error::NoRecord`] if
    /// the record or the credentials of the active cluster did not come in time.
    pub async fn build(self) -> Result<Fleet> {
        let name = FleetName::new(self.name).map_err(|error| Error::Configuration {
            reason: error.to_string(),
        })?;
        let Some(discovery) = self.discovery else {
            return Err(Error::Configuration {
                reason: "no discovery backend: call discovery(), or set STANDFAST_DISCOVERY_DIR or STANDFAST_CONSUL_ADDR"
                    .to_owned(),
            });
        };
        let discovery = with_lease(discovery, self.lease)?;
        let discovery =
            Discovery::new(discovery).map_err(|error| Error::Discovery(error.to_string()))?;
        let secrets =
            Secrets::new(self.secrets).map_err(|error| Error::Secrets(error.to_string()))?;

        let shutdown = CancellationToken::new();
        let stop_on_error = shutdown.clone().drop_guard();
        let (record_watch, view) = discovery.watch(name.clone());
        tokio::spawn(record_watch.run(shutdown.clone()));
        let (secrets_watch, credentials) = secrets.watch(Vec::new());
        tokio::spawn(secrets_watch.run(shutdown.clone()));

        let cache = match self.credential_cache {
            Some(file) => Some(CredentialCache::open(file, &shutdown)?),
            None => None,
        };
        let (publish, targets) = watch::channel(None);
        let (events, _) = broadcast::channel(EVENT_BUFFER);
        let shared = Arc::new(FleetShared {
            name: name.clone(),
            targets: targets.clone(),
            counters: Counters::default(),
            warm_standbys: self.warm_standbys,
            standbys: StandbyWatch::new(targets.clone(), events.clone(), shutdown.clone()),
            events,
            view: view.clone(),
            secrets: credentials.clone(),
            client_number: AtomicU64::new(0),
            shutdown: shutdown.clone(),
        });
        let conductor = Conductor::new(
            &shared,
            discovery,
            view.clone(),
            credentials.clone(),
            publish,
            Precautions {
                lease: self.lease,
                cache,
            },
        );
        tokio::spawn(conductor.run(shutdown));

        wait_for_target(targets, self.connect_timeout, &name, &view, &credentials).await?;
        // From here on `FleetShared::drop` ends the watches.
        stop_on_error.disarm();
        Ok(Fleet { shared })
    }
}

/// Consul answers an unchanged record only after a wait; with a lease that must be well within it.
fn with_lease(discovery: DiscoveryOptions, lease: Option<Duration>) -> Result<DiscoveryOptions> {
    let Some(lease) = lease else {
        return Ok(discovery);
    };
    if lease < MIN_LEASE {
        return Err(Error::Configuration {
            reason: format!("a lease of {lease:?} is shorter than {MIN_LEASE:?}"),
        });
    }
    Ok(match discovery {
        DiscoveryOptions::Consul(mut options) => {
            options.wait = options.wait.min(lease / 3);
            options.request_timeout = options.request_timeout.min(lease / 3);
            DiscoveryOptions::Consul(options)
        }
        other => other,
    })
}

async fn wait_for_target(
    mut targets: watch::Receiver<Option<Arc<Target>>>,
    timeout: Duration,
    fleet: &FleetName,
    view: &FleetWatchHandle,
    credentials: &SecretsHandle,
) -> Result<()> {
    if let Ok(Ok(_)) = tokio::time::timeout(timeout, targets.wait_for(Option::is_some)).await {
        return Ok(());
    }
    let view = view.borrow();
    let detail = match (&view.record, view.last_error) {
        (Some(record), _) => {
            let status = credentials.status();
            let errors: Vec<_> = status
                .secrets
                .iter()
                .filter_map(|(path, secret)| {
                    Some(format!("{path}: {}", secret.last_error.as_ref()?))
                })
                .collect();
            format!(
                "the credentials of its active cluster {} are not known ({})",
                record.active,
                errors.join("; ")
            )
        }
        (None, Some(error)) => error,
        (None, None) => "discovery holds none".to_owned(),
    };
    Err(Error::NoRecord {
        fleet: fleet.to_string(),
        waited: timeout,
        detail,
    })
}
