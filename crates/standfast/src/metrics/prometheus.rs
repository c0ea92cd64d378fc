//! For the `prometheus-client` crate.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use super::{FLEET_GAUGES, Metric, MetricKind, MetricUnit, Watched};
use crate::fleet::Fleet;

/// The metrics of fleets for a [`prometheus_client`] registry (feature `prometheus`), with the label `fleet`.
///
/// They are read at each scrape and cost nothing in between. One collector takes all fleets of a process, so that each
/// metric is described once. It keeps no fleet alive; one that was dropped is left out.
///
/// ```no_run
/// # fn example(fleet: &standfast::Fleet) -> Result<(), std::fmt::Error> {
/// use standfast::PrometheusCollector;
/// use standfast::prometheus_client::{encoding::text::encode, registry::Registry};
///
/// let mut registry = Registry::default();
/// registry.register_collector(Box::new(PrometheusCollector::new([fleet])));
///
/// let mut text = String::new(); // the answer to GET /metrics
/// encode(&mut text, &registry)?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct PrometheusCollector {
    fleets: Vec<Watched>,
}

impl PrometheusCollector {
    /// A collector of these fleets.
    pub fn new<'f>(fleets: impl IntoIterator<Item = &'f Fleet>) -> Self {
        Self {
            fleets: fleets.into_iter().map(Watched::new).collect(),
        }
    }
}

impl Collector for PrometheusCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let fleets: Vec<Fleet> = self.fleets.iter().filter_map(Watched::fleet).collect();
        let numbers: Vec<(&str, Vec<Metric>)> = fleets
            .iter()
            .map(|fleet| (fleet.name().as_str(), fleet.snapshot().metrics().collect()))
            .collect();
        let Some((_, table)) = numbers.first() else {
            return Ok(());
        };
        for (index, metric) in table.iter().enumerate() {
            let kind = kind(metric.kind);
            let unit = unit(metric.unit);
            let help = format!("{}.", metric.help);
            let mut family = encoder.encode_descriptor(metric.name, &help, unit.as_ref(), kind)?;
            for (fleet, metrics) in &numbers {
                let Some(metric) = metrics.get(index) else {
                    continue;
                };
                let labels = [("fleet", *fleet)];
                let encoder = family.encode_family(&labels)?;
                match metric.kind {
                    MetricKind::Counter => ConstCounter::new(metric.value).encode(encoder)?,
                    MetricKind::Gauge => ConstGauge::new(signed(metric.value)).encode(encoder)?,
                }
            }
        }
        encode_gauges(&mut encoder, &fleets)?;
        encode_discovery(&mut encoder, &fleets)
    }
}

fn encode_gauges(encoder: &mut DescriptorEncoder<'_>, fleets: &[Fleet]) -> fmt::Result {
    for gauge in &FLEET_GAUGES {
        let unit = unit(gauge.unit);
        let help = format!("{}.", gauge.help);
        let mut family =
            encoder.encode_descriptor(gauge.name, &help, unit.as_ref(), MetricType::Gauge)?;
        for fleet in fleets {
            for reading in (gauge.read)(fleet) {
                let mut labels = vec![("fleet", fleet.name().to_string())];
                labels.extend(reading.labels);
                let encoder = family.encode_family(&labels)?;
                ConstGauge::new(reading.value).encode(encoder)?;
            }
        }
    }
    Ok(())
}

/// What the watch of the fleet record counts.
fn encode_discovery(encoder: &mut DescriptorEncoder<'_>, fleets: &[Fleet]) -> fmt::Result {
    let counters: Vec<_> = fleets
        .iter()
        .map(|fleet| (fleet.name().as_str(), fleet.discovery_stats().counters()))
        .collect();
    let Some((_, table)) = counters.first() else {
        return Ok(());
    };
    for (index, (name, help, _)) in table.iter().enumerate() {
        let name = name.trim_end_matches("_total");
        let help = format!("{help}.");
        let mut family = encoder.encode_descriptor(name, &help, None, MetricType::Counter)?;
        for (fleet, counters) in &counters {
            let Some((_, _, value)) = counters.get(index) else {
                continue;
            };
            let labels = [("fleet", *fleet)];
            let encoder = family.encode_family(&labels)?;
            ConstCounter::new(*value).encode(encoder)?;
        }
    }
    Ok(())
}

fn kind(kind: MetricKind) -> MetricType {
    match kind {
        MetricKind::Counter => MetricType::Counter,
        MetricKind::Gauge => MetricType::Gauge,
    }
}

fn unit(unit: MetricUnit) -> Option<Unit> {
    match unit {
        MetricUnit::Count => None,
        MetricUnit::Bytes => Some(Unit::Bytes),
        MetricUnit::Seconds => Some(Unit::Seconds),
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
