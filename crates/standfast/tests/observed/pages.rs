//! What the pages say of properties is so.

use standfast::discovery::{ClusterEntry, DiscoveryOptions};
use standfast::{Error, Fleet};

use crate::record;

const MOVING: &str = include_str!("../../MOVING.md");

/// The first cells of the rows under the heading that begins with `heading`, and what stands in backticks there.
fn names(heading: &str) -> Vec<String> {
    let (_, table) = MOVING.split_once(heading).expect("the table");
    let rows = table.lines().skip(2).take_while(|line| !line.is_empty());
    let cells = rows.filter_map(|row| row.strip_prefix('|')?.split('|').next());
    cells
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .map(str::to_owned)
        .collect()
}

#[tokio::test]
async fn every_property_that_is_called_refused_is_refused_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = ClusterEntry::new("127.0.0.1:1");
    record(folder.path(), "payments", vec![("west", nowhere)]).await;
    let fleet = Fleet::builder("payments")
        .discovery(DiscoveryOptions::file(folder.path()))
        .build()
        .await
        .unwrap();
    let refused = names("| Refused |");
    assert!(refused.len() > 30, "{refused:?}");
    for name in &refused {
        let built = fleet.producer().property(name, "1").build().await;
        assert!(
            matches!(built, Err(Error::RefusedProperty { .. })),
            "{name}: {built:?}"
        );
        let subscribed = fleet
            .consumer("g")
            .property(name, "1")
            .subscribe(&["t"])
            .await;
        assert!(
            matches!(subscribed, Err(Error::RefusedProperty { .. })),
            "{name}"
        );
    }
    let other_default = names("| Another default |");
    assert!(other_default.len() > 10, "{other_default:?}");
    for name in other_default.iter().filter(|name| !refused.contains(name)) {
        let built = fleet.producer().property(name, "").build().await;
        assert!(
            !matches!(built, Err(Error::RefusedProperty { .. })),
            "{name} may be set"
        );
    }
}
