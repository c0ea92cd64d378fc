//! Produces numbered orders on request and goes on producing through a failover.
//!
//! Reads commands from stdin, one per line: `produce 6 10` sends the orders 6 to 10. Prints one JSON line on stdout for every order
//! that the active cluster has acknowledged. Ends with its input.
#![forbid(unsafe_code)]

use anyhow::Context;
use clap::Parser;
use serde::Serialize;
use standfast::{FailoverProducer, Record};
use standfast_examples::{FleetArgs, init_logging};
use tokio::io::{AsyncBufReadExt, BufReader};

#[derive(Debug, Parser)]
#[command(
    about = "Produces numbered orders on request: reads \"produce FIRST LAST\" lines from stdin"
)]
struct Cli {
    #[command(flatten)]
    fleet: FleetArgs,
    /// The topic to produce to.
    #[arg(long, default_value = "orders")]
    topic: String,
}

/// One line on stdout.
#[derive(Debug, Serialize)]
struct Acknowledged {
    order: u64,
    partition: i32,
    offset: i64,
    cluster: String,
    epoch: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    init_logging();
    let cli = Cli::parse();
    let fleet = cli.fleet.connect().await?;
    let producer = fleet.producer().build().await?;

    let mut commands = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = commands.next_line().await? {
        if line.trim().is_empty() {
            continue;
        }
        match parse(&line) {
            Ok((first, last)) => produce(&producer, &cli.topic, first, last).await?,
            Err(error) => eprintln!("{error:#}"),
        }
    }
    Ok(())
}

/// Sends the orders one after the other. A send resolves when the active cluster has the order: during a failover that
/// takes a moment longer, nothing else changes.
async fn produce(
    producer: &FailoverProducer,
    topic: &str,
    first: u64,
    last: u64,
) -> anyhow::Result<()> {
    for order in first..=last {
        let record = Record::to(topic)
            .key(format!("customer-{}", order % 3))
            .payload(order.to_string());
        let delivery = producer
            .send(record)
            .await
            .with_context(|| format!("order {order}"))?;
        let line = Acknowledged {
            order,
            partition: delivery.partition,
            offset: delivery.offset,
            cluster: delivery.cluster.to_string(),
            epoch: delivery.epoch.0,
        };
        println!("{}", serde_json::to_string(&line)?);
    }
    Ok(())
}

fn parse(line: &str) -> anyhow::Result<(u64, u64)> {
    let usage = || format!("{line:?} is no command, write: produce FIRST LAST");
    let mut words = line.split_whitespace();
    anyhow::ensure!(words.next() == Some("produce"), usage());
    let first = words
        .next()
        .with_context(usage)?
        .parse()
        .with_context(usage)?;
    let last = words
        .next()
        .with_context(usage)?
        .parse()
        .with_context(usage)?;
    anyhow::ensure!(words.next().is_none() && first <= last, usage());
    Ok((first, last))
}
