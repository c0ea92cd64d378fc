//! `cargo xtask chaos`: the servers, the programs, then the checker of `tests/src/chaos`.

use std::ffi::OsString;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use standfast_servers::{Profile, Server, Terminal, obtain, workspace_program};

/// Arguments of `cargo xtask chaos`.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    /// Passed on: `--minutes N`, `--seed N`, `--consumers N`, `--folder DIR`, `--help`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    obtain(&Server::ALL, &Terminal::new())?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args([
            "build",
            "-p",
            "standfast-agent",
            "-p",
            "standfast-tests",
            "--bins",
        ])
        .status()
        .context("start cargo build")?;
    if !built.success() {
        bail!("the build failed");
    }
    let status = Command::new(workspace_program("chaos", Profile::Dev)?)
        .args(&arguments.arguments)
        .status()
        .context("start the checker")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(1)))
}
