//! Telling the story: one line per step with its time, on stdout.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::Value;

use super::outcome::Outcome;

/// A finished step.
#[derive(Debug, Clone)]
pub(super) struct StepTime {
    pub(super) name: String,
    pub(super) took: Duration,
}

/// Prints steps as they end.
#[derive(Debug)]
pub(super) struct Story {
    began: Instant,
    steps: Vec<StepTime>,
    colour: bool,
}

impl Story {
    pub(super) fn begin() -> Self {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self {
            began: Instant::now(),
            steps: Vec::new(),
            colour,
        }
    }

    /// Runs a step and prints its time; a failure is printed by the caller with all of its causes.
    pub(super) fn step<T>(&mut self, name: &str, act: impl FnOnce() -> Result<T>) -> Result<T> {
        let began = Instant::now();
        let result = act();
        let took = began.elapsed();
        self.steps.push(StepTime {
            name: name.to_owned(),
            took,
        });
        let mark = if result.is_ok() {
            self.paint("32", "✓")
        } else {
            self.paint("31", "✗")
        };
        println!(
            "{:>7.2} s  {mark} {name:<64} {:>8}",
            self.began.elapsed().as_secs_f64(),
            format!("{} ms", took.as_millis())
        );
        result
    }

    /// A further line under the last step.
    pub(super) fn detail(&self, text: &str) {
        for line in text.lines() {
            println!("             {}", self.paint("2", line));
        }
    }

    pub(super) fn failover_steps(&self, report: &Value) {
        for step in report
            .get("steps")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            let name = step.get("name").and_then(Value::as_str).unwrap_or("?");
            let ms = step.get("ms").map(ToString::to_string).unwrap_or_default();
            self.detail(&format!("{name:<40} {ms:>8} ms"));
        }
    }

    pub(super) fn end(&self, outcome: &Outcome, report: &Value) {
        let rpo = outcome
            .rpo_records
            .map_or_else(|| "unknown".to_owned(), |records| records.to_string());
        let verdict = if outcome.is_right() {
            self.paint("32;1", "every order exactly once")
        } else {
            self.paint("31;1", "WRONG")
        };
        println!();
        println!("  lost        {}", outcome.lost);
        println!("  duplicated  {}", outcome.duplicated);
        println!(
            "  misplaced   {} (offset at the consumer differs from the producer's)",
            outcome.misplaced
        );
        println!("  out of order {}", outcome.disordered);
        println!("  RPO         {rpo} records");
        println!(
            "  RTO         {} ms (west killed → the applications' first order through east)",
            outcome.rto.as_millis()
        );
        if let Some(epoch) = report.get("epoch") {
            println!("  epoch       {epoch}");
        }
        println!("  {verdict}");
    }

    pub(super) fn steps(&self) -> &[StepTime] {
        &self.steps
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }
}
