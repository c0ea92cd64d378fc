//! `cargo xtask demo`: the main job on real servers, told step by step.
//!
//! Two clusters are linked, the active one is killed, the discovery record is flipped, and the same running producer
//! and consumer go on. Every figure at the end is counted from what the applications printed.

mod app;
mod outcome;
mod region;
mod story;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use app::App;
use outcome::Outcome;
use region::Region;
use story::Story;

/// What `cargo xtask demo` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Discovery in a real Consul, not in a file
    #[arg(long)]
    consul: bool,
    /// Credentials from a real Vault; the clusters then demand SASL
    #[arg(long)]
    vault: bool,
    /// Write lost, duplicated, RPO, RTO and the steps to FILE
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The topic, the consumer group and the fleet of the story.
const TOPIC: &str = "orders";
const GROUP: &str = "billing";
const FLEET: &str = "payments";

const STEP_DEADLINE: Duration = Duration::from_secs(60);

/// Runs the story; fails when a record was lost or came twice.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut story = Story::begin();
    let mut region = story.step("start Kafka clusters west and east", || {
        Region::start(arguments)
    })?;
    story.detail(&region.addresses());
    story.step("start the agent; west is the active cluster", || {
        region.start_agent()
    })?;
    let (mut producer, mut consumer) = story.step("start the applications", || {
        Ok((App::producer(&region)?, App::consumer(&region)?))
    })?;

    before_the_loss(&mut story, &region, &mut producer, &mut consumer)?;
    let (report, rto) = the_loss(&mut story, &mut region, &mut producer, &mut consumer)?;
    story.step("wait until nothing more can come", || {
        region.wait_until_group_is_done(STEP_DEADLINE)
    })?;

    let outcome = Outcome::count(
        &producer.finish()?,
        &consumer.finish()?,
        1..=15,
        &report,
        rto,
    );
    story.end(&outcome, &report);
    if let Some(file) = &arguments.json {
        let text = serde_json::to_string_pretty(&outcome.to_json(story.steps()))?;
        std::fs::write(file, text + "\n").with_context(|| format!("write {}", file.display()))?;
    }
    Ok(if outcome.is_right() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn before_the_loss(
    story: &mut Story,
    region: &Region,
    producer: &mut App,
    consumer: &mut App,
) -> Result<()> {
    story.step("orders 1–5: produced to west, consumed", || {
        producer.tell("produce 1 5")?;
        producer.wait_for_orders(1..=5, "west", STEP_DEADLINE)?;
        consumer.wait_for_orders(1..=5, "west", STEP_DEADLINE)
    })?;
    story.step(
        "the consumer pauses; orders 6–10: produced to west",
        || {
            consumer.tell("pause")?;
            consumer.wait_for_event("paused", STEP_DEADLINE)?;
            producer.tell("produce 6 10")?;
            producer.wait_for_orders(6..=10, "west", STEP_DEADLINE)?;
            Ok(())
        },
    )?;
    story.step("mirrored to east: lag 0, offsets the same", || {
        region.wait_for_lag_zero(10, STEP_DEADLINE)
    })?;
    story.step("the group's offset is on east", || {
        region.wait_for_group_offset(5, STEP_DEADLINE)
    })
}

fn the_loss(
    story: &mut Story,
    region: &mut Region,
    producer: &mut App,
    consumer: &mut App,
) -> Result<(Value, Duration)> {
    let lost_at = Instant::now();
    story.step("west is lost (SIGKILL)", || {
        region.kill_west();
        Ok(())
    })?;
    story.step(
        "orders 11–15: handed to the same producer, which has no cluster",
        || producer.tell("produce 11 15"),
    )?;
    let report = story.step("standfast failover", || region.failover())?;
    story.failover_steps(&report);
    let first = story.step("the same producer: orders 11–15 on east", || {
        producer.wait_for_orders(11..=15, "east", STEP_DEADLINE)
    })?;
    let resumed = story.step("the same consumer: orders 6–15", || {
        consumer.tell("resume")?;
        consumer.wait_for_orders(6..=15, "east", STEP_DEADLINE)
    })?;
    ensure!(region.west_is_dead(), "west was meant to be dead");
    Ok((
        report,
        first.max(resumed).saturating_duration_since(lost_at),
    ))
}
