//! A pair of clusters with everything around it: SASL with passwords from Vault, the fleet record in Consul.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use standfast::discovery::{ConsulOptions, DiscoveryOptions};
use standfast::secrets::{SecretsOptions, VaultAuth, VaultOptions};
use standfast::{Fleet, FleetBuilder};
use standfast_servers::{Consul, KafkaBuilder, KafkaCluster, Namespace, Vault};

use crate::agent::AgentConfig;
use crate::pair::Pair;

/// Key of the fleet record.
pub const RECORD: &str = "standfast/payments/active";
/// Time to live of the AppRole's tokens: one that cannot be renewed has expired after it.
pub const TOKEN_TTL: Duration = Duration::from_secs(3);
const READ_KAFKA: &str = r#"path "secret/data/kafka/*" { capabilities = ["read"] }"#;

/// The running servers.
#[derive(Debug)]
pub struct Site {
    /// The clusters.
    pub pair: Pair,
    /// Holds the fleet record.
    pub consul: Consul,
    /// Holds the passwords.
    pub vault: Vault,
    topic: String,
    role_id: String,
    secret_id_file: PathBuf,
}

impl Site {
    /// Starts all servers; the topic is created on west.
    pub fn start(topic: &str, partitions: i32) -> Self {
        Self::start_with(topic, partitions, |cluster| cluster)
    }

    /// The same, each cluster in a network of its own if this machine lets us make one.
    pub fn start_apart(topic: &str, partitions: i32) -> Self {
        Self::start_with(topic, partitions, |cluster| match Namespace::new() {
            Ok(network) => cluster.network(network),
            Err(error) => {
                eprintln!("a cluster cannot be cut off, it is frozen instead: {error}");
                cluster
            }
        })
    }

    fn start_with(
        topic: &str,
        partitions: i32,
        placed: impl Fn(KafkaBuilder) -> KafkaBuilder + Sync,
    ) -> Self {
        let cluster = |name: &str| {
            let cluster = KafkaCluster::builder(name)
                .sasl_plain("app", "right")
                // A broker notes where a log begins once a minute only; killed before, it shows what a restore has deleted. That a link
                // deletes it again has a test of its own (`outage.rs`); nobody does so on the active cluster.
                .property("log.flush.start.offset.checkpoint.interval.ms", "100");
            placed(cluster)
        };
        let (pair, consul, vault) = std::thread::scope(|scope| {
            let pair = scope.spawn(|| Pair::start_with(cluster("west"), cluster("east")));
            let consul = scope.spawn(|| Consul::start().expect("Consul"));
            let vault = scope.spawn(|| Vault::start().expect("Vault"));
            (
                pair.join().expect("pair"),
                consul.join().expect("Consul"),
                vault.join().expect("Vault"),
            )
        });
        let ttl = format!("{}s", TOKEN_TTL.as_secs());
        let (role_id, secret_id) = vault
            .create_app_role("kafka", READ_KAFKA, &ttl)
            .expect("AppRole");
        let secret_id_file = pair.folder().join("secret-id");
        std::fs::write(&secret_id_file, secret_id).expect("secret id");
        pair.west
            .create_topic(topic, partitions, &[])
            .expect("topic");
        let site = Self {
            pair,
            consul,
            vault,
            topic: topic.to_owned(),
            role_id,
            secret_id_file,
        };
        for secret in ["kafka/west", "kafka/east"] {
            site.put_password(secret, "right");
        }
        site
    }

    /// Stores a password of the user `app`.
    pub fn put_password(&self, secret: &str, password: &str) {
        let fields = [("username", "app"), ("password", password)];
        self.vault.put_secret(secret, &fields).expect("put");
    }

    /// An agent with the link west to east, which carries the group `billing`.
    pub fn agent_config(&self) -> AgentConfig {
        let mut config = AgentConfig::of(&self.pair, &[&self.topic]);
        config.discovery = format!(
            "backend = \"consul\"\naddresses = [{:?}]\nrequest_timeout = \"1s\"",
            self.consul.addr()
        );
        config.secrets = format!(
            "backend = \"vault\"\naddress = {:?}\nrefresh = \"300ms\"\nrequest_timeout = \"2s\"\n\
             auth = {{ method = \"approle\", role_id = {:?}, secret_id_file = {:?} }}",
            self.vault.addr(),
            self.role_id,
            self.secret_id_file
        );
        let sasl = |cluster: &KafkaCluster| cluster.sasl_bootstrap().expect("SASL listener");
        config.bootstrap = [sasl(&self.pair.west), sasl(&self.pair.east)];
        let security = "security_protocol = \"SASL_PLAINTEXT\"\nsasl_mechanism = \"PLAIN\"";
        config.west_lines = format!("secret = \"kafka/west\"\n{security}");
        config.east_lines = format!("secret = \"kafka/east\"\n{security}");
        config.groups = vec!["billing".to_owned()];
        config
    }

    /// How an application finds the fleet.
    pub fn fleet(&self) -> FleetBuilder {
        let consul = ConsulOptions {
            addresses: vec![self.consul.addr()],
            request_timeout: Duration::from_secs(1),
            ..ConsulOptions::default()
        };
        let auth = VaultAuth::approle(self.role_id.clone(), &self.secret_id_file);
        let vault = VaultOptions {
            refresh: Duration::from_millis(300),
            request_timeout: Duration::from_secs(2),
            ..VaultOptions::new(self.vault.addr(), auth)
        };
        Fleet::builder("payments")
            .discovery(DiscoveryOptions::Consul(consul))
            .secrets(SecretsOptions::Vault(vault))
    }

    /// The record as it is stored.
    pub fn record(&self) -> Value {
        let text = self.consul.kv_get(RECORD).expect("Consul");
        serde_json::from_str(&text.expect("a record")).expect("JSON")
    }

    /// Writes the record as an operator without care would.
    pub fn put_record(&self, record: &Value) {
        self.consul
            .kv_put(RECORD, record.to_string().as_bytes())
            .expect("Consul");
    }
}
