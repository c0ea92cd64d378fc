//! The hand-made Produce and Fetch against the generated ones, and all decoders on garbage.
#![allow(clippy::unwrap_used)] // helpers of tests

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::fetch_response::{
    AbortedTransaction, EpochEndOffset, FetchableTopicResponse, LeaderIdAndEpoch, PartitionData,
};
use kafka_protocol::messages::produce_response::{
    BatchIndexAndErrorMessage, PartitionProduceResponse, TopicProduceResponse,
};
use kafka_protocol::messages::{
    BrokerId, FetchRequest as GeneratedFetchRequest, FetchResponse as GeneratedFetchResponse,
    ProduceRequest, ProduceResponse, RequestHeader, ResponseHeader, TopicName,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, StrBytes};
use proptest::prelude::*;
use standfast_wire::batch::{HEADER_LEN, RestampedBatch};
use standfast_wire::fetch::{
    self, FetchPosition, FetchRequest, FetchTopic, ForgottenTopic, Isolation, TopicId,
};
use standfast_wire::produce;

fn fetch_request() -> FetchRequest {
    let position = |partition, offset| FetchPosition {
        partition,
        current_leader_epoch: 5,
        offset,
        last_fetched_epoch: 4,
        max_bytes: 1000 + partition,
    };
    let topic = |name: &str, id, partitions| FetchTopic {
        name: name.into(),
        topic_id: TopicId::from_u128(id),
        partitions,
    };
    FetchRequest {
        max_wait_ms: 250,
        min_bytes: 2,
        max_bytes: 3_000_000,
        isolation: Isolation::ReadCommitted,
        session_id: 12,
        session_epoch: 34,
        topics: vec![
            topic(
                "orders",
                1 << 100,
                vec![position(0, 1 << 40), position(7, 0)],
            ),
            topic("payments", 2, vec![position(3, 9)]),
        ],
        forgotten: vec![ForgottenTopic {
            name: "gone".into(),
            topic_id: TopicId::from_u128(3),
            partitions: vec![1, 2],
        }],
    }
}

#[test]
fn fetch_requests_read_back_as_written_in_every_version() {
    let request = fetch_request();
    for version in fetch::VERSION_MIN..=fetch::VERSION_MAX {
        let mut frame = fetch::encode(77, "tester", version, &request);
        let header =
            RequestHeader::decode(&mut frame, GeneratedFetchRequest::header_version(version))
                .unwrap();
        assert_eq!(
            (header.request_api_key, header.request_api_version),
            (1, version)
        );
        assert_eq!(
            (header.correlation_id, header.client_id.as_deref()),
            (77, Some("tester"))
        );
        let read = GeneratedFetchRequest::decode(&mut frame, version).unwrap();
        assert!(frame.is_empty(), "v{version}");
        assert_eq!(
            (
                read.max_wait_ms,
                read.min_bytes,
                read.max_bytes,
                read.isolation_level
            ),
            (250, 2, 3_000_000, 1)
        );
        assert_eq!(read.replica_id.0, -1);
        if version >= 7 {
            assert_eq!((read.session_id, read.session_epoch), (12, 34));
            let gone = &read.forgotten_topics_data[0];
            assert_eq!(gone.partitions, [1, 2]);
            assert!(if version >= 13 {
                gone.topic_id.as_u128() == 3
            } else {
                gone.topic.as_str() == "gone"
            });
        }
        assert_eq!(read.topics.len(), 2);
        assert!(if version >= 13 {
            read.topics[0].topic_id.as_u128() == 1 << 100
        } else {
            read.topics[0].topic.as_str() == "orders"
        });
        let found: Vec<_> = read
            .topics
            .iter()
            .flat_map(|topic| &topic.partitions)
            .collect();
        assert_eq!(found.len(), 3);
        assert_eq!(
            (
                found[0].partition,
                found[0].fetch_offset,
                found[0].partition_max_bytes
            ),
            (0, 1 << 40, 1000)
        );
        assert_eq!(
            (
                found[2].partition,
                found[2].fetch_offset,
                found[2].partition_max_bytes
            ),
            (3, 9, 1003)
        );
        assert_eq!(
            found[0].current_leader_epoch,
            if version >= 9 { 5 } else { -1 }
        );
        assert_eq!(
            found[0].last_fetched_epoch,
            if version >= 12 { 4 } else { -1 }
        );
        assert_eq!(found[0].log_start_offset, -1);
    }
}

fn fetch_response(version: i16) -> Bytes {
    let mut partition = PartitionData::default()
        .with_partition_index(7)
        .with_error_code(6)
        .with_high_watermark(100)
        .with_last_stable_offset(90)
        .with_aborted_transactions(Some(vec![
            AbortedTransaction::default()
                .with_producer_id(11.into())
                .with_first_offset(12),
        ]))
        .with_records(Some(Bytes::from_static(b"these are the records")));
    if version >= 5 {
        partition.log_start_offset = 80;
    }
    if version >= 12 {
        partition.current_leader = LeaderIdAndEpoch::default()
            .with_leader_id(BrokerId(2))
            .with_leader_epoch(9);
        partition.diverging_epoch = EpochEndOffset::default().with_epoch(3).with_end_offset(44);
    }
    let empty = PartitionData::default()
        .with_partition_index(8)
        .with_aborted_transactions(None)
        .with_records(None);
    let mut topic = FetchableTopicResponse::default().with_partitions(vec![partition, empty]);
    if version >= 13 {
        topic.topic_id = TopicId::from_u128(1 << 100);
    } else {
        topic.topic = TopicName(StrBytes::from_static_str("orders"));
    }
    let mut response = GeneratedFetchResponse::default()
        .with_throttle_time_ms(5)
        .with_responses(vec![topic]);
    if version >= 7 {
        response.session_id = 1_900_000_000;
    }
    answer(&response, version)
}

fn answer<R: Encodable + HeaderVersion>(response: &R, version: i16) -> Bytes {
    let mut frame = BytesMut::new();
    let header = ResponseHeader::default().with_correlation_id(77);
    header
        .encode(&mut frame, R::header_version(version))
        .unwrap();
    response.encode(&mut frame, version).unwrap();
    frame.freeze()
}

#[test]
fn fetch_answers_read_as_the_generated_code_writes_them() {
    for version in fetch::VERSION_MIN..=fetch::VERSION_MAX {
        let frame = fetch_response(version);
        let read = fetch::decode(frame.clone(), version).unwrap();
        assert_eq!(
            (read.correlation_id, read.throttle_ms, read.error_code),
            (77, 5, 0),
            "v{version}"
        );
        assert_eq!(
            read.session_id,
            if version >= 7 { 1_900_000_000 } else { 0 }
        );
        let topic = &read.topics[0];
        assert!(if version >= 13 {
            topic.topic_id.as_u128() == 1 << 100
        } else {
            &*topic.name == "orders"
        });
        let [found, empty] = &topic.partitions[..] else {
            panic!("v{version}: {topic:?}")
        };
        assert_eq!((found.partition, found.error_code), (7, 6));
        assert_eq!((found.high_watermark, found.last_stable_offset), (100, 90));
        assert_eq!(found.log_start_offset, if version >= 5 { 80 } else { -1 });
        assert_eq!(found.aborted, [(11, 12)]);
        assert_eq!(found.current_leader, (version >= 12).then_some((2, 9)));
        assert_eq!(found.diverging, (version >= 12).then_some((3, 44)));
        assert_eq!(&found.records[..], b"these are the records");
        assert!(
            frame.as_ptr_range().contains(&found.records.as_ptr()),
            "v{version}: the records were copied"
        );
        assert_eq!(
            (empty.partition, empty.records.len(), empty.aborted.len()),
            (8, 0, 0)
        );
        assert_eq!((empty.current_leader, empty.diverging), (None, None));
        for cut in 0..frame.len() {
            assert!(
                fetch::decode(frame.slice(..cut), version).is_err(),
                "v{version} cut at {cut}"
            );
        }
    }
    assert!(fetch::decode(fetch_response(17), 18).is_err());
}

#[test]
fn produce_requests_read_back_as_written_and_bodies_are_not_copied() {
    let batch = |byte: u8, length| RestampedBatch {
        header: [byte; HEADER_LEN],
        body: vec![byte; length].into(),
    };
    let parts = [
        ("orders", 0, batch(1, 1000)),
        ("orders", 5, batch(2, 0)),
        ("payments", 2, batch(3, 70_000)),
    ];
    let frame = produce::encode(99, "tester", -1, 30_000, Some("link-1"), &parts);
    for (_, _, batch) in &parts {
        assert!(
            frame
                .iter()
                .any(|part| part.as_ptr() == batch.body.as_ptr() && part.len() == batch.body.len())
        );
    }
    let mut frame = Bytes::from(frame.concat());
    let header = RequestHeader::decode(&mut frame, ProduceRequest::header_version(8)).unwrap();
    assert_eq!(
        (
            header.request_api_key,
            header.request_api_version,
            header.correlation_id
        ),
        (0, 8, 99)
    );
    let read = ProduceRequest::decode(&mut frame, 8).unwrap();
    assert!(frame.is_empty());
    assert_eq!((read.acks, read.timeout_ms), (-1, 30_000));
    assert_eq!(
        read.transactional_id.map(|id| id.0.to_string()).as_deref(),
        Some("link-1")
    );
    let found: BTreeMap<(String, i32), Bytes> = read
        .topic_data
        .iter()
        .flat_map(|topic| {
            let each = topic.partition_data.iter();
            each.map(|part| {
                (
                    (topic.name.0.to_string(), part.index),
                    part.records.clone().unwrap(),
                )
            })
        })
        .collect();
    assert_eq!((read.topic_data.len(), found.len()), (2, 3));
    for (topic, partition, batch) in &parts {
        let records = &found[&((*topic).to_owned(), *partition)];
        assert_eq!(records[..], [&batch.header[..], &batch.body].concat()[..]);
    }
    assert!(produce::decode(Bytes::new()).is_err());
    assert_eq!(
        produce::encode(1, "c", -1, 1, None, &[]).concat().len(),
        8 + 3 + 2 + 2 + 4 + 4
    );
}

fn produce_response() -> Bytes {
    let result = PartitionProduceResponse::default()
        .with_index(5)
        .with_error_code(87)
        .with_base_offset(-1)
        .with_log_start_offset(3)
        .with_record_errors(vec![
            BatchIndexAndErrorMessage::default()
                .with_batch_index(0)
                .with_batch_index_error_message(Some(StrBytes::from_static_str("first"))),
        ])
        .with_error_message(Some(StrBytes::from_static_str("whole")));
    let good = PartitionProduceResponse::default()
        .with_index(6)
        .with_base_offset(1 << 40);
    let topic = TopicProduceResponse::default()
        .with_name(TopicName(StrBytes::from_static_str("orders")))
        .with_partition_responses(vec![result, good]);
    let response = ProduceResponse::default()
        .with_responses(vec![topic])
        .with_throttle_time_ms(9);
    answer(&response, 8)
}

#[test]
fn produce_answers_read_as_the_generated_code_writes_them() {
    let frame = produce_response();
    let read = produce::decode(frame.clone()).unwrap();
    assert_eq!((read.correlation_id, read.throttle_ms), (77, 9));
    let [bad, good] = &read.partitions[..] else {
        panic!("{read:?}")
    };
    assert_eq!(
        (&*bad.topic, bad.partition, bad.error_code, bad.base_offset),
        ("orders", 5, 87, -1)
    );
    assert_eq!((&*bad.error_message, bad.log_start_offset), ("whole", 3));
    assert_eq!(
        (
            good.partition,
            good.error_code,
            good.base_offset,
            good.log_append_time
        ),
        (6, 0, 1 << 40, -1)
    );
    for cut in 0..frame.len() {
        assert!(produce::decode(frame.slice(..cut)).is_err(), "cut at {cut}");
    }
}

proptest! {
    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400), version in -1i16..20) {
        let bytes = Bytes::from(bytes);
        let _ = produce::decode(bytes.clone());
        let _ = fetch::decode(bytes, version);
    }

    #[test]
    fn damaged_answers_never_panic(
        damage in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..5),
        version in fetch::VERSION_MIN..=fetch::VERSION_MAX,
    ) {
        for (frame, is_fetch) in [(fetch_response(version), true), (produce_response(), false)] {
            let mut damaged = frame.to_vec();
            for (at, value) in &damage {
                let at = at % damaged.len();
                damaged[at] = *value;
            }
            if is_fetch {
                let _ = fetch::decode(damaged.into(), version);
            } else {
                let _ = produce::decode(damaged.into());
            }
        }
    }
}
