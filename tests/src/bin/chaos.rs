//! `cargo xtask chaos`: the chaos checker in its long form.
//!
//! Data (the report, JSON) goes to stdout, what happens to stderr, and the log of the clients to `chaos-SEED.log`. Exit code 0: all
//! promises held; 1: one was broken, and the report names the records; 101: something did not work again in time.
#![forbid(unsafe_code)]

use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Duration;

use clap::Parser;
use standfast_tests::chaos::{self, Options};
use tracing_subscriber::EnvFilter;

#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask chaos",
    about = "Kill, freeze and flip at random, and prove that nothing was lost or repeated"
)]
struct Cli {
    /// No step begins after so many minutes
    #[arg(long, default_value_t = 15.0)]
    minutes: f64,
    /// Seed of the schedule, to do the same again [default: random, printed]
    #[arg(long)]
    seed: Option<u64>,
    /// Consumers of the group
    #[arg(long, default_value_t = 1)]
    consumers: usize,
    /// Where the log goes, and the journal of all records if a promise was broken
    #[arg(long, default_value = "target")]
    folder: PathBuf,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let seed = cli.seed.unwrap_or_else(rand::random);
    std::fs::create_dir_all(&cli.folder).expect("a folder for the log");
    let log = File::create(cli.folder.join(format!("chaos-{seed}.log"))).expect("a log file");
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(Mutex::new(log))
        .init();
    let report = chaos::run(&Options {
        seed,
        duration: Duration::from_secs_f64(cli.minutes * 60.0),
        consumers: cli.consumers,
        folder: cli.folder,
    });
    let holds = report.verdict.holds();
    println!("{}", serde_json::to_string_pretty(&report).expect("JSON"));
    ExitCode::from(u8::from(!holds))
}
