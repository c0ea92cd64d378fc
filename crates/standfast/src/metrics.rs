//! The wrapper's metrics: every name, unit and help text, whoever exports them.
//!
//! A new counter in `stats.rs` goes into the table here; it does not compile otherwise.

#[cfg(feature = "opentelemetry")]
mod opentelemetry;
#[cfg(feature = "prometheus")]
mod prometheus;

#[cfg(any(feature = "opentelemetry", feature = "prometheus"))]
use std::sync::{Arc, Weak};

#[cfg(any(feature = "opentelemetry", feature = "prometheus"))]
use jiff::Timestamp;
#[cfg(any(feature = "opentelemetry", feature = "prometheus"))]
use standfast_discovery::ViewSource;

#[cfg(feature = "prometheus")]
pub use self::prometheus::PrometheusCollector;
#[cfg(any(feature = "opentelemetry", feature = "prometheus"))]
use crate::fleet::{Fleet, FleetShared};
use crate::stats::Stats;

/// One number of [`Stats`], as exporters want it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metric {
    /// Name as in Prometheus, without unit and `_total`: `standfast_client_records_sent`.
    pub name: &'static str,
    /// Name as in OpenTelemetry: `standfast.client.records_sent`.
    pub dotted_name: &'static str,
    /// What is counted or measured; a sentence without its full stop.
    pub help: &'static str,
    /// Whether it may fall.
    pub kind: MetricKind,
    /// In what it is measured.
    pub unit: MetricUnit,
    /// The value.
    pub value: u64,
}

/// Whether a metric may fall.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MetricKind {
    /// It only grows, from 0 at the start of the process.
    Counter,
    /// A state of now.
    Gauge,
}

/// In what a metric is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MetricUnit {
    /// In nothing: a number of something.
    Count,
    /// In bytes.
    Bytes,
    /// In seconds.
    Seconds,
}

macro_rules! table {
    ($($field:ident $kind:ident $unit:ident $stem:literal $help:literal;)+) => {
        impl Stats {
            /// Every number with its name, unit and help text, for an exporter that the crate has no feature for.
            ///
            /// ```
            /// let stats = standfast::Stats::default();
            /// for metric in stats.metrics() {
            ///     println!("{} = {}: {}", metric.name, metric.value, metric.help);
            /// }
            /// assert!(stats.metrics().any(|metric| metric.name == "standfast_client_flips"));
            /// ```
            pub fn metrics(&self) -> impl Iterator<Item = Metric> + use<> {
                // Without `..`: a field that is missing in the table does not compile.
                let Self { $($field,)+ credentials_expire_in_seconds: _ } = *self;
                [$(Metric {
                    name: concat!("standfast_client_", $stem),
                    dotted_name: concat!("standfast.client.", $stem),
                    help: $help,
                    kind: MetricKind::$kind,
                    unit: MetricUnit::$unit,
                    value: $field,
                }),+].into_iter()
            }
        }
    };
}

table! {
    flips Counter Count "flips" "Times that discovery named another active cluster";
    records_sent Counter Count "records_sent" "Records given to producers";
    records_acknowledged Counter Count "records_acknowledged" "Records acknowledged by the active cluster";
    records_refused Counter Count "records_refused" "Records refused for good";
    records_resent Counter Count "records_resent" "Records handed to librdkafka again after a flip or a rebuilt client";
    records_replayed Counter Count "records_replayed" "Records sent again that the old cluster had acknowledged and the new one did not hold";
    replays_refused Counter Count "replays_refused" "Records that the new cluster refused although the old one had acknowledged them";
    records_kept Gauge Count "records_kept" "Acknowledged records that no standby is known to hold yet";
    bytes_kept Gauge Bytes "kept" "Size of the acknowledged records that no standby is known to hold yet";
    records_unprotected Counter Count "records_unprotected" "Acknowledged records let go before a standby was known to hold them";
    late_acknowledgements Counter Count "late_acknowledgements" "Acknowledgements from a cluster that was no longer the active one";
    records_unresolved Gauge Count "records_unresolved" "Records that wait for an acknowledgement";
    transactions_committed Counter Count "transactions_committed" "Transactions committed";
    transactions_aborted Counter Count "transactions_aborted" "Transactions aborted that had something in them";
    transaction_records Counter Count "transaction_records" "Records handed over in transactions, also in those aborted later";
    records_consumed Counter Count "records_consumed" "Records handed to the application";
    filler_hidden Counter Count "filler_hidden" "Filler records of the link that were not shown to the application";
    records_repeated Counter Count "records_repeated" "Records that came again after a failover and were left out";
    positions_handed_over Counter Count "positions_handed_over" "Positions told to the group because another member reads on after a failover";
    records_discarded Counter Count "records_discarded" "Records read ahead and thrown away because their partition had moved";
    acks_ignored Counter Count "acks_ignored" "Acks that did not count because the record or its partition has gone";
    commits Counter Count "commits" "Offset commits answered without error";
    commits_failed Counter Count "commits_failed" "Offset commits that failed; the next one covers them";
    clients_rebuilt Counter Count "clients_rebuilt" "Clients built anew because of a fatal error";
    warm_starts Counter Count "warm_starts" "Flips that found a connected client of the new cluster, per producer";
    standbys_ready Gauge Count "standbys_ready" "Connected clients of standbys, with the credentials that a flip would use";
    rehearsals_passed Counter Count "rehearsals_passed" "Standbys that a rehearsal found in order";
    rehearsals_failed Counter Count "rehearsals_failed" "Standbys that a rehearsal found unusable";
    leases_lost Counter Count "leases_lost" "Times that producers began to hold because discovery was silent for longer than the lease";
    wrong_cluster Counter Count "wrong_cluster" "Clients refused because their brokers belong to another cluster";
    clients_retiring Gauge Count "clients_retiring" "Old clients that are being taken down, in the whole process";
    clients_abandoned Counter Count "clients_abandoned" "Old clients that could not be taken down, in the whole process";
}

/// A state of the fleet that is no number of [`Stats`]: read when it is asked for, one value per set of labels.
#[cfg(any(feature = "opentelemetry", feature = "prometheus"))]
struct FleetGauge {
    name: &'static str,
    dotted_name: &'static str,
    help: &'static str,
    unit: MetricUnit,
    read: fn(&Fleet) -> Vec<Reading>,
}

#[cfg(any(feature = "opentelemetry", feature = "prometheus"))]
struct Reading {
    /// Beyond `fleet`.
    labels: Vec<(&'static str, String)>,
    value: i64,
}

#[cfg(any(feature = "opentelemetry", feature = "prometheus"))]
const FLEET_GAUGES: [FleetGauge; 4] = [
    FleetGauge {
        name: "standfast_client_epoch",
        dotted_name: "standfast.client.epoch",
        help: "Epoch of the fleet record in use",
        unit: MetricUnit::Count,
        read: epoch,
    },
    FleetGauge {
        name: "standfast_client_cluster_active",
        dotted_name: "standfast.client.cluster_active",
        help: "1 for the cluster that the fleet record calls active, 0 for the others",
        unit: MetricUnit::Count,
        read: cluster_active,
    },
    FleetGauge {
        name: "standfast_client_discovery_live",
        dotted_name: "standfast.client.discovery_live",
        help: "1 while discovery answers, 0 while the last known record is used",
        unit: MetricUnit::Count,
        read: discovery_live,
    },
    FleetGauge {
        name: "standfast_client_credentials_expire_in",
        dotted_name: "standfast.client.credentials_expire_in",
        help: "Time until a part of a cluster's credentials ends, negative behind its end",
        unit: MetricUnit::Seconds,
        read: credentials_expire_in,
    },
];

#[cfg(any(feature = "opentelemetry", feature = "prometheus"))]
fn single(value: i64) -> Vec<Reading> {
    let labels = Vec::new();
    vec![Reading { labels, value }]
}

#[cfg(any(feature = "opentelemetry", feature = "prometheus"))]
fn epoch(fleet: &Fleet) -> Vec<Reading> {
    let record = fleet.view().record;
    let epoch = record.and_then(|record| i64::try_from(record.epoch.0).ok());
    epoch.map(single).unwrap_or_default()
}

#[cfg(any(feature = "opentelemetry", feature = "prometheus"))]
fn cluster_active(fleet: &Fleet) -> Vec<Reading> {
    let Some(record) = fleet.view().record else {
        return Vec::new();
    };
    let clusters = record.clusters.keys();
    clusters
        .map(|cluster| Reading {
            labels: vec![("cluster", cluster.to_string())],
            value: i64::from(*cluster == record.active),
        })
        .collect()
}

#[cfg(any(feature = "opentelemetry", feature = "prometheus"))]
fn discovery_live(fleet: &Fleet) -> Vec<Reading> {
    let is_live = matches!(fleet.view().source, ViewSource::Live);
    single(i64::from(is_live))
}

/// The nearest end of each part.
#[cfg(any(feature = "opentelemetry", feature = "prometheus"))]
fn credentials_expire_in(fleet: &Fleet) -> Vec<Reading> {
    let now = Timestamp::now();
    let mut nearest = std::collections::BTreeMap::new();
    for end in fleet.credential_expiries() {
        let cluster = end.cluster.map(|cluster| cluster.to_string());
        let left = end.expiry.seconds_left(now);
        nearest
            .entry((cluster.unwrap_or_default(), end.expiry.part))
            .and_modify(|known: &mut i64| *known = left.min(*known))
            .or_insert(left);
    }
    let readings = nearest.into_iter();
    readings
        .map(|((cluster, part), value)| Reading {
            labels: vec![("cluster", cluster), ("part", part.as_str().to_owned())],
            value,
        })
        .collect()
}

/// A fleet that an exporter does not keep alive.
#[cfg(any(feature = "opentelemetry", feature = "prometheus"))]
#[derive(Debug, Clone)]
struct Watched(Weak<FleetShared>);

#[cfg(any(feature = "opentelemetry", feature = "prometheus"))]
impl Watched {
    fn new(fleet: &Fleet) -> Self {
        Self(Arc::downgrade(fleet.shared()))
    }

    fn fleet(&self) -> Option<Fleet> {
        self.0.upgrade().map(Fleet::from_shared)
    }
}
