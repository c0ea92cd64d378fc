//! Measures how long it takes until a mirror of a log that begins at a large offset is ready, on two real clusters of its own.
//!
//! `cargo run -p standfast-link --example seed -- [offset] [partitions]`
//!
//! The source's log is made to begin there by renaming the files of its empty segment while the broker is down.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use standfast_link::{Link, LinkName, LinkOptions, MirrorStatus};
use standfast_servers::KafkaCluster;
use standfast_wire::{ClusterOptions, HostPort};
use tokio_util::sync::CancellationToken;

const TOPIC: &str = "far";
const CLOCK_TICKS: f64 = 100.0;
const POLL: Duration = Duration::from_millis(20);
const TELL: Duration = Duration::from_secs(5);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let offset: i64 = args.next().map_or(Ok(1_000_000_000), |a| a.parse())?;
    let partitions: i32 = args.next().map_or(Ok(1), |a| a.parse())?;
    let mut source = KafkaCluster::builder("source").heap_mb(512).start()?;
    let destination = KafkaCluster::builder("destination")
        .full_jit()
        .heap_mb(512)
        .start()?;
    source.create_topic(TOPIC, partitions, &[])?;
    source.stop_gracefully();
    for folder in partition_folders(source.folder())? {
        begin_at(&folder, offset)?;
    }
    source.restart()?;
    produce(&source);
    println!(
        "the source's logs begin at {:?}",
        source.log_start_offsets(TOPIC)?
    );
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(mirror(&source, &destination))
}

fn partition_folders(root: &Path) -> std::io::Result<Vec<PathBuf>> {
    let (mut found, mut open) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if path.is_dir() && name.starts_with(&format!("{TOPIC}-")) {
                found.push(path);
            } else if path.is_dir() {
                open.push(path);
            }
        }
    }
    Ok(found)
}

fn begin_at(folder: &Path, offset: i64) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if let Some(kind) = name.strip_prefix("00000000000000000000.") {
            fs::rename(&path, folder.join(format!("{offset:020}.{kind}")))?;
        }
    }
    Ok(())
}

fn produce(cluster: &KafkaCluster) {
    let servers = format!("bootstrap.servers={}", cluster.bootstrap());
    let args = [
        "--topic",
        TOPIC,
        "--num-records",
        "1000",
        "--record-size",
        "100",
        "--throughput",
        "-1",
        "--producer-props",
        &servers,
    ];
    cluster
        .tool("org.apache.kafka.tools.ProducerPerformance", &args)
        .expect("the producer runs");
}

/// User and system time of the cluster's brokers.
fn cpu_seconds(cluster: &KafkaCluster) -> f64 {
    let ticks = cluster.pids().into_iter().map(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        let field = |n: usize| {
            fields
                .get(n)
                .and_then(|f| f.parse::<u64>().ok())
                .unwrap_or(0)
        };
        field(11) + field(12)
    });
    ticks.sum::<u64>() as f64 / CLOCK_TICKS
}

async fn mirror(
    source: &KafkaCluster,
    destination: &KafkaCluster,
) -> Result<(), Box<dyn std::error::Error>> {
    let cluster = |c: &KafkaCluster| HostPort::parse_list(&c.bootstrap()).map(ClusterOptions::new);
    let name = LinkName::new("seed")?;
    let options = LinkOptions::new(
        name,
        cluster(source)?,
        cluster(destination)?,
        vec![TOPIC.to_owned()],
    );
    let (link, handle) = Link::new(options)?;
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(link.run(shutdown.clone()));
    let spent = cpu_seconds(destination);
    let (began, mut told) = (Instant::now(), Instant::now());
    loop {
        let link = handle.describe();
        let mirror = &link.mirrors[0];
        if mirror.mirror_status == MirrorStatus::Active && mirror.max_lag() == Some(0) {
            break;
        }
        if mirror.mirror_status == MirrorStatus::Failed {
            return Err(format!("{mirror:#?}").into());
        }
        if told.elapsed() > TELL {
            told = Instant::now();
            let at = mirror
                .mirror_lags
                .iter()
                .filter_map(|l| l.destination_log_end_offset)
                .sum::<i64>();
            println!("{:.0} s: {at} offsets", began.elapsed().as_secs_f64());
        }
        tokio::time::sleep(POLL).await;
    }
    println!(
        "the destination spent {:.1} s of processor time",
        cpu_seconds(destination) - spent
    );
    println!("mirrored after {:.1} s", began.elapsed().as_secs_f64());
    println!(
        "the mirror's logs begin at {:?}",
        destination.log_start_offsets(TOPIC)?
    );
    shutdown.cancel();
    task.await??;
    Ok(())
}
