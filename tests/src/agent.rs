//! The `standfast` binary as a child process, and its command line.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use standfast_servers::{Profile, ServerProcess, workspace_program};

use crate::pair::Pair;
use crate::wait;

/// Exit code of `fleet init` when there is a record already: several agents share one fleet.
const RECORD_EXISTS: i32 = 5;
const READY: Duration = Duration::from_secs(30);
const EXIT: Duration = Duration::from_secs(20);

/// Configuration of an agent, written as its TOML file.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// The agent's name.
    pub name: String,
    /// The `[discovery]` table, without its heading.
    pub discovery: String,
    /// The `[secrets]` table, without its heading.
    pub secrets: String,
    /// Further lines of `[clusters.west]`.
    pub west_lines: String,
    /// Further lines of `[clusters.east]`.
    pub east_lines: String,
    /// Bootstrap of west and east.
    pub bootstrap: [String; 2],
    /// Source and destination of the link: west and east, unless changed.
    pub link: [&'static str; 2],
    /// Name of the link, if it is not `SOURCE-to-DESTINATION`. Those that agents share need names of their own on clusters that tests share.
    pub link_name: Option<&'static str>,
    /// Mirrored topics of the link.
    pub topics: Vec<String>,
    /// Groups whose offsets are carried over.
    pub groups: Vec<String>,
    /// Further lines of the link's table, and further tables after it.
    pub link_lines: String,
}

impl AgentConfig {
    /// File discovery, no secrets, the link `west-to-east` with these topics.
    pub fn of(pair: &Pair, topics: &[&str]) -> Self {
        Self {
            name: "east-1".to_owned(),
            discovery: format!("backend = \"file\"\npath = {:?}", pair.discovery_folder()),
            secrets: "backend = \"none\"".to_owned(),
            west_lines: String::new(),
            east_lines: String::new(),
            bootstrap: [pair.west.bootstrap(), pair.east.bootstrap()],
            link: ["west", "east"],
            link_name: None,
            topics: topics.iter().map(|&topic| topic.to_owned()).collect(),
            groups: Vec::new(),
            link_lines: String::new(),
        }
    }

    /// What the link is called.
    fn link_name(&self) -> String {
        let [source, destination] = self.link;
        let name = self.link_name.map(str::to_owned);
        name.unwrap_or_else(|| format!("{source}-to-{destination}"))
    }

    fn render(&self, listen: &str, data_dir: &Path) -> String {
        let link_name = self.link_name();
        let Self {
            name,
            discovery,
            secrets,
            west_lines,
            east_lines,
            bootstrap,
            link: [source, destination],
            link_name: _,
            topics,
            groups,
            link_lines,
        } = self;
        let [west, east] = bootstrap;
        format!(
            "[agent]\nname = {name:?}\nlisten = {listen:?}\ndata_dir = {data_dir:?}\n\n\
             [fleet]\nname = \"payments\"\n\n[discovery]\n{discovery}\n\n[secrets]\n{secrets}\n\n\
             [clusters.west]\nbootstrap = {west:?}\n{west_lines}\n\n[clusters.east]\nbootstrap = {east:?}\n{east_lines}\n\n\
             [[links]]\nname = {link_name:?}\nsource = {source:?}\ndestination = {destination:?}\ntopics = {topics:?}\ngroups = {groups:?}\n{link_lines}\n"
        )
    }
}

/// A running agent. Dropping it kills it.
#[derive(Debug)]
pub struct Agent {
    process: Option<ServerProcess>,
    folder: PathBuf,
    listen: String,
    link: String,
}

impl Agent {
    /// Writes the configuration into a folder of its own, creates the fleet record with west active if there is none, starts the
    /// agent and waits until it is ready.
    pub fn start(pair: &Pair, config: &AgentConfig) -> Self {
        let mut agent = Self::prepare(pair.folder(), config);
        let init = agent.cli(&[
            "fleet",
            "init",
            "--config",
            &agent.config_file(),
            "--active",
            "west",
        ]);
        assert!(
            init.status.success() || init.status.code() == Some(RECORD_EXISTS),
            "fleet init: {}",
            String::from_utf8_lossy(&init.stderr)
        );
        agent.spawn();
        agent.wait_ready();
        agent
    }

    /// Writes the configuration and starts nothing.
    pub fn prepare(folder: &Path, config: &AgentConfig) -> Self {
        let folder = folder.join(&config.name);
        fs::create_dir_all(folder.join("data")).expect("agent folder");
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a free port")
            .port();
        let listen = format!("127.0.0.1:{port}");
        let text = config.render(&listen, &folder.join("data"));
        fs::write(folder.join("agent.toml"), text).expect("write agent.toml");
        Self {
            process: None,
            folder,
            listen,
            link: config.link_name(),
        }
    }

    /// Name of its link.
    pub fn link(&self) -> &str {
        &self.link
    }

    /// Path of the configuration file.
    pub fn config_file(&self) -> String {
        self.folder.join("agent.toml").display().to_string()
    }

    /// Base URL of the HTTP API.
    pub fn url(&self) -> String {
        format!("http://{}", self.listen)
    }

    /// Starts the process, which appends to its log. It does not outlive this one, even if that is killed.
    pub fn spawn(&mut self) {
        let mut command = Command::new(program());
        command
            .args(["agent", "--config", &self.config_file()])
            .env("RUST_LOG", "info");
        let process = ServerProcess::spawn(command, &self.folder.join("agent.log"), None);
        self.process = Some(process.expect("start the agent"));
    }

    /// Waits until the HTTP API answers.
    pub fn wait_ready(&mut self) {
        wait::until("the agent answers", READY, || {
            if let Some(status) = self.process.as_mut().and_then(ServerProcess::exited) {
                panic!("the agent ended with {status}:\n{}", self.log());
            }
            let output = self.cli(&["status", "--output", "json"]);
            if output.status.success() {
                Ok(())
            } else {
                Err(String::from_utf8_lossy(&output.stderr).into_owned())
            }
        });
    }

    /// What the agent has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("agent.log")).unwrap_or_default()
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().map_or(0, ServerProcess::pid)
    }

    /// Peak resident memory so far, in KiB.
    pub fn peak_memory_kib(&self) -> u64 {
        let file = format!("/proc/{}/status", self.pid());
        let status = fs::read_to_string(file).expect("the agent runs");
        let line = status.lines().find(|line| line.starts_with("VmHWM:"));
        let value = line.and_then(|line| line.split_whitespace().nth(1));
        value.expect("VmHWM").parse().expect("number")
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        if let Some(process) = &self.process {
            kill(Pid::from_raw(process.pid().cast_signed()), signal).expect("signal the agent");
        }
    }

    /// SIGKILL, as a lost machine.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// SIGTERM; returns whether the exit status was success. Panics when it does not end in time.
    pub fn stop(&mut self) -> bool {
        self.signal(Signal::SIGTERM);
        let Some(mut process) = self.process.take() else {
            return false;
        };
        let status = wait::until("the agent ends after SIGTERM", EXIT, || {
            process.exited().ok_or("still running")
        });
        status.success()
    }

    /// Runs a command of the command line against this agent.
    pub fn cli(&self, args: &[&str]) -> Output {
        Command::new(program())
            .args(args)
            .env("STANDFAST_AGENT", self.url())
            .stdin(Stdio::null())
            .output()
            .expect("run standfast")
    }

    /// Runs a command with `--output json`, expects success and returns what it printed.
    pub fn json(&self, args: &[&str]) -> Value {
        let output = self.cli(&[args, &["--output", "json"]].concat());
        assert!(
            output.status.success(),
            "standfast {args:?}: {}\n{}\nagent log:\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr),
            self.log()
        );
        serde_json::from_slice(&output.stdout).expect("JSON on stdout")
    }

    /// The mirror's description.
    pub fn mirror(&self, topic: &str) -> Value {
        self.json(&["mirror", "describe", topic])["data"][0].clone()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- agent log ---\n{}", self.log());
        }
        self.kill();
    }
}

/// Path of the `standfast` binary.
pub fn program() -> PathBuf {
    workspace_program("standfast", Profile::Dev).expect("the standfast binary")
}
