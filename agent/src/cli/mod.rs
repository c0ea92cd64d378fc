//! The command line: what can be asked for, and where each command goes.
//!
//! Data goes to stdout; everything else (progress, warnings, errors) goes to stderr.

mod check;
mod client;
mod consent;
mod failover;
mod fleet;
mod link_changes;
mod links;
mod mirrors;
mod outcomes;
mod output;
mod restore;
mod settings;
mod status;
mod transitions;
mod verify;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::api::VerifyRequest;
use crate::exec::{EXEC_HELP, ExecArgs};
use crate::exit::{EXIT_CODES, Exit, Failed};
use crate::logging::LogFormat;
use client::AgentClient;
use output::Printer;

/// Keeps applications running when a Kafka cluster, or its region, is lost.
#[derive(Debug, Parser)]
#[command(
    name = "standfast",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
#[command(after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  standfast config check agent.toml          look for mistakes before starting
  standfast fleet init --config agent.toml --active west
  standfast agent --config agent.toml        run the daemon
  standfast mirror list                      what is mirrored, and how far behind
  standfast mirror pause --pattern 'audit.*'
  standfast mirror promote orders --yes      planned: stop one mirror at lag 0, its topic is writable
  standfast failover --dry-run               what a failover would lose right now
  standfast failover --yes --reason 'west is down'
  standfast exec --fleet payments -- ./worker  run a program on the active cluster, restarted on a flip";

#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// How data is printed on stdout: as a table for people, or as json for programs, whose field names are stable.
    #[arg(
        long,
        value_enum,
        default_value_t = OutputFormat::Table,
        hide_possible_values = true,
        value_name = "table|json",
        global = true
    )]
    pub(crate) output: OutputFormat,
    /// Where the agent's HTTP API listens.
    #[arg(
        long,
        env = "STANDFAST_AGENT",
        default_value = "http://127.0.0.1:9370",
        value_name = "URL",
        global = true
    )]
    pub(crate) agent: String,
    /// No progress and no hints on stderr, only errors.
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the daemon: the links, the health probes and the HTTP API.
    #[command(after_help = AGENT_HELP)]
    Agent(AgentArgs),
    /// Show the fleet, the clusters' health and the links.
    Status,
    /// Look at links, create, change, pause, resume and delete them.
    #[command(subcommand)]
    Link(LinkCommand),
    /// Look at mirror topics, and pause, resume, promote or fail over some of them.
    #[command(subcommand)]
    Mirror(MirrorCommand),
    /// Unplanned: stop the mirrors now and make another cluster the active one.
    #[command(after_help = FAILOVER_HELP)]
    Failover(FailoverArgs),
    /// Planned: hold the producers, drain the mirrors to lag 0, then change the active cluster.
    #[command(after_help = SWITCHOVER_HELP)]
    Switchover(SwitchoverArgs),
    /// Look at the fleet record in discovery, or create it.
    #[command(subcommand)]
    Fleet(FleetCommand),
    /// Run a program with the active cluster's bootstrap and credentials, and restart or signal it on a flip.
    #[command(after_help = EXEC_HELP)]
    Exec(Box<ExecArgs>),
    /// Check a configuration file.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print the completion script for a shell.
    #[command(
        after_help = "Example:\n  standfast completions bash > /etc/bash_completion.d/standfast"
    )]
    Completions {
        /// The shell to print it for.
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
pub(crate) struct AgentArgs {
    /// The configuration file (TOML).
    #[arg(long, short, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// How log lines look on stderr.
    #[arg(long, value_enum, default_value_t = LogFormat::Text, env = "STANDFAST_LOG_FORMAT")]
    pub(crate) log_format: LogFormat,
}

const AGENT_HELP: &str = "\
The agent never fails over by itself: an operator, or the operator's automation, runs `standfast failover`. \
SIGTERM or SIGINT stops it: a running failover is finished, then the links end. A second signal ends it at once. \
The log level is taken from STANDFAST_LOG (for example: info, standfast_link=debug).";

#[derive(Debug, Subcommand)]
pub(crate) enum LinkCommand {
    /// All links, one line each.
    List,
    /// Begin to mirror along a new link.
    #[command(after_help = link_changes::CREATE_HELP)]
    Create(link_changes::CreateArgs),
    /// Change settings of a link.
    #[command(after_help = link_changes::UPDATE_HELP)]
    Update(link_changes::UpdateArgs),
    /// Delete a link whose mirrors are stopped.
    #[command(after_help = link_changes::DELETE_HELP)]
    Delete(link_changes::DeleteArgs),
    /// One link: its mirrors counted by state, its tasks, groups and settings.
    Describe {
        /// The link.
        link: String,
    },
    /// Pause a link as a whole: its mirrors and its group offsets.
    #[command(after_help = "Example:\n  standfast link pause west-to-east")]
    Pause(LinkPauseArgs),
    /// End the pause of a link. Mirrors that were paused one by one stay paused.
    #[command(after_help = "Example:\n  standfast link resume west-to-east")]
    Resume(LinkPauseArgs),
}

#[derive(Debug, Args)]
pub(crate) struct LinkPauseArgs {
    /// The link; needed if the agent has several.
    pub(crate) link: Option<String>,
    /// Show the link, and change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum MirrorCommand {
    /// All mirror topics, one line each.
    List {
        /// Only the mirrors of this link.
        #[arg(long)]
        link: Option<String>,
    },
    /// One mirror topic, partition by partition.
    Describe {
        /// The topic.
        topic: String,
        /// Only the mirror of this link (a topic may be mirrored by several).
        #[arg(long)]
        link: Option<String>,
    },
    /// Begin to mirror topics, or begin again with stopped ones.
    #[command(after_help = transitions::CREATE_HELP)]
    Create(transitions::CreateArgs),
    /// Neither fetch nor write until resumed.
    #[command(after_help = transitions::PAUSE_HELP)]
    Pause(transitions::Selection),
    /// Go on with paused mirrors, and start FAILED ones again.
    #[command(after_help = transitions::RESUME_HELP)]
    Resume(transitions::Selection),
    /// Planned: stop mirrors as soon as they hold all of the source's logs.
    #[command(after_help = transitions::PROMOTE_HELP)]
    Promote(transitions::PromoteArgs),
    /// Unplanned: stop mirrors now.
    #[command(after_help = transitions::FAILOVER_HELP)]
    Failover(transitions::FailoverArgs),
    /// Put a returned cluster right: export what only it holds, delete it there, and mirror on.
    #[command(after_help = restore::RESTORE_HELP)]
    Restore(restore::RestoreArgs),
    /// Let mirrors run towards the cluster that is not active any more.
    #[command(after_help = restore::REVERSE_HELP)]
    Reverse(transitions::Selection),
    /// Compare a mirror with its source, batch by batch, while mirroring goes on.
    #[command(after_help = VERIFY_HELP)]
    Verify(VerifyArgs),
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// The mirror topic.
    pub(crate) topic: String,
    /// The link, if several mirror the topic.
    #[arg(long)]
    pub(crate) link: Option<String>,
    /// Only this partition.
    #[arg(long, value_name = "N")]
    pub(crate) partition: Option<i32>,
    /// First offset to compare [default: the larger log start].
    #[arg(long, value_name = "OFFSET")]
    pub(crate) from: Option<i64>,
    /// Offset before which to end [default: the smaller log end].
    #[arg(long, value_name = "OFFSET")]
    pub(crate) to: Option<i64>,
}

const VERIFY_HELP: &str = "\
Compares offsets, record counts, timestamps, attributes and the record bytes of every batch; nothing is decompressed. \
Of each partition the first difference is shown. Batches that cannot be the same byte for byte by design (filler in \
compacted holes, re-encoded LogAppendTime batches, transaction markers) are counted, not compared. \
A mirror that is shorter or longer than its source is no difference; the table says by how much. \
Exit code 6: a difference was found.

Examples:
  standfast mirror verify orders
  standfast mirror verify orders --partition 3 --from 1000000 --to 2000000";

#[derive(Debug, Args)]
pub(crate) struct FailoverArgs {
    /// Say what would happen and what would be lost, and change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// The cluster to make active. Needed only if this agent's links have several destinations.
    #[arg(long, value_name = "CLUSTER")]
    pub(crate) to: Option<String>,
    /// Why; kept in the fleet record.
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
    /// Do not ask.
    #[arg(long, short)]
    pub(crate) yes: bool,
}

const FAILOVER_HELP: &str = "\
Order: lock, read the fleet record, check, stop the mirrors and note their log ends, write the handoff, change the record. \
The source cluster is never waited for. If the record cannot be changed, mirroring goes on and the report says so. \
Running it again is safe: what is done stays done, and `already active` ends with exit code 0.

Examples:
  standfast failover --dry-run
  standfast failover --to east --reason 'region west is flooded' --yes";

#[derive(Debug, Args)]
pub(crate) struct SwitchoverArgs {
    #[command(flatten)]
    pub(crate) common: FailoverArgs,
    /// How long the drain may take before the producers are let go again.
    #[arg(long, value_parser = humantime::parse_duration, default_value = "60s", value_name = "DURATION")]
    pub(crate) timeout: Duration,
    /// How long the source's log ends must stand still to count as drained.
    #[arg(long, value_parser = humantime::parse_duration, default_value = "1s", value_name = "DURATION")]
    pub(crate) settle: Duration,
    /// Go on also if consumer groups would skip records that they have not read and that the mirrors do not hold.
    #[arg(long)]
    pub(crate) allow_skips: bool,
}

const SWITCHOVER_HELP: &str = "\
Order: lock, check that consumer groups have read what the mirrors do not hold (after a restore in mode fast, say), fence \
(clients that use the wrapper hold their producers), wait until the source stands still and every \
mirror has lag 0, carry over group offsets, stop the mirrors, write the handoff, change the record. Nothing is lost. \
Groups that are behind are waited for, 10 s; then the switchover is refused, unless --allow-skips says that they may skip these records. \
A group that nobody uses any more is deleted, or taken out of the link's groups. \
If a producer goes on writing to the source, or the drain takes too long, the fence is lifted and nothing has changed.

Example:
  standfast switchover --to east --reason 'maintenance in west' --timeout 2m --yes";

#[derive(Debug, Subcommand)]
pub(crate) enum FleetCommand {
    /// Show the fleet record.
    Show {
        /// Read discovery directly, as this configuration file says, without an agent.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Create the fleet record. An existing one is never changed.
    Init {
        /// The agent's configuration file: fleet, discovery and clusters are taken from it.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// The cluster that applications use now.
        #[arg(long, value_name = "CLUSTER")]
        active: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Report every mistake in the file at once.
    Check {
        /// The configuration file (TOML).
        file: PathBuf,
        /// Also try the clusters (bootstrap, credentials, cluster id), discovery and secrets.
        #[arg(long)]
        connect: bool,
    },
}

/// Runs everything but `agent` and `exec`.
pub(crate) async fn run(global: &Global, command: Command) -> Result<Exit, Failed> {
    let printer = Printer::new(global.output, global.quiet);
    let agent = || AgentClient::new(&global.agent);
    match command {
        Command::Agent(_) | Command::Exec(_) => {
            Err(Failed::failure("agent and exec are started by main"))
        }
        Command::Status => status::show(&agent()?, &printer).await,
        Command::Link(command) => run_link(&agent()?, &printer, command).await,
        Command::Mirror(MirrorCommand::Create(args)) => {
            transitions::create(&agent()?, &printer, args).await
        }
        Command::Mirror(MirrorCommand::Pause(selection)) => {
            transitions::change(&agent()?, &printer, "mirrors:pause", selection).await
        }
        Command::Mirror(MirrorCommand::Resume(selection)) => {
            transitions::change(&agent()?, &printer, "mirrors:resume", selection).await
        }
        Command::Mirror(MirrorCommand::Promote(args)) => {
            transitions::promote(&agent()?, &printer, args).await
        }
        Command::Mirror(MirrorCommand::Failover(args)) => {
            transitions::failover(&agent()?, &printer, args).await
        }
        Command::Mirror(MirrorCommand::Restore(args)) => {
            restore::restore(&agent()?, &printer, args).await
        }
        Command::Mirror(MirrorCommand::Reverse(selection)) => {
            restore::reverse(&agent()?, &printer, selection).await
        }
        Command::Mirror(MirrorCommand::List { link }) => {
            mirrors::list(&agent()?, &printer, link.as_deref()).await
        }
        Command::Mirror(MirrorCommand::Describe { topic, link }) => {
            mirrors::describe(&agent()?, &printer, &topic, link.as_deref()).await
        }
        Command::Mirror(MirrorCommand::Verify(args)) => {
            let request = VerifyRequest {
                link: args.link,
                partition: args.partition,
                from: args.from,
                to: args.to,
            };
            verify::verify(&agent()?, &printer, &args.topic, &request).await
        }
        Command::Failover(args) => failover::failover(&agent()?, &printer, args).await,
        Command::Switchover(args) => failover::switchover(&agent()?, &printer, args).await,
        Command::Fleet(FleetCommand::Show { config: None }) => {
            fleet::show(&agent()?, &printer).await
        }
        Command::Fleet(FleetCommand::Show { config: Some(file) }) => {
            fleet::show_directly(&file, &printer).await
        }
        Command::Fleet(FleetCommand::Init { config, active }) => {
            fleet::init(&config, &active, &printer).await
        }
        Command::Config(ConfigCommand::Check { file, connect }) => {
            check::check(&file, connect, &printer).await
        }
        Command::Completions { shell } => {
            clap_complete::generate(
                shell,
                &mut Cli::command(),
                "standfast",
                &mut std::io::stdout(),
            );
            Ok(Exit::Ok)
        }
    }
}

async fn run_link(
    agent: &AgentClient,
    printer: &Printer,
    command: LinkCommand,
) -> Result<Exit, Failed> {
    match command {
        LinkCommand::Create(args) => link_changes::create(agent, printer, args).await,
        LinkCommand::Update(args) => link_changes::update(agent, printer, args).await,
        LinkCommand::Delete(args) => link_changes::delete(agent, printer, args).await,
        LinkCommand::List => links::list(agent, printer).await,
        LinkCommand::Describe { link } => links::describe(agent, printer, &link).await,
        LinkCommand::Pause(args) => {
            links::pause(agent, printer, "links:pause", args.link, args.dry_run).await
        }
        LinkCommand::Resume(args) => {
            links::pause(agent, printer, "links:resume", args.link, args.dry_run).await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_documents_every_exit_code() {
        let help = Cli::command().render_long_help().to_string();
        for exit in [
            Exit::Ok,
            Exit::Failure,
            Exit::Usage,
            Exit::AgentUnreachable,
            Exit::FailoverIncomplete,
            Exit::Refused,
            Exit::Different,
        ] {
            assert!(
                help.contains(&format!("\n  {}  ", exit as u8)),
                "exit code {} is not in:\n{help}",
                exit as u8
            );
        }
    }
}
