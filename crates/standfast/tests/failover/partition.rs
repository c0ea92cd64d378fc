//! Which partition a record goes to, before and after a flip.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use standfast::Record;

use crate::harness::{EAST, SOON, World, dump};

const PARTITIONS: i32 = 8;

/// Where each payload stands.
fn placed(bootstrap: &str) -> HashMap<String, Vec<i32>> {
    let mut placed = HashMap::<String, Vec<i32>>::new();
    for partition in 0..PARTITIONS {
        for (_, _, payload) in dump(bootstrap, "orders", partition) {
            placed.entry(payload).or_default().push(partition);
        }
    }
    placed
}

/// Records without a key and without a partition are on their way to a cluster that is frozen, and stored there when it wakes
/// up; meanwhile they were sent to the other one. Each stands in one and the same partition on both. New ones spread again. What
/// an own partitioner has chosen stays too, though it would answer otherwise when asked again.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_sent_again_goes_to_the_partition_that_it_was_given() {
    let world = World::start(PARTITIONS).await;
    let fleet = world.connect().await;
    let turn = Arc::new(AtomicI32::new(0));
    let mut producers = Vec::new();
    for n in 0..16 {
        let builder = fleet.producer();
        let turn = Arc::clone(&turn);
        let turns = move |_: &str, key: Option<&[u8]>, partitions: i32| {
            assert_eq!(key, Some(&b"k"[..]));
            turn.fetch_add(3, Relaxed) % partitions
        };
        let builder = if n < 10 {
            builder
        } else {
            builder.partitioner(turns)
        };
        producers.push(builder.build().await.expect("producer"));
    }
    let record = |n: usize, text: &str| {
        let record = Record::to("orders").payload(format!("{text}-{n}"));
        if n < 10 { record } else { record.key("k") }
    };
    // The clients do not know the topic yet.
    let early: Vec<_> = producers
        .iter()
        .enumerate()
        .map(|(n, p)| p.try_send(record(n, "early")).expect("room"))
        .collect();
    for answer in early {
        tokio::time::timeout(SOON, answer)
            .await
            .expect("in time")
            .expect("acknowledged");
    }

    world.west.pause();
    let frozen: Vec<_> = producers
        .iter()
        .enumerate()
        .map(|(n, p)| p.try_send(record(n, "frozen")).expect("room"))
        .collect();
    // Batches are closed after 5 ms; the requests must have left.
    tokio::time::sleep(Duration::from_millis(500)).await;
    world.flip(EAST, None).await;
    let mut given = HashMap::new();
    for (n, answer) in frozen.into_iter().enumerate() {
        let delivery = tokio::time::timeout(SOON, answer)
            .await
            .expect("in time")
            .expect("acknowledged");
        assert_eq!(delivery.cluster.as_str(), EAST);
        given.insert(format!("frozen-{n}"), delivery.partition);
    }
    world.west.resume();
    let (west, east) = (world.west.bootstrap(), world.east.bootstrap());
    let deadline = Instant::now() + SOON;
    let on_west = loop {
        let on_west = placed(&west);
        let woken = given
            .keys()
            .filter(|payload| on_west.contains_key(*payload))
            .count();
        if woken == given.len() {
            break on_west;
        }
        assert!(
            Instant::now() < deadline,
            "west has stored {woken} of the records only"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let on_east = placed(&east);
    for (payload, partition) in &given {
        assert_eq!(on_east[payload], [*partition], "{payload}");
        assert_eq!(
            on_west[payload],
            [*partition],
            "{payload} stands in two partitions"
        );
    }
    for (n, producer) in producers.iter().enumerate() {
        producer.send(record(n, "late")).await.expect("sent");
    }
    let on_east = placed(&east);
    let late: BTreeSet<_> = on_east
        .iter()
        .filter(|(payload, _)| payload.starts_with("late"))
        .map(|(_, at)| at)
        .collect();
    assert!(late.len() > 1, "new records are spread: {late:?}");
}

/// A key has the partition that librdkafka itself gives it; a partition that there is not is refused, not sent elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn keys_go_where_rdkafka_sends_them() {
    use rdkafka::ClientConfig;
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
    let world = World::start(7).await;
    let fleet = world.connect().await;
    let keys: Vec<String> = (0..300)
        .map(|n| "x".repeat(n % 37) + &n.to_string())
        .chain([String::new()])
        .collect();
    for partitioner in ["murmur2_random", "consistent", "fnv1a_random"] {
        let plain: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", world.west.bootstrap())
            .set("partitioner", partitioner)
            .create()
            .expect("producer");
        let producer = fleet
            .producer()
            .property("partitioner", partitioner)
            .build()
            .await
            .expect("producer");
        for key in &keys {
            let payload = format!("{partitioner}/{key}");
            let record = BaseRecord::<str, str>::to("orders")
                .key(key.as_str())
                .payload(&payload);
            plain
                .send(record)
                .map_err(|(error, _)| error)
                .expect("send");
            let _answer = producer
                .enqueue(Record::to("orders").key(key.clone()).payload(payload))
                .await
                .expect("room");
        }
        plain.flush(SOON).expect("flush");
        producer.flush(SOON).await.expect("flush");
    }
    let bootstrap = world.west.bootstrap();
    let mut placed = HashMap::<String, Vec<i32>>::new();
    for partition in 0..7 {
        for (_, _, payload) in dump(&bootstrap, "orders", partition) {
            placed.entry(payload).or_default().push(partition);
        }
    }
    assert_eq!(placed.len(), 3 * keys.len());
    for (payload, at) in placed {
        assert!(at.len() == 2 && at[0] == at[1], "{payload}: {at:?}");
    }
    let wrong = fleet
        .producer()
        .partitioner(|_: &str, _: Option<&[u8]>, n: i32| n)
        .build()
        .await
        .expect("producer");
    let refused = wrong
        .send(Record::to("orders").payload("nowhere"))
        .await
        .expect_err("refused");
    assert!(refused.to_string().contains("orders"), "{refused}");
}
