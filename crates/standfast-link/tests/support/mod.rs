//! What the link's tests share: real clusters, hand-made batches, and the comparison of two logs.
#![allow(dead_code, unreachable_pub, unused_imports)]

mod configs;

pub use configs::{COMPACTED, alter, compact_no_more};

use std::future::Future;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use standfast_link::{
    Link, LinkDescription, LinkHandle, LinkName, LinkOptions, MirrorStatus, PartitionLag,
};
use standfast_servers::KafkaCluster;
use standfast_wire::admin::OffsetSpec;
use standfast_wire::batch::{HEADER_LEN, ProducerStamp, RawBatch};
use standfast_wire::fetch::Isolation;
use standfast_wire::{BrokerId, Cluster, ClusterOptions, HostPort, TopicPartition, produce};
use tokio_util::sync::CancellationToken;

/// Longest wait for something that should happen.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Heap that is enough for a broker in these tests.
const HEAP_MB: u32 = 256;
/// A leader named by the metadata has taken over by then.
const LEADS_BY: Duration = Duration::from_secs(20);
const NOT_LEADER_OR_FOLLOWER: i16 = 6;

/// Starts a cluster with what a single broker needs for transactions.
pub fn kafka(name: &str) -> KafkaCluster {
    KafkaCluster::builder(name)
        .heap_mb(HEAP_MB)
        .start()
        .expect("a Kafka cluster")
}

pub fn options(cluster: &KafkaCluster) -> ClusterOptions {
    ClusterOptions::new(HostPort::parse_list(&cluster.bootstrap()).expect("addresses"))
}

pub async fn connect(cluster: &KafkaCluster) -> Cluster {
    Cluster::connect(options(cluster))
        .await
        .expect("a connection")
}

/// A running link; stopped on drop.
pub struct Running {
    pub handle: LinkHandle,
    pub shutdown: CancellationToken,
    pub task: tokio::task::JoinHandle<Result<(), standfast_link::Error>>,
}

impl Running {
    pub fn start(options: LinkOptions) -> Self {
        let (link, handle) = Link::new(options).expect("valid options");
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(link.run(shutdown.clone()));
        Self {
            handle,
            shutdown,
            task,
        }
    }

    pub async fn end(mut self) {
        let began = Instant::now();
        self.shutdown.cancel();
        (&mut self.task).await.expect("no panic").expect("no error");
        // Promptly; the rest is for machines that build and test at once.
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "shutdown took {:?}",
            began.elapsed()
        );
    }

    pub fn partition(&self, partition: usize) -> Option<PartitionLag> {
        self.handle
            .describe()
            .mirrors
            .first()?
            .mirror_lags
            .get(partition)
            .cloned()
    }

    pub async fn wait(&self, what: &str, condition: impl Fn(&LinkDescription) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let description = self.handle.describe();
            if condition(&description) {
                return;
            }
            assert!(Instant::now() < deadline, "{what}: {description:#?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until every partition mirrors and has nothing left to mirror.
    pub async fn wait_caught_up(&self, source: &Cluster, topic: &str) {
        let ends = log_ends(source, topic).await;
        self.wait("caught up", |link| {
            let Some(mirror) = link.mirrors.iter().find(|m| m.mirror_topic_name == topic) else {
                return false;
            };
            mirror.mirror_status == MirrorStatus::Active
                && mirror.mirror_lags.len() == ends.len()
                && mirror
                    .mirror_lags
                    .iter()
                    .zip(&ends)
                    .all(|(p, end)| p.destination_log_end_offset == Some(*end))
        })
        .await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

pub fn link_options(
    name: &str,
    source: &KafkaCluster,
    destination: &KafkaCluster,
    topics: &[&str],
) -> LinkOptions {
    let topics = topics.iter().map(|t| (*t).to_owned()).collect();
    let mut options = LinkOptions::new(
        LinkName::new(name).expect("a name"),
        options(source),
        options(destination),
        topics,
    );
    options.metadata_refresh = Duration::from_secs(1);
    options
}

pub async fn wait_for<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The leader of a partition that may have been created a moment ago: a broker names it a little after the answer to the creation.
pub async fn leader(cluster: &Cluster, topic: &str, partition: i32) -> BrokerId {
    let deadline = Instant::now() + LEADS_BY;
    loop {
        match cluster.leader(topic, partition).await {
            Ok(leader) => return leader,
            Err(error) => assert!(Instant::now() < deadline, "{topic}-{partition}: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// One record of a hand-made batch.
#[derive(Clone, Default)]
pub struct Record {
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Record {
    pub fn new(key: &str, value: impl Into<Vec<u8>>) -> Self {
        Self {
            key: Some(key.as_bytes().to_vec()),
            value: Some(value.into()),
            headers: Vec::new(),
        }
    }
}

/// What a test may set in a batch header.
#[derive(Clone, Copy)]
pub struct Stamp {
    pub attributes: i16,
    pub producer_id: i64,
    pub producer_epoch: i16,
    pub base_sequence: i32,
}

pub const PLAIN: Stamp = Stamp {
    attributes: 0,
    producer_id: -1,
    producer_epoch: -1,
    base_sequence: -1,
};

/// An uncompressed batch.
pub fn batch(records: &[Record], stamp: Stamp) -> RawBatch {
    let mut body = BytesMut::new();
    for (delta, record) in records.iter().enumerate() {
        let mut one = BytesMut::new();
        one.put_u8(0);
        varint(&mut one, i64::try_from(delta).expect("small"));
        varint(&mut one, i64::try_from(delta).expect("small"));
        bytes(&mut one, record.key.as_deref());
        bytes(&mut one, record.value.as_deref());
        varint(&mut one, record.headers.len() as i64);
        for (name, value) in &record.headers {
            bytes(&mut one, Some(name.as_bytes()));
            bytes(&mut one, value.as_deref());
        }
        varint(&mut body, one.len() as i64);
        body.put_slice(&one);
    }
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970")
        .as_millis() as i64;
    let count = i32::try_from(records.len()).expect("small");
    let mut covered = BytesMut::new();
    covered.put_i16(stamp.attributes);
    covered.put_i32(count - 1);
    covered.put_i64(now);
    covered.put_i64(now + i64::from(count) - 1);
    covered.put_i64(stamp.producer_id);
    covered.put_i16(stamp.producer_epoch);
    covered.put_i32(stamp.base_sequence);
    covered.put_i32(count);
    covered.put_slice(&body);
    let mut whole = BytesMut::new();
    whole.put_i64(0);
    whole.put_i32(i32::try_from(covered.len() + 9).expect("small"));
    whole.put_i32(-1);
    whole.put_i8(2);
    whole.put_u32(crc_fast::crc32_iscsi(&covered));
    whole.put_slice(&covered);
    RawBatch::new(Bytes::from(whole)).expect("a batch")
}

fn varint(out: &mut BytesMut, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest > 0x7f {
        out.put_u8((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    out.put_u8(rest as u8);
}

fn bytes(out: &mut BytesMut, value: Option<&[u8]>) {
    varint(out, value.map_or(-1, |v| v.len() as i64));
    out.put_slice(value.unwrap_or_default());
}

/// Appends a batch as some other producer would; answers the offset it got, or the error code.
pub async fn append(
    cluster: &Cluster,
    topic: &str,
    partition: i32,
    batch: &RawBatch,
) -> Result<i64, i16> {
    append_in(cluster, topic, partition, batch, None).await
}

pub async fn append_in(
    cluster: &Cluster,
    topic: &str,
    partition: i32,
    batch: &RawBatch,
    transaction: Option<&str>,
) -> Result<i64, i16> {
    let h = &batch.header;
    let stamp = ProducerStamp {
        producer_id: h.producer_id,
        producer_epoch: h.producer_epoch,
        base_sequence: h.base_sequence,
    };
    let leader = leader(cluster, topic, partition).await;
    let (mut reader, mut writer) = cluster
        .open_raw(leader)
        .await
        .expect("a connection")
        .into_split();
    let part = (topic, partition, batch.restamp(stamp).expect("restamped"));
    writer
        .write(&produce::encode(
            1,
            "test",
            -1,
            10_000,
            transaction,
            &[part],
        ))
        .await
        .expect("written");
    let answer = produce::decode(reader.read().await.expect("an answer")).expect("decoded");
    let result = &answer.partitions[0];
    if result.error_code == 0 {
        Ok(result.base_offset)
    } else {
        Err(result.error_code)
    }
}

/// Appends `count` batches of 10 small records.
pub async fn append_some(cluster: &Cluster, topic: &str, partition: i32, count: usize) {
    let leader = leader(cluster, topic, partition).await;
    let (mut reader, mut writer) = cluster
        .open_raw(leader)
        .await
        .expect("a connection")
        .into_split();
    for n in 0..count {
        let records: Vec<Record> = (0..10)
            .map(|r| {
                Record::new(
                    &format!("k{r}"),
                    format!("value {n} {r} of {topic}-{partition}"),
                )
            })
            .collect();
        let plain = ProducerStamp {
            producer_id: -1,
            producer_epoch: -1,
            base_sequence: -1,
        };
        let batch = batch(&records, PLAIN).restamp(plain).expect("restamped");
        let deadline = Instant::now() + LEADS_BY;
        loop {
            let part = (topic, partition, batch.clone());
            writer
                .write(&produce::encode(1, "test", -1, 10_000, None, &[part]))
                .await
                .expect("written");
            let answer = produce::decode(reader.read().await.expect("an answer")).expect("decoded");
            match answer.partitions[0].error_code {
                0 => break,
                // A broker that has just come back is named as leader a little before it has taken over.
                NOT_LEADER_OR_FOLLOWER if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                code => panic!("{topic}-{partition}: Produce: error code {code}"),
            }
        }
    }
}

/// Log end of every partition of a topic.
pub async fn log_ends(cluster: &Cluster, topic: &str) -> Vec<i64> {
    offsets(cluster, topic, OffsetSpec::Latest).await
}

pub async fn log_starts(cluster: &Cluster, topic: &str) -> Vec<i64> {
    offsets(cluster, topic, OffsetSpec::Earliest).await
}

async fn offsets(cluster: &Cluster, topic: &str, spec: OffsetSpec) -> Vec<i64> {
    let metadata = cluster.topics(&[topic]).await.expect("metadata");
    let count = metadata.topics.get(topic).map_or(0, |t| t.partitions.len());
    let questions: Vec<_> = (0..count)
        .map(|p| (TopicPartition::new(topic, p as i32), spec))
        .collect();
    let mut answers = cluster
        .list_offsets(&questions, Isolation::ReadUncommitted)
        .await;
    answers.sort_by_key(|(id, _)| id.partition);
    answers
        .into_iter()
        .map(|(_, listed)| listed.expect("an offset").offset)
        .collect()
}

/// All batches of a partition from its log start.
pub async fn read_all(cluster: &Cluster, topic: &str, partition: i32) -> Vec<RawBatch> {
    let start = log_starts(cluster, topic).await[partition as usize];
    let end = log_ends(cluster, topic).await[partition as usize];
    let mut all: Vec<RawBatch> = Vec::new();
    let mut at = start;
    while at < end {
        let fetched = cluster
            .fetch_batches(topic, partition, at, 8 << 20)
            .await
            .expect("batches");
        assert!(!fetched.batches.is_empty(), "nothing at {at} of {end}");
        for batch in fetched.batches {
            batch.verify_crc().expect("an undamaged batch");
            if batch.header.next_offset() > at {
                at = batch.header.next_offset();
                all.push(batch);
            }
        }
    }
    all
}

/// One record: offset, timestamp, attributes, and key, value and headers as encoded.
pub type Flat = (i64, i64, u8, Vec<u8>);

/// The records of an uncompressed batch.
pub fn flat(batch: &RawBatch) -> Vec<Flat> {
    assert_eq!(batch.header.attributes.0, 0, "plain and uncompressed");
    let mut rest = &batch.bytes[HEADER_LEN..];
    let mut records = Vec::new();
    while !rest.is_empty() {
        let length = read_varint(&mut rest) as usize;
        let (mut record, after) = rest.split_at(length);
        rest = after;
        let attributes = record[0];
        record = &record[1..];
        let timestamp = batch.header.base_timestamp + read_varint(&mut record);
        let offset = batch.header.base_offset + read_varint(&mut record);
        records.push((offset, timestamp, attributes, record.to_vec()));
    }
    records
}

fn read_varint(rest: &mut &[u8]) -> i64 {
    let (mut value, mut shift) = (0u64, 0);
    loop {
        let byte = rest[0];
        *rest = &rest[1..];
        value |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            return (value >> 1) as i64 ^ -((value & 1) as i64);
        }
    }
}

/// Every batch has the same offsets, timestamps, attributes and record bytes on both sides; every marker the same offset and outcome. A batch that the link
/// joined has the same records as those of the source. Answers how many were joined.
pub async fn assert_identical(source: &Cluster, destination: &Cluster, topic: &str) -> usize {
    let (source_ends, destination_ends) = (
        log_ends(source, topic).await,
        log_ends(destination, topic).await,
    );
    assert_eq!(source_ends, destination_ends, "log ends of {topic}");
    let mut joined = 0;
    for partition in 0..source_ends.len() as i32 {
        let (theirs, ours) = (
            read_all(source, topic, partition).await,
            read_all(destination, topic, partition).await,
        );
        let mut theirs = theirs.iter();
        for mirrored in &ours {
            let first = theirs.next().expect("a batch of the source");
            if first.header.next_offset() == mirrored.header.next_offset() {
                assert_same_batch(first, mirrored, topic);
                continue;
            }
            let (mut records, mut end) = (flat(first), first.header.next_offset());
            while end < mirrored.header.next_offset() {
                let next = theirs.next().expect("a batch of the source");
                records.extend(flat(next));
                end = next.header.next_offset();
            }
            assert!(
                records == flat(mirrored),
                "{topic}-{partition} before {end}"
            );
            joined += 1;
        }
        assert!(theirs.next().is_none(), "batches of {topic}-{partition}");
    }
    joined
}

fn assert_same_batch(a: &RawBatch, b: &RawBatch, topic: &str) {
    if a.header.attributes.is_control() {
        let marker = |m: &RawBatch| (m.header.base_offset, m.control_type());
        assert_eq!(marker(a), marker(b), "{topic}");
        assert_eq!(a.header.attributes, b.header.attributes);
        return;
    }
    let same = |h: &standfast_wire::batch::BatchHeader| {
        (
            h.base_offset,
            h.last_offset_delta,
            h.record_count,
            h.base_timestamp,
            h.max_timestamp,
            h.attributes.0,
        )
    };
    assert_eq!(same(&a.header), same(&b.header), "{topic}");
    assert!(
        a.bytes[HEADER_LEN..] == b.bytes[HEADER_LEN..],
        "record bytes of {topic} at {}",
        a.header.base_offset
    );
}
