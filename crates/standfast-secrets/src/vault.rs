//! The Vault backend: KV version 2, with logins that are kept alive.

mod http;
mod login;
mod session;

use std::path::Path;
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::file::blocking;
use crate::{Error, SecretString, VaultAuth, VaultFailure, VaultOptions};
use http::VaultHttp;
pub(crate) use session::Session;

/// Reason given for a 404 whose answer shows that the secret has versions.
const DELETED: &str = "its latest version is deleted";

/// Longest token, secret id or service account token, in bytes.
const MAX_TOKEN_LEN: u64 = 64 * 1024;

/// One configured Vault. Cheap to clone; logs in only through a [`Session`].
#[derive(Debug, Clone)]
pub(crate) struct Vault {
    http: VaultHttp,
    options: Arc<VaultOptions>,
}

impl Vault {
    pub(crate) fn new(options: VaultOptions) -> Result<Self, Error> {
        options.check()?;
        Ok(Self {
            http: VaultHttp::new(&options)?,
            options: Arc::new(options),
        })
    }

    pub(crate) fn address(&self) -> &str {
        self.http.address()
    }

    pub(crate) fn session(&self) -> Session {
        Session::new(self.clone())
    }

    fn error(&self, action: impl Into<String>, failure: VaultFailure) -> Error {
        Error::Vault {
            address: self.address().to_owned(),
            action: action.into(),
            failure,
        }
    }

    fn method(&self) -> &'static str {
        match self.options.auth {
            VaultAuth::Token { .. } => "token",
            VaultAuth::AppRole { .. } => "approle",
            VaultAuth::Kubernetes { .. } => "kubernetes",
        }
    }

    /// Whether a new token can be had at any time by logging in.
    fn can_log_in(&self) -> bool {
        !matches!(self.options.auth, VaultAuth::Token { .. })
    }

    /// What logs us in: the token itself, or the secret that is exchanged for one. Read afresh at every call.
    async fn proof(&self) -> Result<SecretString, Error> {
        match &self.options.auth {
            VaultAuth::Token {
                token_file: Some(path),
                ..
            } => read_token("Vault token file", path).await,
            VaultAuth::Token {
                token_file: None,
                env,
            } => token_from_env(env.as_deref().unwrap_or("VAULT_TOKEN")),
            VaultAuth::AppRole { secret_id_file, .. } => {
                read_token("AppRole secret id file", secret_id_file).await
            }
            VaultAuth::Kubernetes { jwt_file, .. } => {
                read_token("service account token file", jwt_file).await
            }
        }
    }

    /// How an operator replaces what [`Vault::proof`] reads.
    fn advice(&self) -> String {
        match &self.options.auth {
            VaultAuth::Token {
                token_file: Some(path),
                ..
            } => format!(
                "put a new token into {}, it is noticed by itself",
                path.display()
            ),
            VaultAuth::Token {
                token_file: None,
                env,
            } => format!(
                "start again with a new token in ${}, or use `token_file`, which is read again when it changes",
                env.as_deref().unwrap_or("VAULT_TOKEN")
            ),
            VaultAuth::AppRole {
                secret_id_file,
                mount,
                ..
            } => format!(
                "check `role_id`, the secret id in {} (expired or used up?) and that AppRole is enabled at auth/{mount}",
                secret_id_file.display()
            ),
            VaultAuth::Kubernetes { role, mount, .. } => format!(
                "check that role `{role}` of auth/{mount} allows this service account and namespace"
            ),
        }
    }
}

async fn read_token(what: &'static str, path: &Path) -> Result<SecretString, Error> {
    let owned = path.to_owned();
    let text = blocking(move || read_bounded(&owned)).await;
    let text = match text {
        Some(Ok(text)) => text,
        Some(Err(source)) => {
            return Err(Error::File {
                what,
                path: path.to_owned(),
                source,
            });
        }
        None => Zeroizing::new(String::new()),
    };
    checked_token(&text).map_err(|reason| Error::FileContent {
        what,
        path: path.to_owned(),
        reason: reason.to_owned(),
    })
}

fn read_bounded(path: &Path) -> std::io::Result<Zeroizing<String>> {
    use std::io::Read;
    let mut text = Zeroizing::new(String::new());
    std::fs::File::open(path)?
        .take(MAX_TOKEN_LEN + 1)
        .read_to_string(&mut text)?;
    Ok(text)
}

fn token_from_env(variable: &str) -> Result<SecretString, Error> {
    let invalid = |reason: &str| Error::InvalidOption {
        option: "auth",
        reason: format!("environment variable {variable} {reason}; set it, or use `token_file`"),
    };
    let text = std::env::var(variable).map_err(|_| invalid("is not set"))?;
    checked_token(&Zeroizing::new(text)).map_err(invalid)
}

/// A token goes into an HTTP header: vaultrs panics on one that does not fit there.
fn checked_token(text: &str) -> Result<SecretString, &'static str> {
    let token = text.trim();
    if token.is_empty() {
        return Err("is empty");
    }
    if token.len() as u64 > MAX_TOKEN_LEN {
        return Err("is longer than 64 KiB");
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("holds more than one word, or characters that no token has");
    }
    Ok(token.into())
}
