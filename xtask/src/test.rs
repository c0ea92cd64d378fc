//! `cargo xtask test`: the servers, then the workspace's build, then every test.

use std::ffi::OsString;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result};
use standfast_servers::{Server, Terminal, obtain};

/// Arguments of `cargo xtask test`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Passed to `cargo test` in place of `--workspace`'s whole set, for example `-p standfast-link -- restart`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    cargo_test: Vec<OsString>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    heading("servers");
    obtain(&Server::ALL, &Terminal::new())?;
    eprintln!("Kafka, Consul and Vault are there");

    heading("build");
    // The end-to-end tests run the workspace's programs; building them here keeps that out of the tests' time.
    if let Some(failed) = cargo("build", &["--workspace".into(), "--bins".into()])? {
        return Ok(failed);
    }
    let (selection, run_arguments) = split(&arguments.cargo_test);
    let build: Vec<OsString> = selection
        .iter()
        .cloned()
        .chain(["--no-run".into()])
        .collect();
    if let Some(failed) = cargo("test", &build)? {
        return Ok(failed);
    }

    heading("tests");
    let began = Instant::now();
    // One failing test program must not hide what the others would have said.
    let test: Vec<OsString> = selection
        .into_iter()
        .chain(["--no-fail-fast".into()])
        .chain(run_arguments)
        .collect();
    let failed = cargo("test", &test)?;
    let outcome = if failed.is_some() {
        "some tests failed"
    } else {
        "all tests passed"
    };
    eprintln!("{outcome} ({} s)", began.elapsed().as_secs());
    Ok(failed.unwrap_or(ExitCode::SUCCESS))
}

/// What selects and builds tests, and what `--` hands to the test programs.
fn split(arguments: &[OsString]) -> (Vec<OsString>, Vec<OsString>) {
    let at = arguments
        .iter()
        .position(|argument| argument == "--")
        .unwrap_or(arguments.len());
    let (selection, rest) = arguments.split_at(at);
    let names_packages = selection.iter().any(|argument| {
        let text = argument.to_string_lossy();
        text.starts_with("-p") || text.starts_with("--package") || text == "--workspace"
    });
    let workspace = (!names_packages).then(|| OsString::from("--workspace"));
    (
        workspace
            .into_iter()
            .chain(selection.iter().cloned())
            .collect(),
        rest.to_vec(),
    )
}

/// Runs cargo in our process group, so that Ctrl-C ends it and the tests too; the servers follow their tests.
fn cargo(subcommand: &str, arguments: &[OsString]) -> Result<Option<ExitCode>> {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(program)
        .arg(subcommand)
        .args(arguments)
        .status()
        .with_context(|| format!("start cargo {subcommand}"))?;
    Ok((!status.success()).then(|| {
        ExitCode::from(
            status
                .code()
                .and_then(|code| u8::try_from(code).ok())
                .unwrap_or(1),
        )
    }))
}

fn heading(step: &str) {
    eprintln!("── {step}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_workspace_unless_packages_are_named() {
        let words = |line: &str| {
            line.split_whitespace()
                .map(OsString::from)
                .collect::<Vec<_>>()
        };
        assert_eq!(split(&words("")), (words("--workspace"), words("")));
        assert_eq!(
            split(&words("restart -- --nocapture")),
            (words("--workspace restart"), words("-- --nocapture"))
        );
        assert_eq!(
            split(&words("-p standfast-link")),
            (words("-p standfast-link"), words(""))
        );
    }
}
