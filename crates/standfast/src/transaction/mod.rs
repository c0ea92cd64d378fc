//! Transactions within one cluster: consume, transform, produce.

mod clients;
mod driver;
mod flow;
mod ids;
mod input;
mod outputs;
mod worker;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use standfast_discovery::ClusterName;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use self::driver::Driver;
use self::flow::{Abort, Flow, Order, Sent};
use self::ids::Ids;
use crate::client_config::{self, Properties, Role, property};
use crate::consumer::{Message, MissingOffset};
use crate::error::{Error, Result};
use crate::event::{ClientName, FleetEvent};
use crate::fleet::FleetShared;
use crate::record::{Record, RecordId};
use crate::stats::add;

/// Pause before a record is handed to a full client again.
const FULL_PAUSE: Duration = Duration::from_millis(2);

/// How long [`TransactionalClient::close`] waits at most.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// librdkafka's default of `transaction.timeout.ms`.
const DEFAULT_TRANSACTION_TIMEOUT: Duration = Duration::from_secs(60);

/// Options of a [`TransactionalClient`].
#[derive(Debug)]
#[must_use]
pub struct TransactionalBuilder {
    fleet: Arc<FleetShared>,
    id: String,
    group: Option<String>,
    producer: Properties,
    consumer: Properties,
    policy: MissingOffset,
}

impl TransactionalBuilder {
    pub(crate) fn new(fleet: Arc<FleetShared>, id: String) -> Self {
        Self {
            fleet,
            id,
            group: None,
            producer: Properties::new(),
            consumer: Properties::new(),
            policy: MissingOffset::default(),
        }
    }

    /// The consumer group whose offsets are committed with the transactions. Needed for [`subscribe`](Self::subscribe). All
    /// members should be transactional clients, each with a transactional id of its own.
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.group = Some(group.into());
        self
    }

    /// What to do where the group has no offset; as for [`ConsumerBuilder`](crate::ConsumerBuilder::on_missing_offset), by default the
    /// partition is held.
    pub fn on_missing_offset(mut self, policy: MissingOffset) -> Self {
        self.policy = policy;
        self
    }

    /// Sets a librdkafka property of the producer, for example `transaction.timeout.ms`.
    pub fn producer_property(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.producer.insert(name.into(), value.into());
        self
    }

    /// Sets a librdkafka property of the consumer. `isolation.level` is always `read_committed`.
    pub fn consumer_property(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.consumer.insert(name.into(), value.into());
        self
    }

    /// Starts a client that reads `topics` and produces. It does not wait for the cluster.
    ///
    /// # Errors
    /// [`Error::RefusedProperty`], [`Error::Configuration`].
    pub async fn subscribe(self, topics: &[&str]) -> Result<TransactionalClient> {
        if self.group.as_ref().is_none_or(String::is_empty) || topics.is_empty() {
            return Err(Error::Configuration {
                reason: "a transactional client that reads needs a group() and at least one topic"
                    .to_owned(),
            });
        }
        let topics = topics.iter().map(|topic| (*topic).to_owned()).collect();
        self.start(topics).await
    }

    /// Starts a client that only produces: several records are seen by readers all or not at all.
    ///
    /// # Errors
    /// As [`subscribe`](Self::subscribe).
    pub async fn produce_only(self) -> Result<TransactionalClient> {
        self.start(Vec::new()).await
    }

    // Async to leave room for work that must be done before the first transaction; the driver needs the runtime.
    #[allow(clippy::unused_async)]
    async fn start(self, topics: Vec<String>) -> Result<TransactionalClient> {
        if self.id.is_empty() {
            return Err(Error::Configuration {
                reason: "a transactional client needs a transactional id".to_owned(),
            });
        }
        let role = Role::Transactional {
            id: self.id.clone(),
        };
        client_config::check(&role, &self.producer)?;
        let group = self.group.unwrap_or_default();
        if !topics.is_empty() {
            let role = Role::TransactionalInput {
                group: group.clone(),
            };
            client_config::check(&role, &self.consumer)?;
        }
        let timeout =
            property(&self.producer, "transaction.timeout.ms").and_then(|ms| ms.parse().ok());
        let shared = Arc::new(Shared {
            name: self.fleet.client_name(&self.id),
            fleet: self.fleet,
            id: self.id,
            group,
            topics,
            producer: self.producer,
            consumer: self.consumer,
            policy: self.policy,
            timeout: timeout.map_or(DEFAULT_TRANSACTION_TIMEOUT, Duration::from_millis),
            flow: Mutex::new(Flow::default()),
            changed: Notify::new(),
            closed: CancellationToken::new(),
        });
        let shutdown = CancellationToken::new();
        tokio::spawn(Driver::new(Arc::clone(&shared)).run(shutdown.clone()));
        Ok(TransactionalClient {
            ids: Ids::new(Uuid::new_v4(), &shared.group),
            shared,
            shutdown: shutdown.drop_guard(),
        })
    }
}

/// Reads, transforms and produces in transactions of the active cluster: what was produced and how far was read is committed
/// together or not at all, also when the process is killed.
///
/// ```no_run
/// # async fn example(fleet: standfast::Fleet) -> standfast::Result<()> {
/// use standfast::{Error, MissingOffset, Record};
///
/// let mut client = fleet
///     .transactional("enrich-1") // one per running instance, the same after its restart
///     .group("enrich")
///     .on_missing_offset(MissingOffset::Earliest)
///     .subscribe(&["orders"])
///     .await?;
/// loop {
///     let mut transaction = client.begin().await?;
///     let outcome = async {
///         let order = transaction.next().await?;
///         let enriched = Record::to("enriched").payload(order.payload().unwrap_or_default().to_vec());
///         transaction.send_for(&order, enriched).await?;
///         transaction.commit().await
///     };
///     match outcome.await {
///         Err(error) if error.is_retryable() => {} // what was read comes again
///         other => other?,
///     }
/// }
/// # }
/// ```
///
/// # At a flip
///
/// A transaction belongs to one cluster. The open one is aborted, its next call fails with [`Error::TransactionAborted`], and
/// [`FleetEvent::TransactionAborted`] tells it; nothing waits for the old cluster. The next transaction is one of the new cluster and
/// reads on from the group's committed offsets *there*, not from the own position: output and position must be of one
/// transaction. An open transaction in which nothing was read and nothing sent goes on unnoticed. While the fleet is fenced
/// [`begin`](Self::begin) waits; a transaction that is open then is aborted, because a mirror copies none that is open.
///
/// - **Planned switchover**: everything committed is on the new cluster, output and offsets. Each record's output stands there once.
/// - **Unplanned failover**: what the link had carried decides, also for a commit that was on its way (its outcome on the old
///   cluster is unknown, [`Error::TransactionAborted`] says so). The link carries the group's offsets over only when the output
///   that was committed up to there is mirrored, so no output is missing: what is not there is made again. But output that was
///   mirrored while its offsets were not is made again, too. With [`send_for`](Transaction::send_for) the repetition has the same
///   [`RecordId`], and [`FailoverConsumer`](crate::FailoverConsumer) and the next transactional client leave it out; other consumers see it twice.
/// - Partitions are mirrored each for itself: an unplanned failover may find a transaction's output in one partition and not in another.
///
/// It needs all that it reads and writes on one link, and that link must carry the group over.
///
/// # Two with one id
///
/// A second client with the same transactional id, for example a restarted instance, fences the first one: its transaction is aborted and
/// all its calls fail with [`Error::ProducerFenced`].
#[derive(Debug)]
pub struct TransactionalClient {
    shared: Arc<Shared>,
    ids: Ids,
    shutdown: DropGuard,
}

impl TransactionalClient {
    /// Begins a transaction, when the active cluster takes one: waits while there is no such cluster and while it is fenced.
    ///
    /// # Errors
    /// [`Error::ProducerFenced`], [`Error::Closed`].
    pub async fn begin(&mut self) -> Result<Transaction<'_>> {
        self.shared
            .wait(|flow| flow.is_ready().map(|ready| ready.then_some(())))
            .await?;
        self.ids.forget_sources();
        Ok(Transaction {
            client: self,
            bound: None,
            has_ended: false,
        })
    }

    /// Aborts what is open, leaves the group and waits for it, at most 5 s.
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
                "the transactional client did not close in time, it goes on in the background"
            );
        }
    }
}

/// An open transaction. Dropping it aborts it.
#[derive(Debug)]
#[must_use = "a transaction that is dropped is aborted"]
pub struct Transaction<'a> {
    client: &'a mut TransactionalClient,
    /// Which one it is; `None` as long as nothing was read and nothing sent.
    bound: Option<u64>,
    has_ended: bool,
}

impl Transaction<'_> {
    /// The next record, when there is one. It belongs to this transaction: the commit moves the group past it. Cancel-safe: put
    /// `tokio::time::timeout` around it to commit what has come so far.
    ///
    /// # Errors
    /// [`Error::TransactionAborted`]: begin again. [`Error::Consume`] for what the application can do something about.
    pub async fn next(&mut self) -> Result<Message> {
        let Self { client, bound, .. } = self;
        let shared = &client.shared;
        if shared.topics.is_empty() {
            return Err(Error::Configuration {
                reason: "this transactional client only produces".to_owned(),
            });
        }
        shared
            .wait(|flow| flow.take(bound, &shared.fleet.counters))
            .await
    }

    /// Adds a record to the transaction; waits for room if the client is full. Readers see it once the transaction is committed;
    /// that it has been stored is known only then, too.
    ///
    /// # Errors
    /// [`Error::TransactionAborted`], [`Error::Refused`].
    pub async fn send(&mut self, record: Record) -> Result<RecordId> {
        let id = self.client.ids.fresh();
        self.hand(record, id).await
    }

    /// Adds a record that was made from `source`, a record of this transaction.
    ///
    /// It gets an id that follows from the source's own, so that it is known as a repetition if `source` is transformed again
    /// after an unplanned failover. For that the output must depend on `source` alone: made anew it must be the same, in the same
    /// order, with the same key or partition. Do not use it for sums over several records. Where there is nothing to derive the id from, this is [`send`](Self::send):
    /// the source's producer is not on the wrapper, sources are used out of their order, more than 1,024 records of one.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub async fn send_for(&mut self, source: &Message, record: Record) -> Result<RecordId> {
        let is_own = self.client.shared.flow().has_read(self.bound, source);
        let id = match is_own {
            true => self.client.ids.derived(source, &record.topic),
            false => self.client.ids.fresh(),
        };
        self.hand(record, id).await
    }

    async fn hand(&mut self, mut record: Record, id: RecordId) -> Result<RecordId> {
        record.stamp_now();
        let shared = Arc::clone(&self.client.shared);
        let bound = &mut self.bound;
        loop {
            let sent = shared
                .wait(|flow| match flow.send(bound, &record, id)? {
                    Sent::NotOpen => Ok(None),
                    sent => Ok(Some(sent)),
                })
                .await?;
            if sent == Sent::Yes {
                add(&shared.fleet.counters.transaction_records, 1);
                return Ok(id);
            }
            tokio::time::sleep(FULL_PAUSE).await;
        }
    }

    /// Commits the records that were sent and how far was read, together.
    ///
    /// If it is dropped before it ends, the commit goes on; [`begin`](TransactionalClient::begin) waits for it.
    ///
    /// # Errors
    /// [`Error::TransactionAborted`]: nothing of it counts, or with `outcome_unknown` all of it may; begin again in both cases, what is to be
    /// transformed again is read again. [`Error::ProducerFenced`], [`Error::Closed`].
    pub async fn commit(mut self) -> Result<()> {
        self.has_ended = true;
        let shared = &self.client.shared;
        let (reply, answer) = oneshot::channel();
        let (serial, ended) = {
            let mut flow = shared.flow();
            flow.check(self.bound)?;
            let Some(serial) = self.bound else {
                return Ok(());
            };
            match flow.order(Order::Commit { serial, reply }) {
                Some(ended) => (serial, ended),
                None => return Err(flow.aborted(serial)),
            }
        };
        tokio::select! {
            biased;
            answer = answer => match answer {
                Ok(Ok(())) => Ok(()),
                Ok(Err(abort)) => Err(abort.error()),
                Err(_) => {
                    // The generation is ending; how, is known in a moment.
                    ended.cancelled().await;
                    Err(shared.flow().aborted(serial))
                }
            },
            () = ended.cancelled() => Err(shared.flow().aborted(serial)),
        }
    }

    /// Aborts: nothing that was sent is ever seen by `read_committed` readers, and what was read comes again.
    ///
    /// # Errors
    /// [`Error::ProducerFenced`], [`Error::Closed`].
    pub async fn abort(mut self) -> Result<()> {
        self.has_ended = true;
        let shared = &self.client.shared;
        let (reply, answer) = oneshot::channel();
        let ended = shared.flow().abandon(self.bound, Some(reply));
        if let Some(ended) = ended {
            tokio::select! {
                _ = answer => {}
                () = ended.cancelled() => {}
            }
        }
        match &shared.flow().closed {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        if !self.has_ended {
            let _ = self.client.shared.flow().abandon(self.bound, None);
        }
    }
}

/// What the application's handle, the driver and the workers share.
#[derive(Debug)]
struct Shared {
    fleet: Arc<FleetShared>,
    name: ClientName,
    /// `transactional.id`.
    id: String,
    group: String,
    topics: Vec<String>,
    producer: Properties,
    consumer: Properties,
    policy: MissingOffset,
    /// `transaction.timeout.ms`.
    timeout: Duration,
    flow: Mutex<Flow>,
    changed: Notify,
    closed: CancellationToken,
}

impl Shared {
    fn flow(&self) -> MutexGuard<'_, Flow> {
        self.flow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `look` finds something.
    async fn wait<T>(&self, mut look: impl FnMut(&mut Flow) -> Result<Option<T>>) -> Result<T> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // Registered before the look, so that no change is missed.
            changed.as_mut().enable();
            if let Some(found) = look(&mut self.flow())? {
                return Ok(found);
            }
            changed.await;
        }
    }

    /// Changes the flow, wakes who waits for a change, and tells if a transaction with something in it was aborted.
    fn change<T>(&self, change: impl FnOnce(&mut Flow) -> (T, Option<Abort>)) -> T {
        let (result, abort) = change(&mut self.flow());
        self.changed.notify_waiters();
        if let Some(abort) = abort {
            self.tell(&abort);
        }
        result
    }

    /// Changes the flow if it still is this generation's. An old one goes on for a while beside the next: what its client says and
    /// does then no longer counts.
    fn change_of<T>(
        &self,
        generation: u64,
        change: impl FnOnce(&mut Flow) -> (T, Option<Abort>),
    ) -> Option<T> {
        self.change(|flow| {
            if !flow.is_present(generation) {
                return (None, None);
            }
            let (result, abort) = change(flow);
            (Some(result), abort)
        })
    }

    fn tell(&self, abort: &Abort) {
        add(&self.fleet.counters.transactions_aborted, 1);
        if abort.by_application {
            return;
        }
        tracing::warn!(
            client = self.name.as_str(), cluster = %abort.cluster, epoch = %abort.epoch, reason = %abort.reason,
            outcome_unknown = abort.outcome_unknown, "a transaction was aborted, what it read comes again"
        );
        self.fleet.emit(FleetEvent::TransactionAborted {
            client: self.name.clone(),
            epoch: abort.epoch,
            cluster: abort.cluster.clone(),
            reason: abort.reason.to_string(),
            outcome_unknown: abort.outcome_unknown,
        });
    }

    fn fenced(&self, cluster: &ClusterName) -> Error {
        Error::ProducerFenced {
            transactional_id: self.id.clone(),
            cluster: cluster.clone(),
        }
    }
}
