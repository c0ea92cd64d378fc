//! The agent's own metrics, and the text of `/metrics`. Gauges are read from the live state at each scrape.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use standfast_discovery::FleetState;

use crate::api::{Health, RecordSource};
use crate::daemon::{DaemonState, Phase};

pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClusterLabels {
    cluster: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LinkLabels {
    link: String,
    source: String,
    destination: String,
}

/// Everything that this agent and its links have to tell.
pub(crate) fn encode(daemon: &DaemonState) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::default();
    register_agent(&mut registry, daemon);
    for link in daemon.links.links() {
        if let Some(handle) = link.handle() {
            handle.metrics(&mut registry);
        }
    }
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

fn register_agent(registry: &mut Registry, daemon: &DaemonState) {
    let status = daemon.status();
    registry.register(
        "standfast_agent",
        "Name and version of this agent",
        Info::new([
            ("name", status.agent.name),
            ("version", status.agent.version),
        ]),
    );
    let number = |registry: &mut Registry, name: &str, help: &str, value: i64| {
        let gauge: Gauge = Gauge::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    };
    let epoch = status
        .fleet
        .epoch
        .and_then(|epoch| i64::try_from(epoch.get()).ok())
        .unwrap_or(-1);
    number(
        registry,
        "standfast_fleet_epoch",
        "Epoch of the fleet record in use, -1 without a record",
        epoch,
    );
    let live = i64::from(status.fleet.source == RecordSource::Live);
    number(
        registry,
        "standfast_fleet_record_live",
        "1 while discovery answers, 0 while the last known record is used",
        live,
    );
    let fenced = i64::from(status.fleet.state == Some(FleetState::Fenced));
    number(
        registry,
        "standfast_fleet_fenced",
        "1 while producers are told to hold",
        fenced,
    );
    let busy = i64::from(status.operation.is_some());
    number(
        registry,
        "standfast_operation_running",
        "1 while a failover or switchover is running at this agent",
        busy,
    );

    let healthy = Family::<ClusterLabels, Gauge>::default();
    let active = Family::<ClusterLabels, Gauge>::default();
    for cluster in &status.clusters {
        let labels = ClusterLabels {
            cluster: cluster.name.to_string(),
        };
        healthy
            .get_or_create(&labels)
            .set(i64::from(cluster.status == Health::Healthy));
        active.get_or_create(&labels).set(i64::from(cluster.active));
    }
    registry.register(
        "standfast_cluster_healthy",
        "1 if the cluster answers the health probe",
        healthy,
    );
    registry.register(
        "standfast_cluster_active",
        "1 if the fleet record calls the cluster active",
        active,
    );

    let running = Family::<LinkLabels, Gauge>::default();
    for link in daemon.links.links() {
        let section = link.section();
        let labels = LinkLabels {
            link: section.name.clone(),
            source: section.source.to_string(),
            destination: section.destination.to_string(),
        };
        running
            .get_or_create(&labels)
            .set(i64::from(matches!(link.phase(), Phase::Running { .. })));
    }
    registry.register(
        "standfast_link_running",
        "1 while the agent runs the link, 0 while it holds or restarts it",
        running,
    );
}
