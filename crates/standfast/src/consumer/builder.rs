//! How a consumer is set up.

use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::FailoverConsumer;
use super::driver::Driver;
use super::mailbox::Mailbox;
use super::shared::{ConsumerShared, Table};
use super::start::MissingOffset;
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
