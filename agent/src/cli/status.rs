//! `standfast status`.

use std::time::Duration;

use super::client::AgentClient;
use super::output::{Printer, cell, number, state};
use crate::api::{LinkStatus, Status};
use crate::daemon::name_of;
use crate::exit::{Exit, Failed};

/// How long a command that only looks waits.
pub(super) const LOOK_LIMIT: Duration = Duration::from_secs(10);

pub(super) async fn show(agent: &AgentClient, printer: &Printer) -> Result<Exit, Failed> {
    let status: Status = agent.get(&["v1", "status"], &[], LOOK_LIMIT).await?;
    if printer.is_json() {
        printer.json(&status)?;
        return Ok(Exit::Ok);
    }
    let fleet = &status.fleet;
    let mut table = printer.table(&["Fleet", "Epoch", "Active", "State", "Record", "Agent"]);
    table.row([
        cell(&fleet.name),
        number(fleet.epoch),
        number(fleet.active.as_ref()),
        fleet
            .state
            .as_ref()
            .map_or_else(|| cell("-"), |s| state(&name_of(s))),
        state(&name_of(&fleet.source)),
        cell(format!("{} {}", status.agent.name, status.agent.version)),
    ]);
    table.print()?;
    printer.line("")?;

    let mut table = printer.table(&[
        "Cluster",
        "Active",
        "Status",
        "Since",
        "Bootstrap",
        "Cluster Id",
    ]);
    for cluster in &status.clusters {
        table.row([
            cell(&cluster.name),
            cell(if cluster.active { "yes" } else { "" }),
            state(&name_of(&cluster.status)),
            cell(cluster.since.strftime("%Y-%m-%dT%H:%M:%SZ")),
            cell(&cluster.bootstrap),
            number(cluster.cluster_id.as_ref()),
        ]);
    }
    table.print()?;
    printer.line("")?;

    let mut table = printer.table(&[
        "Link Name",
        "Source",
        "Destination",
        "Link State",
        "Mirrors",
        "Max Lag",
    ]);
    for link in &status.links {
        table.row([
            cell(&link.link_name),
            cell(&link.source_cluster),
            cell(&link.destination_cluster),
            state(&link.link_state),
            cell(link.mirror_count),
            number(link.max_lag),
        ]);
    }
    table.print()?;
    reasons(printer, status.links.iter())?;
    hints(&status, printer);
    Ok(Exit::Ok)
}

/// Why links are not ACTIVE: too long for a table.
pub(super) fn reasons<'l>(
    printer: &Printer,
    links: impl Iterator<Item = &'l LinkStatus>,
) -> Result<(), Failed> {
    for link in links {
        if let Some(reason) = link.reason.as_ref().or(link.link_error.as_ref()) {
            printer.line(format!("link {}: {reason}", link.link_name))?;
        }
    }
    Ok(())
}

fn hints(status: &Status, printer: &Printer) {
    if let Some(operation) = &status.operation {
        printer.note(format!(
            "\n{} is running, step {}",
            operation.kind, operation.step
        ));
    }
    if let Some(error) = &status.fleet.last_error {
        printer.note(format!("\ndiscovery: {error}"));
    }
    for link in &status.links {
        if let Some(error) = link.acl_sync.as_ref().and_then(|acls| acls.error.as_ref()) {
            printer.note(format!(
                "link {}: ACLs not carried over: {error}",
                link.link_name
            ));
        }
    }
    for end in &status.expiring_credentials {
        let (part, subject, not_after) = (end.part.replace('_', " "), &end.subject, end.not_after);
        let ends = if end.expired { "has ended" } else { "ends" };
        let secret = end.secret.as_ref();
        let of = secret.map_or_else(String::new, |secret| format!(" in secret {secret}"));
        printer.note(format!("{part}{of} ({subject}) {ends} at {not_after}"));
    }
    for cluster in &status.clusters {
        if let Some(error) = &cluster.last_error {
            printer.note(format!("cluster {}: {error}", cluster.name));
        }
    }
}
