//! A client certificate that ends while the application runs, against a broker that demands one.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use standfast::discovery::{ClusterEntry, DiscoveryOptions, SecurityProtocol};
use standfast::secrets::{CredentialPart, SecretsOptions};
use standfast::{Fleet, FleetEvent, PrometheusCollector, Record};
use standfast_servers::KafkaCluster;
use tokio::sync::broadcast::Receiver;

use crate::{SOON, record, until};

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    /// Certificate and key.
    fn issue(&self, name: &str, lasts: Duration) -> (String, String) {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_after = (SystemTime::now() + lasts).into();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

/// Long enough for a busy machine to see it coming.
const LASTS: Duration = Duration::from_secs(15);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// The secrets of both clusters: west's client certificate lasts as long as said, east's a year.
fn write_secrets(file: &Path, authority: &Authority, west_lasts: Duration) {
    let mut text = String::new();
    for (path, lasts) in [("kafka/west", west_lasts), ("kafka/east", YEAR)] {
        let (certificate, key) = authority.issue("payments", lasts);
        text += &format!(
            "['{path}']\nssl_ca = '''\n{}'''\nssl_certificate = '''\n{certificate}'''\nssl_key = '''\n{key}'''\n",
            authority.0.pem(),
        );
    }
    let new = file.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::rename(&new, file).unwrap();
}

/// Time left of the next event about a client certificate, and its cluster.
async fn next_end(events: &mut Receiver<FleetEvent>) -> (String, Duration) {
    let waited = tokio::time::timeout(SOON, async {
        loop {
            if let FleetEvent::CredentialsExpire {
                cluster,
                what,
                subject,
                left,
                ..
            } = events.recv().await.unwrap()
            {
                assert_eq!(
                    (what, subject.as_str()),
                    (CredentialPart::ClientCertificate, "CN=payments")
                );
                return (cluster.unwrap().to_string(), left);
            }
        }
    });
    waited.await.expect("an event about the end")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_ends_is_told_and_a_new_one_taken() {
    let authority = Authority::new("clusters");
    let (certificate, key) = authority.issue("broker", YEAR);
    let kafka = KafkaCluster::builder("observed-tls")
        .tls(&(key + &certificate))
        .client_certificates(&authority.0.pem())
        .start()
        .unwrap();
    kafka.create_topic("orders", 1, &[]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let entry = |bootstrap: &str, secret: &str| ClusterEntry {
        security_protocol: SecurityProtocol::Ssl,
        secret: Some(secret.to_owned()),
        ..ClusterEntry::new(bootstrap)
    };
    let west = entry(&kafka.tls_bootstrap().unwrap(), "kafka/west");
    let clusters = vec![("west", west), ("east", entry("127.0.0.1:1", "kafka/east"))];
    record(folder.path(), "payments", clusters).await;
    let file = folder.path().join("secrets.toml");
    write_secrets(&file, &authority, YEAR);
    let fleet = Fleet::builder("payments")
        .discovery(DiscoveryOptions::file(folder.path()))
        .secrets(SecretsOptions::file(&file))
        .build()
        .await
        .unwrap();
    let mut events = fleet.events();
    let producer = fleet.producer().build().await.unwrap();
    producer
        .send(Record::to("orders").payload("1"))
        .await
        .unwrap();
    let left = fleet.snapshot().credentials_expire_in_seconds.unwrap();
    assert!((364 * 86_400..=365 * 86_400).contains(&left), "{left}");

    // A certificate that ends soon is put in: told now, and again when it has ended.
    write_secrets(&file, &authority, LASTS);
    let (cluster, left) = next_end(&mut events).await;
    assert_eq!(cluster, "west");
    assert!(left > Duration::ZERO && left <= LASTS, "{left:?}");
    assert_eq!(
        next_end(&mut events).await,
        ("west".to_owned(), Duration::ZERO)
    );
    let left = fleet.snapshot().credentials_expire_in_seconds.unwrap();
    assert!((-60..=0).contains(&left), "{left}");
    let mut registry = Registry::default();
    registry.register_collector(Box::new(PrometheusCollector::new([&fleet])));
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    let sample = "standfast_client_credentials_expire_in_seconds{fleet=\"payments\",cluster=\"west\",part=\"client_certificate\"} ";
    let (_, value) = text
        .split_once(sample)
        .expect("a gauge per cluster and part");
    let value: i64 = value.lines().next().unwrap().parse().unwrap();
    assert!(value <= 0, "{value}");
    assert_eq!(
        text.matches("part=\"client_certificate\"").count(),
        2,
        "the standby's too"
    );

    // The certificate is renewed: records go through again, nothing was lost.
    let waiting = producer
        .try_send(Record::to("orders").payload("2"))
        .unwrap();
    write_secrets(&file, &authority, YEAR);
    tokio::time::timeout(SOON, waiting)
        .await
        .expect("in time")
        .unwrap();
    until("the gauge is back", || {
        fleet.snapshot().credentials_expire_in_seconds.unwrap() > 0
    })
    .await;
    assert_eq!(kafka.log_end_offsets("orders").unwrap(), [2]);
}
