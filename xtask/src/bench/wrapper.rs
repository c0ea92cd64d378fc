//! `cargo xtask bench wrapper`: the wrapper next to bare rdkafka while nothing happens.
//!
//! Processes send the same records with and without it in turns (`wrapper-cost`), to the same topic with the same properties. A fleet of
//! two clusters, so that the wrapper does all that it does in operation: ids, the replay buffer, a connected standby client.
//! The mirror is missing; what is acknowledged goes over the replay buffer's bound and is let go.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use standfast_servers::{KafkaCluster, Profile, Server, Terminal, obtain, workspace_program};

use super::report;

const TOPIC: &str = "cost";
/// Records that either may have unacknowledged.
const WINDOW: u32 = 10_000;

/// Arguments of `cargo xtask bench wrapper`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Records of 1 kB per round
    #[arg(long, default_value_t = 200_000)]
    records: u32,
    /// Rounds of each
    #[arg(long, default_value_t = 9)]
    rounds: u32,
    /// Records per second in the rounds at an application's pace
    #[arg(long, default_value_t = 20_000)]
    rate: u32,
    /// Write the result to FILE as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure the debug build
    #[arg(long)]
    dev: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let profile = if arguments.dev {
        Profile::Dev
    } else {
        Profile::Release
    };
    obtain(&[Server::Kafka], &Terminal::new())?;
    let program = workspace_program("wrapper-cost", profile)?;
    let start = |name: &str| {
        KafkaCluster::builder(name)
            .full_jit()
            .heap_mb(1024)
            .property("log.retention.bytes", "67108864")
            .start()
    };
    let (west, east) = (start("west")?, start("east")?);
    for cluster in [&west, &east] {
        cluster.create_topic(TOPIC, 4, &[])?;
    }
    let folder = tempfile::tempdir().context("create a folder")?;
    let entry = |cluster: &KafkaCluster| json!({"bootstrap": cluster.bootstrap(), "cluster_id": cluster.cluster_id()});
    let record = json!({
        "epoch": 1, "active": "west", "state": "active", "changed_at": "2026-01-01T00:00:00Z", "reason": "bench",
        "clusters": {"west": entry(&west), "east": entry(&east)}
    });
    let fleet = folder.path().join("cost");
    std::fs::create_dir_all(&fleet)?;
    std::fs::write(fleet.join("active.json"), record.to_string())?;
    let numbers = [arguments.records, WINDOW, arguments.rate].map(|number| number.to_string());
    let measure = |sender: &str| -> Result<Value> {
        let output = Command::new(&program)
            .args([sender, &west.bootstrap()])
            .arg(folder.path())
            .arg(TOPIC)
            .args(&numbers)
            .output()
            .context("run wrapper-cost")?;
        ensure!(
            output.status.success(),
            "wrapper-cost {sender}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).context("wrapper-cost's result")
    };
    let mut rounds = Vec::new();
    for _ in 0..arguments.rounds {
        rounds.push((measure("bare")?, measure("wrapper")?));
    }
    let mut result = summary(&rounds, "fast");
    result["paced"] = summary(&rounds, "paced");
    result["paced"]["rate"] = arguments.rate.into();
    result["records"] = arguments.records.into();
    result["rounds"] = arguments.rounds.into();
    if let Some(file) = &arguments.json {
        std::fs::write(file, serde_json::to_string_pretty(&result)? + "\n")
            .with_context(|| format!("write {}", file.display()))?;
    }
    println!(
        "per record of 1 kB, medians of {} rounds in turns",
        arguments.rounds
    );
    println!("{}", line("as fast as they go", &result));
    let pace = format!("{} records per second", arguments.rate);
    println!("{}", line(&pace, &result["paced"]));
    println!(
        "{}; {} build; load at the end {}",
        report::machine(),
        if arguments.dev { "debug" } else { "release" },
        report::load()
    );
    Ok(ExitCode::SUCCESS)
}

fn summary(rounds: &[(Value, Value)], pace: &str) -> Value {
    let number = |value: &Value, name: &str| value[pace][name].as_f64().unwrap_or(f64::NAN);
    let of = |take: &dyn Fn(&(Value, Value)) -> f64| median(rounds.iter().map(take).collect());
    // Pairs that follow one another: other work on the machine hits both.
    let ratio = of(&|(bare, wrapper)| number(wrapper, "us") / number(bare, "us"));
    json!({
        "bare_us": of(&|(bare, _)| number(bare, "us")),
        "wrapper_us": of(&|(_, wrapper)| number(wrapper, "us")),
        "bare_cpu_us": of(&|(bare, _)| number(bare, "cpu_us")),
        "wrapper_cpu_us": of(&|(_, wrapper)| number(wrapper, "cpu_us")),
        "throughput_loss_percent": (1.0 - 1.0 / ratio) * 100.0,
    })
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}

fn line(what: &str, result: &Value) -> String {
    let us = |name: &str| result[name].as_f64().unwrap_or(f64::NAN);
    format!(
        "{what}: rdkafka {:.2} us, wrapper {:.2} us; CPU {:.2} and {:.2} us ({:+.2}); throughput {:+.1} %",
        us("bare_us"),
        us("wrapper_us"),
        us("bare_cpu_us"),
        us("wrapper_cpu_us"),
        us("wrapper_cpu_us") - us("bare_cpu_us"),
        -us("throughput_loss_percent"),
    )
}
