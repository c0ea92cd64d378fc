//! The credentials last used, in a file of their own, for a start while Vault is away. Only if the user asks for it.
//!
//! The file has the format of the file backend and is read by it, with its rules: mode 0600, nobody else's.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use standfast_secrets::{
    Credentials, SecretPath, Secrets, SecretsHandle, SecretsOptions, replace_private_file,
};
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};

/// Known at the start, and kept up to date.
#[derive(Debug)]
pub(crate) struct CredentialCache {
    path: PathBuf,
    /// `None`: there was no file at the start.
    stored: Option<SecretsHandle>,
    written: BTreeMap<SecretPath, Arc<Credentials>>,
}

impl CredentialCache {
    /// Reads the file if there is one.
    ///
    /// # Errors
    /// [`Error::Configuration`] if the file may not be used.
    pub(crate) fn open(path: PathBuf, shutdown: &CancellationToken) -> Result<Self> {
        if path.extension().is_none_or(|extension| extension != "toml") {
            return Err(Error::Configuration {
                reason: format!("credential_cache {} must end in .toml", path.display()),
            });
        }
        let stored = if path.exists() {
            let file = Secrets::new(SecretsOptions::file(&path))
                .map_err(|error| Error::Secrets(error.to_string()))?;
            let (watch, handle) = file.watch(Vec::new());
            tokio::spawn(watch.without_expiry_warnings().run(shutdown.clone()));
            Some(handle)
        } else {
            None
        };
        Ok(Self {
            path,
            stored,
            written: BTreeMap::new(),
        })
    }

    pub(crate) fn set_paths(&self, paths: Vec<SecretPath>) {
        if let Some(stored) = &self.stored {
            stored.set_paths(paths);
        }
    }

    /// What was in use when the file was written.
    pub(crate) fn get(&self, path: &SecretPath) -> Option<Arc<Credentials>> {
        self.stored.as_ref()?.get(path)
    }

    /// Comes when the file has been read; never without one.
    pub(crate) async fn changed(&mut self) {
        let ended = match &mut self.stored {
            Some(stored) => stored.changed().await.is_err(),
            None => true,
        };
        if ended {
            std::future::pending::<()>().await;
        }
    }

    /// Writes what is known now, if it is not what the file holds. In the background; what fails is logged.
    pub(crate) fn store(&mut self, known: BTreeMap<SecretPath, Arc<Credentials>>) {
        // Of what is unknown at present the file keeps what it has.
        let mut all = self.written.clone();
        all.extend(known);
        if all == self.written {
            return;
        }
        self.written = all;
        let (path, secrets) = (self.path.clone(), self.written.clone());
        tokio::task::spawn_blocking(move || {
            if let Err(error) = write(&path, &secrets) {
                tracing::warn!(path = %path.display(), %error, "the credentials were not cached: a start without Vault would not work");
            }
        });
    }
}

fn write(path: &Path, secrets: &BTreeMap<SecretPath, Arc<Credentials>>) -> io::Result<()> {
    let tables: BTreeMap<&str, BTreeMap<&str, &str>> = secrets
        .iter()
        .map(|(path, credentials)| (path.as_str(), fields(credentials)))
        .collect();
    let text = toml::to_string(&tables).map_err(io::Error::other)?;
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    replace_private_file(path, &text)
}

fn fields(credentials: &Credentials) -> BTreeMap<&'static str, &str> {
    let c = credentials;
    let all = [
        ("username", c.username.as_deref()),
        (
            "password",
            c.password.as_ref().map(|secret| secret.expose()),
        ),
        ("sasl_mechanism", c.sasl_mechanism.as_deref()),
        ("oauth_token_endpoint", c.oauth_token_endpoint.as_deref()),
        ("oauth_scope", c.oauth_scope.as_deref()),
        ("ssl_ca", c.ssl_ca.as_ref().map(|pem| pem.expose())),
        (
            "ssl_certificate",
            c.ssl_certificate.as_ref().map(|pem| pem.expose()),
        ),
        ("ssl_key", c.ssl_key.as_ref().map(|pem| pem.expose())),
        (
            "ssl_key_password",
            c.ssl_key_password.as_ref().map(|secret| secret.expose()),
        ),
    ];
    all.into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect()
}
