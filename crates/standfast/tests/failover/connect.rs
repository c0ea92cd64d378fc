//! How soon a client works on a cluster that is there.

use std::time::{Duration, Instant};

use standfast::{FleetEvent, MissingOffset};

use crate::harness::{SOON, World, event};

/// Clients are made and connected at once. librdkafka leaves one new consumer in four unconnected for a second; each of
/// those would be a second of outage at a flip.
#[tokio::test(flavor = "multi_thread")]
async fn new_clients_connect_without_waiting_for_a_timer() {
    const STARTS: usize = 60;
    /// For a busy machine; without the cure about 15 are slow.
    const MAY_BE_SLOW: usize = 5;
    const SLOW: Duration = Duration::from_millis(900);
    let world = World::start(1).await;
    let fleet = world.connect().await;
    let mut took = Vec::new();
    for number in 0..STARTS {
        let mut events = fleet.events();
        let started = Instant::now();
        let consumer = fleet
            .consumer(format!("starter-{number}"))
            .on_missing_offset(MissingOffset::Latest)
            .subscribe(&["orders"])
            .await
            .expect("consumer");
        event(&mut events, "the consumer is connected", |event| {
            matches!(event, FleetEvent::ClientReady { .. }).then_some(())
        })
        .await;
        took.push(started.elapsed());
        drop(consumer);
    }
    took.sort();
    let slow = took.iter().filter(|took| **took > SLOW).count();
    println!(
        "{STARTS} consumers: median {:?}, slowest {:?}, over {SLOW:?}: {slow}",
        took[STARTS / 2],
        took[STARTS - 1]
    );
    assert!(slow <= MAY_BE_SLOW, "{took:?}");
    assert!(took[STARTS - 1] < SOON);
}
