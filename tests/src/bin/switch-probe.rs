//! The application that `cargo xtask bench switch` measures: producers and a consumer on the wrapper, in one process.
//!
//! `switch-probe TOPIC GROUP PRODUCERS IN_FLIGHT FLEET`; configured by `STANDFAST_*`. Prints `ready` when all is connected, the
//! standbys too. On a line `fill` the producers keep IN_FLIGHT records unacknowledged until the fleet has moved; on `stop` they
//! finish, the consumer reads to the end, and the result is printed as one line of JSON.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use standfast::discovery::Epoch;
use standfast::{Fleet, FleetEvent, MissingOffset, Record};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::Semaphore;

/// Pause of a producer between two records while nothing is to be filled.
const PACE: Duration = Duration::from_millis(5);
/// Until the standbys are connected, or the last records have come.
const DEADLINE: Duration = Duration::from_secs(120);
/// The consumer has read to the end when this long nothing more came.
const QUIET: Duration = Duration::from_secs(3);
const VALUE_BYTES: usize = 100;

#[derive(Debug, Default)]
struct Shared {
    filling: AtomicBool,
    stopping: AtomicBool,
    unacknowledged: AtomicUsize,
    /// Unacknowledged when the flip was seen.
    in_flight: AtomicUsize,
    /// Per producer: when the new cluster first acknowledged a record.
    acknowledged_at: Mutex<Vec<Option<SystemTime>>>,
    consumed_at: Mutex<Option<SystemTime>>,
    /// Acknowledged records.
    acknowledged: Mutex<Vec<u64>>,
    consumed: Mutex<HashMap<u64, u32>>,
}

#[tokio::main]
async fn main() -> Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [topic, group, producers, in_flight, fleet] = arguments.as_slice() else {
        bail!("switch-probe TOPIC GROUP PRODUCERS IN_FLIGHT FLEET");
    };
    let (producers, in_flight): (usize, usize) = (producers.parse()?, in_flight.parse()?);
    let fleet = Fleet::connect(fleet).await?;
    let first_epoch = fleet.view().record.context("no record")?.epoch;
    let shared = Arc::new(Shared::default());
    if let Ok(mut at) = shared.acknowledged_at.lock() {
        at.resize(producers, None);
    }
    let mut tasks = Vec::new();
    for number in 0..producers {
        let producer = fleet.producer().build().await?;
        let window = in_flight / producers;
        tasks.push(tokio::spawn(produce(
            producer,
            topic.clone(),
            number,
            window,
            first_epoch,
            Arc::clone(&shared),
        )));
    }
    let consumer = fleet
        .consumer(group)
        .on_missing_offset(MissingOffset::Earliest)
        .subscribe(&[topic])
        .await?;
    let reader = tokio::spawn(consume(consumer, first_epoch, Arc::clone(&shared)));
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while fleet.snapshot().standbys_ready < producers as u64 + 1
        || shared.consumed.lock().map_or(0, |seen| seen.len()) < 1000
    {
        if tokio::time::Instant::now() > deadline {
            bail!("not ready in time: {:?}", fleet.snapshot());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut events = fleet.events();
    let counter = Arc::clone(&shared);
    tokio::spawn(async move {
        while let Ok(event) = events.recv().await {
            if matches!(event, FleetEvent::FlipBegun { .. }) {
                let count = counter.unacknowledged.load(Relaxed);
                counter.in_flight.store(count, Relaxed);
            }
        }
    });
    println!("ready");
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        match line.as_str() {
            "fill" => shared.filling.store(true, Relaxed),
            _ => break,
        }
    }
    shared.stopping.store(true, Relaxed);
    for task in tasks {
        task.await??;
    }
    read_to_the_end(&shared).await?;
    reader.abort();
    println!("{}", result(&fleet, &shared)?);
    Ok(())
}

async fn produce(
    producer: standfast::FailoverProducer,
    topic: String,
    number: usize,
    window: usize,
    first_epoch: Epoch,
    shared: Arc<Shared>,
) -> Result<()> {
    let room = Arc::new(Semaphore::new(window));
    let mut sequence = 0_u64;
    while !shared.stopping.load(Relaxed) {
        let permit = Arc::clone(&room).acquire_owned().await?;
        let id = ((number as u64) << 40) | sequence;
        sequence += 1;
        let mut value = vec![b'.'; VALUE_BYTES];
        value[..8].copy_from_slice(&id.to_be_bytes());
        let record = Record::to(topic.as_str())
            .key(id.to_be_bytes().to_vec())
            .payload(value);
        let delivery = producer.enqueue(record).await?;
        shared.unacknowledged.fetch_add(1, Relaxed);
        let shared_then = Arc::clone(&shared);
        tokio::spawn(async move {
            let answer = delivery.await;
            shared_then.unacknowledged.fetch_sub(1, Relaxed);
            drop(permit);
            let Ok(delivery) = answer else { return };
            if delivery.epoch > first_epoch
                && let Ok(mut first) = shared_then.acknowledged_at.lock()
                && first[number].is_none()
                && delivery.cluster.as_str() == "east"
            {
                first[number] = Some(SystemTime::now());
                shared_then.filling.store(false, Relaxed);
            }
            if let Ok(mut acknowledged) = shared_then.acknowledged.lock() {
                acknowledged.push(id);
            }
        });
        if !shared.filling.load(Relaxed) {
            tokio::time::sleep(PACE).await;
        }
    }
    producer.flush(DEADLINE).await.context("flush")
}

async fn consume(
    mut consumer: standfast::FailoverConsumer,
    first_epoch: Epoch,
    shared: Arc<Shared>,
) {
    while let Some(message) = consumer.next().await {
        let Ok(message) = message else { continue };
        if message.epoch() > first_epoch
            && let Ok(mut at) = shared.consumed_at.lock()
            && at.is_none()
            && message.cluster().as_str() == "east"
        {
            *at = Some(SystemTime::now());
        }
        let _ = consumer.ack(&message);
        let id = message
            .payload()
            .and_then(|value| value.first_chunk::<8>())
            .map(|id| u64::from_be_bytes(*id));
        if let (Some(id), Ok(mut consumed)) = (id, shared.consumed.lock()) {
            *consumed.entry(id).or_default() += 1;
        }
    }
}

/// Waits until every acknowledged record has come and nothing more does.
async fn read_to_the_end(shared: &Shared) -> Result<()> {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    loop {
        let before = total(shared);
        tokio::time::sleep(QUIET).await;
        if total(shared) == before
            && (missing(shared) == 0 || tokio::time::Instant::now() > deadline)
        {
            return Ok(());
        }
    }
}

fn total(shared: &Shared) -> u64 {
    let consumed = shared.consumed.lock();
    consumed.map_or(0, |seen| seen.values().map(|n| u64::from(*n)).sum())
}

fn missing(shared: &Shared) -> usize {
    let (Ok(acknowledged), Ok(consumed)) = (shared.acknowledged.lock(), shared.consumed.lock())
    else {
        return 0;
    };
    acknowledged
        .iter()
        .filter(|id| !consumed.contains_key(id))
        .count()
}

fn result(fleet: &Fleet, shared: &Shared) -> Result<serde_json::Value> {
    let changed_at = fleet.view().record.context("no record")?.changed_at;
    let flipped = UNIX_EPOCH + Duration::from_nanos(u64::try_from(changed_at.as_nanosecond())?);
    let after = |at: SystemTime| {
        at.duration_since(flipped)
            .map_or(0.0, |after| after.as_secs_f64() * 1000.0)
    };
    let Ok(acknowledged_at) = shared.acknowledged_at.lock() else {
        bail!("a producer panicked");
    };
    let producer_ms: Vec<f64> = acknowledged_at
        .iter()
        .flatten()
        .map(|at| after(*at))
        .collect();
    let consumed_at = shared.consumed_at.lock().ok().and_then(|at| *at);
    let duplicated: u64 = shared.consumed.lock().map_or(0, |seen| {
        seen.values()
            .map(|times| u64::from(times.saturating_sub(1)))
            .sum()
    });
    let stats = fleet.snapshot();
    Ok(serde_json::json!({
        "producer_ms": producer_ms,
        "consumer_ms": consumed_at.map(after),
        "lost": missing(shared),
        "duplicated": duplicated,
        "in_flight": shared.in_flight.load(Relaxed),
        "acknowledged": stats.records_acknowledged,
        "resent": stats.records_resent,
        "replayed": stats.records_replayed,
        "repeated": stats.records_repeated,
        "warm_starts": stats.warm_starts,
    }))
}
