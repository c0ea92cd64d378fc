//! `standfast mirror create|pause|resume|promote|failover`.

use std::time::Duration;

use clap::Args;

use super::client::AgentClient;
use super::output::Printer;
use super::{consent, outcomes};
use crate::api::{MirrorChanges, MirrorsRequest};
use crate::exit::{Exit, Failed};

/// The agent keeps the time limits itself; this only ends the wait for an agent that hangs.
const CALL_LIMIT: Duration = Duration::from_secs(120);

/// Which mirrors.
#[derive(Debug, Args)]
pub(crate) struct Selection {
    /// Mirror topics by name.
    #[arg(value_name = "TOPIC", required_unless_present_any = ["pattern", "all"], conflicts_with_all = ["pattern", "all"])]
    pub(crate) topics: Vec<String>,
    /// Every mirror topic that begins so; quote it: 'orders.*'.
    #[arg(long, value_name = "PREFIX*", conflicts_with = "all")]
    pub(crate) pattern: Option<String>,
    /// Every mirror topic of the link.
    #[arg(long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Debug, Args)]
pub(crate) struct Common {
    /// The link; needed if the agent has several.
    #[arg(long)]
    pub(crate) link: Option<String>,
    /// Say which mirrors it would be and what would be refused, and change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Mirror topics by name: as the source calls them, or with the link's prefix in front if it has one.
    #[arg(value_name = "TOPIC", required = true)]
    pub(crate) topics: Vec<String>,
    #[command(flatten)]
    pub(crate) common: Common,
    /// How long the mirrors may take to start; afterwards they go on trying.
    #[arg(long, value_parser = humantime::parse_duration, default_value = "60s", value_name = "DURATION")]
    pub(crate) timeout: Duration,
}

pub(crate) const CREATE_HELP: &str = "\
Begins to mirror topics that neither the names nor the filters of the configuration take, and begins again with mirrors \
that were promoted or failed over. Before anything is written the logs are compared: a topic on the destination that is not \
the beginning of the source's log becomes FAILED (DIVERGED) and is left as it is.
As everywhere in `standfast mirror`, topics go by their mirrors' names: with the prefix eu. the mirror of orders is eu.orders.

Examples:
  standfast mirror create orders refunds --link west-to-east
  standfast mirror create eu.orders --link eu-to-us";

pub(crate) const PAUSE_HELP: &str = "\
A paused mirror fetches nothing and writes nothing, also after a restart of the agent. Its lag is shown all the same.

Examples:
  standfast mirror pause orders
  standfast mirror pause --pattern 'audit.*'";

pub(crate) const RESUME_HELP: &str = "\
Lets paused mirrors go on, and starts FAILED ones again from their logs. A mirror that was paused with the whole link \
goes on after `standfast link resume`.

Examples:
  standfast mirror resume orders
  standfast mirror resume --all";

#[derive(Debug, Args)]
pub(crate) struct PromoteArgs {
    #[command(flatten)]
    pub(crate) selection: Selection,
    /// How long the mirrors may take to reach the end of the source's logs.
    #[arg(long, value_parser = humantime::parse_duration, default_value = "60s", value_name = "DURATION")]
    pub(crate) timeout: Duration,
    /// Do not ask.
    #[arg(long, short)]
    pub(crate) yes: bool,
}

pub(crate) const PROMOTE_HELP: &str = "\
Planned: stop the producers of these topics first. Each mirror is stopped as soon as it holds all of the source's log, the log \
ends are compared on both clusters, and group offsets are carried over once more. A mirror that does not get there in time goes \
on mirroring, and the result says what was missing. A promoted topic belongs to the destination: the link never writes to it \
again, also after a restart, until `standfast mirror create`.
The fleet record is not changed: to move applications that follow it, use `standfast switchover`.

Examples:
  standfast mirror promote orders --yes
  standfast mirror promote --pattern 'orders.*' --timeout 5m --yes";

#[derive(Debug, Args)]
pub(crate) struct FailoverArgs {
    #[command(flatten)]
    pub(crate) selection: Selection,
    /// Do not ask.
    #[arg(long, short)]
    pub(crate) yes: bool,
}

pub(crate) const FAILOVER_HELP: &str = "\
Unplanned: stops mirrors now, whether or not the source answers; the result says by how many records each partition was behind. \
The topics belong to the destination from then on, until `standfast mirror create`. Running it again is safe. \
The fleet record is not changed: to move the applications of a whole fleet, use `standfast failover`.

Examples:
  standfast mirror failover orders --dry-run
  standfast mirror failover --all --yes --output json";

pub(super) async fn create(
    agent: &AgentClient,
    printer: &Printer,
    args: CreateArgs,
) -> Result<Exit, Failed> {
    let request = MirrorsRequest {
        link: args.common.link,
        mirror_topic_names: args.topics,
        dry_run: args.common.dry_run,
        timeout_ms: millis(args.timeout),
        ..MirrorsRequest::default()
    };
    run(agent, printer, "mirrors:create", &request).await
}

pub(super) async fn change(
    agent: &AgentClient,
    printer: &Printer,
    path: &str,
    selection: Selection,
) -> Result<Exit, Failed> {
    run(agent, printer, path, &request(selection)).await
}

pub(super) async fn promote(
    agent: &AgentClient,
    printer: &Printer,
    args: PromoteArgs,
) -> Result<Exit, Failed> {
    let request = MirrorsRequest {
        timeout_ms: millis(args.timeout),
        ..request(args.selection)
    };
    if !consents(agent, printer, "mirrors:promote", &request, args.yes).await? {
        return Ok(Exit::Failure);
    }
    run(agent, printer, "mirrors:promote", &request).await
}

pub(super) async fn failover(
    agent: &AgentClient,
    printer: &Printer,
    args: FailoverArgs,
) -> Result<Exit, Failed> {
    let request = request(args.selection);
    if !consents(agent, printer, "mirrors:failover", &request, args.yes).await? {
        return Ok(Exit::Failure);
    }
    run(agent, printer, "mirrors:failover", &request).await
}

pub(super) fn request(selection: Selection) -> MirrorsRequest {
    MirrorsRequest {
        link: selection.common.link,
        mirror_topic_names: selection.topics,
        mirror_topic_name_pattern: selection.pattern,
        all: selection.all,
        dry_run: selection.common.dry_run,
        timeout_ms: None,
    }
}

fn millis(duration: Duration) -> Option<u64> {
    u64::try_from(duration.as_millis()).ok()
}

fn limit(request: &MirrorsRequest) -> Duration {
    CALL_LIMIT + Duration::from_millis(request.timeout_ms.unwrap_or_default())
}

/// Stopping mirrors is for good, so it is asked for.
async fn consents(
    agent: &AgentClient,
    printer: &Printer,
    path: &str,
    request: &MirrorsRequest,
    yes: bool,
) -> Result<bool, Failed> {
    if request.dry_run || yes {
        return Ok(true);
    }
    consent::possible("this stops mirrors for good")?;
    let rehearsal = MirrorsRequest {
        dry_run: true,
        ..request.clone()
    };
    let found: MirrorChanges = agent
        .post(&["v1", path], &rehearsal, limit(request))
        .await?;
    let count = found.data.iter().filter(|c| c.error_code.is_none()).count();
    consent::given(
        printer,
        &format!("{count} mirror topic(s) will be stopped for good"),
    )
}

async fn run(
    agent: &AgentClient,
    printer: &Printer,
    path: &str,
    request: &MirrorsRequest,
) -> Result<Exit, Failed> {
    let changes: MirrorChanges = agent.post(&["v1", path], request, limit(request)).await?;
    if printer.is_json() {
        printer.json(&changes)?;
    } else {
        outcomes::of_changes(printer, &changes.data)?;
    }
    for (topic, warning) in warnings(&changes) {
        printer.warn(format!("{topic}: {warning}"));
    }
    let refused = changes.data.iter().filter(|c| c.error_code.is_some());
    let (all, refused) = (changes.data.len(), refused.count());
    Ok(outcomes::conclude(printer, all, refused, changes.dry_run))
}

/// Each once: most concern every topic of the call.
fn warnings(changes: &MirrorChanges) -> Vec<(&str, &str)> {
    let mut seen = std::collections::BTreeSet::new();
    let all = changes.data.iter().flat_map(|change| {
        let topic = change.mirror_topic_name.as_str();
        change
            .warnings
            .iter()
            .map(move |text| (topic, text.as_str()))
    });
    all.filter(|(_, text)| seen.insert(*text)).collect()
}
