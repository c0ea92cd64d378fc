//! The control plane of a link: connects, finds the producer id, creates the topics, starts the shards and watches over them.

use std::collections::HashSet;
use std::sync::atomic::AtomicI64;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use standfast_wire::{Cluster, ClusterOptions};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info, warn};
use uuid::Uuid;

use crate::acls::{AclRun, AclSyncDescription};
use crate::description::{GroupDescription, LinkState, MirrorDescription, PartitionState};
use crate::handle::LinkHandle;
use crate::lifecycle::Wanted;
use crate::live::Live;
use crate::membership::{self, Share};
use crate::options::LinkOptions;
use crate::partition::Side;
use crate::rate::RateLimit;
use crate::restore::Restores;
use crate::seed::SEEDS_AT_ONCE;
use crate::shard::{self, COMMAND_QUEUE, Command, Context};
use crate::slow::MAX_SLOW;
use crate::startup::MAX_READING;
use crate::topics::{self, Topic};
use crate::{Error, acls, configs, groups, guard, identity, paused, refusal, restore, retention};

/// Longest wait between tries to reach a cluster.
const CONNECT_BACKOFF_MAX: Duration = Duration::from_secs(5);

/// How often the data threads are looked at.
const THREAD_CHECK: Duration = Duration::from_secs(1);

/// The data threads must end within this time of a shutdown.
const SHUTDOWN_MAX: Duration = Duration::from_millis(800);

/// A link engine, ready to run.
#[derive(Debug)]
pub struct Link {
    inner: Arc<Inner>,
}

/// What the control plane's jobs and the handles share.
#[derive(Debug)]
pub(crate) struct Inner {
    /// As the link was started. What can change while it runs is read from [`Inner::live`].
    pub(crate) options: Arc<LinkOptions>,
    pub(crate) live: watch::Sender<Arc<Live>>,
    pub(crate) source: OnceLock<Cluster>,
    pub(crate) destination: OnceLock<Cluster>,
    pub(crate) producer_id: Arc<AtomicI64>,
    /// What of the link is this engine's.
    pub(crate) share: Share,
    /// Cancelled by a stop of the mirrors: nothing is written to the destination any more, by any part.
    pub(crate) stop: CancellationToken,
    pub(crate) rate: Arc<RateLimit>,
    /// A command changed what is wanted of the mirrors.
    pub(crate) look_again: Notify,
    /// Asks the ACLs' job for a run, once it is there.
    pub(crate) acl_runs: OnceLock<mpsc::Sender<AclRun>>,
    shards: Mutex<Vec<mpsc::Sender<Command>>>,
    topics: Mutex<Vec<Topic>>,
    groups: Mutex<Vec<GroupDescription>>,
    acls: Mutex<AclSyncDescription>,
    trouble: Mutex<Trouble>,
    pub(crate) restores: Restores,
    /// Topics of the source that are the mirrors of a link with a prefix, which wide filters leave out.
    pub(crate) left_out: Mutex<HashSet<Uuid>>,
}

/// Why the link is not ACTIVE.
#[derive(Debug, Default, Clone)]
struct Trouble {
    source: Option<String>,
    destination: Option<String>,
    /// The trouble needs a person.
    failed: bool,
}

impl Link {
    /// Checks the options. Nothing is connected before [`Link::run`].
    pub fn new(mut options: LinkOptions) -> Result<(Link, LinkHandle), Error> {
        options.check()?;
        options.lifecycle.keep_prefix(&options.prefix)?;
        // From here on every part of the engine, and whoever connects with these options, sees the source's topics under their mirrors' names.
        options.source.topic_prefix = options.prefix.clone();
        let names = options.lifecycle.state().mirrors(
            &options.prefix,
            &options.topics,
            &options.topic_filters,
        );
        let topics = names
            .iter()
            .map(|n| Topic::new(n, &options.prefix))
            .collect();
        let groups = options
            .groups
            .iter()
            .map(|group| GroupDescription {
                group: group.clone(),
                ..GroupDescription::default()
            })
            .collect();
        let inner = Arc::new(Inner {
            share: Share::new(options.sharing.clone()),
            rate: Arc::new(RateLimit::new(options.rate_limit)),
            live: watch::Sender::new(Arc::new(Live::of(&options))),
            options: Arc::new(options),
            source: OnceLock::new(),
            destination: OnceLock::new(),
            producer_id: Arc::new(AtomicI64::new(-1)),
            stop: CancellationToken::new(),
            look_again: Notify::new(),
            acl_runs: OnceLock::new(),
            shards: Mutex::default(),
            topics: Mutex::new(topics),
            groups: Mutex::new(groups),
            acls: Mutex::default(),
            trouble: Mutex::default(),
            restores: Restores::default(),
            left_out: Mutex::default(),
        });
        Ok((
            Link {
                inner: Arc::clone(&inner),
            },
            LinkHandle { inner },
        ))
    }

    /// Runs the link until `shutdown`. Clusters that are down, wrong or refuse are retried without end; the description says so. Ends within a second; what
    /// was in flight then is found in the destination's log by the next start.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        let inner = self.inner;
        let started = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            started = start(&inner, &shutdown) => started?,
        };
        let Some(mut running) = started else {
            // Stopped before it was connected.
            shutdown.cancelled().await;
            return Ok(());
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = a_thread_ends(&running.threads) => {
                error!(link = %inner.options.name, "a data thread ended; the link must be started again");
                inner.stop.cancel();
                running.jobs.shutdown().await;
                return Err(Error::DataThread { link: inner.options.name.to_string() });
            }
            Some(ended) = running.jobs.join_next() => {
                if let Err(panicked) = ended {
                    error!(link = %inner.options.name, error = %panicked, "a job of the link ended");
                }
                shutdown.cancelled().await;
            }
        }
        running.jobs.shutdown().await;
        inner.shards().clear();
        let threads = running.threads;
        let joined = tokio::task::spawn_blocking(move || {
            threads.into_iter().for_each(|thread| drop(thread.join()))
        });
        if tokio::time::timeout(SHUTDOWN_MAX, joined).await.is_err() {
            warn!(link = %inner.options.name, "a data thread did not end in time");
            // It may still write: the others have to wait for the end of the session.
            running.membership.abort();
        }
        running.leave.cancel();
        let _ = running.membership.await;
        Ok(())
    }
}

/// Returns when a data thread has ended, which only a fault can cause before the shutdown.
async fn a_thread_ends(threads: &[std::thread::JoinHandle<()>]) {
    while !threads.iter().any(std::thread::JoinHandle::is_finished) {
        tokio::time::sleep(THREAD_CHECK).await;
    }
}

struct Running {
    jobs: JoinSet<()>,
    /// Keeps the place in the link's group until the last.
    membership: AbortOnDropHandle<()>,
    leave: CancellationToken,
    threads: Vec<std::thread::JoinHandle<()>>,
}

async fn start(inner: &Arc<Inner>, shutdown: &CancellationToken) -> Result<Option<Running>, Error> {
    let connected = async {
        tokio::join!(connect(inner, Side::Source), async {
            let destination = connect(inner, Side::Destination).await;
            identity::find(inner, &destination).await;
            destination
        })
    };
    let (source, destination) = tokio::select! {
        connected = connected => connected,
        () = inner.stop.cancelled() => return Ok(None),
    };
    let context = Context {
        options: Arc::clone(&inner.options),
        source,
        destination,
        producer_id: Arc::clone(&inner.producer_id),
        transaction_timeout: Arc::default(),
        share: inner.share.clone(),
        rate: Arc::clone(&inner.rate),
        control: tokio::runtime::Handle::current(),
        reading: Arc::new(Semaphore::new(MAX_READING)),
        slow_paths: Arc::new(Semaphore::new(MAX_SLOW)),
        seeds: Arc::new(Semaphore::new(SEEDS_AT_ONCE)),
    };
    let mut threads = Vec::new();
    for index in 0..inner.options.shards {
        let (commands, queue) = mpsc::channel(COMMAND_QUEUE);
        let thread =
            shard::spawn(index, context.clone(), queue, shutdown.clone()).map_err(|source| {
                Error::Thread {
                    link: inner.options.name.to_string(),
                    source,
                }
            })?;
        threads.push(thread);
        inner.shards().push(commands);
    }
    let leave = CancellationToken::new();
    let membership = AbortOnDropHandle::new(tokio::spawn(membership::task::run(
        Arc::clone(inner),
        context.destination.clone(),
        leave.clone(),
    )));
    let mut jobs = JoinSet::new();
    // Also after a stop of the mirrors, which has to be told to the others and confirmed.
    jobs.spawn(membership::enact::keep(Arc::clone(inner)));
    jobs.spawn(until_stopped(
        Arc::clone(inner),
        topics::keep(Arc::clone(inner), context.clone()),
    ));
    jobs.spawn(until_stopped(
        Arc::clone(inner),
        guard::keep(Arc::clone(inner), context.destination.clone()),
    ));
    jobs.spawn(until_stopped(
        Arc::clone(inner),
        identity::keep(Arc::clone(inner), context.destination.clone()),
    ));
    jobs.spawn(until_stopped(
        Arc::clone(inner),
        groups::keep(Arc::clone(inner), context.clone()),
    ));
    jobs.spawn(until_stopped(
        Arc::clone(inner),
        acls::keep(Arc::clone(inner), context.clone()),
    ));
    jobs.spawn(until_stopped(
        Arc::clone(inner),
        configs::keep(Arc::clone(inner), context.clone()),
    ));
    jobs.spawn(until_stopped(
        Arc::clone(inner),
        paused::keep(Arc::clone(inner), context.clone()),
    ));
    jobs.spawn(until_stopped(
        Arc::clone(inner),
        restore::keep(Arc::clone(inner)),
    ));
    jobs.spawn(until_stopped(
        Arc::clone(inner),
        retention::keep(Arc::clone(inner), context),
    ));
    Ok(Some(Running {
        jobs,
        membership,
        leave,
        threads,
    }))
}

async fn until_stopped(inner: Arc<Inner>, job: impl Future<Output = ()>) {
    tokio::select! {
        () = job => {}
        () = inner.stop.cancelled() => {}
    }
}

async fn connect(inner: &Arc<Inner>, side: Side) -> Cluster {
    let (options, place): (&ClusterOptions, _) = match side {
        Side::Source => (&inner.options.source, &inner.source),
        Side::Destination => (&inner.options.destination, &inner.destination),
    };
    let mut wait = inner.options.backoff.min;
    loop {
        match Cluster::connect(options.clone()).await {
            Ok(cluster) => {
                inner.set_trouble(side, None);
                info!(link = %inner.options.name, ?side, cluster_id = cluster.cluster_id(), "connected");
                return place.get_or_init(|| cluster).clone();
            }
            Err(error) => {
                inner.set_trouble(side, Some(&error));
                if !error.is_retriable() {
                    error!(link = %inner.options.name, ?side, %error, "cluster cannot be used, trying again");
                    wait = CONNECT_BACKOFF_MAX;
                } else {
                    warn!(link = %inner.options.name, ?side, %error, "cluster not reached, trying again");
                }
            }
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(CONNECT_BACKOFF_MAX);
    }
}

impl Inner {
    pub(crate) fn topics(&self) -> MutexGuard<'_, Vec<Topic>> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn topic_names(&self) -> Vec<Arc<str>> {
        self.topics().iter().map(Topic::name).collect()
    }

    /// The settings that can change while the link runs, as they are now.
    pub(crate) fn live(&self) -> Arc<Live> {
        Arc::clone(&self.live.borrow())
    }

    /// The state in which a topic should rest; `None`: it should mirror.
    pub(crate) fn rest_of(&self, topic: &str) -> Option<PartitionState> {
        self.options.lifecycle.rest_of(topic)
    }

    /// These topics are no longer to be promoted.
    pub(crate) fn end_promotion(&self, topics: &HashSet<Arc<str>>) {
        for topic in self.topics().iter_mut() {
            if topics.contains(&topic.name()) {
                (topic.promoting, topic.held) = (false, false);
            }
        }
    }

    /// Keeps topics that rest for a last comparison from being resumed.
    pub(crate) fn hold(&self, topics: &HashSet<Arc<str>>) {
        for topic in self.topics().iter_mut() {
            topic.held |= topics.contains(&topic.name());
        }
    }

    /// Ends the hold; those of `equal` that nothing else has changed meanwhile are stopped for good, and answered.
    pub(crate) fn conclude(
        &self,
        held: &HashSet<Arc<str>>,
        equal: &HashSet<Arc<str>>,
    ) -> Vec<Arc<str>> {
        let mut done = Vec::new();
        // A failover of the region that came in between reports these mirrors as its own.
        let stopped = self.stop.is_cancelled();
        let mut topics = self.topics();
        for topic in topics.iter_mut().filter(|t| held.contains(&t.name())) {
            if topic.promoting && !stopped && equal.contains(&topic.name()) {
                topic.promoting = false;
                done.push(topic.name());
            }
            topic.held = false;
        }
        // Before the lock is given up: from here on no look resumes them.
        let names = done.iter().map(|name| &**name);
        self.options.lifecycle.set(names, Wanted::Stopped);
        drop(topics);
        done
    }

    pub(crate) fn groups(&self) -> MutexGuard<'_, Vec<GroupDescription>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn acls(&self) -> MutexGuard<'_, AclSyncDescription> {
        self.acls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shards(&self) -> MutexGuard<'_, Vec<mpsc::Sender<Command>>> {
        self.shards.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The shard that partition `index` of the link belongs to.
    pub(crate) fn shard(&self, index: usize) -> Option<mpsc::Sender<Command>> {
        let shards = self.shards();
        shards.get(index % shards.len().max(1)).cloned()
    }

    pub(crate) fn all_shards(&self) -> Vec<mpsc::Sender<Command>> {
        self.shards().clone()
    }

    /// Notes that a cluster is in trouble, or no longer.
    pub(crate) fn set_trouble(&self, side: Side, error: Option<&standfast_wire::Error>) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let text = error.map(refusal::text);
        match side {
            Side::Source => trouble.source = text,
            Side::Destination => trouble.destination = text,
        }
        trouble.failed = match error {
            Some(error) => !error.is_retriable(),
            None => trouble.failed && (trouble.source.is_some() || trouble.destination.is_some()),
        };
    }

    pub(crate) fn state(&self, mirrors: &[MirrorDescription]) -> (LinkState, Option<String>) {
        use crate::description::PartitionState::SourceUnavailable;
        if self.stop.is_cancelled() || self.options.lifecycle.state().stop_token().is_some() {
            return (LinkState::Stopped, None);
        }
        let trouble = self
            .trouble
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let text = match (&trouble.source, &trouble.destination) {
            (Some(source), Some(destination)) => {
                Some(format!("source: {source}; destination: {destination}"))
            }
            (Some(source), None) => Some(format!("source: {source}")),
            (None, Some(destination)) => Some(format!("destination: {destination}")),
            (None, None) => None,
        };
        if self.options.lifecycle.is_paused() {
            return (LinkState::Paused, text);
        }
        if let Some(text) = text {
            return (
                if trouble.failed {
                    LinkState::Failed
                } else {
                    LinkState::Unavailable
                },
                Some(text),
            );
        }
        if let Some(partition) = mirrors
            .iter()
            .flat_map(|m| &m.mirror_lags)
            .find(|p| p.state == SourceUnavailable)
        {
            return (
                LinkState::Unavailable,
                partition
                    .error
                    .as_ref()
                    .map(|text| format!("source: {text}")),
            );
        }
        if let Some(text) = self
            .share
            .trouble()
            .filter(|_| self.destination.get().is_some())
        {
            return (LinkState::Unavailable, Some(text));
        }
        let connected = self.source.get().is_some() && self.destination.get().is_some();
        (
            if connected {
                LinkState::Active
            } else {
                LinkState::Unknown
            },
            None,
        )
    }
}
