//! Logs with holes: compacted topics and LogAppendTime. Kafka's own consumer reads both sides and must see the same records at the same offsets.

#[path = "holes/bytes.rs"]
mod bytes;
mod support;

use std::io::Write;
use std::sync::OnceLock;

use ::bytes::{BufMut, BytesMut};
use standfast_link::{FILLER_HEADER, FILLER_KEY};
use standfast_servers::KafkaCluster;
use standfast_wire::Cluster;
use standfast_wire::batch::{HEADER_LEN, RawBatch};
use support::*;

fn clusters() -> &'static (KafkaCluster, KafkaCluster) {
    static CLUSTERS: OnceLock<(KafkaCluster, KafkaCluster)> = OnceLock::new();
    CLUSTERS.get_or_init(|| {
        let source = KafkaCluster::builder("source")
            .heap_mb(256)
            .property("log.cleaner.backoff.ms", "100")
            .start()
            .expect("a Kafka cluster");
        (source, kafka("destination"))
    })
}

/// One record as Kafka's console consumer prints it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    offset: i64,
    text: String,
}

async fn consume(cluster: &'static KafkaCluster, topic: &str) -> Vec<Line> {
    let topic = topic.to_owned();
    tokio::task::spawn_blocking(move || {
        let bootstrap = cluster.bootstrap();
        let mut args = vec![
            "--bootstrap-server",
            &bootstrap,
            "--topic",
            &topic,
            "--partition",
            "0",
            "--offset",
            "earliest",
            "--timeout-ms",
            "4000",
        ];
        for property in [
            "print.offset=true",
            "print.timestamp=true",
            "print.key=true",
            "print.headers=true",
        ] {
            args.extend(["--property", property]);
        }
        let output = cluster
            .tool("org.apache.kafka.tools.consumer.ConsoleConsumer", &args)
            .expect("the console consumer");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines()
            .filter_map(|line| {
                // LogAppendTime:123<tab>Offset:5<tab>headers<tab>key<tab>value
                let mut fields = line.splitn(3, '\t');
                let (_, timestamp) = fields.next()?.split_once(':')?;
                let offset = fields.next()?.strip_prefix("Offset:")?.parse().ok()?;
                Some(Line {
                    offset,
                    text: format!("{timestamp} {}", fields.next()?),
                })
            })
            .collect()
    })
    .await
    .expect("no panic")
}

fn is_filler(line: &Line) -> bool {
    let key = String::from_utf8_lossy(FILLER_KEY);
    line.text.contains(FILLER_HEADER) && line.text.ends_with(&format!("{key}\tnull"))
}

/// Both logs hold the same records at the same offsets; filler stands only where the source holds none.
async fn assert_same(topic: &str) -> usize {
    let (source, destination) = clusters();
    let theirs = consume(source, topic).await;
    let ours = consume(destination, topic).await;
    let filler = ours.iter().filter(|line| is_filler(line)).count();
    let ours: Vec<Line> = ours.into_iter().filter(|line| !is_filler(line)).collect();
    assert!(!theirs.is_empty(), "nothing was read of {topic}");
    assert!(
        theirs.len() == ours.len(),
        "{} and {} records",
        theirs.len(),
        ours.len()
    );
    for (a, b) in theirs.iter().zip(&ours) {
        assert_eq!(a, b);
    }
    filler
}

/// A gzip batch of `count` records with one key, of which compaction leaves the last.
fn repeated(key: &str, count: i32) -> RawBatch {
    let one = batch(&[Record::new(key, "v")], PLAIN);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    for delta in 0..i64::from(count) {
        let mut body = BytesMut::new();
        body.put_slice(&[0, 0]);
        put_varint(&mut body, delta);
        put_varint(&mut body, key.len() as i64);
        body.put_slice(key.as_bytes());
        body.put_slice(&[2, b'v', 0]);
        let mut length = BytesMut::new();
        put_varint(&mut length, body.len() as i64);
        gzip.write_all(&length).expect("memory");
        gzip.write_all(&body).expect("memory");
    }
    let body = gzip.finish().expect("memory");
    let mut bytes = one.bytes.get(..HEADER_LEN).expect("a header").to_vec();
    bytes.extend_from_slice(&body);
    let length = (bytes.len() - 12) as i32;
    bytes[8..12].copy_from_slice(&length.to_be_bytes());
    bytes[22] = 1;
    bytes[23..27].copy_from_slice(&(count - 1).to_be_bytes());
    bytes[57..61].copy_from_slice(&count.to_be_bytes());
    let crc = crc_fast::crc32_iscsi(&bytes[21..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    RawBatch::new(bytes.into()).expect("a batch")
}

fn put_varint(out: &mut BytesMut, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest > 0x7f {
        out.put_u8((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    out.put_u8(rest as u8);
}

/// Writes what compaction makes sparse batches, empty ones, tombstones and a gap of a million offsets of, and waits for it.
async fn compacted(from: &Cluster, topic: &str) {
    let source = &clusters().0;
    source.create_topic(topic, 1, &COMPACTED).expect("a topic");
    for n in 0..5u32 {
        let records: Vec<Record> = (0..20u32)
            .map(|r| {
                Record::new(
                    &format!("k{}", if r % 3 == 0 { 100 + n * 20 + r } else { r }),
                    format!("{n} {r}"),
                )
            })
            .collect();
        append(from, topic, 0, &batch(&records, PLAIN))
            .await
            .expect("appended");
    }
    let tombstone = Record {
        key: Some(b"k1".to_vec()),
        ..Record::default()
    };
    append(from, topic, 0, &batch(&[tombstone], PLAIN))
        .await
        .expect("appended");
    for _ in 0..4 {
        append(from, topic, 0, &repeated("x", 300_000))
            .await
            .expect("appended");
    }
    // What is appended later rolls the segment; the cleaner does the rest.
    wait_for("compacted", || async {
        append(
            from,
            topic,
            0,
            &batch(&[Record::new("last", "1"), Record::new("x", "2")], PLAIN),
        )
        .await
        .expect("appended");
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        let fetched = from
            .fetch_batches(topic, 0, 1_000, 1)
            .await
            .expect("a batch");
        fetched
            .batches
            .first()
            .is_some_and(|b| b.header.base_offset > 800_000)
    })
    .await;
    compact_no_more(from, topic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compacted_topic_is_mirrored_by_two_engines_and_after_restarts() {
    let (source, destination) = clusters();
    let (from, to) = (connect(source).await, connect(destination).await);
    compacted(&from, "compacted").await;
    let options = || link_options("compacted", source, destination, &["compacted"]);
    // Stopped somewhere inside the gap, as often as it takes to come through; two engines at once.
    for at in [200_000, 600_000] {
        let (one, two) = (Running::start(options()), Running::start(options()));
        one.wait("inside the gap", |link| {
            let end = link
                .mirrors
                .first()
                .and_then(|m| m.mirror_lags.first()?.destination_log_end_offset);
            end.is_some_and(|end| end > at)
        })
        .await;
        one.end().await;
        two.end().await;
    }
    let (one, two) = (Running::start(options()), Running::start(options()));
    one.wait_caught_up(&from, "compacted").await;
    two.wait_caught_up(&from, "compacted").await;
    // It goes on behind the holes, also from a start-up whose last batch was written again.
    append_some(&from, "compacted", 0, 3).await;
    one.wait_caught_up(&from, "compacted").await;
    one.end().await;
    two.end().await;
    assert_eq!(
        log_ends(&from, "compacted").await,
        log_ends(&to, "compacted").await
    );
    let filler = assert_same("compacted").await;
    assert!(
        filler > 0,
        "no filler was needed: the source was not compacted"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn log_append_time_is_kept() {
    let (source, destination) = clusters();
    let config = [("message.timestamp.type", "LogAppendTime")];
    source
        .create_topic("append-time", 1, &config)
        .expect("a topic");
    let from = connect(source).await;
    append_some(&from, "append-time", 0, 5).await;
    let options = || link_options("append-time", source, destination, &["append-time"]);
    for _ in 0..2 {
        let running = Running::start(options());
        running.wait_caught_up(&from, "append-time").await;
        append_some(&from, "append-time", 0, 2).await;
        running.wait_caught_up(&from, "append-time").await;
        running.end().await;
    }
    assert_eq!(assert_same("append-time").await, 0);
}
