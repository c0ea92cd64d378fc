//! Every number of `Stats` by both exporters. No cluster is needed: the numbers are the same without one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry::metrics::MeterProvider;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData, ResourceMetrics};
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider, Temporality};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use standfast::discovery::{ClusterEntry, DiscoveryOptions};
use standfast::{Fleet, MetricKind, PrometheusCollector, Record};

use crate::record;

const README: &str = include_str!("../../README.md");

/// A fleet whose two clusters do not answer, with one record that waits for them.
async fn fleet(folder: &std::path::Path, name: &str) -> (Fleet, standfast::FailoverProducer) {
    let nowhere = || ClusterEntry::new("127.0.0.1:1");
    record(folder, name, vec![("west", nowhere()), ("east", nowhere())]).await;
    let fleet = Fleet::builder(name)
        .discovery(DiscoveryOptions::file(folder))
        .build()
        .await
        .unwrap();
    let producer = fleet.producer().build().await.unwrap();
    drop(
        producer
            .try_send(Record::to("orders").payload("1"))
            .unwrap(),
    );
    (fleet, producer)
}

fn scrape(registry: &Registry) -> String {
    let mut text = String::new();
    encode(&mut text, registry).unwrap();
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_gets_every_number_of_every_fleet_once() {
    let folder = tempfile::tempdir().unwrap();
    let (payments, _waiting) = fleet(folder.path(), "payments").await;
    let (audit, _also_waiting) = fleet(folder.path(), "audit").await;
    let mut registry = Registry::default();
    registry.register_collector(Box::new(PrometheusCollector::new([&payments, &audit])));
    let text = scrape(&registry);

    for metric in payments.snapshot().metrics() {
        let name = match metric.name {
            "standfast_client_kept" => "standfast_client_kept_bytes",
            name => name,
        };
        let described = text
            .lines()
            .filter(|line| line.starts_with(&format!("# HELP {name} ")));
        assert_eq!(described.count(), 1, "{name} is described once: {text}");
        let suffix = match metric.kind {
            MetricKind::Counter => "_total",
            _ => "",
        };
        for fleet in ["payments", "audit"] {
            let sample = format!("{name}{suffix}{{fleet=\"{fleet}\"}} ");
            assert!(text.contains(&sample), "{sample}: {text}");
        }
        let stem = name.trim_start_matches("standfast_client_");
        assert!(
            stem == "kept_bytes" || format!("{:?}", payments.snapshot()).contains(stem),
            "{name} is called as its field"
        );
    }
    for line in [
        "# TYPE standfast_client_flips counter",
        "# TYPE standfast_client_records_unresolved gauge",
        "standfast_client_records_sent_total{fleet=\"payments\"} 1",
        "standfast_client_records_unresolved{fleet=\"audit\"} 1",
        "standfast_client_epoch{fleet=\"payments\"} 1",
        "standfast_client_cluster_active{fleet=\"payments\",cluster=\"west\"} 1",
        "standfast_client_cluster_active{fleet=\"payments\",cluster=\"east\"} 0",
        "standfast_client_discovery_live{fleet=\"payments\"} 1",
        "standfast_discovery_changes_total{fleet=\"payments\"} 1",
        "# UNIT standfast_client_credentials_expire_in_seconds seconds",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }

    // What the front page names is there.
    for word in README.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
        if word.starts_with("standfast_client_") {
            let described = format!("# TYPE {} ", word.trim_end_matches("_total"));
            assert!(text.contains(&described), "{word} is no metric");
        }
    }

    drop((audit, _also_waiting));
    crate::until("a fleet that was dropped is left out", || {
        let text = scrape(&registry);
        text.contains("{fleet=\"payments\"}") && !text.contains("fleet=\"audit\"")
    })
    .await;
}

/// Name → unit, and attributes and value of each point.
type Points = BTreeMap<String, (String, Vec<String>)>;

/// Keeps what was exported last.
#[derive(Debug, Clone, Default)]
struct Exported(Arc<Mutex<Points>>);

impl PushMetricExporter for Exported {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        let mut all = self.0.lock().unwrap();
        for metric in metrics.scope_metrics().flat_map(|scope| scope.metrics()) {
            let mut points = Vec::new();
            let mut point = |attributes: Vec<String>, value: String| {
                points.push(format!("{} {value}", attributes.join(",")));
            };
            macro_rules! points {
                ($data:expr) => {
                    match $data {
                        MetricData::Sum(sum) => sum
                            .data_points()
                            .for_each(|p| point(named(p.attributes()), format!("{:?}", p.value()))),
                        MetricData::Gauge(gauge) => gauge
                            .data_points()
                            .for_each(|p| point(named(p.attributes()), format!("{:?}", p.value()))),
                        other => panic!("{other:?}"),
                    }
                };
            }
            match metric.data() {
                AggregatedMetrics::U64(data) => points!(data),
                AggregatedMetrics::I64(data) => points!(data),
                AggregatedMetrics::F64(data) => points!(data),
            }
            all.insert(metric.name().to_owned(), (metric.unit().to_owned(), points));
        }
        Ok(())
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }

    fn temporality(&self) -> Temporality {
        Temporality::Cumulative
    }
}

fn named<'a>(attributes: impl Iterator<Item = &'a opentelemetry::KeyValue>) -> Vec<String> {
    let mut named: Vec<_> = attributes
        .map(|attribute| format!("{}={}", attribute.key, attribute.value))
        .collect();
    named.sort();
    named
}

#[tokio::test(flavor = "multi_thread")]
async fn opentelemetry_gets_every_number() {
    let folder = tempfile::tempdir().unwrap();
    let (payments, waiting) = fleet(folder.path(), "payments").await;
    let exported = Exported::default();
    let provider = SdkMeterProvider::builder()
        .with_reader(PeriodicReader::builder(exported.clone()).build())
        .build();
    payments.register_metrics(&provider.meter("test"));
    provider.force_flush().unwrap();

    let found = exported.0.lock().unwrap().clone();
    for metric in payments.snapshot().metrics() {
        let (_, points) = &found[metric.dotted_name];
        assert_eq!(points.len(), 1, "{}: {points:?}", metric.dotted_name);
        assert!(points[0].starts_with("fleet=payments "), "{points:?}");
    }
    let point = |name: &str| (found[name].0.as_str(), found[name].1.clone());
    let one = |text: &str| vec![text.to_owned()];
    assert_eq!(
        point("standfast.client.records_sent"),
        ("", one("fleet=payments 1"))
    );
    assert_eq!(
        point("standfast.client.kept"),
        ("By", one("fleet=payments 0"))
    );
    assert_eq!(
        point("standfast.discovery.changes"),
        ("", one("fleet=payments 1"))
    );
    let mut active = found["standfast.client.cluster_active"].1.clone();
    active.sort();
    assert_eq!(
        active,
        [
            "cluster=east,fleet=payments 0",
            "cluster=west,fleet=payments 1"
        ]
    );

    exported.0.lock().unwrap().clear();
    drop((payments, waiting));
    let deadline = std::time::Instant::now() + crate::SOON;
    loop {
        provider.force_flush().unwrap();
        let is_gone = exported
            .0
            .lock()
            .unwrap()
            .values()
            .all(|(_, points)| points.is_empty());
        if is_gone {
            break;
        }
        exported.0.lock().unwrap().clear();
        assert!(
            std::time::Instant::now() < deadline,
            "the meter keeps the fleet alive"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
