//! The fleet itself: wrong clusters, lost discovery, many flips.

use std::time::Duration;

use standfast::discovery::ClusterName;
use standfast::{FleetEvent, MissingOffset, Record};

use crate::harness::{EAST, SOON, WEST, World, event, until};

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
    assert_eq!((delivery.cluster.as_str(), delivery.offset), (EAST, 0));
}

/// Discovery disappears: the application does not notice.
#[tokio::test(flavor = "multi_thread")]
async fn the_application_works_on_without_discovery() {
    let world = World::start(1).await;
    let fleet = world.connect().await;
    let mut events = fleet.events();
    let producer = fleet.producer().build().await.expect("producer");
    let mut consumer = fleet
        .consumer("billing")
        .on_missing_offset(MissingOffset::Earliest)
        .subscribe(&["orders"])
        .await
        .expect("consumer");
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

/// Twenty flips there and back: threads and memory come back to where they were.
#[tokio::test(flavor = "multi_thread")]
async fn flips_leave_no_threads_behind() {
    const WARM_UP: usize = 4;
    const FLIPS: usize = 20;
    let world = World::start(1).await;
    let fleet = world.connect().await;
    let producer = fleet.producer().build().await.expect("producer");
    let mut consumer = fleet
        .consumer("billing")
        .on_missing_offset(MissingOffset::Earliest)
        .subscribe(&["orders"])
        .await
        .expect("consumer");
    let mut base = (0, 0);
    let mut slowest = Duration::ZERO;
    for flip in 0..WARM_UP + FLIPS {
        let to = [EAST, WEST][flip % 2];
        let end = [&world.east, &world.west][flip % 2]
            .log_end_offsets("orders")
            .expect("log ends")[0];
        let started = std::time::Instant::now();
        world.flip(to, Some(vec![Some(end)])).await;
        let delivery = loop {
            let sent = producer.send(Record::to("orders").payload(flip.to_string()));
            let delivery = tokio::time::timeout(SOON, sent)
                .await
                .expect("in time")
                .expect("sent");
            if delivery.cluster.as_str() == to {
                break delivery;
            }
        };
        slowest = slowest.max(started.elapsed());
        loop {
            let message = tokio::time::timeout(SOON, consumer.next())
                .await
                .expect("in time")
                .expect("open")
                .expect("record");
            consumer.ack(&message).expect("ack");
            if message.cluster().as_str() == to && message.offset() == delivery.offset {
                break;
            }
        }
        if flip + 1 == WARM_UP {
            until("old clients are gone", || {
                fleet.snapshot().clients_retiring == 0
            })
            .await;
            base = usage();
        }
    }
    until("old clients are gone", || {
        fleet.snapshot().clients_retiring == 0
    })
    .await;
    until("threads are gone", || usage().0 <= base.0 + 2).await;
    let (threads, rss) = usage();
    println!(
        "{FLIPS} flips: threads {} -> {threads}, RSS {} -> {rss} KiB, slowest flip to first acknowledgement {slowest:?}",
        base.0, base.1
    );
    assert!(
        rss < base.1 + 20 * 1024,
        "memory grew from {} to {rss} KiB",
        base.1
    );
    assert_eq!(fleet.snapshot().clients_abandoned, 0);
}

/// Threads and resident memory (KiB) of this process.
fn usage() -> (usize, usize) {
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let field = |name: &str| {
        let line = status
            .lines()
            .find(|line| line.starts_with(name))
            .expect("field");
        line.split_whitespace()
            .nth(1)
            .expect("value")
            .parse()
            .expect("number")
    };
    (field("Threads:"), field("VmRSS:"))
}
