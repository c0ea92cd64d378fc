//! For the `opentelemetry` API; the SDK and its exporter are the application's.

use opentelemetry::KeyValue;
use opentelemetry::metrics::Meter;

use super::{FLEET_GAUGES, Metric, MetricKind, MetricUnit, Watched};
use crate::fleet::Fleet;
use crate::stats::Stats;

impl Fleet {
    /// Registers the fleet's metrics as observable instruments of `meter` (feature `opentelemetry`), with the attribute
    /// `fleet`. They are read at each collection and cost nothing in between, and they do not keep the fleet alive. The
    /// instruments stay with the meter's provider: register a fleet once.
    ///
    /// Names are those of Prometheus with points, `standfast.client.records_sent`; an exporter to Prometheus makes
    /// `standfast_client_records_sent_total` of it again.
    ///
    /// ```no_run
    /// # fn example(fleet: &standfast::Fleet) {
    /// use standfast::opentelemetry::global;
    ///
    /// fleet.register_metrics(&global::meter("payments-service"));
    /// # }
    /// ```
    pub fn register_metrics(&self, meter: &Meter) {
        for (index, metric) in Stats::default().metrics().enumerate() {
            let fleet = Watched::new(self);
            let read = move || {
                let fleet = fleet.fleet()?;
                let value = fleet.snapshot().metrics().nth(index)?.value;
                Some((value, [KeyValue::new("fleet", fleet.name().to_string())]))
            };
            register_number(meter, &metric, read);
        }
        for gauge in FLEET_GAUGES {
            let fleet = Watched::new(self);
            let _ = meter
                .i64_observable_gauge(gauge.dotted_name)
                .with_description(gauge.help)
                .with_unit(unit(gauge.unit))
                .with_callback(move |observer| {
                    let Some(fleet) = fleet.fleet() else { return };
                    for reading in (gauge.read)(&fleet) {
                        let labels = reading.labels.into_iter();
                        let mut attributes: Vec<_> = labels
                            .map(|(name, value)| KeyValue::new(name, value))
                            .collect();
                        attributes.push(KeyValue::new("fleet", fleet.name().to_string()));
                        observer.observe(reading.value, &attributes);
                    }
                })
                .build();
        }
        self.register_discovery(meter);
    }

    /// What the watch of the fleet record counts.
    fn register_discovery(&self, meter: &Meter) {
        for (index, (name, help, _)) in self.discovery_stats().counters().into_iter().enumerate() {
            let fleet = Watched::new(self);
            let dotted = name.trim_end_matches("_total").replacen(
                "standfast_discovery_",
                "standfast.discovery.",
                1,
            );
            let _ = meter
                .u64_observable_counter(dotted)
                .with_description(help)
                .with_callback(move |observer| {
                    let Some(fleet) = fleet.fleet() else { return };
                    if let Some((_, _, value)) = fleet.discovery_stats().counters().get(index) {
                        let labels = [KeyValue::new("fleet", fleet.name().to_string())];
                        observer.observe(*value, &labels);
                    }
                })
                .build();
        }
    }
}

fn register_number(
    meter: &Meter,
    metric: &Metric,
    read: impl Fn() -> Option<(u64, [KeyValue; 1])> + Send + Sync + 'static,
) {
    match metric.kind {
        MetricKind::Counter => {
            let _ = meter
                .u64_observable_counter(metric.dotted_name)
                .with_description(metric.help)
                .with_unit(unit(metric.unit))
                .with_callback(move |observer| {
                    if let Some((value, labels)) = read() {
                        observer.observe(value, &labels);
                    }
                })
                .build();
        }
        MetricKind::Gauge => {
            let _ = meter
                .u64_observable_gauge(metric.dotted_name)
                .with_description(metric.help)
                .with_unit(unit(metric.unit))
                .with_callback(move |observer| {
                    if let Some((value, labels)) = read() {
                        observer.observe(value, &labels);
                    }
                })
                .build();
        }
    }
}

/// In UCUM, as OpenTelemetry asks for.
fn unit(unit: MetricUnit) -> &'static str {
    match unit {
        MetricUnit::Count => "",
        MetricUnit::Bytes => "By",
        MetricUnit::Seconds => "s",
    }
}
