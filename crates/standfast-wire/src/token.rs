//! Where bearer tokens come from. This crate speaks no HTTP: whoever uses it fetches them.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use secrecy::SecretString;

type Fetching = Pin<Box<dyn Future<Output = Result<SecretString, String>> + Send>>;

/// Gives a valid token (OAUTHBEARER, RFC 7628) for each new connection. Cheap to clone.
#[derive(Clone)]
pub struct TokenSource {
    name: Arc<str>,
    fetch: Arc<dyn Fn() -> Fetching + Send + Sync>,
}

impl TokenSource {
    /// `fetch` is called for each connection within its connect timeout, so it should keep a token for as long as it is valid. Its errors must not
    /// hold secrets. Two sources with one `name` count as equal.
    pub fn new<F>(name: impl Into<String>, fetch: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<SecretString, String>> + Send + 'static,
    {
        Self {
            name: name.into().into(),
            fetch: Arc::new(move || Box::pin(fetch())),
        }
    }

    /// A token for one connection.
    ///
    /// # Errors
    /// Why there is none; the text holds no secret.
    pub async fn token(&self) -> Result<SecretString, String> {
        (self.fetch)().await
    }
}

impl PartialEq for TokenSource {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TokenSource").field(&self.name).finish()
    }
}
