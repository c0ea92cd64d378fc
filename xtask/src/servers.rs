//! `cargo xtask servers`: a set of servers that stays up in the background.
//!
//! `up` starts a supervisor, which is this program in a session of its own; it owns the servers, so they end with it. The supervisor
//! holds a file lock for as long as it lives, which is how the other commands know that it does.

mod state;

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command as Process, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, setsid};
use standfast_servers::{Consul, KafkaCluster, Progress, Server, Terminal, Vault, obtain};

use state::{Folder, KafkaState, ServerState, State};

const UP_DEADLINE: Duration = Duration::from_secs(300);
const DOWN_DEADLINE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);

/// Subcommands of `cargo xtask servers`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Start the servers (if they do not run) and print their addresses
    Up(Format),
    /// End the servers and remove their data
    Down,
    /// Print the servers' addresses and whether they run; exit code 1 if any does not
    Status(Format),
    /// Own the servers until killed (started by `up`)
    #[command(hide = true)]
    Supervise,
}

/// How to print.
#[derive(Debug, clap::Args)]
pub(crate) struct Format {
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
enum Output {
    #[default]
    Table,
    Json,
}

pub(crate) fn run(command: &Command) -> Result<ExitCode> {
    let folder = Folder::open()?;
    match command {
        Command::Up(format) => up(&folder, format.output),
        Command::Down => down(&folder),
        Command::Status(format) => status(&folder, format.output),
        Command::Supervise => supervise(&folder),
    }
}

fn up(folder: &Folder, output: Output) -> Result<ExitCode> {
    if folder.is_locked()? {
        eprintln!("the servers run already");
        return status(folder, output);
    }
    let progress = Terminal::new();
    obtain(&Server::ALL, &progress)?;
    folder.clear()?;
    let log = folder.log();
    let out = File::create(&log).with_context(|| format!("create {}", log.display()))?;
    let mut supervisor = Process::new(std::env::current_exe().context("find this program")?)
        .args(["servers", "supervise"])
        .stdin(Stdio::null())
        .stdout(out.try_clone().context("open the supervisor's log")?)
        .stderr(out)
        .spawn()
        .context("start the supervisor")?;
    progress.begin("starting Kafka west and east, Consul and Vault");
    let started = wait_for_state(folder, &mut supervisor, &progress);
    progress.end(if started.is_ok() { "done" } else { "failed" });
    if let Err(error) = started {
        // Its watchdogs end the servers that it had started.
        let _ = supervisor.kill();
        return Err(error);
    }
    status(folder, output)
}

fn wait_for_state(folder: &Folder, supervisor: &mut Child, progress: &dyn Progress) -> Result<()> {
    let deadline = Instant::now() + UP_DEADLINE;
    while folder.read()?.is_none() {
        if let Some(status) = supervisor.try_wait().context("look at the supervisor")? {
            let log = fs::read_to_string(folder.log()).unwrap_or_default();
            bail!("the supervisor ended with {status}:\n{log}");
        }
        if Instant::now() > deadline {
            bail!(
                "the servers are not up after {UP_DEADLINE:?}; see {}",
                folder.log().display()
            );
        }
        progress.tick("");
        thread::sleep(POLL);
    }
    Ok(())
}

fn supervise(folder: &Folder) -> Result<ExitCode> {
    // Away from the terminal's session: neither Ctrl-C nor closing the terminal reaches it. Fails only for a group leader.
    let _ = setsid();
    let lock = folder.lock()?;
    let west = thread::spawn(|| KafkaCluster::start("west"));
    let east = thread::spawn(|| KafkaCluster::start("east"));
    let consul = Consul::start()?;
    let vault = Vault::start()?;
    let joined = |cluster: thread::JoinHandle<_>| {
        cluster
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    };
    let (west, east): (KafkaCluster, KafkaCluster) = (joined(west)?, joined(east)?);
    folder.write(&State {
        supervisor: std::process::id(),
        kafka: vec![KafkaState::of(&west), KafkaState::of(&east)],
        consul: ServerState {
            address: consul.addr(),
            pid: consul.pid().unwrap_or_default(),
        },
        vault: ServerState {
            address: vault.addr(),
            pid: vault.pid().unwrap_or_default(),
        },
        vault_root_token: vault.root_token().to_owned(),
    })?;
    loop {
        thread::park();
        // Only here so that the lock and the servers live as long as the process.
        let _alive = (&lock, &west, &east, &consul, &vault);
    }
}

fn down(folder: &Folder) -> Result<ExitCode> {
    let Some(pid) = folder
        .supervisor()?
        .filter(|_| folder.is_locked().unwrap_or(false))
    else {
        folder.clear()?;
        eprintln!("the servers do not run");
        return Ok(ExitCode::SUCCESS);
    };
    let pids = folder.read()?.map(|state| state.pids()).unwrap_or_default();
    let supervisor = Pid::from_raw(i32::try_from(pid).context("supervisor's process id")?);
    kill(supervisor, Signal::SIGTERM)
        .with_context(|| format!("end the supervisor, process {pid}"))?;
    let deadline = Instant::now() + DOWN_DEADLINE;
    while folder.is_locked()? || pids.iter().any(|pid| state::is_running(*pid)) {
        if Instant::now() > deadline {
            bail!(
                "the servers (processes {pids:?}) still run {DOWN_DEADLINE:?} after their supervisor was ended"
            );
        }
        thread::sleep(POLL);
    }
    folder.clear()?;
    eprintln!("the servers have ended");
    Ok(ExitCode::SUCCESS)
}

fn status(folder: &Folder, output: Output) -> Result<ExitCode> {
    let state = folder
        .read()?
        .filter(|_| folder.is_locked().unwrap_or(false));
    let all_run = state
        .as_ref()
        .is_some_and(|state| state.pids().into_iter().all(state::is_running));
    match (output, &state) {
        (Output::Json, None) => println!("{}", serde_json::json!({"running": false})),
        (Output::Json, Some(state)) => {
            let mut value = serde_json::to_value(state).context("write JSON")?;
            value["running"] = all_run.into();
            println!("{value:#}");
        }
        (Output::Table, None) => {
            println!("the servers do not run; `cargo xtask servers up` starts them")
        }
        (Output::Table, Some(state)) => print!("{}", state.table()),
    }
    Ok(if all_run {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Readable by the owner only: the state holds Vault's root token.
fn private_file() -> fs::OpenOptions {
    let mut options = File::options();
    options.create(true).write(true).mode(0o600);
    options
}
