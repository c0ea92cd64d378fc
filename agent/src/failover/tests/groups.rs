//! Consumer groups that have yet to read what only the old cluster holds.

use standfast_discovery::FleetState;

use super::world::{World, name, world};
use super::*;
use crate::api::Outcome;

fn unread(group: &str, partition: i32) -> UnreadRecords {
    UnreadRecords {
        group: group.to_owned(),
        topic: "orders".to_owned(),
        partition,
        committed_offset: 90,
        from_offset: 90,
        records: 20,
        mirror_log_start_offset: 110,
    }
}

/// Both clusters are well, and these groups are behind.
async fn behind(unread: Vec<UnreadRecords>) -> World {
    let world = world().await;
    world.clusters().source_alive = true;
    world.clusters().unread = Some(Ok(unread));
    world
}

const BILLING: &str = "group \"billing\" has yet to read 20 records of orders-0 (90 to 109) that the mirror on \"east\" does not hold: \
                       its log begins at 110";

async fn assert_untouched(world: &World) {
    assert_eq!(world.log(), ["lock", "read", "release"]);
    assert_eq!(world.record().await.epoch, Epoch(1));
    assert!(world.clusters().running);
}

fn allowing() -> Request {
    Request {
        allow_skips: true,
        ..Request::default()
    }
}

#[tokio::test]
async fn groups_that_would_skip_records_are_a_reason_to_refuse() {
    let world = behind(vec![unread("billing", 0)]).await;
    let failure = world.switchover().await.unwrap_err();
    assert_eq!(failure.code, ErrorCode::Refused);
    assert!(
        failure.message.starts_with(BILLING) && failure.message.contains("--allow-skips"),
        "{}",
        failure.message
    );
    assert_untouched(&world).await;
    assert!(world.clusters().looks > 1, "it waited");

    // Many are not all named.
    world.clusters().unread = Some(Ok((0..7).map(|n| unread("billing", n)).collect()));
    let failure = world.switchover().await.unwrap_err();
    assert!(
        failure.message.contains("orders-4")
            && !failure.message.contains("orders-5")
            && failure.message.contains("; and 2 more. Wait"),
        "{}",
        failure.message
    );
}

#[tokio::test]
async fn groups_that_read_on_meanwhile_are_waited_for() {
    let world = behind(vec![unread("billing", 0)]).await;
    world.clusters().read_at_look = Some(2);
    let report = world.switchover().await.unwrap();
    assert_eq!(
        (report.outcome, world.clusters().looks),
        (Outcome::Flipped, 2)
    );
    assert!(report.warnings.is_empty(), "{report:?}");
    let names: Vec<&str> = report.steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(names[..4], ["lock", "read_record", "check_groups", "fence"]);
}

#[tokio::test]
async fn who_allows_skips_is_told_what_is_skipped() {
    let world = behind(vec![unread("billing", 0)]).await;
    let report = world.switchover_as(allowing()).await.unwrap();
    assert_eq!(
        (report.outcome, world.clusters().looks),
        (Outcome::Flipped, 1)
    );
    assert_eq!(report.warnings.len(), 1, "{report:?}");
    assert!(
        report.warnings[0].starts_with(BILLING) && report.warnings[0].contains("on \"west\" only"),
        "{report:?}"
    );
}

#[tokio::test]
async fn a_dry_run_warns_and_does_not_wait() {
    let world = behind(vec![unread("billing", 0)]).await;
    let request = Request {
        dry_run: true,
        ..Request::default()
    };
    let report = world.switchover_as(request).await.unwrap();
    assert_eq!(
        (report.outcome, world.clusters().looks),
        (Outcome::DryRun, 1)
    );
    assert!(
        report.warnings[0].starts_with(BILLING) && report.warnings[0].contains("refused"),
        "{report:?}"
    );
    assert_untouched(&world).await;
}

#[tokio::test]
async fn what_groups_have_read_must_be_known() {
    let world = behind(Vec::new()).await;
    world.clusters().unread = Some(Err("connection refused".to_owned()));
    let failure = world.switchover().await.unwrap_err();
    assert_eq!(failure.code, ErrorCode::Refused);
    assert!(
        failure.message.contains("not known") && failure.message.contains("connection refused"),
        "{}",
        failure.message
    );
    assert_untouched(&world).await;
    let report = world.switchover_as(allowing()).await.unwrap();
    assert_eq!(report.outcome, Outcome::Flipped);
    assert!(
        report.warnings[0].contains("connection refused"),
        "{report:?}"
    );
}

#[tokio::test]
async fn the_wait_for_groups_ends_with_the_agent_and_with_the_lock() {
    let world = behind(vec![unread("billing", 0)]).await;
    world.faults().lock_expired = true;
    let failure = world.switchover().await.unwrap_err();
    assert!(
        failure.message.contains("the lock expired"),
        "{}",
        failure.message
    );
    assert_eq!(world.clusters().looks, 0);
    world.faults().lock_expired = false;
    world.context.shutdown.cancel();
    let failure = world.switchover().await.unwrap_err();
    assert!(
        failure.message.contains("shutting down"),
        "{}",
        failure.message
    );
    assert_eq!(
        (failure.code, world.clusters().looks),
        (ErrorCode::Refused, 0)
    );
}

#[tokio::test]
async fn a_refusal_names_the_fence_that_an_interrupted_switchover_left() {
    let world = behind(Vec::new()).await;
    world.faults().die_at = Some("stop");
    world.dies_in(world.switchover()).await;
    world.faults().die_at = None;
    world.clusters().unread = Some(Ok(vec![unread("billing", 0)]));
    let failure = world.switchover().await.unwrap_err();
    assert!(
        failure
            .message
            .contains("`standfast failover --to west` lifts it"),
        "{}",
        failure.message
    );
    let record = world.record().await;
    assert_eq!(
        (record.active, record.state),
        (name("west"), FleetState::Fenced)
    );
}
