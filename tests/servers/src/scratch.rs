//! The folder that holds a server's data and logs.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::{Error, Result};

/// A folder that goes away with this value, unless `STANDFAST_KEEP_SCRATCH` is set.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    owned: Option<TempDir>,
}

impl Scratch {
    pub(crate) fn new(name: &str) -> Result<Self> {
        Self::inside(&std::env::temp_dir(), name)
    }

    pub(crate) fn inside(parent: &Path, name: &str) -> Result<Self> {
        let prefix = format!("standfast-{name}-");
        let folder = tempfile::Builder::new()
            .prefix(&prefix)
            .tempdir_in(parent)
            .map_err(Error::io(format!("create a scratch folder {prefix}*")))?;
        if std::env::var_os("STANDFAST_KEEP_SCRATCH").is_some() {
            return Ok(Self {
                path: folder.keep(),
                owned: None,
            });
        }
        Ok(Self {
            path: folder.path().to_owned(),
            owned: Some(folder),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The folder to remove when the owning process is killed; none if it is to be kept.
    pub(crate) fn disposable(&self) -> Option<&Path> {
        self.owned.as_ref().map(TempDir::path)
    }
}
