//! TLS towards Consul: authority, server name, client certificate. No process-wide rustls provider is installed here.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fake;
mod fleet;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fake::{Fake, Reply};
use fleet::fleet;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use rustls::server::WebPkiClientVerifier;
use standfast_discovery::*;
use tokio_rustls::TlsAcceptor;

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Certificate and key in PEM form.
fn issue(authority: &Authority, name: &str) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec![name.to_owned()])
        .unwrap()
        .signed_by(&key, authority)
        .unwrap();
    (certificate.pem(), key.serialize_pem())
}

async fn consul(authority: &Authority, name: &str, ask_client: bool) -> Fake {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = if ask_client {
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap())
            .unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .unwrap();
        builder.with_client_cert_verifier(verifier)
    } else {
        builder.with_no_client_auth()
    };
    let (certificate, key) = issue(authority, name);
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let config = builder.with_single_cert(vec![certificate], key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    Fake::start_with(Some(acceptor), |_, _| {
        Reply::Answer(404, Some(1), "", vec![])
    })
    .await
}

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn put(&self, name: &str, content: &str) -> Option<PathBuf> {
        let path = self.0.path().join(name);
        std::fs::write(&path, content).unwrap();
        Some(path)
    }
}

async fn read(address: String, tls: TlsOptions) -> Result<(), String> {
    let options = ConsulOptions {
        addresses: vec![address],
        request_timeout: Duration::from_secs(2),
        tls,
        ..ConsulOptions::default()
    };
    let discovery = Discovery::new(DiscoveryOptions::Consul(options)).map_err(|e| e.to_string())?;
    discovery
        .read(&fleet())
        .await
        .map(|_| ())
        .map_err(|e| e.to_string())
}

#[tokio::test]
async fn the_authority_and_the_name_are_checked() {
    let (files, authority, stranger) = (Files::new(), self::authority(), self::authority());
    let consul = consul(&authority, "server.dc1.consul", false).await;
    let address = format!("https://127.0.0.1:{}", consul.port());
    let tls = TlsOptions {
        ca_file: files.put("ca.pem", &authority.pem()),
        server_name: Some("server.dc1.consul".to_owned()),
        ..TlsOptions::default()
    };
    read(address.clone(), tls.clone()).await.unwrap();
    // By host name too: the resolver leads to the real host.
    read(address.replace("127.0.0.1", "localhost"), tls.clone())
        .await
        .unwrap();

    let nameless = TlsOptions {
        server_name: None,
        ..tls.clone()
    };
    let error = read(address.clone(), nameless).await.unwrap_err();
    assert!(error.contains("not valid for name"), "{error}");
    let other = TlsOptions {
        server_name: Some("server.dc2.consul".to_owned()),
        ..tls.clone()
    };
    let error = read(address.clone(), other).await.unwrap_err();
    assert!(error.contains("not valid for name"), "{error}");
    let wrong = TlsOptions {
        ca_file: files.put("stranger.pem", &stranger.pem()),
        ..tls.clone()
    };
    let error = read(address.clone(), wrong).await.unwrap_err();
    assert!(
        error.contains("invalid peer certificate") && error.contains("tls.ca_file"),
        "{error}"
    );
    // Plain HTTP to a TLS port fails, and does not hang.
    read(address.replace("https", "http"), tls)
        .await
        .unwrap_err();
}

#[tokio::test]
async fn a_client_certificate_is_shown() {
    let (files, authority) = (Files::new(), self::authority());
    let consul = consul(&authority, "localhost", true).await;
    let address = format!("https://localhost:{}", consul.port());
    let (certificate, key) = issue(&authority, "client.dc1.consul");
    let without = TlsOptions {
        ca_file: files.put("ca.pem", &authority.pem()),
        ..TlsOptions::default()
    };
    read(address.clone(), without.clone()).await.unwrap_err();
    let with = TlsOptions {
        cert_file: files.put("client.pem", &certificate),
        key_file: files.put("client.key", &key),
        ..without
    };
    read(address, with).await.unwrap();
}

#[tokio::test]
async fn unusable_files_are_named() {
    let files = Files::new();
    let address = "https://localhost:1".to_owned();
    let missing = TlsOptions {
        ca_file: Some(files.0.path().join("nowhere.pem")),
        ..TlsOptions::default()
    };
    assert!(
        read(address.clone(), missing)
            .await
            .unwrap_err()
            .contains("nowhere.pem")
    );
    let empty = TlsOptions {
        ca_file: files.put("empty.pem", "hello"),
        ..TlsOptions::default()
    };
    assert!(
        read(address.clone(), empty)
            .await
            .unwrap_err()
            .contains("empty.pem")
    );
    let half = TlsOptions {
        cert_file: files.put("client.pem", "x"),
        ..TlsOptions::default()
    };
    assert!(read(address, half).await.unwrap_err().contains("key_file"));
}
