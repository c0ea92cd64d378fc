//! What sending costs, with the wrapper and without: `cargo xtask bench wrapper` runs it.
//!
//! `wrapper-cost bare|wrapper BOOTSTRAP DISCOVERY_DIR TOPIC RECORDS WINDOW RATE`: sends to the topic with the same properties either way.
//! WINDOW records are unacknowledged at most, and every acknowledgement is taken. It sends as fast as it can, and then RATE records per
//! second, as an application with its own pace does. Prints one line of JSON. One process does the one or the other: in one heap
//! each would find what the other has left there.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rdkafka::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::{Value, json};
use standfast::discovery::DiscoveryOptions;
use standfast::{FailoverProducer, Fleet, Record};

/// The wrapper's own settings, so that both do the same work.
const PROPERTIES: [(&str, &str); 5] = [
    ("enable.idempotence", "true"),
    ("message.timeout.ms", "0"),
    ("queue.buffering.max.kbytes", "65536"),
    ("socket.nagle.disable", "true"),
    ("partitioner", "murmur2_random"),
];
/// Set on both: batches fill up.
const LINGER_MS: &str = "5";
const VALUE_BYTES: usize = 1000;
const USAGE: &str = "wrapper-cost bare|wrapper BOOTSTRAP DISCOVERY_DIR TOPIC RECORDS WINDOW RATE";

#[derive(Clone, Copy)]
enum Sender<'a> {
    Bare(&'a FutureProducer),
    Wrapper(&'a FailoverProducer),
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [sender, bootstrap, discovery, rest @ ..] = arguments.as_slice() else {
        bail!(USAGE);
    };
    match sender.as_str() {
        "bare" => {
            let mut config = ClientConfig::new();
            config
                .set("bootstrap.servers", bootstrap)
                .set("linger.ms", LINGER_MS);
            for (name, value) in PROPERTIES {
                config.set(name, value);
            }
            run(Sender::Bare(&config.create()?), rest).await
        }
        "wrapper" => {
            let discovery = DiscoveryOptions::file(discovery);
            let fleet = Fleet::builder("cost").discovery(discovery).build().await?;
            let producer = fleet.producer().property("linger.ms", LINGER_MS);
            run(Sender::Wrapper(&producer.build().await?), rest).await
        }
        _ => bail!(USAGE),
    }
}

async fn run(sender: Sender<'_>, arguments: &[String]) -> Result<()> {
    let [topic, records, window, rate] = arguments else {
        bail!(USAGE);
    };
    let (records, rate): (usize, f64) = (records.parse()?, rate.parse()?);
    let value = vec![b'x'; VALUE_BYTES];
    let fast = Load {
        topic,
        value: &value,
        records,
        window: window.parse()?,
        rate: None,
    };
    let paced = Load {
        rate: Some(rate),
        ..fast
    };
    // The first round is the warm-up.
    measure(sender, &fast).await?;
    let result = json!({
        "fast": measure(sender, &fast).await?,
        "paced": measure(sender, &paced).await?,
    });
    println!("{result}");
    Ok(())
}

/// What is sent in a round.
#[derive(Debug, Clone, Copy)]
struct Load<'a> {
    topic: &'a str,
    value: &'a [u8],
    records: usize,
    window: usize,
    /// Records per second; `None`: as fast as they go.
    rate: Option<f64>,
}

impl Load<'_> {
    /// Key and value, made anew for each record as by an application that serializes them.
    fn record(&self, number: usize) -> (Vec<u8>, Vec<u8>) {
        ((number as u64).to_be_bytes().to_vec(), self.value.to_vec())
    }

    /// Waits until the record of this number is due. Some are sent at once then, as timers tick in milliseconds.
    async fn wait(&self, began: Instant, number: usize) {
        let Some(rate) = self.rate else { return };
        let due = Duration::from_secs_f64(number as f64 / rate);
        if due > began.elapsed() {
            tokio::time::sleep(due.saturating_sub(began.elapsed())).await;
        }
    }
}

/// Microseconds per record: of time, and of the processor's.
async fn measure(sender: Sender<'_>, load: &Load<'_>) -> Result<Value> {
    let (began, cpu) = (Instant::now(), cpu_time()?);
    match sender {
        Sender::Bare(producer) => send_bare(producer, load).await?,
        Sender::Wrapper(producer) => send_wrapped(producer, load).await?,
    }
    let us = |time: Duration| time.as_secs_f64() * 1e6 / load.records as f64;
    Ok(json!({"us": us(began.elapsed()), "cpu_us": us(cpu_time()? - cpu)}))
}

async fn send_bare(producer: &FutureProducer, load: &Load<'_>) -> Result<()> {
    let mut open = VecDeque::with_capacity(load.window);
    let began = Instant::now();
    for number in 0..load.records {
        load.wait(began, number).await;
        if open.len() == load.window {
            wait_bare(open.pop_front()).await?;
        }
        let (key, value) = load.record(number);
        let mut record = FutureRecord::to(load.topic).key(&key).payload(&value);
        loop {
            match producer.send_result(record) {
                Ok(delivery) => break open.push_back(delivery),
                Err((_, refused)) => {
                    wait_bare(open.pop_front()).await?;
                    record = refused;
                }
            }
        }
    }
    while !open.is_empty() {
        wait_bare(open.pop_front()).await?;
    }
    Ok(())
}

async fn wait_bare(delivery: Option<rdkafka::producer::DeliveryFuture>) -> Result<()> {
    let delivery = delivery
        .context("the queue is full and nothing is in flight")?
        .await?;
    delivery.map(|_| ()).map_err(|(error, _)| error.into())
}

async fn send_wrapped(producer: &FailoverProducer, load: &Load<'_>) -> Result<()> {
    let mut open = VecDeque::with_capacity(load.window);
    let began = Instant::now();
    for number in 0..load.records {
        load.wait(began, number).await;
        if open.len() == load.window
            && let Some(delivery) = open.pop_front()
        {
            let delivery: standfast::DeliveryFuture = delivery;
            delivery.await?;
        }
        let (key, value) = load.record(number);
        let record = Record::to(load.topic).key(key).payload(value);
        open.push_back(producer.enqueue(record).await?);
    }
    for delivery in open {
        delivery.await?;
    }
    Ok(())
}

fn cpu_time() -> Result<Duration> {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF)?;
    let of = |time: nix::sys::time::TimeVal| {
        Duration::from_micros(time.tv_sec() as u64 * 1_000_000 + time.tv_usec() as u64)
    };
    Ok(of(usage.user_time()) + of(usage.system_time()))
}
