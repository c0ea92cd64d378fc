//! Measures the link alone on two real clusters of its own: throughput, processor time, memory and latency.
//!
//! `cargo run --release -p standfast-link --example measure -- [partitions] [codec] [megabytes]`

use std::time::{Duration, Instant};

use standfast_link::{Link, LinkName, LinkOptions};
use standfast_servers::KafkaCluster;
use standfast_wire::{ClusterOptions, HostPort};
use tokio_util::sync::CancellationToken;

const RECORD: u64 = 1_000;
const CLOCK_TICKS: f64 = 100.0;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let partitions: i32 = args.next().map_or(Ok(4), |a| a.parse())?;
    let codec = args.next().unwrap_or_else(|| "lz4".to_owned());
    let megabytes: u64 = args.next().map_or(Ok(1_000), |a| a.parse())?;
    let source = KafkaCluster::builder("source")
        .full_jit()
        .heap_mb(512)
        .start()?;
    let destination = KafkaCluster::builder("destination")
        .full_jit()
        .heap_mb(512)
        .start()?;
    // A warm-up round first, so that the brokers' just-in-time compiler is not measured.
    for (topic, megabytes) in [("warm", megabytes.min(300)), ("measured", megabytes)] {
        source.create_topic(topic, partitions, &[])?;
        produce(&source, topic, &codec, megabytes * 1_000_000 / RECORD, -1);
        copy(&source, &destination, topic, megabytes)?;
    }
    latency(&source, &destination, &codec)
}

fn produce(
    source: &KafkaCluster,
    topic: &str,
    codec: &str,
    records: u64,
    rate: i64,
) -> std::process::Output {
    let args = [
        "--topic",
        topic,
        "--num-records",
        &records.to_string(),
        "--record-size",
        &RECORD.to_string(),
        "--throughput",
        &rate.to_string(),
        "--producer-props",
        &format!("bootstrap.servers={}", source.bootstrap()),
        &format!("compression.type={codec}"),
    ];
    source
        .tool("org.apache.kafka.tools.ProducerPerformance", &args)
        .expect("the producer runs")
}

fn options(
    source: &KafkaCluster,
    destination: &KafkaCluster,
    topic: &str,
) -> Result<LinkOptions, Box<dyn std::error::Error>> {
    let cluster = |c: &KafkaCluster| HostPort::parse_list(&c.bootstrap()).map(ClusterOptions::new);
    let mut options = LinkOptions::new(
        LinkName::new("measure")?,
        cluster(source)?,
        cluster(destination)?,
        vec![topic.to_owned()],
    );
    if let Ok(connections) = std::env::var("CONNECTIONS") {
        options.produce.connections_per_broker = connections.parse()?;
    }
    if let Ok(bytes) = std::env::var("MEMORY") {
        options.memory_bytes = bytes.parse()?;
    }
    Ok(options)
}

fn copy(
    source: &KafkaCluster,
    destination: &KafkaCluster,
    topic: &str,
    megabytes: u64,
) -> Result<(), Box<dyn std::error::Error>> {
    let records: i64 = source.log_end_offsets(topic)?.iter().sum();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (link, handle) = Link::new(options(source, destination, topic)?)?;
    let shutdown = CancellationToken::new();
    let (processor, began) = (processor_seconds(), Instant::now());
    runtime.block_on(async {
        let task = tokio::spawn(link.run(shutdown.clone()));
        loop {
            let mirrors = handle.describe().mirrors;
            let done: i64 = mirrors.iter().flat_map(|m| &m.mirror_lags).filter_map(|p| p.destination_log_end_offset).sum();
            if done >= records {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let (seconds, processor) = (began.elapsed().as_secs_f64(), processor_seconds() - processor);
        let gigabytes = megabytes as f64 / 1000.0;
        println!(
            "{topic}: {records} records in {seconds:.2} s, {:.0} MB/s, {:.2} processor seconds per GB, {} MB resident at most",
            megabytes as f64 / seconds,
            processor / gigabytes,
            resident_megabytes()
        );
        shutdown.cancel();
        task.await
    })??;
    Ok(())
}

/// Time from a record's timestamp to its acknowledgement by the destination, at 5,000 records per second.
fn latency(
    source: &KafkaCluster,
    destination: &KafkaCluster,
    codec: &str,
) -> Result<(), Box<dyn std::error::Error>> {
    source.create_topic("steady", 4, &[])?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (link, handle) = Link::new(options(source, destination, "steady")?)?;
    let shutdown = CancellationToken::new();
    let seconds = 10;
    let mut samples: Vec<i64> = Vec::new();
    let mut cost = 0.0;
    std::thread::scope(|scope| {
        let producer = scope.spawn(|| produce(source, "steady", codec, 5_000 * seconds, 5_000));
        runtime.block_on(async {
            let task = tokio::spawn(link.run(shutdown.clone()));
            tokio::time::sleep(Duration::from_secs(4)).await;
            let before = processor_seconds();
            // The lag in records at 5,000 per second, taken often: 5 records are one millisecond.
            let ends = Instant::now();
            while ends.elapsed() < Duration::from_secs(6) {
                let known: Vec<(i64, i64)> = handle
                    .describe()
                    .mirrors
                    .iter()
                    .flat_map(|m| &m.mirror_lags)
                    .filter_map(|p| Some((p.source_log_end_offset?, p.destination_log_end_offset?)))
                    .collect();
                samples.push(
                    known
                        .iter()
                        .map(|(source, destination)| source - destination)
                        .sum::<i64>(),
                );
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            cost = processor_seconds() - before;
            shutdown.cancel();
            task.await.ok();
        });
        producer.join().ok();
    });
    samples.sort_unstable();
    let at = |share: f64| {
        samples
            .get(((samples.len().max(1) - 1) as f64 * share) as usize)
            .copied()
            .unwrap_or(0)
    };
    println!(
        "steady 5,000 records/s: lag p50 {} p99 {} records (5 are 1 ms), {:.1} % of a processor (sampling included)",
        at(0.5),
        at(0.99),
        cost / 6.0 * 100.0
    );
    Ok(())
}

fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or("")
        .split_whitespace()
        .collect();
    let ticks: f64 = fields
        .get(11..13)
        .unwrap_or_default()
        .iter()
        .filter_map(|t| t.parse::<f64>().ok())
        .sum();
    ticks / CLOCK_TICKS
}

fn resident_megabytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status
        .lines()
        .find(|l| l.starts_with("VmHWM"))
        .unwrap_or("");
    line.split_whitespace()
        .nth(1)
        .and_then(|kb| kb.parse::<u64>().ok())
        .unwrap_or(0)
        / 1024
}
