//! Records that the active cluster had acknowledged and its mirror had not.

use std::time::Duration;

use standfast::{
    Error, FailoverConsumer, Fleet, FleetEvent, Message, MissingOffset, Overflow, Record,
};

use crate::harness::{EAST, SOON, WEST, World, dump, event, mirror, produce_plain, until};

fn record(partition: i32, n: usize) -> Record {
    Record::to("orders")
        .partition(partition)
        .payload(format!("{n:06}"))
}

fn numbers(log: &[(i64, String, String)]) -> Vec<usize> {
    log.iter()
        .map(|(.., payload)| payload.parse().expect("number"))
        .collect()
}

async fn until_kept(fleet: &Fleet, records: u64) {
    until(&format!("{records} records are kept"), || {
        fleet.snapshot().records_kept == records
    })
    .await;
}

/// A planned switchover resends nothing. Then the new active cluster is killed with its mirror behind: what was acknowledged
/// and not mirrored stands on the other one, once, in order, ahead of what was in flight and of new records.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_and_not_mirrored_is_sent_again() {
    let mut world = World::start(2).await;
    let fleet = world.connect().await;
    let mut events = fleet.events();
    let producer = fleet
        .producer()
        .property("linger.ms", "5")
        .build()
        .await
        .expect("producer");
    for n in 0..400 {
        let _answer = producer
            .enqueue(record(n as i32 % 2, n))
            .await
            .expect("room");
    }
    producer.flush(SOON).await.expect("flush");
    until_kept(&fleet, 400).await;
    let (west, east) = (world.west.bootstrap(), world.east.bootstrap());
    for partition in 0..2 {
        mirror(&west, &east, partition, 200);
    }
    // Seen on east, compared, let go.
    until_kept(&fleet, 0).await;
    world.flip(EAST, Some(vec![Some(200); 2])).await;
    event(&mut events, "ready on east", |event| match event {
        FleetEvent::ClientReady { cluster, .. } => (cluster.as_str() == EAST).then_some(()),
        _ => None,
    })
    .await;
    for n in 400..800 {
        let _answer = producer
            .enqueue(record(n as i32 % 2, n))
            .await
            .expect("room");
    }
    producer.flush(SOON).await.expect("flush");
    assert_eq!(fleet.snapshot().records_resent, 0, "clean");

    // West gets a part of it: partition 0 up to 250, partition 1 all.
    mirror(&east, &west, 0, 250);
    mirror(&east, &west, 1, 400);
    until_kept(&fleet, 150).await;
    world.east.kill();
    for n in 800..900 {
        let _answer = producer
            .enqueue(record(n as i32 % 2, n))
            .await
            .expect("room");
    }
    world.flip(WEST, Some(vec![Some(250), Some(400)])).await;
    for n in 900..1_000 {
        let _answer = producer
            .enqueue(record(n as i32 % 2, n))
            .await
            .expect("room");
    }
    let (records, acknowledged) = event(&mut events, "resent", |event| match event {
        FleetEvent::Resent {
            records,
            acknowledged,
            ..
        } => Some((records, acknowledged)),
        _ => None,
    })
    .await;
    println!("{records} sent again, {acknowledged} of them acknowledged before");
    assert_eq!(acknowledged, 150);
    producer.flush(SOON).await.expect("flush");
    for partition in 0..2 {
        let log = dump(&west, "orders", partition);
        let expected: Vec<usize> = (0..1_000).filter(|n| n % 2 == partition as usize).collect();
        assert_eq!(numbers(&log), expected, "partition {partition}");
    }
    let stats = fleet.snapshot();
    assert_eq!(
        (
            stats.records_acknowledged,
            stats.records_unresolved,
            stats.records_unprotected
        ),
        (1_000, 0, 0)
    );
}

/// A log that is long enough and not the same proves nothing. Without a handoff, what was not seen is sent again.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_no_mirror_protects_nothing() {
    let world = World::start(4).await;
    let (west, east) = (world.west.bootstrap(), world.east.bootstrap());
    produce_plain(
        &east,
        "orders",
        0,
        (0..50).map(|n| format!("{:06}", 5_000 + n)),
    );
    let fleet = world.connect().await;
    let mut events = fleet.events();
    let producer = fleet.producer().build().await.expect("producer");
    for n in 0..20 {
        producer
            .send(record(n % 2, n as usize))
            .await
            .expect("sent");
    }
    let reason = event(&mut events, "unproven", |event| match event {
        FleetEvent::StandbyUnproven { reason, .. } => Some(reason),
        _ => None,
    })
    .await;
    assert!(
        reason.contains("partition 0") && reason.contains("mirror"),
        "{reason}"
    );
    mirror(&west, &east, 1, 8);
    until_kept(&fleet, 12).await;

    // The bound, with each of the policies, on a partition of its own.
    let small = |policy| {
        let builder = fleet.producer().replay_bytes(20_000).overflow(policy);
        async move { builder.build().await.expect("producer") }
    };
    let failing = small(Overflow::Fail).await;
    let mut sent = 0;
    let refusal = loop {
        match failing.send(record(2, sent)).await {
            Ok(_) => sent += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refusal, Error::Unprotected { .. }), "{refusal}");
    assert!(sent > 20, "{sent}");
    let blocking = small(Overflow::Block).await;
    let mut last = 0;
    let refusal = loop {
        match blocking.try_send(record(3, last)) {
            Ok(answer) => answer.await.expect("sent"),
            Err(error) => break error,
        };
        last += 1;
    };
    assert!(matches!(refusal, Error::Unprotected { .. }), "{refusal}");
    assert!(last > 20, "{last}");
    let blocked =
        tokio::time::timeout(Duration::from_secs(1), blocking.send(record(3, last))).await;
    assert!(blocked.is_err(), "it waits for room");
    mirror(&west, &east, 3, last as i64);
    let freed = tokio::time::timeout(SOON, blocking.send(record(3, last))).await;
    freed.expect("in time").expect("room again");
    drop((failing, blocking));
    let careless = small(Overflow::Unprotected).await;
    for n in 0..200 {
        careless.send(record(2, n)).await.expect("sent");
    }
    event(&mut events, "unprotected", |event| {
        matches!(event, FleetEvent::Unprotected { .. }).then_some(())
    })
    .await;
    until("they are counted", || {
        fleet.snapshot().records_unprotected > 50
    })
    .await;
    drop(careless);

    world.flip(EAST, None).await;
    let acknowledged = event(&mut events, "resent", |event| match event {
        FleetEvent::Resent { acknowledged, .. } => Some(acknowledged),
        _ => None,
    })
    .await;
    assert_eq!(acknowledged, 12);
    producer.flush(SOON).await.expect("flush");
    let logs = [0, 1].map(|partition| numbers(&dump(&east, "orders", partition)));
    assert_eq!(logs[0][50..], [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]);
    assert_eq!(logs[1], [1, 3, 5, 7, 9, 11, 13, 15, 17, 19]);
}

async fn next(consumer: &mut FailoverConsumer) -> (usize, Message) {
    let message = tokio::time::timeout(SOON, consumer.next()).await;
    let message = message.expect("in time").expect("open").expect("record");
    let text = String::from_utf8_lossy(message.payload().expect("payload")).into_owned();
    (text.parse().expect("number"), message)
}

/// Carries a group's commit over, as group sync does: at most up to `limit`, with its metadata.
fn carry(from: (&str, &str), to: (&str, &str), limit: i64) -> i64 {
    use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
    use rdkafka::{ClientConfig, Offset, TopicPartitionList};
    let client = |(bootstrap, group): (&str, &str)| -> BaseConsumer {
        ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .create()
            .expect("consumer")
    };
    let mut list = TopicPartitionList::new();
    list.add_partition("orders", 0);
    let found = client(from).committed_offsets(list, SOON).expect("offsets");
    let mut entry = found.find_partition("orders", 0).expect("entry");
    let offset = entry.offset().to_raw().expect("offset");
    if offset < 0 {
        // Nothing is committed yet.
        return offset;
    }
    entry
        .set_offset(Offset::Offset(offset.min(limit)))
        .expect("set");
    client(to).commit(&found, CommitMode::Sync).expect("commit");
    offset
}

/// The consumer had read what was never mirrored. It is sent again and left out: by the same consumer, by one that goes on from
/// the offset that was carried over, and by one that goes on from the commit on the new cluster. What the application still
/// had unacknowledged comes again after a restart, and only that.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_again_is_handed_out_once() {
    let mut world = World::start(1).await;
    let (west, east) = (world.west.bootstrap(), world.east.bootstrap());
    let fleet = world.connect().await;
    let subscribe = |group: &str| {
        let builder = fleet
            .consumer(group)
            .commit_interval(Duration::from_millis(100))
            .on_missing_offset(MissingOffset::Earliest);
        async move { builder.subscribe(&["orders"]).await.expect("consumer") }
    };
    let producer = fleet.producer().build().await.expect("producer");
    for n in 0..100 {
        let _answer = producer.enqueue(record(0, n)).await.expect("room");
    }
    producer.flush(SOON).await.expect("flush");
    mirror(&west, &east, 0, 60);
    let mut consumer = subscribe("billing").await;
    let mut open = Vec::new();
    for n in 0..100 {
        let (number, message) = next(&mut consumer).await;
        assert_eq!(number, n);
        if n < 90 {
            consumer.ack(&message).expect("ack");
        } else {
            open.push(message);
        }
    }
    until("a commit of what was acknowledged", || {
        carry((&west, "billing"), (&east, "moved"), 60) == 90
    })
    .await;
    until_kept(&fleet, 40).await;

    world.west.kill();
    world.flip(EAST, Some(vec![Some(60)])).await;
    for n in 100..110 {
        let _answer = producer.enqueue(record(0, n)).await.expect("room");
    }
    producer.flush(SOON).await.expect("flush");
    let log = dump(&east, "orders", 0);
    assert_eq!(numbers(&log), (0..110).collect::<Vec<_>>(), "sent again");
    for n in 100..110 {
        let (number, message) = next(&mut consumer).await;
        assert_eq!((number, message.cluster().as_str()), (n, EAST));
        consumer.ack(&message).expect("ack");
    }
    assert_eq!(fleet.snapshot().records_repeated, 40);
    until("the commit on east waits for what is open", || {
        carry((&east, "billing"), (&east, "restarted"), i64::MAX) == 90
    })
    .await;
    for group in ["moved", "restarted"] {
        let mut other = subscribe(group).await;
        for n in 90..110 {
            assert_eq!(next(&mut other).await.0, n, "{group}");
        }
    }
    for message in &open {
        consumer.ack(message).expect("ack");
    }
    assert_eq!(fleet.snapshot().acks_ignored, 0);
    until("the commit on east", || {
        carry((&east, "billing"), (&east, "later"), i64::MAX) == 110
    })
    .await;
}
