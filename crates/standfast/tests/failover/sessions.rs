//! The cluster does not answer for longer than the members' sessions last, without a flip.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use standfast::{FailoverConsumer, Fleet, MissingOffset, RebalanceEvent};
use tokio::sync::mpsc::UnboundedSender;

use crate::harness::{SOON, World, produce_plain, until};

const PARTITIONS: usize = 4;

/// Longer than a session, also as the broker counts it.
const FROZEN: Duration = Duration::from_secs(9);

/// Whether there is a commit between two records of a round. If not, the group knows only that its members have begun to read.
/// By chance each member may get the partitions that it had.
const ROUNDS: [bool; 4] = [true, true, false, false];

/// Who gets another one's partitions waits for what was acknowledged and could not be committed.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_outlives_lost_sessions() {
    let world = World::start(PARTITIONS as i32).await;
    let fleet = world.connect().await;
    let lost = Arc::new(AtomicUsize::new(0));
    let (sender, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let mut handles = Vec::new();
    for _ in 0..2 {
        let consumer = subscribe(&fleet, &lost).await;
        handles.push(consumer.handle());
        tokio::spawn(read(consumer, sender.clone()));
    }
    let mut counts = BTreeMap::<(i32, i64), usize>::new();
    let mut produced = 0;
    for (round, commits) in ROUNDS.into_iter().enumerate() {
        until("each has half", || {
            handles.iter().all(|h| h.assignment().len() == 2)
        })
        .await;
        for part in 0..2 {
            for partition in 0..PARTITIONS as i32 {
                let records = (produced..produced + 20).map(|n| n.to_string());
                produce_plain(&world.west.bootstrap(), "orders", partition, records);
            }
            produced += 20;
            while counts.len() < PARTITIONS * produced {
                let next = tokio::time::timeout(SOON, seen.recv()).await;
                let place = next.expect("in time").expect("open");
                *counts.entry(place).or_default() += 1;
            }
            if part == 0 && commits {
                for handle in &handles {
                    let commit = tokio::time::timeout(SOON, handle.commit()).await;
                    commit.expect("in time").expect("commit");
                }
            }
        }
        let repeated = counts.values().filter(|count| **count > 1).count();
        assert_eq!(repeated, 0, "round {round}");
        world.west.pause();
        tokio::time::sleep(FROZEN).await;
        world.west.resume();
        until("both have lost their sessions", || {
            lost.load(SeqCst) == 2 * (round + 1)
        })
        .await;
    }
}

async fn subscribe(fleet: &Fleet, lost: &Arc<AtomicUsize>) -> FailoverConsumer {
    let lost = Arc::clone(lost);
    fleet
        .consumer("sessions")
        .property("session.timeout.ms", "6000")
        .commit_interval(Duration::from_secs(600))
        .on_missing_offset(MissingOffset::Earliest)
        .on_rebalance(move |_, event| {
            if let RebalanceEvent::Lost(_) = event {
                lost.fetch_add(1, SeqCst);
            }
        })
        .subscribe(&["orders"])
        .await
        .expect("consumer")
}

async fn read(mut consumer: FailoverConsumer, sender: UnboundedSender<(i32, i64)>) {
    while let Some(message) = consumer.next().await {
        let message = message.expect("record");
        consumer.ack(&message).expect("ack");
        let place = (message.partition(), message.offset());
        if sender.send(place).is_err() {
            return;
        }
    }
}
