//! One of the two example applications as a child process: commands on its stdin, one JSON line per order on its stdout.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Deserializer};
use standfast_servers::{Profile, workspace_program};

use super::region::Region;
use super::{FLEET, GROUP, TOPIC};

/// What an application prints: an order that was acknowledged or received, or an event.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Line {
    #[serde(default, deserialize_with = "number")]
    pub(super) order: Option<u64>,
    pub(super) event: Option<String>,
    pub(super) cluster: Option<String>,
    pub(super) partition: Option<i32>,
    pub(super) offset: Option<i64>,
}

/// The producer knows an order by its number, the consumer by its payload.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Order {
        Number(u64),
        Text(String),
    }
    match Order::deserialize(deserializer)? {
        Order::Number(number) => Ok(Some(number)),
        Order::Text(text) => text.parse().map(Some).map_err(serde::de::Error::custom),
    }
}

/// A running application. Closing its stdin ends it; so does the end of this process.
#[derive(Debug)]
pub(super) struct App {
    name: &'static str,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<(Instant, Line)>,
    seen: Vec<(Instant, Line)>,
    log: PathBuf,
}

impl App {
    pub(super) fn producer(region: &Region) -> Result<Self> {
        Self::start(region, "order-producer", &["--topic", TOPIC])
    }

    pub(super) fn consumer(region: &Region) -> Result<Self> {
        Self::start(
            region,
            "order-consumer",
            &["--topic", TOPIC, "--group", GROUP, "--commands"],
        )
    }

    fn start(region: &Region, name: &'static str, args: &[&str]) -> Result<Self> {
        let log = region.folder().join(format!("{name}.log"));
        let mut child = Command::new(workspace_program(name, Profile::Dev)?)
            .args(["--fleet", FLEET])
            .args(args)
            .env("STANDFAST_CONFIG", region.application_config())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&log).with_context(|| format!("create {}", log.display()))?)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("the application's stdout")?;
        let (sender, lines) = channel();
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || forward(stdout, &sender))?;
        Ok(Self {
            name,
            child,
            stdin,
            lines,
            seen: Vec::new(),
            log,
        })
    }

    /// Writes a command to the application's stdin.
    pub(super) fn tell(&mut self, command: &str) -> Result<()> {
        let stdin = self
            .stdin
            .as_mut()
            .with_context(|| format!("{} has ended", self.name))?;
        writeln!(stdin, "{command}")
            .and_then(|()| stdin.flush())
            .with_context(|| format!("write to {}", self.name))
    }

    /// Waits until every order of the range was reported, and the last of them by this cluster; the time at which this cluster's first was.
    pub(super) fn wait_for_orders(
        &mut self,
        orders: RangeInclusive<u64>,
        cluster: &str,
        deadline: Duration,
    ) -> Result<Instant> {
        let what = format!(
            "orders {}–{}, the last from {cluster}",
            orders.start(),
            orders.end()
        );
        self.wait(&what, deadline, |seen| {
            let of = |order: u64| seen.iter().find(|(_, line)| line.order == Some(order));
            let here = |(_, line): &&(Instant, Line)| line.cluster.as_deref() == Some(cluster);
            let found: Option<Vec<_>> = orders.clone().map(of).collect();
            let found = found.filter(|found| found.last().is_some_and(here))?;
            found.into_iter().filter(here).map(|(at, _)| *at).min()
        })
    }

    /// Waits for an event of this name.
    pub(super) fn wait_for_event(&mut self, event: &str, deadline: Duration) -> Result<()> {
        self.wait(&format!("event {event}"), deadline, |seen| {
            seen.iter()
                .any(|(_, line)| line.event.as_deref() == Some(event))
                .then_some(())
        })
    }

    /// Ends the application and returns everything that it printed.
    pub(super) fn finish(mut self) -> Result<Vec<Line>> {
        drop(self.stdin.take());
        let deadline = Instant::now() + super::STEP_DEADLINE;
        while Instant::now() < deadline {
            match self.lines.recv_timeout(Duration::from_millis(100)) {
                Ok(line) => self.seen.push(line),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        Ok(self.seen.drain(..).map(|(_, line)| line).collect())
    }

    fn wait<T>(
        &mut self,
        what: &str,
        deadline: Duration,
        done: impl Fn(&[(Instant, Line)]) -> Option<T>,
    ) -> Result<T> {
        let end = Instant::now() + deadline;
        loop {
            if let Some(value) = done(&self.seen) {
                return Ok(value);
            }
            match self
                .lines
                .recv_timeout(end.saturating_duration_since(Instant::now()))
            {
                Ok(line) => self.seen.push(line),
                Err(RecvTimeoutError::Timeout) => bail!(
                    "{}: no {what} within {deadline:?}; last seen: {:?}\n{}",
                    self.name,
                    self.seen.last().map(|(_, line)| line),
                    self.log_tail()
                ),
                Err(RecvTimeoutError::Disconnected) => {
                    bail!(
                        "{} ended while waiting for {what}\n{}",
                        self.name,
                        self.log_tail()
                    )
                }
            }
        }
    }

    fn log_tail(&self) -> String {
        const LINES: usize = 20;
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }
}

impl Drop for App {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ends when the application closes its stdout.
fn forward(stdout: ChildStdout, sender: &std::sync::mpsc::Sender<(Instant, Line)>) {
    for text in BufReader::new(stdout).lines().map_while(Result::ok) {
        let Ok(line) = serde_json::from_str::<Line>(&text) else {
            continue;
        };
        if sender.send((Instant::now(), line)).is_err() {
            return;
        }
    }
}
