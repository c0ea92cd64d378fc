//! Consul and Vault are away: a running application goes on, also through a flip; a start goes by the cache files.

use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use standfast::discovery::{
    ClusterEntry, ClusterName, ConsulOptions, Discovery, DiscoveryOptions, FleetName, FleetRecord,
    FleetState, SecurityProtocol,
};
use standfast::secrets::{SecretsOptions, VaultAuth, VaultOptions};
use standfast::{Fleet, FleetEvent, Record};
use standfast_servers::{Consul, KafkaCluster, Vault};

use crate::harness::{EAST, SOON, WEST, event, until, write};

/// One broker plays both clusters, each with a user of its own.
#[tokio::test(flavor = "multi_thread")]
async fn without_vault_and_consul_applications_go_on_and_start() {
    let mut kafka = KafkaCluster::builder(WEST)
        .sasl_plain("of-west", "one")
        .sasl_plain("of-east", "two")
        .start()
        .expect("cluster");
    kafka.create_topic("orders", 1, &[]).expect("topic");
    let mut consul = Consul::start().expect("consul");
    let mut vault = Vault::start().expect("vault");
    put(&vault, WEST, "one");
    put(&vault, EAST, "two");
    let dir = tempfile::tempdir().expect("folder");
    let options = DiscoveryOptions::Consul(ConsulOptions {
        addresses: vec![consul.addr()],
        cache_dir: Some(dir.path().join("records")),
        start_from_cache: true,
        ..ConsulOptions::default()
    });
    let discovery = Discovery::new(options.clone()).expect("discovery");
    let name = FleetName::new("payments").expect("name");
    let cluster = |name: &str| {
        let mut entry = ClusterEntry::new(kafka.sasl_bootstrap().expect("listener"));
        entry.security_protocol = SecurityProtocol::SaslPlaintext;
        entry.secret = Some(format!("kafka/{name}"));
        (ClusterName::new(name).expect("name"), entry)
    };
    let clusters = [cluster(WEST), cluster(EAST)];
    let first = FleetRecord::first(clusters[0].0.clone(), clusters.clone().into(), "test");
    write(&discovery, &name, None, &first).await;
    let token = dir.path().join("token");
    std::fs::write(&token, vault.root_token()).expect("token");
    let cache = dir.path().join("credentials.toml");
    let address = vault.addr();
    let connect = || {
        let auth = VaultAuth::Token {
            token_file: Some(token.clone()),
            env: None,
        };
        Fleet::builder("payments")
            .discovery(options.clone())
            .secrets(SecretsOptions::Vault(VaultOptions::new(&address, auth)))
            .credential_cache(&cache)
            .build()
    };
    std::fs::set_permissions(&token, PermissionsExt::from_mode(0o600)).expect("mode");
    let fleet = connect().await.expect("fleet");
    let producer = fleet.producer().build().await.expect("producer");
    assert_eq!(send(&producer).await.as_str(), WEST);
    until("the credentials are cached", || cache.exists()).await;
    until("both are", || {
        std::fs::read_to_string(&cache).is_ok_and(|text| text.contains("of-east"))
    })
    .await;
    let mode = std::fs::metadata(&cache)
        .expect("cache")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);

    // A new password is in use at the next login, without a new client.
    let mut events = fleet.events();
    let written = Instant::now();
    put(&vault, WEST, "wrong");
    applied(&mut events).await;
    println!(
        "a new password was in use {:?} after it was written",
        written.elapsed()
    );
    put(&vault, WEST, "one");
    applied(&mut events).await;
    assert_eq!(fleet.snapshot().clients_rebuilt, 0);

    // Vault is gone: a login, and a flip to a cluster that was not used before.
    until("the file follows", || {
        std::fs::read_to_string(&cache).is_ok_and(|text| !text.contains("wrong"))
    })
    .await;
    vault.kill();
    kafka.kill();
    kafka.restart().expect("restart");
    assert_eq!(send(&producer).await.as_str(), WEST);
    let old = discovery.read(&name).await.expect("read").expect("record");
    let second = old
        .value
        .next(clusters[1].0.clone(), FleetState::Active, "flip");
    write(&discovery, &name, Some(&old.version), &second).await;
    until("the flip is known", || {
        fleet.view().epoch() == Some(second.epoch)
    })
    .await;
    while send(&producer).await.as_str() != EAST {}

    // Consul too: the next start goes by the files.
    let records = dir.path().join("records/payments.json");
    until("the record is cached", || {
        std::fs::read_to_string(&records).is_ok_and(|text| text.contains("\"flip\""))
    })
    .await;
    consul.kill();
    assert_eq!(send(&producer).await.as_str(), EAST);
    drop((producer, fleet));
    let started = Instant::now();
    let again = connect().await.expect("start without Consul and Vault");
    let producer = again.producer().build().await.expect("producer");
    assert_eq!(send(&producer).await.as_str(), EAST);
    println!(
        "started without Consul and Vault in {:?}",
        started.elapsed()
    );
}

fn put(vault: &Vault, cluster: &str, password: &str) {
    let user = format!("of-{cluster}");
    let fields = [("username", user.as_str()), ("password", password)];
    vault
        .put_secret(&format!("kafka/{cluster}"), &fields)
        .expect("secret");
}

async fn send(producer: &standfast::FailoverProducer) -> ClusterName {
    let sent = producer.send(Record::to("orders").payload("x"));
    let delivery = tokio::time::timeout(SOON, sent)
        .await
        .expect("in time")
        .expect("sent");
    delivery.cluster
}

async fn applied(events: &mut tokio::sync::broadcast::Receiver<FleetEvent>) {
    event(events, "credentials applied", |event| {
        matches!(event, FleetEvent::CredentialsApplied { .. }).then_some(())
    })
    .await;
}
