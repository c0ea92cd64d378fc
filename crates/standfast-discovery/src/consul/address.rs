//! One Consul address: its HTTP client, the ACL token, and how a request fails.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use reqwest::header::{HeaderValue, USER_AGENT};
use reqwest::{Client, Method, Response, Url};
use secrecy::{ExposeSecret, SecretString};

use crate::atomic_file;
use crate::error::Error;
use crate::options::ConsulOptions;

/// Largest answer that is read: a value of 512 KiB in base64, and its JSON.
const MAX_BODY_BYTES: usize = 1024 * 1024;
/// Longest text of Consul's that is quoted in an error, in characters.
const MAX_QUOTED: usize = 300;
/// Longest time for a TCP and TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A peer that has vanished without a word is noticed after these: 5 s idle, then 3 probes 2 s apart.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(5), Duration::from_secs(2), 3);
/// How long an address that failed is tried last.
const FAILED_RECENTLY: Duration = Duration::from_secs(10);

/// Where one request goes and what it carries.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub(super) method: Method,
    /// Behind `/v1/`.
    pub(super) path: &'a str,
    pub(super) query: &'a [(&'a str, String)],
    pub(super) body: Option<Vec<u8>>,
    pub(super) timeout: Duration,
    /// The ACL rule that it needs, for the error if it is denied.
    pub(super) rule: &'a str,
}

/// An answer with status 200 or 404.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) found: bool,
    /// `X-Consul-Index`.
    pub(super) index: Option<u64>,
    /// `X-Consul-KnownLeader`.
    pub(super) known_leader: bool,
    pub(super) body: Vec<u8>,
}

/// Why an address did not do what was asked.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nothing was sent, because of something here, such as a token file that cannot be read.
    NotReady { address: String, reason: String },
    /// Nothing was sent: no connection.
    NotSent { address: String, reason: String },
    /// Sent, but no usable answer came.
    NoAnswer { address: String, reason: String },
    /// Consul answered with an error.
    Answer { address: String, reason: String },
    /// Consul answered 401 or 403.
    Denied {
        address: String,
        reason: String,
        hint: String,
    },
}

impl Failure {
    pub(super) fn may_have_been_applied(&self) -> bool {
        // An error of Consul's own may be the timeout of a server that forwarded the write.
        matches!(self, Self::NoAnswer { .. } | Self::Answer { .. })
    }

    /// What to do about it.
    fn advice(&self) -> &'static str {
        match self {
            Self::NotSent { reason, .. } if reason.contains("certificate") => {
                "; check tls.ca_file and tls.server_name, and what certificate the server shows"
            }
            Self::NotSent { .. } | Self::NoAnswer { .. } => {
                "; check that Consul runs there and can be reached from here"
            }
            Self::Answer { .. } => "; check that this is Consul, that it has a leader, and its log",
            Self::NotReady { .. } | Self::Denied { .. } => "",
        }
    }

    pub(super) fn into_error(self, key: &str) -> Error {
        let key = key.to_owned();
        match self {
            Self::Denied {
                address,
                reason,
                hint,
            } => Error::Denied {
                address,
                key,
                reason,
                hint,
            },
            other => {
                let (address, reason) = other.into_parts();
                Error::Unavailable {
                    address,
                    key,
                    reason,
                }
            }
        }
    }

    /// The address, and the reason with the advice.
    pub(super) fn into_parts(self) -> (String, String) {
        let advice = self.advice();
        let (address, reason) = match self {
            Self::NotReady { address, reason }
            | Self::NotSent { address, reason }
            | Self::NoAnswer { address, reason }
            | Self::Answer { address, reason }
            | Self::Denied {
                address, reason, ..
            } => (address, reason),
        };
        (address, reason + advice)
    }
}

/// The ACL token, fetched anew for every request: it may be rotated at any time.
#[derive(Debug)]
pub(super) enum Token {
    None,
    File(PathBuf),
    Env(String),
}

impl Token {
    pub(super) fn new(options: &ConsulOptions) -> Self {
        match (&options.token_file, &options.token_env) {
            (Some(path), _) => Self::File(path.clone()),
            (None, Some(name)) => Self::Env(name.clone()),
            (None, None) => Self::None,
        }
    }

    fn read(&self) -> Result<Option<SecretString>, String> {
        let token = match self {
            Self::None => return Ok(None),
            Self::File(path) => {
                let content = atomic_file::read(path)
                    .map_err(|e| format!("the token file {} cannot be read: {e}", path.display()))?
                    .ok_or_else(|| format!("the token file {} does not exist", path.display()))?;
                String::from_utf8(content)
                    .map_err(|_| format!("the token file {} is not UTF-8", path.display()))?
            }
            Self::Env(name) => std::env::var(name)
                .map_err(|_| format!("the environment variable {name} is not set"))?,
        };
        let token = token.trim();
        if token.is_empty() {
            return Err(format!("{self} is empty"));
        }
        Ok(Some(SecretString::from(token)))
    }
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => write!(f, "no token was sent: set token_file or token_env"),
            Self::File(path) => write!(f, "the token of {}", path.display()),
            Self::Env(name) => write!(f, "the token of the environment variable {name}"),
        }
    }
}

#[derive(Debug)]
pub(super) struct Address {
    name: String,
    base: Url,
    client: Client,
    failed_at: Mutex<Option<Instant>>,
}

impl Address {
    pub(super) fn new(
        text: &str,
        options: &ConsulOptions,
        tls: &rustls::ClientConfig,
    ) -> Result<Self, Error> {
        let refuse = |what: &str| Error::Options(format!("address {text:?} {what}"));
        // As in CONSUL_HTTP_ADDR, the scheme may be left out.
        let full = if text.contains("://") {
            text.to_owned()
        } else {
            format!("http://{text}")
        };
        let mut base = Url::parse(&full)
            .map_err(|_| refuse("is not http://host:port or https://host:port"))?;
        if !base.username().is_empty() || base.password().is_some() {
            return Err(Error::Options(
                "an address contains credentials; use token_file or token_env".to_owned(),
            ));
        }
        let plain = base.path() == "/" && base.query().is_none() && base.fragment().is_none();
        if !matches!(base.scheme(), "http" | "https") || !plain {
            return Err(refuse("is not http://host:port or https://host:port"));
        }
        let name = full.trim_end_matches('/').to_owned();
        let mut builder = Client::builder()
            .tls_backend_preconfigured(tls.clone())
            .http1_only()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT.min(options.request_timeout))
            .tcp_nodelay(true)
            .tcp_keepalive(KEEPALIVE.0)
            .tcp_keepalive_interval(KEEPALIVE.1)
            .tcp_keepalive_retries(KEEPALIVE.2);
        if let (Some(server_name), "https", Some(host)) =
            (&options.tls.server_name, base.scheme(), base.host_str())
        {
            // The URL carries the name to be expected (SNI and certificate), the resolver leads to the real host.
            let host = host.trim_matches(['[', ']']).to_owned();
            builder = builder.dns_resolver(LeadTo(host));
            base.set_host(Some(server_name)).map_err(|_| {
                Error::Options(format!(
                    "tls.server_name {server_name:?} is not a host name"
                ))
            })?;
        }
        let client = builder
            .build()
            .map_err(|e| Error::Options(format!("HTTP client for {name}: {}", chain(&e))))?;
        Ok(Self {
            name,
            base,
            client,
            failed_at: Mutex::new(None),
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn has_just_failed(&self) -> bool {
        let failed_at = *self
            .failed_at
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        failed_at.is_some_and(|at| at.elapsed() < FAILED_RECENTLY)
    }

    /// Sends one request and reads the whole answer.
    pub(super) async fn send(
        &self,
        request: Request<'_>,
        token: &Token,
    ) -> Result<Answer, Failure> {
        let result = self.try_send(request, token).await;
        let failed_at = result.as_ref().err().map(|_| Instant::now());
        *self
            .failed_at
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = failed_at;
        result
    }

    async fn try_send(&self, request: Request<'_>, token: &Token) -> Result<Answer, Failure> {
        let address = || self.name.clone();
        let not_ready = |reason: String| Failure::NotReady {
            address: address(),
            reason,
        };
        let mut url = self.base.clone();
        url.set_path(&format!("/v1/{}", request.path));
        let mut builder = self
            .client
            .request(request.method, url)
            .query(request.query)
            .timeout(request.timeout)
            .header(USER_AGENT, concat!("standfast/", env!("CARGO_PKG_VERSION")));
        if let Some(secret) = token.read().map_err(not_ready)? {
            let mut value = HeaderValue::from_str(secret.expose_secret())
                .map_err(|_| not_ready(format!("{token} contains characters that no token has")))?;
            value.set_sensitive(true);
            builder = builder.header("X-Consul-Token", value);
        }
        if let Some(body) = request.body {
            builder = builder.body(body);
        }
        let timeout = request.timeout;
        let failed = |error: reqwest::Error| {
            let reason = if error.is_timeout() && !error.is_connect() {
                format!("no answer within {timeout:?}")
            } else {
                chain(&error)
            };
            let address = address();
            // A request that failed while connecting has certainly not been seen by Consul.
            if error.is_connect() || error.is_builder() {
                Failure::NotSent { address, reason }
            } else {
                Failure::NoAnswer { address, reason }
            }
        };
        let response = builder.send().await.map_err(failed)?;
        let status = response.status();
        let header = |name: &str| {
            response
                .headers()
                .get(name)
                .and_then(|v| v.to_str().ok().map(str::to_owned))
        };
        let index = header("x-consul-index").and_then(|v| v.parse().ok());
        let known_leader = header("x-consul-knownleader").is_none_or(|v| v != "false");
        let body = read_bounded(response).await.map_err(|e| match e {
            Unread::Network(error) => failed(error),
            Unread::TooLarge => Failure::Answer {
                address: address(),
                reason: format!("the answer is larger than {MAX_BODY_BYTES} bytes"),
            },
        })?;
        match status.as_u16() {
            200 | 404 => Ok(Answer {
                found: status.as_u16() == 200,
                index,
                known_leader,
                body,
            }),
            401 | 403 => Err(Failure::Denied {
                address: address(),
                reason: format!("{status}: {}", quote(&body)),
                hint: format!("{token}; it needs the ACL rule {}", request.rule),
            }),
            _ => Err(Failure::Answer {
                address: address(),
                reason: format!("{status}: {}", quote(&body)),
            }),
        }
    }
}

/// Resolves every name to one host.
struct LeadTo(String);

impl reqwest::dns::Resolve for LeadTo {
    fn resolve(&self, _: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let host = self.0.clone();
        Box::pin(async move {
            // The port is the URL's; 0 stands for "not mine to say".
            let found: Vec<SocketAddr> = tokio::net::lookup_host((host, 0)).await?.collect();
            Ok(Box::new(found.into_iter()) as reqwest::dns::Addrs)
        })
    }
}

enum Unread {
    Network(reqwest::Error),
    TooLarge,
}

async fn read_bounded(mut response: Response) -> Result<Vec<u8>, Unread> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(Unread::Network)? {
        if body.len() + chunk.len() > MAX_BODY_BYTES {
            return Err(Unread::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn quote(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(
        body.get(..body.len().min(4 * MAX_QUOTED))
            .unwrap_or_default(),
    );
    text.trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MAX_QUOTED)
        .collect()
}

/// The error and its causes in one line; reqwest shows only "error sending request" by itself. The URL is left out: the
/// address is named anyway.
fn chain(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    if text.is_empty() {
        "the request failed".to_owned()
    } else {
        text
    }
}
