#![forbid(unsafe_code)]
//! Credentials of the clusters: read, watch and renew, from Vault or a file.

mod credentials;
mod error;
mod file;
mod options;
mod status;
mod vault;
mod watch;

pub use credentials::{Credentials, Pem, SecretPath, SecretString};
pub use error::{Error, VaultFailure};
pub use options::{FileOptions, SecretsOptions, VaultAuth, VaultOptions, VaultTls};
pub use status::{LoginStatus, SecretStatus, SecretsStatus};
pub use watch::{SecretsHandle, SecretsWatch};

use file::SecretsFile;
use vault::Vault;
use watch::Source;

/// Where credentials are read from. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Secrets {
    backend: Backend,
}

#[derive(Debug, Clone)]
enum Backend {
    None,
    File(SecretsFile),
    Vault(Vault),
}

impl Secrets {
    /// Checks the options. Only Vault's CA file is read; nobody is called yet.
    pub fn new(options: SecretsOptions) -> Result<Self, Error> {
        let backend = match options {
            SecretsOptions::None => Backend::None,
            SecretsOptions::File(options) => Backend::File(SecretsFile::new(&options)?),
            SecretsOptions::Vault(options) => Backend::Vault(Vault::new(options)?),
        };
        Ok(Self { backend })
    }

    /// Reads one secret, now. For more than a single look use [`Secrets::watch`]: it keeps one login to Vault alive,
    /// while every call of this function makes its own.
    pub async fn read(&self, path: &SecretPath) -> Result<Credentials, Error> {
        match &self.backend {
            Backend::None => Err(Error::NoBackend { path: path.clone() }),
            Backend::File(file) => file.load().await?.credentials(path),
            Backend::Vault(vault) => vault.session().read(path).await,
        }
    }

    /// A watch over `paths`: spawn [`SecretsWatch::run`], ask the [`SecretsHandle`].
    pub fn watch(&self, paths: Vec<SecretPath>) -> (SecretsWatch, SecretsHandle) {
        let source = match &self.backend {
            Backend::None => Source::None,
            Backend::File(file) => Source::File {
                file: file.clone(),
                seen: None,
            },
            Backend::Vault(vault) => Source::Vault(Box::new(vault.session())),
        };
        SecretsWatch::new(source, paths)
    }
}
