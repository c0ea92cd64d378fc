//! `standfast mirror list` and `standfast mirror describe`.

use super::client::AgentClient;
use super::output::{Printer, cell, number, seconds, state};
use super::status::LOOK_LIMIT;
use standfast_link::PartitionLag;

use crate::api::{Mirror, MirrorList};
use crate::daemon::name_of;
use crate::exit::{Exit, Failed};

pub(super) async fn list(
    agent: &AgentClient,
    printer: &Printer,
    link: Option<&str>,
) -> Result<Exit, Failed> {
    let mirrors: MirrorList = agent
        .get(&["v1", "mirrors"], &query(link), LOOK_LIMIT)
        .await?;
    if printer.is_json() {
        printer.json(&mirrors)?;
        return Ok(Exit::Ok);
    }
    let mut table = printer.table(&[
        "Link Name",
        "Mirror Topic Name",
        "Num Partition",
        "Max Per Partition Mirror Lag",
        "Source Topic Name",
        "Mirror Status",
        "Status Time Ms",
    ]);
    for Mirror { description, .. } in &mirrors.data {
        let known = !description.mirror_lags.is_empty();
        table.row([
            cell(&description.link_name),
            cell(&description.mirror_topic_name),
            cell(description.num_partitions),
            number(description.max_lag().filter(|_| known)),
            cell(&description.source_topic_name),
            state(&name_of(&description.mirror_status)),
            cell(description.state_time_ms),
        ]);
    }
    table.print()?;
    Ok(Exit::Ok)
}

pub(super) async fn describe(
    agent: &AgentClient,
    printer: &Printer,
    topic: &str,
    link: Option<&str>,
) -> Result<Exit, Failed> {
    let mirrors: MirrorList = agent
        .get(&["v1", "mirrors", topic], &query(link), LOOK_LIMIT)
        .await?;
    if printer.is_json() {
        printer.json(&mirrors)?;
        return Ok(Exit::Ok);
    }
    for (index, mirror) in mirrors.data.iter().enumerate() {
        if index > 0 {
            printer.line("")?;
        }
        describe_one(printer, mirror)?;
    }
    Ok(Exit::Ok)
}

fn describe_one(printer: &Printer, mirror: &Mirror) -> Result<(), Failed> {
    let description = &mirror.description;
    printer.line(format!(
        "Link Name: {}  Mirror Topic Name: {}  Source Topic Name: {}  Mirror Status: {}  Mirror Topic Error: {}  Status Time Ms: {}",
        description.link_name,
        description.mirror_topic_name,
        description.source_topic_name,
        name_of(&description.mirror_status),
        name_of(&description.mirror_topic_error),
        description.state_time_ms,
    ))?;
    for text in description.error.iter().chain(
        mirror
            .mirror_state_transition_errors
            .iter()
            .map(|e| &e.error_message),
    ) {
        printer.line(format!("  {text}"))?;
    }
    let configs = &description.config_sync;
    if let Some(error) = &configs.error {
        printer.line(format!("  configs not carried over: {error}"))?;
    }
    if let Some(last) = &configs.last_reverted {
        printer.line(format!(
            "  {} manual changes of configs taken back, the last: {last}",
            configs.reverted_edits
        ))?;
    }
    let mut table = printer.table(&[
        "Partition",
        "Partition Mirror Lag",
        "Lag Bytes",
        "Lag Seconds",
        "Last Source Fetch Offset",
        "Source Log End Offset",
        "Destination Log End Offset",
        "State",
        "Error",
        "At Agent",
    ]);
    for lag in &description.mirror_lags {
        table.row([
            cell(lag.partition),
            number(lag.lag),
            number(lag.lag_bytes),
            seconds(lag.lag_seconds),
            cell(lag.last_source_fetch_offset),
            number(lag.source_log_end_offset),
            number(lag.destination_log_end_offset),
            state(&progress(lag)),
            cell(lag.error.as_deref().unwrap_or("")),
            cell(lag.member.as_deref().unwrap_or("")),
        ]);
    }
    table.print()
}

/// A state, and how far it is when that can be said.
fn progress(lag: &PartitionLag) -> String {
    let name = name_of(&lag.state);
    match (lag.seed_target_offset, lag.destination_log_end_offset) {
        (Some(target), at) if target > 0 => {
            let at = at.unwrap_or(0).clamp(0, target);
            format!("{name} {at} of {target}")
        }
        _ => name,
    }
}

fn query(link: Option<&str>) -> Vec<(&'static str, &str)> {
    link.map(|name| ("link", name)).into_iter().collect()
}
