//! A pipeline from `orders` to `enriched`, and what its readers see.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{ClientConfig, Message as _, Offset, TopicPartitionList};
use standfast::{Error, Fleet, MissingOffset, Record, Result, TransactionalClient};

use crate::harness::{SOON, World};

pub(crate) const GROUP: &str = "enrich";
pub(crate) const PARTITIONS: i32 = 2;

/// Most records of a transaction: few, so that what is transformed after a flip takes longer than the old clients do to leave.
const TURN: usize = 3;

/// How long a transaction waits for one more record.
const WAIT: Duration = Duration::from_millis(50);

pub(crate) async fn world() -> World {
    let world = World::start(PARTITIONS).await;
    for cluster in [&world.west, &world.east] {
        cluster
            .create_topic("enriched", PARTITIONS, &[])
            .expect("topic");
    }
    world
}

pub(crate) async fn client(fleet: &Fleet, id: &str) -> TransactionalClient {
    fleet
        .transactional(id)
        .group(GROUP)
        .on_missing_offset(MissingOffset::Earliest)
        // The member of a killed process is gone sooner.
        .consumer_property("session.timeout.ms", "6000")
        .consumer_property("heartbeat.interval.ms", "500")
        .subscribe(&["orders"])
        .await
        .expect("client")
}

/// One transaction of up to `limit` records; how many it had.
pub(crate) async fn turn(client: &mut TransactionalClient, limit: usize) -> Result<usize> {
    let mut transaction = client.begin().await?;
    let mut count = 0;
    while count < limit {
        let Ok(message) = tokio::time::timeout(WAIT, transaction.next()).await else {
            break;
        };
        let message = message?;
        let made = Record::to("enriched")
            .partition(message.partition())
            .payload(message.payload().unwrap_or_default().to_vec());
        transaction.send_for(&message, made).await?;
        count += 1;
    }
    transaction.commit().await?;
    Ok(count)
}

/// Transforms until `count` records are committed. Aborted transactions are tried again; how many there were.
pub(crate) async fn transform(client: &mut TransactionalClient, count: usize) -> usize {
    let (mut done, mut aborted) = (0, 0);
    let deadline = Instant::now() + SOON;
    while done < count {
        assert!(
            Instant::now() < deadline,
            "{done} of {count} records transformed, {aborted} transactions aborted"
        );
        match turn(client, TURN).await {
            Ok(records) => done += records,
            Err(error @ Error::TransactionAborted { .. }) => {
                assert!(error.is_retryable());
                println!("{error}");
                aborted += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    aborted
}

/// What a `read_committed` reader sees of `enriched`, per payload how often.
pub(crate) fn seen(bootstrap: &str) -> BTreeMap<String, usize> {
    read(bootstrap, "read_committed")
}

/// The same of a reader that also sees what is open and aborted.
pub(crate) fn stored(bootstrap: &str) -> BTreeMap<String, usize> {
    read(bootstrap, "read_uncommitted")
}

fn read(bootstrap: &str, isolation: &str) -> BTreeMap<String, usize> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "see")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("isolation.level", isolation)
        .create()
        .expect("consumer");
    let mut list = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        list.add_partition_offset("enriched", partition, Offset::Beginning)
            .expect("list");
    }
    consumer.assign(&list).expect("assign");
    let (mut seen, mut ends) = (BTreeMap::new(), 0);
    let deadline = Instant::now() + SOON;
    while ends < PARTITIONS {
        assert!(Instant::now() < deadline, "reading hangs");
        match consumer.poll(Duration::from_millis(100)) {
            None => {}
            Some(Ok(message)) => {
                let payload =
                    String::from_utf8_lossy(message.payload().unwrap_or_default()).into_owned();
                *seen.entry(payload).or_insert(0) += 1;
            }
            Some(Err(rdkafka::error::KafkaError::PartitionEOF(_))) => ends += 1,
            Some(Err(error)) => panic!("{error}"),
        }
    }
    seen
}

/// Every one of the numbers once, and nothing else.
pub(crate) fn assert_once(seen: &BTreeMap<String, usize>, numbers: std::ops::Range<usize>) {
    let expected: BTreeMap<String, usize> = numbers.map(|n| (payload(n), 1)).collect();
    let odd: Vec<_> = seen
        .iter()
        .filter(|(payload, times)| expected.get(*payload) != Some(*times))
        .map(|(payload, times)| format!("{payload} x{times}"))
        .chain(
            expected
                .keys()
                .filter(|payload| !seen.contains_key(*payload))
                .map(|missing| format!("{missing} missing")),
        )
        .collect();
    assert!(
        odd.is_empty(),
        "{} of {} records: {odd:?}",
        odd.len(),
        expected.len()
    );
}

pub(crate) fn payload(n: usize) -> String {
    format!("{n:05}")
}

pub(crate) async fn produce(fleet: &Fleet, numbers: std::ops::Range<usize>) {
    let producer = fleet.producer().build().await.expect("producer");
    for n in numbers {
        let record = Record::to("orders")
            .partition(n as i32 % PARTITIONS)
            .payload(payload(n));
        let _answer = producer.enqueue(record).await.expect("room");
    }
    producer.flush(SOON).await.expect("flush");
}

/// Carries the group's offsets over, as the link does.
pub(crate) fn carry_offsets(from: &str, to: &str) {
    let consumer = |bootstrap: &str| -> BaseConsumer {
        ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("group.id", GROUP)
            .create()
            .expect("consumer")
    };
    let mut list = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        list.add_partition("orders", partition);
    }
    let offsets = consumer(from)
        .committed_offsets(list, SOON)
        .expect("offsets");
    consumer(to)
        .commit(&offsets, CommitMode::Sync)
        .expect("commit");
}
