//! What can go wrong while obtaining or running a server.

use std::io;
use std::path::Path;

/// Why a server could not be obtained, started or asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A program that is needed to obtain or run a server is absent.
    #[error("{tool} is needed {needed_for}, and was not found; install it: {install}")]
    MissingTool {
        /// The absent program.
        tool: &'static str,
        /// What it is needed for.
        needed_for: &'static str,
        /// How to install it.
        install: &'static str,
    },
    /// Download or build failed.
    #[error("could not obtain {server}: {detail}")]
    Obtain {
        /// The server's name and version.
        server: String,
        /// What failed, with the last lines of the tool's output.
        detail: String,
    },
    /// A server did not come up.
    #[error("{server} did not start: {detail}\nlast lines of its log:\n{log}")]
    Start {
        /// The server's name.
        server: String,
        /// What was seen.
        detail: String,
        /// The last lines of its log.
        log: String,
    },
    /// A server answered with an error or with something that it should not send.
    #[error("{server} at {address}: {detail}")]
    Answer {
        /// The server's name.
        server: &'static str,
        /// Where it listens.
        address: String,
        /// What it answered.
        detail: String,
    },
    /// A file, process or socket operation failed.
    #[error("{what}: {source}")]
    Io {
        /// The operation and its object.
        what: String,
        /// The cause.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    pub(crate) fn path(verb: &str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        Self::io(format!("{verb} {}", path.display()))
    }
}
