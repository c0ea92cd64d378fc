//! Two real clusters and a fleet on the file backend.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use standfast::discovery::{
    CasOutcome, ClusterEntry, ClusterName, Discovery, DiscoveryOptions, Epoch, Error, FleetName,
    FleetRecord, FleetState, Handoff, Timestamp, Version,
};
use standfast::{FailoverConsumer, FailoverProducer, Fleet, FleetEvent, MissingOffset};
use standfast_servers::KafkaCluster;
use tokio::sync::broadcast::Receiver;

pub(crate) const WEST: &str = "west";
pub(crate) const EAST: &str = "east";

/// Deadline of everything that should happen soon; generous, for a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(60);

pub(crate) struct World {
    pub(crate) west: KafkaCluster,
    pub(crate) east: KafkaCluster,
    pub(crate) dir: tempfile::TempDir,
    options: DiscoveryOptions,
    discovery: Discovery,
    fleet: FleetName,
}

impl World {
    /// Starts both clusters, each with the topic `orders`; west is active.
    pub(crate) async fn start(partitions: i32) -> Self {
        let dir = tempfile::tempdir().expect("folder");
        let options = DiscoveryOptions::file(dir.path());
        Self::start_on(options, dir, partitions).await
    }

    /// The same on another discovery backend.
    pub(crate) async fn start_on(
        options: DiscoveryOptions,
        dir: tempfile::TempDir,
        partitions: i32,
    ) -> Self {
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        let start = |name: &'static str| {
            std::thread::spawn(move || {
                let cluster = KafkaCluster::start(name).expect("cluster");
                cluster
                    .create_topic("orders", partitions, &[])
                    .expect("topic");
                // The first group makes the broker create its offsets topic, which takes seconds.
                warm_up_groups(&cluster.bootstrap());
                cluster
            })
        };
        let (west, east) = (start(WEST), start(EAST));
        let (west, east) = (west.join().expect("west"), east.join().expect("east"));
        let world = Self {
            discovery: Discovery::new(options.clone()).expect("discovery"),
            options,
            fleet: FleetName::new("payments").expect("name"),
            dir,
            west,
            east,
        };
        let first = world.record(Epoch(1), WEST, FleetState::Active, None);
        write(&world.discovery, &world.fleet, None, &first).await;
        world
    }

    pub(crate) async fn connect(&self) -> Fleet {
        Fleet::builder("payments")
            .discovery(self.options.clone())
            .build()
            .await
            .expect("fleet")
    }

    /// Changes the record. `handoff`: the offsets of `orders` up to which the new active cluster has the old one's log.
    pub(crate) async fn change(
        &self,
        active: &str,
        state: FleetState,
        handoff: Option<Vec<Option<i64>>>,
    ) -> Epoch {
        let old = self
            .discovery
            .read(&self.fleet)
            .await
            .expect("read")
            .expect("record");
        let epoch = Epoch(old.value.epoch.0 + 1);
        let mut key = None;
        if let Some(offsets) = handoff {
            let handoff = Handoff {
                fleet: self.fleet.clone(),
                epoch,
                from: old.value.active.clone(),
                to: ClusterName::new(active).expect("name"),
                written_at: Timestamp::now(),
                planned: false,
                topics: BTreeMap::from([("orders".to_owned(), offsets)]),
            };
            key = Some(
                self.discovery
                    .write_handoff(&handoff)
                    .await
                    .expect("handoff"),
            );
        }
        let record = self.record(epoch, active, state, key);
        write(&self.discovery, &self.fleet, Some(&old.version), &record).await;
        epoch
    }

    pub(crate) async fn flip(&self, active: &str, handoff: Option<Vec<Option<i64>>>) -> Epoch {
        self.change(active, FleetState::Active, handoff).await
    }

    /// Writes a record whose entry for `cluster` was changed by `edit`.
    pub(crate) async fn flip_with(&self, active: &str, edit: impl FnOnce(&mut FleetRecord)) {
        let old = self
            .discovery
            .read(&self.fleet)
            .await
            .expect("read")
            .expect("record");
        let mut record = self.record(
            Epoch(old.value.epoch.0 + 1),
            active,
            FleetState::Active,
            None,
        );
        edit(&mut record);
        write(&self.discovery, &self.fleet, Some(&old.version), &record).await;
    }

    fn record(
        &self,
        epoch: Epoch,
        active: &str,
        state: FleetState,
        handoff: Option<String>,
    ) -> FleetRecord {
        let entry = |cluster: &KafkaCluster| ClusterEntry {
            cluster_id: Some(cluster.cluster_id().to_owned()),
            ..ClusterEntry::new(cluster.bootstrap())
        };
        let name = |name| ClusterName::new(name).expect("name");
        let clusters = BTreeMap::from([
            (name(WEST), entry(&self.west)),
            (name(EAST), entry(&self.east)),
        ]);
        let mut record = FleetRecord::first(name(active), clusters, "test");
        (record.epoch, record.state, record.handoff) = (epoch, state, handoff);
        record
    }
}

/// Writes a record. A machine whose disk is busy keeps Consul from answering in time now and then, which is not what is tested.
pub(crate) async fn write(
    discovery: &Discovery,
    fleet: &FleetName,
    expected: Option<&Version>,
    record: &FleetRecord,
) {
    let deadline = Instant::now() + SOON;
    loop {
        match discovery.compare_and_set(fleet, expected, record).await {
            Ok(CasOutcome::Set(_)) => return,
            // The one before may have got through unanswered.
            Ok(CasOutcome::Conflict) => {
                let read = discovery.read(fleet).await.expect("read").expect("record");
                assert_eq!(&read.value, record, "somebody else wrote a record");
                return;
            }
            Err(Error::Unavailable { reason, .. }) if Instant::now() < deadline => {
                println!("not written yet: {reason}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(error) => panic!("not written: {error}"),
        }
    }
}

/// A producer, and a consumer of `orders` in the group `billing`.
pub(crate) async fn clients(fleet: &Fleet) -> (FailoverProducer, FailoverConsumer) {
    let producer = fleet.producer().build().await.expect("producer");
    let consumer = fleet
        .consumer("billing")
        .on_missing_offset(MissingOffset::Earliest)
        .subscribe(&["orders"])
        .await
        .expect("consumer");
    (producer, consumer)
}

/// How many members a group has on a cluster, if it answers.
pub(crate) fn members(bootstrap: &str, group: &str) -> Option<usize> {
    use rdkafka::consumer::{BaseConsumer, Consumer};
    const ANSWER: Duration = Duration::from_secs(5);
    let client: BaseConsumer = rdkafka::ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .create()
        .expect("client");
    let list = client.fetch_group_list(Some(group), ANSWER).ok()?;
    let members = list.groups().iter().map(|group| group.members().len());
    Some(members.sum())
}

fn warm_up_groups(bootstrap: &str) {
    use rdkafka::consumer::{BaseConsumer, Consumer};
    let consumer: BaseConsumer = rdkafka::ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "warm-up")
        .create()
        .expect("consumer");
    let deadline = Instant::now() + SOON;
    loop {
        let mut list = rdkafka::TopicPartitionList::new();
        list.add_partition("orders", 0);
        match consumer.committed_offsets(list, SOON) {
            Ok(_) => return,
            Err(error) => assert!(Instant::now() < deadline, "no coordinator: {error}"),
        }
    }
}

/// Waits for an event that `wanted` takes.
pub(crate) async fn event<T>(
    events: &mut Receiver<FleetEvent>,
    what: &str,
    mut wanted: impl FnMut(FleetEvent) -> Option<T>,
) -> T {
    let waited = tokio::time::timeout(SOON, async {
        loop {
            if let Some(found) = wanted(events.recv().await.expect("events")) {
                return found;
            }
        }
    });
    waited.await.unwrap_or_else(|_| panic!("no event: {what}"))
}

/// Waits until `condition` holds.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// All records of a partition as (offset, key, payload), read without the wrapper.
pub(crate) fn dump(bootstrap: &str, topic: &str, partition: i32) -> Vec<(i64, String, String)> {
    use rdkafka::consumer::{BaseConsumer, Consumer};
    use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "dump")
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        .create()
        .expect("consumer");
    let (_, end) = consumer
        .fetch_watermarks(topic, partition, SOON)
        .expect("log end");
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Beginning)
        .expect("list");
    consumer.assign(&list).expect("assign");
    let mut found = Vec::<(i64, String, String)>::new();
    let deadline = Instant::now() + SOON;
    while found.last().map_or(0, |(offset, ..)| offset + 1) < end {
        assert!(
            Instant::now() < deadline,
            "dump of {topic}-{partition} hangs"
        );
        let Some(message) = consumer.poll(Duration::from_millis(100)) else {
            continue;
        };
        let message = message.expect("message");
        let text =
            |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
        found.push((
            message.offset(),
            text(message.key()),
            text(message.payload()),
        ));
    }
    found
}

/// Produces without the wrapper, in order: `(key, payload)` to one partition.
pub(crate) fn produce_plain(
    bootstrap: &str,
    topic: &str,
    partition: i32,
    payloads: impl Iterator<Item = String>,
) {
    use rdkafka::ClientConfig;
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("enable.idempotence", "true")
        .create()
        .expect("producer");
    for payload in payloads {
        producer
            .send(
                BaseRecord::<(), str>::to(topic)
                    .partition(partition)
                    .payload(&payload),
            )
            .map_err(|(error, _)| error)
            .expect("send");
    }
    producer.flush(SOON).expect("flush");
}

/// Produces `count` filler records as the link engine writes them.
pub(crate) fn produce_filler(bootstrap: &str, topic: &str, partition: i32, count: usize) {
    use rdkafka::ClientConfig;
    use rdkafka::message::{Header, OwnedHeaders};
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .create()
        .expect("producer");
    for _ in 0..count {
        let header = Header {
            key: "standfast.filler",
            value: None::<&[u8]>,
        };
        let record = BaseRecord::<str, [u8]>::to(topic)
            .partition(partition)
            .key("standfast.filler")
            .headers(OwnedHeaders::new().insert(header));
        producer
            .send(record)
            .map_err(|(error, _)| error)
            .expect("send");
    }
    producer.flush(SOON).expect("flush");
}

/// Copies a partition of `orders` as a mirror does, from the destination's log end up to offset `to`.
pub(crate) fn mirror(source: &str, destination: &str, partition: i32, to: i64) {
    use rdkafka::consumer::{BaseConsumer, Consumer};
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
    use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", source)
        .set("group.id", "mirror")
        .create()
        .expect("consumer");
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", destination)
        .set("enable.idempotence", "true")
        .create()
        .expect("producer");
    let (_, mut at) = producer
        .client()
        .fetch_watermarks("orders", partition, SOON)
        .expect("log end");
    let mut list = TopicPartitionList::new();
    list.add_partition_offset("orders", partition, Offset::Offset(at))
        .expect("list");
    consumer.assign(&list).expect("assign");
    let deadline = Instant::now() + SOON;
    while at < to {
        assert!(Instant::now() < deadline, "the mirror hangs at {at}");
        let Some(message) = consumer.poll(Duration::from_millis(100)) else {
            continue;
        };
        let message = message.expect("message").detach();
        assert_eq!(message.offset(), at);
        let mut record = BaseRecord::<[u8], [u8]>::to("orders").partition(partition);
        (record.key, record.payload) = (message.key(), message.payload());
        record.headers = message.headers().cloned();
        producer
            .send(record)
            .map_err(|(error, _)| error)
            .expect("send");
        at += 1;
    }
    producer.flush(SOON).expect("flush");
}
