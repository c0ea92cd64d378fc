//! One generation of a consumer: an rdkafka client of one cluster on a thread of its own.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use standfast_discovery::ClusterName;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::ConsumerShared;
use super::client::{ConsumerClient, cluster_id, make};
use super::context::{WorkerContext, retire};
use super::mailbox::Item;
use super::message::{Message, is_link_filler};
use super::offsets;
use super::rebalance::{self, RebalanceEvent};
use super::start::MissingOffset;
use crate::connect::Connect;
use crate::error::{Error, Result};
use crate::event::FleetEvent;
use crate::stats::add;
use crate::target::Target;
use crate::way_back::WayBack;
use crate::{ffi, reaper};

/// Longest wait for a record; also what stopping the thread may take.
const POLL: Duration = Duration::from_millis(100);

/// The same while something comes within milliseconds: the handoff, answers to commits, more of what the application asks for.
const BRISK_POLL: Duration = Duration::from_millis(5);

/// The same where the application waits for its commits.
const MANUAL_POLL: Duration = Duration::from_millis(20);

/// How long the application is expected to ask for more after it has asked for something.
const BRISK: Duration = Duration::from_secs(1);

/// Records moved to the mailbox at once.
const BATCH: usize = 256;

/// How long the application may leave the mailbox full before the partitions are paused. Until then polling waits;
/// afterwards it goes on, so that the group sees a live member (`max.poll.interval.ms`).
const PAUSE_AFTER: Duration = Duration::from_millis(500);

/// Pause between two looks for the offsets of a group that has none.
const OFFSETS_PAUSE: Duration = Duration::from_millis(500);

/// One wait for room in the mailbox.
const ROOM: Duration = Duration::from_millis(50);

/// How long the last commit of a closing consumer may take.
const LAST_COMMIT: Duration = Duration::from_secs(1);

/// What the worker tells the driver.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) cluster_id: String,
}

/// How the worker ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Stopped,
    /// librdkafka's fatal error.
    Broken(String),
}

/// A generation's worker, before its thread runs.
pub(super) struct Worker {
    pub(super) shared: Arc<ConsumerShared>,
    pub(super) target: Arc<Target>,
    pub(super) generation: u64,
    pub(super) stop: CancellationToken,
    pub(super) ready: oneshot::Sender<Ready>,
}

impl Worker {
    /// Connects, takes over from the previous generation, reads until stopped. Blocks.
    pub(super) fn run(self) -> Ended {
        let Self {
            shared,
            target,
            generation,
            stop,
            ready,
        } = self;
        let connect = Connect::new(
            &shared.fleet,
            &shared.name,
            Arc::clone(&target),
            stop.clone(),
            false,
        );
        let connected = connect.run(
            || make(&shared, &target, generation),
            |consumer, timeout| cluster_id(&consumer.0, shared.subscription.names(), timeout),
            |consumer| retire(consumer.0, TopicPartitionList::new()),
        );
        let Some((ConsumerClient(consumer), cluster_id)) = connected else {
            return Ended::Stopped;
        };
        if stop.is_cancelled() || !shared.take_over(generation, &target, &cluster_id) {
            retire(consumer, TopicPartitionList::new());
            return Ended::Stopped;
        }
        report_ready(&shared, &target, &cluster_id);
        let _ = ready.send(Ready { cluster_id });
        Loop {
            consumer,
            shared,
            target,
            stop,
            batch: VecDeque::with_capacity(BATCH),
            commit_at: Instant::now(),
            full_since: None,
            brisk_until: Instant::now(),
            way_back: WayBack::default(),
        }
        .run()
    }
}

fn report_ready(shared: &ConsumerShared, target: &Target, cluster_id: &str) {
    let after = target.since.elapsed();
    tracing::info!(
        client = shared.name.as_str(), cluster = %target.cluster, cluster_id, epoch = %target.epoch, ?after,
        "consumer works on the active cluster"
    );
    shared.fleet.emit(FleetEvent::ClientReady {
        client: shared.name.clone(),
        epoch: target.epoch,
        cluster: target.cluster.clone(),
        cluster_id: cluster_id.to_owned(),
        after,
    });
}

struct Loop {
    consumer: BaseConsumer<WorkerContext>,
    shared: Arc<ConsumerShared>,
    target: Arc<Target>,
    stop: CancellationToken,
    batch: VecDeque<Item>,
    commit_at: Instant,
    full_since: Option<Instant>,
    /// Until then the application may soon ask for something.
    brisk_until: Instant,
    way_back: WayBack,
}

impl Loop {
    fn run(mut self) -> Ended {
        let shared = Arc::clone(&self.shared);
        let topics = shared.subscription.all();
        self.consumer
            .context()
            .state()
            .commits
            .begin(&self.consumer);
        let mut ended = self.wait_for_offsets();
        let joins = ended.is_none() && !self.stop.is_cancelled();
        if joins && let Err(error) = self.consumer.subscribe(&topics) {
            ended = Some(Ended::Broken(error.to_string()));
        }
        while ended.is_none() && !self.stop.is_cancelled() {
            ended = self.round();
        }
        if self.shared.is_closing() {
            self.commit_finally();
        }
        let member = {
            let mut state = self.consumer.context().state();
            // Librdkafka wants queues to go before their client.
            state.commits.end();
            match joins {
                true => {
                    let topic = self.shared.subscription.names().first();
                    reaper::asked_about(state.assigned_list(), topic)
                }
                false => TopicPartitionList::new(),
            }
        };
        retire(self.consumer, member);
        ended.unwrap_or(Ended::Stopped)
    }

    /// Stays outside the group while it has no offset on this cluster at all and none may be made up: offsets can only
    /// be synchronised into a group without members.
    fn wait_for_offsets(&mut self) -> Option<Ended> {
        if self.shared.policy != MissingOffset::Error || self.is_resuming() {
            return None;
        }
        let mut told = false;
        while !self.stop.is_cancelled() {
            match offsets::find_any(&self.consumer, &self.shared.subscription) {
                Ok(partitions) if partitions.is_empty() => return None,
                Ok(partitions) if !told => {
                    told = true;
                    offsets::report_held(&self.shared, partitions);
                }
                Ok(_) => {}
                Err(error) => self
                    .consumer
                    .context()
                    .log
                    .error(&error, "the group's offsets cannot be read, trying on"),
            }
            let until = Instant::now() + OFFSETS_PAUSE;
            while Instant::now() < until && !self.stop.is_cancelled() {
                if let Some(Err(error)) = self.consumer.poll(POLL)
                    && let Err(ended) = self.poll_failed(error)
                {
                    return Some(ended);
                }
                self.consumer.context().state().follow(&self.consumer);
            }
            self.find_back();
            self.apply_new_login();
        }
        None
    }

    fn is_resuming(&self) -> bool {
        let target = self.shared.target();
        target.is_some_and(|target| self.shared.has_usable_position(&target))
    }

    fn round(&mut self) -> Option<Ended> {
        let awaits_answer = {
            let state = self.consumer.context().state();
            state.awaits_handoff || state.commits.has_waiters()
        };
        let wait = match self.batch.is_empty() {
            true if awaits_answer || Instant::now() < self.brisk_until => BRISK_POLL,
            true if self.shared.manual_commit => MANUAL_POLL,
            true => POLL,
            false => Duration::ZERO,
        };
        let mut polled = self.poll_one(wait);
        while let Ok(true) = polled
            && self.batch.len() < BATCH
        {
            polled = self.poll_one(Duration::ZERO);
        }
        if let Err(ended) = polled {
            return Some(ended);
        }
        self.deliver();
        self.keep_house();
        None
    }

    /// Reads one record into the batch. `Ok(false)`: there was none.
    fn poll_one(&mut self, wait: Duration) -> Result<bool, Ended> {
        match self.consumer.poll(wait) {
            None => Ok(false),
            Some(Ok(message)) => {
                let context = self.consumer.context();
                let mut state = context.state();
                if let Some((partition, reading)) =
                    state.read(message.topic(), message.partition(), message.offset())
                {
                    let partition = Arc::clone(partition);
                    let item = if !self.shared.show_filler && is_link_filler(&message) {
                        Item::Filler {
                            partition,
                            reading,
                            offset: message.offset(),
                        }
                    } else {
                        let show_id = self.shared.show_id_header;
                        let copy = Message::copy(&message, &partition, &context.source, show_id);
                        Item::Record {
                            partition,
                            reading,
                            message: copy,
                        }
                    };
                    self.batch.push_back(item);
                } else {
                    add(&self.shared.fleet.counters.records_discarded, 1);
                }
                Ok(true)
            }
            Some(Err(error)) => self.poll_failed(error).map(|()| true),
        }
    }

    fn poll_failed(&mut self, error: KafkaError) -> Result<(), Ended> {
        use RDKafkaErrorCode as Code;
        if let KafkaError::MessageConsumptionFatal(code) = error {
            return Err(Ended::Broken(code.to_string()));
        }
        match error.rdkafka_error_code() {
            Some(Code::Fatal) => return Err(Ended::Broken(error.to_string())),
            Some(Code::AutoOffsetReset | Code::OffsetOutOfRange) => {
                self.consumer
                    .context()
                    .state()
                    .check_positions(&self.consumer);
            }
            _ => {
                let failure = failure(error, &self.shared.group, &self.target.cluster);
                self.batch.extend(failure.map(Item::Failure));
            }
        }
        Ok(())
    }

    /// Moves the batch to the application. Waits a little if there is no room, then pauses the partitions.
    fn deliver(&mut self) {
        if self.shared.mailbox.fill(&mut self.batch) {
            if self.full_since.take().is_some() && self.consumer.context().state().paused {
                self.consumer
                    .context()
                    .state()
                    .set_paused(&self.consumer, false);
            }
            return;
        }
        let since = *self.full_since.get_or_insert_with(Instant::now);
        if self.shared.mailbox.wait_for_room(ROOM) || since.elapsed() < PAUSE_AFTER {
            return;
        }
        let mut state = self.consumer.context().state();
        if !state.paused {
            state.set_paused(&self.consumer, true);
        }
    }

    fn keep_house(&mut self) {
        let context = self.consumer.context();
        let mut state = context.state();
        state.collect_commits(context);
        if state.follow(&self.consumer) {
            self.brisk_until = Instant::now() + BRISK;
        }
        state.hand_over(&self.consumer);
        state.retry_held(&self.consumer);
        if !self.shared.manual_commit && Instant::now() >= self.commit_at {
            self.commit_at = Instant::now() + self.shared.commit_interval;
            state.commit(&self.consumer);
        }
        drop(state);
        self.find_back();
        self.apply_new_login();
    }

    fn find_back(&mut self) {
        let bootstrap = &self.target.entry.bootstrap;
        let log = &self.consumer.context().log;
        self.way_back.look(self.consumer.client(), log, bootstrap);
    }

    fn apply_new_login(&mut self) {
        let Some(target) = self.shared.target() else {
            return;
        };
        if Arc::ptr_eq(&target, &self.target) || !target.same_client(&self.target) {
            return;
        }
        if let Some((username, password, version)) = target.new_login(&self.target) {
            let client = self.shared.name.clone();
            match ffi::set_sasl_credentials(self.consumer.client(), username, password) {
                Ok(()) => {
                    tracing::info!(client = client.as_str(), cluster = %target.cluster, version, "new credentials are in use");
                    self.shared.fleet.emit(FleetEvent::CredentialsApplied {
                        client,
                        cluster: target.cluster.clone(),
                        version,
                    });
                }
                Err(error) => {
                    tracing::error!(client = client.as_str(), cluster = %target.cluster, error, "new credentials were refused");
                }
            }
        }
        self.target = target;
    }

    /// Tells the application that it has nothing any more, and commits what was acknowledged, for a bounded time.
    fn commit_finally(&self) {
        let context = self.consumer.context();
        let assigned = self.shared.take_assigned();
        rebalance::tell(&self.shared, RebalanceEvent::Revoked, assigned);
        {
            let mut state = context.state();
            state.adopt_sought(context);
            state.serve_requests(&self.consumer);
            if !self.shared.manual_commit {
                state.part();
                state.commit(&self.consumer);
            }
        }
        let until = Instant::now() + LAST_COMMIT;
        while context.state().collect_commits(context) > 0 && Instant::now() < until {
            // Records that come now were never acknowledged and are read again by whoever comes next.
            drop(self.consumer.poll(Duration::from_millis(20)));
        }
    }
}

/// What the application is told of an error: only what it can do something about. For lost connections and the like librdkafka tries
/// again, and `error()` has logged them.
pub(crate) fn failure(error: KafkaError, group: &str, cluster: &ClusterName) -> Option<Error> {
    use RDKafkaErrorCode as Code;
    matches!(
        error.rdkafka_error_code()?,
        Code::UnknownTopicOrPartition
            | Code::UnknownTopic
            | Code::InvalidTopic
            | Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::InvalidGroupId
            | Code::InconsistentGroupProtocol
    )
    .then(|| Error::Consume {
        group: group.to_owned(),
        cluster: cluster.clone(),
        reason: Box::new(error),
    })
}

/// Runs a worker on its own thread.
pub(super) fn spawn(worker: Worker, ended: oneshot::Sender<Ended>) -> std::io::Result<()> {
    thread::Builder::new()
        .name("standfast-consume".to_owned())
        .spawn(move || {
            let _ = ended.send(worker.run());
        })
        .map(|_detached| ())
}
