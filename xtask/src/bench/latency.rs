//! Mirror latency, by Kafka's own clients: `LatencyProbe.java`, run from source.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use standfast_servers::{KafkaCluster, KafkaInstall};

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
    /// From `send` to the broker's acknowledgement.
    pub(super) ack_p50_ms: f64,
    pub(super) ack_p99_ms: f64,
    sent: u64,
    received: u64,
}

/// What a probe does.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load<'a> {
    pub(super) from: &'a KafkaCluster,
    pub(super) to: &'a KafkaCluster,
    pub(super) topic: &'a str,
    pub(super) partitions: i32,
    pub(super) rate: u32,
    /// Seconds that are not counted, and that are.
    pub(super) seconds: (u32, u32),
}

/// Through the mirror.
pub(super) fn measure(clusters: &Clusters, topic: &str, partitions: i32) -> Result<Latency> {
    let load = Load {
        from: &clusters.source,
        to: &clusters.destination,
        topic,
        partitions,
        rate: RATE,
        seconds: (WARM_UP_SECONDS, MEASURED_SECONDS),
    };
    probe(&clusters.install, load)
}

/// Runs the probe; returns when it has ended.
pub(super) fn probe(install: &KafkaInstall, load: Load<'_>) -> Result<Latency> {
    let folder = tempfile::tempdir().context("create a folder")?;
    let source = folder.path().join("LatencyProbe.java");
    fs::write(&source, PROBE).with_context(|| format!("write {}", source.display()))?;
    let output = Command::new(&install.java)
        .args([
            "-Xms512m",
            "-Xmx512m",
            "-XX:+UseSerialGC",
            "-cp",
            &install.class_path,
        ])
        .arg(format!("-Djava.io.tmpdir={}", folder.path().display()))
        .arg(&source)
        .args([
            load.from.bootstrap(),
            load.to.bootstrap(),
            load.topic.to_owned(),
        ])
        .args(
            [
                load.partitions.unsigned_abs(),
                load.rate,
                load.seconds.0,
                load.seconds.1,
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
