//! Credentials that can be replaced while connections are open.

use std::sync::{Arc, PoisonError, RwLock};

use crate::options::{SaslOptions, TlsOptions};

/// How to be let in by a cluster.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Login {
    /// TLS settings; `None` speaks plain TCP.
    pub tls: Option<TlsOptions>,
    /// Credentials; `None` does not authenticate.
    pub sasl: Option<SaslOptions>,
}

/// A [`Login`] shared by everything that connects to a cluster. What is set holds for the connections made from then on; open ones stay open.
#[derive(Debug, Clone, Default)]
pub struct SharedLogin(Arc<RwLock<Arc<Login>>>);

impl SharedLogin {
    /// With a first login.
    pub fn new(login: Login) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(login))))
    }

    /// The login for the next connection.
    pub fn get(&self) -> Arc<Login> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces it.
    pub fn set(&self, login: Login) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(login);
    }
}

/// Equal if they are the same cell: what is in it changes.
impl PartialEq for SharedLogin {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}
