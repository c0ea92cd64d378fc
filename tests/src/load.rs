//! Load from plain rdkafka producers, and what an independent consumer reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};

const DELIVERY: Duration = Duration::from_secs(60);
/// Pause of the steady load after one record for each partition.
const LOAD_PAUSE: Duration = Duration::from_millis(2);
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

/// An idempotent producer that writes to all partitions of a topic at a steady pace. Dropping it ends it.
#[derive(Debug)]
pub struct SteadyLoad {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl SteadyLoad {
    /// Starts to write.
    pub fn start(bootstrap: &str, topic: &str, partitions: i32) -> Self {
        let (stop, written) = (Arc::default(), Arc::default());
        let (bootstrap, topic) = (bootstrap.to_owned(), topic.to_owned());
        let (is_over, count) = (Arc::clone(&stop), Arc::clone(&written));
        let thread = thread::spawn(move || {
            write_steadily(&bootstrap, &topic, partitions, &is_over, &count);
        });
        Self {
            stop,
            written,
            thread: Some(thread),
        }
    }

    /// Records given to the producer so far.
    pub fn written(&self) -> usize {
        self.written.load(Ordering::Relaxed)
    }

    /// Ends the load, waits until all is acknowledged and returns how many records there are.
    pub fn finish(mut self) -> i64 {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the load");
        }
        self.written() as i64
    }
}

impl Drop for SteadyLoad {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn write_steadily(
    bootstrap: &str,
    topic: &str,
    partitions: i32,
    stop: &AtomicBool,
    written: &AtomicUsize,
) {
    let producer = config(bootstrap, "lz4")
        .set("enable.idempotence", "true")
        .create::<ThreadedProducer<DefaultProducerContext>>()
        .expect("producer");
    let value = vec![b'x'; 500];
    while !stop.load(Ordering::Relaxed) {
        for partition in 0..partitions {
            let key = written.fetch_add(1, Ordering::Relaxed).to_string();
            let record = BaseRecord::to(topic)
                .partition(partition)
                .key(&key)
                .payload(&value);
            let sent = producer.send(record).map_err(|(error, _)| error);
            sent.expect("produce");
        }
        thread::sleep(LOAD_PAUSE);
    }
    producer.flush(DELIVERY).expect("all acknowledged");
}

/// A plain producer with a codec (`none`, `gzip`, `snappy`, `lz4`, `zstd`).
pub fn producer(bootstrap: &str, codec: &str) -> ThreadedProducer<DefaultProducerContext> {
    config(bootstrap, codec).create().expect("producer")
}

fn config(bootstrap: &str, codec: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", bootstrap)
        .set("compression.codec", codec)
        .set("message.max.bytes", "2000000")
        .set("linger.ms", "5")
        .set("queue.buffering.max.messages", "1000000");
    config
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
