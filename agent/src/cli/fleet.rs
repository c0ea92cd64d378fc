//! `standfast fleet show` and `standfast fleet init`.

use std::path::Path;
use std::time::Duration;

use standfast_discovery::{CasOutcome, ClusterName, Discovery, FleetRecord, FleetState};

use super::client::AgentClient;
use super::output::{Printer, cell, number, state};
use super::status::LOOK_LIMIT;
use crate::api::{FleetAnswer, RecordSource};
use crate::config::{self, Config};
use crate::daemon::name_of;
use crate::exit::{Exit, Failed};

/// How long discovery may take to answer a command.
const DISCOVERY_LIMIT: Duration = Duration::from_secs(10);

pub(super) async fn show(agent: &AgentClient, printer: &Printer) -> Result<Exit, Failed> {
    let answer: FleetAnswer = agent.get(&["v1", "fleet"], &[], LOOK_LIMIT).await?;
    print(printer, &answer)
}

pub(super) async fn show_directly(file: &Path, printer: &Printer) -> Result<Exit, Failed> {
    let config = load(file)?;
    let discovery = discovery(&config)?;
    let record = read(&discovery, &config).await?;
    let source = if record.is_some() {
        RecordSource::Live
    } else {
        RecordSource::Never
    };
    print(
        printer,
        &FleetAnswer {
            fleet: config.fleet.name,
            source,
            last_error: None,
            record,
        },
    )
}

/// Creates the record with the clusters of the configuration, if there is none.
pub(super) async fn init(file: &Path, active: &str, printer: &Printer) -> Result<Exit, Failed> {
    let config = load(file)?;
    let active =
        ClusterName::new(active).map_err(|error| Failed::usage(format!("--active: {error}")))?;
    if !config.clusters.contains_key(&active) {
        let known: Vec<&str> = config.clusters.keys().map(ClusterName::as_str).collect();
        return Err(Failed::usage(format!(
            "--active {active}: {} has no [clusters.{active}]; it has: {}",
            file.display(),
            known.join(", ")
        )));
    }
    let discovery = discovery(&config)?;
    if let Some(existing) = read(&discovery, &config).await? {
        return Err(exists(&existing, &config));
    }
    let record = FleetRecord::first(active, config.clusters.clone(), "created by fleet init");
    let create = discovery.compare_and_set(&config.fleet.name, None, &record);
    match tokio::time::timeout(DISCOVERY_LIMIT, create).await {
        Ok(Ok(CasOutcome::Set(_))) => {}
        Ok(Ok(CasOutcome::Conflict)) => {
            return match read(&discovery, &config).await? {
                Some(existing) => Err(exists(&existing, &config)),
                None => Err(Failed::failure(
                    "somebody else changes the record at the same time; try again",
                )),
            };
        }
        Ok(Err(error)) => return Err(Failed::failure(error.to_string())),
        Err(_) => return Err(late()),
    }
    printer.note(format!("fleet {} created", config.fleet.name));
    print(
        printer,
        &FleetAnswer {
            fleet: config.fleet.name,
            source: RecordSource::Live,
            last_error: None,
            record: Some(record),
        },
    )
}

fn exists(record: &FleetRecord, config: &Config) -> Failed {
    Failed::new(
        Exit::Refused,
        format!(
            "fleet {} has a record already (epoch {}, {} is active); it was not changed. `standfast fleet show` prints it",
            config.fleet.name, record.epoch, record.active
        ),
    )
}

fn load(file: &Path) -> Result<Config, Failed> {
    config::load(file).map_err(|error| Failed::usage(error.to_string()))
}

fn discovery(config: &Config) -> Result<Discovery, Failed> {
    Discovery::new(config.discovery.clone())
        .map_err(|error| Failed::usage(format!("section [discovery]: {error}")))
}

async fn read(discovery: &Discovery, config: &Config) -> Result<Option<FleetRecord>, Failed> {
    match tokio::time::timeout(DISCOVERY_LIMIT, discovery.read(&config.fleet.name)).await {
        Ok(Ok(found)) => Ok(found.map(|versioned| versioned.value)),
        Ok(Err(error)) => Err(Failed::failure(error.to_string())),
        Err(_) => Err(late()),
    }
}

fn late() -> Failed {
    Failed::failure(format!(
        "discovery did not answer within {DISCOVERY_LIMIT:?}"
    ))
}

fn print(printer: &Printer, answer: &FleetAnswer) -> Result<Exit, Failed> {
    if printer.is_json() {
        printer.json(answer)?;
        return Ok(Exit::Ok);
    }
    let Some(record) = &answer.record else {
        printer.note(format!(
            "fleet {} has no record; create it with `standfast fleet init`",
            answer.fleet
        ));
        return Ok(Exit::Failure);
    };
    let mut table = printer.table(&[
        "Fleet",
        "Epoch",
        "Active",
        "State",
        "Changed At",
        "Record",
        "Reason",
    ]);
    table.row([
        cell(&answer.fleet),
        cell(record.epoch),
        cell(&record.active),
        state(if record.state == FleetState::Active {
            "active"
        } else {
            "fenced"
        }),
        cell(record.changed_at.strftime("%Y-%m-%dT%H:%M:%SZ")),
        state(&name_of(&answer.source)),
        cell(&record.reason),
    ]);
    table.print()?;
    printer.line("")?;
    let mut table = printer.table(&[
        "Cluster",
        "Active",
        "Bootstrap",
        "Cluster Id",
        "Secret",
        "Security Protocol",
    ]);
    for (name, cluster) in &record.clusters {
        table.row([
            cell(name),
            cell(if *name == record.active { "yes" } else { "" }),
            cell(&cluster.bootstrap),
            number(cluster.cluster_id.as_ref()),
            cell(cluster.secret.as_deref().unwrap_or("")),
            cell(cluster.security_protocol),
        ]);
    }
    table.print()?;
    if let Some(error) = &answer.last_error {
        printer.note(format!("\ndiscovery: {error}"));
    }
    Ok(Exit::Ok)
}
