//! `standfast mirror verify`.

use std::io::{IsTerminal, Write};

use standfast_link::{PartitionVerified, VerifyProgress, VerifyReport, VerifyResult};

use super::client::AgentClient;
use super::output::{Printer, Tone, cell};
use crate::api::{VerifyLine, VerifyRequest};
use crate::daemon::name_of;
use crate::exit::{Exit, Failed};

pub(super) async fn verify(
    agent: &AgentClient,
    printer: &Printer,
    topic: &str,
    request: &VerifyRequest,
) -> Result<Exit, Failed> {
    let mut report = None;
    let mut bar = Progress::new(printer);
    let mut failed = None;
    agent
        .post_lines(
            &["v1", "mirrors", topic, "verify"],
            request,
            |line| match line {
                VerifyLine::Progress(step) => bar.show(step),
                VerifyLine::Report(found) => report = Some(found),
                VerifyLine::Error(error) => failed = Some(error),
            },
        )
        .await?;
    bar.end();
    if let Some(error) = failed {
        return Err(super::client::CallError::Agent(error).into());
    }
    let report = report.ok_or_else(|| {
        Failed::failure("the agent ended the comparison before it was done; is it still running?")
    })?;
    if printer.is_json() {
        printer.json(&report)?;
    } else {
        print(&report, printer)?;
    }
    Ok(match report.result {
        VerifyResult::Different => Exit::Different,
        VerifyResult::Equal | VerifyResult::EqualWhereComparable => Exit::Ok,
    })
}

fn print(report: &VerifyReport, printer: &Printer) -> Result<(), Failed> {
    let mut table = printer.table(&[
        "Partition",
        "From Offset",
        "To Offset",
        "Equal Batches",
        "Not Comparable",
        "Only On Source",
        "Only On Destination",
        "First Differing Offset",
        "Difference",
    ]);
    for partition in &report.partitions {
        let (offset, kind) = match &partition.first_difference {
            Some(found) => (
                (found.offset.to_string(), Tone::Bad),
                (
                    format!("{}: {}", name_of(&found.kind), found.detail),
                    Tone::Bad,
                ),
            ),
            None => (cell("none"), cell("")),
        };
        table.row([
            cell(partition.partition),
            cell(partition.from_offset),
            cell(partition.to_offset),
            cell(equal(partition)),
            cell(not_comparable(partition)),
            cell(partition.only_on_source),
            cell(partition.only_on_destination),
            offset,
            kind,
        ]);
    }
    table.print()?;
    printer.line(name_of(&report.result))?;
    hints(report, printer);
    Ok(())
}

fn equal(partition: &PartitionVerified) -> String {
    match partition.joined_batches {
        0 => partition.equal_batches.to_string(),
        joined => format!("{} + {joined} joined", partition.equal_batches),
    }
}

fn not_comparable(partition: &PartitionVerified) -> String {
    let counts = partition.not_comparable;
    let named = [
        (counts.filler, "filler"),
        (counts.re_encoded, "re-encoded"),
        (counts.marker, "marker"),
        (counts.compacted, "compacted"),
    ];
    let parts: Vec<String> = named
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, name)| format!("{count} {name}"))
        .collect();
    if parts.is_empty() {
        "0".to_owned()
    } else {
        parts.join(", ")
    }
}

fn hints(report: &VerifyReport, printer: &Printer) {
    let sum = |count: fn(&PartitionVerified) -> i64| report.partitions.iter().map(count).sum();
    let (shorter, longer): (i64, i64) = (sum(|p| p.only_on_source), sum(|p| p.only_on_destination));
    if shorter > 0 {
        printer.note(format!(
            "the mirror is shorter: {shorter} offsets are on the source only (not mirrored yet, or mirroring has ended)"
        ));
    }
    if longer > 0 {
        printer.warn(format!(
            "the mirror is longer: {longer} offsets are on the destination only (written after a failover, or by a foreign producer)"
        ));
    }
}

/// One line on stderr that is written over; nothing if stderr is no terminal.
struct Progress {
    on: bool,
    shown: bool,
}

impl Progress {
    fn new(printer: &Printer) -> Self {
        Self {
            on: !printer.is_quiet() && std::io::stderr().is_terminal(),
            shown: false,
        }
    }

    fn show(&mut self, step: VerifyProgress) {
        if !self.on {
            return;
        }
        self.shown = true;
        let _ = write!(
            std::io::stderr(),
            "\r\x1b[2Kpartition {} of {}: offset {} of {}, {} MB compared",
            step.partition,
            step.num_partitions,
            step.offset,
            step.to_offset,
            step.bytes / 1_000_000
        );
    }

    fn end(&mut self) {
        if self.shown {
            let _ = write!(std::io::stderr(), "\r\x1b[2K");
        }
    }
}
