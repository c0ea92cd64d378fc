//! `cargo xtask bench switch`: from the flip of the key to work on the new cluster.
//!
//! Per run: a mirror from west to east by a real agent, discovery in a real Consul, and an application on the wrapper
//! (`switch-probe`) with 16 producers and a consumer. Its producers fill up to 10,000 records in flight, west is lost (or not, for
//! the planned switchover), and `standfast failover` or `switchover` flips the key. The clock begins with the time that the
//! agent puts into the record right before it writes it, and ends, for every producer, with its first acknowledgement by east, and
//! for the consumer with the first record that it reads there. Then everything acknowledged must have been handed out once.
//!
//! West runs in a network namespace of its own, so that it can be cut off as by a dead network: packets vanish, nothing is
//! refused. Without the right to make one, that scenario is left out and said so.

mod site;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::report;
use site::Site;

/// Topic partitions; the keys are spread over all of them.
const PARTITIONS: i32 = 16;
/// Producers in the application.
const PRODUCERS: usize = 16;
/// Unacknowledged records at the flip, over all producers.
const IN_FLIGHT: usize = 10_000;
/// How long the producers fill before west is lost.
const FILL: Duration = Duration::from_millis(200);

/// Arguments of `cargo xtask bench switch`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Runs of each scenario
    #[arg(long, default_value_t = 5)]
    runs: u32,
    /// Write the results to FILE as a JSON array
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Only this scenario
    #[arg(long, value_enum)]
    scenario: Option<Scenario>,
    /// Measure the debug build
    #[arg(long)]
    dev: bool,
}

/// What happens to the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Scenario {
    /// Nothing: `standfast switchover`
    PlannedSwitchover,
    /// SIGKILL
    SourceKilled,
    /// SIGSTOP
    SourceFrozen,
    /// Its packets are dropped
    SourceBlackHoled,
}

impl Scenario {
    const ALL: [Self; 4] = [
        Self::PlannedSwitchover,
        Self::SourceKilled,
        Self::SourceFrozen,
        Self::SourceBlackHoled,
    ];
}

/// What the application prints at the end of a run.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Run {
    producer_ms: Vec<f64>,
    consumer_ms: Option<f64>,
    lost: u64,
    duplicated: u64,
    in_flight: u64,
    acknowledged: u64,
    resent: u64,
    replayed: u64,
    repeated: u64,
    warm_starts: u64,
}

/// One scenario over all runs. The names are those of the JSON file.
#[derive(Debug, Serialize)]
struct Outcome {
    scenario: Scenario,
    runs: usize,
    producer_ms: Spread,
    consumer_ms: Spread,
    lost: u64,
    duplicated: u64,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Spread {
    p50: f64,
    p99: f64,
    max: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let rank = (share * values.len() as f64).ceil() as usize;
            let value = values.get(rank.saturating_sub(1)).copied();
            (value.unwrap_or(f64::NAN) * 10.0).round() / 10.0
        };
        Self {
            p50: at(0.5),
            p99: at(0.99),
            max: at(1.0),
        }
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let began = Instant::now();
    let step = |text: String| eprintln!("{:>4} s  {text}", began.elapsed().as_secs());
    let mut site = Site::start(arguments.dev, &step)?;
    let wanted = Scenario::ALL
        .into_iter()
        .filter(|scenario| arguments.scenario.is_none_or(|only| only == *scenario));
    let mut outcomes = Vec::new();
    for scenario in wanted {
        if scenario == Scenario::SourceBlackHoled && !site.can_drop_packets() {
            step("source_black_holed is left out: no network namespace can be made here (root needed)".to_owned());
            continue;
        }
        let mut runs = Vec::new();
        for number in 1..=arguments.runs {
            let run = site
                .measure(scenario)
                .with_context(|| format!("{scenario:?}, run {number}"))?;
            step(format!(
                "{scenario:?} {number}/{}: {}",
                arguments.runs,
                describe(&run)
            ));
            runs.push(run);
        }
        outcomes.push(outcome(scenario, &runs));
    }
    if let Some(file) = &arguments.json {
        let text = serde_json::to_string_pretty(&outcomes).context("write JSON")?;
        std::fs::write(file, text + "\n").with_context(|| format!("write {}", file.display()))?;
    }
    print!("{}", table(&outcomes));
    println!(
        "{}; {} build; {} s in all; load at the end {}",
        report::machine(),
        if arguments.dev { "debug" } else { "release" },
        began.elapsed().as_secs(),
        report::load()
    );
    let clean = outcomes.iter().all(|o| o.lost == 0 && o.duplicated == 0);
    Ok(if clean {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn outcome(scenario: Scenario, runs: &[Run]) -> Outcome {
    Outcome {
        scenario,
        runs: runs.len(),
        producer_ms: Spread::of(
            runs.iter()
                .flat_map(|run| run.producer_ms.clone())
                .collect(),
        ),
        consumer_ms: Spread::of(runs.iter().filter_map(|run| run.consumer_ms).collect()),
        lost: runs.iter().map(|run| run.lost).sum(),
        duplicated: runs.iter().map(|run| run.duplicated).sum(),
    }
}

fn describe(run: &Run) -> String {
    let producers = Spread::of(run.producer_ms.clone());
    format!(
        "{} in flight; producers p50 {} max {} ms, consumer {:.1} ms; {} acknowledged, {} resent ({} of them acknowledged before), \
         {} left out, {} lost, {} duplicated; {} clients were connected",
        run.in_flight,
        producers.p50,
        producers.max,
        run.consumer_ms.unwrap_or(f64::NAN),
        run.acknowledged,
        run.resent,
        run.replayed,
        run.repeated,
        run.lost,
        run.duplicated,
        run.warm_starts
    )
}

fn table(outcomes: &[Outcome]) -> String {
    let mut text = "| scenario | runs | producer ms p50 / p99 / max | consumer ms p50 / p99 / max | lost | duplicated |\n\
                    |---|--:|--:|--:|--:|--:|\n"
        .to_owned();
    let spread = |s: Spread| format!("{} / {} / {}", s.p50, s.p99, s.max);
    for o in outcomes {
        text.push_str(&format!(
            "| {:?} | {} | {} | {} | {} | {} |\n",
            o.scenario,
            o.runs,
            spread(o.producer_ms),
            spread(o.consumer_ms),
            o.lost,
            o.duplicated
        ));
    }
    text
}
