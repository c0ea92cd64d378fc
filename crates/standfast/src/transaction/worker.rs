//! One generation: both clients of one cluster on a thread of its own, because librdkafka's transactional calls block.

mod reading;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::Producer;
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::clients::Clients;
use super::flow::{Abort, Item, Link, Order, Reason};
use crate::connect::Connect;
use crate::consumer::{MAX_TEXT, label};
use crate::event::FleetEvent;
use crate::ffi;
use crate::stats::add;
use crate::target::Target;
use crate::way_back::WayBack;

/// One blocking call of librdkafka; also what stopping the thread may take.
const SLICE: Duration = Duration::from_secs(1);

/// How long a commit may take before the client is given up: a new one asks the coordinator how it ended.
const COMMIT: Duration = Duration::from_secs(30);

/// How long an abort may take before the client is given up; a new one of the same id aborts what is open.
const ABORT: Duration = Duration::from_secs(10);

/// How long an old client's open transaction is being aborted. Nobody waits for it, and on a dead cluster it ages out.
const LAST_ABORT: Duration = Duration::from_secs(1);

/// How long an abort waits for the records of its transaction. If it overtook the first one, brokers would not know of the
/// transaction yet and refuse to end it (INVALID_TXN_STATE, seen on 4.1.0), which is fatal to the client.
pub(super) const LAST_RECORDS: Duration = Duration::from_millis(500);

/// Shortest and longest wait for orders while nothing is read.
const SHORT: Duration = Duration::from_millis(1);
const LONG: Duration = Duration::from_millis(20);

/// Records moved to the application at once.
const BATCH: usize = 256;

/// Pause between two looks for the offsets of a group that has none.
const OFFSETS_PAUSE: Duration = Duration::from_millis(500);

/// How a generation ended.
#[derive(Debug)]
pub(super) enum Ended {
    Stopped,
    /// librdkafka gave up: a new client is needed.
    Broken(String),
    /// Another client has the same transactional id.
    Fenced,
}

/// A generation before its thread runs.
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) target: Arc<Target>,
    pub(super) generation: u64,
    pub(super) stop: CancellationToken,
}

impl Worker {
    /// Connects, and works until stopped. Blocks.
    fn run(self) -> Ended {
        let Self {
            shared,
            target,
            generation,
            stop,
        } = self;
        let connect = Connect::new(
            &shared.fleet,
            &shared.name,
            Arc::clone(&target),
            stop.clone(),
            false,
        );
        let connected = connect.run(
            || Clients::new(&shared, &target, generation),
            Clients::cluster_id,
            Clients::retire,
        );
        let Some((clients, cluster_id)) = connected else {
            return Ended::Stopped;
        };
        let mut generation = Generation {
            clients,
            shared,
            target,
            number: generation,
            stop,
            items: Vec::with_capacity(BATCH),
            window_limit: MAX_TEXT,
        };
        let ended = generation.run(&cluster_id);
        generation.end();
        ended
    }
}

/// Runs a worker on its own thread.
pub(super) fn spawn(worker: Worker, ended: oneshot::Sender<Ended>) -> std::io::Result<()> {
    thread::Builder::new()
        .name("standfast-transact".to_owned())
        .spawn(move || {
            let _ = ended.send(worker.run());
        })
        .map(|_detached| ())
}

struct Generation {
    clients: Clients,
    shared: Arc<Shared>,
    target: Arc<Target>,
    number: u64,
    stop: CancellationToken,
    items: Vec<Item>,
    /// Longest text of a window in the metadata of a commit; less if the broker takes less.
    window_limit: usize,
}

impl Generation {
    fn run(&mut self, cluster_id: &str) -> Ended {
        // Fences older clients of the same id, and aborts what they left open.
        if let Err(ended) = self.init() {
            return ended;
        }
        if let Err(error) = self.clients.base.begin_transaction() {
            return Ended::Broken(error.to_string());
        }
        let (sender, orders) = channel();
        let link = Link {
            generation: self.number,
            base: Arc::clone(&self.clients.base),
            orders: sender,
            cluster: self.target.cluster.clone(),
            epoch: self.target.epoch,
            ended: self.stop.clone(),
        };
        let stop = &self.stop;
        let installed = self.shared.change(|flow| match stop.is_cancelled() {
            true => (false, None),
            false => (
                {
                    flow.install(link);
                    true
                },
                None,
            ),
        });
        if !installed {
            return Ended::Stopped;
        }
        self.report_ready(cluster_id);
        match self.work(&orders) {
            Err(ended) => ended,
            Ok(()) => Ended::Stopped,
        }
    }

    fn init(&self) -> Result<(), Ended> {
        let mut told = false;
        loop {
            let error = match self.clients.base.init_transactions(SLICE) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if self.stop.is_cancelled() {
                return Err(Ended::Stopped);
            }
            if !is_retriable(&error) {
                return Err(Ended::Broken(error.to_string()));
            }
            if !std::mem::replace(&mut told, true) {
                let reason = format!(
                    "transactional id {:?} cannot be initialised: {error}",
                    self.shared.id
                );
                let client = self.shared.name.clone();
                tracing::warn!(client = client.as_str(), cluster = %self.target.cluster, reason, "trying on");
                self.shared.fleet.emit(FleetEvent::ClientFailed {
                    client,
                    cluster: self.target.cluster.clone(),
                    reason,
                    attempt: 1,
                });
            }
        }
    }

    fn report_ready(&self, cluster_id: &str) {
        let after = self.target.since.elapsed();
        tracing::info!(
            client = self.shared.name.as_str(), cluster = %self.target.cluster, cluster_id, epoch = %self.target.epoch, ?after,
            "transactional client works on the active cluster"
        );
        self.shared.fleet.emit(FleetEvent::ClientReady {
            client: self.shared.name.clone(),
            epoch: self.target.epoch,
            cluster: self.target.cluster.clone(),
            cluster_id: cluster_id.to_owned(),
            after,
        });
    }

    /// Carries out orders and reads ahead, until stopped.
    fn work(&mut self, orders: &Receiver<Order>) -> Result<(), Ended> {
        let mut joined = self.clients.reader.is_none();
        let mut offsets_at = Instant::now();
        let mut wait = SHORT;
        let mut full_since = None;
        let mut told = false;
        let mut way_back = WayBack::default();
        while !self.stop.is_cancelled() {
            if let Some(reader) = &self.clients.reader {
                let log = &reader.context().log;
                way_back.look(reader.client(), log, &self.target.entry.bootstrap);
            }
            match orders.recv_timeout(wait) {
                Ok(order) => self.carry_out(order)?,
                Err(RecvTimeoutError::Timeout) => {}
                // The flow has let go of this generation.
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            self.check_producer()?;
            if !joined && Instant::now() >= offsets_at {
                offsets_at = Instant::now() + OFFSETS_PAUSE;
                joined = self.may_join(&mut told)?;
            }
            let read = self.read(&mut full_since)?;
            wait = match read {
                true => Duration::ZERO,
                false => (wait * 2).clamp(SHORT, LONG),
            };
        }
        Ok(())
    }

    fn check_producer(&self) -> Result<(), Ended> {
        match self.clients.base.client().fatal_error() {
            None => Ok(()),
            Some((code, reason)) => Err(self.fatal(code, &reason)),
        }
    }

    /// The coordinator also fences a client whose transaction was open for too long: that one starts again.
    fn fatal(&self, code: RDKafkaErrorCode, reason: &str) -> Ended {
        use RDKafkaErrorCode as Code;
        let is_fenced = matches!(
            code,
            Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch
        );
        let was_long = self
            .shared
            .flow()
            .sent_for()
            .is_some_and(|open| open >= self.shared.timeout);
        match is_fenced && !was_long {
            true => Ended::Fenced,
            false => Ended::Broken(format!("{code}: {reason}")),
        }
    }

    fn failed(&self, error: &KafkaError) -> Ended {
        match self.clients.base.client().fatal_error() {
            Some((code, reason)) => self.fatal(code, &reason),
            None => Ended::Broken(error.to_string()),
        }
    }

    fn carry_out(&mut self, order: Order) -> Result<(), Ended> {
        match order {
            Order::Commit { serial, reply } => {
                let outcome = self.commit(serial)?;
                let is_committed = outcome.is_ok();
                // Nobody waits: the commit was dropped.
                let _ = reply.send(outcome);
                if is_committed {
                    self.begin()?;
                }
                self.shared
                    .change_of(self.number, |flow| (flow.end_order(), None));
            }
            Order::Abort {
                serial,
                reason,
                reply,
            } => {
                if self.shared.flow().is_at(self.number, serial) {
                    self.abort(reason)?;
                }
                self.shared
                    .change_of(self.number, |flow| (flow.end_order(), None));
                if let Some(reply) = reply {
                    let _ = reply.send(());
                }
            }
        }
        Ok(())
    }

    /// Commits; an answer that leaves this generation in order, or how the generation ends.
    fn commit(&mut self, serial: u64) -> Result<Result<(), Abort>, Ended> {
        let (positions, ended) = {
            let flow = self.shared.flow();
            match flow.is_at(self.number, serial) {
                true => {
                    let limit = self.window_limit.saturating_sub(flow.outputs.text().len());
                    (flow.positions(limit), None)
                }
                false => (Vec::new(), Some(flow.end_of(serial))),
            }
        };
        if let Some(ended) = ended {
            // Nobody waits if there is none.
            return ended.map(Err).ok_or(Ended::Stopped);
        }
        let deadline = Instant::now() + COMMIT;
        let committed = self.try_commit(positions, deadline);
        let Err(error) = committed else {
            add(&self.shared.fleet.counters.transactions_committed, 1);
            self.shared
                .change_of(self.number, |flow| (flow.committed(), None));
            return Ok(Ok(()));
        };
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::OffsetMetadataTooLarge) {
            self.window_limit /= 2;
        }
        if !requires_abort(&error) {
            return Err(self.failed(&error));
        }
        self.abort(Reason::Kafka(error.to_string()))?;
        let abort = self.shared.flow().end_of(serial);
        abort.map(Err).ok_or(Ended::Stopped)
    }

    fn try_commit(
        &self,
        positions: Vec<(super::flow::Key, i64, String)>,
        deadline: Instant,
    ) -> Result<(), KafkaError> {
        let base = &self.clients.base;
        while !ffi::flush(base.client(), SLICE) && self.may_go_on(deadline) {}
        if self.stop.is_cancelled() {
            return Err(KafkaError::Canceled);
        }
        if let (Some(reader), false) = (&self.clients.reader, positions.is_empty()) {
            let (epoch, outputs) = {
                let flow = self.shared.flow();
                if !flow.is_present(self.number) {
                    return Err(KafkaError::Canceled);
                }
                let epoch = flow.epoch().unwrap_or(self.target.epoch);
                (epoch, flow.outputs.text().to_owned())
            };
            let mut offsets = TopicPartitionList::with_capacity(positions.len());
            for ((topic, number), offset, seen) in positions {
                let mut entry = offsets.add_partition(&topic, number);
                entry.set_offset(Offset::Offset(offset))?;
                entry.set_metadata(label(epoch, &seen) + &outputs);
            }
            // With the member's generation (KIP-447): a member that has lost its partitions commits nothing.
            let group = reader
                .group_metadata()
                .ok_or(KafkaError::ConsumerCommit(RDKafkaErrorCode::UnknownGroup))?;
            self.repeat(deadline, || {
                base.send_offsets_to_transaction(&offsets, &group, SLICE)
            })?;
        }
        self.repeat(deadline, || base.commit_transaction(SLICE))
    }

    /// Calls again as long as librdkafka says that it may.
    fn repeat(
        &self,
        deadline: Instant,
        call: impl Fn() -> Result<(), KafkaError>,
    ) -> Result<(), KafkaError> {
        loop {
            match call() {
                Err(error) if is_retriable(&error) && self.may_go_on(deadline) => {}
                other => return other,
            }
        }
    }

    fn may_go_on(&self, deadline: Instant) -> bool {
        !self.stop.is_cancelled() && Instant::now() < deadline
    }

    /// Aborts the transaction, begins the next, and reads on from what is committed.
    fn abort(&mut self, reason: Reason) -> Result<(), Ended> {
        self.shared
            .change_of(self.number, |flow| ((), flow.abort(reason, false)));
        let deadline = Instant::now() + ABORT;
        let base = &self.clients.base;
        ffi::flush(base.client(), LAST_RECORDS);
        let aborted = self.repeat(deadline, || base.abort_transaction(SLICE));
        aborted.map_err(|error| self.failed(&error))?;
        self.begin()?;
        if let Some(reader) = &self.clients.reader {
            reader.context().state().rewind(reader);
        }
        Ok(())
    }

    fn begin(&self) -> Result<(), Ended> {
        let begun = self.clients.base.begin_transaction();
        begun.map_err(|error| self.failed(&error))
    }

    /// Aborts what is open, without anybody waiting for it, and takes the clients down.
    fn end(self) {
        // On a cluster that lives the records would hold up its readers until the transaction times out.
        ffi::flush(self.clients.base.client(), LAST_RECORDS);
        let _ = self.clients.base.abort_transaction(LAST_ABORT);
        self.clients.retire();
    }
}

fn is_retriable(error: &KafkaError) -> bool {
    match error {
        KafkaError::Transaction(error) => error.is_retriable(),
        // `commit_transaction` of rust-rdkafka flushes by itself.
        KafkaError::Flush(_) => true,
        _ => false,
    }
}

fn requires_abort(error: &KafkaError) -> bool {
    match error {
        KafkaError::Transaction(error) => error.txn_requires_abort() && !error.is_fatal(),
        KafkaError::ConsumerCommit(_) => true,
        _ => false,
    }
}
