//! Where the fleet record is kept.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Most Consul addresses of one set of options.
pub const MAX_ADDRESSES: usize = 16;
/// Shortest and longest accepted `wait` (Consul itself caps it at 10 minutes).
const WAIT_RANGE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));

/// The backend and how to reach it; in TOML a table with `backend = "consul"` or `backend = "file"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "backend", rename_all = "lowercase")]
#[allow(clippy::large_enum_variant, reason = "made once per process")]
pub enum DiscoveryOptions {
    /// One or several Consul clusters.
    Consul(ConsulOptions),
    /// A folder: for a laptop, one machine, the demo.
    File(FileOptions),
}

impl DiscoveryOptions {
    /// The file backend on this folder.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self::File(FileOptions { path: path.into() })
    }

    /// Consul at these addresses, all else by default.
    pub fn consul<A: Into<String>>(addresses: impl IntoIterator<Item = A>) -> Self {
        Self::Consul(ConsulOptions {
            addresses: addresses.into_iter().map(Into::into).collect(),
            ..ConsulOptions::default()
        })
    }
}

/// Options of the file backend.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileOptions {
    /// The folder; a fleet's record is `<path>/<fleet>/active.json`. Must be on a local file system (locks, rename).
    pub path: PathBuf,
}

/// Options of the Consul backend.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConsulOptions {
    /// `http://host:port` or `https://host:port`. Every address is watched on its own and the highest epoch wins;
    /// writes go to the first that answers.
    pub addresses: Vec<String>,
    /// File that holds the ACL token; read again for every request, so a new token needs no restart.
    pub token_file: Option<PathBuf>,
    /// Name of the environment variable that holds the ACL token, for example `CONSUL_HTTP_TOKEN`.
    pub token_env: Option<String>,
    /// Consul datacenter; by default the one of the agent that is asked.
    pub datacenter: Option<String>,
    /// Consul Enterprise namespace.
    pub namespace: Option<String>,
    /// First part of every key: `<prefix>/<fleet>/active`.
    pub prefix: String,
    /// TLS for `https` addresses.
    pub tls: TlsOptions,
    /// How long a blocking query may wait for a change. A change is seen at once whatever this is; it bounds how
    /// long a Consul that hangs without closing its connections goes unnoticed (this, plus a sixteenth, plus
    /// `request_timeout`).
    #[serde(with = "duration_text")]
    pub wait: Duration,
    /// Timeout of every other request, and of connecting.
    #[serde(with = "duration_text")]
    pub request_timeout: Duration,
    /// Let any Consul server answer the watch, also one without a leader (`?stale`). Spreads load and outlives a
    /// lost quorum; such an answer may be old, which epochs make harmless.
    pub stale: bool,
    /// Folder in which the watch keeps a copy of the last good record (`<fleet>.json`).
    pub cache_dir: Option<PathBuf>,
    /// Start from that copy while Consul has not answered yet.
    pub start_from_cache: bool,
}

impl Default for ConsulOptions {
    fn default() -> Self {
        Self {
            addresses: vec!["http://127.0.0.1:8500".to_owned()],
            token_file: None,
            token_env: None,
            datacenter: None,
            namespace: None,
            prefix: "standfast".to_owned(),
            tls: TlsOptions::default(),
            wait: Duration::from_secs(10),
            request_timeout: Duration::from_secs(3),
            stale: false,
            cache_dir: None,
            start_from_cache: false,
        }
    }
}

/// TLS towards Consul.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsOptions {
    /// PEM file with the certificate authorities to trust; by default those of the operating system.
    pub ca_file: Option<PathBuf>,
    /// PEM file with the client certificate and its chain.
    pub cert_file: Option<PathBuf>,
    /// PEM file with the client certificate's private key.
    pub key_file: Option<PathBuf>,
    /// Name to expect in the server's certificate instead of the address's host, for example `server.dc1.consul`.
    pub server_name: Option<String>,
}

impl ConsulOptions {
    pub(crate) fn check(&self) -> Result<(), Error> {
        let refuse = |what: String| Err(Error::Options(what));
        if self.addresses.is_empty() || self.addresses.len() > MAX_ADDRESSES {
            return refuse(format!(
                "addresses lists {}, give 1 to {MAX_ADDRESSES}",
                self.addresses.len()
            ));
        }
        if self.wait < WAIT_RANGE.0 || self.wait > WAIT_RANGE.1 {
            return refuse(format!("wait is {:?}, give 1s to 10m", self.wait));
        }
        if self.request_timeout < Duration::from_millis(100) || self.request_timeout > WAIT_RANGE.1
        {
            return refuse(format!(
                "request_timeout is {:?}, give 100ms to 10m",
                self.request_timeout
            ));
        }
        if self.token_file.is_some() && self.token_env.is_some() {
            return refuse("token_file and token_env are both set, keep one".to_owned());
        }
        if self.tls.cert_file.is_some() != self.tls.key_file.is_some() {
            return refuse(
                "tls.cert_file and tls.key_file belong together, one is missing".to_owned(),
            );
        }
        if self.start_from_cache && self.cache_dir.is_none() {
            return refuse("start_from_cache needs cache_dir".to_owned());
        }
        let clean = |part: &str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        if !self.prefix.split('/').all(clean) {
            return refuse(format!(
                "prefix {:?} is not valid: use a-z, 0-9, '.', '_', '-', parts separated by one '/'",
                self.prefix
            ));
        }
        Ok(())
    }
}

/// Durations as people write them: `10s`, `500ms`, `5m`.
mod duration_text {
    use std::time::Duration;

    use jiff::SignedDuration;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(
        duration: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let signed = SignedDuration::try_from(*duration).map_err(serde::ser::Error::custom)?;
        serializer.collect_str(&format_args!("{signed:#}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        let refuse = || {
            D::Error::custom(format!(
                "{text:?} is not a duration such as \"10s\" or \"500ms\""
            ))
        };
        let signed: SignedDuration = text.parse().map_err(|_| refuse())?;
        Duration::try_from(signed).map_err(|_| refuse())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<DiscoveryOptions, serde_json::Error> {
        serde_json::from_str(json)
    }

    #[test]
    fn reads_both_backends() {
        let options = read(r#"{"backend": "file", "path": "/x"}"#).unwrap();
        assert_eq!(options, DiscoveryOptions::file("/x"));
        let options = read(
            r#"{"backend": "consul", "addresses": ["http://a:8500"], "wait": "5m", "request_timeout": "500ms",
                "tls": {"ca_file": "/ca.pem"}, "token_env": "CONSUL_HTTP_TOKEN"}"#,
        )
        .unwrap();
        let DiscoveryOptions::Consul(consul) = &options else {
            panic!("{options:?}")
        };
        assert_eq!(consul.wait, Duration::from_secs(300));
        assert_eq!(consul.request_timeout, Duration::from_millis(500));
        assert_eq!(consul.prefix, "standfast");
        consul.check().unwrap();
        let again = read(&serde_json::to_string(&options).unwrap()).unwrap();
        assert_eq!(again, options);
    }

    #[test]
    fn unknown_keys_are_named() {
        for (json, key) in [
            (r#"{"backend": "file", "path": "/x", "pth": 1}"#, "pth"),
            (r#"{"backend": "consul", "adresses": []}"#, "adresses"),
            (r#"{"backend": "consul", "tls": {"ca": ""}}"#, "ca"),
            (r#"{"backend": "etcd"}"#, "etcd"),
            (r#"{"backend": "consul", "wait": "soon"}"#, "soon"),
            (r#"{"backend": "consul", "wait": "-5s"}"#, "-5s"),
        ] {
            let error = read(json).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn contradictions_are_refused() {
        let good = ConsulOptions::default();
        good.check().unwrap();
        let bad = [
            ConsulOptions {
                addresses: vec![],
                ..good.clone()
            },
            ConsulOptions {
                wait: Duration::from_secs(0),
                ..good.clone()
            },
            ConsulOptions {
                token_file: Some("/t".into()),
                token_env: Some("T".into()),
                ..good.clone()
            },
            ConsulOptions {
                start_from_cache: true,
                ..good.clone()
            },
            ConsulOptions {
                prefix: "a//b".into(),
                ..good.clone()
            },
            ConsulOptions {
                prefix: "a/../b?x".into(),
                ..good.clone()
            },
        ];
        for options in bad {
            assert!(options.check().is_err(), "{options:?}");
        }
    }
}
