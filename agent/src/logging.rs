//! Log lines: text for people, JSON for collectors, always on stderr.

use std::io::IsTerminal;

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// One readable line per event; colours on a terminal only.
    Text,
    /// One JSON object per line.
    Json,
}

/// Environment variables with the filter (`info`, `standfast_link=debug`, …); the first that is set counts.
const FILTER_ENV: [&str; 2] = ["STANDFAST_LOG", "RUST_LOG"];

/// Sets up logging for the daemon. Called once.
pub(crate) fn init(format: LogFormat) {
    let filter = FILTER_ENV
        .into_iter()
        .find_map(|name| EnvFilter::try_from_env(name).ok())
        .unwrap_or_else(|| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(colours_wanted()).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}

fn colours_wanted() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}
