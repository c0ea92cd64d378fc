//! What the wrapper costs: `cargo xtask bench wrapper` runs it.
//!
//! `wrapper-cost BOOTSTRAP DISCOVERY_DIR TOPIC RECORDS ROUNDS WINDOW RATE`: bare rdkafka and the wrapper in turns, in one process, against the
//! same topic with the same properties. Both keep WINDOW records unacknowledged at most and take every acknowledgement; they send as
//! fast as they can, and then RATE records per second, as an application with its own pace does. Prints one line of JSON.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rdkafka::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::Value;
use standfast::discovery::DiscoveryOptions;
use standfast::{Fleet, Record};

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

/// One round: how long it took, and what it cost the processor.
#[derive(Debug, Clone, Copy)]
struct Round {
    wall: Duration,
    cpu: Duration,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [bootstrap, discovery, topic, records, rounds, window, rate] = arguments.as_slice() else {
        bail!("wrapper-cost BOOTSTRAP DISCOVERY_DIR TOPIC RECORDS ROUNDS WINDOW RATE");
    };
    let (records, rounds, window): (usize, usize, usize) =
        (records.parse()?, rounds.parse()?, window.parse()?);
    let rate: f64 = rate.parse()?;
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", bootstrap)
        .set("linger.ms", LINGER_MS);
    for (name, value) in PROPERTIES {
        config.set(name, value);
    }
    let bare: FutureProducer = config.create()?;
    let fleet = Fleet::builder("cost")
        .discovery(DiscoveryOptions::file(discovery))
        .build()
        .await?;
    let wrapped = fleet
        .producer()
        .property("linger.ms", LINGER_MS)
        .build()
        .await?;
    let value = vec![b'x'; VALUE_BYTES];
    let mut runs = Vec::new();
    for rate in [None, Some(rate)] {
        let load = Load {
            topic,
            value: &value,
            records,
            window,
            rate,
        };
        let mut run = Run::default();
        // The first round of each is the warm-up.
        for round in 0..=rounds {
            let b = measure(send_bare(&bare, &load)).await?;
            let w = measure(send_wrapped(&wrapped, &load)).await?;
            if round > 0 {
                run.bare.push(b);
                run.wrapped.push(w);
            }
        }
        runs.push(run.result(records));
    }
    let [mut result, mut paced] = <[Value; 2]>::try_from(runs).map_err(|_| anyhow!("two runs"))?;
    paced["rate"] = rate.into();
    result["records"] = records.into();
    result["rounds"] = rounds.into();
    result["paced"] = paced;
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
    /// Waits until the record of this number is due. Some are sent at once then, as timers tick in milliseconds.
    async fn wait(&self, began: Instant, number: usize) {
        let Some(rate) = self.rate else { return };
        let due = Duration::from_secs_f64(number as f64 / rate);
        if due > began.elapsed() {
            tokio::time::sleep(due.saturating_sub(began.elapsed())).await;
        }
    }
}

/// The rounds of both.
#[derive(Debug, Default)]
struct Run {
    bare: Vec<Round>,
    wrapped: Vec<Round>,
}

impl Run {
    fn result(&self, records: usize) -> Value {
        let median = |rounds: &[Round], time: fn(&Round) -> Duration| {
            let us = |round: &Round| time(round).as_secs_f64() * 1e6 / records as f64;
            let mut all: Vec<f64> = rounds.iter().map(us).collect();
            all.sort_by(f64::total_cmp);
            all[all.len() / 2]
        };
        // Pairs that follow one another: other work on the machine hits both.
        let pairs = self.bare.iter().zip(&self.wrapped);
        let mut ratios: Vec<f64> = pairs
            .map(|(bare, wrapped)| wrapped.wall.as_secs_f64() / bare.wall.as_secs_f64())
            .collect();
        ratios.sort_by(f64::total_cmp);
        serde_json::json!({
            "bare_us": median(&self.bare, |r| r.wall),
            "wrapper_us": median(&self.wrapped, |r| r.wall),
            "bare_cpu_us": median(&self.bare, |r| r.cpu),
            "wrapper_cpu_us": median(&self.wrapped, |r| r.cpu),
            "throughput_loss_percent": (1.0 - 1.0 / ratios[ratios.len() / 2]) * 100.0,
        })
    }
}

async fn measure(work: impl Future<Output = Result<()>>) -> Result<Round> {
    let (wall, cpu) = (Instant::now(), cpu_time()?);
    work.await?;
    Ok(Round {
        wall: wall.elapsed(),
        cpu: cpu_time()? - cpu,
    })
}

async fn send_bare(producer: &FutureProducer, load: &Load<'_>) -> Result<()> {
    let mut open = VecDeque::with_capacity(load.window);
    let began = Instant::now();
    for number in 0..load.records {
        load.wait(began, number).await;
        if open.len() == load.window {
            wait_bare(open.pop_front()).await?;
        }
        let key = (number as u64).to_be_bytes();
        let mut record = FutureRecord::to(load.topic).key(&key).payload(load.value);
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

async fn send_wrapped(producer: &standfast::FailoverProducer, load: &Load<'_>) -> Result<()> {
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
        let key = (number as u64).to_be_bytes();
        let record = Record::to(load.topic)
            .key(key.to_vec())
            .payload(load.value.to_vec());
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
