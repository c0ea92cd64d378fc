//! Consume, transform, produce in transactions, and the source is lost with its mirrors behind.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, TopicPartitionList};
use serde_json::Value;
use standfast::discovery::DiscoveryOptions;
use standfast::{Fleet, MissingOffset, Record, TransactionalClient};
use standfast_tests::agent::{Agent, AgentConfig};
use standfast_tests::pair::Pair;

const ORDERS: &str = "orders";
const ENRICHED: &str = "enriched";
const GROUP: &str = "enrich";
const PARTITIONS: i32 = 2;
/// Two rounds of the group's offsets, the first of which may wait for the mirrors.
const GROUP_ROUNDS: Duration = Duration::from_secs(8);
const SOON: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
struct Load {
    stop: AtomicBool,
    sent: AtomicUsize,
}

/// West is killed while the mirror of the output is behind, and that of the input is not. Every order is seen once by the reader of what was
/// made from it: none is missing because the group's offsets had been carried over ahead of the output, none comes twice because they had not.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_order_is_enriched_once_when_the_source_is_lost() {
    let mut pair = Pair::start();
    for topic in [ORDERS, ENRICHED] {
        pair.west
            .create_topic(topic, PARTITIONS, &[])
            .expect("topic");
    }
    let mut config = AgentConfig::of(&pair, &[ORDERS, ENRICHED]);
    config.groups = vec![GROUP.to_owned()];
    config.link_lines = "group_sync_interval = \"1s\"".to_owned();
    let agent = Agent::start(&pair, &config);
    let fleet = Fleet::builder("payments")
        .discovery(DiscoveryOptions::file(pair.discovery_folder()))
        .build()
        .await
        .expect("fleet");

    let load = Arc::new(Load::default());
    let seen = Arc::new(Mutex::new(Vec::<(usize, String)>::new()));
    let producing = tokio::spawn(produce(fleet.clone(), Arc::clone(&load)));
    let client = fleet
        .transactional("enrich-1")
        .group(GROUP)
        .on_missing_offset(MissingOffset::Earliest)
        .subscribe(&[ORDERS])
        .await
        .expect("client");
    let enriching = tokio::spawn(enrich(client));
    let reading = tokio::spawn(read(fleet.clone(), "sink", Arc::clone(&seen)));

    let east = pair.east.bootstrap();
    until("the group's offsets are carried over", || {
        carried(&east) > 100
    })
    .await;
    let paused = agent.json(&["mirror", "pause", ENRICHED]);
    assert_eq!(paused["data"][0]["error_code"], Value::Null, "{paused}");
    let before = seen.lock().expect("seen").len();
    until("the reader is ahead of the mirror", || {
        seen.lock().expect("seen").len() > before + 2_000
    })
    .await;
    // Time enough to carry the group over, if nothing held it up.
    let until_round = Instant::now() + GROUP_ROUNDS;
    until("the group's offsets could have been carried over", || {
        Instant::now() > until_round
    })
    .await;
    pair.west.kill();
    let offset = carried(&east);
    let report = agent.json(&["failover", "--yes", "--reason", "west is lost"]);
    assert_eq!(report["outcome"], "FLIPPED", "{report}");
    let at_flip = seen.lock().expect("seen").len();
    until("work goes on on east", || {
        seen.lock().expect("seen").len() > at_flip + 2_000
    })
    .await;
    load.stop.store(true, Relaxed);
    producing.await.expect("producer");
    let sent = load.sent.load(Relaxed);
    // By the reader that was there all the time, and by one that finds on east what came of every order.
    let found = Arc::new(Mutex::new(Vec::new()));
    let auditing = tokio::spawn(read(fleet.clone(), "audit", Arc::clone(&found)));
    for read in [&seen, &found] {
        until("every order was seen", || {
            let read = read.lock().expect("seen");
            let numbers: BTreeSet<usize> = read.iter().map(|(number, _)| *number).collect();
            numbers.len() >= sent
        })
        .await;
    }
    let mut times = BTreeMap::<usize, Vec<String>>::new();
    for (number, cluster) in seen.lock().expect("seen").iter() {
        times.entry(*number).or_default().push(cluster.clone());
    }
    let twice: Vec<_> = times.iter().filter(|(_, at)| at.len() > 1).collect();
    assert!(
        twice.is_empty(),
        "{} of {sent} orders were seen more than once: {:?}",
        twice.len(),
        &twice[..twice.len().min(5)]
    );
    assert_eq!(times.len(), sent);
    let stats = fleet.snapshot();
    assert!(
        stats.transactions_aborted > 0 && stats.records_repeated > 0,
        "{stats:?}"
    );
    println!(
        "transactional: {sent} orders, {at_flip} seen at the flip, group carried over up to {offset} in all, {} repetitions left out, {} transactions, {} aborted",
        stats.records_repeated, stats.transactions_committed, stats.transactions_aborted
    );
    enriching.abort();
    reading.abort();
    auditing.abort();
}

async fn produce(fleet: Fleet, load: Arc<Load>) {
    let producer = fleet.producer().build().await.expect("producer");
    let mut number = 0;
    while !load.stop.load(Relaxed) {
        for _ in 0..5 {
            let record = Record::to(ORDERS)
                .partition(number as i32 % PARTITIONS)
                .payload(number.to_string());
            let _answer = producer.enqueue(record).await.expect("room");
            number += 1;
        }
        load.sent.store(number, Relaxed);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    producer.flush(SOON).await.expect("flush");
}

async fn enrich(mut client: TransactionalClient) {
    loop {
        match turn(&mut client).await {
            Ok(()) => {}
            Err(error) => assert!(error.is_retryable(), "{error}"),
        }
    }
}

async fn turn(client: &mut TransactionalClient) -> standfast::Result<()> {
    let mut transaction = client.begin().await?;
    for _ in 0..50 {
        let Ok(order) = tokio::time::timeout(Duration::from_millis(20), transaction.next()).await
        else {
            break;
        };
        let order = order?;
        // To the other partition: both logs matter to each transaction.
        let made = Record::to(ENRICHED)
            .partition(PARTITIONS - 1 - order.partition())
            .payload(order.payload().unwrap_or_default().to_vec());
        transaction.send_for(&order, made).await?;
    }
    transaction.commit().await
}

async fn read(fleet: Fleet, group: &'static str, seen: Arc<Mutex<Vec<(usize, String)>>>) {
    let mut consumer = fleet
        .consumer(group)
        .on_missing_offset(MissingOffset::Earliest)
        .subscribe(&[ENRICHED])
        .await
        .expect("consumer");
    while let Some(message) = consumer.next().await {
        let message = message.expect("record");
        let text = String::from_utf8_lossy(message.payload().unwrap_or_default()).into_owned();
        let number = text.parse().expect("number");
        seen.lock()
            .expect("seen")
            .push((number, message.cluster().to_string()));
        consumer.ack(&message).expect("ack");
    }
}

/// The group's offsets on a cluster, summed up.
fn carried(bootstrap: &str) -> i64 {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", GROUP)
        .create()
        .expect("consumer");
    let mut list = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        list.add_partition(ORDERS, partition);
    }
    let offsets = consumer.committed_offsets(list, Duration::from_secs(5));
    let offsets = offsets.map(|list| {
        list.elements()
            .iter()
            .filter_map(|e| e.offset().to_raw())
            .filter(|o| *o > 0)
            .sum()
    });
    offsets.unwrap_or(0)
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
