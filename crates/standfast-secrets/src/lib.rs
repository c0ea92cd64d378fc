#![forbid(unsafe_code)]
//! Credentials of the clusters: read, watch and renew, from Vault or a file.
//!
//! [`Secrets`] is made from the `[secrets]` section of the configuration ([`SecretsOptions`]). [`Secrets::watch`] gives
//! a [`SecretsWatch`] to spawn and a [`SecretsHandle`] to ask:
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use standfast_secrets::{SecretPath, Secrets, SecretsOptions};
//!
//! let secrets = Secrets::new(SecretsOptions::file("/etc/standfast/secrets.toml"))?;
//! let east = SecretPath::new("kafka/east")?;
//! let (watch, mut handle) = secrets.watch(vec![east.clone()]);
//! let shutdown = tokio_util::sync::CancellationToken::new();
//! tokio::spawn(watch.run(shutdown.clone()));
//! handle.fetched(Duration::from_secs(10)).await?;
//! let credentials = handle.get(&east);
//! # Ok(()) }
//! ```
//!
//! # Promises
//! - The secrets of all paths are fetched ahead, so a failover needs no Vault.
//! - What was read once is served for as long as the process lives, whatever becomes of Vault, the token or the file.
//!   [`SecretsHandle::status`] says since when it cannot be confirmed, and why. Nothing is written to disk: a process
//!   that *starts* while Vault is away has no credentials until Vault is back.
//! - A new version of a secret is noticed within `refresh` (Vault, default 2 s) or a second (file).
//! - What ends is warned about ahead: certificates, and a token that nobody renews. A WARN line from `expiry_warning` (30 days)
//!   before the end on, an ERROR line behind it, each again every day, and [`SecretsStatus::expiries`].
//! - No token and no secret is ever put into a log line, a `Debug` text or an error.
//!
//! # Fields of a secret
//! Names are those of librdkafka or Java, in upper or lower case, with `_`, `.` or `-`. Unknown fields are left alone.
//!
//! | Meaning | Names |
//! |---|---|
//! | SASL user name, OAuth client id | `username`, `sasl.username`, `sasl.oauthbearer.client.id` |
//! | SASL password, OAuth client secret | `password`, `sasl.password`, `sasl.oauthbearer.client.secret` |
//! | SASL mechanism | `sasl.mechanism`, `sasl.mechanisms` |
//! | OAuth token endpoint | `oauth_token_endpoint`, `sasl.oauthbearer.token.endpoint.url` |
//! | OAuth scope | `oauth_scope`, `sasl.oauthbearer.scope` |
//! | trusted authorities, PEM | `ssl_ca`, `ssl.ca.pem`, `ssl.truststore.certificates` |
//! | client certificate chain, PEM | `ssl_certificate`, `ssl.certificate.pem`, `ssl.keystore.certificate.chain` |
//! | client private key, PEM | `ssl_key`, `ssl.key.pem`, `ssl.keystore.key` |
//! | password of the private key | `ssl_key_password`, `ssl.key.password` |
//!
//! # File
//! ```toml
//! # secrets.toml, mode 0600 or 0400
//! ["kafka/east"]
//! username = "payments"
//! password = "…"
//! ```
//! ```toml
//! [secrets]
//! backend = "file"
//! path = "/etc/standfast/secrets.toml"
//! expiry_warning = "30d"              # the default
//! ```
//! JSON (`.json`) is an object of such objects. Replace the file by a rename, so that no half of it is ever read.
//!
//! # Vault
//! ```toml
//! [secrets]
//! backend = "vault"
//! address = "https://vault.example.com:8200"
//! mount = "secret"                    # KV version 2; secret `kafka/east` is read from secret/data/kafka/east
//! refresh = "2s"
//! expiry_warning = "30d"
//! auth = { method = "approle", role_id = "…", secret_id_file = "/etc/standfast/secret-id" }
//! # auth = { method = "token", token_file = "/run/vault/token" }     # read again when it changes
//! # auth = { method = "kubernetes", role = "payments" }
//! tls = { ca_file = "/etc/standfast/vault-ca.pem" }                  # default: the system's authorities
//! ```
//! A token is renewed at half of its TTL. When a renewal no longer gives the whole TTL (the maximum is near) or is
//! refused, AppRole and Kubernetes log in anew; a token from a file or variable cannot be replaced by us, so a warning
//! in log and status tells its end ahead. The Kubernetes login is not covered by a test against a real cluster.
//!
//! ## The least that the policy must allow
//! The same for agent and wrapper: to read the secrets of the fleet's clusters, nothing else. Neither lists, writes nor
//! reads metadata.
//! ```hcl
//! # standfast-payments.hcl
//! path "secret/data/kafka/east" { capabilities = ["read"] }
//! path "secret/data/kafka/west" { capabilities = ["read"] }
//!
//! # Part of Vault's `default` policy; needed here only for tokens made with -no-default-policy.
//! path "auth/token/lookup-self" { capabilities = ["read"] }
//! path "auth/token/renew-self"  { capabilities = ["update"] }
//! ```
//! ```sh
//! vault policy write standfast-payments standfast-payments.hcl
//! vault write auth/approle/role/standfast-payments token_policies=standfast-payments \
//!     token_ttl=1h token_max_ttl=24h secret_id_ttl=0 secret_id_num_uses=0
//! ```
//! Give the agent and each application a role of its own, so that one can be revoked without the others. A secret id
//! that ends or is used up (`secret_id_ttl`, `secret_id_num_uses`) must be replaced in `secret_id_file` in time: it is
//! read again at every login, at the latest each `token_max_ttl`.
//!
//! TLS is rustls with ring, chosen per connection: no process-wide provider is installed or needed.

mod credentials;
mod error;
mod expiry;
mod file;
mod options;
mod private_file;
mod secret;
mod status;
mod vault;
mod watch;

pub use credentials::Credentials;
pub use error::{Error, VaultFailure};
pub use expiry::{CredentialPart, DEFAULT_EXPIRY_WARNING, Expiry, ExpiryState, MAX_EXPIRIES};
pub use options::{FileOptions, SecretsOptions, VaultAuth, VaultOptions, VaultTls};
pub use private_file::replace_private_file;
pub use secret::{Pem, SecretPath, SecretString};
pub use status::{LoginStatus, SecretStatus, SecretsStatus};
pub use watch::{SecretsHandle, SecretsWatch};

use std::time::Duration;

use file::SecretsFile;
use vault::Vault;
use watch::Source;

/// Where credentials are read from. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Secrets {
    backend: Backend,
    expiry_warning: Duration,
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
        let expiry_warning = options.expiry_warning();
        let backend = match options {
            SecretsOptions::None => Backend::None,
            SecretsOptions::File(options) => Backend::File(SecretsFile::new(&options)?),
            SecretsOptions::Vault(options) => Backend::Vault(Vault::new(options)?),
        };
        Ok(Self {
            backend,
            expiry_warning,
        })
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
        SecretsWatch::new(source, paths, self.expiry_warning)
    }
}
