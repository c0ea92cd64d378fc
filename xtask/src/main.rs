//! Developer commands: `cargo xtask demo`, `test`, `servers`, `bench` and `chaos`.
#![forbid(unsafe_code)]

mod bench;
mod chaos;
mod demo;
mod servers;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Developer commands of Standfast.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The main job on real servers: two clusters linked, one killed, the applications go on
    Demo(demo::Arguments),
    /// Build everything, obtain the real servers, run every test
    Test(test::Arguments),
    /// Two Kafka clusters (west, east), Consul and Vault in the background, for hand work
    #[command(subcommand)]
    Servers(servers::Command),
    /// Measurements
    #[command(subcommand)]
    Bench(bench::Command),
    /// Kill, freeze and flip at random for 15 minutes, and prove that nothing was lost or handed out twice
    Chaos(chaos::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Servers(command) => servers::run(&command),
        Command::Bench(command) => bench::run(&command),
        Command::Chaos(arguments) => chaos::run(&arguments),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
