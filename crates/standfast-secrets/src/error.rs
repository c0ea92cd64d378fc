//! What can go wrong, told to the operator: what failed, where, what to do. Never a token, never a secret.

use std::path::PathBuf;
use std::time::Duration;

use crate::SecretPath;

/// An error of this crate. No variant ever carries a token, a password or key material.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An option has a value that cannot work.
    #[error("secrets option `{option}`: {reason}")]
    InvalidOption {
        /// Name of the option as written in the configuration.
        option: &'static str,
        /// Why it cannot work, and what would.
        reason: String,
    },
    /// A secret path is malformed.
    #[error("secret path `{path}`: {reason} (a path looks like `kafka/east`)")]
    InvalidPath {
        /// The path as given (cut when very long).
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A file could not be opened or read.
    #[error("cannot read {what} {}: {source}", path.display())]
    File {
        /// What the file is for, for example `secrets file`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A file's content is not what it has to be (too long, empty, not text …).
    #[error("{what} {}: {reason}", path.display())]
    FileContent {
        /// What the file is for, for example `secrets file`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong. Holds no content of the file.
        reason: String,
    },
    /// Others than the owner can read the secrets file.
    #[error("secrets file {path} has mode {mode:04o}, others than its owner can use it: run `chmod 600 {path}`", path = path.display())]
    FileMode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// There is no secret at this path.
    #[error("no secret `{path}` in {place}: {advice}")]
    NotFound {
        /// The secret.
        path: SecretPath,
        /// The backend: file, or Vault address and mount.
        place: String,
        /// What to do.
        advice: String,
    },
    /// A secret was read, but its fields make no credentials.
    #[error("secret `{path}`: {reason}")]
    Fields {
        /// The secret.
        path: SecretPath,
        /// What is wrong or missing. Names fields, never values.
        reason: String,
    },
    /// A secret is asked for, but no backend is configured.
    #[error(
        "secret `{path}` is needed, but no secrets backend is configured: set `backend` in [secrets] to \"vault\" or \"file\""
    )]
    NoBackend {
        /// The secret.
        path: SecretPath,
    },
    /// Vault could not be used.
    #[error("Vault {address}: {action} failed: {failure}")]
    Vault {
        /// Address of the Vault server.
        address: String,
        /// What was tried, with its API path, for example `read of secret/data/kafka/east`.
        action: String,
        /// Why it failed and what to do.
        failure: VaultFailure,
    },
    /// Not every secret could be fetched in the given time.
    #[error("no credentials for {} after {waited:?}: {last_error}", list(missing))]
    NotFetched {
        /// Secrets without credentials.
        missing: Vec<SecretPath>,
        /// How long was waited.
        waited: Duration,
        /// Last error of the first missing secret.
        last_error: String,
    },
    /// The watch has ended: its `run` returned or was dropped.
    #[error("the secrets watch has ended; known credentials stay, changes are no longer noticed")]
    WatchEnded,
}

/// Why Vault could not be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VaultFailure {
    /// No connection, or it broke.
    #[error("{0}; check that the server runs and that the address and TLS settings are right")]
    Unreachable(String),
    /// No answer in time.
    #[error("no answer within {0:?}; check that the server is healthy and the network to it open")]
    TimedOut(Duration),
    /// Vault answers, but is sealed.
    #[error("Vault is sealed; unseal it (`vault operator unseal`)")]
    Sealed,
    /// The token is fine, but its policies do not allow this.
    #[error(
        "permission denied; the token's policy needs: path \"{path}\" {{ capabilities = [\"{capability}\"] }}"
    )]
    PermissionDenied {
        /// API path to be allowed.
        path: String,
        /// Capability that is missing.
        capability: &'static str,
    },
    /// The token is no longer known to Vault.
    #[error("the token is expired, revoked or unknown; {advice}")]
    TokenInvalid {
        /// What to do for this authentication method.
        advice: String,
    },
    /// Vault refused the login.
    #[error("login refused ({reason}); {advice}")]
    LoginRefused {
        /// Vault's reason.
        reason: String,
        /// What to check.
        advice: String,
    },
    /// Any other status.
    #[error("HTTP status {status}: {reason}")]
    Status {
        /// HTTP status code.
        status: u16,
        /// Vault's reason.
        reason: String,
    },
    /// The answer could not be understood.
    #[error(
        "unexpected answer: {0}; check that the address is a Vault server and the mount a KV version 2 engine"
    )]
    Malformed(String),
}

impl VaultFailure {
    /// Whether the failure concerns all of Vault and not only the one request.
    pub(crate) fn is_general(&self) -> bool {
        match self {
            Self::Unreachable(_)
            | Self::TimedOut(_)
            | Self::Sealed
            | Self::TokenInvalid { .. }
            | Self::LoginRefused { .. } => true,
            Self::Status { status, .. } => *status == 412 || *status == 429 || *status >= 500,
            Self::PermissionDenied { .. } | Self::Malformed(_) => false,
        }
    }
}

fn list(paths: &[SecretPath]) -> String {
    paths
        .iter()
        .map(|path| format!("`{path}`"))
        .collect::<Vec<_>>()
        .join(", ")
}
