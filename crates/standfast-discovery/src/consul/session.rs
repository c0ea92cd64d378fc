//! Sessions and the lock: developer.hashicorp.com/consul/api-docs/session.
//!
//! Consul's TTL is a lower bound: the session lives at least that long after the last renewal, usually longer. A holder
//! that stops before the TTL has passed on its own clock has therefore stopped before anybody else can hold the lock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};
use tokio::time::sleep_until;

use super::address::{Answer, Failure};
use super::kv::{Mode, Put};
use super::pace::{Backoff, Pace};
use super::watch::next_index;
use super::{Consul, Failures};
use crate::error::Error;
use crate::lock::{Deadline, Held, Lock, LockState};
use crate::name::FleetName;

/// Bounds on a session's TTL. Consul has its own, by default 10 s (`session_ttl_min`) and 24 h, and says so itself.
const TTL_RANGE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(86_400));
/// How long Consul keeps a lock free after its session was invalidated (not after a release). Small, because the local
/// deadline already keeps two holders apart; it only covers an operator destroying the session by hand.
const LOCK_DELAY: Duration = Duration::from_secs(2);
/// Pause after a renewal that failed.
const RENEW_RETRY: Duration = Duration::from_millis(500);
/// Longest holder text that is shown.
const MAX_HOLDER_CHARS: usize = 200;

const SESSION_RULE: &str = "session_prefix \"\" { policy = \"write\" }";

/// The task that renews a session; ends it when asked or dropped.
#[derive(Debug)]
pub(crate) struct SessionHandle {
    end: oneshot::Sender<oneshot::Sender<Result<(), Error>>>,
}

impl SessionHandle {
    pub(crate) async fn release(self) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        // A task that has ended already has lost the lock, or given it back.
        if self.end.send(reply).is_err() {
            return Ok(());
        }
        answer.await.unwrap_or(Ok(()))
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct NewSession<'a> {
    name: &'a str,
    #[serde(rename = "TTL")]
    ttl: String,
    lock_delay: String,
    behavior: &'a str,
    // No health checks: the default one would end the session when the gossip layer mistrusts the node, long
    // before the TTL and thus before our deadline.
    node_checks: [&'a str; 0],
}

#[derive(Deserialize)]
struct SessionId {
    #[serde(rename = "ID")]
    id: String,
}

struct Session {
    consul: Arc<Consul>,
    /// The address that created it.
    home: usize,
    id: String,
    key: String,
    ttl: Duration,
}

impl Consul {
    pub(crate) async fn lock(
        self: &Arc<Self>,
        fleet: &FleetName,
        name: &str,
        holder: &str,
        ttl: Duration,
    ) -> Result<Lock, Error> {
        if ttl < TTL_RANGE.0 || ttl > TTL_RANGE.1 {
            return Err(Error::Options(format!(
                "lock TTL is {ttl:?}, give 2s to 24h (Consul itself asks for 10s or more by default)"
            )));
        }
        let key = self.key(fleet, name);
        let created_at = Deadline::now();
        let session = self.create_session(&key, holder, ttl).await?;
        match session.acquire(holder).await {
            Ok(lock_index) => Ok(session.keep(created_at, lock_index)),
            Err(error) => {
                let _ = session.destroy().await;
                Err(error)
            }
        }
    }

    async fn create_session(
        self: &Arc<Self>,
        key: &str,
        holder: &str,
        ttl: Duration,
    ) -> Result<Session, Error> {
        let body = NewSession {
            name: holder,
            ttl: format!("{}ms", ttl.as_millis()),
            lock_delay: format!("{}ms", LOCK_DELAY.as_millis()),
            behavior: "release",
            node_checks: [],
        };
        let body =
            serde_json::to_vec(&body).map_err(|e| Error::Options(format!("lock holder: {e}")))?;
        let mut failures = Failures::default();
        for home in self.order(None) {
            let created = self.session_call(home, "create", Some(body.clone())).await;
            let parsed = created.and_then(|answer| {
                serde_json::from_slice::<SessionId>(&answer.body).map_err(|_| Failure::Answer {
                    address: self.address_name(home),
                    reason: "the answer to a session creation holds no ID".to_owned(),
                })
            });
            match parsed {
                Ok(SessionId { id }) => {
                    return Ok(Session {
                        consul: Arc::clone(self),
                        home,
                        id,
                        key: key.to_owned(),
                        ttl,
                    });
                }
                Err(failure) => failures.push(failure, &format!("a session for {key}"))?,
            }
        }
        Err(failures.into_error(&format!("a session for {key}")))
    }

    async fn session_call(
        &self,
        address: usize,
        call: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Answer, Failure> {
        let path = format!("session/{call}");
        self.send(
            address,
            Method::PUT,
            &path,
            Vec::new(),
            body,
            self.options.request_timeout,
            SESSION_RULE,
        )
        .await
    }
}

impl Session {
    /// Takes the key as a lock; its `LockIndex` if that worked.
    async fn acquire(&self, holder: &str) -> Result<u64, Error> {
        let acquired = self
            .consul
            .put(
                self.home,
                &self.key,
                Put::Acquire(&self.id),
                holder.as_bytes(),
            )
            .await;
        let acquired = acquired.map_err(|f| f.into_error(&self.key))?;
        let found = self
            .consul
            .get(self.home, &self.key, Mode::Consistent)
            .await;
        let entry = found.map_err(|f| f.into_error(&self.key))?.entry;
        if acquired
            && let Some(entry) = &entry
            && entry.session.as_deref() == Some(&self.id)
        {
            return Ok(entry.lock_index);
        }
        let holder = match entry {
            Some(entry) if entry.session.is_some() => {
                let text = String::from_utf8_lossy(&entry.value)
                    .chars()
                    .take(MAX_HOLDER_CHARS)
                    .collect::<String>();
                format!("{text:?}")
            }
            _ => format!(
                "nobody, but its last session has just ended and Consul waits {LOCK_DELAY:?}"
            ),
        };
        Err(Error::LockHeld {
            address: self.consul.address_name(self.home),
            key: self.key.clone(),
            holder,
        })
    }

    /// Starts renewing.
    fn keep(self, created_at: Deadline, lock_index: u64) -> Lock {
        let (state, receiver) = watch::channel(LockState::HeldUntil(self.deadline(created_at)));
        let (end, ended) = oneshot::channel();
        tokio::spawn(self.renew_until(ended, state, created_at));
        Lock::new(receiver, lock_index, Held::Session(SessionHandle { end }))
    }

    /// A renewal counts from when it was sent, and a tenth is kept back for clocks that run unevenly.
    fn deadline(&self, renewed_at: Deadline) -> Deadline {
        renewed_at.after(self.ttl - self.ttl / 10)
    }

    async fn renew_until(
        self,
        mut ended: oneshot::Receiver<oneshot::Sender<Result<(), Error>>>,
        state: watch::Sender<LockState>,
        created_at: Deadline,
    ) {
        let mut deadline = self.deadline(created_at);
        let mut next = created_at.monotonic() + self.ttl / 3;
        let taken_away = self.taken_away();
        tokio::pin!(taken_away);
        let why = loop {
            tokio::select! {
                end = &mut ended => {
                    state.send_replace(LockState::Lost);
                    let result = self.give_back().await;
                    match end {
                        Ok(reply) => { let _ = reply.send(result); }
                        Err(_) => if let Err(error) = result {
                            tracing::warn!(key = self.key, %error, "a dropped lock was not given back, its session will expire");
                        }
                    }
                    return;
                }
                holder = &mut taken_away => break holder,
                () = sleep_until(deadline.monotonic().into()) => {
                    break format!("it was not renewed within its TTL of {:?}", self.ttl);
                }
                (sent_at, renewed) = self.renew_at(next) => match renewed {
                    Ok(true) => {
                        deadline = self.deadline(sent_at);
                        next = sent_at.monotonic() + self.ttl / 3;
                        state.send_replace(LockState::HeldUntil(deadline));
                    }
                    Ok(false) => break "its session has expired or was destroyed".to_owned(),
                    Err(failure) => {
                        let error = failure.into_error(&self.key);
                        tracing::warn!(key = self.key, %error, left = ?deadline.monotonic().saturating_duration_since(Instant::now()), "lock not renewed, trying again");
                        next = Instant::now() + RENEW_RETRY;
                    }
                },
            }
        };
        state.send_replace(LockState::Lost);
        tracing::error!(key = self.key, why, "the lock is lost");
        // If it still exists, others need not wait for it.
        let _ = self.destroy().await;
    }

    async fn renew_at(&self, when: Instant) -> (Deadline, Result<bool, Failure>) {
        sleep_until(when.into()).await;
        let mut sent_at = Deadline::now();
        let mut last = None;
        for address in self.consul.order(Some(self.home)) {
            sent_at = Deadline::now();
            match self
                .consul
                .session_call(address, &format!("renew/{}", self.id), None)
                .await
            {
                Ok(answer) if answer.found => return (sent_at, Ok(true)),
                Ok(_) if address == self.home => return (sent_at, Ok(false)),
                // Another address may belong to another Consul cluster, which does not know the session.
                Ok(_) => {}
                Err(failure) => last = Some(failure),
            }
        }
        let unknown = || Failure::Answer {
            address: self.consul.address_name(self.home),
            reason: "the session is unknown at the other addresses".to_owned(),
        };
        (sent_at, Err(last.unwrap_or_else(unknown)))
    }

    /// Returns when the key is seen to be held by somebody else or by nobody.
    async fn taken_away(&self) -> String {
        let (mut backoff, mut pace, mut index) = (Backoff::default(), Pace::new(), 0);
        loop {
            pace.wait().await;
            let mode = Mode::Blocking {
                index,
                wait: self.ttl / 3,
                stale: false,
            };
            match self.consul.get(self.home, &self.key, mode).await {
                Ok(found) => {
                    backoff.reset();
                    index = next_index(index, found.index);
                    let session = found.entry.and_then(|entry| entry.session);
                    if session.as_deref() != Some(&self.id) {
                        return format!(
                            "{} is held by {}",
                            self.key,
                            session.as_deref().unwrap_or("nobody")
                        );
                    }
                }
                Err(_) => {
                    index = 0;
                    backoff.pause().await;
                }
            }
        }
    }

    /// Releases the key, then ends the session: ending it alone would make the next holder wait for the lock delay.
    async fn give_back(&self) -> Result<(), Error> {
        let released = self
            .consul
            .put(self.home, &self.key, Put::Release(&self.id), b"")
            .await;
        let destroyed = self.destroy().await;
        released.map_err(|f| f.into_error(&self.key))?;
        destroyed
    }

    async fn destroy(&self) -> Result<(), Error> {
        let call = format!("destroy/{}", self.id);
        let destroyed = self.consul.session_call(self.home, &call, None).await;
        destroyed.map(|_| ()).map_err(|f| f.into_error(&self.key))
    }
}
