//! Clusters with TLS, SCRAM and the authorizer, and users that hold some ACLs only.
#![allow(dead_code, unreachable_pub)]

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use secrecy::SecretString;
use standfast_servers::{KafkaBuilder, KafkaCluster};
use standfast_wire::admin::{AclBinding, AclOperation, AclPattern, AclResource};
use standfast_wire::{
    Cluster, ClusterOptions, HostPort, Login, Pem, SaslMechanism, SaslOptions, SharedLogin,
    TlsOptions,
};

/// The user that the link logs in as.
pub const USER: &str = "link";
pub const PASSWORD: &str = "link-password";
pub const PRINCIPAL: &str = "User:link";

/// Signs certificates.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("an authority");
        Self { issuer }
    }

    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Key and certificate of a broker on loopback.
    pub fn broker(&self) -> String {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("parameters");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        key.serialize_pem() + &certificate.pem()
    }
}

/// A cluster with TLS, SCRAM and ACLs.
pub fn builder(name: &str, authority: &Authority) -> KafkaBuilder {
    KafkaCluster::builder(name)
        .heap_mb(256)
        .tls(&authority.broker())
        .scram_user(USER, PASSWORD)
        .authorizer()
}

pub fn login(authority: &Authority, user: &str, password: &str) -> Login {
    Login {
        tls: Some(TlsOptions {
            ca: Some(Pem::Text(SecretString::from(authority.pem()))),
            ..TlsOptions::default()
        }),
        sasl: Some(SaslOptions {
            mechanism: SaslMechanism::ScramSha512,
            username: user.to_owned(),
            password: SecretString::from(password.to_owned()),
            token: None,
        }),
    }
}

pub fn options(cluster: &KafkaCluster, login: Login) -> (ClusterOptions, SharedLogin) {
    let addresses = cluster.tls_bootstrap().expect("a TLS listener");
    let login = SharedLogin::new(login);
    let mut options = ClusterOptions::new(HostPort::parse_list(&addresses).expect("addresses"));
    options.login = Some(login.clone());
    (options, login)
}

pub fn allow(
    resource: AclResource,
    pattern: AclPattern,
    name: &str,
    operation: AclOperation,
) -> AclBinding {
    AclBinding::allow(PRINCIPAL, operation, resource, pattern, name)
}

pub async fn grant(cluster: &Cluster, acls: &[AclBinding]) {
    for result in cluster.create_acls(acls).await.expect("an answer") {
        result.expect("created");
    }
}

pub async fn revoke(cluster: &Cluster, acls: &[AclBinding]) {
    for result in cluster.delete_acls(acls).await.expect("an answer") {
        result.expect("deleted");
    }
}
