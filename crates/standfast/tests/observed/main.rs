//! What an application sees of its fleet: metrics by both exporters, and what ends.
#![allow(clippy::unwrap_used, missing_docs)]

mod expiry;
mod metrics;
mod pages;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use standfast::discovery::{
    ClusterEntry, ClusterName, Discovery, DiscoveryOptions, FleetName, FleetRecord,
};

/// Deadline of everything that should happen soon; generous, for a busy machine.
const SOON: Duration = Duration::from_secs(60);

/// Creates the record of `fleet` in a folder, the first cluster being the active one.
async fn record(folder: &Path, fleet: &str, clusters: Vec<(&str, ClusterEntry)>) {
    let name = |name: &str| ClusterName::new(name).unwrap();
    let active = name(clusters[0].0);
    let clusters: BTreeMap<_, _> = clusters
        .into_iter()
        .map(|(cluster, entry)| (name(cluster), entry))
        .collect();
    let discovery = Discovery::new(DiscoveryOptions::file(folder)).unwrap();
    let first = FleetRecord::first(active, clusters, "test");
    let fleet = FleetName::new(fleet).unwrap();
    discovery
        .compare_and_set(&fleet, None, &first)
        .await
        .unwrap();
}

/// Waits until `condition` holds.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
