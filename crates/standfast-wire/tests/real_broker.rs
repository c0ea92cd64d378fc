//! Against a real Apache Kafka broker.
#![allow(clippy::unwrap_used)] // helpers of tests

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use secrecy::SecretString;
use standfast_servers::KafkaCluster;
use standfast_wire::admin::{
    CommittedOffset, ConfigChange, ConfigResource, Look, NewTopic, OffsetSpec, ProducerIdentity,
};
use standfast_wire::batch::{HEADER_LEN, ProducerStamp, RawBatch, RestampedBatch, sequence_of};
use standfast_wire::fetch::{self, FetchPosition, FetchRequest, FetchTopic, Isolation};
use standfast_wire::produce::{self, ProduceResult};
use standfast_wire::{
    Cluster, ClusterOptions, Connection, Error, HostPort, RawConnection, ResponseError,
    SaslMechanism, SaslOptions, TopicPartition,
};

fn options(bootstrap: &str) -> ClusterOptions {
    ClusterOptions::new(HostPort::parse_list(bootstrap).unwrap())
}

fn new_topic(name: &str, partitions: i32) -> NewTopic {
    NewTopic {
        name: name.to_owned(),
        partitions,
        replication_factor: -1,
        configs: BTreeMap::from([("retention.ms".to_owned(), "-1".to_owned())]),
    }
}

/// A batch of `count` records without keys, as a source cluster would hold it.
fn batch(base_offset: i64, count: i32, value: &[u8]) -> RawBatch {
    let mut records = BytesMut::new();
    for delta in 0..count {
        // length, attributes, timestamp delta, offset delta, null key, value, no headers; all varints are zigzag
        let mut record = BytesMut::new();
        record.put_slice(&[0, 0]);
        put_varint(&mut record, delta);
        put_varint(&mut record, -1);
        put_varint(&mut record, value.len() as i32);
        record.put_slice(value);
        record.put_u8(0);
        put_varint(&mut records, record.len() as i32);
        records.put_slice(&record);
    }
    let mut covered = BytesMut::new();
    covered.put_i16(0);
    covered.put_i32(count - 1);
    covered.put_i64(1_700_000_000_000);
    covered.put_i64(1_700_000_000_000);
    covered.put_i64(-1);
    covered.put_i16(-1);
    covered.put_i32(-1);
    covered.put_i32(count);
    covered.put_slice(&records);
    let mut batch = BytesMut::new();
    batch.put_i64(base_offset);
    batch.put_i32(covered.len() as i32 + 9);
    batch.put_i32(7);
    batch.put_i8(2);
    batch.put_u32(crc32c::crc32c(&covered));
    batch.put_slice(&covered);
    RawBatch::new(batch.freeze()).unwrap()
}

fn put_varint(buffer: &mut BytesMut, value: i32) {
    let mut left = ((value << 1) ^ (value >> 31)) as u32;
    while left >= 0x80 {
        buffer.put_u8(left as u8 | 0x80);
        left >>= 7;
    }
    buffer.put_u8(left as u8);
}

async fn produce(
    connection: RawConnection,
    parts: &[(&str, i32, RawBatch)],
    producer: ProducerIdentity,
) -> (RawConnection, Vec<ProduceResult>) {
    let stamped: Vec<_> = parts
        .iter()
        .map(|(topic, partition, batch)| {
            let stamp = ProducerStamp {
                producer_id: producer.producer_id,
                producer_epoch: producer.epoch,
                base_sequence: sequence_of(batch.header.base_offset),
            };
            (*topic, *partition, batch.restamp(stamp).unwrap())
        })
        .collect();
    let mut connection = connection;
    let frame = produce::encode(77, "test", -1, 10_000, None, &stamped);
    connection.writer().write(&frame).await.unwrap();
    let results = produce::decode(connection.reader().read().await.unwrap()).unwrap();
    assert_eq!(results.correlation_id, 77);
    (connection, results.partitions)
}

#[tokio::test]
async fn topics_records_offsets_and_groups() {
    let kafka = KafkaCluster::start("wire").unwrap();
    let cluster = Cluster::connect(options(&kafka.bootstrap())).await.unwrap();
    assert_eq!(cluster.cluster_id(), kafka.cluster_id());
    assert_eq!(cluster.metadata().brokers.len(), 1);

    topics_and_configs(&cluster).await;
    compare_and_append(&cluster).await;
    groups(&cluster).await;
    missing_things(&cluster, &kafka).await;
}

async fn topics_and_configs(cluster: &Cluster) {
    let id = cluster.create_topic(new_topic("orders", 3)).await.unwrap();
    assert!(!id.is_nil());
    let again = cluster
        .create_topic(new_topic("orders", 3))
        .await
        .unwrap_err();
    assert_eq!(
        again.code(),
        Some(ResponseError::TopicAlreadyExists),
        "{again}"
    );
    assert!(again.to_string().contains("topic orders"), "{again}");

    let metadata = cluster.topics(&["orders"]).await.unwrap();
    assert_eq!(metadata.topics["orders"].topic_id, id);
    assert_eq!(metadata.topics["orders"].partitions.len(), 3);
    assert_eq!(metadata.topic_name(id).map(|name| &**name), Some("orders"));

    cluster
        .create_partitions(&[("orders", 4)])
        .await
        .unwrap()
        .remove(0)
        .1
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while cluster.refresh_metadata().await.unwrap().topics["orders"]
        .partitions
        .len()
        != 4
    {
        assert!(
            Instant::now() < deadline,
            "the fourth partition never appeared"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let topic = ConfigResource::Topic("orders".to_owned());
    let change = vec![(
        "max.message.bytes".to_owned(),
        ConfigChange::Set("2000000".to_owned()),
    )];
    let altered = cluster
        .incremental_alter_configs(&[(topic.clone(), change)])
        .await
        .unwrap();
    altered.into_iter().for_each(|(_, result)| result.unwrap());
    let broker = ConfigResource::Broker(*cluster.metadata().brokers.keys().next().unwrap());
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let described = cluster
            .describe_configs(&[topic.clone(), broker.clone()])
            .await
            .unwrap();
        assert_eq!(described.len(), 2);
        let find = |resource: &ConfigResource, name: &str| {
            let (_, entries) = described
                .iter()
                .find(|(found, _)| found == resource)
                .unwrap();
            let entry = entries
                .as_ref()
                .unwrap()
                .iter()
                .find(|entry| entry.name == name)
                .unwrap();
            (entry.value.clone(), entry.is_override)
        };
        assert!(
            !find(&topic, "cleanup.policy").1,
            "a default is no override"
        );
        assert_eq!(find(&topic, "retention.ms"), (Some("-1".to_owned()), true));
        assert_eq!(
            find(&broker, "auto.create.topics.enable").0,
            Some("false".to_owned())
        );
        if find(&topic, "max.message.bytes") == (Some("2000000".to_owned()), true) {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "the altered config never appeared"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    cluster
        .create_topic(new_topic("short-lived", 1))
        .await
        .unwrap();
    let deleted = cluster
        .delete_topics(&["short-lived", "never-there"])
        .await
        .unwrap();
    let of = |name: &str| {
        deleted
            .iter()
            .find(|(found, _)| found == name)
            .unwrap()
            .1
            .clone()
    };
    of("short-lived").unwrap();
    assert_eq!(
        of("never-there").unwrap_err().code(),
        Some(ResponseError::UnknownTopicOrPartition)
    );
}

/// What the link relies on: the sequence number makes the broker refuse a gap and acknowledge a repeat.
async fn compare_and_append(cluster: &Cluster) {
    let producer = cluster.init_producer_id(None).await.unwrap();
    let leader = cluster.leader("orders", 0).await.unwrap();
    let connection = cluster.open_raw(leader).await.unwrap();
    let first = batch(0, 5, b"first");
    let (connection, results) = produce(
        connection,
        &[
            ("orders", 0, first.clone()),
            ("orders", 1, batch(0, 1, b"other")),
        ],
        producer,
    )
    .await;
    let mut offsets: Vec<_> = results
        .iter()
        .map(|r| (r.partition, r.error_code, r.base_offset))
        .collect();
    // A broker answers in the order of a hash map with the topic's random id in the key.
    offsets.sort_unstable();
    assert_eq!(offsets, [(0, 0, 0), (1, 0, 0)]);
    let (connection, results) = produce(
        connection,
        &[("orders", 0, batch(5, 2, b"second"))],
        producer,
    )
    .await;
    assert_eq!((results[0].error_code, results[0].base_offset), (0, 5));
    let (connection, results) =
        produce(connection, &[("orders", 0, first.clone())], producer).await;
    assert_eq!(
        (results[0].error_code, results[0].base_offset),
        (0, 0),
        "a repeat is acknowledged"
    );
    let (_, results) = produce(connection, &[("orders", 0, batch(9, 1, b"gap"))], producer).await;
    assert_eq!(
        results[0].error_code,
        ResponseError::OutOfOrderSequenceNumber.code()
    );

    let fetched = cluster
        .fetch_batches("orders", 0, 0, 1 << 20)
        .await
        .unwrap();
    assert_eq!(
        (
            fetched.high_watermark,
            fetched.last_stable_offset,
            fetched.log_start_offset
        ),
        (7, 7, 0)
    );
    let offsets: Vec<i64> = fetched
        .batches
        .iter()
        .map(|batch| batch.header.base_offset)
        .collect();
    assert_eq!(offsets, [0, 5]);
    for batch in &fetched.batches {
        batch.verify_crc().unwrap();
        assert_eq!(batch.header.producer_id, producer.producer_id);
        assert!(batch.header.is_dense());
    }
    assert_eq!(
        fetched.batches[0].bytes[HEADER_LEN..],
        first.bytes[HEADER_LEN..]
    );
    let tail = cluster
        .fetch_batches("orders", 0, 6, 1 << 20)
        .await
        .unwrap();
    assert_eq!(
        tail.batches[0].header.base_offset, 5,
        "a fetch begins with the batch that holds the offset"
    );
    let beyond = cluster
        .fetch_batches("orders", 0, 8, 1 << 20)
        .await
        .unwrap_err();
    assert_eq!(beyond.code(), Some(ResponseError::OffsetOutOfRange));

    let partition = |partition| TopicPartition::new("orders", partition);
    let producers = cluster.describe_producers(&[partition(0)]).await;
    let known = producers[0].1.as_ref().unwrap();
    assert_eq!(
        (known[0].producer_id, known[0].last_sequence),
        (producer.producer_id, 6)
    );
    let asked = [
        (partition(0), OffsetSpec::Earliest),
        (partition(1), OffsetSpec::Latest),
        (partition(2), OffsetSpec::Latest),
        (partition(3), OffsetSpec::Timestamp(0)),
    ];
    let listed = |results: Vec<(
        TopicPartition,
        Result<standfast_wire::admin::ListedOffset, Error>,
    )>| {
        let offsets = results
            .into_iter()
            .map(|(partition, listed)| (partition.partition, listed.unwrap().offset));
        offsets.collect::<BTreeMap<i32, i64>>()
    };
    let offsets = listed(
        cluster
            .list_offsets(&asked, Isolation::ReadUncommitted)
            .await,
    );
    assert_eq!(offsets, BTreeMap::from([(0, 0), (1, 1), (2, 0), (3, -1)]));

    let deleted = cluster.delete_records(&[(partition(0), 5)]).await;
    assert_eq!(*deleted[0].1.as_ref().unwrap(), 5);
    let offsets = listed(
        cluster
            .list_offsets(&asked[..1], Isolation::ReadCommitted)
            .await,
    );
    assert_eq!(offsets, BTreeMap::from([(0, 5)]));
    every_fetch_version(cluster).await;
}

async fn every_fetch_version(cluster: &Cluster) {
    let leader = cluster.leader("orders", 0).await.unwrap();
    let topic_id = cluster.metadata().topics["orders"].topic_id;
    let mut connection = cluster.open_raw(leader).await.unwrap();
    let highest = fetch::negotiate(connection.versions(), true).unwrap();
    assert_eq!(highest, fetch::VERSION_MAX);
    assert_eq!(
        fetch::negotiate(connection.versions(), false).unwrap(),
        fetch::VERSION_TOPIC_IDS - 1
    );
    for version in fetch::VERSION_MIN..=highest {
        let position = |partition| FetchPosition {
            partition,
            current_leader_epoch: -1,
            offset: if partition == 0 { 5 } else { 0 },
            last_fetched_epoch: -1,
            max_bytes: 1 << 20,
        };
        let request = FetchRequest {
            isolation: Isolation::ReadCommitted,
            topics: vec![FetchTopic {
                name: "orders".into(),
                topic_id,
                partitions: vec![position(0), position(1), position(2)],
            }],
            ..FetchRequest::default()
        };
        let correlation_id = 1000 + i32::from(version);
        connection
            .writer()
            .write(&[fetch::encode(correlation_id, "test", version, &request)])
            .await
            .unwrap();
        let frame = connection.reader().read().await.unwrap();
        let inside = frame.as_ptr_range();
        let response = fetch::decode(frame, version).unwrap();
        assert_eq!(
            (response.correlation_id, response.error_code),
            (correlation_id, 0),
            "v{version}"
        );
        let topic = &response.topics[0];
        assert!(
            if version >= 13 {
                topic.topic_id == topic_id
            } else {
                &*topic.name == "orders"
            },
            "v{version}"
        );
        let found: BTreeMap<i32, (i64, usize)> = topic
            .partitions
            .iter()
            .map(|found| {
                assert_eq!(found.error_code, 0, "v{version}");
                let batches = standfast_wire::batch::batches(found.records.clone());
                for batch in batches.clone() {
                    let batch = batch.unwrap();
                    batch.verify_crc().unwrap();
                    assert!(
                        inside.contains(&batch.bytes.as_ptr()),
                        "v{version}: the payload was copied"
                    );
                }
                (found.partition, (found.high_watermark, batches.count()))
            })
            .collect();
        assert_eq!(
            found,
            BTreeMap::from([(0, (7, 1)), (1, (1, 1)), (2, (0, 0))]),
            "v{version}"
        );
    }
}

async fn groups(cluster: &Cluster) {
    assert_eq!(
        cluster.describe_group("billing").await.unwrap().state,
        "Dead"
    );
    assert!(cluster.offset_fetch("billing").await.unwrap().is_empty());
    let committed = CommittedOffset {
        offset: 6,
        leader_epoch: -1,
        metadata: "by standfast".to_owned(),
    };
    let partition = TopicPartition::new("orders", 0);
    let results = cluster
        .offset_commit("billing", &[(partition.clone(), committed.clone())])
        .await
        .unwrap();
    results.into_iter().for_each(|(_, result)| result.unwrap());
    let fetched = cluster.offset_fetch("billing").await.unwrap();
    assert_eq!(fetched.len(), 1);
    assert_eq!(fetched[0].0, partition);
    assert_eq!(fetched[0].1.as_ref().unwrap(), &committed);
    let described = cluster.describe_group("billing").await.unwrap();
    assert_eq!(
        (described.state.as_str(), described.members.len()),
        ("Empty", 0)
    );

    assert_eq!(cluster.describe_transaction("link-1").await.unwrap(), None);
    let first = cluster.init_producer_id(Some("link-1")).await.unwrap();
    let second = cluster.init_producer_id(Some("link-1")).await.unwrap();
    assert_eq!(second.producer_id, first.producer_id);
    assert_eq!(second.epoch, first.epoch + 1, "the second fences the first");
    let described = cluster
        .describe_transaction("link-1")
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (
            described.producer_id,
            described.epoch,
            described.state.as_str()
        ),
        (second.producer_id, second.epoch, "Empty")
    );
}

async fn missing_things(cluster: &Cluster, kafka: &KafkaCluster) {
    let error = cluster.leader("no-such-topic", 0).await.unwrap_err();
    assert_eq!(
        error.code(),
        Some(ResponseError::UnknownTopicOrPartition),
        "{error}"
    );
    let asked = [
        (TopicPartition::new("no-such-topic", 0), OffsetSpec::Latest),
        (TopicPartition::new("orders", 2), OffsetSpec::Latest),
    ];
    let results: BTreeMap<_, _> = cluster
        .list_offsets(&asked, Isolation::ReadUncommitted)
        .await
        .into_iter()
        .collect();
    assert_eq!(
        results[&asked[1].0].as_ref().unwrap().offset,
        0,
        "one missing topic does not spoil the others"
    );
    assert_eq!(
        results[&asked[0].0].as_ref().unwrap_err().code(),
        Some(ResponseError::UnknownTopicOrPartition)
    );

    let wrong = ClusterOptions {
        expected_cluster_id: Some("another-cluster".to_owned()),
        ..options(&kafka.bootstrap())
    };
    match Cluster::connect(wrong).await.unwrap_err() {
        Error::WrongClusterId {
            expected,
            found,
            bootstrap,
        } => {
            assert_eq!(
                (expected.as_str(), found.as_str()),
                ("another-cluster", kafka.cluster_id())
            );
            assert_eq!(bootstrap, kafka.bootstrap());
        }
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_restart_is_survived_and_a_frozen_broker_does_not_hang_the_caller() {
    let mut kafka = KafkaCluster::start("wire-restart").unwrap();
    let patient = ClusterOptions {
        request_timeout: Duration::from_secs(3),
        connect_timeout: Duration::from_secs(2),
        ..options(&kafka.bootstrap())
    };
    let cluster = Cluster::connect(patient).await.unwrap();
    cluster.create_topic(new_topic("t", 1)).await.unwrap();
    let latest = [(TopicPartition::new("t", 0), OffsetSpec::Latest)];
    cluster
        .list_offsets(&latest, Isolation::ReadUncommitted)
        .await[0]
        .1
        .as_ref()
        .unwrap();

    kafka.pause();
    // The signal takes a moment to stop every thread of the broker.
    let (began, error) = loop {
        let began = Instant::now();
        if let Err(error) = cluster.refresh_metadata().await {
            break (began, error);
        }
    };
    assert!(error.is_retriable(), "{error}");
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "{:?}",
        began.elapsed()
    );
    kafka.resume();
    cluster.refresh_metadata().await.unwrap();

    kafka.kill();
    let error = cluster.refresh_metadata().await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains(&kafka.bootstrap()), "{error}");
    kafka.restart().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while let Err(error) = &cluster
        .list_offsets(&latest, Isolation::ReadUncommitted)
        .await[0]
        .1
    {
        assert!(error.is_retriable() && Instant::now() < deadline, "{error}");
    }
}

#[tokio::test]
async fn sasl_plain_and_scram() {
    let login = "org.apache.kafka.common.security.scram.ScramLoginModule required;";
    let kafka = KafkaCluster::builder("wire-sasl")
        .sasl_plain("alice", "s3cret")
        .property(
            "listener.name.sasl.sasl.enabled.mechanisms",
            "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
        )
        .property("listener.name.sasl.scram-sha-256.sasl.jaas.config", login)
        .property("listener.name.sasl.scram-sha-512.sasl.jaas.config", login)
        .start()
        .unwrap();
    // Kafka alters a user's credentials once per request.
    for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
        let config = format!("{mechanism}=[password=hunter2]");
        let servers = kafka.bootstrap();
        let arguments = [
            "--bootstrap-server",
            &servers,
            "--alter",
            "--entity-type",
            "users",
            "--entity-name",
            "bob",
            "--add-config",
            &config,
        ];
        let output = kafka.tool("kafka.admin.ConfigCommand", &arguments).unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    let with = |mechanism, username: &str, password: &str| ClusterOptions {
        sasl: Some(SaslOptions {
            mechanism,
            username: username.to_owned(),
            password: SecretString::from(password.to_owned()),
            token: None,
        }),
        ..options(&kafka.sasl_bootstrap().unwrap())
    };
    for (mechanism, username, password) in [
        (SaslMechanism::Plain, "alice", "s3cret"),
        (SaslMechanism::ScramSha256, "bob", "hunter2"),
        (SaslMechanism::ScramSha512, "bob", "hunter2"),
    ] {
        let cluster = Cluster::connect(with(mechanism, username, password))
            .await
            .unwrap();
        assert_eq!(cluster.cluster_id(), kafka.cluster_id());
        cluster.all_topics().await.unwrap();

        let refused = Cluster::connect(with(mechanism, username, "wr0ng-password"))
            .await
            .unwrap_err();
        let text = refused.to_string();
        assert!(matches!(refused, Error::Authentication { .. }), "{text}");
        assert!(
            text.contains(mechanism.name()) && text.contains(&kafka.sasl_bootstrap().unwrap()),
            "{text}"
        );
        assert!(!text.contains("wr0ng"), "{text}");
    }
    let nobody = ClusterOptions {
        connect_timeout: Duration::from_secs(3),
        ..options(&kafka.sasl_bootstrap().unwrap())
    };
    let refused = Cluster::connect(nobody).await.unwrap_err();
    assert!(
        matches!(refused, Error::Unreachable { .. }),
        "without credentials the broker hangs up: {refused}"
    );
}

/// What a transactional producer of `identity` would send.
fn in_transaction(count: i32, identity: ProducerIdentity, sequence: i32) -> RestampedBatch {
    let mut bytes = batch(0, count, b"v").bytes.to_vec();
    bytes[22] |= 0x10;
    let crc = crc32c::crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    let stamp = ProducerStamp {
        producer_id: identity.producer_id,
        producer_epoch: identity.epoch,
        base_sequence: sequence,
    };
    RawBatch::new(bytes.into()).unwrap().restamp(stamp).unwrap()
}

#[tokio::test]
async fn a_transaction_has_an_epoch_of_its_own() {
    let kafka = KafkaCluster::builder("wire-transactions")
        .heap_mb(256)
        .start()
        .unwrap();
    let cluster = Cluster::connect(options(&kafka.bootstrap())).await.unwrap();
    cluster.create_topic(new_topic("t", 1)).await.unwrap();
    let partition = TopicPartition::new("t", 0);
    let leader = cluster.leader("t", 0).await.unwrap();
    let connection = Connection::start(cluster.open_raw(leader).await.unwrap(), cluster.options());
    assert_eq!(
        connection.versions().feature_level("transaction.version"),
        2
    );
    let timeout = Duration::from_secs(10);
    let first = cluster
        .init_producer_id_within(Some("x"), Duration::from_secs(900))
        .await
        .unwrap();
    let too_long = cluster.init_producer_id_within(Some("y"), Duration::from_secs(901));
    assert_eq!(
        too_long.await.unwrap_err().code(),
        Some(ResponseError::InvalidTransactionTimeout)
    );
    for sequence in [0, 0, 3] {
        let batch = in_transaction(3, first, sequence);
        let sent = connection.produce_one(Some("x"), &partition, &batch, timeout);
        let appended = sent.await.unwrap();
        assert_eq!(
            (appended.code, appended.base_offset),
            (None, i64::from(sequence))
        );
    }
    let open = &cluster
        .describe_producers(std::slice::from_ref(&partition))
        .await[0];
    let open = open.1.as_ref().unwrap()[0];
    assert_eq!((open.transaction_start_offset, open.last_sequence), (0, 5));

    let second = cluster.end_transaction("x", first, true).await.unwrap();
    assert_eq!(
        (second.producer_id, second.epoch),
        (first.producer_id, first.epoch + 1)
    );
    let look = Look {
        offset: 6,
        max_bytes: 1,
        max_wait: Duration::from_secs(5),
        isolation: Isolation::ReadUncommitted,
    };
    let marker = cluster
        .fetch_on(&connection, "t", 0, look)
        .await
        .unwrap()
        .batches
        .remove(0);
    assert_eq!(
        (marker.header.base_offset, marker.control_type()),
        (6, Some(1))
    );
    assert_eq!(cluster.leader_log_end(&partition).await.unwrap(), 7);

    // A repeat is answered as before, another outcome is refused, and so is all that comes late.
    assert_eq!(
        cluster.end_transaction("x", first, true).await.unwrap(),
        second
    );
    let other = cluster.end_transaction("x", first, false).await;
    assert_eq!(
        other.unwrap_err().code(),
        Some(ResponseError::InvalidTxnState)
    );
    let deadline = Instant::now() + timeout;
    loop {
        let batch = in_transaction(1, second, 0);
        let sent = connection.produce_one(Some("x"), &partition, &batch, timeout);
        match sent.await.unwrap().code {
            Some(ResponseError::ConcurrentTransactions) if Instant::now() < deadline => {}
            code => break assert_eq!(code, None),
        }
    }
    let late = cluster.end_transaction("x", first, true).await;
    assert_eq!(
        late.unwrap_err().code(),
        Some(ResponseError::ProducerFenced)
    );
    let late = in_transaction(1, first, 6);
    let late = connection.produce_one(Some("x"), &partition, &late, timeout);
    assert_eq!(
        late.await.unwrap().code,
        Some(ResponseError::InvalidProducerEpoch)
    );
    let third = cluster.end_transaction("x", second, false).await.unwrap();

    // A partition that was never written to gets a marker too.
    cluster
        .add_partition_to_transaction("x", third, &partition)
        .await
        .unwrap();
    cluster.end_transaction("x", third, false).await.unwrap();
    for offset in [8, 9] {
        let look = Look { offset, ..look };
        let fetched = cluster.fetch_on(&connection, "t", 0, look).await.unwrap();
        assert_eq!(fetched.batches[0].control_type(), Some(0), "{offset}");
    }
}

#[tokio::test]
async fn one_connection_carries_many_calls_at_once() {
    use kafka_protocol::messages::MetadataRequest;
    let kafka = KafkaCluster::start("wire-pipeline").unwrap();
    let options = options(&kafka.bootstrap());
    let connection = Connection::connect(&options.bootstrap[0], &options)
        .await
        .unwrap();
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let connection = connection.clone();
        calls.spawn(async move { connection.call(MetadataRequest::default()).await });
    }
    // Callers that leave before their answer comes do not disturb the others.
    for _ in 0..50 {
        let call = connection.call(MetadataRequest::default());
        let _ = tokio::time::timeout(Duration::from_micros(50), call).await;
    }
    while let Some(answer) = calls.join_next().await {
        assert_eq!(answer.unwrap().unwrap().brokers.len(), 1);
    }
    assert!(!connection.is_closed());
    connection.call(MetadataRequest::default()).await.unwrap();
}

/// Writes `tests/fixtures/*.bin`: one batch of each codec as the broker's log holds it. Run by hand:
/// `cargo test -p standfast-wire --test real_broker -- --ignored write_fixtures`
#[tokio::test]
#[ignore = "rewrites files in the source tree"]
async fn write_fixtures() {
    let kafka = KafkaCluster::start("wire-fixtures").unwrap();
    let cluster = Cluster::connect(options(&kafka.bootstrap())).await.unwrap();
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        let topic = format!("codec-{codec}");
        cluster.create_topic(new_topic(&topic, 1)).await.unwrap();
        let compression = format!("compression.type={codec}");
        let servers = format!("bootstrap.servers={}", kafka.bootstrap());
        let arguments = [
            "--topic",
            &topic,
            "--num-records",
            "7",
            "--record-size",
            "40",
            "--throughput",
            "-1",
            "--producer-props",
            &servers,
            &compression,
            "linger.ms=500",
        ];
        let output = kafka
            .tool("org.apache.kafka.tools.ProducerPerformance", &arguments)
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let fetched = cluster.fetch_batches(&topic, 0, 0, 1 << 20).await.unwrap();
        let bytes: Bytes = fetched.batches[0].bytes.clone();
        std::fs::write(folder.join(format!("{codec}.bin")), &bytes).unwrap();
    }
}
