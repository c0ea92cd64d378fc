//! OAUTHBEARER against a real broker that takes tokens which nobody signed.
#![allow(clippy::unwrap_used)] // helpers of tests

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kafka_protocol::messages::MetadataRequest;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use secrecy::SecretString;
use standfast_servers::KafkaCluster;
use standfast_wire::{
    ClusterOptions, Connection, Error, HostPort, Pem, SaslMechanism, SaslOptions, TlsOptions,
    TokenSource,
};

/// URL-safe base64 without padding.
fn base64(text: &str) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut out = String::new();
    for chunk in text.as_bytes().chunks(3) {
        let mut bits = 0u32;
        for n in 0..3 {
            bits = bits << 8 | u32::from(chunk.get(n).copied().unwrap_or(0));
        }
        for n in 0..=chunk.len() {
            out.push(char::from(ALPHABET[(bits >> (18 - 6 * n) & 63) as usize]));
        }
    }
    out
}

fn token(lifetime: i64) -> SecretString {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let now = i64::try_from(now.as_secs()).unwrap();
    let claims = format!(
        "{{\"sub\":\"app\",\"iat\":{},\"exp\":{}}}",
        now - 10,
        now + lifetime
    );
    SecretString::from(format!(
        "{}.{}.",
        base64("{\"alg\":\"none\"}"),
        base64(&claims)
    ))
}

#[tokio::test]
async fn tokens_are_accepted_refused_and_asked_for_again() {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &authority).unwrap();
    let kafka = KafkaCluster::builder("wire-oauth")
        .tls(&(key.serialize_pem() + &certificate.pem()))
        .oauth_unsigned()
        .property("connections.max.reauth.ms", "3600000")
        .start()
        .unwrap();
    let address: HostPort = kafka.tls_bootstrap().unwrap().parse().unwrap();
    let asked = Arc::new(AtomicU32::new(0));
    let options = |lifetime: Option<i64>| {
        let asked = Arc::clone(&asked);
        let fetch = move || {
            asked.fetch_add(1, Ordering::Relaxed);
            async move {
                lifetime
                    .map(token)
                    .ok_or_else(|| "the token endpoint is away".to_owned())
            }
        };
        ClusterOptions {
            tls: Some(TlsOptions {
                ca: Some(Pem::Text(SecretString::from(authority.pem()))),
                ..TlsOptions::default()
            }),
            sasl: Some(SaslOptions {
                mechanism: SaslMechanism::OAuthBearer,
                username: String::new(),
                password: SecretString::from(String::new()),
                token: Some(TokenSource::new("test", fetch)),
            }),
            ..ClusterOptions::default()
        }
    };

    let lasting = options(Some(3600));
    for round in 1..=2 {
        let connection = Connection::connect(&address, &lasting).await.unwrap();
        connection.call(MetadataRequest::default()).await.unwrap();
        assert_eq!(asked.load(Ordering::Relaxed), round);
        assert!(!connection.is_closed());
    }
    // The session ends with the token: the connection is to be replaced before.
    let short = Connection::connect(&address, &options(Some(3)))
        .await
        .unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while !short.is_closed() {
        assert!(tokio::time::Instant::now() < deadline, "it is not replaced");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for (lifetime, words) in [
        (Some(-3600), "refuses the token"),
        (None, "endpoint is away"),
    ] {
        let error = Connection::connect(&address, &options(lifetime))
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Authentication { .. }), "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
}
