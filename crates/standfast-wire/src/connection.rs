//! One connection shared by many callers: an actor task owns the socket, callers hold a cheap handle.
//!
//! Kafka answers in the order of the requests, so one that gets no answer holds up all behind it: on a timeout, a framing
//! error or a closed socket the connection is poisoned, every waiter and every later caller gets the same error, and
//! whoever holds the handle opens another connection.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::protocol::Request;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::decode;
use crate::error::Error;
use crate::frame::{FrameReader, FrameWriter};
use crate::options::{ClusterOptions, HostPort};
use crate::raw::{ApiVersionTable, RawConnection, api_name, check_correlation, encode};

/// Requests that may be on the wire without an answer. The broker works on one at a time; the rest only hide the round trip.
pub const IN_FLIGHT_MAX: usize = 32;
/// Requests that may wait for a place on the wire; callers beyond that wait in `call`.
const QUEUED_MAX: usize = 64;

/// One connection with pipelining. Cheap to clone; the socket closes when the last clone is gone.
#[derive(Debug, Clone)]
pub struct Connection {
    requests: mpsc::Sender<Outgoing>,
    shared: Arc<Shared>,
}

/// What an open or broken connection is in.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ConnectionState {
    /// Requests are accepted.
    Open,
    /// Broken for good, by this error.
    Poisoned(Error),
}

#[derive(Debug)]
struct Shared {
    broker: Arc<str>,
    client_id: Arc<str>,
    versions: ApiVersionTable,
    request_timeout: Duration,
    expires_at: Option<Instant>,
    next_correlation_id: AtomicI32,
    poison: OnceLock<Error>,
}

impl Shared {
    /// Breaks the connection, unless it is broken already; returns the error that stands.
    fn poison(&self, error: Error) -> Error {
        self.poison.get_or_init(|| error).clone()
    }
}

/// A request on its way to the actor.
#[derive(Debug)]
struct Outgoing {
    frame: Bytes,
    waiter: Waiter,
}

#[derive(Debug)]
struct Waiter {
    correlation_id: i32,
    api: &'static str,
    deadline: Instant,
    timeout: Duration,
    answer: oneshot::Sender<Result<Bytes, Error>>,
}

impl Connection {
    /// Connects as [`RawConnection::connect`] does and starts the actor.
    ///
    /// # Errors
    /// As [`RawConnection::connect`].
    pub async fn connect(address: &HostPort, options: &ClusterOptions) -> Result<Self, Error> {
        let raw = RawConnection::connect(address, options).await?;
        Ok(Self::start(raw, options))
    }

    /// Hands a raw connection to an actor. Must be called on a tokio runtime.
    pub fn start(raw: RawConnection, options: &ClusterOptions) -> Self {
        let shared = Arc::new(Shared {
            broker: Arc::clone(raw.broker()),
            client_id: options.client_id.as_str().into(),
            versions: raw.versions().clone(),
            request_timeout: options.request_timeout,
            expires_at: raw.expires_at(),
            // The set-up has used a few of the low ids.
            next_correlation_id: AtomicI32::new(1 << 16),
            poison: OnceLock::new(),
        });
        let (requests, queue) = mpsc::channel(QUEUED_MAX);
        let (reader, writer) = raw.into_split();
        let actor = Actor {
            reader,
            writer,
            queue,
            in_flight: VecDeque::with_capacity(IN_FLIGHT_MAX),
            shared: Arc::clone(&shared),
        };
        tokio::spawn(actor.run());
        Self { requests, shared }
    }

    /// Sends `request` in the highest common version and waits for its answer, at most the options' `request_timeout`.
    ///
    /// # Errors
    /// [`Error::UnsupportedApi`], [`Error::Timeout`], [`Error::Decode`], or what has broken the connection. Error codes
    /// inside the answer are the caller's to read.
    pub async fn call<R: Request>(&self, request: R) -> Result<R::Response, Error> {
        let version = self.version_for::<R>()?;
        self.call_with(request, version, self.shared.request_timeout)
            .await
    }

    /// As [`Connection::call`] with a given version and bound on the wait (queueing included).
    ///
    /// A timeout while the request is on the wire breaks the connection for all its users: give a request that the broker
    /// may hold back (Fetch, JoinGroup) more time than the broker has.
    ///
    /// # Errors
    /// As [`Connection::call`]; [`Error::Encode`] if a field is set that `version` has no place for.
    pub async fn call_with<R: Request>(
        &self,
        request: R,
        version: i16,
        timeout: Duration,
    ) -> Result<R::Response, Error> {
        let api = api_name::<R>();
        let correlation_id = self
            .shared
            .next_correlation_id
            .fetch_add(1, Ordering::Relaxed);
        let frame = encode(&request, version, correlation_id, &self.shared.client_id).map_err(
            |reason| Error::Encode {
                broker: Arc::clone(&self.shared.broker),
                api,
                version,
                reason,
            },
        )?;
        drop(request);
        let answer = self.exchange(frame, correlation_id, api, timeout).await?;
        decode::response::<R>(answer, version).map_err(|reason| Error::Decode {
            broker: Arc::clone(&self.shared.broker),
            api,
            version,
            reason,
        })
    }

    /// Sends a hand-made request frame and gives the answer frame; both include their headers.
    pub(crate) async fn call_frame(
        &self,
        api: &'static str,
        timeout: Duration,
        encode: impl FnOnce(i32, &str) -> Bytes,
    ) -> Result<Bytes, Error> {
        let correlation_id = self
            .shared
            .next_correlation_id
            .fetch_add(1, Ordering::Relaxed);
        let frame = encode(correlation_id, &self.shared.client_id);
        self.exchange(frame, correlation_id, api, timeout).await
    }

    /// The version that [`Connection::call`] uses for `R`.
    ///
    /// # Errors
    /// [`Error::UnsupportedApi`] if the broker and this crate have none in common.
    pub fn version_for<R: Request>(&self) -> Result<i16, Error> {
        self.shared.versions.negotiate::<R>()
    }

    /// What the broker speaks.
    pub fn versions(&self) -> &ApiVersionTable {
        &self.shared.versions
    }

    /// Address of the broker.
    pub fn broker(&self) -> &Arc<str> {
        &self.shared.broker
    }

    /// Whether a new connection is needed: this one is broken, or its authentication is about to run out.
    pub fn is_closed(&self) -> bool {
        let expired = self
            .shared
            .expires_at
            .is_some_and(|at| Instant::now() >= at);
        self.shared.poison.get().is_some() || self.requests.is_closed() || expired
    }

    /// The state of the connection.
    pub fn state(&self) -> ConnectionState {
        match self.shared.poison.get() {
            Some(error) => ConnectionState::Poisoned(error.clone()),
            None => ConnectionState::Open,
        }
    }

    async fn exchange(
        &self,
        frame: Bytes,
        correlation_id: i32,
        api: &'static str,
        timeout: Duration,
    ) -> Result<Bytes, Error> {
        let deadline = Instant::now() + timeout;
        let (answer, answered) = oneshot::channel();
        let waiter = Waiter {
            correlation_id,
            api,
            deadline,
            timeout,
            answer,
        };
        match timeout_at(deadline, self.requests.send(Outgoing { frame, waiter })).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(self.broken()),
            Err(_) => return Err(timed_out(&self.shared.broker, api, timeout)),
        }
        // The actor enforces the deadline, and always answers or drops the sender.
        answered.await.unwrap_or_else(|_| Err(self.broken()))
    }

    fn broken(&self) -> Error {
        self.shared
            .poison
            .get()
            .cloned()
            .unwrap_or_else(|| Error::Closed {
                broker: Arc::clone(&self.shared.broker),
                detail: "",
            })
    }
}

/// The task that owns the socket.
struct Actor {
    reader: FrameReader,
    writer: FrameWriter,
    queue: mpsc::Receiver<Outgoing>,
    /// Who waits, in the order of the requests, which is the order of the answers.
    in_flight: VecDeque<Waiter>,
    shared: Arc<Shared>,
}

impl Actor {
    async fn run(mut self) {
        let error = match self.serve().await {
            Ok(()) => Error::Closed {
                broker: Arc::clone(&self.shared.broker),
                detail: " by this side",
            },
            Err(error) => {
                tracing::debug!(broker = %self.shared.broker, %error, "connection broken");
                error
            }
        };
        let error = self.shared.poison(error);
        self.queue.close();
        for waiter in self.in_flight.drain(..) {
            let _ = waiter.answer.send(Err(error.clone()));
        }
        while let Ok(outgoing) = self.queue.try_recv() {
            let _ = outgoing.waiter.answer.send(Err(error.clone()));
        }
    }

    /// Runs until every handle is gone and nothing is awaited (`Ok`), or the connection breaks.
    async fn serve(&mut self) -> Result<(), Error> {
        let mut handles_gone = false;
        loop {
            if handles_gone && self.in_flight.is_empty() {
                return Ok(());
            }
            let earliest = self.in_flight.iter().map(|waiter| waiter.deadline).min();
            // All branches are cancel-safe: reader and writer keep what they have read and not yet written.
            tokio::select! {
                frame = self.reader.read() => self.answer(frame?)?,
                written = self.writer.flush(), if self.writer.has_pending() => written?,
                request = self.queue.recv(), if !handles_gone && self.in_flight.len() < IN_FLIGHT_MAX => {
                    match request {
                        Some(request) => self.send(request)?,
                        None => handles_gone = true,
                    }
                }
                () = sleep_until(earliest.unwrap_or_else(Instant::now)), if earliest.is_some() => {
                    self.check_deadlines()?;
                }
            }
        }
    }

    fn send(&mut self, request: Outgoing) -> Result<(), Error> {
        let Outgoing { frame, waiter } = request;
        if waiter.answer.is_closed() {
            return Ok(()); // the caller has gone before anything was sent
        }
        if Instant::now() >= waiter.deadline {
            let late = timed_out(&self.shared.broker, waiter.api, waiter.timeout);
            let _ = waiter.answer.send(Err(late));
            return Ok(());
        }
        self.writer.enqueue(&[frame])?;
        self.in_flight.push_back(waiter);
        Ok(())
    }

    fn answer(&mut self, frame: Bytes) -> Result<(), Error> {
        let Some(waiter) = self.in_flight.front() else {
            return Err(Error::Frame {
                broker: Arc::clone(&self.shared.broker),
                reason: "an answer came that nobody asked for".to_owned(),
            });
        };
        check_correlation(&frame, waiter.correlation_id, &self.shared.broker)?;
        if let Some(waiter) = self.in_flight.pop_front() {
            let _ = waiter.answer.send(Ok(frame)); // the caller may have gone; the answer is then dropped
        }
        Ok(())
    }

    fn check_deadlines(&self) -> Result<(), Error> {
        let now = Instant::now();
        match self.in_flight.iter().find(|waiter| waiter.deadline <= now) {
            Some(late) => Err(timed_out(&self.shared.broker, late.api, late.timeout)),
            None => Ok(()),
        }
    }
}

fn timed_out(broker: &Arc<str>, what: &'static str, after: Duration) -> Error {
    Error::Timeout {
        broker: Arc::clone(broker),
        what,
        after,
    }
}
