//! The file backend: one TOML or JSON file, one table per secret.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use zeroize::Zeroizing;

use crate::{Credentials, Error, FileOptions, SecretPath};

/// How often the file is looked at for a change.
pub(crate) const POLL: Duration = Duration::from_millis(250);

/// Largest secrets file, in bytes.
const MAX_FILE_LEN: u64 = 4 * 1024 * 1024;

/// File systems stamp changes in ticks of up to two seconds.
const SETTLE_NS: i128 = 2_000_000_000;

const WHAT: &str = "secrets file";

/// What tells one state of the file from another without reading it. The change time also moves on `chmod`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    len: u64,
    modified_ns: i128,
    changed_ns: i128,
}

impl Stamp {
    fn of(metadata: &std::fs::Metadata) -> Self {
        let ns = |secs: i64, nanos: i64| i128::from(secs) * 1_000_000_000 + i128::from(nanos);
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            len: metadata.len(),
            modified_ns: ns(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: ns(metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether the change lies far enough back that another one within the same clock tick would be seen.
    pub(crate) fn is_settled(&self) -> bool {
        jiff::Timestamp::now().as_nanosecond() - self.changed_ns > SETTLE_NS
    }

    fn version(&self) -> u64 {
        u64::try_from(self.modified_ns / 1_000_000).unwrap_or_default()
    }
}

#[derive(Debug, Clone, Copy)]
enum Format {
    Toml,
    Json,
}

/// The file and how to read it.
#[derive(Debug, Clone)]
pub(crate) struct SecretsFile {
    path: PathBuf,
    format: Format,
}

/// All secrets of the file as it was at one moment.
pub(crate) struct Content {
    file: PathBuf,
    tables: serde_json::Map<String, serde_json::Value>,
    stamp: Stamp,
}

impl SecretsFile {
    pub(crate) fn new(options: &FileOptions) -> Result<Self, Error> {
        let extension = options.path.extension().and_then(|text| text.to_str());
        let format = match extension {
            Some("toml") => Format::Toml,
            Some("json") => Format::Json,
            _ => {
                return Err(Error::InvalidOption {
                    option: "path",
                    reason: format!(
                        "{} must end in `.toml` or `.json`, that says its format",
                        options.path.display()
                    ),
                });
            }
        };
        Ok(Self {
            path: options.path.clone(),
            format,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The file's present state; `None` when it cannot be looked at.
    pub(crate) async fn stamp(&self) -> Option<Stamp> {
        let path = self.path.clone();
        blocking(move || std::fs::metadata(path).ok().as_ref().map(Stamp::of))
            .await
            .flatten()
    }

    /// Reads and parses the file.
    pub(crate) async fn load(&self) -> Result<Content, Error> {
        let this = self.clone();
        match blocking(move || this.load_now()).await {
            Some(result) => result,
            None => Err(self.content_error("reading it was cut off".to_owned())),
        }
    }

    fn load_now(&self) -> Result<Content, Error> {
        let io = |source| Error::File {
            what: WHAT,
            path: self.path.clone(),
            source,
        };
        let file = File::open(&self.path).map_err(io)?;
        // Asked of the open file, so that the checked file is the one that is read.
        let metadata = file.metadata().map_err(io)?;
        if !metadata.is_file() {
            return Err(self.content_error("is not a regular file".to_owned()));
        }
        let mode = metadata.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(Error::FileMode {
                path: self.path.clone(),
                mode,
            });
        }
        let mut text = Zeroizing::new(String::new());
        file.take(MAX_FILE_LEN + 1)
            .read_to_string(&mut text)
            .map_err(io)?;
        if text.len() as u64 > MAX_FILE_LEN {
            return Err(self.content_error(format!("is longer than {MAX_FILE_LEN} bytes")));
        }
        Ok(Content {
            file: self.path.clone(),
            tables: self.parse(&text)?,
            stamp: Stamp::of(&metadata),
        })
    }

    /// The parsers' own messages may quote a line of the file, so only the place is passed on.
    fn parse(&self, text: &str) -> Result<serde_json::Map<String, serde_json::Value>, Error> {
        match self.format {
            Format::Toml => toml::from_str(text).map_err(|error| {
                let before = error.span().and_then(|span| text.get(..span.start));
                let line = before.map_or(1, |before| before.matches('\n').count() + 1);
                self.content_error(format!("is not valid TOML, line {line}"))
            }),
            Format::Json => serde_json::from_str(text).map_err(|error| {
                self.content_error(format!(
                    "is not valid JSON (one object of objects), line {} column {}",
                    error.line(),
                    error.column()
                ))
            }),
        }
    }

    fn content_error(&self, reason: String) -> Error {
        Error::FileContent {
            what: WHAT,
            path: self.path.clone(),
            reason,
        }
    }
}

impl Drop for Content {
    fn drop(&mut self) {
        for (_, table) in std::mem::take(&mut self.tables) {
            crate::secret::wipe(table);
        }
    }
}

impl Content {
    pub(crate) fn stamp(&self) -> Stamp {
        self.stamp
    }

    pub(crate) fn credentials(&self, path: &SecretPath) -> Result<Credentials, Error> {
        match self.tables.get(path.as_str()) {
            Some(serde_json::Value::Object(fields)) => {
                Credentials::from_fields(path, self.stamp.version(), fields.clone())
            }
            Some(_) => Err(Error::Fields {
                path: path.clone(),
                reason: format!("is not a table in {}", self.file.display()),
            }),
            None => Err(Error::NotFound {
                path: path.clone(),
                place: self.file.display().to_string(),
                advice: format!("add a table `[\"{path}\"]`"),
            }),
        }
    }
}

/// Runs file work off the async threads: a network file system may hang. `None` when the runtime is going down.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}
