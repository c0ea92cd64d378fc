//! What an application tells its consumer holds across a flip: pauses, seeks, commits by hand, patterns. All cases share two
//! clusters and one flip, with the old cluster frozen.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{Offset, TopicPartitionList};
use standfast::{
    ConsumerBuilder, Error, FailoverConsumer, Fleet, FleetEvent, Message, MissingOffset,
    RebalanceEvent, Record, SeekTo, TopicPartition,
};
use tokio::sync::Barrier;

use crate::harness::{EAST, SOON, WEST, World, event, mirror, produce_plain};

/// Records per partition before the flip. All carry the wrapper's id.
const RECORDS: i64 = 300;

/// Records with this offset and later ones have this time or a later one.
const LATER: i64 = 200;
const LATER_MS: i64 = 1_700_000_000_000;

/// The moments at which all cases stand.
struct Gate {
    ready: Barrier,
    frozen: Barrier,
    flipped: Barrier,
}

const CASES: usize = 6;

#[tokio::test(flavor = "multi_thread")]
async fn what_the_application_says_holds_across_a_flip() {
    let world = World::start(2).await;
    let gate = &Gate {
        ready: Barrier::new(CASES + 1),
        frozen: Barrier::new(CASES + 1),
        flipped: Barrier::new(CASES + 1),
    };
    produce(&world).await;
    let lead = async {
        gate.ready.wait().await;
        world.west.pause();
        gate.frozen.wait().await;
        world.flip(EAST, Some(vec![Some(RECORDS); 2])).await;
        for partition in 0..2 {
            let new = (0..10).map(|n| format!("new-{n}"));
            produce_plain(&world.east.bootstrap(), "orders", partition, new);
        }
        gate.flipped.wait().await;
    };
    tokio::join!(
        lead,
        pauses(&world, gate),
        seeks(&world, gate),
        seeks_at_any_moment(&world, gate),
        commits_by_hand(&world, gate),
        patterns(&world, gate),
        named_topics_and_batches(&world, gate),
    );
    world.west.resume();
}

async fn produce(world: &World) {
    let fleet = world.connect().await;
    let producer = fleet.producer().build().await.expect("producer");
    let mut sent = Vec::new();
    for offset in 0..RECORDS {
        for partition in 0..2 {
            let time = LATER_MS + i64::from(offset >= LATER) - 1;
            let record = Record::to("orders").partition(partition).timestamp_ms(time);
            let record = record.payload(offset.to_string());
            sent.push(producer.try_send(record).expect("room"));
        }
    }
    for sent in sent {
        sent.await.expect("sent");
    }
    for partition in 0..2 {
        let (west, east) = (world.west.bootstrap(), world.east.bootstrap());
        mirror(&west, &east, partition, RECORDS);
    }
}

async fn subscribe(
    fleet: &Fleet,
    group: &str,
    build: impl FnOnce(ConsumerBuilder) -> ConsumerBuilder,
) -> FailoverConsumer {
    let builder = fleet
        .consumer(group)
        .commit_interval(Duration::from_millis(100))
        .on_missing_offset(MissingOffset::Earliest);
    build(builder)
        .subscribe(&["orders"])
        .await
        .expect("consumer")
}

async fn next(consumer: &mut FailoverConsumer) -> Message {
    let next = tokio::time::timeout(SOON, consumer.next()).await;
    next.expect("in time").expect("open").expect("record")
}

/// The next record of a partition; those of others are acknowledged.
async fn next_of(consumer: &mut FailoverConsumer, partition: i32) -> Message {
    loop {
        let message = next(consumer).await;
        if message.partition() == partition {
            return message;
        }
        consumer.ack(&message).expect("ack");
    }
}

async fn nothing_for(consumer: &mut FailoverConsumer, time: Duration) {
    if let Ok(message) = tokio::time::timeout(time, consumer.next()).await {
        panic!("handed out: {message:?}");
    }
}

async fn committed(consumer: &FailoverConsumer, partition: i32, wanted: Option<i64>) {
    let deadline = tokio::time::Instant::now() + SOON;
    loop {
        let found = consumer.committed("orders", partition).await;
        if matches!(found, Ok(found) if found == wanted) {
            return;
        }
        let late = tokio::time::Instant::now() > deadline;
        assert!(!late, "{partition}: {found:?}, wanted {wanted:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn orders(partition: i32) -> [TopicPartition; 1] {
    [TopicPartition::new("orders", partition)]
}

/// Nothing of a paused partition comes, also not what was read ahead, and the other one goes on; over the consumer's own pauses and a flip.
async fn pauses(world: &World, gate: &Gate) {
    let fleet = world.connect().await;
    let told = Arc::new(Mutex::new(Vec::new()));
    let listener = Arc::clone(&told);
    let mut consumer = subscribe(&fleet, "pauses", |builder| {
        builder
            .read_ahead(60, 1 << 20)
            .on_rebalance(move |_, event| listener.lock().expect("told").push(event.clone()))
    })
    .await;
    // Whichever comes first is paused.
    let mut at = [0, 0];
    let (held, free) = loop {
        let message = next(&mut consumer).await;
        let partition = message.partition() as usize;
        assert_eq!(message.offset(), at[partition]);
        at[partition] += 1;
        consumer.ack(&message).expect("ack");
        if at[partition] == 5 {
            break (message.partition(), 1 - message.partition());
        }
    };
    let (of_held, of_free) = (held as usize, free as usize);
    consumer.pause(&orders(held)).expect("pause");
    assert_eq!(consumer.paused(), orders(held));
    assert_eq!(consumer.position("orders", held), Some(5));
    while at[of_free] < RECORDS - 100 {
        let message = next(&mut consumer).await;
        assert_eq!((message.partition(), message.offset()), (free, at[of_free]));
        at[of_free] += 1;
        consumer.ack(&message).expect("ack");
        if at[of_free] % 50 == 0 {
            // So slow that the consumer pauses by itself, and goes on by itself.
            tokio::time::sleep(Duration::from_millis(800)).await;
        }
    }
    // Resumed and paused again while it reads ahead: nothing is left out or comes twice.
    for _ in 0..3 {
        consumer.resume(&orders(held)).expect("resume");
        let message = next_of(&mut consumer, held).await;
        assert_eq!(message.offset(), at[of_held]);
        at[of_held] += 1;
        consumer.ack(&message).expect("ack");
        consumer.pause(&orders(held)).expect("pause");
    }
    at[of_free] = consumer.position("orders", free).expect("position");

    gate.ready.wait().await;
    gate.frozen.wait().await;
    gate.flipped.wait().await;
    while at[of_free] < RECORDS + 10 {
        let message = next(&mut consumer).await;
        assert_eq!((message.partition(), message.offset()), (free, at[of_free]));
        at[of_free] += 1;
    }
    nothing_for(&mut consumer, Duration::from_millis(300)).await;
    consumer.resume(&orders(held)).expect("resume");
    while at[of_held] < RECORDS + 10 {
        let message = next(&mut consumer).await;
        assert_eq!((message.partition(), message.offset()), (held, at[of_held]));
        assert_eq!(message.cluster().as_str(), EAST);
        at[of_held] += 1;
    }
    // The flip has changed nothing for the application, so nothing was told.
    assert_eq!(consumer.assignment(), [orders(0), orders(1)].concat());
    let assigned = RebalanceEvent::Assigned(consumer.assignment());
    let revoked = RebalanceEvent::Revoked(consumer.assignment());
    assert_eq!(told.lock().expect("told").len(), 1);
    consumer.close().await;
    assert_eq!(*told.lock().expect("told"), [assigned, revoked]);
}

/// Seeks to everywhere, also back over records that are known by their ids, and one right before the flip.
async fn seeks(world: &World, gate: &Gate) {
    let fleet = world.connect().await;
    let mut consumer = subscribe(&fleet, "seeks", |builder| {
        builder.on_rebalance(|consumer, event| {
            if let RebalanceEvent::Assigned(_) = event {
                consumer
                    .seek("orders", 0, SeekTo::Offset(40))
                    .expect("assigned");
            }
        })
    })
    .await;
    let error = consumer
        .seek("other", 0, SeekTo::End)
        .expect_err("not assigned");
    assert!(matches!(error, Error::NotAssigned { .. }), "{error}");
    assert!(consumer.seek("orders", 0, SeekTo::Offset(-1)).is_err());
    let mut old = Vec::new();
    for offset in 40..100 {
        let message = next_of(&mut consumer, 0).await;
        assert_eq!(message.offset(), offset);
        old.push(message);
    }
    committed(&consumer, 0, Some(40)).await;
    consumer
        .seek("orders", 0, SeekTo::Offset(10))
        .expect("seek");
    assert_eq!(consumer.position("orders", 0), Some(10));
    // From before the seek: they do not count any more.
    consumer.ack_batch(&old).expect("ack");
    assert_eq!(fleet.snapshot().acks_ignored, 60);
    committed(&consumer, 0, Some(10)).await;
    for offset in 10..20 {
        assert_eq!(next_of(&mut consumer, 0).await.offset(), offset);
    }
    for (to, first) in [
        (SeekTo::Timestamp(LATER_MS), LATER),
        (SeekTo::Beginning, 0),
        (SeekTo::Offset(RECORDS - 1), RECORDS - 1),
        (SeekTo::Timestamp(LATER_MS - 1), 0),
    ] {
        consumer.seek("orders", 0, to).expect("seek");
        for offset in first..(first + 5).min(RECORDS) {
            let message = next_of(&mut consumer, 0).await;
            assert_eq!(message.offset(), offset, "{to:?}");
            consumer.ack(&message).expect("ack");
        }
    }
    // The log does not have it: by policy.
    consumer
        .seek("orders", 0, SeekTo::Offset(1_000_000))
        .expect("seek");
    assert_eq!(next_of(&mut consumer, 0).await.offset(), 0);
    // While it is paused, and the client knows that or not.
    for (offset, pause) in [(77, 0), (33, 300)] {
        consumer.pause(&orders(0)).expect("pause");
        tokio::time::sleep(Duration::from_millis(pause)).await;
        let to = SeekTo::Offset(offset);
        consumer.seek("orders", 0, to).expect("seek");
        tokio::time::sleep(Duration::from_millis(pause)).await;
        consumer.resume(&orders(0)).expect("resume");
        assert_eq!(next_of(&mut consumer, 0).await.offset(), offset);
    }
    // The group's offset is far ahead, on both clusters, when the consumer goes back.
    consumer
        .seek("orders", 0, SeekTo::Offset(250))
        .expect("seek");
    consumer.commit().await.expect("commit");
    committed(&consumer, 0, Some(250)).await;
    for offset in 250..280 {
        let message = next_of(&mut consumer, 0).await;
        assert_eq!(message.offset(), offset);
        consumer.ack(&message).expect("ack");
    }
    consumer.commit().await.expect("commit");
    // With what is known of repetitions, as the agent carries it over.
    carry_over(&world.west.bootstrap(), &world.east.bootstrap(), "seeks");
    gate.ready.wait().await;
    gate.frozen.wait().await;
    consumer
        .seek("orders", 0, SeekTo::Offset(42))
        .expect("seek");
    gate.flipped.wait().await;
    for offset in 42..RECORDS {
        let message = next_of(&mut consumer, 0).await;
        assert_eq!(message.offset(), offset);
        consumer.ack(&message).expect("ack");
    }
    committed(&consumer, 0, Some(RECORDS)).await;
    consumer.seek("orders", 0, SeekTo::End).expect("seek");
    let deadline = tokio::time::Instant::now() + SOON;
    while consumer.position("orders", 0).is_none() {
        assert!(tokio::time::Instant::now() < deadline, "no position");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(consumer.position("orders", 0), Some(RECORDS + 10));
    committed(&consumer, 0, Some(RECORDS + 10)).await;
}

/// One seek after another while the consumer moves: what comes is always where the last one led.
async fn seeks_at_any_moment(world: &World, gate: &Gate) {
    let fleet = world.connect().await;
    let mut consumer = subscribe(&fleet, "moments", |builder| builder).await;
    next_of(&mut consumer, 0).await;
    hop(&mut consumer, WEST, 20).await;
    gate.ready.wait().await;
    gate.frozen.wait().await;
    hop(&mut consumer, EAST, 20).await;
    gate.flipped.wait().await;
}

/// Seeks until so many seeks have led to a record of the cluster.
async fn hop(consumer: &mut FailoverConsumer, cluster: &str, mut times: u32) {
    for offset in (0..RECORDS).cycle() {
        let to = SeekTo::Offset(offset);
        consumer.seek("orders", 0, to).expect("assigned");
        assert_eq!(consumer.position("orders", 0).unwrap_or(offset), offset);
        let patience = Duration::from_millis(1 + offset as u64 % 120);
        let next = tokio::time::timeout(patience, next_of(consumer, 0));
        let Ok(message) = next.await else { continue };
        assert_eq!(message.offset(), offset);
        times -= u32::from(message.cluster().as_str() == cluster);
        if times == 0 {
            return;
        }
    }
}

fn plain(bootstrap: &str, group: &str) -> BaseConsumer {
    rdkafka::ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", group)
        .create()
        .expect("consumer")
}

fn carry_over(from: &str, to: &str, group: &str) {
    let mut list = TopicPartitionList::new();
    list.add_partition("orders", 0);
    let offsets = plain(from, group).committed_offsets(list, SOON);
    let offsets = offsets.expect("offsets");
    let committed = plain(to, group).commit(&offsets, CommitMode::Sync);
    committed.expect("commit");
}

fn commit_plain(bootstrap: &str, group: &str, offset: i64) {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset("orders", 0, Offset::Offset(offset))
        .expect("list");
    let committed = plain(bootstrap, group).commit(&list, CommitMode::Sync);
    committed.expect("commit");
}

/// Nothing is committed but what was asked for, and a commit that did not get through says so.
async fn commits_by_hand(world: &World, gate: &Gate) {
    let fleet = world.connect().await;
    let by_hand = |builder: ConsumerBuilder| builder.manual_commit();
    let mut consumer = subscribe(&fleet, "by-hand", by_hand).await;
    for offset in 0..50 {
        let message = next_of(&mut consumer, 0).await;
        assert_eq!(message.offset(), offset);
        if offset == 29 {
            consumer.ack_through(&message).expect("ack");
            consumer.commit().await.expect("commit");
            committed(&consumer, 0, Some(30)).await;
        }
    }
    consumer.ack_all().expect("ack");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(
        consumer.committed("orders", 0).await.expect("answer"),
        Some(30)
    );
    consumer.close().await;
    // Acknowledged and not committed, also not by closing: it comes again.
    let mut consumer = subscribe(&fleet, "by-hand", by_hand).await;
    assert_eq!(next_of(&mut consumer, 0).await.offset(), 30);
    consumer.ack_all().expect("ack");
    consumer.request_commit().expect("asked");
    committed(&consumer, 0, Some(31)).await;
    assert_eq!(next_of(&mut consumer, 0).await.offset(), 31);
    consumer.ack_all().expect("ack");

    gate.ready.wait().await;
    gate.frozen.wait().await;
    let handle = consumer.handle();
    let cut_off = tokio::spawn(async move { handle.commit().await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    gate.flipped.wait().await;
    let error = cut_off
        .await
        .expect("task")
        .expect_err("the cluster is frozen");
    assert!(matches!(error, Error::NotCommitted { .. }), "{error}");
    while next_of(&mut consumer, 0).await.cluster().as_str() != EAST {}
    let position = consumer.position("orders", 0).expect("position");
    consumer.ack_all().expect("ack");
    consumer.commit().await.expect("commit");
    let found = consumer.committed("orders", 0).await.expect("answer");
    assert_eq!(found, Some(position));
}

/// A pattern takes the topics that match, also new ones, on both clusters, and no internal ones.
async fn patterns(world: &World, gate: &Gate) {
    let fleet = world.connect().await;
    let create = |cluster: &standfast_servers::KafkaCluster, topic: &str| {
        cluster.create_topic(topic, 1, &[]).expect("topic");
        produce_plain(
            &cluster.bootstrap(),
            topic,
            0,
            std::iter::once(topic.to_owned()),
        );
    };
    create(&world.west, "standfast.lost.orders");
    let broken = fleet.consumer("broken").subscribe(&["^orders["]).await;
    assert!(
        broken
            .expect_err("no pattern")
            .to_string()
            .contains("^orders[")
    );
    let subscribe = |group: &str, policy| {
        fleet
            .consumer(group)
            .property("topic.metadata.refresh.interval.ms", "300")
            .on_missing_offset(policy)
            .subscribe(&["^.*"])
    };
    // There is `__consumer_offsets` as well. What is paused may not be there yet.
    let mut consumer = subscribe("patterns", MissingOffset::Earliest)
        .await
        .expect("consumer");
    let mut seen = 0;
    while seen < 2 * RECORDS {
        let message = next(&mut consumer).await;
        assert_eq!(message.topic(), "orders");
        seen += 1;
        consumer.ack(&message).expect("ack");
    }
    create(&world.west, "bills");
    let message = next(&mut consumer).await;
    assert_eq!(message.topic(), "bills");
    consumer.ack(&message).expect("ack");
    // Paused over the rebalances that new topics bring, and before it is there.
    let paused = ["bills", "fines"].map(|topic| TopicPartition::new(topic, 0));
    consumer.pause(&paused).expect("pause");
    for topic in ["fines", "fees"] {
        create(&world.west, topic);
    }
    let more = std::iter::once("more".to_owned());
    produce_plain(&world.west.bootstrap(), "bills", 0, more);
    let message = next(&mut consumer).await;
    assert_eq!(message.topic(), "fees");
    consumer.ack(&message).expect("ack");
    nothing_for(&mut consumer, Duration::from_millis(300)).await;
    consumer.resume(&paused).expect("resume");
    let mut resumed = Vec::new();
    for _ in &paused {
        let message = next(&mut consumer).await;
        consumer.ack(&message).expect("ack");
        resumed.push((message.topic().to_owned(), message.offset()));
    }
    resumed.sort();
    let wanted = [("bills".to_owned(), 1), ("fines".to_owned(), 0)];
    assert_eq!(resumed, wanted);

    // Without an offset of the group on any topic that may match, it is not joined.
    let mut events = fleet.events();
    let mut strict = subscribe("strict", MissingOffset::Error)
        .await
        .expect("consumer");
    let held = event(&mut events, "held", |event| match event {
        FleetEvent::PartitionHeld { topic, .. } => Some(topic),
        _ => None,
    })
    .await;
    let visible = ["orders", "bills", "fines", "fees"];
    assert!(visible.contains(&held.as_str()), "{held}");
    assert_eq!(strict.assignment(), []);
    commit_plain(&world.west.bootstrap(), "strict", 290);
    assert_eq!(next(&mut strict).await.offset(), 290);

    gate.ready.wait().await;
    gate.frozen.wait().await;
    gate.flipped.wait().await;
    drop(strict);
    create(&world.east, "standfast.lost.orders");
    for offset in RECORDS..RECORDS + 10 {
        let message = next_of(&mut consumer, 0).await;
        assert_eq!((message.topic(), message.offset()), ("orders", offset));
        consumer.ack(&message).expect("ack");
    }
    create(&world.east, "refunds");
    // The rebalance that a new topic brings reads nothing again that is acknowledged.
    loop {
        let message = next(&mut consumer).await;
        consumer.ack(&message).expect("ack");
        if message.topic() == "refunds" {
            break;
        }
        assert_eq!((message.topic(), message.partition()), ("orders", 1));
    }
    while let Ok(message) =
        tokio::time::timeout(Duration::from_millis(500), next(&mut consumer)).await
    {
        assert_eq!((message.topic(), message.partition()), ("orders", 1));
    }
}

/// Several at a time, and another task that acknowledges.
async fn named_topics_and_batches(world: &World, gate: &Gate) {
    let fleet = world.connect().await;
    let mut consumer = subscribe(&fleet, "batches", |builder| {
        builder.read_ahead(100, 1 << 20)
    })
    .await;
    let mut got = 0;
    let long = Duration::from_secs(60);
    while got < 400 {
        let batch = consumer
            .next_batch(40, long)
            .await
            .expect("open")
            .expect("batch");
        assert_eq!(batch.len(), 40);
        got += batch.len();
        consumer.handle().ack_batch(&batch).expect("ack");
    }
    // Cut short again and again: nothing is lost by it.
    while got < 600 {
        let next = consumer.next_batch(7, Duration::from_millis(20));
        let cut = Duration::from_micros(300);
        let Ok(batch) = tokio::time::timeout(cut, next).await else {
            continue;
        };
        got += batch.expect("open").expect("batch").len();
    }
    consumer.ack_all().expect("ack");
    for partition in 0..2 {
        committed(&consumer, partition, Some(RECORDS)).await;
    }
    let none = consumer.next_batch(5, Duration::from_millis(50)).await;
    assert!(none.expect("open").expect("batch").is_empty());
    gate.ready.wait().await;
    gate.frozen.wait().await;
    gate.flipped.wait().await;
    let mut got = Vec::new();
    while got.len() < 20 {
        // More than can be read ahead.
        let wait = Duration::from_secs(1);
        got.extend(
            consumer
                .next_batch(1_000, wait)
                .await
                .expect("open")
                .expect("batch"),
        );
    }
    assert_eq!(got.len(), 20);
    assert!(got.iter().all(|message| message.offset() >= RECORDS));
}
