//! Keeps a link's running state (which mirrors are paused or stopped) in the agent's data folder, so that a restart does not undo it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use standfast_link::{Lifecycle, RunningState};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Sub-folder of data_dir.
const FOLDER: &str = "links";
const VERSION: u32 = 1;
/// Some hundred thousand topics.
const FILE_MAX_BYTES: u64 = 64 << 20;
/// Between two tries to write the file.
const RETRY: Duration = Duration::from_secs(5);
/// How long a command waits for its change to be on disk.
const KEPT_WITHIN: Duration = Duration::from_secs(10);

/// The file. Unknown fields are refused: they would be lost with the next change.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    link: String,
    state: RunningState,
}

/// What is on disk.
#[derive(Debug, Clone, Default)]
struct Kept {
    revision: u64,
    error: Option<String>,
}

/// Owns one link's file.
#[derive(Debug)]
pub(crate) struct Keeper {
    link: String,
    path: PathBuf,
    lifecycle: Lifecycle,
    kept: watch::Sender<Kept>,
}

/// The running state, and whether it is on disk. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct KeptState {
    lifecycle: Lifecycle,
    kept: watch::Receiver<Kept>,
}

impl Keeper {
    /// Reads the file; without one everything is active.
    ///
    /// # Errors
    /// The file cannot be read or understood. Starting all the same would start mirrors that were stopped, and their topics may be written by
    /// applications now.
    pub(crate) fn open(data_dir: &Path, link: &str) -> anyhow::Result<(Self, KeptState)> {
        let folder = data_dir.join(FOLDER);
        fs::create_dir_all(&folder)
            .with_context(|| format!("{} cannot be created", folder.display()))?;
        let path = folder.join(format!("{link}.json"));
        let state = read(&path, link).with_context(|| {
            format!(
                "{} says which mirrors of link {link} are paused or stopped, and cannot be used; mend it, or delete it to \
                 start every mirror as configured (a topic that applications write to by now then becomes FAILED)",
                path.display()
            )
        })?;
        let lifecycle = Lifecycle::new(state);
        // From here on a restore waits for the file before it deletes.
        lifecycle.note_kept(lifecycle.state().revision);
        let (kept, receiver) = watch::channel(Kept::default());
        let state = KeptState {
            lifecycle: lifecycle.clone(),
            kept: receiver,
        };
        let keeper = Self {
            link: link.to_owned(),
            path,
            lifecycle,
            kept,
        };
        Ok((keeper, state))
    }

    /// Writes every change until `shutdown`, and the last one then.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let mut changes = self.lifecycle.subscribe();
        loop {
            let revision = changes.borrow_and_update().revision;
            let failing = self.kept.borrow().error.is_some();
            if revision != self.kept.borrow().revision || failing {
                self.save().await;
            }
            let retry = self.kept.borrow().error.is_some();
            tokio::select! {
                () = shutdown.cancelled() => {
                    if changes.has_changed().unwrap_or(false) {
                        self.save().await;
                    }
                    return;
                }
                changed = changes.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(RETRY), if retry => {}
            }
        }
    }

    async fn save(&self) {
        let state = self.lifecycle.state();
        let revision = state.revision;
        let document = Document {
            version: VERSION,
            link: self.link.clone(),
            state,
        };
        let path = self.path.clone();
        let written = tokio::task::spawn_blocking(move || replace(&path, &document)).await;
        let error = match written {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(broken) => Some(broken.to_string()),
        };
        if error.is_none() {
            self.lifecycle.note_kept(revision);
        }
        if let Some(error) = &error {
            tracing::error!(link = self.link, file = %self.path.display(), error, "which mirrors are paused or stopped could not be saved; a restart would not know");
        }
        self.kept.send_replace(Kept { revision, error });
    }
}

/// Removes the file of a link that is no more.
pub(super) fn forget(data_dir: &Path, link: &str) -> io::Result<()> {
    match fs::remove_file(data_dir.join(FOLDER).join(format!("{link}.json"))) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

impl KeptState {
    pub(crate) fn lifecycle(&self) -> &Lifecycle {
        &self.lifecycle
    }

    /// Waits until what is wanted now is on disk.
    ///
    /// # Errors
    /// Why it is not, in words.
    pub(crate) async fn on_disk(&self) -> Result<(), String> {
        let revision = self.lifecycle.state().revision;
        let mut kept = self.kept.clone();
        let found = kept.wait_for(|kept| kept.revision >= revision);
        match tokio::time::timeout(KEPT_WITHIN, found).await {
            Ok(Ok(kept)) => kept.error.clone().map_or(Ok(()), Err),
            Ok(Err(_)) => Err("the agent is shutting down".to_owned()),
            Err(_) => Err(format!("not written within {KEPT_WITHIN:?}")),
        }
    }
}

fn read(path: &Path, link: &str) -> anyhow::Result<RunningState> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(RunningState::default());
        }
        Err(error) => return Err(error.into()),
    };
    let mut text = Vec::new();
    file.take(FILE_MAX_BYTES + 1).read_to_end(&mut text)?;
    if text.len() as u64 > FILE_MAX_BYTES {
        bail!("it is larger than {FILE_MAX_BYTES} bytes");
    }
    let document: Document = serde_json::from_slice(&text)?;
    if document.version != VERSION {
        bail!(
            "it has version {}, this agent knows {VERSION}",
            document.version
        );
    }
    if document.link != link {
        bail!("it is of link {:?}", document.link);
    }
    Ok(document.state)
}

/// Replaces the file as a whole: a reader finds the old content or the new, also after a power cut.
pub(super) fn replace(path: &Path, document: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_vec_pretty(document)?;
    let temporary = path.with_extension("json.new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&temporary)?;
    file.write_all(&text)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&temporary, path)?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use standfast_link::Wanted;

    #[tokio::test]
    async fn what_was_said_is_found_again_and_damage_is_no_silent_start() {
        let folder = tempfile::tempdir().unwrap();
        let (keeper, state) = Keeper::open(folder.path(), "w-e").unwrap();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(keeper.run(shutdown.clone()));
        state.lifecycle().set(["orders"], Wanted::Stopped);
        state.lifecycle().set_paused(true);
        state.on_disk().await.unwrap();
        let (_, again) = Keeper::open(folder.path(), "w-e").unwrap();
        let found = again.lifecycle().state();
        assert_eq!(
            (found.paused, found.wanted("orders")),
            (true, Wanted::Stopped)
        );
        // The last change is written on the way out.
        state.lifecycle().set(["more"], Wanted::Paused);
        shutdown.cancel();
        task.await.unwrap();
        let (_, again) = Keeper::open(folder.path(), "w-e").unwrap();
        assert_eq!(again.lifecycle().wanted("more"), Wanted::Paused);

        let path = folder.path().join(FOLDER).join("w-e.json");
        let good = fs::read_to_string(&path).unwrap();
        for (from, to) in [
            ("\"version\": 1", "\"version\": 2"),
            ("\"link\": \"w-e\"", "\"link\": \"other\""),
            ("\"paused\": true", "\"paused\": true, \"new\": 1"),
            ("STOPPED", "GONE"),
            ("}", ""),
        ] {
            assert!(good.contains(from), "{from} is not in {good}");
            fs::write(&path, good.replace(from, to)).unwrap();
            let error = Keeper::open(folder.path(), "w-e").unwrap_err();
            assert!(format!("{error:#}").contains("w-e.json"), "{error:#}");
        }
        fs::write(&path, "").unwrap();
        assert!(Keeper::open(folder.path(), "w-e").is_err());
    }

    #[tokio::test]
    async fn a_change_that_cannot_be_written_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let (keeper, state) = Keeper::open(folder.path(), "w-e").unwrap();
        // A folder in the place of the file.
        fs::create_dir(folder.path().join(FOLDER).join("w-e.json")).unwrap();
        tokio::spawn(keeper.run(CancellationToken::new()));
        state.lifecycle().set(["orders"], Wanted::Stopped);
        assert!(state.on_disk().await.is_err());
    }
}
