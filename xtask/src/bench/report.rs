//! Printing and writing what was measured.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

/// One tool on one dataset. The names are those of the JSON file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Measurement {
    pub(super) tool: String,
    pub(super) dataset: String,
    pub(super) mb_per_s: f64,
    pub(super) cpu_s_per_gb: f64,
    /// Without start-up and warm-up; in the table only.
    #[serde(skip)]
    pub(super) copying_cpu_s_per_gb: f64,
    pub(super) rss_mb: f64,
    pub(super) latency_p50_ms: f64,
    pub(super) latency_p99_ms: f64,
}

impl fmt::Display for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            mb_per_s,
            cpu_s_per_gb,
            copying_cpu_s_per_gb,
            rss_mb,
            latency_p50_ms,
            latency_p99_ms,
            ..
        } = self;
        write!(
            f,
            "{mb_per_s:.0} MB/s, {cpu_s_per_gb:.2} CPU-s/GB (copying {copying_cpu_s_per_gb:.2}), {rss_mb:.0} MB resident, \
             latency p50 {latency_p50_ms:.1} ms, p99 {latency_p99_ms:.1} ms"
        )
    }
}

/// A Markdown table, to go into BENCHMARKS.md as it is.
pub(super) fn table(measurements: &[Measurement]) -> String {
    let mut text = format!(
        "| {:<12} | {:<22} | {:>7} | {:>9} | {:>8} | {:>11} | {:>14} | {:>14} |\n",
        "tool",
        "dataset",
        "MB/s",
        "CPU-s/GB",
        "copying",
        "peak RSS MB",
        "latency p50 ms",
        "latency p99 ms"
    );
    text.push_str("|---|---|--:|--:|--:|--:|--:|--:|\n");
    for m in measurements {
        text.push_str(&format!(
            "| {:<12} | {:<22} | {:>7.0} | {:>9.2} | {:>8.2} | {:>11.0} | {:>14.1} | {:>14.1} |\n",
            m.tool,
            m.dataset,
            m.mb_per_s,
            m.cpu_s_per_gb,
            m.copying_cpu_s_per_gb,
            m.rss_mb,
            m.latency_p50_ms,
            m.latency_p99_ms
        ));
    }
    text
}

pub(super) fn write_json(file: &Path, measurements: &[Measurement]) -> Result<()> {
    let rounded: Vec<Measurement> = measurements.iter().map(rounded).collect();
    let text = serde_json::to_string_pretty(&rounded).context("write JSON")?;
    fs::write(file, text + "\n").with_context(|| format!("write {}", file.display()))
}

/// Processor, cores, memory and kernel, in a line.
pub(super) fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_default();
        line.split_once(':')
            .map(|(_, value)| value.trim().to_owned())
            .unwrap_or_else(|| "unknown".to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let kib: u64 = field(&read("/proc/meminfo"), "MemTotal")
        .trim_end_matches(" kB")
        .parse()
        .unwrap_or(0);
    format!(
        "{}, {cores} cores, {:.0} GiB, Linux {}",
        field(&read("/proc/cpuinfo"), "model name"),
        kib as f64 / f64::from(1 << 20),
        read("/proc/sys/kernel/osrelease").trim()
    )
}

/// The load averages: other work on the machine is in every figure.
pub(super) fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

fn rounded(m: &Measurement) -> Measurement {
    let to = |value: f64| (value * 1000.0).round() / 1000.0;
    Measurement {
        mb_per_s: to(m.mb_per_s),
        cpu_s_per_gb: to(m.cpu_s_per_gb),
        rss_mb: to(m.rss_mb),
        latency_p50_ms: to(m.latency_p50_ms),
        latency_p99_ms: to(m.latency_p99_ms),
        ..m.clone()
    }
}
