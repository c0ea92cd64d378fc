//! Across a flip.

use standfast::discovery::FleetState;
use standfast::{Error, FleetEvent, Record};
use std::time::{Duration, Instant};

use crate::harness::{EAST, SOON, WEST, event, mirror};
use crate::pipeline::{
    PARTITIONS, assert_once, carry_offsets, client, produce, seen, stored, transform, world,
};

/// A planned switchover in the middle of a transaction and back between two; then the cluster is killed in the middle of one.
#[tokio::test(flavor = "multi_thread")]
async fn a_flip_aborts_the_open_transaction_and_nothing_is_lost_or_doubled() {
    let mut world = world().await;
    let fleet = world.connect().await;
    let (west, east) = (world.west.bootstrap(), world.east.bootstrap());
    let mut events = fleet.events();
    produce(&fleet, 0..200).await;
    let mut client = client(&fleet, "enrich-1").await;
    transform(&mut client, 60).await;

    // Fenced with a transaction open: it is aborted on the old cluster.
    let mut open = client.begin().await.expect("begin");
    tokio::time::timeout(SOON, open.next())
        .await
        .expect("in time")
        .expect("record");
    open.send(Record::to("enriched").partition(0).payload("fenced"))
        .await
        .expect("sent");
    world.change(WEST, FleetState::Fenced, None).await;
    aborted(&mut events, "fenced", false).await;
    let error = open
        .send(Record::to("enriched").payload("late"))
        .await
        .expect_err("aborted");
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
    drop(open);
    let held = tokio::time::timeout(Duration::from_millis(500), client.begin())
        .await
        .is_err();
    assert!(held, "no transaction begins while the fleet is fenced");
    let on_west = seen(&west);
    assert!(!on_west.contains_key("fenced"));

    // What the link does: logs, then offsets.
    for partition in 0..PARTITIONS {
        mirror(&west, &east, partition, 100);
    }
    carry_offsets(&west, &east);
    world.flip(EAST, Some(vec![Some(100); 2])).await;
    let left = 200 - on_west.len();
    assert_eq!(transform(&mut client, left).await, 0);
    let mut both = seen(&east);
    assert_eq!(both.len(), left);
    both.extend(on_west);
    assert_once(&both, 0..200);

    // Back, with nothing open. A transaction that was begun and is empty goes on unnoticed.
    produce(&fleet, 200..260).await;
    let mut begun = client.begin().await.expect("begin");
    let waiting = async {
        let message = tokio::time::timeout(SOON, begun.next())
            .await
            .expect("in time")
            .expect("record");
        assert_eq!(message.cluster().as_str(), WEST);
        begun
            .send_for(
                &message,
                Record::to("enriched")
                    .partition(message.partition())
                    .payload(message.payload().unwrap().to_vec()),
            )
            .await
            .expect("sent");
        begun.commit().await.expect("committed");
    };
    // Held, so that the records come from west.
    world.change(EAST, FleetState::Fenced, None).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    for partition in 0..PARTITIONS {
        mirror(&east, &west, partition, 130);
    }
    carry_offsets(&east, &west);
    // The old client leaves its group late: what it gives back then is not what the new one reads.
    world.east.pause();
    let late = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        world.east.resume();
    };
    let flip = world.flip(WEST, Some(vec![Some(130); 2]));
    let (to_west, (), ()) = tokio::join!(flip, waiting, late);
    println!("epoch {to_west}");
    transform(&mut client, 59).await;
    let mut all = seen(&west);
    all.extend(seen(&east));
    assert_once(&all, 0..260);

    // West is killed with a transaction open. Nothing of the last 40 is mirrored, nor are the group's offsets: east decides.
    produce(&fleet, 260..300).await;
    for partition in 0..PARTITIONS {
        mirror(&west, &east, partition, 150);
    }
    carry_offsets(&west, &east);
    let mut open = client.begin().await.expect("begin");
    tokio::time::timeout(SOON, open.next())
        .await
        .expect("in time")
        .expect("record");
    open.send(Record::to("enriched").partition(0).payload("killed"))
        .await
        .expect("sent");
    world.west.kill();
    // On its way when the cluster dies: how it ends is not known.
    let flipped = Instant::now();
    let flip = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        world.flip(EAST, Some(vec![Some(150); 2])).await;
    };
    let (committed, ()) = tokio::join!(open.commit(), flip);
    let error = committed.expect_err("not committed");
    let told = flipped.elapsed();
    assert!(
        matches!(
            error,
            Error::TransactionAborted {
                outcome_unknown: true,
                ..
            }
        ),
        "{error}"
    );
    assert!(told < Duration::from_secs(2), "told after {told:?}");
    aborted(&mut events, "active", true).await;
    transform(&mut client, 40).await;
    let took = flipped.elapsed();
    println!("killed: told after {told:?}, all transformed after {took:?}");
    let mut seen_east = seen(&east);
    assert!(!seen_east.contains_key("killed") && !stored(&east).contains_key("killed"));
    seen_east.retain(|payload, _| payload.as_str() >= "00260");
    assert_once(&seen_east, 260..300);
}

async fn aborted(
    events: &mut tokio::sync::broadcast::Receiver<FleetEvent>,
    why: &str,
    unknown: bool,
) {
    event(events, "a transaction is aborted", |event| match event {
        FleetEvent::TransactionAborted {
            reason,
            outcome_unknown,
            ..
        } => (reason.contains(why) && outcome_unknown == unknown).then_some(()),
        _ => None,
    })
    .await;
}
