//! The rendered files: replaced as a whole, readable by this user only, removed at the end.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::properties;
use super::settings::Render;
use super::sources::Target;

/// Only the user who runs the program may read credentials.
const MODE: u32 = 0o600;

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
        let mut temporary = path.to_owned().into_os_string();
        temporary.push(format!(".{}.new", std::process::id()));
        let temporary = PathBuf::from(temporary);
        let written = create(&temporary, content).and_then(|()| fs::rename(&temporary, path));
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written.with_context(|| format!("--render: cannot write {}", path.display()))?;
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

fn create(path: &Path, content: &str) -> io::Result<()> {
    // A left-over of a killed process with the same id; `create_new` then makes sure of owner and mode.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(MODE).open(path)?;
    file.write_all(content.as_bytes())
}
