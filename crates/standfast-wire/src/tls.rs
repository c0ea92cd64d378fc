//! TLS by rustls with ring.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use secrecy::{ExposeSecret, SecretSlice};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::error::Error;
use crate::options::{HostPort, Pem, TlsOptions};

/// Does the TLS handshake on `stream`.
pub(crate) async fn handshake(
    stream: TcpStream,
    address: &HostPort,
    broker: &Arc<str>,
    options: &TlsOptions,
) -> Result<TlsStream<TcpStream>, Error> {
    let failed = |reason: String| Error::Tls {
        broker: Arc::clone(broker),
        reason,
    };
    let config = client_config(options).map_err(failed)?;
    let name = options.server_name.as_deref().unwrap_or(&address.host);
    let name = ServerName::try_from(name.to_owned())
        .map_err(|error| failed(format!("server name {name:?}: {error}")))?;
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .map_err(|error| failed(error.to_string()))
}

fn client_config(options: &TlsOptions) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots(options.ca.as_ref())?);
    match (&options.certificate, &options.key) {
        (None, None) => Ok(builder.with_no_client_auth()),
        (Some(certificate), Some(key)) => builder
            .with_client_auth_cert(certificates("certificate", certificate)?, private_key(key)?)
            .map_err(|error| format!("client certificate: {error}")),
        (Some(_), None) => Err("a client certificate needs its key".to_owned()),
        (None, Some(_)) => Err("a client key needs its certificate".to_owned()),
    }
}

fn roots(ca: Option<&Pem>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(pem) => {
            for certificate in certificates("ca", pem)? {
                roots
                    .add(certificate)
                    .map_err(|error| format!("ca: {error}"))?;
            }
        }
        None => {
            let native = rustls_native_certs::load_native_certs();
            let (added, _) = roots.add_parsable_certificates(native.certs);
            if added == 0 {
                let errors: Vec<String> = native.errors.iter().map(ToString::to_string).collect();
                return Err(format!(
                    "the operating system has no usable certificate authorities; name a ca file ({})",
                    errors.join("; ")
                ));
            }
        }
    }
    Ok(roots)
}

fn certificates(setting: &str, pem: &Pem) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = read(setting, pem)?;
    let certificates = CertificateDer::pem_slice_iter(text.expose_secret())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("{setting}: {}: {error}", place(pem)))?;
    if certificates.is_empty() {
        return Err(format!("{setting}: {} holds no certificate", place(pem)));
    }
    Ok(certificates)
}

fn private_key(pem: &Pem) -> Result<PrivateKeyDer<'static>, String> {
    let text = read("key", pem)?;
    if text
        .expose_secret()
        .windows(ENCRYPTED.len())
        .any(|window| window == ENCRYPTED)
    {
        return Err(format!(
            "key: {} is encrypted; store it without a passphrase",
            place(pem)
        ));
    }
    // The parser's error never holds key material.
    PrivateKeyDer::from_pem_slice(text.expose_secret())
        .map_err(|error| format!("key: {}: {error}", place(pem)))
}

const ENCRYPTED: &[u8] = b"ENCRYPTED";

/// The PEM bytes, wiped from memory after use.
fn read(setting: &str, pem: &Pem) -> Result<SecretSlice<u8>, String> {
    match pem {
        Pem::File(path) => std::fs::read(path)
            .map(SecretSlice::from)
            .map_err(|error| format!("{setting}: {}: {error}", path.display())),
        Pem::Text(text) => Ok(SecretSlice::from(text.expose_secret().as_bytes().to_vec())),
    }
}

fn place(pem: &Pem) -> String {
    match pem {
        Pem::File(path) => path.display().to_string(),
        Pem::Text(_) => "the given PEM text".to_owned(),
    }
}
