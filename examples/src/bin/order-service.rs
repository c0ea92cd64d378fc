//! A service as it runs in production: writes an invoice for every order, through a failover.
//!
//! It rehearses a flip at its start and every hour, serves `GET /metrics` for Prometheus, and ends on SIGTERM with everything committed.
//! Prints one JSON line on stdout for each standby that it has tried, and one with the address that it listens on.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use clap::Parser;
use standfast::prometheus_client::encoding::text::encode;
use standfast::prometheus_client::registry::Registry;
use standfast::{
    FailoverConsumer, FailoverProducer, Fleet, MissingOffset, PrometheusCollector, Record,
};
use standfast_examples::{FleetArgs, init_logging};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// How long a standby may take to let us in.
const REHEARSAL_TIMEOUT: Duration = Duration::from_secs(10);
/// How often that is tried.
const REHEARSAL_INTERVAL: Duration = Duration::from_secs(3600);
/// How long the end waits for acknowledgements.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(10);

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Parser)]
#[command(about = "Writes an invoice for every order, and serves metrics")]
struct Cli {
    #[command(flatten)]
    fleet: FleetArgs,
    /// The topic to consume.
    #[arg(long, default_value = "orders")]
    orders: String,
    /// The topic to produce to.
    #[arg(long, default_value = "invoices")]
    invoices: String,
    /// The consumer group.
    #[arg(long, default_value = "invoicing")]
    group: String,
    /// Where /metrics is served.
    #[arg(long, default_value = "127.0.0.1:9464")]
    listen: SocketAddr,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    init_logging();
    let cli = Cli::parse();
    let fleet = cli.fleet.connect().await?;
    let producer = fleet.producer().build().await?;
    let mut consumer = fleet
        .consumer(cli.group)
        .on_missing_offset(MissingOffset::Earliest)
        .subscribe(&[&cli.orders])
        .await?;

    tokio::spawn(rehearse(fleet.clone()));
    let listener = TcpListener::bind(cli.listen).await?;
    println!(
        "{}",
        serde_json::json!({ "listening": listener.local_addr()? })
    );
    tokio::spawn(axum::serve(listener, metrics(&fleet)).into_future());

    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        ended = write_invoices(&mut consumer, &producer, &cli.invoices) => ended?,
        _ = terminated.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    producer.flush(FLUSH_TIMEOUT).await?;
    consumer.close().await;
    Ok(())
}

/// An order is acknowledged once its invoice is: a crash in between writes the invoice again, and loses none.
async fn write_invoices(
    consumer: &mut FailoverConsumer,
    producer: &FailoverProducer,
    topic: &str,
) -> anyhow::Result<()> {
    while let Some(order) = consumer.next().await {
        let order = match order {
            Ok(order) => order,
            // Something to look at, for example a missing topic. The consumer goes on.
            Err(error) => {
                tracing::error!(%error, "consumer");
                continue;
            }
        };
        let text = String::from_utf8_lossy(order.payload().unwrap_or_default());
        let mut invoice = Record::to(topic).payload(format!("invoice for {text}"));
        if let Some(key) = order.key() {
            invoice = invoice.key(key.to_vec());
        }
        producer.send(invoice).await?;
        consumer.ack(&order)?;
    }
    Ok(())
}

/// Finds out before it matters whether the standbys would do. What is wrong is for a person; the service runs all the same.
async fn rehearse(fleet: Fleet) {
    let mut times = tokio::time::interval(REHEARSAL_INTERVAL);
    loop {
        times.tick().await;
        for standby in fleet.rehearse(REHEARSAL_TIMEOUT).await {
            let cluster = standby.cluster.as_str();
            if let Err(reason) = &standby.outcome {
                tracing::error!(cluster, reason, "a flip to this standby would not work");
            }
            println!(
                "{}",
                serde_json::json!({ "standby": cluster, "usable": standby.outcome.is_ok() })
            );
        }
    }
}

fn metrics(fleet: &Fleet) -> Router {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(PrometheusCollector::new([fleet])));
    let registry = Arc::new(registry);
    let scrape = move || {
        let mut text = String::new();
        let encoded = encode(&mut text, &registry);
        async move {
            match encoded {
                Ok(()) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
                Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
            }
        }
    };
    Router::new().route("/metrics", get(scrape))
}
