//! Metrics of a link, read from the description at each scrape.

use std::fmt;

use prometheus_client::collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use crate::LinkHandle;
use crate::description::{LinkState, PartitionState};

/// Encodes a link's description as metrics.
pub(crate) struct Collector(LinkHandle);

impl Collector {
    pub(crate) fn new(handle: LinkHandle) -> Self {
        Self(handle)
    }
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Collector")
    }
}

struct Row {
    labels: [(&'static str, String); 3],
    value: f64,
}

fn family(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    rows: &[Row],
) -> fmt::Result {
    let kind = ConstGauge::new(0f64);
    let mut metric = encoder.encode_descriptor(name, help, unit, kind.metric_type())?;
    for row in rows {
        let encoder = metric.encode_family(&row.labels)?;
        ConstGauge::new(row.value).encode(encoder)?;
    }
    Ok(())
}

fn single(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: &Unit,
    row: Option<([(&'static str, String); 1], f64)>,
) -> fmt::Result {
    let kind = ConstGauge::new(0f64);
    let mut metric = encoder.encode_descriptor(name, help, Some(unit), kind.metric_type())?;
    match row {
        Some((labels, value)) => ConstGauge::new(value).encode(metric.encode_family(&labels)?),
        None => Ok(()),
    }
}

impl collector::Collector for Collector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let link = self.0.describe();
        let (mut lag, mut bytes, mut seconds, mut end, mut failed) =
            (vec![], vec![], vec![], vec![], vec![]);
        for mirror in &link.mirrors {
            for partition in &mirror.mirror_lags {
                let row = |value: f64| Row {
                    labels: [
                        ("link", link.link_name.clone()),
                        ("topic", mirror.mirror_topic_name.clone()),
                        ("partition", partition.partition.to_string()),
                    ],
                    value,
                };
                lag.extend(partition.lag.map(|v| row(v as f64)));
                bytes.extend(partition.lag_bytes.map(|v| row(v as f64)));
                seconds.extend(partition.lag_seconds.map(row));
                end.extend(partition.destination_log_end_offset.map(|v| row(v as f64)));
                failed.push(row(f64::from(u8::from(
                    partition.state == PartitionState::Failed,
                ))));
            }
        }
        family(
            &mut encoder,
            "standfast_link_lag_records",
            "Records on the source that the destination has not acknowledged.",
            None,
            &lag,
        )?;
        family(
            &mut encoder,
            "standfast_link_lag",
            "Estimated size of the lag.",
            Some(&Unit::Bytes),
            &bytes,
        )?;
        family(
            &mut encoder,
            "standfast_link_lag",
            "Time since the destination last held all that the source was known to hold.",
            Some(&Unit::Seconds),
            &seconds,
        )?;
        family(
            &mut encoder,
            "standfast_link_destination_log_end_offset",
            "Offset up to which the destination acknowledged the mirror.",
            None,
            &end,
        )?;
        family(
            &mut encoder,
            "standfast_link_partition_failed",
            "1 if the partition stopped for good and needs a person.",
            None,
            &failed,
        )?;
        let link_row = |value: f64| {
            let labels = [("link", link.link_name.clone())];
            (labels, value)
        };
        let limit = link.rate_limit.map(|limit| link_row(limit as f64));
        single(
            &mut encoder,
            "standfast_link_rate_limit",
            "Most bytes of record data per second that are read from the source; absent without a limit.",
            &Unit::Other("bytes_per_second".to_owned()),
            limit,
        )?;
        single(
            &mut encoder,
            "standfast_link_throttled",
            "Time that reading was held back by the rate limit, summed over all readers.",
            &Unit::Seconds,
            Some(link_row(link.throttled_seconds)),
        )?;
        let edits = link.mirrors.iter().map(|m| m.config_sync.reverted_edits);
        let edits = ConstCounter::new(edits.sum::<u64>());
        let mut metric = encoder.encode_descriptor(
            "standfast_link_config_edits_reverted",
            "Configs of mirror topics that were changed by hand on the destination and taken back.",
            None,
            edits.metric_type(),
        )?;
        edits.encode(metric.encode_family(&[("link", link.link_name.clone())])?)?;
        let wrong = link
            .mirrors
            .iter()
            .filter(|m| m.config_sync.error.is_some());
        let wrong = ConstGauge::new(i64::try_from(wrong.count()).unwrap_or(i64::MAX));
        let mut metric = encoder.encode_descriptor(
            "standfast_link_config_sync_errors",
            "Mirror topics whose configs could not be brought in line with the source's.",
            None,
            wrong.metric_type(),
        )?;
        wrong.encode(metric.encode_family(&[("link", link.link_name.clone())])?)?;
        if !link.members.is_empty() {
            let members: Vec<Row> = (link.members.iter())
                .map(|member| Row {
                    labels: [
                        ("link", link.link_name.clone()),
                        ("member", member.member.clone()),
                        ("self", member.is_self.to_string()),
                    ],
                    value: member.partitions as f64,
                })
                .collect();
            family(
                &mut encoder,
                "standfast_link_member_partitions",
                "Partitions that each agent of a shared link mirrors, as the last assignment says.",
                None,
                &members,
            )?;
        }
        let up = ConstGauge::new(i64::from(link.link_state == LinkState::Active));
        let mut metric = encoder.encode_descriptor(
            "standfast_link_active",
            "1 if both clusters are reached and the link runs.",
            None,
            up.metric_type(),
        )?;
        up.encode(metric.encode_family(&[("link", link.link_name)])?)
    }
}
