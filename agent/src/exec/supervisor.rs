//! The one owner of the program: starts, stops and signals it as the fleet wants.

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep_until};

use super::file::RenderedFiles;
use super::program::{Program, Signals, killed_by};
use super::properties;
use super::settings::{OnChange, OnFence, Settings};
use super::sources::{Sources, Target};

/// Far enough for "never".
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Runs one program after the other.
#[derive(Debug)]
pub(super) struct Supervisor {
    settings: Settings,
    wanted: Target,
    running: Option<Running>,
    /// The signal that ends this process.
    ending: Option<Signal>,
    files: RenderedFiles,
}

#[derive(Debug)]
struct Running {
    program: Program,
    /// What it has been told of.
    told: Target,
    /// It was asked to end, and is killed then.
    kill_at: Option<Instant>,
}

/// What happens next.
enum Event {
    Ended(u8),
    Late,
    Wanted(Box<Target>),
    Signal(Signal),
}

impl Supervisor {
    pub(super) fn new(settings: Settings, first: Target) -> Self {
        Self {
            settings,
            wanted: first,
            running: None,
            ending: None,
            files: RenderedFiles::default(),
        }
    }

    /// Until the program ends by itself or is ended by a signal to this process; its exit code.
    pub(super) async fn run(
        mut self,
        mut sources: Sources,
        mut signals: Signals,
    ) -> anyhow::Result<u8> {
        loop {
            if let Some(code) = self.settle()? {
                return Ok(code);
            }
            match self.event(&mut sources, &mut signals).await? {
                Event::Wanted(target) => self.wanted = *target,
                Event::Signal(signal) => self.signalled(signal),
                Event::Late => self.kill(),
                Event::Ended(code) => {
                    let asked = self
                        .running
                        .take()
                        .is_some_and(|running| running.kill_at.is_some());
                    if !asked || self.ending.is_some() {
                        tracing::info!(code, "the program has ended");
                        return Ok(code);
                    }
                }
            }
        }
    }

    /// Brings the program to where it should be, as far as that goes without waiting. The exit code if all is over.
    fn settle(&mut self) -> anyhow::Result<Option<u8>> {
        let held = self.wanted.fenced && self.settings.on_fence == OnFence::Stop;
        let Some(running) = &mut self.running else {
            if let Some(signal) = self.ending {
                return Ok(Some(killed_by(signal)));
            }
            return if held { Ok(None) } else { self.start() };
        };
        if running.kill_at.is_some() {
            return Ok(None);
        }
        let told = self.wanted.is_reached_as(&running.told);
        match self.settings.on_change {
            _ if held => self.stop("the fleet is fenced"),
            _ if told => {}
            OnChange::Restart => self.stop("the cluster or its credentials changed"),
            OnChange::Signal(signal) => {
                running.told = self.wanted.clone();
                if let Some(render) = &self.settings.render
                    && let Err(error) = self.files.write(&self.wanted, render)
                {
                    // The program works on with what it has; ending it would help nobody.
                    tracing::error!(
                        error = format!("{error:#}"),
                        "the program was not told of the new cluster"
                    );
                    return Ok(None);
                }
                tracing::info!(cluster = %self.wanted.cluster, epoch = %self.wanted.epoch, %signal, "program signalled");
                running.program.send(signal);
            }
        }
        Ok(None)
    }

    fn start(&mut self) -> anyhow::Result<Option<u8>> {
        if let Some(render) = &self.settings.render {
            self.files.write(&self.wanted, render)?;
        }
        let variables = properties::variables(&self.wanted, self.settings.render.as_ref());
        match Program::start(&self.settings, &variables) {
            Ok(program) => {
                let Target { cluster, epoch, .. } = &self.wanted;
                tracing::info!(%cluster, %epoch, pid = program.id(), "program started");
                self.running = Some(Running {
                    program,
                    told: self.wanted.clone(),
                    kill_at: None,
                });
                Ok(None)
            }
            Err((code, error)) => {
                tracing::error!(error = format!("{error:#}"), "program not started");
                Ok(Some(code))
            }
        }
    }

    fn stop(&mut self, why: &str) {
        let Some(running) = &mut self.running else {
            return;
        };
        let Target { cluster, epoch, .. } = &self.wanted;
        tracing::info!(%cluster, %epoch, why, "program is stopped");
        running.program.send(Signal::SIGTERM);
        running.kill_at = Some(Instant::now() + self.settings.kill_timeout);
    }

    fn kill(&mut self) {
        let Some(running) = &mut self.running else {
            return;
        };
        tracing::warn!(after = ?self.settings.kill_timeout, "the program has not ended, it is killed");
        running.program.send(Signal::SIGKILL);
        running.kill_at = Some(Instant::now() + NEVER);
    }

    fn signalled(&mut self, signal: Signal) {
        let ends = matches!(signal, Signal::SIGTERM | Signal::SIGINT);
        let again = ends && self.ending.is_some();
        if ends {
            self.ending = Some(signal);
        }
        let Some(running) = &mut self.running else {
            return;
        };
        if again {
            return self.kill();
        }
        if !(signal == Signal::SIGINT && running.program.shares_terminal()) {
            running.program.send(signal);
        }
        if ends && running.kill_at.is_none() {
            running.kill_at = Some(Instant::now() + self.settings.kill_timeout);
        }
    }

    async fn event(
        &mut self,
        sources: &mut Sources,
        signals: &mut Signals,
    ) -> anyhow::Result<Event> {
        let kill_at = self.running.as_ref().and_then(|running| running.kill_at);
        let ended = async {
            match &mut self.running {
                Some(running) => running.program.ended().await,
                None => std::future::pending().await,
            }
        };
        Ok(tokio::select! {
            code = ended => Event::Ended(code?),
            () = sleep_until(kill_at.unwrap_or_else(Instant::now)), if kill_at.is_some() => Event::Late,
            target = sources.next() => Event::Wanted(Box::new(target?)),
            signal = signals.next() => Event::Signal(signal),
        })
    }
}
