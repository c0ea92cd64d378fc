//! The applications: producers and consumers on the wrapper, which write down all that they are told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use standfast::{
    DeliveryFuture, FailoverConsumer, FailoverProducer, Fleet, FleetBuilder, MissingOffset, Record,
};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::journal::{Journal, Name};
use crate::wait;

/// Producers, each with keys of its own.
const PRODUCERS: usize = 4;
const BURST: usize = 20;
const PAUSE: Duration = Duration::from_millis(50);
/// Sends of one producer whose answer is awaited.
const MAX_OPEN: usize = 100_000;
const GROUP: &str = "billing";

/// Running producers and consumers.
#[derive(Debug)]
pub(super) struct Workload {
    runtime: Runtime,
    pub(super) journal: Arc<Journal>,
    stop: Arc<AtomicBool>,
    producers: Vec<JoinHandle<()>>,
    refused: Arc<AtomicUsize>,
}

impl Workload {
    pub(super) fn start(fleet: FleetBuilder, topic: &str, consumers: usize) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("runtime");
        let journal = Arc::new(Journal::new(PRODUCERS));
        let (stop, refused) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let mut running = Vec::new();
        runtime.block_on(async {
            let fleet = fleet.build().await.expect("fleet");
            for _ in 0..consumers {
                let consumer = consumer(&fleet, topic).await;
                tokio::spawn(consume(consumer, Arc::clone(&journal)));
            }
            for number in 0..PRODUCERS {
                let builder = fleet.producer().property("linger.ms", "5");
                let producer = builder.build().await.expect("producer");
                let (open, answers) = mpsc::channel(MAX_OPEN);
                let answers = note_answers(answers, Arc::clone(&journal), Arc::clone(&refused));
                let answers = tokio::spawn(answers);
                let load = produce(
                    producer,
                    number,
                    topic.to_owned(),
                    Arc::clone(&journal),
                    Arc::clone(&stop),
                    open,
                );
                running.push(tokio::spawn(async move {
                    load.await;
                    answers.await.expect("answers");
                }));
            }
        });
        Self {
            runtime,
            journal,
            stop,
            producers: running,
            refused,
        }
    }

    /// Waits until as many more records have been acknowledged and handed out.
    pub(super) fn wait_progress(&self, when: &str, records: usize, deadline: Duration) {
        let began = self.journal.counts();
        wait::until(&format!("the applications work {when}"), deadline, || {
            let now = self.journal.counts();
            if now.0 >= began.0 + records && now.1 >= began.1 + records {
                Ok(())
            } else {
                Err(format!(
                    "{} acknowledged and {} handed out of {records} each",
                    now.0 - began.0,
                    now.1 - began.1
                ))
            }
        });
    }

    /// Waits until all that is acknowledged now has been handed out.
    pub(super) fn wait_read(&self, when: &str, deadline: Duration) {
        let mut unread = self.journal.unread();
        wait::until(
            &format!("the consumers have read {when}"),
            deadline,
            || match self.journal.still(&mut unread) {
                0 => Ok(()),
                left => Err(format!("{left} records are still to be handed out")),
            },
        );
    }

    /// Ends the producers; waits until all that was sent has been answered, and all that was acknowledged handed out.
    pub(super) fn finish(&mut self, deadline: Duration) {
        self.stop.store(true, Ordering::Relaxed);
        let producers = std::mem::take(&mut self.producers);
        let ended = async {
            for producer in producers {
                producer.await.expect("producer");
            }
        };
        let ended = self
            .runtime
            .block_on(async { tokio::time::timeout(deadline, ended).await });
        assert!(
            ended.is_ok(),
            "not every send was answered within {deadline:?}: {:?}",
            self.journal.counts()
        );
        let refused = self.refused.load(Ordering::Relaxed);
        assert_eq!(refused, 0, "sends were refused");
        // Whatever is still missing then is named by the verdict.
        let end = std::time::Instant::now() + deadline;
        while !self.journal.all_handed_out() && std::time::Instant::now() < end {
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

async fn consumer(fleet: &Fleet, topic: &str) -> FailoverConsumer {
    let builder = fleet
        .consumer(GROUP)
        .on_missing_offset(MissingOffset::Earliest);
    builder.subscribe(&[topic]).await.expect("consumer")
}

async fn produce(
    producer: FailoverProducer,
    number: usize,
    topic: String,
    journal: Arc<Journal>,
    stop: Arc<AtomicBool>,
    open: mpsc::Sender<(Name, DeliveryFuture)>,
) {
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..BURST {
            let name = journal.send(number);
            let record = Record::to(&topic).key(name.key()).payload(name.to_string());
            let answer = producer
                .enqueue(record)
                .await
                .expect("the producer takes it");
            open.send((name, answer))
                .await
                .expect("answers are awaited");
        }
        tokio::time::sleep(PAUSE).await;
    }
    // The producer lives until all is answered: its buffer is what a failover sends again.
    producer.flush(super::SOON).await.expect("all is answered");
}

async fn note_answers(
    mut open: mpsc::Receiver<(Name, DeliveryFuture)>,
    journal: Arc<Journal>,
    refused: Arc<AtomicUsize>,
) {
    while let Some((name, answer)) = open.recv().await {
        match answer.await {
            Ok(delivery) => journal.acknowledged(name, &delivery),
            Err(error) => {
                tracing::error!(%name, %error, "send refused");
                refused.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

async fn consume(mut consumer: FailoverConsumer, journal: Arc<Journal>) {
    while let Some(message) = consumer.next().await {
        let message = match message {
            Ok(message) => message,
            // Something to look at; the consumer goes on.
            Err(error) => {
                tracing::warn!(%error, "consumer");
                continue;
            }
        };
        let payload = message.payload().unwrap_or_default();
        let Some(name) = Name::parse(payload) else {
            panic!(
                "a record that nobody sent: {:?}",
                String::from_utf8_lossy(payload)
            );
        };
        journal.handed_out(
            name,
            message.cluster().as_str(),
            message.partition(),
            message.offset(),
        );
        if let Err(error) = consumer.ack(&message) {
            tracing::warn!(%error, "ack");
        }
    }
}
