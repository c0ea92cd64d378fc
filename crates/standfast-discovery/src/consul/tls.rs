//! The TLS configuration towards Consul: rustls on ring, whatever provider the process has or has not installed.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::atomic_file;
use crate::error::Error;
use crate::options::ConsulOptions;

pub(super) fn client_config(options: &ConsulOptions) -> Result<ClientConfig, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::Options(format!("tls: {e}")))?
        .with_root_certificates(roots(options)?);
    match (&options.tls.cert_file, &options.tls.key_file) {
        (Some(cert_file), Some(key_file)) => {
            let key = PrivateKeyDer::from_pem_slice(&read(key_file)?)
                .map_err(|e| unusable(key_file, "holds no private key in PEM form", &e))?;
            builder
                .with_client_auth_cert(certificates(cert_file)?, key)
                .map_err(|e| unusable(cert_file, "and its key cannot be used together", &e))
        }
        _ => Ok(builder.with_no_client_auth()),
    }
}

fn roots(options: &ConsulOptions) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    if let Some(ca_file) = &options.tls.ca_file {
        for certificate in certificates(ca_file)? {
            roots
                .add(certificate)
                .map_err(|e| unusable(ca_file, "holds an unusable certificate", &e))?;
        }
    } else if options.addresses.iter().any(|a| a.starts_with("https")) {
        let found = rustls_native_certs::load_native_certs();
        // Operating systems carry the odd certificate that rustls does not take.
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            return Err(Error::Options(
                "no certificate authorities found in the operating system; set tls.ca_file"
                    .to_owned(),
            ));
        }
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let pem = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.map_err(|e| unusable(path, "is not PEM", &e))?;
    if found.is_empty() {
        return Err(unusable(
            path,
            "holds no certificate in PEM form",
            &"nothing found",
        ));
    }
    Ok(found)
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let content = atomic_file::read(path).map_err(Error::io("reading", path))?;
    content.ok_or_else(|| Error::io("reading", path)(std::io::ErrorKind::NotFound.into()))
}

fn unusable(path: &Path, what: &str, error: &dyn std::fmt::Display) -> Error {
    Error::Options(format!("tls: {} {what}: {error}", path.display()))
}
