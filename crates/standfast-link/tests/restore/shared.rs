//! Restore while several engines share the link: one of them does the work, then they share the topic again.

use standfast_link::{LinkDescription, PartitionState, SharingOptions};

use super::*;

const TOPIC: &str = "both";
const PARTITIONS: i32 = 4;

fn engine(name: &str) -> Running {
    Running::start(LinkOptions {
        sharing: Some(SharingOptions::new(name)),
        groups: vec!["reader".to_owned()],
        ..back(TOPIC, &Lifecycle::default())
    })
}

fn count(link: &LinkDescription, state: PartitionState) -> usize {
    let lags = link.mirrors.iter().flat_map(|mirror| &mirror.mirror_lags);
    lags.filter(|lag| lag.state == state).count()
}

/// Waits until each of two engines has its half of the partitions, in this state of the whole mirror.
async fn wait_halves(engines: [&Running; 2], status: MirrorStatus) {
    for engine in engines {
        engine
            .wait(&format!("half of a mirror that is {status:?}"), |link| {
                link.members.len() == 2
                    && count(link, PartitionState::Elsewhere) == 2
                    && link.mirrors[0].mirror_status == status
            })
            .await;
    }
}

/// Restores a mirror that has FAILED. For a moment it has not, when the members' shares change and it is compared anew.
async fn restore_failed(
    engines: [&Running; 2],
    by: &Running,
    options: &RestoreOptions,
) -> MirrorRestore {
    let not_failed = Some(TransitionErrorCode::NotRestorable);
    for _ in 0..5 {
        wait_halves(engines, MirrorStatus::Failed).await;
        let result = restore(by, TOPIC, options).await;
        if result.change.error_code != not_failed {
            return result;
        }
    }
    panic!("the mirror does not stay FAILED");
}

async fn wait_same(new: &Cluster, old: &Cluster) {
    wait_for("the logs end alike", async || {
        log_ends(new, TOPIC).await == log_ends(old, TOPIC).await
    })
    .await;
    for partition in 0..PARTITIONS {
        assert_same_from_start(TOPIC, partition).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_the_engines_that_share_a_link_restores_a_mirror_that_failed_at_both() {
    let (west, east) = clusters();
    mirrored(TOPIC, PARTITIONS, &[], 5).await;
    let (old, new) = (connect(west).await, connect(east).await);
    for partition in 0..PARTITIONS {
        // Written at another moment than what east has there.
        append_some(&old, TOPIC, partition, 1).await;
        append_some(&new, TOPIC, partition, 3).await;
    }
    let (one, other) = (engine("one"), engine("other"));

    let (_folder, export, _) = folder();
    let result = restore_failed([&one, &other], &one, &fast(export.clone())).await;
    assert_eq!(result.change.error_code, None, "{result:?}");
    assert_eq!(result.messages_truncated, 40, "{result:?}");
    assert_eq!(result.export.expect("a file").records, 40);
    wait_halves([&one, &other], MirrorStatus::Active).await;
    for partition in 0..PARTITIONS {
        append_some(&new, TOPIC, partition, 2).await;
    }
    wait_same(&new, &old).await;
    // Whichever engine mirrors a partition, each knows which records a group would skip.
    unread::commit(&new, "reader", TOPIC, &[50; PARTITIONS as usize]).await;
    for engine in [&one, &other] {
        let unread = unread::unread(engine).await;
        let records: Vec<_> = unread.iter().map(|u| (u.partition, u.records)).collect();
        assert_eq!(records, [(0, 10), (1, 10), (2, 10), (3, 10)]);
    }

    // The other one, from the beginning. What is wrong with its own part it sees itself.
    for engine in [&one, &other] {
        engine.handle.pause(&[TOPIC]).await;
    }
    for partition in 0..PARTITIONS {
        append_some(&old, TOPIC, partition, 1).await;
        append_some(&new, TOPIC, partition, 1).await;
    }
    one.handle.resume(&[TOPIC]).await;
    let result = restore_failed([&one, &other], &other, &full(export)).await;
    assert_eq!(result.change.error_code, None, "{result:?}");
    assert_eq!(result.messages_truncated, 40, "{result:?}");
    wait_halves([&one, &other], MirrorStatus::Active).await;
    append_some(&new, TOPIC, 0, 2).await;
    wait_same(&new, &old).await;
    assert_eq!(log_starts(&old, TOPIC).await, vec![0; PARTITIONS as usize]);
    one.end().await;
    other.end().await;
}
