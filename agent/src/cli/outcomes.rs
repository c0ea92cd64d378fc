//! The table of what became of mirror topics, partition by partition.

use standfast_link::{MirrorChange, PartitionLag};

use super::output::{Printer, Tone, cell, number, state};
use crate::api::{MirrorLag, TopicReport};
use crate::daemon::name_of;
use crate::exit::{Exit, Failed};

/// One mirror topic.
struct Outcome<'o> {
    link: &'o str,
    topic: &'o str,
    status: String,
    error_code: Option<String>,
    error_message: Option<&'o str>,
    partitions: Vec<Row<'o>>,
}

struct Row<'o> {
    partition: i32,
    lag: Option<i64>,
    fetched: Option<i64>,
    end: Option<i64>,
    error: Option<&'o str>,
}

/// After a change of mirrors.
pub(super) fn of_changes(printer: &Printer, changes: &[MirrorChange]) -> Result<(), Failed> {
    fn row(lag: &PartitionLag) -> Row<'_> {
        Row {
            partition: lag.partition,
            lag: lag.lag,
            fetched: Some(lag.last_source_fetch_offset),
            end: lag.destination_log_end_offset,
            error: lag.error.as_deref(),
        }
    }
    fn outcome(change: &MirrorChange) -> Outcome<'_> {
        Outcome {
            link: &change.link_name,
            topic: &change.mirror_topic_name,
            status: name_of(&change.mirror_status),
            error_code: change.error_code.as_ref().map(name_of),
            error_message: change.error_message.as_deref(),
            partitions: change.mirror_lags.iter().map(row).collect(),
        }
    }
    table(printer, changes.iter().map(outcome))
}

/// After a failover or switchover.
pub(super) fn of_report(printer: &Printer, topics: &[TopicReport]) -> Result<(), Failed> {
    fn row(lag: &MirrorLag) -> Row<'_> {
        Row {
            partition: lag.partition,
            lag: lag.lag,
            fetched: lag.last_source_fetch_offset,
            end: lag.destination_log_end_offset,
            error: lag.error.as_deref(),
        }
    }
    fn outcome(report: &TopicReport) -> Outcome<'_> {
        Outcome {
            link: &report.link_name,
            topic: &report.mirror_topic_name,
            status: report.mirror_status.clone(),
            error_code: report.error_code.clone(),
            error_message: report.error_message.as_deref(),
            partitions: report.mirror_lags.iter().map(row).collect(),
        }
    }
    table(printer, topics.iter().map(outcome))
}

/// The last line of a command on several mirror topics, and its exit code.
pub(super) fn conclude(printer: &Printer, all: usize, refused: usize, dry_run: bool) -> Exit {
    let done = if dry_run { "would be done" } else { "done" };
    printer.note(format!(
        "{} mirror topic(s) {done}, {refused} with an error",
        all - refused
    ));
    match refused {
        0 => Exit::Ok,
        _ if refused == all => Exit::Refused,
        _ => Exit::FailoverIncomplete,
    }
}

fn table<'o>(printer: &Printer, outcomes: impl Iterator<Item = Outcome<'o>>) -> Result<(), Failed> {
    let mut table = printer.table(&[
        "Link Name",
        "Mirror Topic Name",
        "Mirror Status",
        "Partition",
        "Partition Mirror Lag",
        "Last Source Fetch Offset",
        "Destination Log End Offset",
        "Error Code",
        "Error Message",
    ]);
    for outcome in outcomes {
        let tone = match outcome.error_code {
            Some(_) => Tone::Bad,
            None => Tone::Plain,
        };
        let head = [
            cell(outcome.link),
            cell(outcome.topic),
            state(&outcome.status),
        ];
        let code = (outcome.error_code.unwrap_or_default(), tone);
        let message = |of_partition: Option<&str>| {
            let text = outcome.error_message.or(of_partition);
            (text.unwrap_or_default().to_owned(), tone)
        };
        if outcome.partitions.is_empty() {
            let unknown = [cell("-"), cell("-"), cell("-"), cell("-")];
            let row = head.into_iter().chain(unknown);
            table.row(row.chain([code, message(None)]));
            continue;
        }
        for row in &outcome.partitions {
            let numbers = [
                cell(row.partition),
                number(row.lag),
                number(row.fetched),
                number(row.end),
            ];
            let cells = head.clone().into_iter().chain(numbers);
            table.row(cells.chain([code.clone(), message(row.error)]));
        }
    }
    table.print()
}
