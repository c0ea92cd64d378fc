//! The parts of the acceptance list of KIP-1279 (its system tests) that no other test covers; `tests/README.md` maps the whole list.

mod support;

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use standfast_link::{LinkOptions, MirrorStatus};
use standfast_servers::KafkaCluster;
use standfast_wire::batch::ProducerStamp;
use standfast_wire::{Cluster, produce};
use support::*;

const SOON: Duration = Duration::from_secs(30);
const TOPIC: &str = "orders";
/// Offsets that the source's log lacks at its end.
const GAP: i64 = 700;

/// Writes small batches one after the other until told to stop, however often brokers go away. What was written and not acknowledged is written again, as any
/// producer would.
async fn load(cluster: Cluster, partition: i32, stop: Arc<AtomicBool>) -> u32 {
    let plain = ProducerStamp {
        producer_id: -1,
        producer_epoch: -1,
        base_sequence: -1,
    };
    let mut acknowledged = 0;
    while !stop.load(Ordering::Relaxed) {
        let record = Record::new("k", format!("{acknowledged} of {partition}"));
        let restamped = batch(&[record], PLAIN).restamp(plain).expect("restamped");
        let attempt = async {
            let leader = cluster.leader(TOPIC, partition).await.ok()?;
            let (mut reader, mut writer) = cluster.open_raw(leader).await.ok()?.into_split();
            loop {
                let part = (TOPIC, partition, restamped.clone());
                let frame = produce::encode(1, "load", -1, 5_000, None, &[part]);
                writer.write(&frame).await.ok()?;
                let answer = produce::decode(reader.read().await.ok()?).ok()?;
                if answer.partitions.first()?.error_code != 0 {
                    return None::<u32>;
                }
                acknowledged += 1;
                if stop.load(Ordering::Relaxed) {
                    return None;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(5), attempt).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    acknowledged
}

fn link(source: &KafkaCluster, destination: &KafkaCluster) -> LinkOptions {
    link_options("accept", source, destination, &[TOPIC])
}

/// As a broker leaves it that created the next segment and then could not append to it; compaction has taken the records before.
fn end_in_a_gap(source: &KafkaCluster, end: i64) {
    let partition: PathBuf = source
        .folder()
        .read_dir()
        .expect("the cluster's folder")
        .filter_map(|entry| Some(entry.ok()?.path().join(format!("data/{TOPIC}-0"))))
        .find(|path| path.is_dir())
        .expect("the partition's folder");
    File::create(partition.join(format!("{:020}.log", end + GAP))).expect("an empty segment");
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_equal_after_interleaved_bounces_of_both_clusters_and_a_gap_at_the_end() {
    let (mut source, mut destination) =
        tokio::task::spawn_blocking(|| (kafka("source"), kafka("destination")))
            .await
            .unwrap();
    source.create_topic(TOPIC, 2, &[]).unwrap();
    let (from, to) = (connect(&source).await, connect(&destination).await);
    let running = Running::start(link(&source, &destination));
    let stop = Arc::new(AtomicBool::new(false));
    let load: Vec<_> = (0..2)
        .map(|partition| tokio::spawn(load(from.clone(), partition, Arc::clone(&stop))))
        .collect();
    running
        .wait("mirroring", |link| {
            link.mirrors[0].mirror_lags.len() == 2
                && (link.mirrors[0].mirror_lags.iter())
                    .all(|p| p.destination_log_end_offset > Some(20))
        })
        .await;
    tokio::task::block_in_place(|| {
        source.kill();
        destination.stop_gracefully();
        source.restart().unwrap();
        // The source takes records, the destination is away: a backlog.
        std::thread::sleep(Duration::from_secs(2));
        destination.restart().unwrap();
        destination.kill();
        source.stop_gracefully();
        destination.restart().unwrap();
        source.restart().unwrap();
    });
    let before = log_ends(&to, TOPIC).await;
    wait_for("records flow again", || async {
        let now = log_ends(&to, TOPIC).await;
        now.iter().zip(&before).all(|(now, before)| now > before)
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    for load in load {
        assert!(load.await.unwrap() > 20);
    }
    running.wait_caught_up(&from, TOPIC).await;
    assert_identical(&from, &to, TOPIC).await;

    // The source's log ends in a gap: the mirror gets there, and a promote does not wait for ever.
    let end = log_ends(&from, TOPIC).await[0];
    tokio::task::block_in_place(|| {
        source.stop_gracefully();
        end_in_a_gap(&source, end);
        source.restart().unwrap();
    });
    wait_for("the source ends in a gap", || async {
        log_ends(&from, TOPIC).await[0] == end + GAP
    })
    .await;
    running.wait_caught_up(&from, TOPIC).await;
    running.end().await;
    // Start-up finds filler where the source holds nothing.
    let running = Running::start(link(&source, &destination));
    running.wait_caught_up(&from, TOPIC).await;
    append_some(&from, TOPIC, 0, 3).await;
    running.wait_caught_up(&from, TOPIC).await;
    let promoted = running.handle.promote(&[TOPIC], SOON).await;
    assert_eq!(
        (promoted[0].error_code, promoted[0].mirror_status),
        (None, MirrorStatus::Stopped),
        "{promoted:?}"
    );
    assert_eq!(log_ends(&to, TOPIC).await, log_ends(&from, TOPIC).await);
    running.end().await;
}
