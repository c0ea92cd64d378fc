//! The agent's own metrics, and the text of `/metrics`. Gauges are read from the live state at each scrape.

use std::collections::BTreeMap;

use jiff::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use standfast_discovery::FleetState;
use standfast_secrets::SecretsStatus;

use crate::api::{Health, RecordSource};
use crate::daemon::{DaemonState, LinkControl, Phase};

pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClusterLabels {
    cluster: String,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
struct SecretLabels {
    /// Empty for the token that Vault is read with.
    secret: String,
    part: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LinkLabels {
    link: String,
    source: String,
    destination: String,
}

/// How many operations of a kind ended how.
pub(crate) type OperationCounts = Family<OperationLabels, Counter>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OperationLabels {
    /// `failover` or `switchover`.
    pub(crate) operation: String,
    /// The report's outcome, or the error code.
    pub(crate) outcome: String,
}

/// Everything that this agent and its links have to tell.
pub(crate) fn encode(daemon: &DaemonState) -> Result<String, std::fmt::Error> {
    let mut merged = Families::default();
    let mut registry = Registry::default();
    register_agent(&mut registry, daemon);
    merged.add(&text_of(&registry)?);
    // Every link registers the same families, and a family may be described once only in one text.
    for handle in daemon.links.links().iter().filter_map(LinkControl::handle) {
        let mut registry = Registry::default();
        handle.metrics(&mut registry);
        merged.add(&text_of(&registry)?);
    }
    Ok(merged.into_text())
}

fn text_of(registry: &Registry) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry)?;
    Ok(text)
}

/// Families of several texts, those of the same name joined.
#[derive(Debug, Default)]
struct Families {
    /// Name → description lines and samples, in the order of first sight.
    families: Vec<(String, String, String)>,
}

impl Families {
    fn add(&mut self, text: &str) {
        let mut current = None;
        for line in text.lines().filter(|line| *line != "# EOF") {
            match line
                .strip_prefix("# HELP ")
                .and_then(|rest| rest.split(' ').next())
            {
                Some(name) => {
                    let known = self.families.iter().position(|(known, _, _)| known == name);
                    let is_new = known.is_none();
                    let index = known.unwrap_or(self.families.len());
                    if is_new {
                        self.families
                            .push((name.to_owned(), String::new(), String::new()));
                    }
                    current = Some((index, is_new));
                    self.push(current, line);
                }
                None => self.push(current, line),
            }
        }
    }

    fn push(&mut self, current: Option<(usize, bool)>, line: &str) {
        let Some((index, is_new)) = current else {
            return;
        };
        let Some((_, described, samples)) = self.families.get_mut(index) else {
            return;
        };
        let is_description = line.starts_with('#');
        if is_description && !is_new {
            return;
        }
        let part = if is_description { described } else { samples };
        part.push_str(line);
        part.push('\n');
    }

    fn into_text(self) -> String {
        let families = self
            .families
            .into_iter()
            .map(|(_, described, samples)| described + &samples);
        families.collect::<String>() + "# EOF\n"
    }
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

    registry.register(
        "standfast_operations",
        "Failovers and switchovers by outcome, dry runs and refusals included",
        daemon.operations.counts(),
    );
    for (name, help, value) in daemon.fleet.stats().counters() {
        let counter = Counter::<u64>::default();
        counter.inc_by(value);
        registry.register(name.trim_end_matches("_total"), help, counter);
    }

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

    let ends = Family::<SecretLabels, Gauge>::default();
    for (labels, seconds) in nearest_ends(&daemon.secrets.status(), Timestamp::now()) {
        ends.get_or_create(&labels).set(seconds);
    }
    registry.register_with_unit(
        "standfast_credentials_expire_in",
        "Time until a part of a secret ends, negative behind its end",
        Unit::Seconds,
        ends,
    );

    let running = Family::<LinkLabels, Gauge>::default();
    for link in daemon.links.links().iter() {
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

/// Of several certificates in one part of a secret the one that ends first.
fn nearest_ends(status: &SecretsStatus, now: Timestamp) -> BTreeMap<SecretLabels, i64> {
    let mut nearest = BTreeMap::new();
    for (path, end) in status.expiries() {
        let labels = SecretLabels {
            secret: path.map(ToString::to_string).unwrap_or_default(),
            part: end.part.as_str().to_owned(),
        };
        let left = end.seconds_left(now);
        nearest
            .entry(labels)
            .and_modify(|known: &mut i64| *known = left.min(*known))
            .or_insert(left);
    }
    nearest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_of_several_links_is_described_once() {
        let of = |link: &str| {
            format!("# HELP lag Lag.\n# TYPE lag gauge\nlag{{link=\"{link}\"}} 1\n# EOF\n")
        };
        let mut merged = Families::default();
        merged.add("# HELP up Up.\n# TYPE up gauge\nup 1\n# EOF\n");
        merged.add(&of("a"));
        merged.add(&of("b"));
        assert_eq!(
            merged.into_text(),
            "# HELP up Up.\n# TYPE up gauge\nup 1\n# HELP lag Lag.\n# TYPE lag gauge\n\
             lag{link=\"a\"} 1\nlag{link=\"b\"} 1\n# EOF\n"
        );
    }
}
