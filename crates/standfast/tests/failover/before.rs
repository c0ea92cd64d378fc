//! What is done before anything happens: the lease, and trying a standby out. One broker plays both clusters.

use std::time::Duration;

use standfast::discovery::{
    ClusterEntry, ClusterName, Discovery, DiscoveryOptions, FleetName, FleetRecord,
    SecurityProtocol,
};
use standfast::secrets::SecretsOptions;
use standfast::{Fleet, FleetEvent, MIN_LEASE, Record};
use standfast_servers::{Consul, KafkaCluster};

use crate::fleet::write_secret;
use crate::harness::{EAST, SOON, WEST, event, until, write};

/// With a lease, producers hold while Consul hangs and go on when it answers. A rehearsal tells a standby's wrong password and
/// wrong cluster id before a flip needs them, and so does its connected client.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_holds_producers_and_a_rehearsal_finds_what_is_wrong() {
    let kafka = KafkaCluster::builder(WEST)
        .sasl_plain("app", "right")
        .start()
        .expect("cluster");
    kafka.create_topic("orders", 1, &[]).expect("topic");
    let consul = Consul::start().expect("consul");
    let dir = tempfile::tempdir().expect("folder");
    let secrets = dir.path().join("secrets.toml");
    write_secret(&secrets, "kafka/east", "right");
    let options = DiscoveryOptions::consul([consul.addr()]);
    let discovery = Discovery::new(options.clone()).expect("discovery");
    let name = FleetName::new("payments").expect("name");
    let (west, east) = (cluster(WEST), cluster(EAST));
    let mut standby = ClusterEntry::new(kafka.sasl_bootstrap().expect("listener"));
    standby.security_protocol = SecurityProtocol::SaslPlaintext;
    standby.secret = Some("kafka/east".to_owned());
    let clusters = [
        (west.clone(), ClusterEntry::new(kafka.bootstrap())),
        (east.clone(), standby),
    ];
    let first = FleetRecord::first(west.clone(), clusters.into(), "test");
    write(&discovery, &name, None, &first).await;
    let fleet = Fleet::builder("payments")
        .discovery(options)
        .secrets(SecretsOptions::file(&secrets))
        .lease(MIN_LEASE)
        .build()
        .await
        .expect("fleet");
    let mut events = fleet.events();
    let producer = fleet.producer().build().await.expect("producer");
    let send = |text: &'static str| producer.send(Record::to("orders").payload(text));
    send("first").await.expect("sent");

    let found = fleet.rehearse(SOON).await;
    assert_eq!(found.len(), 1);
    assert!(found[0].outcome.is_ok(), "{found:?}");
    until("the standby's client is connected", || {
        fleet.snapshot().standbys_ready == 1
    })
    .await;
    write_secret(&secrets, "kafka/east", "wrong");
    until("a new login is proven by a new client", || {
        fleet.snapshot().standbys_ready == 0
    })
    .await;
    let found = fleet.rehearse(Duration::from_secs(5)).await;
    let wrong = found[0].outcome.clone().expect_err("wrong password");
    assert!(wrong.to_lowercase().contains("authentication"), "{wrong}");
    write_secret(&secrets, "kafka/east", "right");
    until("the standby's client is connected", || {
        fleet.snapshot().standbys_ready == 1
    })
    .await;

    // Longer than the lease without a change: Consul confirms the record all the same.
    assert!(
        tokio::time::timeout(MIN_LEASE * 2, lease_lost(&mut events))
            .await
            .is_err(),
        "the lease was lost while Consul answered"
    );
    consul.pause();
    lease_lost(&mut events).await;
    // The producer hears of it a moment after us: what is sent just then may still go through.
    let mut sent = 1;
    let held = loop {
        let mut next = Box::pin(send("held"));
        match tokio::time::timeout(Duration::from_secs(2), &mut next).await {
            Err(_held) => break next,
            Ok(answer) => answer.expect("sent"),
        };
        sent += 1;
        assert!(sent < 4, "sent without a lease");
    };
    assert_eq!(kafka.log_end_offsets("orders").expect("log ends"), [sent]);
    consul.resume();
    tokio::time::timeout(SOON, held)
        .await
        .expect("in time")
        .expect("sent");

    let old = discovery.read(&name).await.expect("read").expect("record");
    let mut second = old.value.next(west, old.value.state, "another id");
    second.clusters.get_mut(&east).expect("east").cluster_id = Some("not-this-one".to_owned());
    write(&discovery, &name, Some(&old.version), &second).await;
    until("the record has come", || {
        fleet.view().epoch() == Some(second.epoch)
    })
    .await;
    until("the standby's client is refused", || {
        fleet.snapshot().wrong_cluster > 0
    })
    .await;
    let found = fleet.rehearse(SOON).await;
    let wrong = found[0].outcome.clone().expect_err("wrong cluster");
    assert!(wrong.contains("not-this-one"), "{wrong}");
    let stats = fleet.snapshot();
    assert_eq!(
        (
            stats.rehearsals_passed,
            stats.rehearsals_failed,
            stats.leases_lost
        ),
        (1, 2, 1)
    );
}

async fn lease_lost(events: &mut tokio::sync::broadcast::Receiver<FleetEvent>) {
    event(events, "the lease is lost", |event| {
        matches!(event, FleetEvent::LeaseLost { .. }).then_some(())
    })
    .await;
}

fn cluster(name: &str) -> ClusterName {
    ClusterName::new(name).expect("name")
}
