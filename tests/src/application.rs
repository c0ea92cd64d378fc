//! An application on the wrapper: a producer of numbered records and a consumer of the same topic, in this process.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use standfast::{
    Delivery, DeliveryFuture, FailoverConsumer, FailoverProducer, Fleet, FleetBuilder, FleetEvent,
    MissingOffset, Record,
};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::{load, wait};

/// Records are given to the producer in bursts of this many, so that there are always many in flight.
const BURST: usize = 100;
const PAUSE: Duration = Duration::from_millis(25);
/// Sends whose answer is awaited.
const MAX_OPEN: usize = 200_000;
const KEYS: usize = 40;
const RESOLVED: Duration = Duration::from_secs(60);

/// How the producer and the consumer behave. Records are numbered from 0; a key's records go to one partition.
#[derive(Debug)]
pub struct Application {
    runtime: Runtime,
    fleet: Fleet,
    shared: Arc<Shared>,
    load: Option<JoinHandle<()>>,
    answers: Option<JoinHandle<Vec<Sent>>>,
    topic: String,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    sent: AtomicUsize,
    acknowledged: AtomicUsize,
    received: Mutex<Vec<Received>>,
    events: Mutex<Vec<FleetEvent>>,
}

/// A record that was acknowledged; its number is its place in the list.
#[derive(Debug, Clone)]
pub struct Sent {
    /// The acknowledgement.
    pub delivery: Delivery,
    /// When it was seen. Answers are awaited in the order of the sends.
    pub at: Instant,
}

/// A record that the consumer was given.
#[derive(Debug, Clone)]
pub struct Received {
    /// The record's number.
    pub number: usize,
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// The cluster that it was read from.
    pub cluster: String,
}

impl Application {
    /// Connects, starts the consumer (group `billing`) and then the load.
    pub fn start(fleet: FleetBuilder, topic: &str) -> Self {
        // As `RUST_LOG` says: nothing, unless somebody looks for something.
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_ansi(false)
            .with_writer(std::io::stderr)
            .try_init();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("runtime");
        let shared = Arc::new(Shared::default());
        let (fleet, producer, consumer) = runtime.block_on(async {
            let fleet = fleet.build().await.expect("fleet");
            let consumer = fleet
                .consumer("billing")
                .on_missing_offset(MissingOffset::Earliest)
                .subscribe(&[topic])
                .await
                .expect("consumer");
            let producer = fleet
                .producer()
                .property("linger.ms", "10")
                .build()
                .await
                .expect("producer");
            (fleet, producer, consumer)
        });
        let (open, answers) = mpsc::channel(MAX_OPEN);
        runtime.spawn(note_events(fleet.events(), Arc::clone(&shared)));
        runtime.spawn(consume(consumer, Arc::clone(&shared)));
        let load = runtime.spawn(produce(
            producer,
            topic.to_owned(),
            Arc::clone(&shared),
            open,
        ));
        let answers = runtime.spawn(await_answers(answers, Arc::clone(&shared)));
        Self {
            runtime,
            fleet,
            shared,
            load: Some(load),
            answers: Some(answers),
            topic: topic.to_owned(),
        }
    }

    /// The fleet, for its view and its counters.
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// Records acknowledged so far.
    pub fn acknowledged(&self) -> usize {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// Records given to the producer so far.
    pub fn sent(&self) -> usize {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// What the consumer was given so far.
    pub fn received(&self) -> Vec<Received> {
        self.shared.received.lock().expect("received").clone()
    }

    /// Waits for an event that `wanted` takes, among those since the start.
    pub fn wait_event<T>(
        &self,
        what: &str,
        deadline: Duration,
        mut wanted: impl FnMut(&FleetEvent) -> Option<T>,
    ) -> T {
        wait::until(what, deadline, || {
            let events = self.shared.events.lock().expect("events");
            events.iter().find_map(&mut wanted).ok_or(())
        })
    }

    /// Forgets the events so far.
    pub fn forget_events(&self) {
        self.shared.events.lock().expect("events").clear();
    }

    /// Waits until `records` more have been acknowledged and as many more received than were when it was called.
    pub fn wait_progress(&self, what: &str, records: usize, deadline: Duration) {
        let (sent, got) = (
            self.acknowledged() + records,
            self.received().len() + records,
        );
        wait::until(what, deadline, || {
            let now = (self.acknowledged(), self.received().len());
            if now.0 >= sent && now.1 >= got {
                Ok(())
            } else {
                Err(format!(
                    "acknowledged {} of {sent}, received {} of {got}",
                    now.0, now.1
                ))
            }
        });
    }

    /// Ends the load and waits until every send has been answered; panics if one was refused.
    pub fn finish_load(&mut self) -> Vec<Sent> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let (load, answers) = (self.load.take(), self.answers.take());
        let ended = self.runtime.block_on(async {
            let ended = async {
                load.expect("running").await.expect("load");
                answers.expect("running").await.expect("all sends succeed")
            };
            tokio::time::timeout(RESOLVED, ended).await
        });
        ended.unwrap_or_else(|_| {
            panic!(
                "of {} sends only {} were answered",
                self.sent(),
                self.acknowledged()
            )
        })
    }

    /// Waits until the consumer has been given the record before `ends` of each partition by `cluster`.
    pub fn wait_consumed_to(&self, cluster: &str, ends: &[i64]) {
        wait::until("the consumer has reached the log ends", RESOLVED, || {
            let mut reached = BTreeMap::new();
            for record in self.received() {
                let end = reached.entry(record.partition).or_insert(0);
                if record.cluster == cluster {
                    *end = record.offset + 1;
                }
            }
            let reached: Vec<i64> = (0..)
                .zip(ends)
                .map(|(partition, _)| reached.get(&partition).copied().unwrap_or(0))
                .collect();
            if reached
                .iter()
                .zip(ends)
                .all(|(reached, end)| reached >= end)
            {
                Ok(())
            } else {
                Err(format!("reached {reached:?} of {ends:?}"))
            }
        });
    }

    /// The numbers in a partition's log, by offset, as an independent consumer reads them.
    pub fn log(&self, bootstrap: &str, partition: i32, end: i64) -> Vec<usize> {
        let records = load::read(bootstrap, &self.topic, partition, end);
        let numbers = records.iter().map(|record| {
            let text = String::from_utf8_lossy(record.value.as_deref().expect("value"));
            text.parse().expect("number")
        });
        numbers.collect()
    }
}

/// How often each number occurs.
pub fn counted(numbers: impl IntoIterator<Item = usize>) -> BTreeMap<usize, usize> {
    let mut counts = BTreeMap::new();
    for number in numbers {
        *counts.entry(number).or_insert(0) += 1;
    }
    counts
}

/// The numbers below `total` that do not occur exactly once: (missing, repeated).
pub fn lost_and_duplicated(
    total: usize,
    counts: &BTreeMap<usize, usize>,
) -> (BTreeSet<usize>, BTreeSet<usize>) {
    let lost = (0..total).filter(|number| !counts.contains_key(number));
    let duplicated = counts.iter().filter(|&(_, &count)| count > 1);
    (
        lost.collect(),
        duplicated.map(|(&number, _)| number).collect(),
    )
}

async fn produce(
    producer: FailoverProducer,
    topic: String,
    shared: Arc<Shared>,
    open: mpsc::Sender<DeliveryFuture>,
) {
    while !shared.stop.load(Ordering::Relaxed) {
        for _ in 0..BURST {
            let number = shared.sent.fetch_add(1, Ordering::Relaxed);
            let record = Record::to(&topic)
                .key(format!("key-{}", number % KEYS))
                .payload(number.to_string());
            let answer = producer
                .enqueue(record)
                .await
                .expect("the producer takes it");
            open.send(answer).await.expect("answers are awaited");
        }
        tokio::time::sleep(PAUSE).await;
    }
    producer.flush(RESOLVED).await.expect("flush");
}

async fn await_answers(mut open: mpsc::Receiver<DeliveryFuture>, shared: Arc<Shared>) -> Vec<Sent> {
    let mut sent = Vec::new();
    while let Some(answer) = open.recv().await {
        let delivery = answer.await.expect("every send is acknowledged");
        sent.push(Sent {
            delivery,
            at: Instant::now(),
        });
        shared.acknowledged.fetch_add(1, Ordering::Relaxed);
    }
    sent
}

async fn consume(mut consumer: FailoverConsumer, shared: Arc<Shared>) {
    while let Some(message) = consumer.next().await {
        let message = message.expect("message");
        let text = String::from_utf8_lossy(message.payload().expect("payload"));
        let received = Received {
            number: text.parse().expect("number"),
            partition: message.partition(),
            offset: message.offset(),
            cluster: message.cluster().to_string(),
        };
        shared.received.lock().expect("received").push(received);
        consumer.ack(&message).expect("ack");
    }
}

async fn note_events(
    mut events: tokio::sync::broadcast::Receiver<FleetEvent>,
    shared: Arc<Shared>,
) {
    while let Ok(event) = events.recv().await {
        shared.events.lock().expect("events").push(event);
    }
}
