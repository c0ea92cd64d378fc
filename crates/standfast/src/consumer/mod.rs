//! A consumer that follows the active cluster.

mod assignment;
mod client;
mod context;
mod driver;
mod handover;
mod mailbox;
mod message;
mod orphans;
mod partition;
mod start;
mod window;
mod worker;

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use standfast_discovery::{ClusterName, Epoch};
use tokio_util::sync::{CancellationToken, DropGuard};

use self::driver::Driver;
use self::mailbox::{Item, Mailbox};
pub use self::message::Message;
pub use self::partition::MAX_UNACKNOWLEDGED;
use self::partition::{HandOut, Partition};
pub use self::start::MissingOffset;
use self::start::{Carried, Own};
use crate::client_config::{self, Properties, Role};
use crate::error::{Error, Result};
use crate::event::ClientName;
use crate::fleet::FleetShared;
use crate::stats::add;
use crate::target::Target;

/// How often acknowledged offsets are committed, by default. Also committed when partitions move and at the end.
pub const DEFAULT_COMMIT_INTERVAL: Duration = Duration::from_secs(1);

/// Records read ahead of the application, by default. librdkafka reads ahead on top of it (`queued.max.messages.kbytes`).
pub const DEFAULT_READ_AHEAD_RECORDS: usize = 2_000;

/// Bytes read ahead of the application, by default.
pub const DEFAULT_READ_AHEAD_BYTES: usize = 16 * 1024 * 1024;

/// How long [`FailoverConsumer::close`] waits at most.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

type Key = (String, i32);

/// Options of a [`FailoverConsumer`].
#[derive(Debug)]
#[must_use]
pub struct ConsumerBuilder {
    fleet: Arc<FleetShared>,
    group: String,
    properties: Properties,
    policy: MissingOffset,
    commit_interval: Duration,
    read_ahead_records: usize,
    read_ahead_bytes: usize,
    show_id_header: bool,
    show_filler: bool,
    leave_out_repeated: bool,
}

impl ConsumerBuilder {
    pub(crate) fn new(fleet: Arc<FleetShared>, group: String) -> Self {
        Self {
            fleet,
            group,
            properties: Properties::new(),
            policy: MissingOffset::default(),
            commit_interval: DEFAULT_COMMIT_INTERVAL,
            read_ahead_records: DEFAULT_READ_AHEAD_RECORDS,
            read_ahead_bytes: DEFAULT_READ_AHEAD_BYTES,
            show_id_header: false,
            show_filler: false,
            leave_out_repeated: true,
        }
    }

    /// Sets a librdkafka property, for example `fetch.min.bytes` or `session.timeout.ms`. Those that the wrapper needs
    /// for itself are refused by [`subscribe`](Self::subscribe), with the reason.
    pub fn property(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.properties.insert(name.into(), value.into());
        self
    }

    /// What to do where the group has no offset. By default the partition is held ([`MissingOffset::Error`]): after a
    /// failover, skipping or reading all over is worse than waiting for the group's offsets. A new group needs one of the others.
    pub fn on_missing_offset(mut self, policy: MissingOffset) -> Self {
        self.policy = policy;
        self
    }

    /// How often acknowledged offsets are committed; default [`DEFAULT_COMMIT_INTERVAL`].
    pub fn commit_interval(mut self, interval: Duration) -> Self {
        self.commit_interval = interval;
        self
    }

    /// Records and bytes read ahead of the application; default [`DEFAULT_READ_AHEAD_RECORDS`],
    /// [`DEFAULT_READ_AHEAD_BYTES`].
    pub fn read_ahead(mut self, records: usize, bytes: usize) -> Self {
        (self.read_ahead_records, self.read_ahead_bytes) = (records, bytes);
        self
    }

    /// Keeps the wrapper's [`ID_HEADER`](crate::ID_HEADER) among the headers. [`Message::id`] gives it in any case.
    pub fn show_id_header(mut self, show: bool) -> Self {
        self.show_id_header = show;
        self
    }

    /// Hands out the link's filler too ([`is_filler`](crate::is_filler)): records that hold the place of offsets at which
    /// compaction had left none on the source. They carry no data.
    pub fn show_filler(mut self, show: bool) -> Self {
        self.show_filler = show;
        self
    }

    /// Whether records that come again, known by their [`RecordId`](crate::RecordId), are left out; default true. Turn it
    /// off where something other than the wrapper writes records with their headers into the topic that they came from.
    pub fn leave_out_repeated(mut self, leave_out: bool) -> Self {
        self.leave_out_repeated = leave_out;
        self
    }

    /// Starts reading. It does not wait for the cluster.
    ///
    /// # Errors
    /// [`Error::RefusedProperty`], [`Error::Configuration`].
    // Async to leave room for work that must be done before the first record.
    #[allow(clippy::unused_async)]
    pub async fn subscribe(self, topics: &[&str]) -> Result<FailoverConsumer> {
        let group = self.group;
        if group.is_empty() || topics.is_empty() {
            return Err(Error::Configuration {
                reason: "a consumer needs a group and at least one topic".to_owned(),
            });
        }
        client_config::check(
            &Role::Consumer {
                group: group.clone(),
            },
            &self.properties,
        )?;
        let shared = Arc::new(ConsumerShared {
            name: self.fleet.client_name(&group),
            fleet: self.fleet,
            group,
            topics: topics.iter().map(|topic| (*topic).to_owned()).collect(),
            properties: self.properties,
            policy: self.policy,
            commit_interval: self.commit_interval,
            show_id_header: self.show_id_header,
            show_filler: self.show_filler,
            leave_out_repeated: self.leave_out_repeated,
            mailbox: Mailbox::new(self.read_ahead_records, self.read_ahead_bytes),
            table: Mutex::new(Table::default()),
            blocked: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            closed: CancellationToken::new(),
        });
        let shutdown = CancellationToken::new();
        tokio::spawn(Driver::new(Arc::clone(&shared)).run(shutdown.clone()));
        Ok(FailoverConsumer {
            shared,
            local: VecDeque::new(),
            shutdown: shutdown.drop_guard(),
        })
    }
}

/// A consumer that follows the active cluster.
///
/// Records come at least once: those that were not acknowledged are read again after a crash or when a partition
/// moves to another member. Across a failover this consumer goes on exactly where it was, at the same offset on the
/// new cluster, or at the handoff offset if it had read further than the mirror.
///
/// **Across a failover each record comes once.** What the wrapper's producers send again is known by its
/// [`RecordId`](crate::RecordId) and left out, also when the first one came from the lost cluster. What is known goes with
/// the group's offsets (in the metadata of the commits), so it holds after a restart and when the partition moves to another
/// member. If the application still has the first one when the second comes, its acknowledgement counts for both. Records
/// of other producers are not touched.
///
/// Dropping it commits what was acknowledged and leaves the group, in the background; [`close`](Self::close) waits for it.
#[derive(Debug)]
pub struct FailoverConsumer {
    shared: Arc<ConsumerShared>,
    /// Taken from the mailbox, not handed out yet.
    local: VecDeque<Item>,
    shutdown: DropGuard,
}

impl FailoverConsumer {
    /// The next record; `None` once the consumer is closed. Cancel-safe.
    ///
    /// # Errors
    /// [`Error::Consume`] for what the application can do something about, such as a missing topic. The consumer goes
    /// on: call it again.
    pub async fn next(&mut self) -> Option<Result<Message>> {
        poll_fn(|cx| self.poll_message(cx)).await
    }

    /// Marks a record as processed. The group's offset moves past it once every record before it in the partition is
    /// marked too, so records may be processed and acknowledged in any order. Never blocks; the commit follows within
    /// the commit interval.
    ///
    /// After a failover the acknowledgement of a record from the old cluster counts if the new one holds the record
    /// (its offset is below the handoff), or if its producer is on the wrapper and sends it again. Otherwise it is ignored and counted in [`Stats`](crate::Stats::acks_ignored).
    ///
    /// # Errors
    /// [`Error::Closed`] after [`close`](Self::close).
    pub fn ack(&self, message: &Message) -> Result<()> {
        self.acknowledge(
            message
                .partition
                .acknowledge(message.offset, message.source.generation),
        )
    }

    /// Marks a record and all earlier ones of its partition as processed.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn ack_through(&self, message: &Message) -> Result<()> {
        self.acknowledge(
            message
                .partition
                .acknowledge_through(message.offset, message.source.generation),
        )
    }

    /// Commits what was acknowledged, leaves the group and waits for it, at most [`CLOSE_TIMEOUT`].
    pub async fn close(self) {
        let Self {
            shared, shutdown, ..
        } = self;
        drop(shutdown);
        if tokio::time::timeout(CLOSE_TIMEOUT, shared.closed.cancelled())
            .await
            .is_err()
        {
            tracing::warn!(
                client = shared.name.as_str(),
                "the consumer did not close in time, it goes on in the background"
            );
        }
    }

    fn acknowledge(&self, counted: bool) -> Result<()> {
        if self.shared.is_closing() {
            return Err(Error::Closed);
        }
        if !counted {
            add(&self.shared.fleet.counters.acks_ignored, 1);
        }
        if self.shared.blocked.load(Relaxed) {
            self.shared.mailbox.wake_reader();
        }
        Ok(())
    }

    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Message>>> {
        let counters = &self.shared.fleet.counters;
        loop {
            while let Some(item) = self.local.pop_front() {
                let (partition, message) = match item {
                    Item::Failure(error) => return Poll::Ready(Some(Err(error))),
                    Item::Filler { partition, offset } => {
                        let passed = partition.pass(offset);
                        let counter = if passed {
                            &counters.filler_hidden
                        } else {
                            &counters.records_discarded
                        };
                        add(counter, 1);
                        continue;
                    }
                    Item::Record { partition, message } => (partition, message),
                };
                let id = message.id().filter(|_| self.shared.leave_out_repeated);
                match partition.hand_out(message.offset, message.source.generation, id) {
                    HandOut::Yes => {
                        add(&counters.records_consumed, 1);
                        return Poll::Ready(Some(Ok(message)));
                    }
                    HandOut::Repeated => {
                        tracing::debug!(
                            topic = message.topic(),
                            partition = message.partition(),
                            offset = message.offset,
                            ?id,
                            "a record that came again is left out"
                        );
                        add(&counters.records_repeated, 1);
                    }
                    HandOut::Ended => add(&counters.records_discarded, 1),
                    HandOut::TooMany => {
                        self.local.push_front(Item::Record { partition, message });
                        return self.wait_for_acks(cx);
                    }
                }
            }
            match self.shared.mailbox.poll_take(cx, &mut self.local) {
                Poll::Ready(true) => {}
                Poll::Ready(false) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn wait_for_acks(&self, cx: &Context<'_>) -> Poll<Option<Result<Message>>> {
        self.shared.mailbox.register_reader(cx);
        if !self.shared.blocked.swap(true, Relaxed) {
            tracing::warn!(
                client = self.shared.name.as_str(),
                limit = MAX_UNACKNOWLEDGED,
                "no more records are handed out until some are acknowledged: call ack() for every record"
            );
        }
        Poll::Pending
    }
}

impl Stream for FailoverConsumer {
    type Item = Result<Message>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_message(cx)
    }
}

/// What the application's handle, the driver and the workers share.
#[derive(Debug)]
pub(crate) struct ConsumerShared {
    fleet: Arc<FleetShared>,
    name: ClientName,
    group: String,
    topics: Vec<String>,
    properties: Properties,
    policy: MissingOffset,
    commit_interval: Duration,
    show_id_header: bool,
    show_filler: bool,
    leave_out_repeated: bool,
    mailbox: Mailbox,
    table: Mutex<Table>,
    /// The application forgot to acknowledge; see `wait_for_acks`.
    blocked: AtomicBool,
    closing: AtomicBool,
    closed: CancellationToken,
}

/// Which generation reads, and what it took over. Workers of older generations are refused.
#[derive(Debug, Default)]
struct Table {
    generation: u64,
    /// This one and older ones may not take over any more.
    forbidden: u64,
    cluster: Option<ClusterName>,
    cluster_id: Option<String>,
    epoch: Epoch,
    /// Partitions that are read.
    owned: HashMap<Key, Arc<Partition>>,
    /// Partitions that were read on the previous cluster and have not been assigned since.
    carried: HashMap<Key, Carried>,
}

impl ConsumerShared {
    /// Makes `generation` the one that reads: from here on nothing of an older one reaches the application, and the
    /// positions stand. False if a newer one was faster.
    fn take_over(&self, generation: u64, target: &Target, cluster_id: &str) -> bool {
        let mut table = self.table();
        if generation <= table.generation.max(table.forbidden) {
            return false;
        }
        let same_cluster = table.cluster_id.as_deref() == Some(cluster_id);
        let from = table.epoch;
        for carried in table.carried.values_mut() {
            carried.same_cluster &= same_cluster;
            carried.handed_over = false;
        }
        let owned = std::mem::take(&mut table.owned);
        for (key, partition) in owned {
            partition.freeze();
            let carried = Carried {
                partition,
                from,
                same_cluster,
                handed_over: false,
            };
            table.carried.insert(key, carried);
        }
        table.generation = generation;
        table.cluster = Some(target.cluster.clone());
        table.cluster_id = Some(cluster_id.to_owned());
        table.epoch = target.epoch;
        true
    }

    /// Forbids `generation` to take over; false if it already has.
    fn forbid(&self, generation: u64) -> bool {
        let mut table = self.table();
        table.forbidden = generation;
        table.generation != generation
    }

    fn take_carried(&self, generation: u64, key: &Key) -> Option<Carried> {
        let mut table = self.table();
        if table.generation != generation {
            return None;
        }
        table.carried.remove(key)
    }

    /// What was read on the previous cluster and was not assigned here, once each.
    fn left_over(&self, generation: u64) -> Vec<(Key, Carried)> {
        let mut table = self.table();
        if table.generation != generation {
            return Vec::new();
        }
        let left = table.carried.iter_mut();
        left.filter(|(_, carried)| !carried.same_cluster && !carried.handed_over)
            .map(|(key, carried)| {
                carried.handed_over = true;
                (key.clone(), carried.clone())
            })
            .collect()
    }

    fn put_back(&self, generation: u64, key: Key, carried: Carried) {
        let mut table = self.table();
        if table.generation == generation {
            table.carried.insert(key, carried);
        }
    }

    fn own(&self, generation: u64, key: &Key, partition: &Arc<Partition>) {
        let mut table = self.table();
        if table.generation == generation {
            table.owned.insert(key.clone(), Arc::clone(partition));
        } else {
            partition.end();
        }
    }

    fn disown(&self, generation: u64, key: &Key) {
        let mut table = self.table();
        if table.generation == generation {
            table.owned.remove(key);
        }
    }

    fn is_current(&self, generation: u64) -> bool {
        self.table().generation == generation
    }

    /// The epoch now; grows with the record also while the cluster stays.
    fn epoch(&self) -> Epoch {
        let mut table = self.table();
        let live = self.fleet.targets.borrow();
        // A target on the way to another cluster is not this generation's epoch.
        if let Some(live) = live.as_ref().filter(|live| live.epoch > table.epoch)
            && table.cluster.as_ref() == Some(&live.cluster)
        {
            table.epoch = live.epoch;
        }
        table.epoch
    }

    fn target(&self) -> Option<Arc<Target>> {
        self.fleet.targets.borrow().clone()
    }

    /// Whether there is a partition that can go on at its own position.
    fn has_usable_position(&self, target: &Target) -> bool {
        self.table()
            .carried
            .iter()
            .any(|((topic, number), carried)| {
                Own::from(carried).is_usable(|from| target.handoffs.bound(topic, *number, from))
            })
    }

    fn begin_close(&self) {
        self.closing.store(true, Relaxed);
    }

    fn is_closing(&self) -> bool {
        self.closing.load(Relaxed)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
