//! Follows the fleet record and the credentials, and says which cluster the program should use.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use standfast_discovery::{
    ClusterEntry, ClusterName, Discovery, Epoch, FleetName, FleetRecord, FleetState,
    FleetWatchHandle,
};
use standfast_secrets::{Credentials, SecretPath, Secrets, SecretsHandle};
use tokio_util::sync::CancellationToken;

use super::settings::Settings;
use crate::clusters;

/// The cluster to use, and all that is needed to use it.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) fleet: FleetName,
    pub(super) epoch: Epoch,
    pub(super) cluster: ClusterName,
    pub(super) fenced: bool,
    pub(super) entry: ClusterEntry,
    pub(super) credentials: Option<Arc<Credentials>>,
}

impl Target {
    /// Whether a program that was told of `other` needs to be told of this: a higher epoch alone is no reason.
    pub(super) fn is_reached_as(&self, other: &Self) -> bool {
        let same_login = match (&self.credentials, &other.credentials) {
            (None, None) => true,
            (Some(one), Some(two)) => one.is_same_login(two),
            _ => false,
        };
        self.cluster == other.cluster && self.entry == other.entry && same_login
    }

    /// SASL mechanism, if the cluster is reached by SASL.
    pub(super) fn mechanism(&self) -> Option<&str> {
        clusters::uses_sasl(self.entry.security_protocol)
            .then(|| clusters::mechanism(&self.entry, self.credentials.as_deref()))
    }
}

/// The watches on discovery and secrets.
#[derive(Debug)]
pub(super) struct Sources {
    fleet: FleetWatchHandle,
    secrets: SecretsHandle,
    /// What was last said to be wrong, so that it is said once.
    said: Option<String>,
}

impl Sources {
    /// Starts watching; to be called in a runtime.
    pub(super) fn start(settings: &Settings, shutdown: CancellationToken) -> anyhow::Result<Self> {
        let discovery = Discovery::new(settings.discovery.clone()).context("discovery")?;
        let secrets = Secrets::new(settings.secrets.clone()).context("secrets")?;
        let (watch, fleet) = discovery.watch(settings.fleet.clone());
        tokio::spawn(watch.run(shutdown.clone()));
        let (watch, secrets) = secrets.watch(Vec::new());
        tokio::spawn(watch.run(shutdown));
        Ok(Self {
            fleet,
            secrets,
            said: None,
        })
    }

    /// The first target.
    ///
    /// # Errors
    /// None within the time; says what is missing.
    pub(super) async fn first(&mut self, within: Duration) -> anyhow::Result<Target> {
        let look = async {
            loop {
                if let Some(Ok(target)) = self.look() {
                    return Ok(target);
                }
                self.changed().await?;
            }
        };
        match tokio::time::timeout(within, look).await {
            Ok(found) => found,
            Err(_) => Err(self.missing(within)),
        }
    }

    /// Waits for a change after which there is a target; it may be the same as before. Cancel-safe.
    pub(super) async fn next(&mut self) -> anyhow::Result<Target> {
        loop {
            self.changed().await?;
            match self.look() {
                Some(Ok(target)) => {
                    self.said = None;
                    return Ok(target);
                }
                Some(Err(error)) => self.tell(&error),
                None => {}
            }
        }
    }

    async fn changed(&mut self) -> anyhow::Result<()> {
        tokio::select! {
            changed = self.fleet.changed() => changed?,
            changed = self.secrets.changed() => changed?,
        }
        Ok(())
    }

    /// The target of the present record, or why there is none; `None` before the first record.
    fn look(&mut self) -> Option<anyhow::Result<Target>> {
        let record = self.fleet.borrow_and_update().record?;
        let of_all = record.clusters.values();
        let paths = of_all.filter_map(|entry| clusters::secret_path(entry).ok()?);
        // Of every cluster, ahead: a flip must not need the secrets' server.
        self.secrets.set_paths(paths.collect());
        Some(target(self.fleet.fleet(), &record, &self.secrets))
    }

    fn tell(&mut self, error: &anyhow::Error) {
        let error = format!("{error:#}");
        if self.said.as_ref() != Some(&error) {
            tracing::warn!(
                error,
                "the active cluster cannot be used yet; the program goes on as it is"
            );
            self.said = Some(error);
        }
    }

    fn missing(&self, waited: Duration) -> anyhow::Error {
        let (fleet, view) = (self.fleet.fleet(), self.fleet.borrow());
        let why = match &view.record {
            Some(record) => target(fleet, record, &self.secrets)
                .err()
                .map(|e| format!("{e:#}")),
            None => view.last_error,
        };
        let why = why.unwrap_or_else(|| {
            "discovery holds no record of it; create one with `standfast fleet init`, or is the name mistyped?".to_owned()
        });
        anyhow!("fleet {fleet} cannot be used after {waited:?}: {why}")
    }
}

fn target(
    fleet: &FleetName,
    record: &FleetRecord,
    secrets: &SecretsHandle,
) -> anyhow::Result<Target> {
    let Some(entry) = record.active_cluster() else {
        bail!("the fleet record does not list its active cluster");
    };
    let credentials = match clusters::secret_path(entry)? {
        None => None,
        Some(path) => Some(read(secrets, &path)?),
    };
    if clusters::uses_sasl(entry.security_protocol) {
        clusters::sasl_login(entry, credentials.as_deref())
            .with_context(|| format!("cluster {}", record.active))?;
    }
    Ok(Target {
        fleet: fleet.clone(),
        epoch: record.epoch,
        cluster: record.active.clone(),
        fenced: record.state == FleetState::Fenced,
        entry: entry.clone(),
        credentials,
    })
}

fn read(secrets: &SecretsHandle, path: &SecretPath) -> anyhow::Result<Arc<Credentials>> {
    if let Some(credentials) = secrets.get(path) {
        return Ok(credentials);
    }
    let status = secrets.status();
    let of_secret = status
        .secrets
        .get(path)
        .and_then(|secret| secret.last_error.clone());
    match of_secret.or(status.last_error) {
        Some(error) => Err(anyhow!(
            "no credentials {path:?} yet: {error}",
            path = path.as_str()
        )),
        None => Err(anyhow!("waiting for the credentials {:?}", path.as_str())),
    }
}
