//! Load from transactional producers that work side by side, and commit or abort in turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

const PATIENCE: Duration = Duration::from_secs(60);
/// Between the records of a transaction, so that those of several producers lie between each other's.
const RECORD_PAUSE: Duration = Duration::from_millis(2);
/// Of a transaction, each a batch of its own.
const RECORDS: i32 = 32;
/// Partitions that a transaction writes to. Several batches in each: whoever takes a partition over inside a transaction must go on with its sequence numbers.
const PARTITIONS: i32 = 4;
/// Each of so many transactions is aborted.
const ABORTED: usize = 4;

/// Producers that write one transaction after the other over all partitions of a topic. Dropping it ends them.
#[derive(Debug)]
pub struct TransactionLoad {
    stop: Arc<AtomicBool>,
    ended: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
}

impl TransactionLoad {
    /// Starts `producers` of them.
    pub fn start(bootstrap: &str, topic: &str, partitions: i32, producers: usize) -> Self {
        let (stop, ended): (Arc<AtomicBool>, Arc<AtomicUsize>) = Default::default();
        let threads = (0..producers).map(|number| {
            let (bootstrap, topic) = (bootstrap.to_owned(), topic.to_owned());
            let (stop, ended) = (Arc::clone(&stop), Arc::clone(&ended));
            thread::spawn(move || {
                let producer = producer(&bootstrap, &format!("{topic}-{number}"));
                while !stop.load(Ordering::Relaxed) {
                    write(&producer, &topic, partitions, ended.load(Ordering::Relaxed));
                    ended.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        Self {
            threads: threads.collect(),
            stop,
            ended,
        }
    }

    /// Transactions committed or aborted so far.
    pub fn ended(&self) -> usize {
        self.ended.load(Ordering::Relaxed)
    }

    /// Ends the load with no transaction open.
    pub fn finish(mut self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("the load");
        }
        self.ended()
    }
}

impl Drop for TransactionLoad {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn producer(bootstrap: &str, transactional_id: &str) -> BaseProducer {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("transactional.id", transactional_id)
        .set("linger.ms", "0")
        .create()
        .expect("producer");
    producer.init_transactions(PATIENCE).expect("transactions");
    producer
}

fn write(producer: &BaseProducer, topic: &str, partitions: i32, number: usize) {
    producer.begin_transaction().expect("begin");
    for record in 0..RECORDS {
        let (key, value) = (number.to_string(), format!("{number}/{record}"));
        let partition = (record % PARTITIONS + number as i32) % partitions;
        let record = BaseRecord::to(topic)
            .partition(partition)
            .key(&key)
            .payload(&value);
        producer
            .send(record)
            .map_err(|(error, _)| error)
            .expect("send");
        producer.poll(Duration::ZERO);
        thread::sleep(RECORD_PAUSE);
    }
    if number.is_multiple_of(ABORTED) {
        producer.flush(PATIENCE).expect("flushed");
        producer.abort_transaction(PATIENCE).expect("abort");
    } else {
        producer.commit_transaction(PATIENCE).expect("commit");
    }
}
