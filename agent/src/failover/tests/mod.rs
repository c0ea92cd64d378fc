//! The state machine against a real file discovery, with the faults in between that a real server does not produce on
//! demand.

mod groups;
mod world;

use std::sync::Arc;

use standfast_discovery::FleetState;

use super::*;
use crate::api::Outcome;
use world::{Applied, Faults, name, world};

#[tokio::test]
async fn the_handoff_is_written_before_the_flip_and_the_source_is_never_asked() {
    let world = world().await;
    let report = world
        .failover(Request {
            reason: Some("flood".to_owned()),
            ..Request::default()
        })
        .await
        .unwrap();

    assert_eq!(
        world.log(),
        ["lock", "read", "stop", "handoff", "change", "release"]
    );
    assert_eq!(report.outcome, Outcome::Flipped);
    assert_eq!(
        (report.epoch, report.rpo_records, report.rpo_seconds),
        (Some(Epoch(2)), Some(5), Some(0.5))
    );
    let names: Vec<&str> = report.steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "lock",
            "read_record",
            "stop_mirrors",
            "write_handoff",
            "flip_record"
        ]
    );
    let record = world.record().await;
    assert_eq!(
        (record.active.as_str(), record.epoch, record.reason.as_str()),
        ("east", Epoch(2), "flood")
    );
    let handoff = world.handoff(2).await.unwrap();
    assert_eq!(handoff.topics["orders"], [Some(10), Some(15)]);
    assert!(!handoff.planned && handoff.from == name("west") && record.handoff == report.handoff);
}

#[tokio::test]
async fn asking_twice_is_safe_and_gives_the_stored_handoff() {
    let world = world().await;
    let first = world.failover(Request::default()).await.unwrap();
    assert_eq!(
        world.record().await.reason,
        "failover: west unreachable for 12s"
    );
    world.log();
    let second = world.failover(Request::default()).await.unwrap();
    assert_eq!(second.outcome, Outcome::AlreadyActive);
    assert_eq!(second.handoff_offsets, first.handoff_offsets);
    assert_eq!(
        (second.from, second.epoch),
        (Some(name("west")), Some(Epoch(2)))
    );
    assert_eq!(world.log(), ["lock", "read", "release"]);
    assert_eq!(world.record().await.epoch, Epoch(2));
}

#[tokio::test]
async fn a_crash_at_any_step_is_mended_by_running_it_again() {
    for event in ["lock", "read", "stop", "handoff", "change", "release"] {
        let world = world().await;
        world.faults().die_at = Some(event);
        world.dies_in(world.failover(Request::default())).await;
        world.faults().die_at = None;
        let report = world.failover(Request::default()).await.unwrap();
        let expected = if event == "release" {
            Outcome::AlreadyActive
        } else {
            Outcome::Flipped
        };
        assert_eq!(report.outcome, expected, "after dying at {event}");
        let record = world.record().await;
        assert_eq!(
            (record.active.as_str(), record.epoch),
            ("east", Epoch(2)),
            "after dying at {event}"
        );
        assert_eq!(
            world.handoff(2).await.unwrap().topics["orders"],
            [Some(10), Some(15)]
        );
    }
}

#[tokio::test]
async fn an_agent_cut_off_from_discovery_refuses_and_mirrors_on() {
    let world = world().await;
    world.faults().discovery_gone = true;
    let failure = world.failover(Request::default()).await.unwrap_err();
    assert_eq!(failure.code, ErrorCode::DiscoveryUnreachable);
    assert!(
        failure.message.contains("nothing was changed"),
        "{}",
        failure.message
    );
    assert_eq!(world.log(), ["lock"]);
    assert!(world.clusters().running);
}

#[tokio::test]
async fn nothing_is_written_after_the_lock_expired() {
    let world = world().await;
    world.faults().lock_expires_at_stop = true;
    let failure = world.failover(Request::default()).await.unwrap_err();
    assert_eq!(failure.code, ErrorCode::OperationFailed);
    assert!(
        failure.message.contains("the lock expired")
            && failure.message.contains("mirroring goes on"),
        "{}",
        failure.message
    );
    assert_eq!(failure.report.unwrap().outcome, Outcome::Failed);
    assert_eq!(world.log(), ["lock", "read", "stop", "resume", "release"]);
    assert_eq!(world.record().await.epoch, Epoch(1));
    assert!(world.clusters().running);
}

#[tokio::test]
async fn without_a_handoff_there_is_no_flip() {
    let world = world().await;
    world.faults().handoff_fails = true;
    let failure = world.failover(Request::default()).await.unwrap_err();
    assert!(
        failure.message.contains("the handoff was not written"),
        "{}",
        failure.message
    );
    assert_eq!(
        world.log(),
        ["lock", "read", "stop", "handoff", "resume", "release"]
    );
    assert_eq!(world.record().await.epoch, Epoch(1));
    assert!(world.clusters().running);
}

#[tokio::test]
async fn a_change_whose_answer_was_lost_is_looked_up() {
    let world = world().await;
    world.faults().change_unanswered = Some(Applied::Yes);
    let report = world.failover(Request::default()).await.unwrap();
    assert_eq!(report.outcome, Outcome::Flipped);
    assert!(
        !world.clusters().running,
        "mirrors must not write into the new active cluster"
    );
}

#[tokio::test]
async fn a_change_that_did_not_happen_lets_the_mirrors_go_on() {
    let world = world().await;
    world.faults().change_unanswered = Some(Applied::No);
    let failure = world.failover(Request::default()).await.unwrap_err();
    assert_eq!(failure.report.unwrap().outcome, Outcome::Failed);
    assert_eq!(
        world.log(),
        [
            "lock", "read", "stop", "handoff", "change", "read", "resume", "release"
        ]
    );
    assert!(world.clusters().running);
}

#[tokio::test]
async fn mirrors_wait_while_nobody_knows_whether_the_flip_happened() {
    for applied in [Applied::No, Applied::Yes] {
        let world = world().await;
        world.faults().change_unanswered = Some(applied);
        world.faults().gone_after_change = true;
        let failure = world.failover(Request::default()).await.unwrap_err();
        assert_eq!(failure.report.unwrap().outcome, Outcome::Unknown);
        assert!(
            !world.clusters().running,
            "the new active cluster may not be written into"
        );
        *world.faults() = Faults::default();
        let goes_on = applied == Applied::No;
        let waited = tokio::time::timeout(Duration::from_secs(3), async {
            while !world.clusters().running {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        assert_eq!(waited.await.is_ok(), goes_on, "{applied:?}");
    }
}

#[tokio::test]
async fn a_dead_target_is_refused_before_anything_stops() {
    let world = world().await;
    world.clusters().destination_alive = false;
    let failure = world.failover(Request::default()).await.unwrap_err();
    assert_eq!(failure.code, ErrorCode::Refused);
    assert!(
        failure.message.contains("\"east\" does not answer"),
        "{}",
        failure.message
    );
    assert_eq!(world.log(), ["lock", "read", "release"]);
}

#[tokio::test]
async fn a_target_that_dies_on_the_way_is_refused_and_mirroring_goes_on() {
    let world = world().await;
    world.clusters().destination_dies_at_stop = true;
    let failure = world.failover(Request::default()).await.unwrap_err();
    assert!(
        failure.message.contains("\"east\" gave no log end"),
        "{}",
        failure.message
    );
    assert!(world.clusters().running);
    assert_eq!(world.record().await.epoch, Epoch(1));
}

#[tokio::test]
async fn a_dry_run_changes_nothing_and_tells_the_loss() {
    let world = world().await;
    let report = world
        .failover(Request {
            dry_run: true,
            ..Request::default()
        })
        .await
        .unwrap();
    assert_eq!(
        (report.outcome, report.epoch),
        (Outcome::DryRun, Some(Epoch(1)))
    );
    assert_eq!(world.log(), ["lock", "read", "release"]);
    assert!(world.clusters().running && report.rpo_records.is_some());
    assert_eq!(
        (world.record().await.epoch, world.handoff(2).await),
        (Epoch(1), None)
    );
}

#[tokio::test]
async fn with_links_both_ways_the_target_must_be_named() {
    let mut world = world().await;
    world.context.mirrors.extra_route = Some(Route {
        from: name("east"),
        to: name("west"),
    });
    let failure = world.failover(Request::default()).await.unwrap_err();
    assert_eq!(failure.code, ErrorCode::Refused);
    assert!(
        failure.message.contains("--to east or --to west"),
        "{}",
        failure.message
    );
    let named = Request {
        to: Some(name("east")),
        ..Request::default()
    };
    assert_eq!(
        world.failover(named.clone()).await.unwrap().outcome,
        Outcome::Flipped
    );
    assert_eq!(
        world.failover(named).await.unwrap().outcome,
        Outcome::AlreadyActive
    );
}

#[tokio::test]
async fn unknown_targets_are_refused() {
    let world = world().await;
    let to = |cluster| Request {
        to: Some(name(cluster)),
        ..Request::default()
    };
    let failure = world.failover(to("north")).await.unwrap_err();
    assert!(
        failure
            .message
            .contains("no cluster \"north\"; it has: east, west"),
        "{}",
        failure.message
    );
    assert_eq!(
        (failure.code, world.clusters().running),
        (ErrorCode::Refused, true)
    );
}

#[tokio::test]
async fn the_lock_of_another_is_respected() {
    let world = world().await;
    let held = world.context.coordination.inner.lock().await.unwrap();
    let failure = world.failover(Request::default()).await.unwrap_err();
    assert_eq!(failure.code, ErrorCode::OperationInProgress);
    assert_eq!(world.log(), ["lock"]);
    drop(held);
}

#[tokio::test]
async fn a_topic_that_was_never_mirrored_does_not_stop_a_dry_run() {
    let world = world().await;
    world.clusters().destination_lacks_topic = true;
    let request = Request {
        dry_run: true,
        ..Request::default()
    };
    let report = world.failover(request).await.unwrap();
    assert_eq!(report.outcome, Outcome::DryRun);
    assert!(report.warnings[0].contains("orders"), "{report:?}");
}

#[tokio::test]
async fn groups_wait_for_no_source_that_the_link_has_just_lost() {
    let world = world().await;
    world.clusters().source_alive = true;
    world.clusters().source_just_lost = true;
    world.failover(Request::default()).await.unwrap();
    assert!(world.log().iter().all(|step| step != "sync_groups"));
}

#[tokio::test]
async fn a_switchover_drains_and_loses_nothing() {
    let world = world().await;
    world.clusters().source_alive = true;
    let report = world.switchover().await.unwrap();
    assert_eq!(
        world.log(),
        [
            "lock",
            "read",
            "fence",
            "sync_groups",
            "stop",
            "handoff",
            "change",
            "release"
        ]
    );
    assert_eq!(
        (report.outcome, report.epoch),
        (Outcome::Flipped, Some(Epoch(3)))
    );
    assert_eq!((report.rpo_records, report.planned), (Some(0), true));
    assert!(
        report.late_writes.is_empty() && report.warnings.is_empty(),
        "{report:?}"
    );
    let handoff = world.handoff(3).await.unwrap();
    assert!(handoff.planned);
    assert_eq!(handoff.topics["orders"], [Some(10), Some(20)]);
    let record = world.record().await;
    assert_eq!(
        (record.active, record.state),
        (name("east"), FleetState::Active)
    );
}

#[tokio::test]
async fn a_producer_that_does_not_heed_the_fence_is_named_and_the_fence_lifted() {
    let world = world().await;
    world.clusters().source_alive = true;
    world.clusters().growing = 1;
    let failure = world.switchover().await.unwrap_err();
    assert!(
        failure.message.contains("does not heed the fence") && failure.message.contains("orders-1"),
        "{}",
        failure.message
    );
    assert_eq!(
        world.log(),
        ["lock", "read", "fence", "resume", "change", "release"]
    );
    let record = world.record().await;
    assert_eq!(
        (record.active, record.state, record.epoch),
        (name("west"), FleetState::Active, Epoch(3))
    );
}

#[tokio::test]
async fn an_agent_that_shuts_down_leaves_no_fence_behind() {
    let world = world().await;
    world.clusters().source_alive = true;
    world.clusters().growing = 1;
    let token = world.context.shutdown.clone();
    let shutdown = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        token.cancel();
    };
    let (result, ()) = tokio::join!(world.switchover(), shutdown);
    assert!(
        result
            .unwrap_err()
            .message
            .contains("the agent is shutting down")
    );
    let record = world.record().await;
    assert_eq!(
        (record.active, record.state),
        (name("west"), FleetState::Active)
    );
}

#[tokio::test]
async fn a_write_between_drain_and_stop_is_caught() {
    let world = world().await;
    world.clusters().source_alive = true;
    world.clusters().grow_after = Some("stop");
    let failure = world.switchover().await.unwrap_err();
    assert!(
        failure.message.contains("after the drain: orders-1"),
        "{}",
        failure.message
    );
    assert!(world.clusters().running);
    assert_eq!(world.record().await.active, name("west"));
}

/// A switchover after which the old cluster grows.
async fn switchover_and_growth(linked_back: bool) -> Report {
    let world = world().await;
    (world.clusters().source_alive, world.clusters().linked_back) = (true, linked_back);
    let growth = {
        let (faults, clusters) = (Arc::clone(&world.faults), Arc::clone(&world.clusters));
        tokio::spawn(async move {
            while !faults
                .lock()
                .unwrap()
                .log
                .iter()
                .any(|event| event == "release")
            {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            clusters.lock().unwrap().growing = 1;
        })
    };
    let report = world.switchover().await.unwrap();
    growth.await.unwrap();
    assert_eq!(report.outcome, Outcome::Flipped);
    assert!(world.clusters().source[1] > 20, "it grew");
    report
}

#[tokio::test]
async fn late_writes_are_reported_loudly() {
    let report = switchover_and_growth(false).await;
    assert_eq!(
        (
            report.late_writes[0].partition,
            report.late_writes[0].from_offset
        ),
        (1, 20)
    );
    assert!(
        report.late_writes[0].records > 0 && report.warnings[0].starts_with("LATE WRITES"),
        "{report:?}"
    );
}

#[tokio::test]
async fn what_a_link_back_writes_is_no_late_write() {
    let report = switchover_and_growth(true).await;
    assert!(
        report.late_writes.is_empty() && report.warnings.is_empty(),
        "{report:?}"
    );
}

#[tokio::test]
async fn a_switchover_needs_both_clusters() {
    let world = world().await;
    let failure = world.switchover().await.unwrap_err();
    assert_eq!(failure.code, ErrorCode::Refused);
    assert!(
        failure.message.contains("use `standfast failover`"),
        "{}",
        failure.message
    );
    assert_eq!(world.record().await.epoch, Epoch(1));
}

#[tokio::test]
async fn a_fence_left_behind_is_taken_over_or_lifted() {
    for again in [true, false] {
        let world = world().await;
        world.clusters().source_alive = true;
        world.faults().die_at = Some("stop");
        world.dies_in(world.switchover()).await;
        assert_eq!(world.record().await.state, FleetState::Fenced);
        world.faults().die_at = None;
        if again {
            assert_eq!(world.switchover().await.unwrap().epoch, Some(Epoch(3)));
        } else {
            let back = Request {
                to: Some(name("west")),
                ..Request::default()
            };
            assert_eq!(
                world.failover(back).await.unwrap().outcome,
                Outcome::AlreadyActive
            );
            let record = world.record().await;
            assert_eq!((record.state, record.epoch), (FleetState::Active, Epoch(3)));
        }
    }
}
