//! `standfast mirror restore|reverse`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use standfast_link::{MirrorRestore, RestoreMode};

use super::client::AgentClient;
use super::output::{Printer, Tone, cell, state};
use super::transitions::{self, Selection};
use super::{consent, outcomes};
use crate::api::{RestoreRequest, RestoreResults};
use crate::daemon::name_of;
use crate::exit::{Exit, Failed};

/// Tails of many gigabytes take their time; the agent goes on when this command ends.
const CALL_LIMIT: Duration = Duration::from_secs(12 * 3600);

#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    #[command(flatten)]
    pub(crate) selection: Selection,
    /// How the mirror goes on.
    #[arg(long, value_enum, default_value_t = Mode::Fast)]
    pub(crate) mode: Mode,
    /// Export the lost tail of one topic to this new file on the agent's machine [default: a file in data_dir/lost].
    #[arg(long, value_name = "FILE", conflicts_with = "export_topic")]
    pub(crate) export_to: Option<PathBuf>,
    /// Export to the topic standfast.lost.<topic> on the returned cluster.
    #[arg(long)]
    pub(crate) export_topic: bool,
    /// Do not ask.
    #[arg(long, short)]
    pub(crate) yes: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// Delete the records of partitions with a lost tail and go on behind them; older records stay on the other cluster only.
    Fast,
    /// Delete the topic, create it again, and mirror everything again.
    Full,
}

pub(crate) const RESTORE_HELP: &str = "\
For a cluster that returned after a failover, at the agent of the link that leads to it. Its mirrors are FAILED if it holds
records that had not been mirrored when it was lost: the lost tail. Per partition the tail is found by comparing the logs,
written to a file of JSON lines (or a topic), and only when that is complete the records are deleted and the mirror goes on.
Refused on the active cluster, and for mirrors that are neither FAILED nor STOPPED. Running it again is safe.
With --pattern or --all the FAILED ones are meant.

Examples:
  standfast mirror restore --all --dry-run --link east-to-west
  standfast mirror restore orders --link east-to-west --yes
  standfast mirror restore orders --mode full --export-to /var/lost/orders.jsonl --yes";

pub(crate) const REVERSE_HELP: &str = "\
Makes the pair whole again from the other side: at the agent of the link that leads to the cluster that is not active, starts the
mirrors that can go on from where their logs end, also promoted ones. Which direction a fleet mirrors in follows its record, so
nothing has to be stopped. A mirror whose log holds records that the source does not have is left alone, and the result says how
many a restore would truncate. Nothing is deleted.

Examples:
  standfast mirror reverse --all --dry-run --link east-to-west
  standfast mirror reverse orders --link east-to-west";

pub(super) async fn restore(
    agent: &AgentClient,
    printer: &Printer,
    args: RestoreArgs,
) -> Result<Exit, Failed> {
    let request = RestoreRequest {
        link: args.selection.common.link,
        mirror_topic_names: args.selection.topics,
        mirror_topic_name_pattern: args.selection.pattern,
        all: args.selection.all,
        dry_run: args.selection.common.dry_run,
        mode: match args.mode {
            Mode::Fast => RestoreMode::Fast,
            Mode::Full => RestoreMode::Full,
        },
        export_to: args.export_to,
        export_topic: args.export_topic,
    };
    if !request.dry_run && !args.yes && !consents(agent, printer, &request).await? {
        return Ok(Exit::Failure);
    }
    let path = &["v1", "mirrors:restore"];
    let results: RestoreResults = agent.post(path, &request, CALL_LIMIT).await?;
    tell(printer, &results)
}

pub(super) async fn reverse(
    agent: &AgentClient,
    printer: &Printer,
    selection: Selection,
) -> Result<Exit, Failed> {
    let request = transitions::request(selection);
    let path = &["v1", "mirrors:reverse"];
    let results: RestoreResults = agent.post(path, &request, CALL_LIMIT).await?;
    tell(printer, &results)
}

async fn consents(
    agent: &AgentClient,
    printer: &Printer,
    request: &RestoreRequest,
) -> Result<bool, Failed> {
    consent::possible("this deletes records")?;
    let rehearsal = RestoreRequest {
        dry_run: true,
        ..request.clone()
    };
    let path = &["v1", "mirrors:restore"];
    let found: RestoreResults = agent.post(path, &rehearsal, CALL_LIMIT).await?;
    let records: i64 = found.data.iter().map(|r| r.messages_truncated).sum();
    let also = match request.mode {
        RestoreMode::Fast => "with all older records of their partitions",
        RestoreMode::Full => "with their whole topics, which are mirrored again",
    };
    let what = format!(
        "{records} records are on the returned cluster only; they are exported, then deleted there, {also}"
    );
    consent::given(printer, &what)
}

fn tell(printer: &Printer, results: &RestoreResults) -> Result<Exit, Failed> {
    if printer.is_json() {
        printer.json(results)?;
    } else {
        print(printer, results)?;
    }
    let data = &results.data;
    let refused = data.iter().filter(|r| r.change.error_code.is_some());
    let (all, refused) = (data.len(), refused.count());
    Ok(outcomes::conclude(printer, all, refused, results.dry_run))
}

fn print(printer: &Printer, results: &RestoreResults) -> Result<(), Failed> {
    let mut table = printer.table(&[
        "Link Name",
        "Mirror Topic Name",
        "Mirror Status",
        "Messages Truncated",
        "Partition",
        "Offset Truncated To",
        "Partition Messages Truncated",
        "Exported To",
        "Error Code",
        "Error Message",
    ]);
    for result in &results.data {
        let change = &result.change;
        let error = change
            .error_code
            .map_or_else(|| cell(""), |code| (name_of(&code), Tone::Bad));
        for [partition, offset, messages] in rows(result) {
            table.row([
                cell(&change.link_name),
                cell(&change.mirror_topic_name),
                state(&name_of(&change.mirror_status)),
                cell(result.messages_truncated),
                partition,
                offset,
                messages,
                cell(exported_to(result)),
                error.clone(),
                cell(change.error_message.as_deref().unwrap_or("")),
            ]);
        }
    }
    table.print()
}

fn exported_to(result: &MirrorRestore) -> String {
    match &result.export {
        None => String::new(),
        Some(export) => match (&export.file, &export.topic) {
            (Some(file), _) => file.display().to_string(),
            (None, topic) => topic.clone().unwrap_or_default(),
        },
    }
}

/// One per partition with a lost tail; one without a partition if there is none.
fn rows(result: &MirrorRestore) -> Vec<[(String, Tone); 3]> {
    let each = result.partition_level_truncation_data.iter();
    let mut rows: Vec<_> = each
        .map(|t| {
            [
                cell(t.partition_id),
                cell(t.offset_truncated_to),
                cell(t.messages_truncated),
            ]
        })
        .collect();
    if rows.is_empty() {
        rows.push([cell("-"), cell("-"), cell("-")]);
    }
    rows
}
