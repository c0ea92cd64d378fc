//! Making a client and proving that it talks to the right cluster, before it is used.
//!
//! Runs on a thread of its own: librdkafka's calls block, and a blocked thread of the async runtime would hold up its
//! shutdown.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::error::Result;
use crate::event::{ClientName, FleetEvent};
use crate::fleet::FleetShared;
use crate::target::Target;

/// One wait for the cluster's id; bounds how long a cancelled attempt lingers.
const ASK: Duration = Duration::from_secs(1);

/// Pauses between two attempts to make a client; the last one repeats. librdkafka itself reconnects within a second.
const PAUSES: [Duration; 4] = [
    Duration::from_millis(250),
    Duration::from_secs(1),
    Duration::from_secs(3),
    Duration::from_secs(10),
];

/// Of the attempts that get no answer, the first and then every tenth is reported.
const REPORT_EVERY: u32 = 10;

/// What is to be connected, for whom.
#[derive(Debug)]
pub(crate) struct Connect {
    pub(crate) fleet: Arc<FleetShared>,
    pub(crate) client: ClientName,
    pub(crate) target: Arc<Target>,
    pub(crate) cancel: CancellationToken,
    /// The client is not needed yet: the target is not the active cluster.
    pub(crate) is_standby: bool,
}

impl Connect {
    pub(crate) fn new(
        fleet: &Arc<FleetShared>,
        client: &ClientName,
        target: Arc<Target>,
        cancel: CancellationToken,
        is_standby: bool,
    ) -> Self {
        Self {
            fleet: Arc::clone(fleet),
            client: client.clone(),
            target,
            cancel,
            is_standby,
        }
    }

    /// Makes a client by `make` and asks it for its cluster's id by `ask` until that is the expected one. `None` if
    /// cancelled. Blocks.
    pub(crate) fn run<C>(
        &self,
        make: impl Fn() -> Result<C>,
        ask: impl Fn(&C, Duration) -> Option<String>,
        discard: impl Fn(C),
    ) -> Option<(C, String)> {
        let mut attempt = 0;
        while !self.cancel.is_cancelled() {
            let client = match make() {
                Ok(client) => client,
                Err(error) => {
                    attempt += 1;
                    self.report_failure(&error.to_string(), attempt);
                    self.pause(attempt);
                    continue;
                }
            };
            match self.ask_until_answered(&client, &ask, &mut attempt) {
                Some(id) if self.is_expected(&id) => return Some((client, id)),
                Some(_) => {
                    discard(client);
                    attempt += 1;
                    self.pause(attempt);
                }
                None => discard(client),
            }
        }
        None
    }

    fn ask_until_answered<C>(
        &self,
        client: &C,
        ask: impl Fn(&C, Duration) -> Option<String>,
        attempt: &mut u32,
    ) -> Option<String> {
        while !self.cancel.is_cancelled() {
            let asked = Instant::now();
            if let Some(id) = ask(client, ASK) {
                return Some(id);
            }
            // librdkafka may answer "unknown" at once.
            thread::sleep(PAUSES[0].saturating_sub(asked.elapsed()));
            *attempt += 1;
            if *attempt % REPORT_EVERY == 1 {
                let reason = format!("no broker of {} answers", self.target.entry.bootstrap);
                self.report_failure(&reason, *attempt);
            }
        }
        None
    }

    fn is_expected(&self, found: &str) -> bool {
        let Some(expected) = self
            .target
            .entry
            .cluster_id
            .as_deref()
            .filter(|expected| *expected != found)
        else {
            return true;
        };
        self.fleet.counters.wrong_cluster.fetch_add(1, Relaxed);
        tracing::error!(
            client = self.client.as_str(), cluster = %self.target.cluster, bootstrap = self.target.entry.bootstrap,
            expected, found,
            "the bootstrap addresses lead to another cluster than the fleet record says; the client is not used, correct \
             the record"
        );
        self.fleet.emit(FleetEvent::WrongCluster {
            client: self.client.clone(),
            cluster: self.target.cluster.clone(),
            expected: expected.to_owned(),
            found: found.to_owned(),
        });
        false
    }

    fn report_failure(&self, reason: &str, attempt: u32) {
        if self.is_standby {
            tracing::warn!(
                client = self.client.as_str(), cluster = %self.target.cluster, attempt, reason,
                "a standby cluster cannot be used: a flip to it would not help this client; trying on"
            );
            self.fleet.emit(FleetEvent::StandbyFailed {
                client: self.client.clone(),
                cluster: self.target.cluster.clone(),
                reason: reason.to_owned(),
            });
            return;
        }
        tracing::warn!(
            client = self.client.as_str(), cluster = %self.target.cluster, attempt, reason,
            "the active cluster cannot be used yet, trying on"
        );
        self.fleet.emit(FleetEvent::ClientFailed {
            client: self.client.clone(),
            cluster: self.target.cluster.clone(),
            reason: reason.to_owned(),
            attempt,
        });
    }

    fn pause(&self, attempt: u32) {
        let index = (attempt as usize).saturating_sub(1).min(PAUSES.len() - 1);
        let until = Instant::now() + PAUSES[index];
        while Instant::now() < until && !self.cancel.is_cancelled() {
            thread::sleep(Duration::from_millis(50));
        }
    }
}
