//! The cache file: the last good record, for a start while discovery is away.

use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;

use crate::atomic_file;
use crate::error::Error;
use crate::name::FleetName;
use crate::record::FleetRecord;

#[derive(Debug, Clone)]
pub(crate) struct Cache {
    path: PathBuf,
}

impl Cache {
    pub(crate) fn new(folder: PathBuf, fleet: &FleetName) -> Self {
        Self {
            path: folder.join(format!("{fleet}.json")),
        }
    }

    /// The cached record and when it was written. A damaged cache is told and treated as none: it is only a help.
    pub(crate) fn read(&self) -> Option<(FleetRecord, Timestamp)> {
        let content = match atomic_file::read(&self.path) {
            Ok(content) => content?,
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "the cached record cannot be read");
                return None;
            }
        };
        match FleetRecord::parse(&content) {
            Ok(record) => Some((record, self.written_at())),
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "the cached record is malformed and ignored");
                None
            }
        }
    }

    fn written_at(&self) -> Timestamp {
        let modified = std::fs::metadata(&self.path).and_then(|m| m.modified());
        modified
            .ok()
            .and_then(|m| Timestamp::try_from(m).ok())
            .unwrap_or(Timestamp::UNIX_EPOCH)
    }

    pub(crate) async fn write(&self, record: &Arc<FleetRecord>) -> Result<(), Error> {
        let (path, record) = (self.path.clone(), Arc::clone(record));
        let write = move || {
            let content = record.to_json().map_err(std::io::Error::other)?;
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            atomic_file::replace(&path, &content)
        };
        let written = tokio::task::spawn_blocking(write)
            .await
            .map_err(std::io::Error::other);
        written
            .and_then(|r| r)
            .map_err(Error::io("writing the cached record", &self.path))
    }
}
