//! The file backend: a folder on a local file system.
//!
//! `<path>/<fleet>/active.json` is replaced as a whole by rename; a lock on `<path>/<fleet>/.active.lock` makes
//! compare-and-set atomic between processes. Editing the file by hand works too, best by rename.

pub(crate) mod watch;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::announce::{self, Announcements};
use crate::atomic_file;
use crate::error::Error;
use crate::handoff::Handoff;
use crate::lock::Lock;
use crate::name::{Epoch, FleetName};
use crate::options::FileOptions;
use crate::record::FleetRecord;
use crate::{CasOutcome, StoredVersion, Version, Versioned};

/// How long a writer waits for another writer, which holds its lock for a few milliseconds.
const WRITE_LOCK_TIMEOUT: Duration = Duration::from_secs(5);
const WRITE_LOCK_RETRY: Duration = Duration::from_millis(2);
/// Longest holder text that is shown.
const MAX_HOLDER_BYTES: u64 = 200;

#[derive(Debug)]
pub(crate) struct FileStore {
    folder: PathBuf,
}

impl FileStore {
    pub(crate) fn new(options: FileOptions) -> Self {
        Self {
            folder: options.path,
        }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    fn record_path(&self, fleet: &FleetName) -> PathBuf {
        self.folder.join(fleet.as_str()).join("active.json")
    }

    fn handoff_key(fleet: &FleetName, epoch: Epoch) -> String {
        format!("{fleet}/handoff/{epoch}.json")
    }

    pub(crate) async fn read(
        self: &Arc<Self>,
        fleet: &FleetName,
    ) -> Result<Option<Versioned<FleetRecord>>, Error> {
        let (store, fleet) = (Arc::clone(self), fleet.clone());
        blocking(move || {
            let path = store.record_path(&fleet);
            let Some(content) = atomic_file::read(&path).map_err(Error::io("reading", &path))?
            else {
                return Ok(None);
            };
            let value = store.parse(&path, &content)?;
            Ok(Some(Versioned {
                version: version(value.epoch, content),
                value,
            }))
        })
        .await
    }

    fn parse(&self, path: &Path, content: &[u8]) -> Result<FleetRecord, Error> {
        FleetRecord::parse(content).map_err(|reason| Error::Malformed {
            address: self.folder.display().to_string(),
            key: path.display().to_string(),
            reason,
        })
    }

    pub(crate) async fn compare_and_set(
        self: &Arc<Self>,
        fleet: &FleetName,
        expected: Option<&Version>,
        record: &FleetRecord,
    ) -> Result<CasOutcome, Error> {
        let path = self.record_path(fleet);
        let json = record.to_json().map_err(|reason| Error::Invalid {
            key: path.display().to_string(),
            reason,
        })?;
        let expected = match expected.map(|version| &version.stored) {
            None => None,
            Some(StoredVersion::Bytes(bytes)) => Some(Arc::clone(bytes)),
            // A version of another backend never matches.
            Some(StoredVersion::Index { .. }) => return Ok(CasOutcome::Conflict),
        };
        let epoch = record.epoch;
        blocking(move || {
            let _lock = lock_for_writing(&path)?;
            let stored = atomic_file::read(&path).map_err(Error::io("reading", &path))?;
            if stored.as_deref() != expected.as_deref() {
                return Ok(CasOutcome::Conflict);
            }
            atomic_file::replace(&path, &json).map_err(Error::io("writing", &path))?;
            Ok(CasOutcome::Set(version(epoch, json)))
        })
        .await
    }

    pub(crate) async fn write_handoff(&self, handoff: &Handoff) -> Result<String, Error> {
        let key = Self::handoff_key(&handoff.fleet, handoff.epoch);
        let path = self.folder.join(&key);
        let json = handoff.to_json().map_err(|reason| Error::Invalid {
            key: path.display().to_string(),
            reason,
        })?;
        blocking(move || {
            create_folder(&path)?;
            atomic_file::replace(&path, &json).map_err(Error::io("writing", &path))
        })
        .await?;
        Ok(key)
    }

    pub(crate) async fn read_handoff(
        &self,
        fleet: &FleetName,
        epoch: Epoch,
    ) -> Result<Option<Handoff>, Error> {
        let address = self.folder.display().to_string();
        let path = self.folder.join(Self::handoff_key(fleet, epoch));
        blocking(move || {
            let content = atomic_file::read(&path).map_err(Error::io("reading", &path))?;
            let handoff = content.map(|content| Handoff::parse(&content)).transpose();
            handoff.map_err(|reason| Error::Malformed {
                address,
                key: path.display().to_string(),
                reason,
            })
        })
        .await
    }

    pub(crate) async fn announce(
        &self,
        fleet: &FleetName,
        agent: &str,
        content: &serde_json::Value,
    ) -> Result<Announcements, Error> {
        let path = self.folder.join(format!("{fleet}/{}.json", announce::KEY));
        let (agent, content) = (agent.to_owned(), content.clone());
        blocking(move || {
            let _lock = lock_for_writing(&path)?;
            let stored = atomic_file::read(&path).map_err(Error::io("reading", &path))?;
            let (all, json) =
                announce::with(stored.as_deref(), &agent, &content).map_err(|reason| {
                    Error::Invalid {
                        key: path.display().to_string(),
                        reason,
                    }
                })?;
            atomic_file::replace(&path, &json).map_err(Error::io("writing", &path))?;
            Ok(all)
        })
        .await
    }

    pub(crate) async fn lock(
        &self,
        fleet: &FleetName,
        name: &str,
        holder: &str,
    ) -> Result<Lock, Error> {
        let path = self.folder.join(fleet.as_str()).join(name);
        let address = self.folder.display().to_string();
        let holder = holder.to_owned();
        blocking(move || {
            let mut file = open_lock(&path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let mut text = String::new();
                    let _ = (&mut file).take(MAX_HOLDER_BYTES).read_to_string(&mut text);
                    let holder = if text.is_empty() {
                        "another process".to_owned()
                    } else {
                        text
                    };
                    return Err(Error::LockHeld {
                        address,
                        key: path.display().to_string(),
                        holder,
                    });
                }
                Err(TryLockError::Error(error)) => return Err(Error::io("locking", &path)(error)),
            }
            // Only for people: the lock is the kernel's, not the text.
            let note = format!("{holder} (process {})", std::process::id());
            let written = file
                .set_len(0)
                .and_then(|()| file.rewind())
                .and_then(|()| file.write_all(note.as_bytes()));
            written.map_err(Error::io("writing", &path))?;
            Ok(Lock::on_file(file))
        })
        .await
    }
}

fn version(epoch: Epoch, content: Vec<u8>) -> Version {
    Version {
        epoch,
        stored: StoredVersion::Bytes(content.into()),
    }
}

fn create_folder(path: &Path) -> Result<(), Error> {
    let Some(folder) = path.parent() else {
        return Ok(());
    };
    fs::create_dir_all(folder).map_err(Error::io("creating", folder))
}

fn open_lock(path: &Path) -> Result<File, Error> {
    create_folder(path)?;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    options.open(path).map_err(Error::io("opening", path))
}

/// Locks out other writers of this record until the file is dropped.
fn lock_for_writing(record: &Path) -> Result<File, Error> {
    let path = record.with_file_name(".active.lock");
    let file = open_lock(&path)?;
    let deadline = Instant::now() + WRITE_LOCK_TIMEOUT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(WRITE_LOCK_RETRY)
            }
            Err(error) => return Err(Error::io("locking", &path)(error.into())),
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::io("waiting for the file system", PathBuf::new())(
            std::io::Error::other(error),
        )),
    }
}
