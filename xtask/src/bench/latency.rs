//! Mirror latency, by Kafka's own clients: `LatencyProbe.java`, run from source.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::Clusters;

/// Records per second.
pub(super) const RATE: u32 = 5000;
/// Not counted: the probe's JVM compiles its code, the mirror catches up with the topic.
const WARM_UP_SECONDS: u32 = 6;
const MEASURED_SECONDS: u32 = 15;
const PROBE: &str = include_str!("LatencyProbe.java");

/// Time from before `send` at the source to the record's arrival at a consumer of the destination.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct Latency {
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    sent: u64,
    received: u64,
}

pub(super) fn measure(clusters: &Clusters, topic: &str, partitions: i32) -> Result<Latency> {
    let folder = tempfile::tempdir().context("create a folder")?;
    let source = folder.path().join("LatencyProbe.java");
    fs::write(&source, PROBE).with_context(|| format!("write {}", source.display()))?;
    let output = Command::new(&clusters.install.java)
        .args([
            "-Xms512m",
            "-Xmx512m",
            "-XX:+UseSerialGC",
            "-cp",
            &clusters.install.class_path,
        ])
        .arg(format!("-Djava.io.tmpdir={}", folder.path().display()))
        .arg(&source)
        .args([
            clusters.source.bootstrap(),
            clusters.destination.bootstrap(),
            topic.to_owned(),
        ])
        .args(
            [
                partitions.unsigned_abs(),
                RATE,
                WARM_UP_SECONDS,
                MEASURED_SECONDS,
            ]
            .map(|number| number.to_string()),
        )
        .output()
        .context("run java (a JDK is needed: the probe is run from source)")?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    let result = stdout
        .lines()
        .rev()
        .find_map(|line| serde_json::from_str::<Latency>(line).ok());
    let Some(latency) = result.filter(|_| output.status.success()) else {
        bail!(
            "the latency probe failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    if latency.received != latency.sent {
        bail!(
            "the latency probe sent {} records and received {}",
            latency.sent,
            latency.received
        );
    }
    Ok(latency)
}
