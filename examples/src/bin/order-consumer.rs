//! Consumes orders and goes on consuming through a failover.
//!
//! Prints one JSON line on stdout for every order and acknowledges it. Runs until it is interrupted or terminated, then commits and leaves
//! its group. With `--commands` it also obeys lines on stdin, `pause` and `resume`, and ends with its input.
#![forbid(unsafe_code)]

use clap::Parser;
use serde::Serialize;
use standfast::{Message, MissingOffset};
use standfast_examples::{FleetArgs, init_logging};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Debug, Parser)]
#[command(about = "Consumes orders and prints one JSON line for each")]
struct Cli {
    #[command(flatten)]
    fleet: FleetArgs,
    /// The topic to consume.
    #[arg(long, default_value = "orders")]
    topic: String,
    /// The consumer group.
    #[arg(long, default_value = "billing")]
    group: String,
    /// Where to start if the group has no committed offset.
    #[arg(long, value_enum, default_value = "earliest")]
    on_missing_offset: OnMissingOffset,
    /// Obey `pause` and `resume` on stdin, and end with it.
    #[arg(long)]
    commands: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum OnMissingOffset {
    Error,
    Earliest,
    Latest,
}

/// One line on stdout.
#[derive(Debug, Serialize)]
struct Received<'a> {
    order: &'a str,
    partition: i32,
    offset: i64,
    cluster: &'a str,
    epoch: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    init_logging();
    let cli = Cli::parse();
    let fleet = cli.fleet.connect().await?;
    let mut consumer = fleet
        .consumer(cli.group)
        .on_missing_offset(match cli.on_missing_offset {
            OnMissingOffset::Error => MissingOffset::Error,
            OnMissingOffset::Earliest => MissingOffset::Earliest,
            OnMissingOffset::Latest => MissingOffset::Latest,
        })
        .subscribe(&[&cli.topic])
        .await?;

    let mut terminated = signal(SignalKind::terminate())?;
    let mut commands = BufReader::new(tokio::io::stdin()).lines();
    let mut paused = false;
    loop {
        let message = tokio::select! {
            message = consumer.next(), if !paused => message,
            command = commands.next_line(), if cli.commands => {
                match command?.as_deref() {
                    Some("pause") => paused = true,
                    Some("resume") => paused = false,
                    Some(other) => eprintln!("{other:?} is no command, write: pause or resume"),
                    None => break,
                }
                println!("{}", serde_json::json!({ "event": if paused { "paused" } else { "running" } }));
                continue;
            }
            _ = tokio::signal::ctrl_c() => break,
            _ = terminated.recv() => break,
        };
        match message {
            Some(Ok(message)) => {
                print(&message)?;
                // Processed: a restart goes on behind it.
                consumer.ack(&message)?;
            }
            // Something to look at, for example a missing topic. The consumer goes on.
            Some(Err(error)) => eprintln!("{error}"),
            None => break,
        }
    }
    consumer.close().await;
    Ok(())
}

fn print(message: &Message) -> anyhow::Result<()> {
    let line = Received {
        order: std::str::from_utf8(message.payload().unwrap_or_default())?,
        partition: message.partition(),
        offset: message.offset(),
        cluster: message.cluster().as_str(),
        epoch: message.epoch().0,
    };
    println!("{}", serde_json::to_string(&line)?);
    Ok(())
}
