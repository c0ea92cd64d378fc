//! Vault over TLS: a real Vault behind a TLS endpoint with a certificate of its own authority. No process-wide TLS
//! provider is installed here, so this also shows that none is needed.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use standfast_secrets::{
    Error, SecretPath, Secrets, SecretsOptions, VaultAuth, VaultFailure, VaultOptions,
};
use standfast_servers::Vault;

/// An authority and what it signed for 127.0.0.1.
fn certificates(folder: &Path) -> (PathBuf, Arc<ServerConfig>) {
    let mut params = CertificateParams::new(Vec::new()).expect("params");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority =
        CertifiedIssuer::self_signed(params, KeyPair::generate().expect("key")).expect("authority");
    let ca_file = folder.join("ca.pem");
    std::fs::write(&ca_file, authority.pem()).expect("write");

    let key = KeyPair::generate().expect("key");
    let server = CertificateParams::new(vec!["127.0.0.1".to_owned()])
        .expect("params")
        .signed_by(&key, &authority)
        .expect("certificate");
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![server.der().clone()], key)
        .expect("server certificate");
    (ca_file, Arc::new(config))
}

/// Takes TLS off in front of `vault`, one request per connection; the `https` address.
fn terminate_tls(config: Arc<ServerConfig>, vault: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = format!("https://{}", listener.local_addr().expect("address"));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let connection = ServerConnection::new(Arc::clone(&config)).expect("connection");
            // A client that does not trust us ends the handshake: nothing to forward then.
            let _ = forward(StreamOwned::new(connection, stream), &vault);
        }
    });
    address
}

/// Only requests without a body come here: token lookups and reads.
fn forward(
    mut client: StreamOwned<ServerConnection, TcpStream>,
    vault: &str,
) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut chunk = [0; 1024];
    while !request.ends_with(b"\r\n\r\n") {
        let read = client.read(&mut chunk)?;
        if read == 0 {
            return Ok(());
        }
        request.extend_from_slice(chunk.get(..read).unwrap_or_default());
    }
    request.truncate(request.len() - 2);
    request.extend_from_slice(b"connection: close\r\n\r\n");
    let mut server = TcpStream::connect(vault)?;
    server.write_all(&request)?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    client.write_all(&answer)?;
    client.conn.send_close_notify();
    client.flush()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_named_authority_is_trusted_and_no_other() {
    let folder = tempfile::tempdir().expect("scratch folder");
    let vault = Vault::start().expect("Vault");
    vault
        .put_secret("kafka/east", &[("username", "app"), ("password", "pw")])
        .expect("put");
    let token_file = folder.path().join("token");
    std::fs::write(&token_file, vault.root_token()).expect("write");
    let (ca_file, config) = certificates(folder.path());
    let plain = vault.addr().trim_start_matches("http://").to_owned();
    let east = SecretPath::new("kafka/east").expect("secret path");

    let mut options = VaultOptions::new(
        terminate_tls(config, plain),
        VaultAuth::token_file(token_file),
    );
    options.tls.ca_file = Some(ca_file);
    let secrets = Secrets::new(SecretsOptions::Vault(options.clone())).expect("options");
    let found = secrets.read(&east).await.expect("read over TLS");
    assert_eq!(found.username.as_deref(), Some("app"));
    assert!(rustls::crypto::CryptoProvider::get_default().is_none());

    let other = tempfile::tempdir().expect("scratch folder");
    options.tls.ca_file = Some(certificates(other.path()).0);
    let secrets = Secrets::new(SecretsOptions::Vault(options.clone())).expect("options");
    let error = secrets.read(&east).await.expect_err("untrusted");
    let text = error.to_string();
    assert!(
        matches!(
            error,
            Error::Vault {
                failure: VaultFailure::Unreachable(_),
                ..
            }
        ),
        "{text}"
    );
    assert!(
        text.contains("certificate") && text.contains("TLS settings"),
        "{text}"
    );

    for (content, expected) in [
        (Some("no PEM"), "holds no certificate"),
        (None, "No such file"),
    ] {
        let file = other.path().join("odd.pem");
        let _ = std::fs::remove_file(&file);
        if let Some(content) = content {
            std::fs::write(&file, content).expect("write");
        }
        options.tls.ca_file = Some(file);
        let text = Secrets::new(SecretsOptions::Vault(options.clone()))
            .expect_err("refused")
            .to_string();
        assert!(
            text.contains("odd.pem") && text.contains(expected),
            "{text}"
        );
    }
}
