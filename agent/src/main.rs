#![forbid(unsafe_code)]
//! The `standfast` daemon and command line.

mod api;
mod cli;
mod clusters;
mod config;
mod daemon;
mod exec;
mod exit;
mod failover;
mod http;
mod logging;
mod metrics;
mod oauth;

use std::process::ExitCode;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use cli::{AgentArgs, Cli, Command};
use daemon::Daemon;
use exit::{Exit, Failed};

fn main() -> ExitCode {
    let Cli { global, command } = Cli::parse();
    // reqwest and rustls are built without a default provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            return end(Err(Failed::failure(format!(
                "cannot start the runtime: {error}"
            ))));
        }
    };
    runtime.block_on(async {
        match command {
            Command::Agent(args) => end(run_agent(args).await),
            Command::Exec(args) => exec::run(*args).await,
            command => end(cli::run(&global, command).await),
        }
    })
}

/// The daemon's life: log, configuration, build, serve, signal, drain.
async fn run_agent(args: AgentArgs) -> Result<Exit, Failed> {
    logging::init(args.log_format);
    let config = config::load(&args.config).map_err(|error| Failed::usage(error.to_string()))?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), agent = config.agent.name, fleet = %config.fleet.name, "standfast agent starts");
    let shutdown = CancellationToken::new();
    let daemon = Daemon::build(config, shutdown.clone())
        .await
        .map_err(|error| Failed::failure(format!("{error:#}")))?;
    let address = daemon
        .address()
        .map_err(|error| Failed::failure(error.to_string()))?;
    tokio::spawn(signals(shutdown));
    tracing::info!(%address, "ready for commands");
    daemon
        .serve()
        .await
        .map_err(|error| Failed::failure(format!("{error:#}")))?;
    Ok(Exit::Ok)
}

/// The first SIGTERM or SIGINT drains; the second ends the process at once.
async fn signals(shutdown: CancellationToken) {
    let (Ok(mut term), Ok(mut interrupt)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        tracing::error!(
            "signal handlers cannot be set up; SIGTERM ends the agent without draining"
        );
        return;
    };
    let mut next = async || {
        tokio::select! {
            _ = term.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    };
    let name = next().await;
    tracing::info!(signal = name, "shutting down");
    shutdown.cancel();
    let name = next().await;
    tracing::warn!(signal = name, "ended at once");
    std::process::exit(Exit::Failure as i32);
}

fn end(result: Result<Exit, Failed>) -> ExitCode {
    match result {
        Ok(exit) => exit.into(),
        Err(failed) => {
            eprintln!("error: {}", failed.message);
            failed.exit.into()
        }
    }
}
