//! `standfast failover` and `standfast switchover`.

use std::io::{BufRead, IsTerminal, Write};
use std::time::Duration;

use standfast_discovery::ClusterName;

use super::client::{AgentClient, CallError, exit_of};
use super::output::{Printer, cell, number, seconds};
use super::{FailoverArgs, SwitchoverArgs, outcomes};
use crate::api::{FailoverRequest, Outcome, Report, SwitchoverRequest};
use crate::exit::{Exit, Failed};

/// A failover's steps have their own limits at the agent; this only ends the wait for an agent that hangs.
const FAILOVER_LIMIT: Duration = Duration::from_secs(120);

pub(super) async fn failover(
    agent: &AgentClient,
    printer: &Printer,
    args: FailoverArgs,
) -> Result<Exit, Failed> {
    let request = FailoverRequest {
        dry_run: args.dry_run,
        to: target(&args)?,
        reason: args.reason.clone(),
    };
    let path = ["v1", "failover"];
    if needs_consent(&args)? {
        let rehearsal = FailoverRequest {
            dry_run: true,
            ..request.clone()
        };
        let report: Report = agent.post(&path, &rehearsal, FAILOVER_LIMIT).await?;
        if report.outcome == Outcome::DryRun && !consents(printer, &report, "Fail over")? {
            return Ok(Exit::Failure);
        }
    }
    if !request.dry_run {
        printer.note("failing over …");
    }
    show(printer, agent.post(&path, &request, FAILOVER_LIMIT).await)
}

pub(super) async fn switchover(
    agent: &AgentClient,
    printer: &Printer,
    args: SwitchoverArgs,
) -> Result<Exit, Failed> {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).ok();
    let request = SwitchoverRequest {
        dry_run: args.common.dry_run,
        to: target(&args.common)?,
        reason: args.common.reason.clone(),
        timeout_ms: millis(args.timeout),
        settle_ms: millis(args.settle),
        allow_skips: args.allow_skips,
    };
    let (path, limit) = (["v1", "switchover"], args.timeout + FAILOVER_LIMIT);
    if needs_consent(&args.common)? {
        let rehearsal = SwitchoverRequest {
            dry_run: true,
            ..request.clone()
        };
        let report: Report = agent.post(&path, &rehearsal, limit).await?;
        if report.outcome == Outcome::DryRun && !consents(printer, &report, "Switch over")? {
            return Ok(Exit::Failure);
        }
    }
    if !request.dry_run {
        printer.note("holding the producers and draining the mirrors …");
    }
    show(printer, agent.post(&path, &request, limit).await)
}

fn target(args: &FailoverArgs) -> Result<Option<ClusterName>, Failed> {
    let parse = |name: &String| {
        ClusterName::new(name.clone()).map_err(|error| Failed::usage(format!("--to: {error}")))
    };
    args.to.as_ref().map(parse).transpose()
}

fn needs_consent(args: &FailoverArgs) -> Result<bool, Failed> {
    if args.dry_run || args.yes {
        return Ok(false);
    }
    if std::io::stdin().is_terminal() && std::io::stderr().is_terminal() {
        return Ok(true);
    }
    Err(Failed::usage(
        "this moves applications to another cluster; without a terminal to ask at, say --yes (or --dry-run)",
    ))
}

fn consents(printer: &Printer, rehearsal: &Report, verb: &str) -> Result<bool, Failed> {
    let from = rehearsal.from.as_ref().map_or("?", ClusterName::as_str);
    let loss = match (rehearsal.planned, rehearsal.rpo_records) {
        (true, _) => "nothing is lost".to_owned(),
        (false, Some(records)) => {
            format!("{records} record(s) known to be on {from} only would be left behind")
        }
        (false, None) => format!("how many records are on {from} only is not known"),
    };
    for warning in &rehearsal.warnings {
        printer.warn(warning);
    }
    let mut err = std::io::stderr();
    let ask = write!(
        err,
        "{verb} fleet {} from {from} to {}? {loss}. [y/N] ",
        rehearsal.fleet, rehearsal.to
    );
    ask.and_then(|()| err.flush())
        .map_err(|error| Failed::failure(error.to_string()))?;
    let mut answer = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|error| Failed::failure(error.to_string()))?;
    let yes = matches!(answer.trim(), "y" | "Y" | "yes");
    if !yes {
        printer.note("nothing was changed");
    }
    Ok(yes)
}

fn show(printer: &Printer, answer: Result<Report, CallError>) -> Result<Exit, Failed> {
    match answer {
        Ok(report) => {
            print(printer, &report)?;
            Ok(match report.outcome {
                Outcome::Flipped | Outcome::AlreadyActive | Outcome::DryRun => Exit::Ok,
                Outcome::FlippedInPart | Outcome::Failed | Outcome::Unknown => {
                    Exit::FailoverIncomplete
                }
            })
        }
        Err(CallError::Agent(body)) => {
            if let Some(report) = &body.report {
                print(printer, report)?;
            }
            Err(Failed::new(exit_of(body.error_code), body.message))
        }
        Err(CallError::Failed(failed)) => Err(failed),
    }
}

fn print(printer: &Printer, report: &Report) -> Result<(), Failed> {
    if printer.is_json() {
        return printer.json(report);
    }
    printer.line(headline(report))?;
    for warning in &report.warnings {
        printer.warn(warning);
    }
    if !report.topics.is_empty() {
        outcomes::of_report(printer, &report.topics)?;
        // What an unplanned failover loses can only be bounded: the source may have taken more since its last answer.
        let (at_least, at_most) = if report.planned {
            ("", "")
        } else {
            ("at least ", "at most ")
        };
        printer.line(format!(
            "RPO: {at_least}{} records, {at_most}{} seconds",
            number(report.rpo_records).0,
            seconds(report.rpo_seconds).0
        ))?;
    }
    for write in &report.late_writes {
        printer.line(format!(
            "late write: {}-{} offset {} and {} record(s)",
            write.topic, write.partition, write.from_offset, write.records
        ))?;
    }
    let mut table = printer.table(&["Step", "Ms"]);
    for step in &report.steps {
        table.row([cell(&step.name), cell(step.ms)]);
    }
    table.row([cell("total"), cell(report.total_ms)]);
    table.print()
}

fn headline(report: &Report) -> String {
    let from = report.from.as_ref().map_or("?", ClusterName::as_str);
    let (fleet, to) = (&report.fleet, &report.to);
    let epoch = number(report.epoch).0;
    match report.outcome {
        Outcome::Flipped => {
            format!("fleet {fleet}: {to} is active now (was {from}), epoch {epoch}")
        }
        Outcome::FlippedInPart => {
            format!(
                "fleet {fleet}: {to} is active now (was {from}), epoch {epoch}; some topics have errors, see below"
            )
        }
        Outcome::AlreadyActive => {
            format!("fleet {fleet}: {to} is already active, epoch {epoch}; nothing to do")
        }
        Outcome::DryRun => {
            format!("fleet {fleet}: dry run, nothing was changed; {from} would be replaced by {to}")
        }
        Outcome::Failed => format!("fleet {fleet}: NOT moved, {from} is still active"),
        Outcome::Unknown => {
            format!("fleet {fleet}: discovery did not say whether {to} is active now")
        }
    }
}
