//! How to reach a cluster.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

use crate::error::Error;
use crate::login::{Login, SharedLogin};
use crate::token::TokenSource;
use crate::topic_prefix::TopicPrefix;

/// How to reach a cluster and how long to wait for it.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterOptions {
    /// Addresses to start from, tried in this order.
    pub bootstrap: Vec<HostPort>,
    /// Name in the brokers' request logs and quotas.
    pub client_id: String,
    /// TLS settings; `None` speaks plain TCP.
    pub tls: Option<TlsOptions>,
    /// Credentials; `None` does not authenticate.
    pub sasl: Option<SaslOptions>,
    /// Takes the place of `tls` and `sasl` if given, and can be changed while the cluster is in use.
    pub login: Option<SharedLogin>,
    /// What stands in front of all topic names of the cluster as this program sees it. With one, the cluster is for reading only.
    pub topic_prefix: TopicPrefix,
    /// The id that the cluster must have. Without it the first one seen is kept to.
    pub expected_cluster_id: Option<String>,
    /// Bound on TCP connect, TLS handshake and authentication together.
    pub connect_timeout: Duration,
    /// Bound on the wait for one answer.
    pub request_timeout: Duration,
    /// Age after which cached metadata is fetched again.
    pub metadata_max_age: Duration,
    /// Largest frame accepted from a broker, in bytes. A longer one breaks the connection before anything is allocated.
    pub max_frame_bytes: usize,
}

impl ClusterOptions {
    /// Default settings for the cluster at `bootstrap`.
    pub fn new(bootstrap: Vec<HostPort>) -> Self {
        Self {
            bootstrap,
            ..Self::default()
        }
    }

    /// The login for the next connection.
    pub(crate) fn current_login(&self) -> Arc<Login> {
        match &self.login {
            Some(shared) => shared.get(),
            None => Arc::new(Login {
                tls: self.tls.clone(),
                sasl: self.sasl.clone(),
            }),
        }
    }

    /// The bootstrap addresses as one string, for messages.
    pub fn bootstrap_string(&self) -> String {
        let addresses: Vec<String> = self.bootstrap.iter().map(HostPort::to_string).collect();
        addresses.join(",")
    }
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            bootstrap: Vec::new(),
            client_id: "standfast".to_owned(),
            tls: None,
            sasl: None,
            login: None,
            topic_prefix: TopicPrefix::default(),
            expected_cluster_id: None,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(30),
            metadata_max_age: Duration::from_secs(300),
            max_frame_bytes: 128 * 1024 * 1024,
        }
    }
}

/// A host name or address, and a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    /// DNS name, IPv4 or IPv6 address (without brackets).
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl HostPort {
    /// Reads a bootstrap string such as `k1:9092,k2:9092,[::1]:9092`.
    ///
    /// # Errors
    /// The string is empty, or one of its parts is not `host:port`; the error names the part.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, Error> {
        let addresses = text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(str::parse)
            .collect::<Result<Vec<Self>, Error>>()?;
        if addresses.is_empty() {
            return Err(bad_address(text));
        }
        Ok(addresses)
    }
}

impl FromStr for HostPort {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (host, port) = text.rsplit_once(':').ok_or_else(|| bad_address(text))?;
        let bracketed = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        let valid = match bracketed {
            Some(host) => host.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                !host.is_empty()
                    && !host.contains(|c: char| c == ':' || c == '/' || c.is_whitespace())
            }
        };
        match port.parse::<u16>() {
            Ok(port) if valid && port != 0 => Ok(Self {
                host: bracketed.unwrap_or(host).to_owned(),
                port,
            }),
            _ => Err(bad_address(text)),
        }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

fn bad_address(text: &str) -> Error {
    Error::Options {
        setting: "bootstrap",
        reason: format!("{text:?} is not host:port"),
    }
}

/// TLS settings.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TlsOptions {
    /// Certificate authorities to trust. `None` trusts those of the operating system.
    pub ca: Option<Pem>,
    /// Client certificate chain (mutual TLS). Needs `key`.
    pub certificate: Option<Pem>,
    /// Private key of the client certificate, not encrypted.
    pub key: Option<Pem>,
    /// Name to ask for (SNI) and to verify. `None` takes the host name connected to.
    pub server_name: Option<String>,
}

/// PEM text, or the file that holds it.
#[derive(Clone)]
pub enum Pem {
    /// A file, read at each connect, so that a renewed certificate is picked up.
    File(PathBuf),
    /// The text itself.
    Text(SecretString),
}

impl PartialEq for Pem {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::File(a), Self::File(b)) => a == b,
            (Self::Text(a), Self::Text(b)) => a.expose_secret() == b.expose_secret(),
            _ => false,
        }
    }
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Text(_) => f.write_str("Text(***)"),
        }
    }
}

/// Credentials for SASL.
#[derive(Clone)]
pub struct SaslOptions {
    /// How the password is proven.
    pub mechanism: SaslMechanism,
    /// User name.
    pub username: String,
    /// Password.
    pub password: SecretString,
    /// Where tokens come from; needed for OAUTHBEARER, which uses neither name nor password.
    pub token: Option<TokenSource>,
}

impl PartialEq for SaslOptions {
    fn eq(&self, other: &Self) -> bool {
        self.mechanism == other.mechanism
            && self.username == other.username
            && self.password.expose_secret() == other.password.expose_secret()
            && self.token == other.token
    }
}

impl fmt::Debug for SaslOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SaslOptions")
            .field("mechanism", &self.mechanism)
            .field("username", &self.username)
            .field("password", &"***")
            .field("token", &self.token)
            .finish()
    }
}

/// A SASL mechanism that this crate speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SaslMechanism {
    /// The password itself is sent: use it over TLS only.
    Plain,
    /// Challenge and response (RFC 7677).
    ScramSha256,
    /// Challenge and response with SHA-512.
    ScramSha512,
    /// A token that somebody else has signed (RFC 7628, KIP-255). The token itself is sent: use it over TLS only.
    OAuthBearer,
}

impl SaslMechanism {
    /// The name in the protocol and in Kafka's configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
            Self::OAuthBearer => "OAUTHBEARER",
        }
    }
}

impl FromStr for SaslMechanism {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        [
            Self::Plain,
            Self::ScramSha256,
            Self::ScramSha512,
            Self::OAuthBearer,
        ]
        .into_iter()
        .find(|mechanism| mechanism.name().eq_ignore_ascii_case(text))
        .ok_or_else(|| Error::Options {
            setting: "sasl_mechanism",
            reason: format!(
                "{text:?} is not supported; use PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER"
            ),
        })
    }
}
