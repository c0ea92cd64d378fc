//! Configuration from the environment and from a TOML file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use standfast_discovery::{ConsulOptions, DiscoveryOptions};
use standfast_secrets::{SecretsOptions, VaultAuth, VaultOptions};

use crate::error::{Error, Result};
use crate::fleet::{DEFAULT_CONNECT_TIMEOUT, Fleet, FleetBuilder};

/// TOML file with the sections `[discovery]` and `[secrets]`.
pub const VAR_CONFIG: &str = "STANDFAST_CONFIG";
/// Folder of the file discovery backend. Replaces the file's `[discovery]`.
pub const VAR_DISCOVERY_DIR: &str = "STANDFAST_DISCOVERY_DIR";
/// Consul addresses, parted by commas. Replaces the file's `[discovery]`.
pub const VAR_CONSUL_ADDR: &str = "STANDFAST_CONSUL_ADDR";
/// File with Consul's ACL token; goes with [`VAR_CONSUL_ADDR`].
pub const VAR_CONSUL_TOKEN_FILE: &str = "STANDFAST_CONSUL_TOKEN_FILE";
/// File with the credentials of the clusters. Replaces the file's `[secrets]`.
pub const VAR_SECRETS_FILE: &str = "STANDFAST_SECRETS_FILE";
/// Address of Vault. Replaces the file's `[secrets]`.
pub const VAR_VAULT_ADDR: &str = "STANDFAST_VAULT_ADDR";
/// File with Vault's token; goes with [`VAR_VAULT_ADDR`]. Without it the variable `VAULT_TOKEN` is used.
pub const VAR_VAULT_TOKEN_FILE: &str = "STANDFAST_VAULT_TOKEN_FILE";
/// How long `Fleet::connect` waits for the fleet's record, for example `30s`.
pub const VAR_CONNECT_TIMEOUT: &str = "STANDFAST_CONNECT_TIMEOUT";

/// Largest configuration file, in bytes.
const MAX_FILE: u64 = 1024 * 1024;

/// How a fleet is found, as plain data.
///
/// ```toml
/// connect_timeout = "30s"
/// warm_standbys = true                       # the default
/// lease = "30s"                              # off by default
/// credential_cache = "/run/app/secrets.toml" # off by default
///
/// [discovery]
/// backend = "consul"
/// addresses = ["http://127.0.0.1:8500"]
///
/// [secrets]
/// backend = "file"
/// path = "/etc/standfast/secrets.toml"
/// ```
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use standfast::FleetOptions;
///
/// let folder = tempfile::tempdir()?;
/// let file = folder.path().join("standfast.toml");
/// std::fs::write(&file, "lease = \"30s\"\n[discovery]\nbackend = \"consul\"\naddresses = [\"http://127.0.0.1:8500\"]\n")?;
/// let options = FleetOptions::from_file(&file)?; // or from_env()
/// assert_eq!(options.lease, Some(Duration::from_secs(30)));
/// let builder = options.builder("payments").warm_standbys(false); // whatever is set here wins
/// # drop(builder);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct FleetOptions {
    /// Where the fleet record is kept.
    #[serde(default)]
    pub discovery: Option<DiscoveryOptions>,
    /// Where credentials are kept.
    #[serde(default)]
    pub secrets: Option<SecretsOptions>,
    /// See [`FleetBuilder::connect_timeout`].
    #[serde(default, deserialize_with = "optional_duration")]
    pub connect_timeout: Option<Duration>,
    /// See [`FleetBuilder::warm_standbys`].
    #[serde(default)]
    pub warm_standbys: Option<bool>,
    /// See [`FleetBuilder::lease`].
    #[serde(default, deserialize_with = "optional_duration")]
    pub lease: Option<Duration>,
    /// See [`FleetBuilder::credential_cache`].
    #[serde(default)]
    pub credential_cache: Option<PathBuf>,
}

impl FleetOptions {
    /// Reads the file named by [`VAR_CONFIG`], if it is set, and then the variables, which win.
    ///
    /// # Errors
    /// [`Error::Configuration`] naming the variable or the place in the file.
    pub fn from_env() -> Result<Self> {
        Self::from_vars(|name| std::env::var_os(name).and_then(|value| value.into_string().ok()))
    }

    /// Reads a TOML file.
    ///
    /// # Errors
    /// [`Error::Configuration`] naming the file and the place in it.
    pub fn from_file(path: &Path) -> Result<Self> {
        let fault = |what: String| Error::Configuration {
            reason: format!("{}: {what}", path.display()),
        };
        let length = std::fs::metadata(path)
            .map_err(|error| fault(error.to_string()))?
            .len();
        if length > MAX_FILE {
            return Err(fault(format!("larger than {MAX_FILE} bytes")));
        }
        let text = std::fs::read_to_string(path).map_err(|error| fault(error.to_string()))?;
        toml::from_str(&text).map_err(|error| fault(error.to_string()))
    }

    /// A builder with these options.
    pub fn builder(self, fleet: &str) -> FleetBuilder {
        let mut builder = Fleet::builder(fleet)
            .warm_standbys(self.warm_standbys.unwrap_or(true))
            .secrets(self.secrets.unwrap_or_default())
            .connect_timeout(self.connect_timeout.unwrap_or(DEFAULT_CONNECT_TIMEOUT));
        if let Some(file) = self.credential_cache {
            builder = builder.credential_cache(file);
        }
        if let Some(lease) = self.lease {
            builder = builder.lease(lease);
        }
        if let Some(discovery) = self.discovery {
            builder = builder.discovery(discovery);
        }
        builder
    }

    fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let var = |name| var(name).filter(|value| !value.is_empty());
        let mut options = match var(VAR_CONFIG) {
            Some(path) => Self::from_file(Path::new(&path))?,
            None => Self::default(),
        };
        match (var(VAR_DISCOVERY_DIR), var(VAR_CONSUL_ADDR)) {
            (Some(_), Some(_)) => {
                return Err(Error::Configuration {
                    reason: format!(
                        "{VAR_DISCOVERY_DIR} and {VAR_CONSUL_ADDR} are both set, keep one"
                    ),
                });
            }
            (Some(folder), None) => options.discovery = Some(DiscoveryOptions::file(folder)),
            (None, Some(addresses)) => {
                options.discovery = Some(DiscoveryOptions::Consul(ConsulOptions {
                    addresses: addresses
                        .split(',')
                        .map(|address| address.trim().to_owned())
                        .collect(),
                    token_file: var(VAR_CONSUL_TOKEN_FILE).map(PathBuf::from),
                    ..ConsulOptions::default()
                }));
            }
            (None, None) => {}
        }
        match (var(VAR_SECRETS_FILE), var(VAR_VAULT_ADDR)) {
            (Some(_), Some(_)) => {
                return Err(Error::Configuration {
                    reason: format!(
                        "{VAR_SECRETS_FILE} and {VAR_VAULT_ADDR} are both set, keep one"
                    ),
                });
            }
            (Some(file), None) => options.secrets = Some(SecretsOptions::file(file)),
            (None, Some(address)) => {
                let auth = VaultAuth::Token {
                    token_file: var(VAR_VAULT_TOKEN_FILE).map(PathBuf::from),
                    env: None,
                };
                options.secrets = Some(SecretsOptions::Vault(VaultOptions::new(address, auth)));
            }
            (None, None) => {}
        }
        if let Some(text) = var(VAR_CONNECT_TIMEOUT) {
            options.connect_timeout =
                Some(duration(&text).map_err(|what| Error::Configuration {
                    reason: format!("{VAR_CONNECT_TIMEOUT}: {what}"),
                })?);
        }
        Ok(options)
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let span: jiff::SignedDuration = text
        .parse()
        .map_err(|_| format!("{text:?} is no duration such as \"30s\""))?;
    Duration::try_from(span).map_err(|_| format!("{text:?} is negative"))
}

fn optional_duration<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Duration>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| duration(&text))
        .transpose()
        .map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vars<'a>(pairs: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
        move |name| {
            pairs
                .iter()
                .find(|(n, _)| *n == name)
                .map(|(_, value)| (*value).to_owned())
        }
    }

    #[test]
    fn variables_win_over_the_file() {
        let dir = tempfile::tempdir().expect("folder");
        let file = dir.path().join("standfast.toml");
        std::fs::write(
            &file,
            "connect_timeout = \"5s\"\n[discovery]\nbackend = \"file\"\npath = \"/from/file\"\n[secrets]\nbackend = \"none\"\n",
        )
        .expect("write");
        let path = file.to_str().expect("UTF-8");
        let options = FleetOptions::from_vars(vars(&[(VAR_CONFIG, path)])).expect("options");
        assert_eq!(
            options.discovery,
            Some(DiscoveryOptions::file("/from/file"))
        );
        assert_eq!(options.secrets, Some(SecretsOptions::None));
        assert_eq!(options.connect_timeout, Some(Duration::from_secs(5)));

        let options = FleetOptions::from_vars(vars(&[
            (VAR_CONFIG, path),
            (VAR_CONSUL_ADDR, "http://a:8500, http://b:8500"),
            (VAR_CONNECT_TIMEOUT, "2m"),
        ]))
        .expect("options");
        assert_eq!(
            options.discovery,
            Some(DiscoveryOptions::consul(["http://a:8500", "http://b:8500"]))
        );
        assert_eq!(options.connect_timeout, Some(Duration::from_secs(120)));
    }

    #[test]
    fn faults_name_the_place() {
        let dir = tempfile::tempdir().expect("folder");
        let file = dir.path().join("standfast.toml");
        std::fs::write(&file, "[discovry]\nbackend = \"file\"\n").expect("write");
        let error = FleetOptions::from_file(&file)
            .expect_err("unknown section")
            .to_string();
        assert!(
            error.contains("standfast.toml") && error.contains("discovry"),
            "{error}"
        );

        let both = [
            (VAR_DISCOVERY_DIR, "/d"),
            (VAR_CONSUL_ADDR, "http://a:8500"),
        ];
        let error = FleetOptions::from_vars(vars(&both))
            .expect_err("both")
            .to_string();
        assert!(
            error.contains(VAR_DISCOVERY_DIR) && error.contains(VAR_CONSUL_ADDR),
            "{error}"
        );

        let error = FleetOptions::from_vars(vars(&[(VAR_CONNECT_TIMEOUT, "soon")]))
            .expect_err("text")
            .to_string();
        assert!(error.contains("soon"), "{error}");
    }
}
