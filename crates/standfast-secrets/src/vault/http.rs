//! Sends vaultrs requests over a connection of our own: ring without a process-wide provider, a bound on every answer,
//! timeouts, and none of the error-level log lines that vaultrs writes for each refused request.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use reqwest::redirect;
use rustify::Endpoint;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use vaultrs::api::{EndpointMiddleware, EndpointResult};
use zeroize::{Zeroize, Zeroizing};

use crate::{Error, SecretString, VaultFailure, VaultOptions, VaultTls};

/// Longest answer that is read. Vault's storage refuses values above 1 MiB.
const MAX_ANSWER_LEN: usize = 2 * 1024 * 1024;
/// Longest text that is taken over from an answer of Vault's into an error.
const MAX_REASON_LEN: usize = 300;
/// Longest time to reach the server, when `request_timeout` is not shorter.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A standby node redirects to the active one; more than that is a loop.
const MAX_REDIRECTS: usize = 2;

/// HTTP connection to one Vault address.
#[derive(Debug, Clone)]
pub(crate) struct VaultHttp {
    client: reqwest::Client,
    /// Scheme, host and port.
    base: String,
    namespace: Option<String>,
    request_timeout: Duration,
}

impl VaultHttp {
    pub(crate) fn new(options: &VaultOptions) -> Result<Self, Error> {
        let url = parse_address(&options.address)?;
        let is_tls = url.scheme() == "https";
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls_config(is_tls, &options.tls)?)
            .timeout(options.request_timeout)
            .connect_timeout(options.request_timeout.min(CONNECT_TIMEOUT))
            .redirect(redirect_policy(is_tls))
            .user_agent(concat!("standfast/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| Error::InvalidOption {
                option: "address",
                reason: chain(&error.without_url()),
            })?;
        Ok(Self {
            client,
            base: url.as_str().trim_end_matches('/').to_owned(),
            namespace: options.namespace.clone(),
            request_timeout: options.request_timeout,
        })
    }

    pub(crate) fn address(&self) -> &str {
        &self.base
    }

    /// Sends one request. Statuses other than success come back as [`VaultFailure::Status`] or
    /// [`VaultFailure::Sealed`]; what they mean depends on the request.
    pub(crate) async fn call<E: Endpoint>(
        &self,
        token: Option<&SecretString>,
        endpoint: E,
    ) -> Result<EndpointResult<E::Response>, VaultFailure> {
        let request = self.build(token, endpoint)?;
        let (status, body) = self.send(request).await.map_err(|error| match error {
            Unanswered::TooLong => {
                VaultFailure::Malformed(format!("it is longer than {MAX_ANSWER_LEN} bytes"))
            }
            Unanswered::Http(error) if error.is_timeout() => {
                VaultFailure::TimedOut(self.request_timeout)
            }
            Unanswered::Http(error) => VaultFailure::Unreachable(chain(&error.without_url())),
        })?;
        if !(200..300).contains(&status) {
            return Err(refusal(status, &body));
        }
        // The parser's own message may quote the answer, so only the place is passed on.
        serde_json::from_slice(&body).map_err(|error| {
            VaultFailure::Malformed(format!(
                "not what Vault's API describes (line {} column {})",
                error.line(),
                error.column()
            ))
        })
    }

    fn build<E: Endpoint>(
        &self,
        token: Option<&SecretString>,
        endpoint: E,
    ) -> Result<reqwest::Request, VaultFailure> {
        let mut middleware = EndpointMiddleware {
            token: token.map_or_else(String::new, |token| token.expose().to_owned()),
            version: "v1".to_owned(),
            wrap: None,
            namespace: self.namespace.clone(),
        };
        let request = endpoint.with_middleware(&middleware).request(&self.base);
        middleware.token.zeroize();
        let mut request = request
            .ok()
            .and_then(|request| reqwest::Request::try_from(request).ok())
            .ok_or_else(|| VaultFailure::Malformed("the request could not be built".to_owned()))?;
        if let Some(token) = request.headers_mut().get_mut("X-Vault-Token") {
            token.set_sensitive(true);
        }
        Ok(request)
    }

    async fn send(
        &self,
        request: reqwest::Request,
    ) -> Result<(u16, Zeroizing<Vec<u8>>), Unanswered> {
        let mut response = self.client.execute(request).await?;
        let mut body = Zeroizing::new(Vec::new());
        while let Some(chunk) = response.chunk().await? {
            if body.len() + chunk.len() > MAX_ANSWER_LEN {
                return Err(Unanswered::TooLong);
            }
            body.extend_from_slice(&chunk);
        }
        Ok((response.status().as_u16(), body))
    }
}

enum Unanswered {
    Http(reqwest::Error),
    TooLong,
}

impl From<reqwest::Error> for Unanswered {
    fn from(error: reqwest::Error) -> Self {
        Self::Http(error)
    }
}

fn parse_address(address: &str) -> Result<reqwest::Url, Error> {
    let invalid = |reason: &str| Error::InvalidOption {
        option: "address",
        reason: format!("{reason}; write for example `https://vault.example.com:8200`"),
    };
    let url = reqwest::Url::parse(address.trim()).map_err(|_| invalid("is not a URL"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(invalid("must start with `https://` or `http://`"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(invalid("must hold no user name or password"));
    }
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        return Err(invalid("must hold nothing after host and port"));
    }
    let is_loopback = url.host_str().is_some_and(|host| {
        let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
        host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    });
    if url.scheme() == "http" && !is_loopback {
        tracing::warn!(%url, "Vault is reached without TLS: token and secrets cross the network in the clear");
    }
    Ok(url)
}

/// Names ring here, so that no process-wide default provider is needed and the application's own is left alone.
fn tls_config(is_tls: bool, tls: &VaultTls) -> Result<rustls::ClientConfig, Error> {
    let mut roots = rustls::RootCertStore::empty();
    match &tls.ca_file {
        Some(path) => add_ca_file(&mut roots, path)?,
        None if is_tls => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        None => {}
    }
    if is_tls && roots.is_empty() {
        return Err(Error::InvalidOption {
            option: "tls.ca_file",
            reason: "the system has no trusted authorities; name a PEM file with Vault's"
                .to_owned(),
        });
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::InvalidOption {
            option: "tls",
            reason: error.to_string(),
        })?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn add_ca_file(roots: &mut rustls::RootCertStore, path: &std::path::Path) -> Result<(), Error> {
    let what = "Vault CA file";
    let text = std::fs::read(path).map_err(|source| Error::File {
        what,
        path: path.to_owned(),
        source,
    })?;
    let fault = |reason: String| Error::FileContent {
        what,
        path: path.to_owned(),
        reason,
    };
    let mut added = 0;
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let certificate = certificate.map_err(|error| fault(format!("is not PEM: {error:?}")))?;
        roots
            .add(certificate)
            .map_err(|error| fault(format!("certificate {} cannot be used: {error}", added + 1)))?;
        added += 1;
    }
    if added == 0 {
        return Err(fault("holds no certificate".to_owned()));
    }
    Ok(())
}

/// The token goes along with a redirect, so it must never go from TLS to plain text.
fn redirect_policy(is_tls: bool) -> redirect::Policy {
    redirect::Policy::custom(move |attempt| {
        if attempt.previous().len() > MAX_REDIRECTS {
            attempt.error("too many redirects")
        } else if is_tls && attempt.url().scheme() != "https" {
            attempt.error("redirected from https to http")
        } else {
            attempt.follow()
        }
    })
}

fn refusal(status: u16, body: &[u8]) -> VaultFailure {
    let answer: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let errors: Vec<_> = answer
        .get("errors")
        .and_then(|errors| errors.as_array())
        .map(|errors| errors.iter().filter_map(|error| error.as_str()).collect())
        .unwrap_or_default();
    let mut reason = one_line(&errors.join(", "));
    if status == 404 && answer.pointer("/data/metadata").is_some() {
        reason = super::DELETED.to_owned();
    }
    crate::secret::wipe(answer);
    if status == 503 && reason.contains("sealed") {
        return VaultFailure::Sealed;
    }
    if reason.is_empty() {
        reason = "no reason given".to_owned();
    }
    VaultFailure::Status { status, reason }
}

/// Text from the network, made fit for a log line.
fn one_line(text: &str) -> String {
    let words: Vec<_> = text.split_whitespace().collect();
    let line = words.join(" ");
    line.chars()
        .filter(|c| !c.is_control())
        .take(MAX_REASON_LEN)
        .collect()
}

/// An error and its causes: reqwest's own text leaves out the part that matters, such as `connection refused`.
fn chain(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::VaultAuth;

    fn fault(address: &str) -> String {
        VaultHttp::new(&VaultOptions::new(address, VaultAuth::default()))
            .expect_err("must be refused")
            .to_string()
    }

    #[test]
    fn addresses_are_checked() {
        for (bad, expected) in [
            ("vault:8200", "must start with"),
            ("", "is not a URL"),
            ("ftp://vault", "must start with"),
            ("https://user:pw@vault", "no user name or password"),
            ("https://vault/v1", "nothing after host and port"),
        ] {
            let text = fault(bad);
            assert!(
                text.contains("`address`") && text.contains(expected),
                "{bad}: {text}"
            );
            assert!(!text.contains("pw@"), "{text}");
        }
        let http = VaultHttp::new(&VaultOptions::new(
            "http://127.0.0.1:8200/",
            VaultAuth::default(),
        ))
        .expect("client");
        assert_eq!(http.address(), "http://127.0.0.1:8200");
    }

    #[test]
    fn refusals_are_told_apart() {
        assert_eq!(
            refusal(503, br#"{"errors":["Vault is sealed"]}"#),
            VaultFailure::Sealed
        );
        let status = |status, reason: &str| VaultFailure::Status {
            status,
            reason: reason.to_owned(),
        };
        assert_eq!(
            refusal(403, b"{\"errors\":[\"2 errors occurred:\\n\\t* permission denied\\n\\t* invalid token\\n\\n\"]}"),
            status(403, "2 errors occurred: * permission denied * invalid token")
        );
        assert_eq!(refusal(502, b"<html>"), status(502, "no reason given"));
        assert_eq!(
            refusal(
                404,
                br#"{"data":{"data":null,"metadata":{"deletion_time":"x"}}}"#
            ),
            status(404, super::super::DELETED)
        );
        let VaultFailure::Status { reason, .. } = refusal(
            500,
            format!("{{\"errors\":[\"{}\"]}}", "x".repeat(5000)).as_bytes(),
        ) else {
            panic!("not a status");
        };
        assert_eq!(reason.len(), MAX_REASON_LEN);
    }
}
