//! The producer across a flip.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use standfast::discovery::FleetState;
use standfast::{FleetEvent, Record};

use crate::harness::{EAST, SOON, WEST, World, dump, event, until};

const KEYS: usize = 20;

fn record(n: usize) -> Record {
    Record::to("orders")
        .key(format!("key-{}", n % KEYS))
        .payload(format!("{n:06}"))
}

/// West is killed while sends are in flight, with no mirror at all: all resolve, and on east all stand once and in order per key,
/// also those that west had acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn all_sends_resolve_in_order_when_the_active_cluster_is_killed() {
    let mut world = World::start(4).await;
    let fleet = world.connect().await;
    let producer = fleet
        .producer()
        .property("linger.ms", "5")
        .build()
        .await
        .expect("producer");
    let mut events = fleet.events();

    let mut sent = Vec::new();
    for n in 0..2_000 {
        sent.push(producer.enqueue(record(n)).await.expect("room"));
    }
    producer.flush(SOON).await.expect("flush");
    for n in 2_000..12_000 {
        sent.push(producer.enqueue(record(n)).await.expect("room"));
        if n == 4_000 {
            world.west.kill();
        }
    }
    assert!(producer.unresolved() > 0, "sends must be in flight");
    let flipped = Instant::now();
    world.flip(EAST, None).await;
    let after = event(&mut events, "ready on east", |event| match event {
        FleetEvent::ClientReady { cluster, after, .. } if cluster.as_str() == EAST => Some(after),
        _ => None,
    })
    .await;
    for n in 12_000..13_000 {
        sent.push(producer.enqueue(record(n)).await.expect("room"));
    }

    let mut by_cluster = BTreeMap::new();
    let mut on_east = BTreeMap::<i32, Vec<(i64, usize)>>::new();
    for (n, answer) in sent.into_iter().enumerate() {
        let delivery = tokio::time::timeout(SOON, answer)
            .await
            .expect("in time")
            .expect("acknowledged");
        *by_cluster.entry(delivery.cluster.to_string()).or_insert(0) += 1;
        if delivery.cluster.as_str() == EAST {
            assert_eq!(delivery.epoch.0, 2);
            on_east
                .entry(delivery.partition)
                .or_default()
                .push((delivery.offset, n));
        }
    }
    println!(
        "killed: client ready {after:?} after the flip, all resolved after {:?}: {by_cluster:?}",
        flipped.elapsed()
    );
    assert!(
        by_cluster[WEST] >= 2_000 && by_cluster[EAST] >= 1_000,
        "{by_cluster:?}"
    );
    assert!(after < Duration::from_secs(2), "the flip took {after:?}");
    let stats = fleet.snapshot();
    assert!(stats.records_resent > 0, "{stats:?}");
    assert_eq!(
        (
            stats.records_sent,
            stats.records_acknowledged,
            stats.records_unresolved
        ),
        (13_000, 13_000, 0)
    );

    let mut total = 0;
    for (partition, acknowledged) in on_east {
        let log = dump(&world.east.bootstrap(), "orders", partition);
        let payloads: Vec<usize> = log
            .iter()
            .map(|(.., payload)| payload.parse().expect("number"))
            .collect();
        assert!(
            payloads.is_sorted_by(|before, after| before < after),
            "partition {partition} is out of order"
        );
        total += payloads.len();
        for (offset, n) in acknowledged {
            assert_eq!(payloads[offset as usize], n, "acknowledged at its offset");
        }
    }
    assert_eq!(total, 13_000, "each record once");
}

/// A frozen cluster neither answers nor closes its connections. The flip must not notice.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_cluster_does_not_delay_the_flip() {
    let world = World::start(1).await;
    let fleet = world.connect().await;
    let producer = fleet.producer().build().await.expect("producer");
    producer.send(record(0)).await.expect("first");

    world.west.pause();
    let waiting = producer.try_send(record(1)).expect("room");
    let flipped = Instant::now();
    world.flip(EAST, None).await;
    let delivery = tokio::time::timeout(SOON, waiting)
        .await
        .expect("in time")
        .expect("acknowledged");
    let took = flipped.elapsed();
    println!("frozen: first acknowledgement of the new cluster {took:?} after the flip");
    assert_eq!(delivery.cluster.as_str(), EAST);
    assert!(took < Duration::from_secs(2), "{took:?}");
    world.west.resume();
}

/// Fenced: sends wait, what is in flight is finished on the old cluster. After the switch they go to the new one.
#[tokio::test(flavor = "multi_thread")]
async fn a_fence_holds_sends_and_the_flip_releases_them() {
    let world = World::start(1).await;
    let fleet = world.connect().await;
    let producer = fleet.producer().build().await.expect("producer");
    let mut events = fleet.events();
    producer.send(record(0)).await.expect("first");

    world.change(WEST, FleetState::Fenced, None).await;
    event(&mut events, "fenced", |event| {
        matches!(
            event,
            FleetEvent::StateChanged {
                state: FleetState::Fenced,
                ..
            }
        )
        .then_some(())
    })
    .await;
    until("the producer is fenced", || {
        fleet
            .view()
            .record
            .is_some_and(|r| r.state == FleetState::Fenced)
    })
    .await;
    // The driver follows the event by one scheduling step; a send before that is simply in flight.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let held: Vec<_> = (1..=50)
        .map(|n| producer.try_send(record(n)).expect("room"))
        .collect();
    let flush = producer.flush(Duration::from_millis(500)).await;
    assert!(
        flush.is_err() && producer.unresolved() == 50,
        "held: {flush:?}"
    );
    assert_eq!(
        dump(&world.west.bootstrap(), "orders", 0).len(),
        1,
        "nothing reaches the fenced cluster"
    );

    world.flip(EAST, Some(vec![Some(1)])).await;
    for held in held {
        let delivery = tokio::time::timeout(SOON, held)
            .await
            .expect("in time")
            .expect("acknowledged");
        assert_eq!(delivery.cluster.as_str(), EAST);
    }
    assert_eq!(dump(&world.east.bootstrap(), "orders", 0).len(), 50);
    assert_eq!(
        fleet.snapshot().records_resent,
        0,
        "a planned switchover resends nothing"
    );
}

/// More topics than a client keeps at hand, in turns: each record gets to its own, and its answer says so.
#[tokio::test(flavor = "multi_thread")]
async fn one_producer_sends_to_many_topics() {
    const TOPICS: usize = 100;
    let world = World::start(1).await;
    let name = |n: usize| format!("many-{n}");
    for n in 0..TOPICS {
        world.west.create_topic(&name(n), 1, &[]).expect("topic");
    }
    let fleet = world.connect().await;
    let producer = fleet.producer().build().await.expect("producer");
    let mut answers = Vec::new();
    for round in 0..3 {
        for n in 0..TOPICS {
            let record = Record::to(name(n)).payload(format!("{round} of {n}"));
            answers.push((n, round, producer.enqueue(record).await.expect("room")));
        }
    }
    for (n, round, answer) in answers {
        let delivery = tokio::time::timeout(SOON, answer).await.expect("in time");
        let delivery = delivery.expect("acknowledged");
        let (topic, offset) = (delivery.topic.to_string(), delivery.offset);
        assert_eq!((topic, offset), (name(n), round));
        assert_eq!(delivery.cluster.as_str(), WEST);
    }
    for n in [0, TOPICS - 1] {
        let there = dump(&world.west.bootstrap(), &name(n), 0);
        let payloads: Vec<_> = there.into_iter().map(|(_, _, payload)| payload).collect();
        assert_eq!(payloads, [0, 1, 2].map(|round| format!("{round} of {n}")));
    }
}

/// A fence that is lifted again without a switch.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_for_a_missing_topic_fails_alone() {
    let world = World::start(1).await;
    let fleet = world.connect().await;
    let producer = fleet
        .producer()
        .property("topic.metadata.propagation.max.ms", "500")
        .build()
        .await
        .expect("producer");
    let bad = producer
        .enqueue(Record::to("no-such-topic").payload("x"))
        .await
        .expect("room");
    let good = producer.enqueue(record(1)).await.expect("room");
    assert!(
        tokio::time::timeout(SOON, good)
            .await
            .expect("in time")
            .is_ok()
    );
    let error = tokio::time::timeout(SOON, bad)
        .await
        .expect("in time")
        .expect_err("no such topic");
    assert!(error.to_string().contains("no-such-topic"), "{error}");

    world.change(WEST, FleetState::Fenced, None).await;
    world.change(WEST, FleetState::Active, None).await;
    producer.send(record(2)).await.expect("after the fence");
}
