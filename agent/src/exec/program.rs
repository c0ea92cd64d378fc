//! The program as a child process, and the signals that this process is sent.

use std::io::IsTerminal;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use anyhow::Context;
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::signal::unix::{self, SignalKind};
use zeroize::Zeroizing;

use super::settings::Settings;

/// Added to the number of the signal that killed the program, as shells do.
const KILLED: u8 = 128;

/// Exit code of a program that `signal` has killed.
pub(super) fn killed_by(signal: Signal) -> u8 {
    KILLED | (signal as i32 & 0x7f) as u8
}

/// A program that runs. Dropping it kills it.
#[derive(Debug)]
pub(super) struct Program {
    child: Child,
    id: Pid,
    /// Signals go to the whole group, so that those of `sh -c` reach what it runs. On a terminal the program stays in our
    /// group: it could not read from the terminal otherwise.
    own_group: bool,
}

impl Program {
    /// # Errors
    /// The exit code (126 or 127) and what failed.
    pub(super) fn start(
        settings: &Settings,
        variables: &[(&str, Zeroizing<String>)],
    ) -> Result<Self, (u8, anyhow::Error)> {
        const CANNOT_RUN: u8 = 126;
        const NOT_FOUND: u8 = 127;
        let own_group = !std::io::stdin().is_terminal();
        let mut command = Command::new(&settings.program);
        command.args(&settings.arguments).kill_on_drop(true);
        command.envs(
            variables
                .iter()
                .map(|(name, value)| (*name, value.as_str())),
        );
        if own_group {
            command.process_group(0);
        }
        let failed = |error: std::io::Error| {
            let code = match error.kind() {
                std::io::ErrorKind::NotFound => NOT_FOUND,
                _ => CANNOT_RUN,
            };
            let program = settings.program.to_string_lossy();
            (
                code,
                anyhow::Error::from(error).context(format!("cannot run {program}")),
            )
        };
        let child = command.spawn().map_err(failed)?;
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        let Some(id) = id.map(Pid::from_raw) else {
            return Err((CANNOT_RUN, anyhow::anyhow!("the program has no process id")));
        };
        Ok(Self {
            child,
            id,
            own_group,
        })
    }

    pub(super) fn id(&self) -> i32 {
        self.id.as_raw()
    }

    /// Waits for its end; its exit code. Cancel-safe.
    pub(super) async fn ended(&mut self) -> anyhow::Result<u8> {
        let status = self
            .child
            .wait()
            .await
            .context("cannot wait for the program")?;
        // What it may have left running in its group would go on using the old cluster.
        if self.own_group {
            let _ = signal::killpg(self.id, Signal::SIGKILL);
        }
        Ok(code(status))
    }

    pub(super) fn send(&self, signal: Signal) {
        let sent = if self.own_group {
            signal::killpg(self.id, signal)
        } else {
            signal::kill(self.id, signal)
        };
        if let Err(error) = sent {
            tracing::warn!(%signal, %error, "the program could not be signalled");
        }
    }

    /// Whether the terminal has sent Ctrl-C to the program too.
    pub(super) fn shares_terminal(&self) -> bool {
        !self.own_group
    }
}

fn code(status: ExitStatus) -> u8 {
    let code = status.code().map(|code| (code & 0xff) as u8);
    let killed = || Signal::try_from(status.signal()?).ok().map(killed_by);
    code.or_else(killed).unwrap_or(KILLED)
}

/// Signals to this process.
#[derive(Debug)]
pub(super) struct Signals {
    ending: [(Signal, unix::Signal); 2],
    others: [(Signal, unix::Signal); 4],
}

impl Signals {
    pub(super) fn listen() -> anyhow::Result<Self> {
        let listen = |signal: Signal| -> anyhow::Result<_> {
            let listener = unix::signal(SignalKind::from_raw(signal as i32))
                .with_context(|| format!("cannot listen for {signal}"))?;
            Ok((signal, listener))
        };
        Ok(Self {
            ending: [listen(Signal::SIGTERM)?, listen(Signal::SIGINT)?],
            others: [
                listen(Signal::SIGHUP)?,
                listen(Signal::SIGQUIT)?,
                listen(Signal::SIGUSR1)?,
                listen(Signal::SIGUSR2)?,
            ],
        })
    }

    /// The next signal to end. Cancel-safe.
    pub(super) async fn ending(&mut self) -> Signal {
        received(&mut self.ending).await
    }

    /// The next signal, of any kind. Cancel-safe.
    pub(super) async fn next(&mut self) -> Signal {
        tokio::select! {
            signal = received(&mut self.ending) => signal,
            signal = received(&mut self.others) => signal,
        }
    }
}

async fn received(signals: &mut [(Signal, unix::Signal)]) -> Signal {
    let found = std::future::poll_fn(|context| {
        for (signal, listener) in signals.iter_mut() {
            if listener.poll_recv(context).is_ready() {
                return std::task::Poll::Ready(*signal);
            }
        }
        std::task::Poll::Pending
    });
    found.await
}
