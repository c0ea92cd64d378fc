//! Where the running servers are noted.

use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use standfast_servers::KafkaCluster;

use super::private_file;

/// The servers that a supervisor runs.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) supervisor: u32,
    pub(super) kafka: Vec<KafkaState>,
    pub(super) consul: ServerState,
    pub(super) vault: ServerState,
    pub(super) vault_root_token: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct KafkaState {
    name: String,
    bootstrap: String,
    cluster_id: String,
    pids: Vec<u32>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ServerState {
    pub(super) address: String,
    pub(super) pid: u32,
}

impl KafkaState {
    pub(super) fn of(cluster: &KafkaCluster) -> Self {
        Self {
            name: cluster.name().to_owned(),
            bootstrap: cluster.bootstrap(),
            cluster_id: cluster.cluster_id().to_owned(),
            pids: cluster.pids(),
        }
    }
}

impl State {
    pub(super) fn pids(&self) -> Vec<u32> {
        let kafka = self
            .kafka
            .iter()
            .flat_map(|cluster| cluster.pids.iter().copied());
        kafka.chain([self.consul.pid, self.vault.pid]).collect()
    }

    pub(super) fn table(&self) -> String {
        let mut rows = vec![[
            "SERVER".to_owned(),
            "ADDRESS".to_owned(),
            "STATE".to_owned(),
            "NOTE".to_owned(),
        ]];
        let state = |pids: &[u32]| {
            if pids.iter().all(|pid| is_running(*pid)) {
                "running"
            } else {
                "gone"
            }
            .to_owned()
        };
        for cluster in &self.kafka {
            let note = format!("cluster id {}", cluster.cluster_id);
            rows.push([
                format!("kafka {}", cluster.name),
                cluster.bootstrap.clone(),
                state(&cluster.pids),
                note,
            ]);
        }
        let consul = &self.consul;
        rows.push([
            "consul".to_owned(),
            consul.address.clone(),
            state(&[consul.pid]),
            String::new(),
        ]);
        let note = format!("root token {}, KV v2 at secret/", self.vault_root_token);
        rows.push([
            "vault".to_owned(),
            self.vault.address.clone(),
            state(&[self.vault.pid]),
            note,
        ]);
        let widths =
            [0, 1, 2].map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0));
        rows.iter()
            .map(|[server, address, state, note]| {
                let line = format!(
                    "{server:<0$}  {address:<1$}  {state:<2$}  {note}",
                    widths[0], widths[1], widths[2]
                );
                line.trim_end().to_owned() + "\n"
            })
            .collect()
    }
}

/// `$XDG_STATE_HOME/standfast/servers` or `~/.local/state/standfast/servers`.
#[derive(Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn open() -> Result<Self> {
        let set = |name: &str| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let base =
            set("XDG_STATE_HOME").or_else(|| set("HOME").map(|home| home.join(".local/state")));
        let path = base
            .context("neither XDG_STATE_HOME nor HOME is set")?
            .join("standfast/servers");
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self(path))
    }

    pub(super) fn log(&self) -> PathBuf {
        self.0.join("supervisor.log")
    }

    fn state(&self) -> PathBuf {
        self.0.join("state.json")
    }

    /// Taken by the supervisor for its life; its content is the supervisor's process id.
    pub(super) fn lock(&self) -> Result<File> {
        let mut file = self.lock_file()?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!("another supervisor runs already"),
            Err(TryLockError::Error(error)) => return Err(error).context("lock the state folder"),
        }
        file.set_len(0)
            .and_then(|()| write!(file, "{}", std::process::id()))
            .context("write the lock file")?;
        Ok(file)
    }

    pub(super) fn is_locked(&self) -> Result<bool> {
        match self.lock_file()?.try_lock() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => {
                Err(error).context("look at the lock of the state folder")
            }
        }
    }

    /// The process id that the last supervisor wrote.
    pub(super) fn supervisor(&self) -> Result<Option<u32>> {
        match fs::read_to_string(self.0.join("lock")) {
            Ok(text) => Ok(text.trim().parse().ok()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context("read the lock file"),
        }
    }

    pub(super) fn read(&self) -> Result<Option<State>> {
        let path = self.state();
        match fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text)
                .map(Some)
                .with_context(|| format!("read {}", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    pub(super) fn write(&self, state: &State) -> Result<()> {
        let partial = self.0.join("state.json.partial");
        let text = serde_json::to_vec_pretty(state).context("write JSON")?;
        private_file()
            .truncate(true)
            .open(&partial)
            .and_then(|mut file| file.write_all(&text))
            .and_then(|()| fs::rename(&partial, self.state()))
            .with_context(|| format!("write {}", self.state().display()))
    }

    pub(super) fn clear(&self) -> Result<()> {
        match fs::remove_file(self.state()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context("remove the old state")
            }
            _ => Ok(()),
        }
    }

    fn lock_file(&self) -> Result<File> {
        let path = self.0.join("lock");
        let file = private_file().truncate(false).open(&path);
        file.with_context(|| format!("open {}", path.display()))
    }
}

/// Whether a process lives; a zombie that nobody reaps does not.
pub(super) fn is_running(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ")
        .next()
        .is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}
