//! The consumer across a flip. Mirroring is imitated by writing the same records to both clusters.

use std::time::{Duration, Instant};

use standfast::{FailoverConsumer, FleetEvent, Message, MissingOffset, StartReason};

use crate::harness::{EAST, SOON, WEST, World, event, produce_filler, produce_plain, until};

async fn next(consumer: &mut FailoverConsumer) -> Message {
    tokio::time::timeout(SOON, consumer.next())
        .await
        .expect("in time")
        .expect("open")
        .expect("record")
}

fn payload(message: &Message) -> String {
    String::from_utf8_lossy(message.payload().unwrap_or_default()).into_owned()
}

fn numbers(range: std::ops::Range<i32>) -> impl Iterator<Item = String> {
    range.map(|n| n.to_string())
}

/// The consumer has read to offset 60 of 100 mirrored records. It goes on at 60, exactly.
#[tokio::test(flavor = "multi_thread")]
async fn reading_goes_on_at_the_own_position() {
    let mut world = World::start(1).await;
    for cluster in [&world.west, &world.east] {
        produce_plain(&cluster.bootstrap(), "orders", 0, numbers(0..100));
    }
    let fleet = world.connect().await;
    let mut consumer = fleet
        .consumer("billing")
        .on_missing_offset(MissingOffset::Earliest)
        .subscribe(&["orders"])
        .await
        .expect("consumer");
    let mut unacknowledged = Vec::new();
    for n in 0..60 {
        let message = next(&mut consumer).await;
        assert_eq!(message.offset(), n);
        if n < 50 {
            consumer.ack(&message).expect("ack");
        } else {
            unacknowledged.push(message);
        }
    }
    until("a commit", || fleet.snapshot().commits > 0).await;

    world.west.kill();
    let mut events = fleet.events();
    let flipped = Instant::now();
    world.flip(EAST, Some(vec![Some(100)])).await;
    // Before that, what was read ahead from west may still come: below the handoff it is the same.
    event(&mut events, "ready on east", |event| match event {
        FleetEvent::ClientReady { cluster, .. } if cluster.as_str() == EAST => Some(()),
        _ => None,
    })
    .await;
    let first = next(&mut consumer).await;
    assert_eq!(first.cluster().as_str(), EAST);
    println!(
        "killed: first record of the new cluster {:?} after the flip",
        flipped.elapsed()
    );
    assert_eq!((first.offset(), payload(&first)), (60, "60".to_owned()));
    consumer.ack(&first).expect("ack");
    for n in 61..100 {
        let message = next(&mut consumer).await;
        assert_eq!(
            (
                message.offset(),
                payload(&message),
                message.cluster().as_str()
            ),
            (n, n.to_string(), EAST)
        );
        consumer.ack(&message).expect("ack");
    }
    // Acknowledgements of mirrored records from the old cluster count: the group's offset on east moves past them.
    let bootstrap = world.east.bootstrap();
    until("a commit of the oldest unacknowledged record", || {
        committed(&bootstrap) == Some(50)
    })
    .await;
    for message in &unacknowledged {
        consumer.ack(message).expect("ack");
    }
    until("the commit on east", || committed(&bootstrap) == Some(100)).await;
    assert_eq!(fleet.snapshot().acks_ignored, 0);
}

/// Filler of the link is not shown, but for who asks; the group's offset goes past it, also where nothing follows.
#[tokio::test(flavor = "multi_thread")]
async fn filler_is_not_shown() {
    let world = World::start(1).await;
    let bootstrap = world.west.bootstrap();
    produce_filler(&bootstrap, "orders", 0, 3);
    produce_plain(&bootstrap, "orders", 0, numbers(3..5));
    produce_filler(&bootstrap, "orders", 0, 2);
    let fleet = world.connect().await;
    let subscribe = |group: &str, show: bool| {
        fleet
            .consumer(group)
            .on_missing_offset(MissingOffset::Earliest)
            .show_filler(show)
    };
    let mut consumer = subscribe("billing", false)
        .subscribe(&["orders"])
        .await
        .expect("consumer");
    for n in 3..5 {
        let message = next(&mut consumer).await;
        assert_eq!((message.offset(), payload(&message)), (n, n.to_string()));
        consumer.ack(&message).expect("ack");
    }
    // The filler at the end is passed while the application waits for the next record.
    tokio::select! {
        message = consumer.next() => panic!("filler was shown: {message:?}"),
        () = until("a commit past the filler", || committed(&bootstrap) == Some(7)) => {}
    }
    assert_eq!(fleet.snapshot().filler_hidden, 5);

    let mut curious = subscribe("audit", true)
        .subscribe(&["orders"])
        .await
        .expect("consumer");
    for n in 0..7 {
        let message = next(&mut curious).await;
        assert_eq!(
            (message.offset(), message.is_filler()),
            (n, !(3..5).contains(&n))
        );
    }
}

/// The consumer has read further than the mirror: it goes back to the handoff and reads what the new cluster has there.
#[tokio::test(flavor = "multi_thread")]
async fn reading_goes_back_to_the_handoff() {
    let world = World::start(1).await;
    produce_plain(&world.west.bootstrap(), "orders", 0, numbers(0..100));
    produce_plain(&world.east.bootstrap(), "orders", 0, numbers(0..80));
    let fleet = world.connect().await;
    let mut consumer = fleet
        .consumer("billing")
        .on_missing_offset(MissingOffset::Earliest)
        .subscribe(&["orders"])
        .await
        .expect("consumer");
    let mut last = None;
    for _ in 0..100 {
        last = Some(next(&mut consumer).await);
    }
    let lost = last.expect("record 99, never mirrored");
    world.west.pause();
    let mut events = fleet.events();
    let flipped = Instant::now();
    world.flip(EAST, Some(vec![Some(80)])).await;
    let (offset, reason) = event(&mut events, "started", |event| match event {
        FleetEvent::PartitionStarted { offset, reason, .. } => Some((offset, reason)),
        _ => None,
    })
    .await;
    let took = flipped.elapsed();
    println!("frozen: partition assigned on the new cluster {took:?} after the flip");
    assert_eq!((offset, reason), (80, StartReason::Handoff));
    assert!(took < Duration::from_secs(5), "{took:?}");
    // Taken down in the background, with the cluster still frozen.
    let took = event(&mut events, "retired", |event| match event {
        FleetEvent::ClientRetired { cluster, took, .. } if cluster.as_str() == WEST => Some(took),
        _ => None,
    })
    .await;
    println!("frozen: old client gone after {took:?}");
    // 5 s in which it stays, 12 s in which it tries to leave its group, the session's 10 s if a commit still waits then; and some
    // for a busy machine.
    assert!(took < Duration::from_secs(35), "{took:?}");
    // An acknowledgement of a record that east does not have must not move the group there.
    consumer.ack(&lost).expect("ack");
    assert_eq!(fleet.snapshot().acks_ignored, 1);

    produce_plain(
        &world.east.bootstrap(),
        "orders",
        0,
        (0..5).map(|n| format!("new-{n}")),
    );
    for n in 0..5 {
        let message = next(&mut consumer).await;
        assert_eq!(
            (message.offset(), payload(&message)),
            (80 + n, format!("new-{n}"))
        );
    }
    world.west.resume();
}

/// No handoff at all, so nothing is known about the new cluster's log: the group's committed offset there decides.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_handoff_the_committed_offset_decides() {
    let world = World::start(1).await;
    produce_plain(&world.west.bootstrap(), "orders", 0, numbers(0..10));
    produce_plain(&world.east.bootstrap(), "orders", 0, numbers(0..20));
    let fleet = world.connect().await;
    let mut consumer = fleet
        .consumer("billing")
        .on_missing_offset(MissingOffset::Earliest)
        .subscribe(&["orders"])
        .await
        .expect("consumer");
    let mut kept = Vec::new();
    for _ in 0..10 {
        kept.push(next(&mut consumer).await);
    }
    commit(&world.east.bootstrap(), 7);
    let mut events = fleet.events();
    world.flip(EAST, None).await;
    let started = event(&mut events, "started", |event| match event {
        FleetEvent::PartitionStarted { offset, reason, .. } => Some((offset, reason)),
        _ => None,
    })
    .await;
    assert_eq!(started, (7, StartReason::Committed));
    let message = next(&mut consumer).await;
    assert_eq!((message.offset(), message.cluster().as_str()), (7, EAST));
    consumer.ack(&message).expect("ack");
    let bootstrap = world.east.bootstrap();
    until("the commit on east", || committed(&bootstrap) == Some(8)).await;
    consumer.ack(&kept[9]).expect("ack");
    assert_eq!(fleet.snapshot().acks_ignored, 1, "a record of another log");
}

/// A group without offsets is held, not started anywhere, until its offsets arrive.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_without_an_offset_is_held_until_it_arrives() {
    let world = World::start(1).await;
    produce_plain(&world.west.bootstrap(), "orders", 0, numbers(0..10));
    let fleet = world.connect().await;
    let mut events = fleet.events();
    let mut consumer = fleet
        .consumer("billing")
        .subscribe(&["orders"])
        .await
        .expect("consumer");
    let reason = event(&mut events, "held", |event| match event {
        FleetEvent::PartitionHeld { reason, .. } => Some(reason),
        _ => None,
    })
    .await;
    assert!(
        reason.contains("no committed offset") && reason.contains("on_missing_offset"),
        "{reason}"
    );
    assert!(
        tokio::time::timeout(Duration::from_secs(1), consumer.next())
            .await
            .is_err(),
        "nothing is read"
    );

    commit(&world.west.bootstrap(), 4);
    assert_eq!(next(&mut consumer).await.offset(), 4);
}

/// Records read ahead are bounded, and a slow application stays in the group.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_application_gets_every_record_once() {
    let world = World::start(2).await;
    for partition in 0..2 {
        produce_plain(
            &world.west.bootstrap(),
            "orders",
            partition,
            numbers(0..3_000),
        );
    }
    let fleet = world.connect().await;
    let mut consumer = fleet
        .consumer("billing")
        .on_missing_offset(MissingOffset::Earliest)
        .read_ahead(100, 1 << 20)
        .subscribe(&["orders"])
        .await
        .expect("consumer");
    let mut seen = [0, 0];
    for n in 0..6_000 {
        let message = next(&mut consumer).await;
        let partition = message.partition() as usize;
        assert_eq!(message.offset(), seen[partition]);
        seen[partition] += 1;
        consumer.ack(&message).expect("ack");
        if n % 2_000 == 500 {
            // Long enough for the partitions to be paused.
            tokio::time::sleep(Duration::from_millis(1_200)).await;
        }
    }
    consumer.close().await;
    let mut consumer = fleet
        .consumer("billing")
        .subscribe(&["orders"])
        .await
        .expect("consumer");
    produce_plain(
        &world.west.bootstrap(),
        "orders",
        1,
        std::iter::once("last".to_owned()),
    );
    let message = next(&mut consumer).await;
    assert_eq!(
        (message.offset(), payload(&message)),
        (3_000, "last".to_owned()),
        "close() committed"
    );
}

fn plain_group(bootstrap: &str) -> rdkafka::consumer::BaseConsumer {
    rdkafka::ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "billing")
        .set("enable.auto.commit", "false")
        .create()
        .expect("consumer")
}

fn orders_0() -> rdkafka::TopicPartitionList {
    let mut list = rdkafka::TopicPartitionList::new();
    list.add_partition("orders", 0);
    list
}

fn committed(bootstrap: &str) -> Option<i64> {
    use rdkafka::consumer::Consumer;
    let answer = plain_group(bootstrap)
        .committed_offsets(orders_0(), SOON)
        .expect("answer");
    answer.elements()[0]
        .offset()
        .to_raw()
        .filter(|offset| *offset >= 0)
}

/// Commits as the agent's group sync does: for a group whose only member is not there yet.
fn commit(bootstrap: &str, offset: i64) {
    use rdkafka::consumer::Consumer;
    let consumer = plain_group(bootstrap);
    let mut list = orders_0();
    list.set_partition_offset("orders", 0, rdkafka::Offset::Offset(offset))
        .expect("offset");
    consumer
        .commit(&list, rdkafka::consumer::CommitMode::Sync)
        .expect("commit");
}

/// Two members share four partitions, with the eager and the cooperative protocol, and go there, back and there again. Which of them gets a partition is chance at each
/// flip, and the new cluster has no offsets of the group, or old ones. All records are seen, once.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_of_two_moves_without_a_gap_and_repeats_nothing() {
    for strategy in ["range", "cooperative-sticky"] {
        let mut world = World::start(4).await;
        let both_get = |world: &World, range: std::ops::Range<i32>| {
            for cluster in [&world.west, &world.east] {
                for partition in 0..4 {
                    let bootstrap = cluster.bootstrap();
                    produce_plain(&bootstrap, "orders", partition, numbers(range.clone()));
                }
            }
        };
        both_get(&world, 0..200);
        let fleet = world.connect().await;
        let (sender, mut seen) = tokio::sync::mpsc::unbounded_channel();
        let mut readers = Vec::new();
        for _ in 0..2 {
            let mut consumer = fleet
                .consumer("billing")
                .property("partition.assignment.strategy", strategy)
                .commit_interval(Duration::from_millis(100))
                .on_missing_offset(MissingOffset::Earliest)
                .subscribe(&["orders"])
                .await
                .expect("consumer");
            let sender = sender.clone();
            readers.push(tokio::spawn(async move {
                while let Some(message) = consumer.next().await {
                    let message = message.expect("record");
                    consumer.ack(&message).expect("ack");
                    let _ = sender.send((message.partition(), message.offset()));
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }));
        }
        let mut counts = std::collections::BTreeMap::<(i32, i64), usize>::new();
        let mut read = async |until: usize| {
            while counts.len() < until {
                let record = tokio::time::timeout(SOON, seen.recv()).await;
                let record = record.expect("in time").expect("open");
                *counts.entry(record).or_default() += 1;
            }
            counts.clone()
        };
        // In the middle of what there is, each time.
        for (turn, to) in [EAST, WEST, EAST].into_iter().enumerate() {
            let there = 200 + 50 * turn;
            read(4 * there - 500).await;
            if turn == 2 {
                world.west.kill();
            }
            world.flip(to, Some(vec![Some(there as i64); 4])).await;
            if turn < 2 {
                both_get(&world, there as i32..there as i32 + 50);
            }
        }
        let counts = read(1_200).await;
        for reader in readers {
            reader.abort();
        }
        let repeated: Vec<_> = counts.iter().filter(|(_, n)| **n > 1).collect();
        assert!(
            repeated.is_empty() && counts.keys().all(|(_, offset)| *offset < 300),
            "{strategy}: {} records came again: {:?}",
            repeated.len(),
            &repeated[..repeated.len().min(10)]
        );
    }
}

/// The flip comes later than the end of the session with the lost cluster, and the new one has no offsets of the group.
#[tokio::test(flavor = "multi_thread")]
async fn the_own_position_outlasts_the_session() {
    let mut world = World::start(2).await;
    for cluster in [&world.west, &world.east] {
        for partition in 0..2 {
            produce_plain(&cluster.bootstrap(), "orders", partition, numbers(0..50));
        }
    }
    let fleet = world.connect().await;
    let mut consumer = fleet
        .consumer("billing")
        .property("session.timeout.ms", "6000")
        .on_missing_offset(MissingOffset::Earliest)
        .subscribe(&["orders"])
        .await
        .expect("consumer");
    for _ in 0..100 {
        let message = next(&mut consumer).await;
        consumer.ack(&message).expect("ack");
    }
    world.west.kill();
    until("the session is over", || consumer.assignment().is_empty()).await;
    world.flip(EAST, Some(vec![Some(50); 2])).await;
    for partition in 0..2 {
        produce_plain(
            &world.east.bootstrap(),
            "orders",
            partition,
            numbers(50..51),
        );
    }
    for _ in 0..2 {
        assert_eq!(next(&mut consumer).await.offset(), 50);
    }
}
