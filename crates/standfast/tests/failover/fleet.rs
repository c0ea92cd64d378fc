//! The fleet itself: wrong clusters, lost discovery, many flips.

use std::time::{Duration, Instant};

use standfast::discovery::{
    ClusterEntry, ClusterName, Discovery, DiscoveryOptions, FleetName, FleetRecord,
    SecurityProtocol,
};
use standfast::secrets::SecretsOptions;
use standfast::{Fleet, FleetEvent, Record};
use standfast_servers::{Consul, KafkaCluster};

use crate::harness::{EAST, SOON, WEST, World, clients, event, write};

/// The record says east, the addresses lead to another cluster: not one record gets there.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_cluster_is_refused() {
    let world = World::start(1).await;
    let fleet = world.connect().await;
    let producer = fleet.producer().build().await.expect("producer");
    producer
        .send(Record::to("orders").payload("first"))
        .await
        .expect("first");
    let mut events = fleet.events();
    let east = ClusterName::new(EAST).expect("name");
    world
        .flip_with(EAST, |record| {
            record.clusters.get_mut(&east).expect("east").cluster_id =
                Some("not-this-one".to_owned());
        })
        .await;
    let (expected, found) = event(&mut events, "wrong cluster", |event| match event {
        FleetEvent::WrongCluster {
            expected, found, ..
        } => Some((expected, found)),
        _ => None,
    })
    .await;
    assert_eq!(
        (expected.as_str(), found.as_str()),
        ("not-this-one", world.east.cluster_id())
    );
    let held = producer
        .try_send(Record::to("orders").payload("held"))
        .expect("room");
    assert!(
        producer.flush(Duration::from_secs(1)).await.is_err(),
        "the record is held"
    );
    assert_eq!(world.east.log_end_offsets("orders").expect("log ends"), [0]);
    assert!(fleet.snapshot().wrong_cluster > 0);

    // Somebody corrects the record.
    world.flip(EAST, None).await;
    let delivery = tokio::time::timeout(SOON, held)
        .await
        .expect("in time")
        .expect("acknowledged");
    // Behind the first one, which west had acknowledged and east does not have.
    assert_eq!((delivery.cluster.as_str(), delivery.offset), (EAST, 1));
}

/// Discovery disappears: the application does not notice.
#[tokio::test(flavor = "multi_thread")]
async fn the_application_works_on_without_discovery() {
    let world = World::start(1).await;
    let fleet = world.connect().await;
    let mut events = fleet.events();
    let (producer, mut consumer) = clients(&fleet).await;
    producer
        .send(Record::to("orders").payload("0"))
        .await
        .expect("first");
    std::fs::remove_dir_all(world.dir.path()).expect("remove the discovery folder");
    let reason = event(&mut events, "discovery lost", |event| match event {
        FleetEvent::DiscoveryLost { reason } => Some(reason),
        _ => None,
    });
    let reason = tokio::time::timeout(Duration::from_secs(10), reason).await;
    println!("discovery gone: {reason:?}");
    for n in 1..20 {
        producer
            .send(Record::to("orders").payload(n.to_string()))
            .await
            .expect("send");
    }
    for n in 0..20 {
        let message = tokio::time::timeout(SOON, consumer.next())
            .await
            .expect("in time")
            .expect("open")
            .expect("record");
        assert_eq!(message.offset(), n);
        assert!(
            message.id().is_some() && message.headers().is_empty(),
            "the id header is hidden"
        );
        consumer.ack(&message).expect("ack");
    }
    assert!(fleet.view().record.is_some());
}

/// Consul is killed: the application works on, and the next flip comes through once Consul is back.
#[tokio::test(flavor = "multi_thread")]
async fn the_application_works_on_without_consul() {
    let mut consul = Consul::start().expect("consul");
    let options = DiscoveryOptions::consul([consul.addr()]);
    let dir = tempfile::tempdir().expect("folder");
    let world = World::start_on(options, dir, 1).await;
    let fleet = world.connect().await;
    let mut events = fleet.events();
    let producer = fleet.producer().build().await.expect("producer");
    producer
        .send(Record::to("orders").payload("0"))
        .await
        .expect("first");
    consul.kill();
    event(&mut events, "discovery lost", |event| {
        matches!(event, FleetEvent::DiscoveryLost { .. }).then_some(())
    })
    .await;
    for n in 1..20 {
        let delivery = producer
            .send(Record::to("orders").payload(n.to_string()))
            .await
            .expect("send");
        assert_eq!((delivery.cluster.as_str(), delivery.offset), (WEST, n));
    }
    consul.restart().expect("restart");
    event(&mut events, "discovery back", |event| {
        matches!(event, FleetEvent::DiscoveryBack).then_some(())
    })
    .await;
    let started = Instant::now();
    world.flip(EAST, Some(vec![Some(20)])).await;
    let delivery = loop {
        let delivery = producer
            .send(Record::to("orders").payload("x"))
            .await
            .expect("send");
        if delivery.cluster.as_str() == EAST {
            break delivery;
        }
    };
    println!(
        "consul: first acknowledgement of the new cluster {:?} after the flip",
        started.elapsed()
    );
    assert_eq!(delivery.epoch.0, 2);
}

/// SASL: a wrong password holds the producer, the right one lets it in, and a new one is in use without a new client.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_password_is_taken_up_without_a_new_client() {
    let mut cluster = KafkaCluster::builder(WEST)
        .sasl_plain("app", "right")
        .start()
        .expect("cluster");
    cluster.create_topic("orders", 1, &[]).expect("topic");
    let dir = tempfile::tempdir().expect("folder");
    let secrets = dir.path().join("secrets.toml");
    write_password(&secrets, "wrong");
    let name = ClusterName::new(WEST).expect("name");
    let mut entry = ClusterEntry::new(cluster.sasl_bootstrap().expect("listener"));
    entry.security_protocol = SecurityProtocol::SaslPlaintext;
    entry.secret = Some("kafka/west".to_owned());
    let record = FleetRecord::first(name.clone(), [(name, entry)].into(), "test");
    let options = DiscoveryOptions::file(dir.path());
    let discovery = Discovery::new(options.clone()).expect("discovery");
    let fleet_name = FleetName::new("payments").expect("name");
    write(&discovery, &fleet_name, None, &record).await;

    let fleet = Fleet::builder("payments")
        .discovery(options)
        .secrets(SecretsOptions::file(&secrets))
        .build()
        .await
        .expect("fleet");
    let mut events = fleet.events();
    let producer = fleet.producer().build().await.expect("producer");
    let send = |text: &'static str| producer.send(Record::to("orders").payload(text));
    assert!(
        tokio::time::timeout(Duration::from_secs(3), send("held"))
            .await
            .is_err(),
        "wrong password"
    );

    write_password(&secrets, "right");
    tokio::time::timeout(SOON, send("first"))
        .await
        .expect("in time")
        .expect("sent");

    // New logins are used at the next authentication: the broker's restart makes the client log in again.
    for (password, lets_in) in [("wrong", false), ("right", true)] {
        write_password(&secrets, password);
        event(&mut events, "credentials applied", |event| {
            matches!(event, FleetEvent::CredentialsApplied { .. }).then_some(())
        })
        .await;
        if !lets_in {
            cluster.kill();
            cluster.restart().expect("restart");
            assert!(
                tokio::time::timeout(Duration::from_secs(4), send("held"))
                    .await
                    .is_err(),
                "wrong password"
            );
        }
    }
    tokio::time::timeout(SOON, send("last"))
        .await
        .expect("in time")
        .expect("sent");
    assert_eq!(fleet.snapshot().clients_rebuilt, 0);
    assert_eq!(
        cluster.log_end_offsets("orders").expect("log ends"),
        [4],
        "also the sends that nobody waited for"
    );
}

fn write_password(path: &std::path::Path, password: &str) {
    write_secret(path, "kafka/west", password);
}

pub(crate) fn write_secret(path: &std::path::Path, secret: &str, password: &str) {
    use std::os::unix::fs::OpenOptionsExt;
    let text = format!("[\"{secret}\"]\nusername = \"app\"\npassword = \"{password}\"\n");
    let new = path.with_extension("new");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)
        .expect("open");
    std::io::Write::write_all(&mut file, text.as_bytes()).expect("write");
    std::fs::rename(new, path).expect("rename");
}

/// Flips that are taken back before the clients have moved, at ever other moments.
#[tokio::test(flavor = "multi_thread")]
async fn flips_that_are_taken_back_leave_working_clients() {
    let world = World::start(1).await;
    let fleet = world.connect().await;
    let (producer, mut consumer) = clients(&fleet).await;
    for round in 0..12_u64 {
        world.flip(EAST, Some(vec![Some(0)])).await;
        tokio::time::sleep(Duration::from_millis(round * 4)).await;
        let end = world.west.log_end_offsets("orders").expect("log ends")[0];
        world.flip(WEST, Some(vec![Some(end)])).await;
        let text = format!("round {round}");
        let delivery = loop {
            let sent = producer.send(Record::to("orders").payload(text.clone()));
            let delivery = tokio::time::timeout(SOON, sent)
                .await
                .expect("in time")
                .expect("sent");
            if delivery.cluster.as_str() == WEST {
                break delivery;
            }
        };
        let message = loop {
            let next = tokio::time::timeout(SOON, consumer.next()).await;
            let message = next.expect("in time").expect("open").expect("record");
            consumer.ack(&message).expect("ack");
            if message.cluster().as_str() == WEST && message.offset() == delivery.offset {
                break message;
            }
        };
        assert_eq!(message.payload(), Some(text.as_bytes()));
    }
}
