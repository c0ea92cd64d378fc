//! Bearer tokens by client credentials (RFC 6749, 4.4), kept until they are about to run out.

use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;
use serde::Deserialize;
use standfast_wire::TokenSource;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// How long the token endpoint may take; a connection waits for it.
const REQUEST_LIMIT: Duration = Duration::from_secs(4);
/// Largest answer that is read.
const ANSWER_MAX_BYTES: usize = 64 * 1024;
/// Share of a token's lifetime in which it is handed out.
const LIFETIME_USED: f64 = 0.8;
/// Lifetime of a token whose answer does not state one.
const LIFETIME_UNSTATED: Duration = Duration::from_secs(60);
const LIFETIME_MAX: Duration = Duration::from_secs(24 * 3600);

/// Who asks whom for what.
#[derive(Clone)]
pub(crate) struct ClientCredentials {
    pub(crate) endpoint: Url,
    pub(crate) client_id: String,
    pub(crate) client_secret: standfast_secrets::SecretString,
    pub(crate) scope: Option<String>,
}

impl ClientCredentials {
    /// Checks the endpoint: the client's secret is sent to it.
    pub(crate) fn endpoint(text: &str) -> Result<Url, String> {
        let url: Url = text
            .parse()
            .map_err(|error| format!("oauth_token_endpoint {text:?} is not a URL: {error}"))?;
        let host = url.host_str().unwrap_or_default();
        let loopback = matches!(host, "127.0.0.1" | "[::1]" | "localhost");
        match url.scheme() {
            "https" => Ok(url),
            "http" if loopback => Ok(url),
            _ => Err(format!(
                "oauth_token_endpoint {text:?}: the client secret is sent there, so it must be https"
            )),
        }
    }

    pub(crate) fn source(self) -> TokenSource {
        let name = format!(
            "{} {} {}",
            self.endpoint,
            self.client_id,
            self.scope.as_deref().unwrap_or_default()
        );
        let kept = Arc::new(Mutex::new(None::<Kept>));
        let asked = Arc::new(self);
        TokenSource::new(name, move || {
            let (kept, asked) = (Arc::clone(&kept), Arc::clone(&asked));
            async move {
                // Whoever comes meanwhile waits for the same answer.
                let mut kept = kept.lock().await;
                if let Some(known) = kept.as_ref().filter(|known| Instant::now() < known.until) {
                    return Ok(known.token.expose().to_owned().into());
                }
                let fresh = asked.fetch().await?;
                let token = fresh.token.expose().to_owned().into();
                *kept = Some(fresh);
                Ok(token)
            }
        })
    }

    async fn fetch(&self) -> Result<Kept, String> {
        let failed = |reason: String| format!("token endpoint {}: {reason}", self.endpoint);
        let http = reqwest::Client::builder()
            .timeout(REQUEST_LIMIT)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| failed(error.to_string()))?;
        let asked_at = Instant::now();
        let mut response = http
            .post(self.endpoint.clone())
            .basic_auth(&self.client_id, Some(self.client_secret.expose()))
            .header("Content-Type", "application/x-www-form-urlencoded")
            .header("Accept", "application/json")
            .body(self.form())
            .send()
            .await
            .map_err(|error| failed(error.without_url().to_string()))?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|error| failed(error.without_url().to_string()))?
        {
            body.extend_from_slice(&chunk);
            if body.len() > ANSWER_MAX_BYTES {
                return Err(failed("its answer is too large to be one".to_owned()));
            }
        }
        if !status.is_success() {
            let refusal: Refusal = serde_json::from_slice(&body).unwrap_or_default();
            let words: String = refusal.error.chars().take(100).collect();
            return Err(failed(format!("HTTP status {status} {words}")));
        }
        // The parser's error could hold a part of the token.
        let granted: Granted = serde_json::from_slice(&body)
            .map_err(|_| failed("its answer is no JSON with an `access_token`".to_owned()))?;
        let lifetime = granted
            .expires_in
            .map_or(LIFETIME_UNSTATED, Duration::from_secs)
            .min(LIFETIME_MAX);
        Ok(Kept {
            token: granted.access_token.into(),
            until: asked_at + lifetime.mul_f64(LIFETIME_USED),
        })
    }

    fn form(&self) -> String {
        let mut form = self.endpoint.clone();
        form.set_query(None);
        form.query_pairs_mut()
            .append_pair("grant_type", "client_credentials");
        if let Some(scope) = &self.scope {
            form.query_pairs_mut().append_pair("scope", scope);
        }
        form.query().unwrap_or_default().to_owned()
    }
}

struct Kept {
    token: standfast_secrets::SecretString,
    until: Instant,
}

#[derive(Deserialize)]
struct Granted {
    access_token: String,
    #[serde(default)]
    expires_in: Option<u64>,
}

#[derive(Default, Deserialize)]
struct Refusal {
    #[serde(default)]
    error: String,
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use axum::Router;
    use axum::http::{HeaderMap, StatusCode};
    use axum::routing::post;

    use super::*;

    async fn endpoint(expires_in: u64, asked: Arc<AtomicU32>) -> Url {
        let answer = move |headers: HeaderMap, body: String| async move {
            let number = asked.fetch_add(1, Ordering::Relaxed);
            // base64 of app:s3cret
            if headers["authorization"] != "Basic YXBwOnMzY3JldA==" {
                return (
                    StatusCode::UNAUTHORIZED,
                    "{\"error\":\"invalid_client\"}".to_owned(),
                );
            }
            assert_eq!(body, "grant_type=client_credentials&scope=kafka+read");
            let text = format!("{{\"access_token\":\"t{number}\",\"expires_in\":{expires_in}}}");
            (StatusCode::OK, text)
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/token", post(answer));
        tokio::spawn(async move { axum::serve(listener, router).await });
        format!("http://{address}/token").parse().unwrap()
    }

    fn credentials(endpoint: Url, secret: &str) -> ClientCredentials {
        ClientCredentials {
            endpoint,
            client_id: "app".to_owned(),
            client_secret: secret.to_owned().into(),
            scope: Some("kafka read".to_owned()),
        }
    }

    #[tokio::test]
    async fn a_token_is_kept_while_it_is_valid_and_a_refusal_names_the_endpoint_only() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let asked = Arc::new(AtomicU32::new(0));
        let lasting = endpoint(3600, Arc::clone(&asked)).await;
        let source = credentials(lasting.clone(), "s3cret").source();
        for _ in 0..3 {
            assert_eq!(token(&source).await.unwrap(), "t0");
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        let passing = credentials(endpoint(0, Arc::default()).await, "s3cret").source();
        assert_eq!(token(&passing).await.unwrap(), "t0");
        assert_eq!(token(&passing).await.unwrap(), "t1");

        let refused = token(&credentials(lasting, "hunter2").source())
            .await
            .unwrap_err();
        assert!(
            refused.contains("/token: HTTP status 401") && refused.contains("invalid_client"),
            "{refused}"
        );
        assert!(!refused.contains("hunter2"), "{refused}");
    }

    async fn token(source: &TokenSource) -> Result<String, String> {
        use standfast_wire::ExposeSecret;
        source
            .token()
            .await
            .map(|token| token.expose_secret().to_owned())
    }

    #[test]
    fn a_secret_is_sent_over_https_or_to_this_machine() {
        for good in [
            "https://id.example/token",
            "http://127.0.0.1:1/t",
            "http://localhost/t",
        ] {
            ClientCredentials::endpoint(good).unwrap();
        }
        for bad in ["http://id.example/token", "ftp://x/", "nonsense"] {
            ClientCredentials::endpoint(bad).unwrap_err();
        }
    }
}
