//! Threads, sockets and memory over many flips. In a process of its own: they are counted for the whole process.
#![allow(clippy::unwrap_used, missing_docs)]

// Shared with the other tests; not all of it is used here.
#[allow(dead_code)]
#[path = "../failover/harness.rs"]
mod harness;

use std::time::Duration;

use harness::{EAST, SOON, WEST, World, clients, event, until};
use standfast::{FleetEvent, Record};

/// A hundred flips there and back: threads, sockets and memory come back to where they were.
#[tokio::test(flavor = "multi_thread")]
async fn flips_leave_no_threads_behind() {
    const WARM_UP: usize = 4;
    const FLIPS: usize = 100;
    let world = World::start(1).await;
    let fleet = world.connect().await;
    let (producer, mut consumer) = clients(&fleet).await;
    let mut base = Usage::default();
    let mut slowest = Duration::ZERO;
    for flip in 0..WARM_UP + FLIPS {
        let to = [EAST, WEST][flip % 2];
        let end = [&world.east, &world.west][flip % 2]
            .log_end_offsets("orders")
            .expect("log ends")[0];
        let started = std::time::Instant::now();
        let mut events = fleet.events();
        let epoch = world.flip(to, Some(vec![Some(end)])).await;
        let delivery = loop {
            let sent = producer.send(Record::to("orders").payload(flip.to_string()));
            let delivery = tokio::time::timeout(SOON, sent)
                .await
                .expect("in time")
                .expect("sent");
            if delivery.cluster.as_str() == to {
                break delivery;
            }
        };
        slowest = slowest.max(started.elapsed());
        loop {
            let message = tokio::time::timeout(SOON, consumer.next())
                .await
                .expect("in time")
                .expect("open")
                .expect("record");
            consumer.ack(&message).expect("ack");
            // It may come from the old cluster, if it was on its way there during the flip: then its repetition is left out.
            if message.id() == Some(delivery.id) {
                break;
            }
        }
        event(&mut events, "the consumer has moved", |event| match event {
            FleetEvent::ClientReady {
                client, epoch: of, ..
            } if client.as_str().starts_with("billing") && of >= epoch => Some(()),
            _ => None,
        })
        .await;
        if flip + 1 == WARM_UP {
            settled(&fleet).await;
            base = Usage::now();
        }
    }
    settled(&fleet).await;
    until("threads and sockets are gone", || {
        let now = Usage::now();
        now.threads <= base.threads + 2 && now.descriptors <= base.descriptors + 4
    })
    .await;
    let end = Usage::now();
    println!(
        "{FLIPS} flips: {base:?} -> {end:?}, slowest flip to first acknowledgement {slowest:?}"
    );
    assert!(
        end.rss_kib < base.rss_kib + 20 * 1024,
        "memory grew from {} to {} KiB",
        base.rss_kib,
        end.rss_kib
    );
    assert_eq!(fleet.snapshot().clients_abandoned, 0);
}

/// Waits until old clients are gone, and the producer and the consumer have a client of the standby.
async fn settled(fleet: &standfast::Fleet) {
    until("old clients are gone", || {
        let stats = fleet.snapshot();
        stats.clients_retiring == 0 && stats.standbys_ready == 2
    })
    .await;
}

/// What this process holds.
#[derive(Debug, Default, Clone, Copy)]
struct Usage {
    threads: usize,
    descriptors: usize,
    rss_kib: usize,
}

impl Usage {
    fn now() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").expect("status");
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name));
            let value = line.and_then(|line| line.split_whitespace().nth(1));
            value.expect("field").parse().expect("number")
        };
        Self {
            threads: field("Threads:"),
            descriptors: std::fs::read_dir("/proc/self/fd").expect("fd").count(),
            rss_kib: field("VmRSS:"),
        }
    }
}

/// What the connected clients of a standby cost while nothing happens. Prints it; to be run by itself:
/// `cargo test -p standfast --test leaks -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures for a minute and asserts nothing"]
async fn what_warm_standbys_cost() {
    const PRODUCERS: usize = 8;
    const IDLE: Duration = Duration::from_secs(25);
    let world = World::start(4).await;
    for warm in [false, true] {
        let fleet = standfast::Fleet::builder("payments")
            .discovery(standfast::discovery::DiscoveryOptions::file(
                world.dir.path(),
            ))
            .warm_standbys(warm)
            .build()
            .await
            .expect("fleet");
        let mut producers = Vec::new();
        for _ in 0..PRODUCERS {
            let producer = fleet
                .producer()
                .replay_bytes(0)
                .build()
                .await
                .expect("producer");
            producer
                .send(Record::to("orders").payload("x"))
                .await
                .expect("sent");
            producers.push(producer);
        }
        let ready = if warm { PRODUCERS as u64 } else { 0 };
        until("the clients are there", || {
            fleet.snapshot().standbys_ready == ready
        })
        .await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        let (cpu, started) = (cpu_ms(), std::time::Instant::now());
        tokio::time::sleep(IDLE).await;
        let cpu = (cpu_ms() - cpu) as f64 / started.elapsed().as_secs_f64();
        println!(
            "{PRODUCERS} idle producers, warm {warm}: {cpu:.1} ms CPU per second, {:?}",
            Usage::now()
        );
    }
}

fn cpu_ms() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("stat");
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .expect("fields")
        .split_whitespace()
        .collect();
    let ticks: u64 = fields[11..13]
        .iter()
        .map(|f| f.parse::<u64>().expect("ticks"))
        .sum();
    ticks * 10
}
