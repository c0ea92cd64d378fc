//! One fleet, its first record, and a running watch on it.
#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::BTreeMap;
use std::time::Duration;

use standfast_discovery::*;
use tokio_util::sync::{CancellationToken, DropGuard};

const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) fn fleet() -> FleetName {
    FleetName::new("payments").unwrap()
}

pub(crate) fn cluster(name: &str) -> ClusterName {
    ClusterName::new(name).unwrap()
}

/// Epoch 1, west active; each call gives another `changed_at`.
pub(crate) fn first() -> FleetRecord {
    let clusters = BTreeMap::from([
        (cluster("west"), ClusterEntry::new("127.0.0.1:1")),
        (cluster("east"), ClusterEntry::new("127.0.0.1:2")),
    ]);
    FleetRecord::first(cluster("west"), clusters, "test")
}

pub(crate) fn handoff() -> Handoff {
    Handoff {
        fleet: fleet(),
        epoch: Epoch(2),
        from: cluster("west"),
        to: cluster("east"),
        written_at: Timestamp::now(),
        planned: false,
        topics: BTreeMap::from([("orders".to_owned(), vec![Some(10), None])]),
    }
}

pub(crate) fn discovery(options: DiscoveryOptions) -> Discovery {
    Discovery::new(options).unwrap()
}

/// Runs a watch until the guard is dropped.
pub(crate) fn watch(discovery: &Discovery) -> (FleetWatchHandle, DropGuard) {
    let (watch, handle) = discovery.watch(fleet());
    let shutdown = CancellationToken::new();
    tokio::spawn(watch.run(shutdown.clone()));
    (handle, shutdown.drop_guard())
}

pub(crate) async fn wait_for(
    handle: &mut FleetWatchHandle,
    condition: impl FnMut(&FleetView) -> bool,
) -> FleetView {
    let waited = tokio::time::timeout(DEADLINE, handle.wait_for(condition)).await;
    waited
        .unwrap_or_else(|_| panic!("not seen in time: {:?}", handle.borrow()))
        .unwrap()
}

pub(crate) fn set(outcome: CasOutcome) -> Version {
    match outcome {
        CasOutcome::Set(version) => version,
        CasOutcome::Conflict => panic!("conflict"),
    }
}
