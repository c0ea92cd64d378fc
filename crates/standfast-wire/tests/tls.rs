//! TLS: a real broker behind a TLS-terminating proxy, with certificates made for the test.
#![allow(clippy::unwrap_used)] // helpers of tests

use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::messages::MetadataRequest;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::PrivateKeyDer;
use secrecy::SecretString;
use standfast_servers::KafkaCluster;
use standfast_wire::{ClusterOptions, Connection, Error, HostPort, Pem, RawConnection, TlsOptions};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer }
    }

    fn pem(&self) -> String {
        self.issuer.pem()
    }

    fn issue(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        self.issue_until(name, 4000)
    }

    fn issue_until(&self, name: &str, year: i32) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }
}

/// Listens with TLS and passes everything on to `upstream`. Asks for client certificates if `clients` signs them.
async fn proxy(upstream: String, servers: &Authority, clients: Option<&Authority>) -> HostPort {
    serve(upstream, servers.issue("kafka.test"), clients).await
}

async fn serve(
    upstream: String,
    (certificate, key): (rcgen::Certificate, KeyPair),
    clients: Option<&Authority>,
) -> HostPort {
    let builder =
        ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(clients) => {
            let mut roots = RootCertStore::empty();
            roots.add(clients.issuer.der().clone()).unwrap();
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = builder
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (acceptor, upstream) = (acceptor.clone(), upstream.clone());
            tokio::spawn(async move {
                let mut client = acceptor.accept(client).await.ok()?;
                let mut broker = TcpStream::connect(upstream).await.ok()?;
                tokio::io::copy_bidirectional(&mut client, &mut broker)
                    .await
                    .ok()
            });
        }
    });
    HostPort {
        host: "127.0.0.1".to_owned(),
        port,
    }
}

fn pem(text: String) -> Option<Pem> {
    Some(Pem::Text(SecretString::from(text)))
}

fn options(tls: TlsOptions) -> ClusterOptions {
    ClusterOptions {
        tls: Some(tls),
        connect_timeout: Duration::from_secs(5),
        ..ClusterOptions::default()
    }
}

#[tokio::test]
async fn tls_with_and_without_client_certificates() {
    let kafka = KafkaCluster::start("wire-tls").unwrap();
    let (servers, clients) = (Authority::new(), Authority::new());
    let address = proxy(kafka.bootstrap(), &servers, None).await;
    let trusting = TlsOptions {
        ca: pem(servers.pem()),
        server_name: Some("kafka.test".to_owned()),
        ..TlsOptions::default()
    };

    let folder = std::env::temp_dir().join(format!("standfast-wire-tls-{}", std::process::id()));
    std::fs::write(&folder, servers.pem()).unwrap();
    let by_file = TlsOptions {
        ca: Some(Pem::File(folder.clone())),
        ..trusting.clone()
    };
    for tls in [trusting.clone(), by_file] {
        let connection = Connection::connect(&address, &options(tls)).await.unwrap();
        // Far more than one TLS record in each direction, many at once.
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let connection = connection.clone();
            calls.spawn(async move {
                connection
                    .call(MetadataRequest::default())
                    .await
                    .unwrap()
                    .cluster_id
            });
        }
        for found in calls.join_all().await {
            assert_eq!(found.as_deref(), Some(kafka.cluster_id()));
        }
    }
    std::fs::remove_file(&folder).unwrap();

    let refused = |tls: TlsOptions| {
        let address = address.clone();
        async move {
            RawConnection::connect(&address, &options(tls))
                .await
                .unwrap_err()
                .to_string()
        }
    };
    let stranger = TlsOptions {
        ca: pem(clients.pem()),
        ..trusting.clone()
    };
    let text = refused(stranger).await;
    assert!(
        text.contains("TLS")
            && text.contains("invalid peer certificate")
            && text.contains(&address.to_string()),
        "{text}"
    );
    let text = refused(TlsOptions {
        server_name: None,
        ..trusting.clone()
    })
    .await;
    assert!(text.contains("not valid for name"), "{text}");
    let text = refused(TlsOptions {
        ca: Some(Pem::File("/no/such/ca.pem".into())),
        ..trusting.clone()
    })
    .await;
    assert!(text.contains("/no/such/ca.pem"), "{text}");
    let text = refused(TlsOptions {
        ca: pem("not PEM".to_owned()),
        ..trusting.clone()
    })
    .await;
    assert!(text.contains("no certificate"), "{text}");

    let strict = proxy(kafka.bootstrap(), &servers, Some(&clients)).await;
    let (certificate, key) = clients.issue("client");
    let known = TlsOptions {
        certificate: pem(certificate.pem()),
        key: pem(key.serialize_pem()),
        ..trusting.clone()
    };
    Connection::connect(&strict, &options(known.clone()))
        .await
        .unwrap();
    RawConnection::connect(&strict, &options(trusting.clone()))
        .await
        .unwrap_err();
    let incomplete = TlsOptions { key: None, ..known };
    assert!(refused(incomplete).await.contains("needs its key"));
}

#[tokio::test]
async fn a_replaced_file_serves_the_next_connection_and_an_expired_certificate_is_named() {
    let kafka = KafkaCluster::start("wire-tls-files").unwrap();
    let (servers, clients, strangers) = (Authority::new(), Authority::new(), Authority::new());
    let strict = proxy(kafka.bootstrap(), &servers, Some(&clients)).await;
    let folder = std::env::temp_dir().join(format!("standfast-wire-pem-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (certificate_file, key_file) = (folder.join("client.pem"), folder.join("client.key"));
    let write = |authority: &Authority| {
        let (certificate, key) = authority.issue("client");
        std::fs::write(&certificate_file, certificate.pem()).unwrap();
        std::fs::write(&key_file, key.serialize_pem()).unwrap();
    };
    let options = options(TlsOptions {
        ca: pem(servers.pem()),
        certificate: Some(Pem::File(certificate_file.clone())),
        key: Some(Pem::File(key_file.clone())),
        server_name: Some("kafka.test".to_owned()),
    });
    write(&strangers);
    Connection::connect(&strict, &options).await.unwrap_err();
    write(&clients);
    let connection = Connection::connect(&strict, &options).await.unwrap();
    write(&strangers);
    // The open connection stays, a new one is refused.
    connection.call(MetadataRequest::default()).await.unwrap();
    Connection::connect(&strict, &options).await.unwrap_err();
    std::fs::remove_dir_all(&folder).unwrap();

    let expired = serve(
        kafka.bootstrap(),
        servers.issue_until("kafka.test", 2020),
        None,
    )
    .await;
    let text = RawConnection::connect(&expired, &options_for(&servers))
        .await
        .unwrap_err()
        .to_string();
    assert!(text.contains("expired"), "{text}");
}

fn options_for(servers: &Authority) -> ClusterOptions {
    options(TlsOptions {
        ca: pem(servers.pem()),
        server_name: Some("kafka.test".to_owned()),
        ..TlsOptions::default()
    })
}

#[tokio::test]
async fn plain_against_tls_and_tls_against_plain_say_so() {
    let kafka = KafkaCluster::start("wire-tls-mismatch").unwrap();
    let servers = Authority::new();
    let address = proxy(kafka.bootstrap(), &servers, None).await;
    let plain = ClusterOptions {
        connect_timeout: Duration::from_secs(2),
        ..ClusterOptions::default()
    };
    let error = RawConnection::connect(&address, &plain).await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::Frame { .. } | Error::Closed { .. } | Error::Io { .. }
        ),
        "{error}"
    );
    let broker: HostPort = kafka.bootstrap().parse().unwrap();
    let tls = TlsOptions {
        ca: pem(servers.pem()),
        ..TlsOptions::default()
    };
    let error = RawConnection::connect(&broker, &options(tls))
        .await
        .unwrap_err();
    assert!(
        matches!(error, Error::Tls { .. } | Error::Timeout { .. }),
        "{error}"
    );
}
