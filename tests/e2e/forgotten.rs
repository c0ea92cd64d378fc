//! The active cluster names no broker for a moment, as one does that wakes up.

use std::collections::BTreeMap;
use std::time::Duration;

use standfast::discovery::{
    ClusterEntry, ClusterName, Discovery, DiscoveryOptions, FleetName, FleetRecord,
};
use standfast::{Fleet, MissingOffset, Record};
use standfast_tests::faulty::FaultyBroker;
use standfast_tests::wait;

use crate::shared_pair;

const TOPIC: &str = "forgotten";
const SOON: Duration = Duration::from_secs(60);

/// Whether librdkafka finds back by itself is a matter of which of its threads is faster.
const ROUNDS: usize = 4;

async fn fleet(folder: &std::path::Path, proxy: &FaultyBroker) -> Fleet {
    let options = DiscoveryOptions::file(folder);
    let west = ClusterName::new("west").expect("name");
    let clusters = BTreeMap::from([(west.clone(), ClusterEntry::new(proxy.bootstrap()))]);
    let first = FleetRecord::first(west, clusters, "test");
    Discovery::new(options.clone())
        .expect("discovery")
        .compare_and_set(&FleetName::new("forgotten").expect("name"), None, &first)
        .await
        .expect("set");
    let fleet = Fleet::builder("forgotten").discovery(options);
    fleet.build().await.expect("fleet")
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_find_back_to_a_cluster_that_named_no_broker() {
    let pair = tokio::task::spawn_blocking(shared_pair)
        .await
        .expect("pair");
    pair.west.create_topic(TOPIC, 1, &[]).expect("topic");
    let proxy = FaultyBroker::start(&pair.west.bootstrap());
    let folder = tempfile::tempdir().expect("folder");
    let fleet = fleet(folder.path(), &proxy).await;
    // Metadata is asked for often enough to meet the moment.
    let refresh = ("topic.metadata.refresh.interval.ms", "300");
    let producer = fleet.producer().property(refresh.0, refresh.1);
    let producer = producer.build().await.expect("producer");
    let mut consumer = fleet
        .consumer("forgotten")
        .property(refresh.0, refresh.1)
        .on_missing_offset(MissingOffset::Earliest)
        .subscribe(&[TOPIC])
        .await
        .expect("consumer");
    for round in 0..ROUNDS {
        let since = std::time::Instant::now();
        let record = Record::to(TOPIC).payload(round.to_string());
        let sent = tokio::time::timeout(SOON, producer.send(record)).await;
        let sent = sent.unwrap_or_else(|_| panic!("round {round}: the producer is stuck"));
        assert_eq!(sent.expect("acknowledged").offset, round as i64);
        let produced = since.elapsed();
        let message = tokio::time::timeout(SOON, consumer.next()).await;
        let message = message.unwrap_or_else(|_| panic!("round {round}: the consumer is stuck"));
        let message = message.expect("open").expect("record");
        assert_eq!(message.offset(), round as i64);
        println!(
            "round {round}: produced after {produced:?}, consumed after {:?}",
            since.elapsed()
        );
        let before = proxy.forgotten();
        proxy.forget(true);
        wait::until_true("both have asked", SOON, || proxy.forgotten() >= before + 2);
        tokio::time::sleep(Duration::from_secs(1)).await;
        proxy.forget(false);
    }
}
