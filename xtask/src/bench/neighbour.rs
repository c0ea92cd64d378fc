//! What a catch-up costs the destination's own clients: a producer and a consumer there, at a steady rate, while the link copies a large backlog.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::Clusters;
use super::contender::Contender;
use super::dataset::Dataset;
use super::latency::{self, Latency, Load};
use super::standfast::Standfast;

/// Records of 1 kB; more than is copied while the client is watched.
const BACKLOG_RECORDS: u64 = 4_000_000;
/// The client's load.
const RATE: u32 = 1_000;
/// Seconds that the client runs before it is watched, and is watched.
const SECONDS: (u32, u32) = (12, 8);
/// The link starts so long before the client is watched, that it copies at full speed then.
const LINK_STARTS: Duration = Duration::from_secs(10);
const TOPIC: &str = "own";

/// What the client is watched beside.
const SETTINGS: [(&str, Option<&str>); 5] = [
    ("no link (warm-up)", None),
    ("no link", None),
    ("no limit", Some("")),
    ("`rate_limit = \"100MB\"`", Some("rate_limit = \"100MB\"")),
    ("`rate_limit = \"25MB\"`", Some("rate_limit = \"25MB\"")),
];

pub(super) fn run(clusters: &Clusters, step: &dyn Fn(String)) -> Result<String> {
    let backlog = Dataset::backlog(BACKLOG_RECORDS);
    step(format!("{backlog}: loading {} records", backlog.records));
    backlog.load(&clusters.source)?;
    clusters.destination.create_topic(TOPIC, 4, &[])?;
    let mut text = String::from(
        "| beside it | copied MB/s | produce p50 ms | produce p99 ms | produce to consume p50 ms | p99 ms |\n|---|--:|--:|--:|--:|--:|\n",
    );
    for (name, link) in SETTINGS {
        step(format!("{name}: {RATE} records/s on the destination"));
        let (latency, copied) = watch(clusters, &backlog, link)?;
        let row = format!(
            "| {name} | {:.0} | {:.1} | {:.1} | {:.1} | {:.1} |\n",
            copied, latency.ack_p50_ms, latency.ack_p99_ms, latency.p50_ms, latency.p99_ms
        );
        step(row.trim_end().to_owned());
        text.push_str(&row);
    }
    Ok(text)
}

/// The client's latency, and what the link copied meanwhile.
fn watch(clusters: &Clusters, backlog: &Dataset, link: Option<&str>) -> Result<(Latency, f64)> {
    let load = Load {
        from: &clusters.destination,
        to: &clusters.destination,
        topic: TOPIC,
        partitions: 4,
        rate: RATE,
        seconds: SECONDS,
    };
    let topic = backlog.topic();
    let copied = || -> i64 {
        let ends = clusters.destination.log_end_offsets(&topic);
        ends.map_or(0, |ends| ends.iter().sum())
    };
    thread::scope(|scope| {
        let probe = scope.spawn(|| latency::probe(&clusters.install, load));
        thread::sleep(LINK_STARTS);
        let mut running = None;
        if let Some(settings) = link {
            let mut standfast = Standfast::with(clusters, settings)?;
            standfast.mirror(std::slice::from_ref(&topic))?;
            running = Some(standfast);
        }
        thread::sleep(Duration::from_secs(u64::from(SECONDS.0)) - LINK_STARTS);
        let before = copied();
        if link.is_some() && before == 0 {
            bail!("the link had copied nothing when the client was to be watched");
        }
        thread::sleep(Duration::from_secs(u64::from(SECONDS.1)));
        let after = copied();
        let latency = probe.join().ok().context("the probe's thread")??;
        if after == i64::try_from(backlog.records)? {
            bail!("the backlog was copied before the client had been watched");
        }
        if running.take().is_some() {
            clusters.destination.delete_topic(&topic)?;
        }
        Ok((
            latency,
            (after - before) as f64 / 1e3 / f64::from(SECONDS.1),
        ))
    })
}
