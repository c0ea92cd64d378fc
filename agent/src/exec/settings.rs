//! What to run and how, from the command line, the environment and a file.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use nix::sys::signal::Signal;
use serde::Deserialize;
use serde::de::IgnoredAny;
use standfast_discovery::{ConsulOptions, DiscoveryOptions, FleetName};
use standfast_secrets::{SecretsOptions, VaultAuth, VaultOptions};

use crate::logging::LogFormat;

/// How long to wait for the record and the credentials, as the wrapper does.
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest configuration file, in bytes.
const MAX_FILE: u64 = 1024 * 1024;

#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// The fleet to follow.
    #[arg(long, env = "STANDFAST_FLEET", value_name = "NAME")]
    fleet: FleetName,
    /// TOML file with [discovery] and [secrets]: the wrapper's or the agent's.
    #[arg(long, short, env = "STANDFAST_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Consul, instead of the file's [discovery] [default: http://127.0.0.1:8500].
    #[arg(
        long,
        env = "STANDFAST_CONSUL_ADDR",
        value_delimiter = ',',
        value_name = "URL"
    )]
    consul_addr: Vec<String>,
    /// File with Consul's ACL token; otherwise CONSUL_HTTP_TOKEN is used.
    #[arg(
        long,
        env = "STANDFAST_CONSUL_TOKEN_FILE",
        requires = "consul_addr",
        value_name = "FILE"
    )]
    consul_token_file: Option<PathBuf>,
    /// Folder of the file discovery backend, instead of the file's [discovery].
    #[arg(
        long,
        env = "STANDFAST_DISCOVERY_DIR",
        conflicts_with = "consul_addr",
        value_name = "DIR"
    )]
    discovery_dir: Option<PathBuf>,
    /// Vault, instead of the file's [secrets]; the token is in VAULT_TOKEN or in a file.
    #[arg(long, env = "STANDFAST_VAULT_ADDR", value_name = "URL")]
    vault_addr: Option<String>,
    /// File with Vault's token.
    #[arg(
        long,
        env = "STANDFAST_VAULT_TOKEN_FILE",
        requires = "vault_addr",
        value_name = "FILE"
    )]
    vault_token_file: Option<PathBuf>,
    /// File with the clusters' credentials, instead of the file's [secrets].
    #[arg(
        long,
        env = "STANDFAST_SECRETS_FILE",
        conflicts_with = "vault_addr",
        value_name = "FILE"
    )]
    secrets_file: Option<PathBuf>,
    /// Write the properties of the connection to this file instead of putting secrets into the environment.
    #[arg(long, value_name = "FILE")]
    render: Option<PathBuf>,
    /// How the file is written: for librdkafka (kcat, Python, Go, .NET …) or for the Java client.
    #[arg(long, value_enum, default_value_t = Format::Librdkafka, requires = "render")]
    format: Format,
    /// One more property for the file, for example group.id=workers.
    #[arg(long = "set", value_name = "NAME=VALUE", requires = "render", value_parser = property)]
    set: Vec<(String, String)>,
    /// Send this signal on a flip instead of restarting the program.
    #[arg(long, value_name = "HUP|USR1|…", requires = "render", value_parser = signal)]
    signal: Option<Signal>,
    /// What happens while a switchover holds the producers.
    #[arg(long, value_enum, default_value_t = OnFence::Stop)]
    on_fence: OnFence,
    /// How long the program may take to end after SIGTERM.
    #[arg(long, value_parser = humantime::parse_duration, default_value = "30s", value_name = "DURATION")]
    kill_timeout: Duration,
    /// How long to wait for the fleet record and the credentials at the start [default: the file's connect_timeout, or 30s].
    #[arg(long, env = "STANDFAST_CONNECT_TIMEOUT", value_parser = humantime::parse_duration, value_name = "DURATION")]
    connect_timeout: Option<Duration>,
    /// How this command's own log lines look on stderr.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub(super) log_format: LogFormat,
    /// The program and its arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Which client reads the rendered file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Librdkafka,
    Java,
}

/// What happens to the program while the fleet is fenced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnFence {
    /// It is stopped, and started again afterwards.
    Stop,
    /// It goes on: for programs that only read.
    Ignore,
}

/// What happens to the program when it must learn of something new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnChange {
    Restart,
    Signal(Signal),
}

/// The rendered file.
#[derive(Debug, Clone)]
pub(super) struct Render {
    pub(super) path: PathBuf,
    pub(super) format: Format,
    pub(super) set: Vec<(String, String)>,
}

/// Checked settings.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) fleet: FleetName,
    pub(super) discovery: DiscoveryOptions,
    pub(super) secrets: SecretsOptions,
    pub(super) render: Option<Render>,
    pub(super) on_change: OnChange,
    pub(super) on_fence: OnFence,
    pub(super) kill_timeout: Duration,
    pub(super) connect_timeout: Duration,
    pub(super) program: OsString,
    pub(super) arguments: Vec<OsString>,
}

/// The wrapper's file, or the agent's, whose other sections are of no concern here.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ConfigFile {
    discovery: Option<DiscoveryOptions>,
    secrets: Option<SecretsOptions>,
    connect_timeout: Option<String>,
    #[serde(rename = "warm_standbys")]
    _warm_standbys: Option<IgnoredAny>,
    #[serde(rename = "lease")]
    _lease: Option<IgnoredAny>,
    #[serde(rename = "credential_cache")]
    _credential_cache: Option<IgnoredAny>,
    #[serde(rename = "agent")]
    _agent: Option<IgnoredAny>,
    #[serde(rename = "fleet")]
    _fleet: Option<IgnoredAny>,
    #[serde(rename = "clusters")]
    _clusters: Option<IgnoredAny>,
    #[serde(rename = "links")]
    _links: Option<IgnoredAny>,
    #[serde(rename = "health")]
    _health: Option<IgnoredAny>,
    #[serde(rename = "failover")]
    _failover: Option<IgnoredAny>,
}

impl Settings {
    /// # Errors
    /// A file that cannot be read, or options that contradict each other.
    pub(super) fn new(args: ExecArgs) -> anyhow::Result<Self> {
        let file = match &args.config {
            Some(path) => read(path).with_context(|| path.display().to_string())?,
            None => ConfigFile::default(),
        };
        let on_change = match args.signal {
            None => OnChange::Restart,
            Some(_) if args.on_fence == OnFence::Stop => bail!(
                "--signal needs --on-fence ignore: a program that is not restarted would go on writing to the old cluster during a \
                 switchover. Use --signal for programs that only read"
            ),
            Some(signal) => OnChange::Signal(signal),
        };
        let of_file = file.connect_timeout.as_deref().map(|text| {
            humantime::parse_duration(text)
                .with_context(|| format!("connect_timeout = {text:?}; write for example \"30s\""))
        });
        let connect_timeout = match args.connect_timeout {
            Some(given) => given,
            None => of_file.transpose()?.unwrap_or(DEFAULT_CONNECT_TIMEOUT),
        };
        let discovery = discovery(&args, file.discovery);
        let secrets = secrets(&args, file.secrets);
        let mut command = args.command.into_iter();
        let Some(program) = command.next() else {
            bail!("no program given: write it after `--`");
        };
        let (format, set) = (args.format, args.set);
        Ok(Self {
            fleet: args.fleet,
            discovery,
            secrets,
            render: args.render.map(|path| Render { path, format, set }),
            on_change,
            on_fence: args.on_fence,
            kill_timeout: args.kill_timeout,
            connect_timeout,
            program,
            arguments: command.collect(),
        })
    }
}

fn discovery(args: &ExecArgs, file: Option<DiscoveryOptions>) -> DiscoveryOptions {
    /// As in Consul's own programs.
    const TOKEN_VARIABLE: &str = "CONSUL_HTTP_TOKEN";
    if let Some(folder) = &args.discovery_dir {
        return DiscoveryOptions::file(folder);
    }
    if let (true, Some(file)) = (args.consul_addr.is_empty(), file) {
        return file;
    }
    let mut options = ConsulOptions::default();
    if !args.consul_addr.is_empty() {
        options.addresses.clone_from(&args.consul_addr);
    }
    options.token_file.clone_from(&args.consul_token_file);
    let in_environment = std::env::var_os(TOKEN_VARIABLE).is_some_and(|token| !token.is_empty());
    if options.token_file.is_none() && in_environment {
        options.token_env = Some(TOKEN_VARIABLE.to_owned());
    }
    DiscoveryOptions::Consul(options)
}

fn secrets(args: &ExecArgs, file: Option<SecretsOptions>) -> SecretsOptions {
    if let Some(path) = &args.secrets_file {
        return SecretsOptions::file(path);
    }
    if let Some(address) = &args.vault_addr {
        let auth = VaultAuth::Token {
            token_file: args.vault_token_file.clone(),
            env: None,
        };
        return SecretsOptions::Vault(VaultOptions::new(address, auth));
    }
    file.unwrap_or_default()
}

fn read(path: &std::path::Path) -> anyhow::Result<ConfigFile> {
    let length = std::fs::metadata(path)?.len();
    if length > MAX_FILE {
        bail!("larger than {MAX_FILE} bytes");
    }
    Ok(toml::from_str(&std::fs::read_to_string(path)?)?)
}

fn property(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.trim().is_empty() => {
            Ok((name.trim().to_owned(), value.to_owned()))
        }
        _ => Err("write it as name=value".to_owned()),
    }
}

fn signal(text: &str) -> Result<Signal, String> {
    let name = text.to_ascii_uppercase();
    let name = format!("SIG{}", name.trim_start_matches("SIG"));
    name.parse()
        .map_err(|_| format!("{text} is no signal; write for example HUP or USR1"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        exec: ExecArgs,
    }

    fn settings(line: &[&str]) -> Result<Settings, String> {
        let line = Line::try_parse_from(line).map_err(|error| error.to_string())?;
        Settings::new(line.exec).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn a_fleet_and_a_program_are_enough() {
        let found =
            settings(&["exec", "--fleet", "f", "--", "cat", "-b", "--x"]).expect("settings");
        assert_eq!(found.program, "cat");
        assert_eq!(found.arguments, ["-b", "--x"]);
        assert_eq!(found.on_change, OnChange::Restart);
        assert_eq!(found.connect_timeout, DEFAULT_CONNECT_TIMEOUT);
        assert!(matches!(found.discovery, DiscoveryOptions::Consul(_)));
    }

    #[test]
    fn a_signal_is_for_programs_that_only_read() {
        let line = ["exec", "--fleet", "f", "--render", "x", "--signal", "hup"];
        let refused = settings(&[&line[..], &["--", "cat"]].concat()).expect_err("refused");
        assert!(refused.contains("--on-fence ignore"), "{refused}");
        let found = settings(&[&line[..], &["--on-fence", "ignore", "--", "cat"]].concat());
        let found = found.expect("settings");
        assert_eq!(found.on_change, OnChange::Signal(Signal::SIGHUP));
    }

    #[test]
    fn the_agents_file_and_the_wrappers_file_are_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("f.toml");
        let text = "[discovery]\nbackend = \"file\"\npath = \"/d\"\n[agent]\nname = \"a\"\n[[links]]\nname = \"l\"\n";
        std::fs::write(&path, text).expect("write");
        let path = path.display().to_string();
        let found = settings(&["exec", "--fleet", "f", "-c", &path, "--", "cat"]);
        assert_eq!(
            found.expect("settings").discovery,
            DiscoveryOptions::file("/d")
        );
        let every_key_of_the_wrapper = "connect_timeout = \"7s\"\nwarm_standbys = true\nlease = \"30s\"\n\
            credential_cache = \"/c.toml\"\n[discovery]\nbackend = \"file\"\npath = \"/w\"\n";
        std::fs::write(&path, every_key_of_the_wrapper).expect("write");
        let found = settings(&["exec", "--fleet", "f", "-c", &path, "--", "cat"]);
        let found = found.expect("settings");
        assert_eq!(found.discovery, DiscoveryOptions::file("/w"));
        assert_eq!(found.connect_timeout, Duration::from_secs(7));
        let line = ["exec", "--fleet", "f", "-c", &path];
        let found = settings(&[&line[..], &["--connect-timeout", "9s", "--", "cat"]].concat());
        assert_eq!(
            found.expect("settings").connect_timeout,
            Duration::from_secs(9)
        );
        std::fs::write(&path, "connect_timeout = \"soon\"\n").expect("write");
        let refused = settings(&[&line[..], &["--", "cat"]].concat()).expect_err("refused");
        assert!(refused.contains("soon"), "{refused}");
        std::fs::write(&path, "[discvery]\nbackend = \"file\"\n").expect("write");
        let refused = settings(&["exec", "--fleet", "f", "-c", &path, "--", "cat"]);
        let refused = refused.expect_err("refused");
        assert!(refused.contains("discvery"), "{refused}");
    }
}
