//! The file backend, as several processes would use it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fleet;

use std::path::Path;
use std::time::{Duration, Instant};

use fleet::{cluster, first, fleet, handoff, set, wait_for, watch};
use standfast_discovery::*;

const DEADLINE: Duration = Duration::from_secs(10);

fn discovery(folder: &Path) -> Discovery {
    fleet::discovery(DiscoveryOptions::file(folder))
}

#[tokio::test]
async fn create_read_replace_conflict() {
    let folder = tempfile::tempdir().unwrap();
    let discovery = discovery(folder.path());
    assert_eq!(discovery.read(&fleet()).await.unwrap(), None);

    let record = first();
    let created = set(discovery
        .compare_and_set(&fleet(), None, &record)
        .await
        .unwrap());
    assert_eq!(
        discovery
            .compare_and_set(&fleet(), None, &record)
            .await
            .unwrap(),
        CasOutcome::Conflict
    );
    let read = discovery.read(&fleet()).await.unwrap().unwrap();
    assert_eq!((&read.version, &read.value), (&created, &record));

    let next = record.next(cluster("east"), FleetState::Active, "flip");
    let flipped = set(discovery
        .compare_and_set(&fleet(), Some(&created), &next)
        .await
        .unwrap());
    assert_eq!(discovery.read(&fleet()).await.unwrap().unwrap().value, next);
    assert_eq!(
        discovery
            .compare_and_set(&fleet(), Some(&created), &next)
            .await
            .unwrap(),
        CasOutcome::Conflict
    );
    let error = discovery
        .compare_and_set(&fleet(), Some(&flipped), &next)
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::EpochDoesNotGrow {
                current: Epoch(2),
                offered: Epoch(2),
                ..
            }
        ),
        "{error}"
    );

    let mut broken = next.next(cluster("east"), FleetState::Active, "broken");
    broken.active = cluster("north");
    let error = discovery
        .compare_and_set(&fleet(), Some(&flipped), &broken)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("north"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_writers_exactly_one_wins_each_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let record = first();
    let mut version = set(discovery(folder.path())
        .compare_and_set(&fleet(), None, &record)
        .await
        .unwrap());
    for round in 0..10 {
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..8 {
            // Each has its own instance, as another process would.
            let (discovery, version, mut next) =
                (discovery(folder.path()), version.clone(), record.clone());
            next.epoch = version.epoch().next();
            next.reason = format!("round {round} writer {writer}");
            writers.spawn(async move {
                discovery
                    .compare_and_set(&fleet(), Some(&version), &next)
                    .await
                    .unwrap()
            });
        }
        let outcomes = writers.join_all().await;
        let mut won: Vec<_> = outcomes
            .into_iter()
            .filter(|o| *o != CasOutcome::Conflict)
            .collect();
        assert_eq!(won.len(), 1);
        version = set(won.remove(0));
        assert_eq!(
            discovery(folder.path())
                .read(&fleet())
                .await
                .unwrap()
                .unwrap()
                .version,
            version
        );
    }
}

#[tokio::test]
async fn the_watch_sees_a_flip_at_once_and_never_goes_back() {
    let folder = tempfile::tempdir().unwrap();
    let discovery = discovery(folder.path());
    let (mut handle, _guard) = watch(&discovery);
    let view = wait_for(&mut handle, |v| v.source == ViewSource::Live).await;
    assert_eq!(view.record, None);

    let mut record = first();
    let mut version = set(discovery
        .compare_and_set(&fleet(), None, &record)
        .await
        .unwrap());
    let mut seen_after = Vec::new();
    for _ in 0..20 {
        record = record.next(cluster("east"), FleetState::Active, "flip");
        // Before the write: the watch may see it before the writer has its answer.
        let flipped = Instant::now();
        version = set(discovery
            .compare_and_set(&fleet(), Some(&version), &record)
            .await
            .unwrap());
        wait_for(&mut handle, |v| v.epoch() == Some(record.epoch)).await;
        seen_after.push(flipped.elapsed());
    }
    // The median: a busy machine may hold up any single one.
    seen_after.sort();
    let median = seen_after[seen_after.len() / 2];
    println!(
        "flips seen after {median:?} (median), {:?} (slowest)",
        seen_after.last()
    );
    assert!(median < Duration::from_millis(100), "{seen_after:?}");

    // An older copy is put back.
    std::fs::write(
        folder.path().join("payments/active.json"),
        first().to_json().unwrap(),
    )
    .unwrap();
    let view = wait_for(&mut handle, |v| v.last_error.is_some()).await;
    assert_eq!(view.epoch(), Some(record.epoch));
    assert!(view.last_error.unwrap().contains("epoch 1"));
    assert!(handle.stats().older_epochs > 0);
}

#[tokio::test]
async fn a_malformed_or_missing_file_keeps_the_old_view() {
    let folder = tempfile::tempdir().unwrap();
    let discovery = discovery(folder.path());
    let record = first();
    let path = folder.path().join("payments/active.json");
    set(discovery
        .compare_and_set(&fleet(), None, &record)
        .await
        .unwrap());
    let (mut handle, _guard) = watch(&discovery);
    let good = wait_for(&mut handle, |v| v.record.is_some()).await;
    assert_eq!(good.last_error, None);

    std::fs::write(&path, "{\"epoch\": 9, ").unwrap();
    let view = wait_for(&mut handle, |v| v.last_error.is_some()).await;
    assert_eq!(view.record, good.record);
    assert!(view.last_error.unwrap().contains("active.json"));
    assert!(matches!(
        discovery.read(&fleet()).await,
        Err(Error::Malformed { .. })
    ));

    std::fs::write(&path, record.to_json().unwrap()).unwrap();
    wait_for(&mut handle, |v| v.last_error.is_none()).await;
    std::fs::remove_file(&path).unwrap();
    let view = wait_for(&mut handle, |v| v.last_error.is_some()).await;
    assert_eq!(view.record, good.record);

    // The name of the folder is taken by a file: the backend itself is broken now.
    std::fs::remove_dir_all(folder.path().join("payments")).unwrap();
    std::fs::write(folder.path().join("payments"), "").unwrap();
    let view = wait_for(&mut handle, |v| {
        matches!(v.source, ViewSource::Stale { .. })
    })
    .await;
    assert_eq!(view.record, good.record);
    std::fs::remove_file(folder.path().join("payments")).unwrap();
    set(discovery
        .compare_and_set(&fleet(), None, &record)
        .await
        .unwrap());
    let view = wait_for(&mut handle, |v| {
        v.source == ViewSource::Live && v.last_error.is_none()
    })
    .await;
    assert_eq!(view.epoch(), Some(Epoch(1)));
}

#[tokio::test]
async fn a_bare_string_is_followed_without_epochs() {
    let folder = tempfile::tempdir().unwrap();
    let discovery = discovery(folder.path());
    std::fs::create_dir(folder.path().join("payments")).unwrap();
    let (mut handle, _guard) = watch(&discovery);
    for bootstrap in ["k1:9092", "k2:9092", "k1:9092"] {
        std::fs::write(folder.path().join("payments/active.json"), bootstrap).unwrap();
        let view = wait_for(&mut handle, |v| {
            let cluster = v.record.as_ref().and_then(|r| r.active_cluster());
            cluster.is_some_and(|c| c.bootstrap == bootstrap)
        })
        .await;
        assert_eq!(view.epoch(), Some(Epoch::BARE));
    }
    // The agent may take over from there.
    let bare = discovery.read(&fleet()).await.unwrap().unwrap();
    set(discovery
        .compare_and_set(&fleet(), Some(&bare.version), &first())
        .await
        .unwrap());
    wait_for(&mut handle, |v| v.epoch() == Some(Epoch(1))).await;
}

#[tokio::test]
async fn handoffs_are_kept_per_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let discovery = discovery(folder.path());
    assert_eq!(
        discovery.read_handoff(&fleet(), Epoch(2)).await.unwrap(),
        None
    );
    let handoff = handoff();
    let key = discovery.write_handoff(&handoff).await.unwrap();
    assert!(folder.path().join(&key).exists(), "{key}");
    assert_eq!(
        discovery.read_handoff(&fleet(), Epoch(2)).await.unwrap(),
        Some(handoff)
    );
    assert_eq!(
        discovery.read_handoff(&fleet(), Epoch(3)).await.unwrap(),
        None
    );
    std::fs::write(folder.path().join(&key), "{}").unwrap();
    let error = discovery
        .read_handoff(&fleet(), Epoch(2))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("handoff/2"), "{error}");
}

#[tokio::test]
async fn the_lock_is_exclusive_and_names_its_holder() {
    let folder = tempfile::tempdir().unwrap();
    let ttl = Duration::from_secs(10);
    let lock = discovery(folder.path())
        .lock(&fleet(), "agent west-1", ttl)
        .await
        .unwrap();
    assert!(lock.is_valid());
    let error = discovery(folder.path())
        .lock(&fleet(), "agent east-1", ttl)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, Error::LockHeld { holder, .. } if holder.contains("agent west-1")),
        "{error}"
    );
    // A link's lock is another one.
    let of_link = discovery(folder.path())
        .lock_link(&fleet(), "west-to-east", "agent east-1", ttl)
        .await
        .unwrap();
    let held = discovery(folder.path())
        .lock_link(&fleet(), "west-to-east", "agent west-1", ttl)
        .await;
    assert!(matches!(held, Err(Error::LockHeld { .. })), "{held:?}");
    of_link.release().await.unwrap();
    lock.release().await.unwrap();
    let lock = discovery(folder.path())
        .lock(&fleet(), "agent east-1", ttl)
        .await
        .unwrap();
    drop(lock);
    discovery(folder.path())
        .lock(&fleet(), "agent west-1", ttl)
        .await
        .unwrap();
}

#[tokio::test]
async fn the_handle_learns_that_the_watch_has_ended() {
    let folder = tempfile::tempdir().unwrap();
    let (mut handle, guard) = watch(&discovery(folder.path()));
    wait_for(&mut handle, |v| v.source == ViewSource::Live).await;
    drop(guard);
    let ended = tokio::time::timeout(DEADLINE, handle.wait_for(|_| false))
        .await
        .unwrap();
    assert!(matches!(ended, Err(Error::WatchEnded)));
    assert_eq!(handle.borrow().record, None);
}
