//! The servers and the agent of the story.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use standfast_servers::{
    Consul, KafkaCluster, Profile, Server, ServerProcess, Terminal, Vault, obtain,
    workspace_program,
};
use tempfile::TempDir;

use super::{Arguments, FLEET, GROUP, TOPIC};

const USER: &str = "standfast-demo";
const POLL: Duration = Duration::from_millis(20);

/// West, east, the agent at east and, if asked for, Consul and Vault. All end with this value.
#[derive(Debug)]
pub(super) struct Region {
    agent: Option<ServerProcess>,
    west: KafkaCluster,
    east: KafkaCluster,
    consul: Option<Consul>,
    vault: Option<Vault>,
    listen: String,
    folder: TempDir,
}

impl Region {
    pub(super) fn start(arguments: &Arguments) -> Result<Self> {
        workspace_program("standfast", Profile::Dev)?;
        let mut wanted = vec![Server::Kafka];
        wanted.extend(arguments.consul.then_some(Server::Consul));
        wanted.extend(arguments.vault.then_some(Server::Vault));
        obtain(&wanted, &Terminal::new())?;
        let password = random_password()?;
        let cluster = |name: &str| {
            let builder = KafkaCluster::builder(name);
            if arguments.vault {
                builder.sasl_plain(USER, &password).start()
            } else {
                builder.start()
            }
        };
        let (west, east, consul, vault) = thread::scope(|scope| {
            let west = scope.spawn(|| cluster("west"));
            let east = scope.spawn(|| cluster("east"));
            let consul = arguments.consul.then(|| scope.spawn(Consul::start));
            let vault = arguments.vault.then(|| scope.spawn(Vault::start));
            (
                west.join(),
                east.join(),
                consul.map(|thread| thread.join()),
                vault.map(|thread| thread.join()),
            )
        });
        const PANIC: &str = "a server could not be started";
        let (west, east) = (west.ok().context(PANIC)??, east.ok().context(PANIC)??);
        let consul = consul
            .map(|joined| joined.ok().context(PANIC))
            .transpose()?
            .transpose()?;
        let vault = vault
            .map(|joined| joined.ok().context(PANIC))
            .transpose()?
            .transpose()?;
        west.create_topic(TOPIC, 1, &[])?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let region = Self {
            agent: None,
            west,
            east,
            consul,
            vault,
            listen: format!("127.0.0.1:{port}"),
            folder: tempfile::Builder::new()
                .prefix("standfast-demo-")
                .tempdir()?,
        };
        region.write_configuration(&password)?;
        Ok(region)
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(super) fn application_config(&self) -> PathBuf {
        self.folder.path().join("standfast.toml")
    }

    pub(super) fn addresses(&self) -> String {
        let mut lines = vec![format!(
            "west {}   east {}",
            self.west.bootstrap(),
            self.east.bootstrap()
        )];
        lines.push(match &self.consul {
            Some(consul) => format!("discovery: Consul at {}", consul.addr()),
            None => "discovery: a file".to_owned(),
        });
        lines.push(match &self.vault {
            Some(vault) => format!(
                "credentials: Vault at {}; the clusters demand SASL",
                vault.addr()
            ),
            None => "credentials: none".to_owned(),
        });
        lines.join("\n")
    }

    /// Creates the fleet record, starts the agent and waits until the mirror runs.
    pub(super) fn start_agent(&mut self) -> Result<()> {
        let config = self.agent_config();
        self.standfast(&["fleet", "init", "--config", &config, "--active", "west"])?;
        let mut command = Command::new(workspace_program("standfast", Profile::Dev)?);
        command.args(["agent", "--config", &config]);
        let log = self.folder.path().join("agent.log");
        self.agent = Some(ServerProcess::spawn(
            command,
            &log,
            Some(self.folder.path()),
        )?);
        self.wait("the mirror is ACTIVE", super::STEP_DEADLINE, |region| {
            if region
                .agent
                .as_mut()
                .is_none_or(|agent| agent.exited().is_some())
            {
                bail!(
                    "the agent has ended:\n{}",
                    fs::read_to_string(&log).unwrap_or_default()
                );
            }
            let mirror = region.standfast(&["mirror", "describe", TOPIC])?;
            Ok(mirror
                .pointer("/data/0/mirror_status")
                .and_then(Value::as_str)
                == Some("ACTIVE"))
        })
    }

    /// Waits until the mirror says lag 0 and east's log really ends at `log_end`.
    pub(super) fn wait_for_lag_zero(&self, log_end: i64, deadline: Duration) -> Result<()> {
        let end = Instant::now() + deadline;
        loop {
            let mirror = self.standfast(&["mirror", "describe", TOPIC])?;
            let lag = mirror
                .pointer("/data/0/mirror_lags/0/lag")
                .and_then(Value::as_i64);
            if lag == Some(0) && self.east.log_end_offsets(TOPIC)? == [log_end] {
                return Ok(());
            }
            ensure!(
                Instant::now() < end,
                "no lag 0 at offset {log_end} within {deadline:?}: {mirror}"
            );
            thread::sleep(POLL);
        }
    }

    /// Waits until Kafka's own tool says that the group is at this offset on east.
    pub(super) fn wait_for_group_offset(&self, offset: i64, deadline: Duration) -> Result<()> {
        let end = Instant::now() + deadline;
        loop {
            let committed = self.committed_on_east()?;
            if committed == Some(offset) {
                return Ok(());
            }
            ensure!(
                Instant::now() < end,
                "group {GROUP} is at {committed:?} on east, not at {offset}"
            );
        }
    }

    /// Waits until the consumer has committed east's log end: it has then got all that there is.
    pub(super) fn wait_until_group_is_done(&self, deadline: Duration) -> Result<()> {
        let log_end = self
            .east
            .log_end_offsets(TOPIC)?
            .first()
            .copied()
            .context("east has no partition")?;
        self.wait_for_group_offset(log_end, deadline)
    }

    pub(super) fn kill_west(&mut self) {
        self.west.kill();
    }

    pub(super) fn west_is_dead(&self) -> bool {
        self.west.pids().is_empty()
    }

    pub(super) fn failover(&self) -> Result<Value> {
        self.standfast(&["failover", "--yes", "--reason", "demo: west was killed"])
    }

    /// Runs a command of the command line; what it printed as JSON.
    fn standfast(&self, args: &[&str]) -> Result<Value> {
        let output = Command::new(workspace_program("standfast", Profile::Dev)?)
            .args(args)
            .args(["--output", "json"])
            .env("STANDFAST_AGENT", format!("http://{}", self.listen))
            .stdin(Stdio::null())
            .output()
            .context("run standfast")?;
        ensure!(
            output.status.success(),
            "standfast {}: {}\n{}",
            args.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("standfast {} printed no JSON", args.join(" ")))
    }

    /// The group's committed offset on east as Kafka's own tool prints it: `GROUP TOPIC PARTITION CURRENT-OFFSET …`.
    fn committed_on_east(&self) -> Result<Option<i64>> {
        let bootstrap = self.east.bootstrap();
        let output = self.east.tool(
            "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
            &[
                "--bootstrap-server",
                &bootstrap,
                "--describe",
                "--group",
                GROUP,
            ],
        )?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let of_group = |line: &str| {
            let mut words = line.split_whitespace();
            let found = words.next() == Some(GROUP) && words.next() == Some(TOPIC);
            found.then(|| words.nth(1)?.parse().ok()).flatten()
        };
        Ok(text.lines().find_map(of_group))
    }

    fn wait(
        &mut self,
        what: &str,
        deadline: Duration,
        mut done: impl FnMut(&mut Self) -> Result<bool>,
    ) -> Result<()> {
        let end = Instant::now() + deadline;
        let mut last = None;
        while Instant::now() < end {
            match done(self) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error)
                    if self
                        .agent
                        .as_mut()
                        .is_none_or(|agent| agent.exited().is_some()) =>
                {
                    return Err(error);
                }
                Err(error) => last = Some(error),
            }
            thread::sleep(POLL);
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("{what}: not within {deadline:?}")))
    }

    fn agent_config(&self) -> String {
        self.folder.path().join("agent.toml").display().to_string()
    }

    fn write_configuration(&self, password: &str) -> Result<()> {
        let folder = self.folder.path();
        let discovery = match &self.consul {
            Some(consul) => format!("backend = \"consul\"\naddresses = [\"{}\"]", consul.addr()),
            None => format!("backend = \"file\"\npath = {:?}", folder.join("discovery")),
        };
        let secrets = match &self.vault {
            Some(vault) => {
                for cluster in ["west", "east"] {
                    let fields = [
                        ("username", USER),
                        ("password", password),
                        ("sasl_mechanism", "PLAIN"),
                    ];
                    vault.put_secret(&format!("kafka/{cluster}"), &fields)?;
                }
                format!(
                    "backend = \"vault\"\naddress = \"{}\"\nauth = {{ method = \"token\", token_file = {:?} }}",
                    vault.addr(),
                    folder.join("vault-token")
                )
            }
            None => "backend = \"none\"".to_owned(),
        };
        if let Some(vault) = &self.vault {
            let file = folder.join("vault-token");
            fs::write(&file, vault.root_token())?;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
        }
        let agent = format!(
            "[agent]\nname = \"east-1\"\nlisten = \"{}\"\ndata_dir = {:?}\n\n[fleet]\nname = \"{FLEET}\"\n\n\
             [discovery]\n{discovery}\n\n[secrets]\n{secrets}\n\n{}\n{}\n\
             [[links]]\nname = \"west-to-east\"\nsource = \"west\"\ndestination = \"east\"\ntopics = [\"{TOPIC}\"]\n\
             groups = [\"{GROUP}\"]\ngroup_sync_interval = \"1s\"\n",
            self.listen,
            folder.join("data"),
            cluster_table("west", &self.west),
            cluster_table("east", &self.east),
        );
        fs::create_dir_all(folder.join("data"))?;
        fs::create_dir_all(folder.join("discovery"))?;
        fs::write(folder.join("agent.toml"), agent)?;
        fs::write(
            self.application_config(),
            format!("[discovery]\n{discovery}\n\n[secrets]\n{secrets}\n"),
        )?;
        Ok(())
    }
}

/// The `[clusters.NAME]` table: with SASL and a secret if the cluster has such a listener.
fn cluster_table(name: &str, cluster: &KafkaCluster) -> String {
    let id = cluster.cluster_id();
    match cluster.sasl_bootstrap() {
        Some(bootstrap) => format!(
            "[clusters.{name}]\nbootstrap = \"{bootstrap}\"\ncluster_id = \"{id}\"\nsecurity_protocol = \"SASL_PLAINTEXT\"\n\
             sasl_mechanism = \"PLAIN\"\nsecret = \"kafka/{name}\"\n"
        ),
        None => format!(
            "[clusters.{name}]\nbootstrap = \"{}\"\ncluster_id = \"{id}\"\n",
            cluster.bootstrap()
        ),
    }
}

/// For servers of the demo only, which are gone with it.
fn random_password() -> Result<String> {
    let mut bytes = [0u8; 16];
    std::io::Read::read_exact(&mut fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
