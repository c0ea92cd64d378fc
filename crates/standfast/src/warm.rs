//! Clients of the fleet's other clusters, connected before they are needed.
//!
//! A flip then finds a client that has its connections, its login and its metadata, instead of beginning with a name
//! look-up. What is made here is an ordinary client of one cluster, checked by [`Connect`] like any other; the flip takes it
//! only if the cluster has just answered once more, with the same id. Otherwise the flip makes a new client, as without this.
//! Only producers take it; a consumer's shows whether the standby lets it in (see `consumer/driver.rs` for why).

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::client::{Client, ClientContext};
use standfast_discovery::ClusterName;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::connect::Connect;
use crate::error::Result;
use crate::event::FleetEvent;
use crate::fleet::FleetShared;
use crate::target::Target;

/// Time after a flip before the clients for the next one are made: the flip has the machine to itself.
const DELAY: Duration = Duration::from_secs(2);

/// How often a connected client is used. Brokers close connections that were idle for 10 minutes.
const KEEP: Duration = Duration::from_secs(60);

/// How often a client that did not answer is asked again.
const RETRY: Duration = Duration::from_secs(5);

/// How often librdkafka's log lines are served.
const SERVE: Duration = Duration::from_secs(1);

/// One question to the cluster.
const ASK: Duration = Duration::from_secs(1);

/// How long a flip waits for a connected client to show that it still is.
const TAKE: Duration = Duration::from_millis(250);

/// Topics of which a client has the metadata, and the connections to the leaders.
pub(crate) const MAX_TOPICS: usize = 64;

/// What a kind of client can do. All of it may block.
pub(crate) trait Warmable: Send + 'static {
    /// Serves librdkafka's events, which would pile up otherwise.
    fn serve(&self);

    /// Asks for the metadata of the topics and talks to their leaders; whether the cluster answered.
    fn keep_warm(&self, topics: &[String]) -> bool;

    /// Asks the cluster for anything; its id, if it answers in time and the client is in order.
    fn prove(&self, topic: Option<&str>, timeout: Duration) -> Option<String>;
}

type Make<C> = Box<dyn Fn(&Target) -> Result<C> + Send>;
type Ask<C> = Box<dyn Fn(&C, Duration) -> Option<String> + Send>;

/// How clients of one producer or consumer are made and thrown away.
pub(crate) struct Kind<C> {
    pub(crate) make: Make<C>,
    pub(crate) ask: Ask<C>,
    pub(crate) discard: Box<dyn Fn(C) + Send>,
    /// The topics that matter now.
    pub(crate) topics: Box<dyn Fn() -> Vec<String> + Send>,
}

/// The standby clients of one producer or consumer, at most one per cluster.
#[derive(Debug)]
pub(crate) struct WarmSet<C> {
    clients: HashMap<ClusterName, Warm<C>>,
}

impl<C> Default for WarmSet<C> {
    fn default() -> Self {
        Self {
            clients: HashMap::new(),
        }
    }
}

impl<C: Warmable> WarmSet<C> {
    /// Lets go of clients that do not fit the record any more, and begins those that are missing. A new password is proven by
    /// a new client.
    pub(crate) fn follow(
        &mut self,
        target: &Target,
        connect: impl Fn(Arc<Target>, CancellationToken) -> Connect,
        kind: impl Fn() -> Kind<C>,
    ) {
        let wanted =
            |cluster: &ClusterName| target.standbys.iter().find(|s| s.0.cluster == *cluster);
        self.clients.retain(|cluster, warm| {
            wanted(cluster).is_some_and(|standby| {
                standby.0.same_client(&warm.target) && standby.0.new_login(&warm.target).is_none()
            })
        });
        if target.since.elapsed() < DELAY {
            return;
        }
        for standby in target.standbys.iter() {
            let cluster = &standby.0.cluster;
            if standby.0.has_credentials() && !self.clients.contains_key(cluster) {
                let cancel = CancellationToken::new();
                let connect = connect(Arc::clone(&standby.0), cancel.clone());
                if let Some(warm) = Warm::start(connect, cancel, kind()) {
                    self.clients.insert(cluster.clone(), warm);
                }
            }
        }
    }

    /// The client for a flip to `target`, if there is one that was connected when last looked at.
    pub(crate) fn take(&mut self, target: &Target) -> Option<Warm<C>> {
        let warm = self.clients.remove(&target.cluster)?;
        let fits = warm.is_ready()
            && target.same_client(&warm.target)
            && target.new_login(&warm.target).is_none();
        fits.then_some(warm)
    }
}

/// One standby client, on a thread of its own. Dropping it lets the client go.
#[derive(Debug)]
pub(crate) struct Warm<C> {
    target: Arc<Target>,
    ready: Arc<AtomicBool>,
    wanted: Sender<()>,
    client: Receiver<(C, String)>,
    _cancel: DropGuard,
}

impl<C: Warmable> Warm<C> {
    fn start(connect: Connect, cancel: CancellationToken, kind: Kind<C>) -> Option<Self> {
        let ready = Arc::new(AtomicBool::new(false));
        let (wanted, orders) = channel();
        let (give, client) = channel();
        let target = Arc::clone(&connect.target);
        let name = connect.client.clone();
        let keeper = Keeper {
            ready: Ready {
                fleet: Arc::clone(&connect.fleet),
                is: Arc::clone(&ready),
            },
            connect,
            kind,
            orders,
            give,
        };
        let spawned = thread::Builder::new()
            .name("standfast-warm".to_owned())
            .spawn(move || keeper.run());
        if let Err(error) = spawned {
            tracing::error!(client = name.as_str(), cluster = %target.cluster, %error, "no thread for a standby client");
            return None;
        }
        Some(Self {
            target,
            ready,
            wanted,
            client,
            _cancel: cancel.drop_guard(),
        })
    }

    fn is_ready(&self) -> bool {
        self.ready.load(Relaxed)
    }

    /// The client and its cluster's id, if the cluster answers at once. Blocks.
    pub(crate) fn client(self) -> Option<(C, String)> {
        self.wanted.send(()).ok()?;
        // Twice: the keeper may be in the middle of a question.
        self.client.recv_timeout(TAKE * 2).ok()
    }
}

/// Whether a client is ready, as counted in the fleet's statistics.
struct Ready {
    fleet: Arc<FleetShared>,
    is: Arc<AtomicBool>,
}

impl Ready {
    /// True if it is new.
    fn set(&self, ready: bool) -> bool {
        let changed = self.is.swap(ready, Relaxed) != ready;
        let gauge = &self.fleet.counters.standbys_ready;
        match (changed, ready) {
            (false, _) => {}
            (true, true) => drop(gauge.fetch_add(1, Relaxed)),
            (true, false) => drop(gauge.fetch_sub(1, Relaxed)),
        }
        changed
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        self.set(false);
    }
}

/// Owns a standby client until it is taken.
struct Keeper<C> {
    ready: Ready,
    connect: Connect,
    kind: Kind<C>,
    orders: Receiver<()>,
    give: Sender<(C, String)>,
}

impl<C: Warmable> Keeper<C> {
    fn run(self) {
        let began = Instant::now();
        let kind = &self.kind;
        let target = Arc::clone(&self.connect.target);
        let made = self
            .connect
            .run(|| (kind.make)(&target), &kind.ask, &kind.discard);
        let Some((client, id)) = made else { return };
        let mut keep_at = self.keep(&client, &id, began);
        loop {
            match self.orders.recv_timeout(SERVE) {
                Ok(()) => return self.hand_over(client, id),
                Err(RecvTimeoutError::Disconnected) => return (kind.discard)(client),
                Err(RecvTimeoutError::Timeout) => client.serve(),
            }
            if Instant::now() >= keep_at {
                keep_at = self.keep(&client, &id, Instant::now());
            }
        }
    }

    /// Uses the client once, and tells how it went; when to do it again.
    fn keep(&self, client: &C, id: &str, began: Instant) -> Instant {
        let topics = (self.kind.topics)();
        let answered = client.keep_warm(&topics);
        let (name, cluster) = (&self.connect.client, &self.connect.target.cluster);
        if self.ready.set(answered) {
            let took = began.elapsed();
            if answered {
                tracing::info!(client = name.as_str(), %cluster, ?took, "a client of the standby is connected");
                self.ready.fleet.emit(FleetEvent::StandbyReady {
                    client: name.clone(),
                    cluster: cluster.clone(),
                    cluster_id: id.to_owned(),
                });
            } else {
                tracing::warn!(client = name.as_str(), %cluster, "the standby does not answer");
                self.ready.fleet.emit(FleetEvent::StandbyFailed {
                    client: name.clone(),
                    cluster: cluster.clone(),
                    reason: "it does not answer any more".to_owned(),
                });
            }
        }
        Instant::now() + if answered { KEEP } else { RETRY }
    }

    fn hand_over(self, client: C, id: String) {
        let topics = (self.kind.topics)();
        let found = client.prove(topics.first().map(String::as_str), TAKE);
        if found.as_ref() != Some(&id) {
            return (self.kind.discard)(client);
        }
        if let Err(unwanted) = self.give.send((client, id)) {
            (self.kind.discard)(unwanted.0.0);
        }
    }
}

/// Asks for the topics' metadata, and each of their leaders for one log end, so that it is connected.
pub(crate) fn keep_warm<C: ClientContext>(client: &Client<C>, topics: &[String]) -> bool {
    let mut connected = BTreeSet::new();
    let mut answered = topics.is_empty() && client.fetch_cluster_id(ASK).is_some();
    for topic in topics.iter().take(MAX_TOPICS) {
        let Ok(metadata) = client.fetch_metadata(Some(topic), ASK) else {
            return false;
        };
        answered = true;
        for partition in metadata
            .topics()
            .iter()
            .flat_map(|topic| topic.partitions())
        {
            if partition.leader() >= 0 && connected.insert(partition.leader()) {
                // A topic that may not be described is no reason to do without the rest.
                let _ = client.fetch_watermarks(topic, partition.id(), ASK);
            }
        }
    }
    answered
}

/// The cluster's id as of now: by a question that the cluster must answer, where there is a topic to ask for.
pub(crate) fn prove<C: ClientContext>(
    client: &Client<C>,
    topic: Option<&str>,
    timeout: Duration,
) -> Option<String> {
    if client.fatal_error().is_some() {
        return None;
    }
    if let Some(topic) = topic {
        client.fetch_metadata(Some(topic), timeout).ok()?;
    }
    client.fetch_cluster_id(Duration::ZERO)
}
