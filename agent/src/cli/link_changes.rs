//! `standfast link create|update|delete`.

use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::client::AgentClient;
use super::output::{Printer, cell};
use super::settings::{self, LinkSettings};
use super::{consent, outcomes};
use crate::api::{
    Applied, ConfigOperation, LinkAction, LinkChange, LinkCreateRequest, LinkDeleteRequest,
    LinkUpdateRequest, SettingChange,
};
use crate::exit::{Exit, Failed};

/// A restart of a link takes seconds; a forced delete has its own limit on top.
const CALL_LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// The new link's name: a-z, 0-9, '.', '_' and '-'.
    pub(crate) link: String,
    #[command(flatten)]
    pub(crate) settings: LinkSettings,
    /// Check it and say what it would mirror, and change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

pub(crate) const CREATE_HELP: &str = "\
The link starts at once. It is kept in data_dir/links.json, and runs after a restart of the agent as if it stood in the \
configuration file. The clusters are those of the configuration file. Creating a link that is there already, with the same \
settings, changes nothing.

Examples:
  standfast link create audit --source west --destination east --topic audit --group 'audit-*'
  standfast link create shop --source west --destination east --filter 'shop.*' --filter '!shop.tmp'
  standfast link create eu-to-us --source eu --destination us --filter '*' --prefix eu. --set follow_fleet=false
  standfast link create hub --file hub.toml --dry-run";

#[derive(Debug, Args)]
pub(crate) struct UpdateArgs {
    /// The link.
    pub(crate) link: String,
    /// A key of [[links]] and its new value. `+=` adds to a list, `-=` takes out of it, `KEY=` goes back to the default.
    #[arg(value_name = "KEY=VALUE", required_unless_present = "reset")]
    pub(crate) changes: Vec<String>,
    /// Go back to what the configuration file says about this key.
    #[arg(long, value_name = "KEY")]
    pub(crate) reset: Vec<String>,
    /// Check it and say how the link would take it, and change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

pub(crate) const UPDATE_HELP: &str = "\
Keys are those of [[links]] in the configuration file. Topics and groups may be given as words with commas between, filters as \
a name, a prefix followed by `*`, or '*', with `!` in front to leave out.
Topics and filters that only add mirrors, groups, ACL filters, the rate limit and the intervals are taken over by the running \
link (LIVE); after any other change the link starts again from its logs (RESTARTED), other links go on. \
A changed value wins over the file, also after a restart, until it is reset; `link describe` shows where each value is from.

Examples:
  standfast link update west-to-east rate_limit=50MB
  standfast link update west-to-east topics+=refunds topic_filters+='shop.*,!shop.tmp.*'
  standfast link update west-to-east --reset rate_limit";

#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    /// The link.
    pub(crate) link: String,
    /// Stop its mirrors first, as `mirror failover` does; without this, mirrors that are not stopped are a refusal.
    #[arg(long)]
    pub(crate) force: bool,
    /// Say what would happen, and change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Do not ask.
    #[arg(long, short)]
    pub(crate) yes: bool,
}

pub(crate) const DELETE_HELP: &str = "\
The topics stay on the destination as they are and belong to it. A link of the configuration file stays deleted after a restart \
of the agent, too; remove it from the file as well (`standfast config check` reminds of it).

Examples:
  standfast link delete audit --dry-run
  standfast link delete audit --force --yes";

pub(super) async fn create(
    agent: &AgentClient,
    printer: &Printer,
    args: CreateArgs,
) -> Result<Exit, Failed> {
    let request = LinkCreateRequest {
        settings: settings::settings(&args.link, &args.settings)?,
        link_name: args.link,
        dry_run: args.dry_run,
    };
    let path = ["v1", "links:create"];
    let change: LinkChange = agent.post(&path, &request, CALL_LIMIT).await?;
    show(printer, &change)
}

pub(super) async fn update(
    agent: &AgentClient,
    printer: &Printer,
    args: UpdateArgs,
) -> Result<Exit, Failed> {
    let changes: Result<Vec<SettingChange>, Failed> = args
        .changes
        .iter()
        .map(|text| settings::change(text))
        .collect();
    let mut changes = changes?;
    changes.extend(args.reset.into_iter().map(|name| SettingChange {
        name,
        operation: ConfigOperation::Reset,
        value: None,
    }));
    let request = LinkUpdateRequest {
        link: args.link,
        dry_run: args.dry_run,
        changes,
    };
    let path = ["v1", "links:update"];
    let change: LinkChange = agent.post(&path, &request, CALL_LIMIT).await?;
    show(printer, &change)
}

pub(super) async fn delete(
    agent: &AgentClient,
    printer: &Printer,
    args: DeleteArgs,
) -> Result<Exit, Failed> {
    let request = LinkDeleteRequest {
        link: args.link,
        dry_run: args.dry_run,
        force: args.force,
        timeout_ms: None,
    };
    let path = ["v1", "links:delete"];
    if !(args.dry_run || args.yes) {
        let rehearsal = LinkDeleteRequest {
            dry_run: true,
            ..request.clone()
        };
        let would: LinkChange = agent.post(&path, &rehearsal, CALL_LIMIT).await?;
        let stops = would.mirrors.len();
        let what = format!(
            "link \"{}\" will be deleted, and {stops} mirror topic(s) stopped for good",
            would.link_name
        );
        if stops > 0 && !consent::given(printer, &what)? {
            return Ok(Exit::Failure);
        }
    }
    let change: LinkChange = agent.post(&path, &request, CALL_LIMIT).await?;
    show(printer, &change)
}

fn show(printer: &Printer, change: &LinkChange) -> Result<Exit, Failed> {
    if printer.is_json() {
        printer.json(change)?;
    } else {
        print(printer, change)?;
    }
    for warning in &change.warnings {
        printer.warn(warning);
    }
    printer.note(said(change));
    let failed = change.mirrors.iter().any(|m| m.error_code.is_some());
    Ok(if failed && !change.dry_run {
        Exit::FailoverIncomplete
    } else {
        Exit::Ok
    })
}

fn print(printer: &Printer, change: &LinkChange) -> Result<(), Failed> {
    let shown =
        |value: &Option<Value>| cell(settings::short(value.as_ref().unwrap_or(&Value::Null)));
    let mut table = printer.table(&["Key", "Before", "After"]);
    for config in &change.configs {
        table.row([
            cell(&config.name),
            shown(&config.before),
            shown(&config.after),
        ]);
    }
    if !change.configs.is_empty() {
        table.print()?;
    }
    for (what, topics) in [
        ("mirrors added", Some(&change.mirrors_added)),
        ("mirrors removed", Some(&change.mirrors_removed)),
        (
            "topics that the filters take now",
            change.matching_topics.as_ref(),
        ),
    ] {
        if let Some(topics) = topics.filter(|topics| !topics.is_empty()) {
            printer.line(format!("{what} ({}): {}", topics.len(), few(topics)))?;
        }
    }
    if change.mirrors.is_empty() {
        return Ok(());
    }
    printer.line("")?;
    outcomes::of_changes(printer, &change.mirrors)
}

/// The first names; there may be thousands.
fn few(topics: &[String]) -> String {
    const SHOWN: usize = 10;
    let mut shown: Vec<&str> = topics.iter().take(SHOWN).map(String::as_str).collect();
    if topics.len() > SHOWN {
        shown.push("…");
    }
    shown.join(", ")
}

fn said(change: &LinkChange) -> String {
    let link = &change.link_name;
    let would = if change.dry_run { "would be" } else { "is" };
    let how = match change.applied {
        None | Some(Applied::Stopped) => "",
        Some(Applied::Started) => ", and starts",
        Some(Applied::Live) if change.dry_run => ", while it runs",
        Some(Applied::Live) => ", and went on running",
        Some(Applied::Restarted) if change.dry_run => ", and would start again from its logs",
        Some(Applied::Restarted) => ", and started again from its logs",
        Some(Applied::NotRunning) => "; it does not run now",
    };
    match change.action {
        LinkAction::Unchanged => format!("link {link} is so already; nothing was changed"),
        LinkAction::Created => format!("link {link} {would} created{how}"),
        LinkAction::Updated => format!("link {link} {would} updated{how}"),
        LinkAction::Deleted => format!("link {link} {would} deleted"),
    }
}
