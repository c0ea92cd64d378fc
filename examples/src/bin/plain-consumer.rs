//! Plain rdkafka, without the wrapper: only `standfast-discovery` says which cluster is active and when that changes.
//!
//! Prints one JSON line on stdout for every record. On a flip it makes a new client at the other cluster, where the link has put the group's
//! offsets. What the wrapper does beyond that is missing here: a record may be handed out twice, or be gone with the old cluster, and
//! the end of the process may have to wait for the old client and its dead cluster.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use rdkafka::ClientConfig;
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::message::Message;
use standfast::discovery::{
    ConsulOptions, Discovery, DiscoveryOptions, FleetName, FleetRecord, FleetWatchHandle,
};
use tokio_util::sync::CancellationToken;

#[derive(Debug, Parser)]
#[command(about = "Consumes orders with plain rdkafka at the fleet's active cluster")]
struct Cli {
    /// Name of the fleet.
    #[arg(long, default_value = "payments")]
    fleet: FleetName,
    /// Folder of the file discovery backend; without it, Consul on this machine.
    #[arg(long)]
    discovery_dir: Option<PathBuf>,
    /// The topic to consume.
    #[arg(long, default_value = "orders")]
    topic: String,
    /// The consumer group.
    #[arg(long, default_value = "plain")]
    group: String,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    standfast_examples::init_logging();
    let cli = Cli::parse();
    let options = match &cli.discovery_dir {
        Some(folder) => DiscoveryOptions::file(folder),
        None => DiscoveryOptions::Consul(ConsulOptions::default()),
    };
    let (watch, mut fleet) = Discovery::new(options)?.watch(cli.fleet.clone());
    let shutdown = CancellationToken::new();
    let _ended = shutdown.clone().drop_guard();
    tokio::spawn(watch.run(shutdown));

    let mut view = fleet.wait_for(|view| view.record.is_some()).await?;
    while let Some(record) = view.record {
        let bootstrap = bootstrap(&record)?;
        let consumer = connect(&cli, &bootstrap)?;
        tokio::select! {
            ended = consume(&consumer, record.active.as_str()) => return ended,
            // Another epoch with the same bootstrap is no reason to leave the group.
            changed = next_bootstrap(&mut fleet, &bootstrap) => changed?,
        }
        // Dropping it waits for its cluster, which may be dead: not here.
        tokio::task::spawn_blocking(move || drop(consumer));
        view = fleet.borrow();
    }
    Ok(())
}

fn bootstrap(record: &FleetRecord) -> anyhow::Result<String> {
    let active = record
        .active_cluster()
        .context("the fleet record has no active cluster")?;
    Ok(active.bootstrap.clone())
}

async fn next_bootstrap(fleet: &mut FleetWatchHandle, old: &str) -> anyhow::Result<()> {
    let differs = |record: &FleetRecord| {
        record
            .active_cluster()
            .is_some_and(|entry| entry.bootstrap != old)
    };
    fleet
        .wait_for(|view| view.record.as_deref().is_some_and(differs))
        .await?;
    Ok(())
}

fn connect(cli: &Cli, bootstrap: &str) -> anyhow::Result<StreamConsumer> {
    let consumer: StreamConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", &cli.group)
        .set("auto.offset.reset", "earliest")
        .create()?;
    consumer.subscribe(&[&cli.topic])?;
    Ok(consumer)
}

async fn consume(consumer: &StreamConsumer, cluster: &str) -> anyhow::Result<()> {
    loop {
        match consumer.recv().await {
            Ok(message) => {
                let order = String::from_utf8_lossy(message.payload().unwrap_or_default());
                let line = serde_json::json!({ "order": order, "offset": message.offset(), "cluster": cluster });
                println!("{line}");
            }
            // A cluster that is being lost is no reason to end: the flip comes.
            Err(error) => eprintln!("{error}"),
        }
    }
}
