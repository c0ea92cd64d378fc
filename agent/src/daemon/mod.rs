//! The daemon: everything that runs behind `standfast agent`.

mod changes;
mod health;
mod link;
mod log_ends;
mod mirrors;
mod operations;
mod restore;
mod tasks;
mod transitions;
mod verification;

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use standfast_discovery::{
    ClusterEntry, ClusterName, Discovery, DiscoveryOptions, FleetView, FleetWatch,
    FleetWatchHandle, ViewSource,
};
use standfast_secrets::{
    ExpiryState, SecretPath, Secrets, SecretsHandle, SecretsStatus, SecretsWatch,
};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::api::{AgentStatus, ExpiringCredential, FleetAnswer, FleetStatus, RecordSource, Status};
use crate::clusters;
use crate::config::Config;
use crate::failover::DiscoveryCoordination;
use crate::http;

pub(crate) use link::{LinkControl, Phase};
pub(crate) use mirrors::{LinkSet, name_of};
pub(crate) use operations::Operations;
pub(crate) use restore::Restores;
pub(crate) use verification::Verifications;

use health::{Probe, ProbeHandle};
use link::{Circles, Colleague, Refused, Registry, RegistryParts};

/// Sub-folder of data_dir for the last known fleet record.
const RECORD_FOLDER: &str = "discovery";

/// Wired, listening, not yet running.
#[derive(Debug)]
pub(crate) struct Daemon {
    state: DaemonState,
    listener: TcpListener,
    shutdown: CancellationToken,
    grace: Duration,
    fleet: FleetWatch,
    secrets: SecretsWatch,
    probes: Vec<Probe>,
    links: Registry,
    circles: Circles,
    /// Held for as long as the daemon lives.
    _data_dir: File,
}

/// What the HTTP API reads and asks. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct DaemonState {
    pub(crate) name: String,
    pub(crate) started_at: Timestamp,
    pub(crate) fleet: FleetWatchHandle,
    pub(crate) links: LinkSet,
    pub(crate) operations: Operations,
    pub(crate) verifications: Verifications,
    pub(crate) restores: Restores,
    pub(crate) secrets: SecretsHandle,
}

impl Daemon {
    /// Wires everything up and listens. Connects to nothing: a cluster, discovery or Vault that is away must not keep
    /// the agent from starting.
    ///
    /// # Errors
    /// Whatever cannot be put right by waiting: unusable options, the port or the data folder taken by another.
    pub(crate) async fn build(config: Config, shutdown: CancellationToken) -> anyhow::Result<Self> {
        let data_dir = take_data_dir(&config.agent.data_dir)?;
        let listener = listen(&config).await?;
        let discovery =
            Discovery::new(with_cache(config.discovery.clone(), &config.agent.data_dir))
                .context("section [discovery]")?;
        let (fleet_watch, fleet) = discovery.watch(config.fleet.name.clone());
        let (secrets_watch, secrets) = Secrets::new(config.secrets.clone())
            .context("section [secrets]")?
            .watch(secret_paths(config.clusters.values())?);

        let (probes, probe_handles) = build_probes(&config, &secrets);
        let (refused, refused_links) = watch::channel(Refused::default());
        let parts = RegistryParts {
            data_dir: config.agent.data_dir.clone(),
            clusters: config.clusters.clone(),
            fleet: fleet.clone(),
            secrets: secrets.clone(),
            colleague: Colleague {
                agent: config.agent.name.clone(),
                discovery: discovery.clone(),
                fleet: config.fleet.name.clone(),
                lock_ttl: config.failover.lock_ttl,
                refused: refused_links,
            },
        };
        let colleague = parts.colleague.clone();
        let (links, handle) = Registry::new(&config, parts)?;
        let circles = Circles {
            colleague,
            links: handle.clone(),
            refused,
        };
        let link_set = LinkSet::new(handle, probe_handles);
        let coordination = DiscoveryCoordination {
            discovery,
            fleet: config.fleet.name,
            holder: format!("agent {}", config.agent.name),
            lock_ttl: config.failover.lock_ttl,
        };
        let restores = Restores::new(
            link_set.clone(),
            coordination.clone(),
            &config.agent.data_dir,
        );
        let operations = Operations::new(
            coordination,
            link_set.clone(),
            &config.failover,
            shutdown.clone(),
        );
        let verifications = Verifications::new(
            link_set.clone(),
            config.clusters,
            secrets.clone(),
            shutdown.clone(),
        );
        let state = DaemonState {
            secrets,
            verifications,
            restores,
            name: config.agent.name,
            started_at: Timestamp::now(),
            fleet,
            links: link_set,
            operations,
        };
        Ok(Self {
            state,
            listener,
            shutdown,
            grace: config.agent.shutdown_grace,
            fleet: fleet_watch,
            secrets: secrets_watch,
            probes,
            links,
            circles,
            _data_dir: data_dir,
        })
    }

    /// Where the API listens.
    pub(crate) fn address(&self) -> std::io::Result<std::net::SocketAddr> {
        self.listener.local_addr()
    }

    /// Runs until the `shutdown` given to [`build`](Self::build), then drains: no new requests, a running operation is
    /// finished, the links end.
    pub(crate) async fn serve(self) -> anyhow::Result<()> {
        let Self {
            state,
            listener,
            shutdown,
            grace,
            fleet,
            secrets,
            probes,
            links,
            circles,
            _data_dir,
        } = self;
        // The links and what they rest upon outlive the API: a failover that is under way still needs them.
        let end = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(fleet.run(end.clone()));
        tasks.spawn(secrets.run(end.clone()));
        for probe in probes {
            tasks.spawn(probe.run(end.clone()));
        }
        tasks.spawn(links.run(end.clone()));
        tasks.spawn(circles.run(end.clone()));
        let operations = state.operations.clone();
        let api = http::serve(listener, state, shutdown.clone());
        let mut api = tokio::spawn(api);
        tokio::select! {
            () = shutdown.cancelled() => {}
            result = &mut api => {
                end.cancel();
                return result.context("the HTTP API broke down")?.context("the HTTP API ended");
            }
        }
        tracing::info!(?grace, "draining");
        if tokio::time::timeout(grace, operations.idle())
            .await
            .is_err()
        {
            tracing::error!(
                "an operation is still running after the grace period and is cut off; run it again to finish"
            );
        }
        end.cancel();
        let drained =
            tokio::time::timeout(grace, async { while tasks.join_next().await.is_some() {} }).await;
        if drained.is_err() {
            tracing::warn!(
                left = tasks.len(),
                "parts of the agent did not end within the grace period"
            );
        }
        if tokio::time::timeout(Duration::from_secs(1), &mut api)
            .await
            .is_err()
        {
            api.abort();
        }
        tracing::info!("drained");
        Ok(())
    }
}

impl DaemonState {
    pub(crate) fn status(&self) -> Status {
        let view = self.fleet.borrow();
        let active = view.record.as_ref().map(|record| record.active.clone());
        Status {
            agent: AgentStatus {
                name: self.name.clone(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                started_at: self.started_at,
            },
            clusters: self
                .links
                .probes()
                .map(|probe| probe.status(active.as_ref() == Some(probe.name())))
                .collect(),
            links: self.links.link_statuses(),
            operation: self.operations.current(),
            expiring_credentials: expiring(&self.secrets.status()),
            fleet: FleetStatus {
                name: self.fleet.fleet().clone(),
                epoch: view.epoch(),
                active,
                state: view.record.as_ref().map(|record| record.state),
                source: record_source(&view),
                stale_since: stale_since(&view),
                last_error: view.last_error.clone(),
            },
        }
    }

    pub(crate) fn fleet_answer(&self) -> FleetAnswer {
        let view = self.fleet.borrow();
        FleetAnswer {
            fleet: self.fleet.fleet().clone(),
            source: record_source(&view),
            last_error: view.last_error.clone(),
            record: view.record.as_deref().cloned(),
        }
    }

    /// Ready: the record is known, and every link that may run does. Otherwise what is missing.
    pub(crate) fn not_ready(&self) -> Option<String> {
        if self.fleet.borrow().record.is_none() {
            return Some("no fleet record".to_owned());
        }
        self.links
            .links()
            .iter()
            .find_map(|link| match link.phase() {
                Phase::Failed { error } => Some(format!("link {}: {error}", link.section().name)),
                Phase::Held { reason } if !reason.ends_with("is the active cluster") => {
                    Some(format!("link {}: {reason}", link.section().name))
                }
                _ => None,
            })
    }
}

fn expiring(secrets: &SecretsStatus) -> Vec<ExpiringCredential> {
    let near = secrets
        .expiries()
        .filter(|(_, end)| end.state != ExpiryState::Far);
    near.map(|(path, end)| ExpiringCredential {
        secret: path.map(ToString::to_string),
        part: end.part.as_str().to_owned(),
        subject: end.subject.clone(),
        not_after: end.not_after,
        expired: end.state == ExpiryState::Expired,
    })
    .collect()
}

fn record_source(view: &FleetView) -> RecordSource {
    match view.source {
        ViewSource::Live => RecordSource::Live,
        ViewSource::Stale { .. } => RecordSource::Stale,
        ViewSource::Cached { .. } => RecordSource::Cached,
        _ => RecordSource::Never,
    }
}

fn stale_since(view: &FleetView) -> Option<Timestamp> {
    match view.source {
        ViewSource::Stale { since } | ViewSource::Cached { since } => Some(since),
        _ => None,
    }
}

fn build_probes(config: &Config, secrets: &SecretsHandle) -> (Vec<Probe>, Vec<ProbeHandle>) {
    let probe = |(name, entry): (&ClusterName, &ClusterEntry)| {
        Probe::new(
            name.clone(),
            entry.clone(),
            secrets.clone(),
            config.health.clone(),
        )
    };
    config.clusters.iter().map(probe).unzip()
}

/// The agent keeps the last record itself, so that it starts without Consul.
fn with_cache(options: DiscoveryOptions, data_dir: &Path) -> DiscoveryOptions {
    match options {
        DiscoveryOptions::Consul(mut consul) => {
            consul
                .cache_dir
                .get_or_insert_with(|| data_dir.join(RECORD_FOLDER));
            consul.start_from_cache = true;
            DiscoveryOptions::Consul(consul)
        }
        file => file,
    }
}

fn secret_paths<'a>(
    entries: impl Iterator<Item = &'a ClusterEntry>,
) -> anyhow::Result<Vec<SecretPath>> {
    let paths: Result<Vec<Option<SecretPath>>, _> = entries.map(clusters::secret_path).collect();
    Ok(paths?.into_iter().flatten().collect())
}

/// One agent per data folder: two would overwrite each other's record.
fn take_data_dir(path: &Path) -> anyhow::Result<File> {
    let shown = path.display();
    std::fs::create_dir_all(path)
        .with_context(|| format!("agent.data_dir {shown} cannot be created"))?;
    let lock = path.join("agent.lock");
    let file = File::create(&lock)
        .with_context(|| format!("agent.data_dir {shown} cannot be written to"))?;
    file.try_lock().with_context(|| {
        format!("agent.data_dir {shown} is used by another agent; stop it, or give this one its own folder")
    })?;
    Ok(file)
}

async fn listen(config: &Config) -> anyhow::Result<TcpListener> {
    let address = config.agent.listen;
    if !address.ip().is_loopback() {
        tracing::warn!(%address, "the API listens beyond loopback and has no authentication: whoever reaches it can fail over");
    }
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address} (agent.listen); is another agent running? choose another port or stop it")
    })
}
