//! The fleet lock on a real Consul.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fleet;

use std::time::{Duration, Instant};

use fleet::{discovery, fleet};
use standfast_discovery::*;
use standfast_servers::Consul;

const KEY: &str = "standfast/payments/lock";
const TTL: Duration = Duration::from_secs(3);

fn consul() -> Consul {
    Consul::builder().session_ttl_min("1s").start().unwrap()
}

fn on(consul: &Consul) -> Discovery {
    discovery(DiscoveryOptions::Consul(ConsulOptions {
        addresses: vec![consul.addr()],
        request_timeout: Duration::from_millis(500),
        ..ConsulOptions::default()
    }))
}

/// Waits until the lock says that it is lost, and checks that it has said so before `latest`.
async fn lost_by(lock: &Lock, latest: Instant) {
    tokio::time::timeout_at(latest.into(), lock.lost())
        .await
        .unwrap_or_else(|_| panic!("not lost in time: {lock:?}"));
    assert!(!lock.is_valid());
    assert_eq!(lock.remaining(), Some(Duration::ZERO));
}

fn sessions(consul: &Consul) -> Vec<serde_json::Value> {
    consul
        .api("GET", "/v1/session/list", None)
        .unwrap()
        .as_array()
        .unwrap()
        .clone()
}

#[tokio::test]
async fn one_holder_at_a_time_and_the_next_at_once_after_a_release() {
    let consul = consul();
    let (west, east) = (on(&consul), on(&consul));
    let lock = west.lock(&fleet(), "agent west-1", TTL).await.unwrap();
    assert!(lock.is_valid());
    assert!(lock.remaining().unwrap() < TTL);
    let error = east.lock(&fleet(), "agent east-1", TTL).await.unwrap_err();
    assert!(
        matches!(&error, Error::LockHeld { holder, .. } if holder.contains("agent west-1")),
        "{error}"
    );
    // The session of the one that lost is gone again; the other has no health check that could end it early.
    let left = sessions(&consul);
    assert_eq!(left.len(), 1);
    assert!(
        left[0]["NodeChecks"].as_array().is_none_or(Vec::is_empty),
        "{left:?}"
    );

    // A link's lock is another one.
    let of_link = east
        .lock_link(&fleet(), "west-to-east", "agent east-1", TTL)
        .await
        .unwrap();
    let held = west
        .lock_link(&fleet(), "west-to-east", "agent west-1", TTL)
        .await;
    assert!(matches!(held, Err(Error::LockHeld { .. })), "{held:?}");
    of_link.release().await.unwrap();

    let first_token = lock.fencing_token();
    lock.release().await.unwrap();
    assert!(sessions(&consul).is_empty());
    let lock = east.lock(&fleet(), "agent east-1", TTL).await.unwrap();
    assert!(lock.fencing_token() > first_token);

    // Dropped instead of released: given back in the background.
    drop(lock);
    let started = Instant::now();
    while west.lock(&fleet(), "agent west-1", TTL).await.is_err() {
        assert!(started.elapsed() < Duration::from_secs(5));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn of_many_that_want_it_one_gets_it() {
    let consul = consul();
    let mut wanting = tokio::task::JoinSet::new();
    for agent in 0..6 {
        let discovery = on(&consul);
        wanting.spawn(async move {
            discovery
                .lock(&fleet(), &format!("agent {agent}"), TTL)
                .await
        });
    }
    let results = wanting.join_all().await;
    assert_eq!(
        results.iter().filter(|r| r.is_ok()).count(),
        1,
        "{results:?}"
    );
    for error in results.iter().filter_map(|r| r.as_ref().err()) {
        assert!(matches!(error, Error::LockHeld { .. }), "{error}");
    }
}

#[tokio::test]
async fn it_is_renewed_far_beyond_its_ttl() {
    let consul = consul();
    let lock = on(&consul).lock(&fleet(), "agent", TTL).await.unwrap();
    // Consul ends an unrenewed session after at most twice the TTL.
    let until = Instant::now() + TTL * 2 + Duration::from_secs(1);
    while Instant::now() < until {
        assert!(lock.is_valid());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    lock.release().await.unwrap();
}

#[tokio::test]
async fn a_holder_that_is_cut_off_stops_before_anybody_else_can_hold_it() {
    let mut consul = consul();
    let lock = on(&consul).lock(&fleet(), "agent", TTL).await.unwrap();
    // Let one renewal pass, so that the deadline is the renewed one.
    let first_deadline = lock.valid_until().unwrap();
    while lock.valid_until().unwrap() <= first_deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    consul.kill();
    lost_by(&lock, Instant::now() + TTL).await;
    // It stays lost, although the session has survived in Consul.
    consul.restart().unwrap();
    assert!(!lock.is_valid());
    let started = Instant::now();
    while on(&consul).lock(&fleet(), "another", TTL).await.is_err() {
        assert!(started.elapsed() < TTL * 3);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!lock.is_valid());
    let _ = lock.release().await;
}

#[tokio::test]
async fn a_consul_that_hangs_costs_the_lock_within_its_ttl() {
    let consul = consul();
    let lock = on(&consul).lock(&fleet(), "agent", TTL).await.unwrap();
    consul.pause();
    lost_by(&lock, Instant::now() + TTL).await;
    consul.resume();
    assert!(!lock.is_valid());
}

#[tokio::test]
async fn a_short_outage_does_not_cost_the_lock() {
    let consul = consul();
    let lock = on(&consul).lock(&fleet(), "agent", TTL * 3).await.unwrap();
    let deadline = lock.valid_until().unwrap();
    consul.pause();
    tokio::time::sleep(TTL + TTL / 2).await;
    consul.resume();
    while lock.valid_until().unwrap() <= deadline {
        assert!(lock.is_valid());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(lock.is_valid());
}

#[tokio::test]
async fn a_session_destroyed_by_hand_is_noticed_at_once() {
    let consul = consul();
    let lock = on(&consul)
        .lock(&fleet(), "agent", Duration::from_secs(60))
        .await
        .unwrap();
    let entry = consul
        .api("GET", &format!("/v1/kv/{KEY}?consistent"), None)
        .unwrap();
    let session = entry[0]["Session"].as_str().unwrap().to_owned();
    consul
        .api("PUT", &format!("/v1/session/destroy/{session}"), None)
        .unwrap();
    // Far before the next renewal, which is due after 20 s; and while Consul's lock delay keeps others out.
    lost_by(&lock, Instant::now() + Duration::from_secs(2)).await;
    let error = on(&consul)
        .lock(&fleet(), "another", TTL)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("nobody"), "{error}");
}

#[tokio::test]
async fn a_ttl_that_consul_refuses_is_told() {
    let consul = Consul::start().unwrap();
    let error = on(&consul)
        .lock(&fleet(), "agent", TTL)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("TTL") && error.contains("10s"), "{error}");
    let error = on(&consul)
        .lock(&fleet(), "agent", Duration::from_secs(1))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Options(_)), "{error}");
}
