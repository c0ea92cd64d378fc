//! `standfast config check`.

use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use standfast_discovery::{ClusterEntry, ClusterName, Discovery};
use standfast_secrets::{Credentials, Secrets};
use standfast_wire::Cluster;

use super::output::{Printer, Tone, cell};
use crate::clusters;
use crate::config::{self, Config, ConfigError, LinkBase, RuntimeLinks};
use crate::exit::{Exit, Failed};

/// How long each thing that is tried may take.
const TRY_LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug, Serialize)]
struct Checked {
    file: String,
    ok: bool,
    problems: Vec<Problem>,
    /// Where links differ that were changed by commands.
    warnings: Vec<String>,
    /// Only with --connect.
    connections: Vec<Tried>,
}

#[derive(Debug, Serialize)]
struct Problem {
    line: Option<usize>,
    key: String,
    message: String,
}

#[derive(Debug, Serialize)]
struct Tried {
    what: String,
    ok: bool,
    detail: String,
}

pub(super) async fn check(file: &Path, connect: bool, printer: &Printer) -> Result<Exit, Failed> {
    let config = match config::load(file) {
        Ok(config) => config,
        Err(error) => return report_problems(&error, printer),
    };
    let warnings = match changed_at_runtime(&config) {
        Ok(warnings) => warnings,
        Err(text) => return Err(Failed::usage(text)),
    };
    let connections = if connect {
        try_everything(&config).await
    } else {
        Vec::new()
    };
    let ok = connections.iter().all(|tried| tried.ok);
    let checked = Checked {
        file: file.display().to_string(),
        ok,
        problems: Vec::new(),
        warnings,
        connections,
    };
    if printer.is_json() {
        printer.json(&checked)?;
    } else {
        printer.line(format!("{}: no mistakes found", checked.file))?;
        for warning in &checked.warnings {
            printer.warn(warning);
        }
        print_tried(&checked.connections, printer)?;
        for (name, _) in config
            .clusters
            .iter()
            .filter(|(_, entry)| entry.cluster_id.is_none())
        {
            printer.note(format!(
                "hint: set clusters.{name}.cluster_id, so that a wrong bootstrap address can never lead to another cluster"
            ));
        }
    }
    Ok(if ok { Exit::Ok } else { Exit::Failure })
}

/// What commands changed in the links, as far as this machine has the agent's data_dir: the agent starts with both.
fn changed_at_runtime(config: &Config) -> Result<Vec<String>, String> {
    let runtime = RuntimeLinks::load(&config.agent.data_dir)?;
    let base = LinkBase::new(config);
    base.resolve(&runtime).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        let file = RuntimeLinks::path(&config.agent.data_dir);
        format!(
            "{} does not fit this file:\n{}",
            file.display(),
            lines.join("\n")
        )
    })?;
    Ok(base.disagreements(&runtime))
}

fn report_problems(error: &ConfigError, printer: &Printer) -> Result<Exit, Failed> {
    if printer.is_json() {
        let problems = error.problems().map(|(line, key, message)| Problem {
            line,
            key: key.to_owned(),
            message: message.to_owned(),
        });
        let file = error.file().to_owned();
        printer.json(&Checked {
            file,
            ok: false,
            problems: problems.collect(),
            warnings: Vec::new(),
            connections: Vec::new(),
        })?;
    }
    Err(Failed::usage(error.to_string()))
}

fn print_tried(tried: &[Tried], printer: &Printer) -> Result<(), Failed> {
    if tried.is_empty() {
        return Ok(());
    }
    let mut table = printer.table(&["Checked", "Result", "Detail"]);
    for tried in tried {
        let result = if tried.ok {
            ("ok", Tone::Good)
        } else {
            ("FAILED", Tone::Bad)
        };
        table.row([
            cell(&tried.what),
            (result.0.to_owned(), result.1),
            cell(&tried.detail),
        ]);
    }
    table.print()
}

async fn try_everything(config: &Config) -> Vec<Tried> {
    let mut tried = vec![tried_step("discovery".to_owned(), try_discovery(config)).await];
    let secrets = match Secrets::new(config.secrets.clone()) {
        Ok(secrets) => secrets,
        Err(error) => {
            tried.push(Tried {
                what: "secrets".to_owned(),
                ok: false,
                detail: error.to_string(),
            });
            return tried;
        }
    };
    for (name, entry) in &config.clusters {
        let mut credentials = None;
        if let Ok(Some(path)) = clusters::secret_path(entry) {
            let read = async {
                let found = secrets
                    .read(&path)
                    .await
                    .map_err(|error| error.to_string())?;
                let detail = format!("version {}", found.version);
                credentials = Some(found);
                Ok(detail)
            };
            let outcome = tried_step(format!("secret {path}"), read).await;
            let readable = outcome.ok;
            tried.push(outcome);
            if !readable {
                continue;
            }
        }
        tried.push(
            tried_step(
                format!("cluster {name}"),
                try_cluster(name, entry, credentials.as_ref()),
            )
            .await,
        );
    }
    tried
}

async fn tried_step(what: String, attempt: impl Future<Output = Result<String, String>>) -> Tried {
    match tokio::time::timeout(TRY_LIMIT, attempt).await {
        Ok(Ok(detail)) => Tried {
            what,
            ok: true,
            detail,
        },
        Ok(Err(detail)) => Tried {
            what,
            ok: false,
            detail,
        },
        Err(_) => Tried {
            what,
            ok: false,
            detail: format!("no answer within {TRY_LIMIT:?}"),
        },
    }
}

async fn try_discovery(config: &Config) -> Result<String, String> {
    let discovery = Discovery::new(config.discovery.clone()).map_err(|error| error.to_string())?;
    let found = discovery
        .read(&config.fleet.name)
        .await
        .map_err(|error| error.to_string())?;
    Ok(match found {
        Some(record) => format!(
            "fleet {}: epoch {}, {} is active",
            config.fleet.name, record.value.epoch, record.value.active
        ),
        None => format!(
            "reachable; fleet {} has no record yet, create it with `standfast fleet init`",
            config.fleet.name
        ),
    })
}

async fn try_cluster(
    name: &ClusterName,
    entry: &ClusterEntry,
    credentials: Option<&Credentials>,
) -> Result<String, String> {
    let options = clusters::with_credentials(entry, credentials, "standfast-check")
        .map_err(|error| error.to_string())?;
    let cluster = Cluster::connect(options)
        .await
        .map_err(|error| error.to_string())?;
    let found = cluster.cluster_id();
    Ok(match &entry.cluster_id {
        Some(_) => format!("cluster id {found}, as configured"),
        None => {
            format!("cluster id {found}; clusters.{name}.cluster_id does not say which is expected")
        }
    })
}
