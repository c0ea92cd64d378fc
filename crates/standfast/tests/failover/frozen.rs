//! The active cluster is frozen and wakes up again, without a flip and after one.

use std::time::{Duration, Instant};

use standfast::{MissingOffset, Record};

use crate::harness::{EAST, SOON, World, clients, members, until};

/// Longer than a broker may keep its controller waiting (`broker.session.timeout.ms`, 9 s). When both wake up, the controller takes
/// the broker for dead, and for a moment the cluster's metadata names no broker at all: librdkafka then forgets the one that it
/// knew, and without a bootstrap of its own it never comes back.
const FROZEN: Duration = Duration::from_secs(12);

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_wakes_up_is_used_again() {
    let world = World::start(1).await;
    let fleet = world.connect().await;
    let (producer, mut consumer) = clients(&fleet).await;
    let mut sent = 0;
    let mut next = || {
        sent += 1;
        Record::to("orders")
            .key("k")
            .payload((sent - 1).to_string())
    };
    let mut read = 0;
    for (round, frozen) in [Duration::ZERO, FROZEN, FROZEN, FROZEN]
        .into_iter()
        .enumerate()
    {
        world.west.pause();
        let end = Instant::now() + frozen;
        let mut answers = vec![producer.enqueue(next()).await.expect("enqueue")];
        while Instant::now() < end {
            answers.push(producer.enqueue(next()).await.expect("enqueue"));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        world.west.resume();
        for answer in answers {
            let answer = tokio::time::timeout(SOON, answer).await;
            let answer = answer.unwrap_or_else(|_| panic!("round {round}: the producer is stuck"));
            answer.expect("acknowledged");
            let message = tokio::time::timeout(SOON, consumer.next()).await;
            let message =
                message.unwrap_or_else(|_| panic!("round {round}: the consumer is stuck"));
            let message = message.expect("open").expect("record");
            let text = String::from_utf8_lossy(message.payload().unwrap_or_default()).into_owned();
            assert_eq!(text, read.to_string(), "round {round}");
            read += 1;
            consumer.ack(&message).expect("ack");
        }
    }
}

/// Longer than a member stays that has moved on (5 s), and than it may take to find out whether the coordinator is there.
const STAYED: Duration = Duration::from_secs(7);

/// A member that the coordinator takes for alive would be given partitions that nobody reads, for its session's time.
#[tokio::test(flavor = "multi_thread")]
async fn who_has_moved_on_leaves_when_the_cluster_answers_again() {
    let world = World::start(1).await;
    let fleet = world.connect().await;
    let mut consumer = fleet
        .consumer("leaver")
        .on_missing_offset(MissingOffset::Earliest)
        .property("session.timeout.ms", "120000")
        .subscribe(&["orders"])
        .await
        .expect("consumer");
    let west = world.west.bootstrap();
    until("the consumer is a member", || {
        members(&west, "leaver") == Some(1)
    })
    .await;
    world.west.pause();
    world.flip(EAST, Some(vec![Some(0)])).await;
    tokio::time::sleep(STAYED).await;
    world.west.resume();
    until("the member has left", || {
        members(&west, "leaver") == Some(0)
    })
    .await;
    let producer = fleet.producer().build().await.expect("producer");
    let sent = producer.send(Record::to("orders").payload("on east"));
    let sent = tokio::time::timeout(SOON, sent).await;
    sent.expect("in time").expect("sent");
    let message = tokio::time::timeout(SOON, consumer.next()).await;
    let message = message.expect("in time").expect("open").expect("record");
    assert_eq!(message.payload(), Some(&b"on east"[..]));
}
