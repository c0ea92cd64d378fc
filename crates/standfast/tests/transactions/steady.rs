//! Within one cluster.

use std::process::{Command, Stdio};
use std::time::Duration;

use standfast::{Error, FleetEvent, Message, Record};

use crate::harness::{SOON, event, until};
use crate::pipeline::{
    assert_once, client, payload, produce, seen, stored, transform, turn, world,
};

/// Which fleet the child works on.
const DIR: &str = "STANDFAST_TEST_TRANSACT_DIR";
const ID: &str = "enrich-1";

/// Exactly once: over aborts, a process that is killed in the middle of a transaction, a second client with the same id, and a
/// rebalance. What is aborted is never seen, and what was read in it comes again.
#[tokio::test(flavor = "multi_thread")]
async fn each_record_is_transformed_once() {
    let world = world().await;
    let fleet = world.connect().await;
    let west = world.west.bootstrap();
    produce(&fleet, 0..600).await;

    let mut first = client(&fleet, ID).await;
    transform(&mut first, 100).await;
    let before = seen(&west);
    assert!(before.len() >= 100 && before.values().all(|times| *times == 1));

    // Aborted by hand, and by dropping.
    for by_hand in [true, false] {
        let mut transaction = first.begin().await.expect("begin");
        let message = tokio::time::timeout(SOON, transaction.next())
            .await
            .expect("in time")
            .expect("record");
        transaction
            .send(Record::to("enriched").partition(0).payload("aborted"))
            .await
            .expect("sent");
        if by_hand {
            transaction.abort().await.expect("abort");
        } else {
            drop(transaction);
        }
        let mut again = first.begin().await.expect("begin");
        let place = |message: &Message| (message.partition(), message.offset());
        let read = place(&message);
        let mut next = None;
        while next != Some(read) {
            let message = tokio::time::timeout(SOON, again.next())
                .await
                .expect("it comes again")
                .expect("record");
            next = Some(place(&message));
        }
        again.abort().await.expect("abort");
    }
    until("the aborted records are stored", || {
        stored(&west).contains_key("aborted")
    })
    .await;
    assert_eq!(
        seen(&west),
        before,
        "nothing of an aborted transaction is seen"
    );
    let stats = fleet.snapshot();
    assert_eq!(stats.transactions_aborted, 4, "{stats:?}");
    first.close().await;

    // A process of its own, killed between its records and the commit.
    let mut child = Command::new(std::env::current_exe().expect("program"))
        .args([
            "--exact",
            "steady::the_child_that_is_killed",
            "--ignored",
            "--nocapture",
        ])
        .env(DIR, world.dir.path())
        .stdout(Stdio::null())
        .spawn()
        .expect("child");
    until("the child has sent", || stored(&west).contains_key("child")).await;
    child.kill().expect("kill");
    child.wait().expect("wait");
    assert!(!seen(&west).contains_key("child"));

    // The same id takes over at once, and aborts what the child left open.
    let mut second = client(&fleet, ID).await;
    transform(&mut second, 100).await;
    assert!(
        !seen(&west).contains_key("child"),
        "the child's transaction is aborted"
    );

    // A zombie: its transaction is open when another client of the same id comes.
    let mut zombie = second;
    let mut open = zombie.begin().await.expect("begin");
    tokio::time::timeout(SOON, open.next())
        .await
        .expect("in time")
        .expect("record");
    open.send(Record::to("enriched").partition(1).payload("zombie"))
        .await
        .expect("sent");
    until("the zombie has sent", || {
        stored(&west).contains_key("zombie")
    })
    .await;
    let mut events = fleet.events();
    let mut third = client(&fleet, ID).await;
    third
        .begin()
        .await
        .expect("begin")
        .abort()
        .await
        .expect("nothing to abort");
    let error = open.commit().await.expect_err("fenced");
    assert!(matches!(error, Error::ProducerFenced { .. }), "{error}");
    assert!(!error.is_retryable());
    let error = zombie.begin().await.expect_err("fenced for good");
    assert!(matches!(error, Error::ProducerFenced { .. }), "{error}");
    drop(zombie);
    event(&mut events, "the zombie's transaction", |event| {
        matches!(event, FleetEvent::TransactionAborted { .. }).then_some(())
    })
    .await;

    // A second member takes partitions over while the first has a transaction open.
    transform(&mut third, 50).await;
    let mut open = third.begin().await.expect("begin");
    tokio::time::timeout(SOON, open.next())
        .await
        .expect("in time")
        .expect("record");
    open.send(Record::to("enriched").partition(1).payload("rebalanced"))
        .await
        .expect("sent");
    let mut other = client(&fleet, "enrich-2").await;
    event(&mut events, "a rebalance aborts", |event| match event {
        FleetEvent::TransactionAborted { reason, .. } => reason.contains("group").then_some(()),
        _ => None,
    })
    .await;
    let error = open.commit().await.expect_err("aborted");
    assert!(
        matches!(
            error,
            Error::TransactionAborted {
                outcome_unknown: false,
                ..
            }
        ),
        "{error}"
    );

    produce(&fleet, 600..700).await;
    let mut done = false;
    let deadline = std::time::Instant::now() + SOON;
    while !done {
        assert!(
            std::time::Instant::now() < deadline,
            "{} of 700 are seen",
            seen(&west).len()
        );
        for client in [&mut third, &mut other] {
            match turn(client, 20).await {
                Ok(_) => {}
                Err(error) => assert!(error.is_retryable(), "{error}"),
            }
        }
        done = seen(&west).len() >= 700;
    }
    assert_once(&seen(&west), 0..700);
    assert!(fleet.snapshot().transactions_committed > 10);
}

/// Run by `each_record_is_transformed_once` in a process of its own.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "it waits to be killed"]
async fn the_child_that_is_killed() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let fleet = standfast::Fleet::builder("payments")
        .discovery(standfast::discovery::DiscoveryOptions::file(dir))
        .build()
        .await
        .expect("fleet");
    let mut client = client(&fleet, ID).await;
    turn(&mut client, 20).await.expect("committed");
    let mut open = client.begin().await.expect("begin");
    loop {
        let message = open.next().await.expect("record");
        open.send_for(
            &message,
            Record::to("enriched").partition(0).payload("child"),
        )
        .await
        .expect("sent");
        let _ = payload(0);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
