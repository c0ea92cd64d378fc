//! `cargo xtask bench`. `switch` and `wrapper` have files of their own; the rest of this is `link`: Standfast and MirrorMaker 2 on the same clusters and the same data.
//!
//! What is measured, for each tool and dataset:
//! - **Throughput**: the source topic is loaded first. The clock runs from the first record seen at the destination to the moment
//!   when all of them are there, so that neither tool's start-up counts. MB are 10^6 bytes of record values.
//! - **CPU**: user and system time of the tool's process, over all that it has copied (its start-up and warm-up are in it); beside it, without
//!   start-up: from the moment when it is told to mirror the topic.
//! - **Memory**: the process's peak resident set (VmHWM).
//! - **Latency**: Kafka's own producer writes a steady 5,000 records/s with the time in the record; Kafka's own consumer reads them at the
//!   destination, in the same process and so by the same clock. It includes the producer's linger and both brokers.

mod contender;
mod dataset;
mod latency;
mod mirrormaker;
mod neighbour;
mod report;
mod standfast;
mod switch;
mod tiny;
mod topics;
mod transactions;
mod usage;
mod wrapper;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use standfast_servers::{KafkaCluster, KafkaInstall, Server, Terminal, obtain};

use contender::{Contender, Tool};
use dataset::Dataset;
use report::Measurement;
use usage::Usage;

/// Brokers get a production-like heap.
const BROKER_HEAP_MB: u32 = 1024;
/// The destination's log ends are looked at this often: seldom enough not to load the broker that is measured.
const POLL: Duration = Duration::from_millis(20);
const COPY_DEADLINE: Duration = Duration::from_secs(600);
/// Broker data goes here if there is room, so that the tools are measured and not the disk.
const MEMORY_FILE_SYSTEM: &str = "/dev/shm";
const MEMORY_NEEDED: u64 = 10 << 30;
/// Copies of the warm-up data; after three, the brokers' CPU time per GB no longer falls.
const WARM_UP_ROUNDS: u32 = 3;

/// Subcommands of `cargo xtask bench`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Mirror throughput, CPU, memory and latency, next to MirrorMaker 2
    Link(LinkArguments),
    /// From the flip of the key to the first acknowledgement and the first record on the new cluster
    Switch(switch::Arguments),
    /// What the wrapper costs next to bare rdkafka, while nothing happens
    Wrapper(wrapper::Arguments),
}

/// Arguments of `cargo xtask bench link`.
#[derive(Debug, clap::Args)]
pub(crate) struct LinkArguments {
    /// Write the results to FILE as a JSON array
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// What is measured
    #[arg(long, value_enum, default_value_t = Set::Copy)]
    set: Set,
    /// Measure this `standfast` binary instead of the workspace's
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Only the dataset with 4 partitions and lz4
    #[arg(long)]
    quick: bool,
    /// Only this tool
    #[arg(long, value_enum)]
    tool: Option<Tool>,
    /// Records of 1 kB in each dataset
    #[arg(long, default_value_t = 1_000_000)]
    records: u64,
}

/// What `cargo xtask bench link` measures. All but the first measure Standfast alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Set {
    /// Throughput, CPU, memory and latency next to MirrorMaker 2
    Copy,
    /// Batches of one record, joined on their way and not
    Tiny,
    /// Transactions per second
    Transactions,
    /// 2,000 topics: create, pause, resume, restart, fail over, idle
    Topics,
    /// Latency of the destination's own clients while a backlog is copied
    Neighbour,
}

pub(crate) fn run(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Link(arguments) => link(arguments),
        Command::Switch(arguments) => switch::run(arguments),
        Command::Wrapper(arguments) => wrapper::run(arguments),
    }
}

/// The two clusters that every contender is measured on.
#[derive(Debug)]
struct Clusters {
    source: KafkaCluster,
    destination: KafkaCluster,
    install: KafkaInstall,
}

fn link(arguments: &LinkArguments) -> Result<ExitCode> {
    let tools: Vec<Tool> = arguments
        .tool
        .map_or_else(|| Tool::ALL.to_vec(), |tool| vec![tool]);
    let install = obtain(&[Server::Kafka], &Terminal::new())?
        .kafka
        .context("Kafka was not installed")?;
    match &arguments.program {
        Some(program) => standfast::use_program(program),
        None => eprintln!("building the release binary"),
    }
    standfast::program()?;
    let began = Instant::now();
    let step = |text: String| eprintln!("{:>4} s  {text}", began.elapsed().as_secs());
    step("starting two Kafka clusters".to_owned());
    let in_memory = memory_file_system();
    let start = |name: &str| {
        let builder = KafkaCluster::builder(name)
            .full_jit()
            .heap_mb(BROKER_HEAP_MB)
            .property("log.segment.delete.delay.ms", "1000");
        match in_memory {
            Some(folder) => builder.data_under(folder),
            None => builder,
        }
        .start()
    };
    let clusters = Clusters {
        source: start("west")?,
        destination: start("east")?,
        install,
    };
    let measured = match arguments.set {
        Set::Copy => copy(arguments, &tools, &clusters, &step)?,
        Set::Tiny => tiny::run(&clusters, &step)?,
        Set::Transactions => transactions::run(&clusters, &step)?,
        Set::Topics => topics::run(clusters, &step)?,
        Set::Neighbour => neighbour::run(&clusters, &step)?,
    };
    print!("{measured}");
    println!(
        "{}; broker data {}; {} s in all; load at the end {}",
        report::machine(),
        if in_memory.is_some() {
            "in memory"
        } else {
            "on disk"
        },
        began.elapsed().as_secs(),
        report::load()
    );
    Ok(ExitCode::SUCCESS)
}

/// The tools on the same clusters and the same data, one after the other.
fn copy(
    arguments: &LinkArguments,
    tools: &[Tool],
    clusters: &Clusters,
    step: &dyn Fn(String),
) -> Result<String> {
    step("warming the brokers up".to_owned());
    warm_up(clusters)?;

    let datasets = if arguments.quick {
        Dataset::quick(arguments.records)
    } else {
        Dataset::all(arguments.records)
    };
    let mut measurements = Vec::new();
    for dataset in &datasets {
        step(format!("{dataset}: loading {} records", dataset.records));
        dataset.load(&clusters.source)?;
        for tool in tools {
            let measurement = measure(*tool, clusters, dataset, step)
                .with_context(|| format!("measure {tool} on {dataset}"))?;
            step(format!("{dataset}: {tool}: {measurement}"));
            measurements.push(measurement);
        }
        clusters.source.delete_topic(&dataset.topic())?;
    }
    if let Some(file) = &arguments.json {
        report::write_json(file, &measurements)?;
    }
    Ok(report::table(&measurements))
}

/// A file system in memory with room for the brokers' data; without it the disk's write-back would be measured too.
fn memory_file_system() -> Option<&'static Path> {
    let folder = Path::new(MEMORY_FILE_SYSTEM);
    let room = nix::sys::statvfs::statvfs(folder).ok()?;
    (room.blocks_available() * room.fragment_size() >= MEMORY_NEEDED).then_some(folder)
}

/// Has the brokers give out and take in as fast as they can, until their JVMs have compiled what they run.
fn warm_up(clusters: &Clusters) -> Result<()> {
    Dataset::tool_warm_up().load(&clusters.source)?;
    let data = Dataset::broker_warm_up();
    data.load(&clusters.source)?;
    let topic = data.topic();
    for _ in 0..WARM_UP_ROUNDS {
        let mut copier = Tool::Standfast.prepare(clusters)?;
        copier.mirror(std::slice::from_ref(&topic))?;
        time_copy(clusters, &topic, copier.as_mut()).context("warm up")?;
        drop(copier);
        clusters.destination.delete_topic(&topic)?;
    }
    clusters
        .source
        .delete_topic(&topic)
        .context("delete what the brokers were warmed up with")
}

fn measure(
    tool: Tool,
    clusters: &Clusters,
    dataset: &Dataset,
    step: &dyn Fn(String),
) -> Result<Measurement> {
    let latency_topic = format!("{}-latency-{tool}", dataset.topic());
    clusters
        .source
        .create_topic(&latency_topic, dataset.partitions, &[])?;
    let topics = [dataset.topic(), latency_topic.clone()];
    step(format!("{dataset}: {tool}: starting"));
    let mut contender = tool.prepare(clusters)?;
    let before = contender.usage()?;
    contender.mirror(&topics)?;
    step(format!("{dataset}: {tool}: copying"));
    let took = time_copy(clusters, &topics[0], contender.as_mut())?;
    let copied = contender.usage()?;
    step(format!(
        "{dataset}: {tool}: latency at {} records/s",
        latency::RATE
    ));
    let latency = latency::measure(clusters, &latency_topic, dataset.partitions)?;
    let peak = contender.usage()?;
    let warm_up_bytes = contender.warm_up_bytes();
    drop(contender);

    clusters.source.delete_topic(&latency_topic)?;
    for topic in &topics {
        clusters.destination.delete_topic(topic)?;
    }
    let bytes = dataset.value_bytes();
    Ok(Measurement {
        tool: tool.to_string(),
        dataset: dataset.to_string(),
        mb_per_s: bytes / 1e6 / took.as_secs_f64(),
        cpu_s_per_gb: copied.cpu.as_secs_f64() / ((bytes + warm_up_bytes) / 1e9),
        copying_cpu_s_per_gb: (copied.cpu - before.cpu).as_secs_f64() / (bytes / 1e9),
        rss_mb: peak.peak_resident_bytes as f64 / 1e6,
        latency_p50_ms: latency.p50_ms,
        latency_p99_ms: latency.p99_ms,
    })
}

/// Time from the last look at which the destination was empty to the one at which it held every record.
fn time_copy(clusters: &Clusters, topic: &str, contender: &mut dyn Contender) -> Result<Duration> {
    let goal = clusters.source.log_end_offsets(topic)?;
    let began = Instant::now();
    let mut empty_at = began;
    loop {
        let looked_at = Instant::now();
        // The tool creates the topic, so at first there is none.
        let ends = clusters
            .destination
            .log_end_offsets(topic)
            .unwrap_or_default();
        if ends.iter().all(|end| *end == 0) {
            empty_at = looked_at;
        }
        if ends == goal {
            return Ok(looked_at - empty_at);
        }
        if let Some(failure) = contender.failure() {
            bail!("it ended while it should copy; last lines of its log:\n{failure}");
        }
        if began.elapsed() > COPY_DEADLINE {
            bail!("not copied within {COPY_DEADLINE:?}: log ends {ends:?}, wanted {goal:?}");
        }
        thread::sleep(POLL);
    }
}
