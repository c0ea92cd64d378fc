//! Standfast: the release binary, as an agent with one link on file discovery.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use standfast_servers::{Port, Profile, ServerProcess, workspace_program};
use tempfile::TempDir;

use super::contender::Contender;
use super::{Clusters, Usage};

#[derive(Debug)]
pub(super) struct Standfast {
    // Before the folder: the process must be gone when it is removed.
    process: Option<ServerProcess>,
    port: Port,
    source: String,
    destination: String,
    /// Further lines of the link's section.
    link: String,
    folder: TempDir,
}

static GIVEN: OnceLock<PathBuf> = OnceLock::new();

/// Has this binary measured instead of the workspace's.
pub(super) fn use_program(program: &Path) {
    GIVEN.get_or_init(|| program.to_owned());
}

/// The given binary, or the release binary, built first if it is out of date.
pub(super) fn program() -> Result<PathBuf> {
    match GIVEN.get() {
        Some(given) => Ok(given.clone()),
        None => Ok(workspace_program("standfast", Profile::Release)?),
    }
}

impl Standfast {
    pub(super) fn prepare(clusters: &Clusters) -> Result<Self> {
        Self::with(clusters, "")
    }

    /// With further settings of the link, as TOML.
    pub(super) fn with(clusters: &Clusters, link: &str) -> Result<Self> {
        Ok(Self {
            link: link.to_owned(),
            process: None,
            port: Port::reserve()?,
            source: clusters.source.bootstrap(),
            destination: clusters.destination.bootstrap(),
            folder: tempfile::Builder::new()
                .prefix("standfast-bench-")
                .tempdir()
                .context("create a folder")?,
        })
    }

    fn configuration(&self, topics: &[String]) -> String {
        let folder = self.folder.path().display();
        let (source, destination, listen) = (&self.source, &self.destination, self.port.address());
        let link = &self.link;
        format!(
            r#"[agent]
name = "bench"
listen = "{listen}"
data_dir = "{folder}/data"
[fleet]
name = "bench"
[discovery]
backend = "file"
path = "{folder}/discovery"
[secrets]
backend = "none"
[clusters.west]
bootstrap = "{source}"
[clusters.east]
bootstrap = "{destination}"
[[links]]
name = "west-to-east"
source = "west"
destination = "east"
topics = {topics:?}
{link}
"#
        )
    }

    /// Runs a command of the command line against the agent; what it printed, as JSON, and how long it took.
    pub(super) fn call(&self, words: &[&str]) -> Result<(serde_json::Value, Duration)> {
        let began = Instant::now();
        let agent = format!("http://{}", self.port.address());
        let output = Command::new(program()?)
            .args(words)
            .args(["--agent", &agent, "--output", "json"])
            .output()
            .context("run standfast")?;
        let took = began.elapsed();
        if !output.status.success() {
            bail!(
                "standfast {words:?}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok((serde_json::from_slice(&output.stdout)?, took))
    }

    /// Ends the agent; [`Contender::mirror`] starts it again on the same state.
    pub(super) fn end(&mut self) {
        self.process = None;
    }

    fn spawn(&mut self, config: &Path) -> Result<()> {
        let agent = self.command(config, &["agent"])?;
        let log = self.folder.path().join("log");
        self.process = Some(ServerProcess::spawn(agent, &log, None)?);
        Ok(())
    }

    fn command(&self, config: &Path, words: &[&str]) -> Result<Command> {
        let mut command = Command::new(program()?);
        command.args(words).arg("--config").arg(config);
        Ok(command)
    }
}

impl Contender for Standfast {
    fn mirror(&mut self, topics: &[String]) -> Result<()> {
        let config = self.folder.path().join("agent.toml");
        fs::write(&config, self.configuration(topics))
            .with_context(|| format!("write {}", config.display()))?;
        for name in ["data", "discovery"] {
            fs::create_dir_all(self.folder.path().join(name)).context("create a folder")?;
        }
        if self.folder.path().join("discovery/bench").exists() {
            return self.spawn(&config);
        }
        let created = self
            .command(&config, &["fleet", "init"])?
            .args(["--active", "west"])
            .output()
            .context("run standfast")?;
        if !created.status.success() {
            bail!(
                "standfast fleet init: {}",
                String::from_utf8_lossy(&created.stderr)
            );
        }
        self.spawn(&config)
    }

    fn usage(&self) -> Result<Usage> {
        self.process
            .as_ref()
            .map_or(Ok(Usage::default()), |process| Usage::of(process.pid()))
    }

    fn warm_up_bytes(&self) -> f64 {
        0.0
    }

    fn failure(&mut self) -> Option<String> {
        let process = self.process.as_mut()?;
        process.exited().map(|_| process.log_tail())
    }
}
