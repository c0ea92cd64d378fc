//! How fresh the known credentials are.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use crate::{Expiry, SecretPath};

/// State of a watch: what is known, how fresh it is, what failed last. Holds no secret.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct SecretsStatus {
    /// The backend, for example `Vault https://vault:8200` or `file /etc/standfast/secrets.toml`.
    pub backend: String,
    /// Every watched secret.
    pub secrets: BTreeMap<SecretPath, SecretStatus>,
    /// The login to Vault; absent for other backends and before the first login.
    pub login: Option<LoginStatus>,
    /// The end of the login's token, where nobody renews it.
    pub login_expiry: Option<Expiry>,
    /// Since when the backend as a whole cannot be used; absent while it can.
    pub failing_since: Option<Timestamp>,
    /// Why the backend as a whole cannot be used; absent while it can.
    pub last_error: Option<String>,
}

impl SecretsStatus {
    /// Whether every secret is known and was confirmed by the latest read.
    pub fn is_fresh(&self) -> bool {
        self.last_error.is_none()
            && self
                .secrets
                .values()
                .all(|secret| secret.version.is_some() && secret.last_error.is_none())
    }
}

/// State of one secret.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct SecretStatus {
    /// Version of the credentials in use; absent when none were ever read.
    pub version: Option<u64>,
    /// When the backend last confirmed them.
    pub confirmed_at: Option<Timestamp>,
    /// Since when they cannot be confirmed. They are served all the same.
    pub stale_since: Option<Timestamp>,
    /// Why they cannot be confirmed.
    pub last_error: Option<String>,
    /// The certificates in it, the one that ends first in front.
    pub expiries: Vec<Expiry>,
}

/// State of the login to Vault.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct LoginStatus {
    /// `token`, `approle` or `kubernetes`.
    pub method: String,
    /// When the token ends unless it is renewed; absent for a token without end and when Vault does not tell.
    pub expires_at: Option<Timestamp>,
    /// What an operator should see to before the token ends, for example that it cannot be renewed any further.
    pub warning: Option<String>,
}
