//! The rendered files: replaced as a whole, readable by this user only, removed at the end.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use standfast_secrets::replace_private_file;

use super::properties;
use super::settings::Render;
use super::sources::Target;

/// The files that were written. Dropping it removes them.
#[derive(Debug, Default)]
pub(super) struct RenderedFiles {
    written: BTreeSet<PathBuf>,
}

impl RenderedFiles {
    /// Writes the properties file and what belongs beside it.
    ///
    /// # Errors
    /// A value that the format cannot hold, or a folder that cannot be written.
    pub(super) fn write(&mut self, target: &Target, render: &Render) -> anyhow::Result<()> {
        let (text, beside) = properties::render(target, render)?;
        // The certificates first: whoever reads the new properties finds them.
        for pem in &beside {
            let mut path = render.path.clone().into_os_string();
            path.push(pem.suffix);
            self.replace(&PathBuf::from(path), pem.content.expose())?;
        }
        self.replace(&render.path, &text)
    }

    fn replace(&mut self, path: &Path, content: &str) -> anyhow::Result<()> {
        replace_private_file(path, content)
            .with_context(|| format!("--render: cannot write {}", path.display()))?;
        self.written.insert(path.to_owned());
        Ok(())
    }
}

impl Drop for RenderedFiles {
    fn drop(&mut self) {
        for path in &self.written {
            if let Err(error) = fs::remove_file(path) {
                tracing::warn!(path = %path.display(), %error, "the rendered file was not removed, it may hold credentials");
            }
        }
    }
}
