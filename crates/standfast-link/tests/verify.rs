//! `verify` on real brokers: equal after a copy, a difference made on purpose, a mirror that is shorter.

mod support;

use std::sync::{Mutex, OnceLock};

use standfast_link::{
    DifferenceKind, VerifyError, VerifyOptions, VerifyProgress, VerifyReport, VerifyResult,
    same_at, verify,
};
use standfast_servers::KafkaCluster;
use standfast_wire::Cluster;
use support::*;

fn clusters() -> &'static (KafkaCluster, KafkaCluster) {
    static CLUSTERS: OnceLock<(KafkaCluster, KafkaCluster)> = OnceLock::new();
    CLUSTERS.get_or_init(|| (kafka("source"), kafka("destination")))
}

fn question(topic: &str, mirror: &str) -> VerifyOptions {
    let (source, destination) = clusters();
    VerifyOptions {
        source: options(source),
        destination: options(destination),
        source_topic: topic.to_owned(),
        mirror_topic: mirror.to_owned(),
        partition: None,
        from: None,
        to: None,
    }
}

/// A link that copies every batch as it is.
fn exactly(
    name: &str,
    source: &KafkaCluster,
    destination: &KafkaCluster,
    topics: &[&str],
) -> standfast_link::LinkOptions {
    let mut options = link_options(name, source, destination, topics);
    options.join_batches = false;
    options
}

async fn ask(topic: &str, mirror: &str) -> VerifyReport {
    verify(question(topic, mirror), |_| {})
        .await
        .expect("a report")
}

async fn write(cluster: &Cluster, topic: &str, values: &[&str]) {
    for value in values {
        let records = [Record::new("a", *value), Record::new("b", *value)];
        let mut batch = batch(&records, PLAIN);
        // The same timestamps on both clusters.
        let mut bytes = batch.bytes.to_vec();
        bytes[27..43].copy_from_slice(&[0; 16]);
        let crc = crc_fast::crc32_iscsi(&bytes[21..]);
        bytes[17..21].copy_from_slice(&crc.to_be_bytes());
        batch = standfast_wire::batch::RawBatch::new(bytes.into()).expect("a batch");
        append(cluster, topic, 0, &batch).await.expect("appended");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_equal_while_it_is_being_mirrored() {
    let (source, destination) = clusters();
    source.create_topic("copied", 3, &[]).unwrap();
    let from = connect(source).await;
    for partition in 0..3 {
        append_some(&from, "copied", partition, 400).await;
    }
    let running = Running::start(exactly("verify", source, destination, &["copied"]));
    running.wait_caught_up(&from, "copied").await;
    let report = ask("copied", "copied").await;
    assert_eq!(report.result, VerifyResult::Equal, "{report:#?}");
    assert_eq!(report.partitions.len(), 3);
    for partition in &report.partitions {
        assert_eq!(partition.equal_batches, 400, "{partition:#?}");
        assert_eq!((partition.from_offset, partition.to_offset), (0, 4000));
    }

    // While records arrive and the mirror runs after them, what both hold is equal.
    let progress = Mutex::new(Vec::new());
    let seen = |step: VerifyProgress| progress.lock().unwrap().push(step);
    let (_, report) = tokio::join!(
        append_some(&from, "copied", 1, 400),
        verify(question("copied", "copied"), seen)
    );
    let report = report.expect("a report");
    assert_eq!(report.result, VerifyResult::Equal, "{report:#?}");
    let steps = progress.into_inner().unwrap();
    assert!(steps.len() >= 3 && steps.iter().all(|step| step.num_partitions == 3));

    // A range, and one partition only.
    let narrow = VerifyOptions {
        partition: Some(2),
        from: Some(1005),
        to: Some(2000),
        ..question("copied", "copied")
    };
    let report = verify(narrow, |_| {}).await.expect("a report");
    assert_eq!(report.partitions.len(), 1);
    assert_eq!(report.partitions[0].equal_batches, 100, "{report:#?}");
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_record_is_found_and_a_short_mirror_says_so() {
    let (source, destination) = clusters();
    let (from, to) = (connect(source).await, connect(destination).await);
    for (topic, cluster) in [("original", source), ("foreign", destination)] {
        cluster.create_topic(topic, 1, &[]).unwrap();
    }
    write(&from, "original", &["one", "two", "three", "four"]).await;
    write(&to, "foreign", &["one", "two", "thrEe"]).await;
    let report = ask("original", "foreign").await;
    assert_eq!(report.result, VerifyResult::Different);
    let partition = &report.partitions[0];
    let found = partition.first_difference.as_ref().expect("a difference");
    assert_eq!((found.offset, found.kind), (4, DifferenceKind::Records));
    assert_eq!(partition.equal_batches, 2);

    // Before the difference the two are equal, and the mirror lacks the last two records.
    let before = VerifyOptions {
        to: Some(4),
        ..question("original", "foreign")
    };
    let report = verify(before, |_| {}).await.expect("a report");
    assert_eq!(report.result, VerifyResult::Equal, "{report:#?}");
    let partition = &report.partitions[0];
    assert_eq!(
        (partition.only_on_source, partition.only_on_destination),
        (2, 0)
    );

    // The other way round the mirror is longer.
    write(&to, "foreign", &["four", "five"]).await;
    let report = ask("original", "foreign").await;
    assert_eq!(report.partitions[0].only_on_destination, 2);

    source.create_topic("wide", 2, &[]).unwrap();
    let report = ask("wide", "foreign").await;
    let found = report.partitions[1].first_difference.as_ref();
    assert_eq!(
        found.map(|d| d.kind),
        Some(DifferenceKind::PartitionMissing)
    );

    let missing = verify(question("original", "nowhere"), |_| {}).await;
    assert!(
        matches!(
            &missing,
            Err(VerifyError::Missing {
                cluster: "destination",
                ..
            })
        ),
        "{missing:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_on_either_side_moves_the_beginning() {
    let (source, destination) = clusters();
    source.create_topic("aged", 1, &[]).unwrap();
    let (from, to) = (connect(source).await, connect(destination).await);
    append_some(&from, "aged", 0, 50).await;
    let running = Running::start(exactly("aged", source, destination, &["aged"]));
    running.wait_caught_up(&from, "aged").await;
    running.end().await;
    let id = standfast_wire::TopicPartition::new("aged", 0);
    for (cluster, before) in [(&from, 105), (&to, 207)] {
        for (_, deleted) in cluster.delete_records(&[(id.clone(), before)]).await {
            deleted.expect("deleted");
        }
    }
    let report = ask("aged", "aged").await;
    assert_eq!(report.result, VerifyResult::Equal, "{report:#?}");
    let partition = &report.partitions[0];
    // The batch that the log start lies in is compared whole.
    assert_eq!((partition.from_offset, partition.equal_batches), (207, 30));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_offset_is_compared_alone() {
    let (source, destination) = clusters();
    let (from, to) = (connect(source).await, connect(destination).await);
    for cluster in [source, destination] {
        cluster.create_topic("offsets", 1, &[]).unwrap();
    }
    write(&from, "offsets", &["one", "two", "three"]).await;
    write(&to, "offsets", &["one", "twO"]).await;
    // Two records in each batch; the mirror ends at 4.
    for (offset, same) in [(0, true), (1, true), (2, false), (3, false), (4, false)] {
        let found = same_at(&from, &to, "offsets", 0, offset).await;
        assert_eq!(found.expect("an answer"), same, "offset {offset}");
    }
}
