//! Load from plain rdkafka producers, and what an independent consumer reads.

use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};

const DELIVERY: Duration = Duration::from_secs(60);
const IDLE: Duration = Duration::from_secs(20);

/// A record to be written, or as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Offset; not used when writing.
    pub offset: i64,
    /// Key; `None` is a null key.
    pub key: Option<Vec<u8>>,
    /// Value; `None` is a tombstone.
    pub value: Option<Vec<u8>>,
    /// Headers in order, repeated keys included.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    /// Milliseconds since the epoch.
    pub timestamp: i64,
}

/// A plain producer with a codec (`none`, `gzip`, `snappy`, `lz4`, `zstd`).
pub fn producer(bootstrap: &str, codec: &str) -> ThreadedProducer<DefaultProducerContext> {
    ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("compression.codec", codec)
        .set("message.max.bytes", "2000000")
        .set("linger.ms", "5")
        .set("queue.buffering.max.messages", "1000000")
        .create()
        .expect("producer")
}

/// Writes records to a partition in order and waits until all are acknowledged.
pub fn write(bootstrap: &str, codec: &str, topic: &str, partition: i32, records: &[Seen]) {
    let producer = producer(bootstrap, codec);
    for seen in records {
        let headers = seen
            .headers
            .iter()
            .fold(OwnedHeaders::new(), |headers, (key, value)| {
                headers.insert(Header {
                    key,
                    value: value.as_deref(),
                })
            });
        let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(topic)
            .partition(partition)
            .timestamp(seen.timestamp)
            .headers(headers);
        record.key = seen.key.as_deref();
        record.payload = seen.value.as_deref();
        let mut record = Some(record);
        while let Some(next) = record.take() {
            if let Err((error, back)) = producer.send(next) {
                assert_eq!(
                    error.rdkafka_error_code(),
                    Some(rdkafka::types::RDKafkaErrorCode::QueueFull),
                    "produce: {error}"
                );
                std::thread::sleep(Duration::from_millis(5));
                record = Some(back);
            }
        }
    }
    producer.flush(DELIVERY).expect("all records acknowledged");
}

/// Reads a partition from its beginning until `end` (exclusive offset) with an independent consumer.
pub fn read(bootstrap: &str, topic: &str, partition: i32, end: i64) -> Vec<Seen> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "standfast-tests-reader")
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        .set("check.crcs", "true")
        .create()
        .expect("consumer");
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Beginning)
        .expect("assignment");
    consumer.assign(&list).expect("assign");
    let mut records: Vec<Seen> = Vec::new();
    let mut last = Instant::now();
    while records.last().map_or(0, |seen| seen.offset + 1) < end {
        match consumer.poll(Duration::from_millis(200)) {
            Some(Ok(message)) => {
                last = Instant::now();
                records.push(Seen {
                    offset: message.offset(),
                    key: message.key().map(<[u8]>::to_vec),
                    value: message.payload().map(<[u8]>::to_vec),
                    headers: message.headers().map_or_else(Vec::new, |headers| {
                        headers
                            .iter()
                            .map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec)))
                            .collect()
                    }),
                    timestamp: message.timestamp().to_millis().unwrap_or(-1),
                });
            }
            Some(Err(error)) => panic!("read {topic}-{partition}: {error}"),
            None => assert!(
                last.elapsed() < IDLE,
                "{topic}-{partition}: nothing after {:?}, expected up to {end}",
                records.last().map(|seen| seen.offset)
            ),
        }
    }
    records
}
