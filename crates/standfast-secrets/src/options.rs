//! The `[secrets]` section of the configuration.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::{DEFAULT_EXPIRY_WARNING, Error};

/// How often Vault is asked for a new version of each secret.
const DEFAULT_REFRESH: Duration = Duration::from_secs(2);
/// How long one request to Vault may take.
const DEFAULT_REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

const REFRESH_RANGE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3600));
const REQUEST_TIMEOUT_RANGE: (Duration, Duration) =
    (Duration::from_millis(100), Duration::from_secs(60));

/// Where credentials come from. In TOML: `backend = "vault"`, `"file"` or `"none"` with the fields of the backend.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(from = "TaggedOptions")]
#[non_exhaustive]
pub enum SecretsOptions {
    /// No secrets: clusters that let everybody in.
    #[default]
    None,
    /// A TOML or JSON file on this machine.
    File(FileOptions),
    /// HashiCorp Vault (or OpenBao), KV version 2.
    Vault(VaultOptions),
}

impl SecretsOptions {
    /// Options of the file backend.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self::File(FileOptions {
            path: path.into(),
            expiry_warning: DEFAULT_EXPIRY_WARNING,
        })
    }

    /// How long before its end a certificate or token is warned about.
    pub(crate) fn expiry_warning(&self) -> Duration {
        match self {
            Self::None => DEFAULT_EXPIRY_WARNING,
            Self::File(options) => options.expiry_warning,
            Self::Vault(options) => options.expiry_warning,
        }
    }
}

/// `None {}` and not `None`: serde lets unknown keys pass for a unit variant.
#[derive(Deserialize)]
#[serde(tag = "backend", rename_all = "lowercase", deny_unknown_fields)]
enum TaggedOptions {
    None {},
    File(FileOptions),
    Vault(VaultOptions),
}

impl From<TaggedOptions> for SecretsOptions {
    fn from(options: TaggedOptions) -> Self {
        match options {
            TaggedOptions::None {} => Self::None,
            TaggedOptions::File(options) => Self::File(options),
            TaggedOptions::Vault(options) => Self::Vault(options),
        }
    }
}

/// Options of the file backend.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileOptions {
    /// The file; its extension (`.toml` or `.json`) says its format. One table per secret, named by the secret's
    /// path: `["kafka/east"]`. Its mode must keep group and others out (0600 or 0400).
    pub path: PathBuf,
    /// How long before its end a certificate is warned about, for example `30d` (the default) or `12h`. 0: not ahead.
    #[serde(default = "default_expiry_warning", deserialize_with = "days")]
    pub expiry_warning: Duration,
}

/// Options of the Vault backend.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaultOptions {
    /// Address of the server or load balancer, for example `https://vault.example.com:8200`.
    pub address: String,
    /// Vault Enterprise or OpenBao namespace.
    #[serde(default)]
    pub namespace: Option<String>,
    /// Mount of the KV version 2 engine. Default `secret`.
    #[serde(default = "default_mount")]
    pub mount: String,
    /// How to log in. Default: the token in the environment variable `VAULT_TOKEN`.
    #[serde(default)]
    pub auth: VaultAuth,
    /// How often each secret is read to notice a new version, 100 ms to 1 h. Default 2 s.
    #[serde(default = "default_refresh", deserialize_with = "duration")]
    pub refresh: Duration,
    /// How long one request may take, 100 ms to 60 s. Default 5 s.
    #[serde(default = "default_request_timeout", deserialize_with = "duration")]
    pub request_timeout: Duration,
    /// How long before its end a certificate, or a token that nobody renews, is warned about, for example `30d` (the
    /// default) or `12h`. 0: not ahead.
    #[serde(default = "default_expiry_warning", deserialize_with = "days")]
    pub expiry_warning: Duration,
    /// TLS settings for an `https` address.
    #[serde(default)]
    pub tls: VaultTls,
}

impl VaultOptions {
    /// Options with defaults for all but the address and the way to log in.
    pub fn new(address: impl Into<String>, auth: VaultAuth) -> Self {
        Self {
            address: address.into(),
            namespace: None,
            mount: default_mount(),
            auth,
            refresh: DEFAULT_REFRESH,
            request_timeout: DEFAULT_REQUEST_TIMEOUT,
            expiry_warning: DEFAULT_EXPIRY_WARNING,
            tls: VaultTls::default(),
        }
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        in_range("refresh", self.refresh, REFRESH_RANGE)?;
        in_range(
            "request_timeout",
            self.request_timeout,
            REQUEST_TIMEOUT_RANGE,
        )?;
        check_mount("mount", &self.mount)?;
        if let Some(namespace) = &self.namespace {
            check_mount("namespace", namespace.trim_end_matches('/'))?;
        }
        self.auth.check()
    }
}

/// How to log in to Vault. In TOML: `auth = { method = "approle", role_id = "…", secret_id_file = "…" }`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "method", rename_all = "lowercase", deny_unknown_fields)]
#[non_exhaustive]
pub enum VaultAuth {
    /// A token that somebody else made, for example Vault Agent. It is renewed as long as Vault lets us.
    Token {
        /// File that holds the token; it is read again when it changes. Preferred.
        #[serde(default)]
        token_file: Option<PathBuf>,
        /// Environment variable that holds the token, used when there is no `token_file`. Default `VAULT_TOKEN`.
        #[serde(default)]
        env: Option<String>,
    },
    /// AppRole: role id and secret id are exchanged for a token, again and again.
    AppRole {
        /// The role's id; not a secret.
        role_id: String,
        /// File that holds the secret id; it is read at every login.
        secret_id_file: PathBuf,
        /// Mount of the auth method. Default `approle`.
        #[serde(default = "default_approle_mount")]
        mount: String,
    },
    /// Kubernetes: the pod's service account token is exchanged for a Vault token.
    Kubernetes {
        /// Name of the role in Vault.
        role: String,
        /// File that holds the service account token; it is read at every login.
        #[serde(default = "default_jwt_file")]
        jwt_file: PathBuf,
        /// Mount of the auth method. Default `kubernetes`.
        #[serde(default = "default_kubernetes_mount")]
        mount: String,
    },
}

impl Default for VaultAuth {
    fn default() -> Self {
        Self::Token {
            token_file: None,
            env: None,
        }
    }
}

impl VaultAuth {
    /// A token in a file.
    pub fn token_file(path: impl Into<PathBuf>) -> Self {
        Self::Token {
            token_file: Some(path.into()),
            env: None,
        }
    }

    /// AppRole on its default mount.
    pub fn approle(role_id: impl Into<String>, secret_id_file: impl Into<PathBuf>) -> Self {
        Self::AppRole {
            role_id: role_id.into(),
            secret_id_file: secret_id_file.into(),
            mount: default_approle_mount(),
        }
    }

    fn check(&self) -> Result<(), Error> {
        match self {
            Self::Token {
                token_file: Some(_),
                env: Some(_),
            } => Err(Error::InvalidOption {
                option: "auth",
                reason: "give `token_file` or `env`, not both".to_owned(),
            }),
            Self::Token { .. } => Ok(()),
            Self::AppRole { role_id, mount, .. } => {
                not_empty("auth.role_id", role_id)?;
                check_mount("auth.mount", mount)
            }
            Self::Kubernetes { role, mount, .. } => {
                not_empty("auth.role", role)?;
                check_mount("auth.mount", mount)
            }
        }
    }
}

/// TLS settings for Vault. Without them the system's trusted authorities are used.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaultTls {
    /// PEM file with the authorities to trust instead of the system's.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
}

fn default_mount() -> String {
    "secret".to_owned()
}

fn default_approle_mount() -> String {
    "approle".to_owned()
}

fn default_kubernetes_mount() -> String {
    "kubernetes".to_owned()
}

fn default_jwt_file() -> PathBuf {
    "/var/run/secrets/kubernetes.io/serviceaccount/token".into()
}

fn default_refresh() -> Duration {
    DEFAULT_REFRESH
}

fn default_request_timeout() -> Duration {
    DEFAULT_REQUEST_TIMEOUT
}

fn default_expiry_warning() -> Duration {
    DEFAULT_EXPIRY_WARNING
}

/// As [`duration`], and whole days: `30d`.
fn days<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    use serde::de::{Error as _, IntoDeserializer};
    let text = String::deserialize(deserializer)?;
    let days = text
        .strip_suffix('d')
        .and_then(|days| days.trim().parse::<u32>().ok());
    match days {
        Some(days) => Ok(Duration::from_secs(u64::from(days) * 24 * 3600)),
        None => duration(IntoDeserializer::<serde::de::value::Error>::into_deserializer(text))
            .map_err(D::Error::custom),
    }
}

/// A duration as people write it: `5s`, `500ms`, `1m 30s`.
fn duration<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    use serde::de::Error as _;
    let text = String::deserialize(deserializer)?;
    text.parse::<jiff::SignedDuration>()
        .ok()
        .and_then(|span| Duration::try_from(span).ok())
        .ok_or_else(|| {
            D::Error::custom(format!(
                "`{text}` is no duration; write for example \"5s\" or \"500ms\""
            ))
        })
}

fn in_range(
    option: &'static str,
    value: Duration,
    range: (Duration, Duration),
) -> Result<(), Error> {
    if (range.0..=range.1).contains(&value) {
        return Ok(());
    }
    Err(Error::InvalidOption {
        option,
        reason: format!(
            "{value:?} is out of range, {:?} to {:?} are allowed",
            range.0, range.1
        ),
    })
}

fn not_empty(option: &'static str, value: &str) -> Result<(), Error> {
    if !value.trim().is_empty() {
        return Ok(());
    }
    Err(Error::InvalidOption {
        option,
        reason: "is empty".to_owned(),
    })
}

/// Mounts and namespaces become part of a URL or header.
fn check_mount(option: &'static str, mount: &str) -> Result<(), Error> {
    crate::SecretPath::new(mount)
        .map(drop)
        .map_err(|error| Error::InvalidOption {
            option,
            reason: error.to_string(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<SecretsOptions, String> {
        toml::from_str(text).map_err(|error: toml::de::Error| error.message().to_owned())
    }

    #[test]
    fn every_backend_parses() {
        assert_eq!(parse("backend = 'none'"), Ok(SecretsOptions::None));
        assert_eq!(
            parse("backend = 'file'\npath = '/etc/s.toml'"),
            Ok(SecretsOptions::file("/etc/s.toml"))
        );
        assert_eq!(
            parse("backend = 'vault'\naddress = 'http://127.0.0.1:8200'"),
            Ok(SecretsOptions::Vault(VaultOptions::new(
                "http://127.0.0.1:8200",
                VaultAuth::default()
            )))
        );
        let text = "backend = 'vault'\naddress = 'https://v:8200'\nnamespace = 'team/a'\nmount = 'kv'\nrefresh = '500ms'\n\
            request_timeout = '2s'\nauth = { method = 'approle', role_id = 'r', secret_id_file = '/s' }\ntls = { ca_file = '/ca' }";
        let mut expected = VaultOptions::new("https://v:8200", VaultAuth::approle("r", "/s"));
        expected.namespace = Some("team/a".to_owned());
        expected.mount = "kv".to_owned();
        expected.refresh = Duration::from_millis(500);
        expected.request_timeout = Duration::from_secs(2);
        expected.tls.ca_file = Some("/ca".into());
        assert_eq!(expected.check().map_err(|error| error.to_string()), Ok(()));
        assert_eq!(parse(text), Ok(SecretsOptions::Vault(expected)));
    }

    #[test]
    fn unknown_keys_and_bad_values_are_named() {
        for (text, expected) in [
            ("backend = 'none'\npath = 'x'", "path"),
            ("backend = 'file'\npath = 'x'\nmode = 1", "mode"),
            ("backend = 'vault'\naddress = 'x'\nadress = 'y'", "adress"),
            (
                "backend = 'vault'\naddress = 'x'\nauth = { method = 'token', token = 'y' }",
                "token",
            ),
            ("backend = 'vault'\naddress = 'x'\nrefresh = 'soon'", "soon"),
            ("backend = 'gopass'", "gopass"),
        ] {
            let error = parse(text).expect_err("must be refused");
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn impossible_options_are_refused() {
        let good = VaultOptions::new("http://v", VaultAuth::default());
        for (bad, option) in [
            (
                VaultOptions {
                    refresh: Duration::ZERO,
                    ..good.clone()
                },
                "refresh",
            ),
            (
                VaultOptions {
                    request_timeout: Duration::from_secs(61),
                    ..good.clone()
                },
                "request_timeout",
            ),
            (
                VaultOptions {
                    mount: "/secret".to_owned(),
                    ..good.clone()
                },
                "mount",
            ),
            (
                VaultOptions {
                    namespace: Some("a\r\nb".to_owned()),
                    ..good.clone()
                },
                "namespace",
            ),
            (
                VaultOptions {
                    auth: VaultAuth::approle(" ", "/s"),
                    ..good.clone()
                },
                "auth.role_id",
            ),
        ] {
            let error = bad.check().expect_err("must be refused").to_string();
            assert!(error.contains(&format!("`{option}`")), "{error}");
        }
    }
}
