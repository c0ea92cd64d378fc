//! Faults that a real Consul does not produce, by a small responder.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fake;
mod fleet;

use std::time::{Duration, Instant};

use base64::Engine as _;
use fake::{Fake, Reply};
use fleet::{cluster, discovery, first, fleet, set, wait_for, watch};
use standfast_discovery::*;
use standfast_servers::Consul;

fn options(addresses: Vec<String>) -> ConsulOptions {
    ConsulOptions {
        addresses,
        request_timeout: Duration::from_millis(500),
        wait: Duration::from_secs(1),
        ..ConsulOptions::default()
    }
}

fn on(fake: &Fake) -> Discovery {
    discovery(DiscoveryOptions::Consul(options(vec![fake.address()])))
}

fn found(index: u64, record: &FleetRecord) -> Reply {
    found_with(index, record, "")
}

fn found_with(index: u64, record: &FleetRecord, headers: &'static str) -> Reply {
    let value = base64::engine::general_purpose::STANDARD.encode(record.to_json().unwrap());
    let body = format!("[{{\"Value\": \"{value}\", \"ModifyIndex\": {index}, \"LockIndex\": 0}}]");
    Reply::Answer(200, Some(index), headers, body.into_bytes())
}

fn record(epoch: u64) -> FleetRecord {
    FleetRecord {
        epoch: Epoch(epoch),
        ..first()
    }
}

#[tokio::test]
async fn an_index_that_goes_backwards_starts_over() {
    let fake = Fake::start(|number, line| match number {
        0 => found(50, &record(1)),
        // Restored: the index is lower, and a change made meanwhile must not be missed.
        1 => found(10, &record(2)),
        2 => found(10, &record(3)),
        _ if line.contains("index=10") => Reply::Hang,
        _ => Reply::Answer(500, None, "", b"asked wrongly".to_vec()),
    })
    .await;
    let discovery = on(&fake);
    let (mut handle, _guard) = watch(&discovery);
    wait_for(&mut handle, |v| v.epoch() == Some(Epoch(3))).await;
    let asked = fake.asked();
    assert!(!asked[0].contains("index="), "{asked:?}");
    assert!(asked[1].contains("index=50&wait=1000ms"), "{asked:?}");
    assert!(!asked[2].contains("index="), "{asked:?}");
    assert_eq!(handle.borrow().last_error, None);
}

#[tokio::test]
async fn an_index_of_zero_is_neither_sent_nor_asked_in_a_tight_loop() {
    let answer = record(1);
    let fake = Fake::start(move |_, _| found(0, &answer)).await;
    let discovery = on(&fake);
    let (mut handle, _guard) = watch(&discovery);
    wait_for(&mut handle, |v| v.record.is_some()).await;
    let before = fake.asked().len();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let asked = fake.asked();
    assert!(
        asked.iter().skip(1).all(|line| line.contains("index=1&")),
        "{asked:?}"
    );
    // A burst of 10, then 10 a second.
    assert!(
        asked.len() - before <= 32,
        "{} requests in two seconds",
        asked.len() - before
    );
    assert!(asked.len() >= 12);
}

#[tokio::test]
async fn answers_that_are_no_answers_keep_the_old_view() {
    let good = record(1);
    let fake = Fake::start(move |number, _| match number {
        0 => found(5, &good),
        1 => Reply::Answer(200, Some(6), "", vec![b' '; 3 * 1024 * 1024]),
        2 => Reply::Answer(200, Some(6), "", b"<html>a portal</html>".to_vec()),
        3 => Reply::Answer(
            200,
            Some(6),
            "",
            b"[{\"Value\": \"***\", \"ModifyIndex\": 6}]".to_vec(),
        ),
        4 => Reply::Answer(200, Some(6), "", b"[]".to_vec()),
        5 => Reply::Answer(302, None, "Location: http://127.0.0.1:1/\r\n", vec![]),
        6 => Reply::Answer(500, None, "", b"No cluster\nleader".to_vec()),
        7 => Reply::Hang,
        _ => found(6, &record(2)),
    })
    .await;
    let discovery = on(&fake);
    let (mut handle, _guard) = watch(&discovery);
    let mut told = Vec::new();
    let started = Instant::now();
    loop {
        let view = handle.borrow_and_update();
        if let Some(error) = view.last_error {
            assert_eq!(view.record.unwrap().epoch, Epoch(1));
            assert!(matches!(view.source, ViewSource::Stale { .. }));
            assert!(
                error.contains(&fake.address()) && error.len() < 600,
                "{error}"
            );
            told.push(error);
        } else if view.record.is_some_and(|r| r.epoch == Epoch(2)) {
            break;
        }
        handle.changed().await.unwrap();
        assert!(started.elapsed() < Duration::from_secs(30));
    }
    for part in [
        "larger than",
        "no JSON",
        "base64",
        "empty list",
        "302",
        "No cluster leader",
        "no answer within",
    ] {
        assert!(
            told.iter().any(|t| t.contains(part)),
            "{part:?} is not in {told:#?}"
        );
    }
}

#[tokio::test]
async fn an_answer_without_a_leader_does_not_make_the_view_live() {
    let fake = Fake::start(|number, _| match number {
        0..5 => found_with(5, &record(1), "X-Consul-KnownLeader: false\r\n"),
        _ => found_with(6, &record(2), "X-Consul-KnownLeader: true\r\n"),
    })
    .await;
    let discovery = on(&fake);
    let (mut handle, _guard) = watch(&discovery);
    let view = wait_for(&mut handle, |v| v.record.is_some()).await;
    assert_eq!(view.source, ViewSource::Never);
    assert!(view.last_error.unwrap().contains("no leader"));
    wait_for(&mut handle, |v| {
        v.source == ViewSource::Live && v.epoch() == Some(Epoch(2))
    })
    .await;
}

#[tokio::test]
async fn a_write_whose_answer_is_lost_is_settled_at_another_address() {
    let consul = Consul::start().unwrap();
    let to = consul.addr().trim_start_matches("http://").to_owned();
    let fake = Fake::start(move |_, _| Reply::PassOnAndClose(to.clone())).await;
    let both = || {
        discovery(DiscoveryOptions::Consul(options(vec![
            fake.address(),
            consul.addr(),
        ])))
    };
    let record = first();
    set(both()
        .compare_and_set(&fleet(), None, &record)
        .await
        .unwrap());
    assert!(
        fake.asked()
            .iter()
            .any(|line| line.starts_with("PUT") && line.contains("cas=0"))
    );
    let read = both().read(&fleet()).await.unwrap().unwrap();
    assert_eq!(read.value, record);

    // Somebody else's write is a conflict all the same.
    let other = FleetRecord {
        reason: "other".to_owned(),
        ..first()
    };
    assert_eq!(
        both()
            .compare_and_set(&fleet(), None, &other)
            .await
            .unwrap(),
        CasOutcome::Conflict
    );

    // With no address to ask, the error says that the write may have happened.
    let alone = discovery(DiscoveryOptions::Consul(options(vec![fake.address()])));
    let next = record.next(cluster("east"), FleetState::Active, "flip");
    let error = alone
        .compare_and_set(&fleet(), Some(&read.version), &next)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("may have happened"), "{error}");
}

#[test]
fn addresses_are_checked() {
    for (address, names) in [
        ("ftp://consul:8500", "ftp"),
        ("http://consul:8500/ui", "/ui"),
        ("http://", "http://host:port"),
        ("http://me:secret@consul:8500", "token_file"),
    ] {
        let error = Discovery::new(DiscoveryOptions::consul([address]))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(names) && !error.contains("secret"),
            "{error}"
        );
    }
    Discovery::new(DiscoveryOptions::consul([
        "consul:8500",
        "http://[::1]:8500/",
    ]))
    .unwrap();
}
