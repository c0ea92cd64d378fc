//! Health probes: is a cluster there? One probe per cluster, with hysteresis, so that one slow answer is no outage.
//!
//! The result is shown to people and in the metrics. Nothing is decided by it: the agent never fails over by itself.

use std::time::Duration;

use jiff::Timestamp;
use standfast_discovery::{ClusterEntry, ClusterName};
use standfast_secrets::SecretsHandle;
use standfast_wire::Cluster;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api::{ClusterStatus, Health};
use crate::clusters;
use crate::config::HealthSection;

/// Client id of the probes in the brokers' logs.
const CLIENT_ID: &str = "standfast-probe";

/// What a probe found out last.
#[derive(Debug, Clone)]
pub(crate) struct ProbeView {
    pub(crate) health: Health,
    pub(crate) since: Timestamp,
    pub(crate) last_error: Option<String>,
    pub(crate) cluster_id: Option<String>,
    /// The probe's own connection, for the few questions that an operation asks a cluster.
    pub(crate) cluster: Option<Cluster>,
}

/// Probes one cluster.
#[derive(Debug)]
pub(crate) struct Probe {
    name: ClusterName,
    entry: ClusterEntry,
    secrets: SecretsHandle,
    options: HealthSection,
    view: watch::Sender<ProbeView>,
    hysteresis: Hysteresis,
}

/// Reads what a [`Probe`] found out. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct ProbeHandle {
    name: ClusterName,
    bootstrap: String,
    view: watch::Receiver<ProbeView>,
}

impl Probe {
    pub(crate) fn new(
        name: ClusterName,
        entry: ClusterEntry,
        secrets: SecretsHandle,
        options: HealthSection,
    ) -> (Self, ProbeHandle) {
        let (view, receiver) = watch::channel(ProbeView {
            health: Health::Unknown,
            since: Timestamp::now(),
            last_error: None,
            cluster_id: entry.cluster_id.clone(),
            cluster: None,
        });
        let handle = ProbeHandle {
            name: name.clone(),
            bootstrap: entry.bootstrap.clone(),
            view: receiver,
        };
        let hysteresis = Hysteresis::new(options.unreachable_after, options.healthy_after);
        (
            Self {
                name,
                entry,
                secrets,
                options,
                view,
                hysteresis,
            },
            handle,
        )
    }

    /// Probes until `shutdown`.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let mut timer = tokio::time::interval(self.options.interval);
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut secrets = self.secrets.clone();
        let mut secrets_end = false;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = secrets.changed(), if !secrets_end => {
                    secrets_end = changed.is_err();
                    // The next probe connects with the new credentials.
                    self.view.send_modify(|view| view.cluster = None);
                }
                _ = timer.tick() => {
                    let result = tokio::select! {
                        () = shutdown.cancelled() => return,
                        result = tokio::time::timeout(self.options.timeout, self.probe()) => result,
                    };
                    self.note(result.unwrap_or_else(|_| Err(late(self.options.timeout))));
                }
            }
        }
    }

    /// A metadata request, on a connection that is kept.
    async fn probe(&self) -> Result<Cluster, String> {
        let known = self.view.borrow().cluster.clone();
        if let Some(cluster) = known {
            return match cluster.refresh_metadata().await {
                Ok(_) => Ok(cluster),
                Err(error) => Err(error.to_string()),
            };
        }
        let mut options =
            clusters::options(&self.entry, &self.secrets, CLIENT_ID).map_err(|e| e.to_string())?;
        options.connect_timeout = self.options.timeout;
        options.request_timeout = self.options.timeout;
        Cluster::connect(options).await.map_err(|e| e.to_string())
    }

    fn note(&mut self, result: Result<Cluster, String>) {
        let before = self.hysteresis.health;
        let after = self.hysteresis.note(result.is_ok());
        let error = result.as_ref().err().cloned();
        if before != after {
            match after {
                Health::Unreachable => {
                    tracing::error!(cluster = %self.name, error = error.as_deref().unwrap_or_default(), "the cluster is unreachable");
                }
                _ => tracing::info!(cluster = %self.name, "the cluster is healthy"),
            }
        }
        self.view.send_modify(|view| {
            if before != after {
                view.health = after;
                view.since = Timestamp::now();
            }
            if let Ok(cluster) = result {
                view.cluster_id = Some(cluster.cluster_id().to_owned());
                view.cluster = Some(cluster);
            }
            view.last_error = error;
        });
    }
}

impl ProbeHandle {
    pub(crate) fn name(&self) -> &ClusterName {
        &self.name
    }

    pub(crate) fn health(&self) -> Health {
        self.view.borrow().health
    }

    /// Since the probe said UNREACHABLE; `None` if it does not.
    pub(crate) fn unreachable_for(&self) -> Option<Duration> {
        let view = self.view.borrow();
        let time = Timestamp::now().duration_since(view.since);
        (view.health == Health::Unreachable).then(|| time.unsigned_abs())
    }

    /// A connection to the cluster, if there ever was one.
    pub(crate) fn cluster(&self) -> Option<Cluster> {
        self.view.borrow().cluster.clone()
    }

    pub(crate) fn last_error(&self) -> Option<String> {
        self.view.borrow().last_error.clone()
    }

    pub(crate) fn status(&self, active: bool) -> ClusterStatus {
        let view = self.view.borrow();
        ClusterStatus {
            name: self.name.clone(),
            active,
            status: view.health,
            since: view.since,
            bootstrap: self.bootstrap.clone(),
            cluster_id: view.cluster_id.clone(),
            last_error: view.last_error.clone(),
        }
    }
}

fn late(limit: Duration) -> String {
    format!("no answer to the probe within {limit:?}")
}

/// Several equal results in a row are needed to change the verdict.
#[derive(Debug)]
struct Hysteresis {
    health: Health,
    unreachable_after: u32,
    healthy_after: u32,
    /// Results in a row that contradict the verdict.
    against: u32,
}

impl Hysteresis {
    fn new(unreachable_after: u32, healthy_after: u32) -> Self {
        Self {
            health: Health::Unknown,
            unreachable_after,
            healthy_after,
            against: 0,
        }
    }

    fn note(&mut self, ok: bool) -> Health {
        let (agrees, needed) = match (self.health, ok) {
            (Health::Healthy, true) | (Health::Unreachable, false) => (true, 0),
            // The first good answer is enough to begin with; a bad start is not.
            (Health::Unknown, true) => (false, 1),
            (Health::Unreachable, true) => (false, self.healthy_after),
            (Health::Healthy | Health::Unknown, false) => (false, self.unreachable_after),
        };
        self.against = if agrees {
            0
        } else {
            self.against.saturating_add(1)
        };
        if !agrees && self.against >= needed {
            self.health = if ok {
                Health::Healthy
            } else {
                Health::Unreachable
            };
            self.against = 0;
        }
        self.health
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_missed_probe_is_no_outage_and_one_answer_no_recovery() {
        let mut hysteresis = Hysteresis::new(3, 2);
        let mut seen = |oks: &[bool]| {
            oks.iter()
                .map(|ok| hysteresis.note(*ok))
                .collect::<Vec<_>>()
        };
        use Health::{Healthy, Unknown, Unreachable};
        assert_eq!(seen(&[false, true]), [Unknown, Healthy]);
        assert_eq!(seen(&[false, false, true]), [Healthy, Healthy, Healthy]);
        assert_eq!(
            seen(&[false, false, false]),
            [Healthy, Healthy, Unreachable]
        );
        assert_eq!(
            seen(&[true, false, true, true]),
            [Unreachable, Unreachable, Unreachable, Healthy]
        );
    }

    #[test]
    fn a_cluster_that_never_answers_becomes_unreachable() {
        let mut hysteresis = Hysteresis::new(2, 2);
        assert_eq!(hysteresis.note(false), Health::Unknown);
        assert_eq!(hysteresis.note(false), Health::Unreachable);
    }
}
