//! Transactions: the same data, the same markers at the same offsets, the same view for read_committed consumers.

#[path = "transactions/altered.rs"]
mod altered;
#[path = "transactions/bounds.rs"]
mod bounds;
mod support;

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use standfast_link::{MirrorStatus, MirrorTopicError};
use standfast_servers::KafkaCluster;
use standfast_wire::admin::{OffsetSpec, ProducerIdentity};
use standfast_wire::batch::ProducerStamp;
use standfast_wire::fetch::Isolation;
use standfast_wire::{Cluster, Connection, TopicPartition};
use support::*;

fn clusters() -> &'static (KafkaCluster, KafkaCluster) {
    static CLUSTERS: OnceLock<(KafkaCluster, KafkaCluster)> = OnceLock::new();
    CLUSTERS.get_or_init(|| {
        let with = |name: &str, property, value| {
            let builder = KafkaCluster::builder(name).heap_mb(256);
            let started = builder.property(property, value).start();
            started.expect("a Kafka cluster")
        };
        (
            with("source", "log.cleaner.backoff.ms", "100"),
            with("destination", "transaction.max.timeout.ms", "3600000"),
        )
    })
}

/// An application's transactional producer on one partition.
struct App {
    cluster: Cluster,
    connection: Connection,
    name: String,
    partition: TopicPartition,
    identity: ProducerIdentity,
    sequence: i32,
    /// Length of the values.
    padding: usize,
}

impl App {
    async fn new(cluster: &Cluster, name: &str, topic: &str) -> Self {
        let leader = cluster.leader(topic, 0).await.expect("the cluster answers");
        let raw = cluster.open_raw(leader).await.expect("the cluster answers");
        Self {
            cluster: cluster.clone(),
            connection: Connection::start(raw, cluster.options()),
            name: name.to_owned(),
            partition: TopicPartition::new(topic, 0),
            identity: cluster
                .init_producer_id(Some(name))
                .await
                .expect("the cluster answers"),
            sequence: 0,
            padding: 1,
        }
    }

    /// One batch of `count` records in the open transaction.
    async fn write(&mut self, count: i32) -> i64 {
        let records: Vec<Record> = (0..count)
            .map(|n| {
                let value = format!("s{:<width$}", self.sequence + n, width = self.padding);
                Record::new(&format!("{}-{n}", self.name), value)
            })
            .collect();
        let stamp = Stamp {
            attributes: 0x10,
            producer_id: self.identity.producer_id,
            producer_epoch: self.identity.epoch,
            base_sequence: self.sequence,
        };
        let batch = batch(&records, stamp)
            .restamp(ProducerStamp {
                producer_id: stamp.producer_id,
                producer_epoch: stamp.producer_epoch,
                base_sequence: stamp.base_sequence,
            })
            .expect("the cluster answers");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self
                .connection
                .produce_one(
                    Some(&self.name),
                    &self.partition,
                    &batch,
                    Duration::from_secs(10),
                )
                .await
                .expect("the cluster answers");
            match answer.code {
                None => {
                    self.sequence += count;
                    return answer.base_offset;
                }
                Some(standfast_wire::ResponseError::ConcurrentTransactions)
                    if Instant::now() < deadline =>
                {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                Some(code) => panic!("{code:?}"),
            }
        }
    }

    /// Commits or aborts, and waits until the marker is in the log: it must not race with what a test writes next.
    async fn end(&mut self, commit: bool) {
        let before = self
            .cluster
            .leader_log_end(&self.partition)
            .await
            .expect("the cluster answers");
        self.identity = self
            .cluster
            .end_transaction(&self.name, self.identity, commit)
            .await
            .expect("the cluster answers");
        self.sequence = 0;
        wait_for("a marker", || async {
            self.cluster
                .leader_log_end(&self.partition)
                .await
                .expect("the cluster answers")
                > before
        })
        .await;
    }

    /// A transaction with this partition in it, but no data.
    async fn end_without_data(&mut self, commit: bool) {
        self.cluster
            .add_partition_to_transaction(&self.name, self.identity, &self.partition)
            .await
            .expect("the cluster answers");
        self.end(commit).await;
    }
}

/// What Kafka's own consumer reads: offset, key and value per line.
async fn consume(cluster: &'static KafkaCluster, topic: &str, isolation: &str) -> Vec<String> {
    let args: Vec<String> = [
        "--bootstrap-server",
        &cluster.bootstrap(),
        "--topic",
        topic,
        "--isolation-level",
        isolation,
        "--from-beginning",
        "--timeout-ms",
        "4000",
        "--property",
        "print.key=true",
        "--property",
        "print.offset=true",
    ]
    .map(str::to_owned)
    .to_vec();
    let run = move || {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        cluster.tool("org.apache.kafka.tools.consumer.ConsoleConsumer", &args)
    };
    let output = tokio::task::spawn_blocking(run)
        .await
        .expect("the cluster answers")
        .expect("the cluster answers");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // The tool writes its own messages among them.
    let records = text.lines().filter(|line| line.starts_with("Offset:"));
    records.map(str::to_owned).collect()
}

async fn stable_end(cluster: &Cluster, topic: &str) -> i64 {
    let question = [(TopicPartition::new(topic, 0), OffsetSpec::Latest)];
    let listed = cluster
        .list_offsets(&question, Isolation::ReadCommitted)
        .await;
    listed[0].1.as_ref().expect("the cluster answers").offset
}

/// Transactions of three producers, interleaved with each other and with plain batches; committed and aborted.
async fn interleave(cluster: &Cluster, topic: &str, rounds: usize) {
    let mut apps = Vec::new();
    for name in ["a", "b", "c"] {
        apps.push(App::new(cluster, &format!("{topic}-{name}"), topic).await);
    }
    for round in 0..rounds {
        apps[0].write(3).await;
        append_some(cluster, topic, 0, 1).await;
        apps[1].write(1).await;
        apps[0].write(2).await;
        apps[2].write(4).await;
        apps[1].end(round % 2 == 0).await;
        append_some(cluster, topic, 0, round % 3).await;
        apps[0].end(round % 3 != 0).await;
        apps[1].end_without_data(round % 2 == 1).await;
        apps[2].write(1).await;
        apps[2].end(true).await;
        append_some(cluster, topic, 0, round % 2).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn committed_aborted_and_interleaved_transactions_are_reproduced() {
    let (source, destination) = clusters();
    source.create_topic("mixed", 1, &[]).unwrap();
    let (from, to) = (connect(source).await, connect(destination).await);
    append_some(&from, "mixed", 0, 2).await;
    interleave(&from, "mixed", 4).await;
    let running = Running::start(link_options("mixed", source, destination, &["mixed"]));
    running.wait_caught_up(&from, "mixed").await;
    assert_identical(&from, &to, "mixed").await;
    // And as they come.
    interleave(&from, "mixed", 4).await;
    append_some(&from, "mixed", 0, 50).await;
    running.wait_caught_up(&from, "mixed").await;
    interleave(&from, "mixed", 1).await;
    running.wait_caught_up(&from, "mixed").await;
    assert_identical(&from, &to, "mixed").await;
    for isolation in ["read_committed", "read_uncommitted"] {
        let (theirs, ours) = tokio::join!(
            consume(source, "mixed", isolation),
            consume(destination, "mixed", isolation)
        );
        assert!(theirs.len() > 500, "{}", theirs.len());
        let first = theirs.iter().zip(&ours).find(|(a, b)| a != b);
        assert_eq!((first, theirs.len()), (None, ours.len()), "{isolation}");
    }
    assert_eq!(
        stable_end(&to, "mixed").await,
        log_ends(&to, "mixed").await[0]
    );
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_is_mirrored_once_it_is_decided() {
    let (source, destination) = clusters();
    source.create_topic("undecided", 1, &[]).unwrap();
    let (from, to) = (connect(source).await, connect(destination).await);
    append_some(&from, "undecided", 0, 2).await;
    let mut app = App::new(&from, "undecided", "undecided").await;
    let first = app.write(5).await;
    append_some(&from, "undecided", 0, 3).await;
    let running = Running::start(link_options(
        "undecided",
        source,
        destination,
        &["undecided"],
    ));
    running
        .wait("mirrored up to it", |link| {
            link.mirrors[0]
                .mirror_lags
                .first()
                .is_some_and(|p| p.destination_log_end_offset == Some(first))
        })
        .await;
    // It counts as lag, and nothing of it is there for as long as it is open.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(log_ends(&to, "undecided").await, [first]);
    let lag = running.partition(0).unwrap().lag;
    assert_eq!(lag, Some(35));
    app.end(true).await;
    running.wait_caught_up(&from, "undecided").await;
    assert_identical(&from, &to, "undecided").await;
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_ends_inside_a_transaction_is_followed_by_one_that_goes_on() {
    let (source, destination) = clusters();
    source.create_topic("cut", 1, &[]).unwrap();
    let (from, to) = (connect(source).await, connect(destination).await);
    let mut apps = Vec::new();
    for name in ["cut-a", "cut-b"] {
        apps.push(App::new(&from, name, "cut").await);
    }
    let mut inside = 0;
    for round in 0..6 {
        for n in 0..150 {
            apps[n % 2].write(2).await;
            if n % 10 == 0 {
                append_some(&from, "cut", 0, 1).await;
            }
        }
        apps[0].end(round % 2 == 0).await;
        apps[1].write(1).await;
        apps[1].end(round % 2 == 1).await;
        let begun = log_ends(&to, "cut").await.first().copied().unwrap_or(0) + 50 * round;
        let running = Running::start(link_options("cut", source, destination, &["cut"]));
        running
            .wait("begun", |link| {
                link.mirrors[0]
                    .mirror_lags
                    .first()
                    .is_some_and(|p| p.destination_log_end_offset > Some(begun))
            })
            .await;
        running.end().await;
        let end = log_ends(&to, "cut").await[0];
        inside += i64::from(stable_end(&to, "cut").await < end);
    }
    assert!(inside > 0, "no engine ended inside a transaction");
    let running = Running::start(link_options("cut", source, destination, &["cut"]));
    running.wait_caught_up(&from, "cut").await;
    assert_identical(&from, &to, "cut").await;
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_engines_make_one_log_of_transactions() {
    let (source, destination) = clusters();
    source.create_topic("twins", 1, &[]).unwrap();
    let (from, to) = (connect(source).await, connect(destination).await);
    interleave(&from, "twins", 3).await;
    let twins =
        [1, 2].map(|_| Running::start(link_options("twins", source, destination, &["twins"])));
    for _ in 0..4 {
        interleave(&from, "twins", 3).await;
        append_some(&from, "twins", 0, 20).await;
    }
    // Both stand at the same offset and see the same transaction come: they write it at once.
    let mut app = App::new(&from, "twins", "twins").await;
    for n in 0..20 {
        for twin in &twins {
            twin.wait_caught_up(&from, "twins").await;
        }
        app.write(2).await;
        app.write(1).await;
        app.end(n % 3 != 0).await;
    }
    for twin in &twins {
        twin.wait_caught_up(&from, "twins").await;
    }
    assert_identical(&from, &to, "twins").await;
    for twin in twins {
        twin.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_leaves_no_transaction_open() {
    // A source of its own, that can be lost.
    let (mut source, destination) = (kafka("lost"), &clusters().1);
    source.create_topic("flip", 1, &[]).unwrap();
    let (from, to) = (connect(&source).await, connect(destination).await);
    let mut app = App::new(&from, "flip", "flip").await;
    app.padding = 3000;
    append_some(&from, "flip", 0, 1).await;
    for _ in 0..800 {
        app.write(2).await;
    }
    app.end(true).await;
    let running = Running::start(link_options("flip", &source, destination, &["flip"]));
    running
        .wait("inside", |link| {
            link.mirrors[0]
                .mirror_lags
                .first()
                .is_some_and(|p| p.destination_log_end_offset > Some(20))
        })
        .await;
    source.kill();
    let stopped = running
        .handle
        .stop_mirrors(Duration::from_secs(2))
        .await
        .unwrap();
    let stopped = &stopped[0];
    assert_eq!(stopped.aborted_transactions, 1, "{stopped:?}");
    let note = stopped.error.as_deref().unwrap_or_default();
    assert!(note.contains("1 transactions"), "{note}");
    let end = stopped.destination_log_end_offset.unwrap();
    assert!((20..1610).contains(&end), "{stopped:?}");
    assert!(stopped.rpo_records.is_some_and(|records| records > 0));
    // The abort marker, one offset more; nothing is open; only what was decided is seen.
    assert_eq!(log_ends(&to, "flip").await, [end + 1]);
    assert_eq!(stable_end(&to, "flip").await, end + 1);
    assert_eq!(
        consume(destination, "flip", "read_committed").await.len(),
        10
    );
    // The topic takes an application's transactions now.
    let mut app = App::new(&to, "flip", "flip").await;
    assert_eq!(app.write(1).await, end + 1);
    app.end(true).await;
    assert_eq!(
        running.handle.describe().mirrors[0].mirror_status,
        MirrorStatus::Stopped
    );
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_mirror_has_finished_its_transaction() {
    let (source, destination) = clusters();
    source.create_topic("paused", 1, &[]).unwrap();
    let (from, to) = (connect(source).await, connect(destination).await);
    let mut app = App::new(&from, "paused", "paused").await;
    for _ in 0..120 {
        for _ in 0..4 {
            app.write(1).await;
        }
        app.end(true).await;
    }
    let running = Running::start(link_options("paused", source, destination, &["paused"]));
    for n in 1..=4 {
        running
            .wait("on its way", |link| {
                link.mirrors[0]
                    .mirror_lags
                    .first()
                    .is_some_and(|p| p.destination_log_end_offset >= Some(n * 100))
            })
            .await;
        let changes = running.handle.pause(&["paused"]).await;
        assert!(changes[0].error_code.is_none(), "{changes:?}");
        let end = log_ends(&to, "paused").await[0];
        assert_eq!(stable_end(&to, "paused").await, end);
        running.handle.resume(&["paused"]).await;
    }
    running.wait_caught_up(&from, "paused").await;
    assert_identical(&from, &to, "paused").await;
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_is_killed_inside_transactions_never_differs_silently() {
    let (source, mut destination) = (&clusters().0, kafka("fragile"));
    source.create_topic("fragile", 1, &[]).unwrap();
    let from = connect(source).await;
    interleave(&from, "fragile", 15).await;
    let end = log_ends(&from, "fragile").await[0];
    let running = Running::start(link_options("fragile", source, &destination, &["fragile"]));
    for third in 1..=2 {
        running
            .wait("on its way", |link| {
                link.mirrors[0]
                    .mirror_lags
                    .first()
                    .is_some_and(|p| p.destination_log_end_offset >= Some(end * third / 3))
                    || link.mirrors[0].mirror_status == MirrorStatus::Failed
            })
            .await;
        destination.kill();
        destination.restart().unwrap();
    }
    running
        .wait("at the end", |link| {
            let mirror = &link.mirrors[0];
            mirror.mirror_status == MirrorStatus::Failed
                || mirror.mirror_lags[0].destination_log_end_offset == Some(end)
        })
        .await;
    let to = connect(&destination).await;
    let mirror = running.handle.describe().mirrors.remove(0);
    if mirror.mirror_status == MirrorStatus::Failed {
        // Kafka 4.1.0: a coordinator that is lost between a marker and its note of it writes the marker again. Nothing can take it back.
        assert_eq!(mirror.mirror_topic_error, MirrorTopicError::Diverged);
        let (theirs, ours) = (
            read_all(&from, "fragile", 0).await,
            read_all(&to, "fragile", 0).await,
        );
        let twice = ours.last().unwrap();
        let first = ours.iter().filter(|b| {
            (b.header.producer_id, b.header.producer_epoch)
                == (twice.header.producer_id, twice.header.producer_epoch)
                && b.control_type() == twice.control_type()
        });
        assert!(twice.header.attributes.is_control() && first.count() == 2);
        for (a, b) in theirs.iter().zip(&ours).take(ours.len() - 1) {
            assert_eq!(a.header.base_offset, b.header.base_offset);
            assert_eq!(a.control_type(), b.control_type());
        }
    } else {
        assert_identical(&from, &to, "fragile").await;
    }
    running.end().await;
}

/// Takes half a minute: an id has 32,767 epochs, one for each transaction.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow"]
async fn an_id_that_runs_out_of_epochs_is_followed_by_another_one() {
    let (source, destination) = clusters();
    source.create_topic("epochs", 1, &[]).unwrap();
    let (from, to) = (connect(source).await, connect(destination).await);
    let mut app = App::new(&from, "epochs", "epochs").await;
    app.write(1).await;
    app.end(true).await;
    let options = || link_options("epochs", source, destination, &["epochs"]);
    let running = Running::start(options());
    running.wait_caught_up(&from, "epochs").await;
    running.end().await;
    let name = "standfast-epochs/epochs/0/1";
    let described = to.describe_transaction(name).await.unwrap().unwrap();
    let mut identity = ProducerIdentity {
        producer_id: described.producer_id,
        epoch: described.epoch,
    };
    while identity.epoch < i16::MAX - 3 {
        identity = to.end_transaction(name, identity, false).await.unwrap();
    }
    let twins = [1, 2].map(|_| Running::start(options()));
    for _ in 0..20 {
        app.write(2).await;
        app.end(true).await;
        for twin in &twins {
            twin.wait_caught_up(&from, "epochs").await;
        }
    }
    let after = to.describe_transaction(name).await.unwrap().unwrap();
    assert_ne!(after.producer_id, identity.producer_id);
    assert_identical(&from, &to, "epochs").await;
    for twin in twins {
        twin.end().await;
    }
}

/// `cargo test -p standfast-link --test transactions --release -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures"]
async fn transactions_per_second() {
    let (source, destination) = clusters();
    for partitions in [1, 4] {
        let topic = format!("rate-{partitions}");
        source.create_topic(&topic, partitions, &[]).unwrap();
        let from = connect(source).await;
        let writers = (0..partitions).map(|partition| {
            let (from, topic) = (from.clone(), topic.clone());
            async move {
                let mut app = App::new(&from, &format!("{topic}-{partition}"), &topic).await;
                app.partition = TopicPartition::new(&*topic, partition);
                for _ in 0..1000 {
                    app.write(10).await;
                    app.end(true).await;
                }
            }
        });
        let mut tasks: Vec<_> = writers.map(tokio::spawn).collect();
        for task in tasks.drain(..) {
            task.await.unwrap();
        }
        let running = Running::start(link_options(&topic, source, destination, &[&topic]));
        let began = Instant::now();
        running.wait_caught_up(&from, &topic).await;
        let seconds = began.elapsed().as_secs_f64();
        let to = connect(destination).await;
        assert_identical(&from, &to, &topic).await;
        let count = 1000.0 * f64::from(partitions);
        println!(
            "{partitions} partitions: {:.0} transactions/s",
            count / seconds
        );
        running.end().await;
    }
}
