//! `standfast link list|describe|pause|resume`, and what a change of a link came to.

use serde_json::Value;

use super::client::AgentClient;
use super::output::{Printer, cell, number, state};
use super::settings::short;
use super::status::{LOOK_LIMIT, reasons};
use crate::api::{Link, LinkList, LinkRequest};
use crate::daemon::name_of;
use crate::exit::{Exit, Failed};

/// Topics of an agent that a table names.
const TOPICS_SHOWN: usize = 8;

pub(super) async fn list(agent: &AgentClient, printer: &Printer) -> Result<Exit, Failed> {
    let links: LinkList = agent.get(&["v1", "links"], &[], LOOK_LIMIT).await?;
    if printer.is_json() {
        printer.json(&links)?;
    } else {
        table(printer, &links.data)?;
    }
    Ok(Exit::Ok)
}

pub(super) async fn describe(
    agent: &AgentClient,
    printer: &Printer,
    name: &str,
) -> Result<Exit, Failed> {
    let links: LinkList = agent.get(&["v1", "links", name], &[], LOOK_LIMIT).await?;
    if printer.is_json() {
        printer.json(&links)?;
        return Ok(Exit::Ok);
    }
    table(printer, &links.data)?;
    for link in &links.data {
        if !link.category_counts.is_empty() {
            printer.line("")?;
            let mut counts = printer.table(&["State Category", "Mirrors"]);
            for category in &link.category_counts {
                counts.row([cell(&category.state_category), cell(category.count)]);
            }
            counts.print()?;
        }
        printer.line("")?;
        tasks(printer, link)?;
        if !link.members.is_empty() {
            printer.line("")?;
            members(printer, link)?;
        }
        if !link.groups.is_empty() {
            printer.line("")?;
            groups(printer, link)?;
        }
        printer.line("")?;
        configs(printer, link)?;
    }
    Ok(Exit::Ok)
}

fn tasks(printer: &Printer, link: &Link) -> Result<(), Failed> {
    let mut table = printer.table(&["Task Name", "State", "Error Code", "Error Message"]);
    for task in &link.tasks {
        let row = |code: &str, text: &str| {
            [
                cell(&task.task_name),
                state(&name_of(&task.state)),
                cell(code),
                cell(text),
            ]
        };
        if task.errors.is_empty() {
            table.row(row("", ""));
        }
        for error in &task.errors {
            table.row(row(&error.error_code, &error.error_message));
        }
    }
    table.print()
}

fn members(printer: &Printer, link: &Link) -> Result<(), Failed> {
    let mut table = printer.table(&["Agent", "Partitions", "Role", "Topics"]);
    for member in &link.members {
        let role = match (member.is_leader, member.is_self) {
            (true, true) => "leader, asked",
            (true, false) => "leader",
            (false, true) => "asked",
            (false, false) => "",
        };
        let topics = member.topics.iter().take(TOPICS_SHOWN);
        let mut topics: Vec<String> = topics
            .map(|(topic, which)| format!("{topic}: {which}"))
            .collect();
        if member.topics.len() > TOPICS_SHOWN {
            topics.push(format!("and {} more", member.topics.len() - TOPICS_SHOWN));
        }
        table.row([
            cell(&member.member),
            cell(member.partitions),
            cell(role),
            cell(topics.join("; ")),
        ]);
    }
    table.print()
}

fn groups(printer: &Printer, link: &Link) -> Result<(), Failed> {
    let mut table = printer.table(&["Group", "Committed Offsets", "Error"]);
    for group in &link.groups {
        let name = match &group.mirror_group {
            Some(mirror) => format!("{} as {mirror}", group.group),
            None => group.group.clone(),
        };
        table.row([
            cell(name),
            cell(group.committed_offsets),
            cell(group.error.as_deref().unwrap_or("")),
        ]);
    }
    table.print()
}

fn configs(printer: &Printer, link: &Link) -> Result<(), Failed> {
    let mut table = printer.table(&["Key", "Value", "Origin", "In The File"]);
    for config in &link.configs {
        let value = config.value.as_ref().unwrap_or(&Value::Null);
        let file = config.file_value.as_ref();
        table.row([
            cell(&config.name),
            cell(short(value)),
            cell(name_of(&config.origin)),
            cell(file.map(short).unwrap_or_default()),
        ]);
    }
    table.print()
}

/// `verb` is `links:pause` or `links:resume`.
pub(super) async fn pause(
    agent: &AgentClient,
    printer: &Printer,
    verb: &str,
    link: Option<String>,
    dry_run: bool,
) -> Result<Exit, Failed> {
    let request = LinkRequest { link, dry_run };
    let link: Link = agent.post(&["v1", verb], &request, LOOK_LIMIT * 3).await?;
    if printer.is_json() {
        printer.json(&link)?;
    } else {
        table(printer, &[link])?;
    }
    Ok(Exit::Ok)
}

fn table(printer: &Printer, links: &[Link]) -> Result<(), Failed> {
    let mut table = printer.table(&[
        "Link Name",
        "Source",
        "Source Cluster Id",
        "Destination",
        "Destination Cluster Id",
        "Link State",
        "Mirrors",
        "Max Lag",
    ]);
    for link in links {
        let status = &link.status;
        table.row([
            cell(&status.link_name),
            cell(&status.source_cluster),
            number(link.source_cluster_id.as_ref()),
            cell(&status.destination_cluster),
            number(link.destination_cluster_id.as_ref()),
            state(&status.link_state),
            cell(status.mirror_count),
            number(status.max_lag),
        ]);
    }
    table.print()?;
    reasons(printer, links.iter().map(|link| &link.status))
}
