//! How a consumer is set up.

use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::FailoverConsumer;
use super::driver::Driver;
use super::handle::ConsumerHandle;
use super::mailbox::Mailbox;
use super::rebalance::{Listener, RebalanceEvent};
use super::shared::{ConsumerShared, Table};
use super::start::{MissingOffset, Reader};
use super::subscription::Subscription;
use crate::client_config::{self, Properties, Role};
use crate::error::{Error, Result};
use crate::fleet::FleetShared;

/// How often acknowledged offsets are committed, by default. Also committed when partitions move and at the end.
pub const DEFAULT_COMMIT_INTERVAL: Duration = Duration::from_secs(1);

/// Records read ahead of the application, by default. librdkafka reads ahead on top of it (`queued.max.messages.kbytes`).
pub const DEFAULT_READ_AHEAD_RECORDS: usize = 2_000;

/// Bytes read ahead of the application, by default.
pub const DEFAULT_READ_AHEAD_BYTES: usize = 16 * 1024 * 1024;

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
    manual_commit: bool,
    listener: Option<Listener>,
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
            manual_commit: false,
            listener: None,
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

    /// How often acknowledged offsets are committed; default [`DEFAULT_COMMIT_INTERVAL`]. See [`manual_commit`](Self::manual_commit).
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

    /// Keeps the wrapper's [`ID_HEADER`](crate::ID_HEADER) among the headers. [`Message::id`](crate::Message::id) gives it in any case.
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

    /// Commits only when [`commit`](ConsumerHandle::commit) or [`request_commit`](ConsumerHandle::request_commit) asks for it. By
    /// default what is acknowledged is committed by itself, every [`commit_interval`](Self::commit_interval), when partitions are given back
    /// and when the consumer is closed; then these do so at once.
    ///
    /// Acknowledgements mark what the next commit covers. Closing the consumer, giving a partition back and a flip commit nothing
    /// that was not asked for before: records that were acknowledged since come again. A partition that another member gets in the
    /// course of a failover goes on there at the last commit that had succeeded.
    pub fn manual_commit(mut self) -> Self {
        self.manual_commit = true;
        self
    }

    /// Calls `listener` when the group gives partitions to this consumer or takes them away, on the consumer's own thread: the
    /// rebalance waits until it returns, and a listener that takes longer than `max.poll.interval.ms` (5 minutes) costs the membership.
    /// The same comes as [`FleetEvent::Rebalanced`](crate::FleetEvent::Rebalanced), afterwards.
    ///
    /// It may call everything of the handle that does not wait: acknowledge, seek, pause,
    /// [`request_commit`](ConsumerHandle::request_commit).
    ///
    /// ```no_run
    /// # async fn example(fleet: standfast::Fleet) -> standfast::Result<()> {
    /// use standfast::{RebalanceEvent, SeekTo};
    ///
    /// let consumer = fleet
    ///     .consumer("replay")
    ///     .on_rebalance(|consumer, event| {
    ///         if let RebalanceEvent::Assigned(partitions) = event {
    ///             for p in partitions {
    ///                 let _ = consumer.seek(&p.topic, p.partition, SeekTo::Beginning);
    ///             }
    ///         }
    ///     })
    ///     .subscribe(&["orders"])
    ///     .await?;
    /// # Ok(()) }
    /// ```
    pub fn on_rebalance(
        mut self,
        listener: impl Fn(&ConsumerHandle, &RebalanceEvent) + Send + Sync + 'static,
    ) -> Self {
        self.listener = Some(Listener::new(listener));
        self
    }

    /// Starts reading. It does not wait for the cluster.
    ///
    /// A name that begins with `^` is a pattern, a POSIX extended regular expression as in librdkafka: it takes the topics that
    /// match, also those that come later, within 30 s (`topic.metadata.refresh.interval.ms`). It holds on every cluster. Internal
    /// topics, `__…` and `standfast.…`, are taken only by their name or by a pattern that begins with that. A new topic has no offset of the group:
    /// with [`MissingOffset::Error`] its partitions are held.
    ///
    /// # Errors
    /// [`Error::RefusedProperty`], [`Error::Configuration`].
    // Async to leave room for work that must be done before the first record.
    #[allow(clippy::unused_async)]
    pub async fn subscribe(self, topics: &[&str]) -> Result<FailoverConsumer> {
        let (group, mut properties) = (self.group, self.properties);
        if group.is_empty() || topics.is_empty() {
            return Err(Error::Configuration {
                reason: "a consumer needs a group and at least one topic".to_owned(),
            });
        }
        let role = Role::Consumer {
            group: group.clone(),
        };
        client_config::check(&role, &properties)?;
        let subscription = Subscription::parse(topics, &mut properties)?;
        for (name, pattern) in subscription.checks() {
            let mut one = Properties::new();
            one.insert(name.to_owned(), pattern.to_owned());
            client_config::check(&role, &one).map_err(|error| Error::Configuration {
                reason: format!("{pattern:?} is no pattern: {error}"),
            })?;
        }
        let shared = Arc::new(ConsumerShared {
            name: self.fleet.client_name(&group),
            reader: Reader::random(),
            fleet: self.fleet,
            group,
            subscription,
            properties,
            policy: self.policy,
            commit_interval: self.commit_interval,
            manual_commit: self.manual_commit,
            listener: self.listener,
            show_id_header: self.show_id_header,
            show_filler: self.show_filler,
            leave_out_repeated: self.leave_out_repeated,
            mailbox: Mailbox::new(self.read_ahead_records, self.read_ahead_bytes),
            table: Mutex::new(Table::default()),
            requests: Mutex::new(VecDeque::new()),
            asked: AtomicBool::new(false),
            blocked: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            closed: CancellationToken::new(),
        });
        let shutdown = CancellationToken::new();
        tokio::spawn(Driver::new(Arc::clone(&shared)).run(shutdown.clone()));
        Ok(FailoverConsumer {
            handle: ConsumerHandle::new(&shared),
            local: VecDeque::new(),
            shutdown: shutdown.drop_guard(),
        })
    }
}
