//! From a cluster's entry and its credentials to the options of a connection.

use standfast_discovery::{ClusterEntry, SecurityProtocol};
use standfast_secrets::{Credentials, Pem, SecretPath, SecretString, SecretsHandle};
use standfast_wire::{
    ClusterOptions, HostPort, Login, SaslMechanism, SaslOptions, TlsOptions, TokenSource,
};

use crate::oauth::ClientCredentials;

/// Kafka's default when neither the entry nor the secret names one.
const DEFAULT_MECHANISM: &str = "PLAIN";

/// Why a cluster cannot be connected to yet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ClusterError {
    /// The secret has not been read so far.
    #[error("waiting for the credentials \"{0}\"")]
    NoCredentials(SecretPath),
    #[error("{0}")]
    Invalid(String),
}

pub(crate) fn uses_sasl(protocol: SecurityProtocol) -> bool {
    matches!(
        protocol,
        SecurityProtocol::SaslPlaintext | SecurityProtocol::SaslSsl
    )
}

fn uses_tls(protocol: SecurityProtocol) -> bool {
    matches!(protocol, SecurityProtocol::Ssl | SecurityProtocol::SaslSsl)
}

/// The options for a cluster with the last known credentials.
///
/// # Errors
/// No credentials yet, or credentials that do not fit the cluster's `security_protocol`.
pub(crate) fn options(
    entry: &ClusterEntry,
    secrets: &SecretsHandle,
    client_id: &str,
) -> Result<ClusterOptions, ClusterError> {
    let credentials = match secret_path(entry)? {
        None => None,
        Some(path) => match secrets.get(&path) {
            Some(credentials) => Some(credentials),
            None => return Err(ClusterError::NoCredentials(path)),
        },
    };
    with_credentials(entry, credentials.as_deref(), client_id)
}

/// The path of the entry's secret.
pub(crate) fn secret_path(entry: &ClusterEntry) -> Result<Option<SecretPath>, ClusterError> {
    entry
        .secret
        .as_ref()
        .map(|path| SecretPath::new(path.clone()))
        .transpose()
        .map_err(|e| ClusterError::Invalid(e.to_string()))
}

/// The options for a cluster with these credentials.
pub(crate) fn with_credentials(
    entry: &ClusterEntry,
    credentials: Option<&Credentials>,
    client_id: &str,
) -> Result<ClusterOptions, ClusterError> {
    let invalid = |error: standfast_wire::Error| ClusterError::Invalid(error.to_string());
    let bootstrap = HostPort::parse_list(&entry.bootstrap).map_err(invalid)?;
    let mut options = ClusterOptions::new(bootstrap);
    options.client_id = client_id.to_owned();
    options.expected_cluster_id.clone_from(&entry.cluster_id);
    if uses_tls(entry.security_protocol) {
        options.tls = Some(tls(credentials)?);
    }
    if uses_sasl(entry.security_protocol) {
        options.sasl = Some(sasl(entry, credentials)?);
    }
    Ok(options)
}

/// What of the options is replaced when the credentials change; the rest is configuration.
pub(crate) fn login(options: &ClusterOptions) -> Login {
    Login {
        tls: options.tls.clone(),
        sasl: options.sasl.clone(),
    }
}

fn tls(credentials: Option<&Credentials>) -> Result<TlsOptions, ClusterError> {
    let Some(credentials) = credentials else {
        return Ok(TlsOptions::default());
    };
    if credentials.ssl_key_password.is_some() {
        return Err(ClusterError::Invalid(
            "the secret holds an encrypted ssl_key, which is not supported yet; store the key without a password".to_owned(),
        ));
    }
    let pem = |pem: &Option<Pem>| {
        pem.as_ref()
            .map(|p| standfast_wire::Pem::Text(p.expose().to_owned().into()))
    };
    Ok(TlsOptions {
        ca: pem(&credentials.ssl_ca),
        certificate: pem(&credentials.ssl_certificate),
        key: pem(&credentials.ssl_key),
        server_name: None,
    })
}

fn sasl(
    entry: &ClusterEntry,
    credentials: Option<&Credentials>,
) -> Result<SaslOptions, ClusterError> {
    let (credentials, username, password) = sasl_login(entry, credentials)?;
    let mechanism: SaslMechanism = mechanism(entry, Some(credentials))
        .parse()
        .map_err(|e: standfast_wire::Error| ClusterError::Invalid(e.to_string()))?;
    let token = (mechanism == SaslMechanism::OAuthBearer)
        .then(|| token_source(credentials, username, password))
        .transpose()?;
    Ok(SaslOptions {
        mechanism,
        username: username.clone(),
        password: password.expose().to_owned().into(),
        token,
    })
}

/// What a cluster with SASL is logged in to with.
///
/// # Errors
/// There is no secret, or it holds certificates only.
pub(crate) fn sasl_login<'c>(
    entry: &ClusterEntry,
    credentials: Option<&'c Credentials>,
) -> Result<(&'c Credentials, &'c String, &'c SecretString), ClusterError> {
    let login = credentials.and_then(|c| Some((c, c.username.as_ref()?, c.password.as_ref()?)));
    login.ok_or_else(|| {
        ClusterError::Invalid(format!(
            "security_protocol {} needs a secret with username and password",
            entry.security_protocol
        ))
    })
}

/// The SASL mechanism that the secret names, or else the entry, or else Kafka's default.
pub(crate) fn mechanism<'c>(
    entry: &'c ClusterEntry,
    credentials: Option<&'c Credentials>,
) -> &'c str {
    let of_secret = credentials.and_then(|c| c.sasl_mechanism.as_deref());
    of_secret
        .or(entry.sasl_mechanism.as_deref())
        .unwrap_or(DEFAULT_MECHANISM)
}

fn token_source(
    credentials: &Credentials,
    client_id: &str,
    client_secret: &SecretString,
) -> Result<TokenSource, ClusterError> {
    let Some(endpoint) = &credentials.oauth_token_endpoint else {
        return Err(ClusterError::Invalid(
            "sasl_mechanism OAUTHBEARER needs oauth_token_endpoint in the secret".to_owned(),
        ));
    };
    let asked = ClientCredentials {
        endpoint: ClientCredentials::endpoint(endpoint).map_err(ClusterError::Invalid)?,
        client_id: client_id.to_owned(),
        client_secret: client_secret.clone(),
        scope: credentials.oauth_scope.clone(),
    };
    Ok(asked.source())
}
