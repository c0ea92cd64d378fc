//! The Consul backend on a real Consul.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fleet;

use std::io::Write;
use std::time::{Duration, Instant};

use fleet::{cluster, discovery, first, fleet, handoff, set, wait_for, watch};
use standfast_discovery::*;
use standfast_servers::{Consul, Server, Silent, obtain};

const KEY: &str = "standfast/payments/active";

fn options(consul: &Consul) -> ConsulOptions {
    ConsulOptions {
        addresses: vec![consul.addr()],
        request_timeout: Duration::from_secs(1),
        wait: Duration::from_secs(2),
        ..ConsulOptions::default()
    }
}

fn on(consul: &Consul) -> Discovery {
    discovery(DiscoveryOptions::Consul(options(consul)))
}

#[tokio::test]
async fn agents_that_announce_themselves_at_once_know_of_one_another() {
    let consul = Consul::start().unwrap();
    let announce = async |name: &str| {
        let content = serde_json::json!({ "of": name });
        on(&consul).announce(&fleet(), name, &content).await
    };
    let (one, two) = tokio::join!(announce("one"), announce("two"));
    let told = one.unwrap().len().max(two.unwrap().len());
    assert_eq!(told, 2, "the second one knows of the first");
    let all = announce("one").await.unwrap();
    assert_eq!(all["two"].content["of"], "two");
}

#[tokio::test]
async fn create_read_replace_conflict() {
    let consul = Consul::start().unwrap();
    let discovery = on(&consul);
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
    assert_eq!(flipped.epoch(), Epoch(2));
    assert_eq!(
        discovery
            .compare_and_set(&fleet(), Some(&created), &next)
            .await
            .unwrap(),
        CasOutcome::Conflict
    );
    let third = next.next(cluster("west"), FleetState::Fenced, "switchover");
    set(discovery
        .compare_and_set(&fleet(), Some(&flipped), &third)
        .await
        .unwrap());
    assert_eq!(
        discovery.read(&fleet()).await.unwrap().unwrap().value,
        third
    );
    // What other tools see is the JSON of the design.
    let raw: serde_json::Value =
        serde_json::from_str(&consul.kv_get(KEY).unwrap().unwrap()).unwrap();
    assert_eq!(
        (&raw["epoch"], &raw["state"]),
        (&3.into(), &"fenced".into())
    );
}

#[tokio::test]
async fn of_racing_writers_exactly_one_wins_each_epoch() {
    let consul = Consul::start().unwrap();
    let record = first();
    let mut version = set(on(&consul)
        .compare_and_set(&fleet(), None, &record)
        .await
        .unwrap());
    for round in 0..10 {
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..4 {
            let (discovery, version, mut next) = (on(&consul), version.clone(), record.clone());
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
            on(&consul).read(&fleet()).await.unwrap().unwrap().version,
            version
        );
    }
}

#[tokio::test]
async fn a_watch_blocks_on_an_absent_key_and_sees_every_flip_at_once() {
    let consul = Consul::start().unwrap();
    let discovery = on(&consul);
    let (mut handle, _guard) = watch(&discovery);
    let view = wait_for(&mut handle, |v| v.source == ViewSource::Live).await;
    assert_eq!(view.record, None);

    let mut record = first();
    let mut version = None;
    let mut seen_after = Vec::new();
    for _ in 0..10 {
        // Before the write: the watch may see it before the writer has its answer.
        let flipped = Instant::now();
        version = Some(set(discovery
            .compare_and_set(&fleet(), version.as_ref(), &record)
            .await
            .unwrap()));
        wait_for(&mut handle, |v| v.epoch() == Some(record.epoch)).await;
        seen_after.push(flipped.elapsed());
        record = record.next(cluster("east"), FleetState::Active, "flip");
    }
    // The median: a busy machine may hold up any single one.
    seen_after.sort();
    let median = seen_after[seen_after.len() / 2];
    println!(
        "flips seen after {median:?} (median), {:?} (slowest)",
        seen_after.last()
    );
    assert!(median < Duration::from_millis(100), "{seen_after:?}");

    // A wait that ends without a change is none, and does not stop the watch.
    let answers = handle.stats().answers;
    let started = Instant::now();
    while handle.stats().answers < answers + 2 {
        assert!(started.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(
        started.elapsed() > Duration::from_secs(1),
        "the query did not block"
    );
    assert_eq!(handle.stats().changes, 10);
    // Each answer confirms the view, without a signal.
    assert!(handle.borrow().confirmed_at.unwrap() >= started);
    let changed = tokio::time::timeout(Duration::from_millis(10), async {
        handle.borrow_and_update();
        handle.changed().await
    });
    assert!(changed.await.is_err());
}

#[tokio::test]
async fn a_watch_outlives_its_consul() {
    let mut consul = Consul::start().unwrap();
    let discovery = on(&consul);
    let record = first();
    let version = set(discovery
        .compare_and_set(&fleet(), None, &record)
        .await
        .unwrap());
    let (mut handle, _guard) = watch(&discovery);
    let good = wait_for(&mut handle, |v| v.record.is_some()).await;

    consul.kill();
    let view = wait_for(&mut handle, |v| {
        matches!(v.source, ViewSource::Stale { .. })
    })
    .await;
    assert_eq!(view.record, good.record);
    assert!(view.last_error.unwrap().contains(&consul.addr()));
    let error = discovery.read(&fleet()).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");

    consul.restart().unwrap();
    let view = wait_for(&mut handle, |v| v.source == ViewSource::Live).await;
    assert_eq!((view.record, view.last_error), (good.record, None));
    let next = record.next(cluster("east"), FleetState::Active, "flip");
    set(discovery
        .compare_and_set(&fleet(), Some(&version), &next)
        .await
        .unwrap());
    wait_for(&mut handle, |v| v.epoch() == Some(Epoch(2))).await;
}

#[tokio::test]
async fn a_consul_that_hangs_makes_the_view_stale_until_it_answers() {
    let consul = Consul::start().unwrap();
    let discovery = on(&consul);
    let version = set(discovery
        .compare_and_set(&fleet(), None, &first())
        .await
        .unwrap());
    let (mut handle, _guard) = watch(&discovery);
    let good = wait_for(&mut handle, |v| v.record.is_some()).await;

    consul.pause();
    let view = wait_for(&mut handle, |v| {
        matches!(v.source, ViewSource::Stale { .. })
    })
    .await;
    assert_eq!(view.record, good.record);
    let error = discovery.read(&fleet()).await.unwrap_err().to_string();
    assert!(
        error.contains("no answer within 1s") && error.contains(&consul.addr()),
        "{error}"
    );
    consul.resume();
    wait_for(&mut handle, |v| {
        v.source == ViewSource::Live && v.last_error.is_none()
    })
    .await;
    let next = first().next(cluster("east"), FleetState::Active, "flip");
    set(discovery
        .compare_and_set(&fleet(), Some(&version), &next)
        .await
        .unwrap());
    wait_for(&mut handle, |v| v.epoch() == Some(Epoch(2))).await;
}

#[tokio::test]
async fn malformed_records_older_epochs_and_deletion_keep_the_old_view() {
    let consul = Consul::start().unwrap();
    let discovery = on(&consul);
    let record = first().next(cluster("east"), FleetState::Active, "flip");
    set(discovery
        .compare_and_set(&fleet(), None, &record)
        .await
        .unwrap());
    let (mut handle, _guard) = watch(&discovery);
    let good = wait_for(&mut handle, |v| v.record.is_some()).await;
    let json = record.to_json().unwrap();

    for (value, told) in [
        (b"{\"epoch\": 9".to_vec(), KEY),
        (b"\xff\xfe".to_vec(), KEY),
        (first().to_json().unwrap(), "epoch 1"),
        (b"k9:9092".to_vec(), "epoch 0"),
    ] {
        consul.kv_put(KEY, &value).unwrap();
        let view = wait_for(&mut handle, |v| {
            v.last_error.as_ref().is_some_and(|e| e.contains(told))
        })
        .await;
        assert_eq!(
            (view.record, view.source),
            (good.record.clone(), ViewSource::Live)
        );
        consul.kv_put(KEY, &json).unwrap();
        wait_for(&mut handle, |v| v.last_error.is_none()).await;
    }
    let stats = handle.stats();
    assert_eq!(
        (stats.changes, stats.malformed, stats.older_epochs),
        (1, 2, 2)
    );

    consul
        .api("DELETE", &format!("/v1/kv/{KEY}"), None)
        .unwrap();
    let view = wait_for(&mut handle, |v| v.last_error.is_some()).await;
    assert_eq!(view.record, good.record);
    consul.kv_put(KEY, b"nonsense").unwrap();
    let error = discovery.read(&fleet()).await.unwrap_err().to_string();
    assert!(
        error.contains(KEY) && error.contains(&consul.addr()),
        "{error}"
    );
}

#[tokio::test]
async fn the_highest_epoch_of_several_consuls_wins() {
    let (mut one, two) = (Consul::start().unwrap(), Consul::start().unwrap());
    let both = ConsulOptions {
        addresses: vec![one.addr(), two.addr()],
        ..options(&one)
    };
    let both = discovery(DiscoveryOptions::Consul(both));
    let record = first();
    let next = record.next(cluster("east"), FleetState::Active, "flip");
    set(on(&one)
        .compare_and_set(&fleet(), None, &record)
        .await
        .unwrap());
    set(on(&two)
        .compare_and_set(&fleet(), None, &next)
        .await
        .unwrap());

    let (mut handle, _guard) = watch(&both);
    let view = wait_for(&mut handle, |v| {
        v.epoch() == Some(Epoch(2)) && v.last_error.is_some()
    })
    .await;
    assert!(view.last_error.unwrap().contains(&one.addr()));

    // With the first one gone the view is live still, and writes go to the second.
    one.kill();
    wait_for(&mut handle, |v| {
        v.last_error.as_ref().is_some_and(|e| !e.contains("older"))
    })
    .await;
    assert_eq!(handle.borrow().source, ViewSource::Live);
    let read = both.read(&fleet()).await.unwrap().unwrap();
    assert_eq!(read.value, next);
    let third = next.next(cluster("west"), FleetState::Active, "back");
    set(both
        .compare_and_set(&fleet(), Some(&read.version), &third)
        .await
        .unwrap());
    wait_for(&mut handle, |v| v.epoch() == Some(Epoch(3))).await;
}

#[tokio::test]
async fn handoffs_are_kept_per_epoch() {
    let consul = Consul::start().unwrap();
    let discovery = on(&consul);
    assert_eq!(
        discovery.read_handoff(&fleet(), Epoch(2)).await.unwrap(),
        None
    );
    let mut handoff = handoff();
    let key = discovery.write_handoff(&handoff).await.unwrap();
    assert_eq!(key, "standfast/payments/handoff/2");
    assert_eq!(
        discovery.read_handoff(&fleet(), Epoch(2)).await.unwrap(),
        Some(handoff.clone())
    );

    // A value near Consul's bound passes, one beyond it is refused here, with the reason.
    handoff
        .topics
        .insert("big".to_owned(), vec![Some(i64::MAX); 25_000]);
    discovery.write_handoff(&handoff).await.unwrap();
    assert_eq!(
        discovery.read_handoff(&fleet(), Epoch(2)).await.unwrap(),
        Some(handoff.clone())
    );
    handoff
        .topics
        .insert("bigger".to_owned(), vec![Some(i64::MAX); 25_000]);
    let error = discovery
        .write_handoff(&handoff)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains(&key) && error.contains("524288"), "{error}");
}

#[tokio::test]
async fn a_token_is_needed_named_and_picked_up_when_it_changes() {
    let consul = Consul::builder().acl(true).start().unwrap();
    let anonymous = on(&consul);
    let error = anonymous.read(&fleet()).await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error}");
    let text = error.to_string();
    for part in [&consul.addr(), KEY, "token_file", "policy = \"read\""] {
        assert!(text.contains(part), "{text} should name {part}");
    }

    let mut file = tempfile::NamedTempFile::new().unwrap();
    let with_file = ConsulOptions {
        token_file: Some(file.path().to_owned()),
        ..options(&consul)
    };
    let discovery = discovery(DiscoveryOptions::Consul(with_file));
    let secret = "00000000-1111-2222-3333-444444444444";
    file.write_all(secret.as_bytes()).unwrap();
    let (mut handle, _guard) = watch(&discovery);
    let view = wait_for(&mut handle, |v| v.last_error.is_some()).await;
    let told = view.last_error.unwrap();
    assert!(
        told.contains(file.path().to_str().unwrap()) && !told.contains(secret),
        "{told}"
    );
    assert_eq!(view.source, ViewSource::Never);

    // Read only first: the watch works, a write names the rule that it needs.
    let rules = |policy: &str| format!("key_prefix \"standfast/\" {{ policy = \"{policy}\" }}");
    let reader = consul.create_token("reader", &rules("read")).unwrap();
    std::fs::write(file.path(), format!("{reader}\n")).unwrap();
    wait_for(&mut handle, |v| {
        v.source == ViewSource::Live && v.last_error.is_none()
    })
    .await;
    let error = discovery
        .compare_and_set(&fleet(), None, &first())
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("policy = \"write\"") && !error.contains(&reader),
        "{error}"
    );

    let rules = format!(
        "{} session_prefix \"\" {{ policy = \"write\" }}",
        rules("write")
    );
    let writer = consul.create_token("writer", &rules).unwrap();
    std::fs::write(file.path(), writer).unwrap();
    set(discovery
        .compare_and_set(&fleet(), None, &first())
        .await
        .unwrap());
    wait_for(&mut handle, |v| v.record.is_some()).await;
    discovery
        .lock(&fleet(), "agent", Duration::from_secs(10))
        .await
        .unwrap()
        .release()
        .await
        .unwrap();

    std::fs::remove_file(file.path()).unwrap();
    let error = discovery.read(&fleet()).await.unwrap_err().to_string();
    assert!(error.contains(file.path().to_str().unwrap()), "{error}");
}

#[tokio::test]
async fn a_start_without_consul_from_the_cache() {
    let mut consul = Consul::start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let cached = ConsulOptions {
        cache_dir: Some(folder.path().join("cache")),
        ..options(&consul)
    };
    let record = first();
    {
        let discovery = discovery(DiscoveryOptions::Consul(cached.clone()));
        let (mut handle, _guard) = watch(&discovery);
        set(discovery
            .compare_and_set(&fleet(), None, &record)
            .await
            .unwrap());
        wait_for(&mut handle, |v| v.record.is_some()).await;
        let started = Instant::now();
        while !folder.path().join("cache/payments.json").exists() {
            assert!(started.elapsed() < Duration::from_secs(5));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    consul.kill();
    // Not asked for: not used.
    let (_, handle) = discovery(DiscoveryOptions::Consul(cached.clone())).watch(fleet());
    assert_eq!(handle.borrow().record, None);

    let from_cache = ConsulOptions {
        start_from_cache: true,
        ..cached
    };
    let discovery = discovery(DiscoveryOptions::Consul(from_cache));
    let (mut handle, _guard) = watch(&discovery);
    let view = wait_for(&mut handle, |v| v.last_error.is_some()).await;
    assert!(matches!(view.source, ViewSource::Cached { .. }), "{view:?}");
    assert_eq!(view.record.as_deref(), Some(&record));
    consul.restart().unwrap();
    let view = wait_for(&mut handle, |v| v.source == ViewSource::Live).await;
    assert_eq!(view.record.as_deref(), Some(&record));
}

#[tokio::test]
async fn stale_reads_serve_the_watch() {
    let consul = Consul::start().unwrap();
    let stale = ConsulOptions {
        stale: true,
        datacenter: Some("dc1".to_owned()),
        ..options(&consul)
    };
    let discovery = discovery(DiscoveryOptions::Consul(stale));
    let (mut handle, _guard) = watch(&discovery);
    wait_for(&mut handle, |v| v.source == ViewSource::Live).await;
    set(discovery
        .compare_and_set(&fleet(), None, &first())
        .await
        .unwrap());
    wait_for(&mut handle, |v| v.record.is_some()).await;

    let elsewhere = ConsulOptions {
        datacenter: Some("mars".to_owned()),
        ..options(&consul)
    };
    let error = fleet::discovery(DiscoveryOptions::Consul(elsewhere))
        .read(&fleet())
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("datacenter"), "{error}");
}

/// An operator restores Consul from a backup that was taken before a failover: neither who was running nor who starts from
/// its cache goes back to the lost cluster, and the next record moves them on.
#[tokio::test]
async fn a_restored_backup_does_not_take_the_epoch_back() {
    let consul = Consul::start().unwrap();
    let program = obtain(&[Server::Consul], &Silent).unwrap().consul.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let backup = folder.path().join("backup.snap");
    let snapshot = |what: &str| {
        let done = std::process::Command::new(&program)
            .args(["snapshot", what, &format!("-http-addr={}", consul.addr())])
            .arg(&backup)
            .output()
            .unwrap();
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
    };
    let options = ConsulOptions {
        cache_dir: Some(folder.path().join("cache")),
        start_from_cache: true,
        ..options(&consul)
    };
    let running = discovery(DiscoveryOptions::Consul(options.clone()));
    let (mut handle, _guard) = watch(&running);
    let before = first();
    set(running
        .compare_and_set(&fleet(), None, &before)
        .await
        .unwrap());
    snapshot("save");
    let old = running.read(&fleet()).await.unwrap().unwrap();
    let after = before.next(cluster("east"), FleetState::Active, "failover");
    set(running
        .compare_and_set(&fleet(), Some(&old.version), &after)
        .await
        .unwrap());
    wait_for(&mut handle, |v| v.epoch() == Some(after.epoch)).await;
    let cache = folder.path().join("cache/payments.json");
    let started = Instant::now();
    while !std::fs::read_to_string(&cache).is_ok_and(|text| text.contains("failover")) {
        assert!(started.elapsed() < Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    snapshot("restore");
    let read = running.read(&fleet()).await.unwrap().unwrap();
    assert_eq!(read.value.epoch, before.epoch, "the backup is in place");
    let view = wait_for(&mut handle, |v| v.last_error.is_some()).await;
    assert_eq!(view.record.as_deref(), Some(&after));
    let told = view.last_error.unwrap();
    assert!(told.contains("restored from a backup"), "{told}");
    let started = discovery(DiscoveryOptions::Consul(options));
    let (mut fresh, _fresh_guard) = watch(&started);
    let view = wait_for(&mut fresh, |v| v.source == ViewSource::Live).await;
    assert_eq!(
        view.record.as_deref(),
        Some(&after),
        "a start from the cache"
    );

    let next = after.next(cluster("west"), FleetState::Active, "by hand");
    set(started
        .compare_and_set(&fleet(), Some(&read.version), &next)
        .await
        .unwrap());
    for handle in [&mut handle, &mut fresh] {
        wait_for(handle, |v| v.epoch() == Some(next.epoch)).await;
    }
}
