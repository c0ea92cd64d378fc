//! What can go wrong, told to the operator.

use std::path::PathBuf;

use crate::name::{Epoch, FleetName, NameError};
use crate::record::RecordError;

/// A failed discovery call. Every message names the backend's address or path, the key, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name is not valid.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The options contradict themselves or cannot be used.
    #[error("discovery options: {0}")]
    Options(String),
    /// A record or handoff that was to be written is not valid.
    #[error("{key} was not written: {reason}")]
    Invalid {
        /// The key or file that was to be written.
        key: String,
        /// What is wrong with it.
        reason: RecordError,
    },
    /// The stored value is not a fleet record or handoff.
    #[error(
        "{key} at {address} is malformed: {reason}; correct it by hand or restore it, the last good record stays in use"
    )]
    Malformed {
        /// The Consul address or the folder.
        address: String,
        /// The key or file.
        key: String,
        /// What is wrong with it.
        reason: RecordError,
    },
    /// The backend did not answer, or answered with an error of its own.
    #[error("{address} did not serve {key}: {reason}")]
    Unavailable {
        /// The Consul address, or several.
        address: String,
        /// What was asked for.
        key: String,
        /// The failure, as the network or Consul reported it.
        reason: String,
    },
    /// The ACL token is missing, unknown or may not do this.
    #[error("{address} denied access to {key}: {reason}; {hint}")]
    Denied {
        /// The Consul address.
        address: String,
        /// What was asked for.
        key: String,
        /// What Consul said.
        reason: String,
        /// The token in use and the rule that it needs.
        hint: String,
    },
    /// A file of the file backend, a token or a certificate could not be read or written.
    #[error("{action} {}: {reason}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        reason: std::io::Error,
    },
    /// A record was offered whose epoch is not above the stored one.
    #[error(
        "fleet {fleet}: epoch {offered} does not follow epoch {current}; read the record again and write the next epoch"
    )]
    EpochDoesNotGrow {
        /// The fleet.
        fleet: FleetName,
        /// The epoch that is stored.
        current: Epoch,
        /// The epoch that was offered.
        offered: Epoch,
    },
    /// Somebody else holds the lock.
    #[error(
        "{key} at {address} is held by {holder}; wait for it to finish or for its session to expire"
    )]
    LockHeld {
        /// The Consul address or the folder.
        address: String,
        /// The lock's key or file.
        key: String,
        /// Who holds it, as far as is known.
        holder: String,
    },
    /// The watch has ended (its shutdown token was cancelled), so nothing will change any more.
    #[error("the watch has ended")]
    WatchEnded,
}

impl Error {
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |reason| Self::Io {
            action,
            path,
            reason,
        }
    }
}
