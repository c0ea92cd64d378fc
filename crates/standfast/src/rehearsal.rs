//! Trying out, before a flip, whether it would work: addresses, logins and cluster ids of the standbys.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::statistics::Statistics;
use standfast_discovery::ClusterName;
use tokio::sync::oneshot;

use crate::client_config::{self, Properties, Role};
use crate::ffi;
use crate::fleet::FleetShared;
use crate::reaper::{self, Retirement};
use crate::target::Target;

/// One wait for the cluster's id; librdkafka's errors are looked at in between.
const ASK: Duration = Duration::from_millis(200);

/// What came of trying one standby. See [`Fleet::rehearse`](crate::Fleet::rehearse).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rehearsal {
    /// The standby.
    pub cluster: ClusterName,
    /// Time until it was connected, logged in and had told its cluster id; or what failed, and what to do.
    pub outcome: Result<Duration, String>,
}

/// Tries all standbys at the same time.
pub(crate) async fn rehearse(
    fleet: &Arc<FleetShared>,
    properties: &Properties,
    timeout: Duration,
) -> Vec<Rehearsal> {
    let target = fleet.targets.borrow().clone();
    let standbys = target
        .map(|target| Arc::clone(&target.standbys))
        .unwrap_or_default();
    let mut trials = Vec::new();
    for standby in standbys.iter() {
        let (sender, outcome) = oneshot::channel();
        let (target, properties) = (Arc::clone(&standby.0), properties.clone());
        // librdkafka's calls block.
        let spawned = thread::Builder::new()
            .name("standfast-rehearse".to_owned())
            .spawn(move || {
                // Nobody waits any more: fine.
                let _ = sender.send(try_out(&target, &properties, timeout));
            });
        trials.push((standby.0.cluster.clone(), spawned.map(|_detached| outcome)));
    }
    let mut found = Vec::new();
    for (cluster, outcome) in trials {
        let outcome = match outcome {
            Ok(outcome) => outcome
                .await
                .unwrap_or_else(|_| Err("the trial panicked".to_owned())),
            Err(error) => Err(format!("no thread for the trial: {error}")),
        };
        let counter = match &outcome {
            Ok(_) => &fleet.counters.rehearsals_passed,
            Err(reason) => {
                tracing::error!(
                    fleet = %fleet.name, %cluster, reason,
                    "a flip to this cluster would not work: correct its entry in the fleet record or its secret"
                );
                &fleet.counters.rehearsals_failed
            }
        };
        counter.fetch_add(1, Relaxed);
        found.push(Rehearsal { cluster, outcome });
    }
    found
}

/// Makes a new client, so that its login is a new one too, and asks for the cluster's id.
fn try_out(
    target: &Target,
    properties: &Properties,
    timeout: Duration,
) -> Result<Duration, String> {
    if !target.has_credentials() {
        let secret = target.entry.secret.as_deref().unwrap_or_default();
        return Err(format!(
            "its credentials are not known: secret {secret:?} has not been read yet"
        ));
    }
    let began = Instant::now();
    let config = client_config::for_target(&Role::StandbyEnds, properties, target)
        .map_err(|error| error.to_string())?;
    let client = BaseConsumer::from_config_and_context(&config, Trial::default())
        .map_err(|error| error.to_string())?;
    let outcome = loop {
        // Serves librdkafka's events.
        while client.poll(Duration::ZERO).is_some() {}
        if let Some(found) = client.client().fetch_cluster_id(ASK) {
            break match &target.entry.cluster_id {
                Some(expected) if *expected != found => Err(format!(
                    "its addresses {} lead to cluster {found}, the record says {expected}",
                    target.entry.bootstrap
                )),
                _ => Ok(began.elapsed()),
            };
        }
        if began.elapsed() >= timeout {
            let last = client.context().last();
            break Err(last.unwrap_or_else(|| {
                format!(
                    "no broker of {} answers within {timeout:?}",
                    target.entry.bootstrap
                )
            }));
        }
    };
    reaper::retire(
        "rehearsal",
        Retirement::new(move || ffi::destroy_without_close(client)),
    );
    outcome
}

/// Keeps librdkafka's last error.
#[derive(Default)]
struct Trial {
    last: Mutex<Option<String>>,
}

impl Trial {
    fn last(&self) -> Option<String> {
        self.last
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl ClientContext for Trial {
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}

    fn stats(&self, _: Statistics) {}

    fn error(&self, error: KafkaError, reason: &str) {
        // That all are down says less than why one is.
        let text = format!("{error}: {reason}");
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_none() || !reason.contains("brokers are down") {
            *last = Some(text);
        }
    }
}

impl ConsumerContext for Trial {}
