//! Mirrors that are paused, resumed, promoted and failed over, one by one and as a whole, and topics that filters find.

#[path = "lifecycle/groups.rs"]
mod groups;
mod support;

use std::sync::OnceLock;
use std::time::Duration;

use standfast_link::{
    Filter, FilterType, Lifecycle, LinkState, MirrorChange, MirrorStatus, MirrorTopicError,
    PatternType, TransitionErrorCode, Wanted,
};
use standfast_servers::KafkaCluster;
use standfast_wire::admin::CommittedOffset;
use standfast_wire::{Cluster, TopicPartition};
use support::*;

const SOON: Duration = Duration::from_secs(30);
/// A running mirror is much faster; what has not moved by then does not move.
const NOTHING_MOVES: Duration = Duration::from_millis(1500);

fn clusters() -> &'static (KafkaCluster, KafkaCluster) {
    static CLUSTERS: OnceLock<(KafkaCluster, KafkaCluster)> = OnceLock::new();
    CLUSTERS.get_or_init(|| (kafka("source"), kafka("destination")))
}

fn assert_clean(changes: &[MirrorChange], status: MirrorStatus) {
    for change in changes {
        assert_eq!(
            (change.error_code, change.mirror_status),
            (None, status),
            "{change:?}"
        );
    }
}

fn status(running: &Running, topic: &str) -> Option<MirrorStatus> {
    let mirrors = running.handle.describe().mirrors;
    let mirror = mirrors.iter().find(|m| m.mirror_topic_name == topic);
    mirror.map(|m| m.mirror_status)
}

fn filter(name: &str, pattern_type: PatternType, filter_type: FilterType) -> Filter {
    Filter {
        name: name.to_owned(),
        pattern_type,
        filter_type,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_mirror_moves_nothing_and_catches_up_when_resumed() {
    let (source, destination) = clusters();
    for topic in ["paused", "busy"] {
        source.create_topic(topic, 2, &[]).unwrap();
    }
    let (from, to) = (connect(source).await, connect(destination).await);
    let lifecycle = Lifecycle::default();
    let options = || {
        let mut options = link_options("pausing", source, destination, &["paused", "busy"]);
        options.lifecycle = lifecycle.clone();
        options
    };
    let running = Running::start(options());
    append_some(&from, "paused", 0, 100).await;
    running.wait_caught_up(&from, "paused").await;

    let changes = running.handle.pause(&["paused", "unknown"]).await;
    assert_clean(&changes[..1], MirrorStatus::Paused);
    assert_eq!(
        changes[1].error_code,
        Some(TransitionErrorCode::UnknownMirror)
    );
    assert_clean(
        &running.handle.pause(&["paused"]).await,
        MirrorStatus::Paused,
    );
    append_some(&from, "paused", 0, 30).await;
    append_some(&from, "paused", 1, 20).await;
    append_some(&from, "busy", 0, 20).await;
    running.wait_caught_up(&from, "busy").await;
    tokio::time::sleep(NOTHING_MOVES).await;
    assert_eq!(log_ends(&to, "paused").await, [1000, 0]);
    // Its lag is told all the same.
    running
        .wait("the lag of a paused mirror", |link| {
            link.mirrors[0]
                .mirror_lags
                .iter()
                .map(|l| l.lag)
                .eq([Some(300), Some(200)])
        })
        .await;
    assert_eq!(status(&running, "paused"), Some(MirrorStatus::Paused));
    running.end().await;

    // Another engine that is given the same state keeps it paused, though it has never run there.
    let running = Running::start(options());
    append_some(&from, "busy", 1, 20).await;
    running.wait_caught_up(&from, "busy").await;
    running
        .wait("known and paused", |link| {
            link.mirrors[0].mirror_status == MirrorStatus::Paused
                && link.mirrors[0].mirror_lags.len() == 2
        })
        .await;
    assert_eq!(log_ends(&to, "paused").await, [1000, 0]);
    running.handle.resume(&["paused"]).await;
    running.wait_caught_up(&from, "paused").await;
    assert_identical(&from, &to, "paused").await;

    // The link as a whole: the mirror that was paused alone stays so afterwards.
    running.handle.pause(&["busy"]).await;
    assert!(running.handle.pause_link().await);
    let link = running.handle.describe();
    assert_eq!(
        (
            link.link_state,
            link.mirrors[0].mirror_status,
            link.mirrors[1].mirror_status
        ),
        (
            LinkState::Paused,
            MirrorStatus::LinkPaused,
            MirrorStatus::Paused
        )
    );
    append_some(&from, "paused", 1, 20).await;
    append_some(&from, "busy", 1, 20).await;
    tokio::time::sleep(NOTHING_MOVES).await;
    assert_eq!(log_ends(&to, "paused").await, [1300, 200]);
    running.handle.resume_link().await;
    running.wait_caught_up(&from, "paused").await;
    assert_eq!(status(&running, "busy"), Some(MirrorStatus::Paused));
    assert_eq!(log_ends(&to, "busy").await, [200, 200]);
    running.handle.resume(&["busy"]).await;
    running.wait_caught_up(&from, "busy").await;
    assert_identical(&from, &to, "busy").await;
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pausing_and_resuming_under_load_keeps_the_logs_equal() {
    let (source, destination) = clusters();
    source.create_topic("restless", 3, &[]).unwrap();
    let (from, to) = (connect(source).await, connect(destination).await);
    let running = Running::start(link_options("restless", source, destination, &["restless"]));
    let load = tokio::spawn({
        let from = from.clone();
        async move {
            for round in 0..60 {
                append_some(&from, "restless", round % 3, 60).await;
            }
        }
    });
    while !load.is_finished() {
        running.handle.pause(&["restless"]).await;
        running.handle.resume(&["restless"]).await;
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    load.await.unwrap();
    running.wait_caught_up(&from, "restless").await;
    assert_identical(&from, &to, "restless").await;
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_mirror_starts_again_from_its_log_when_resumed() {
    let (source, destination) = clusters();
    let limit = ("max.message.bytes", "2000000");
    source.create_topic("mended", 1, &[limit]).unwrap();
    destination
        .create_topic("mended", 1, &[limit, ("segment.bytes", "1048576")])
        .unwrap();
    let (from, to) = (connect(source).await, connect(destination).await);
    append_some(&from, "mended", 0, 3).await;
    // Larger than a segment of the mirror.
    let large = batch(&[Record::new("k", vec![1; 1_500_000])], PLAIN);
    append(&from, "mended", 0, &large).await.unwrap();
    let mut options = link_options("mended", source, destination, &["mended"]);
    options.config_exclude = vec!["segment.bytes".to_owned()];
    let running = Running::start(options);
    running
        .wait("refused", |link| {
            link.mirrors[0].mirror_topic_error == MirrorTopicError::DestinationRefused
        })
        .await;
    let refused = running
        .handle
        .promote(&["mended"], Duration::from_millis(1))
        .await;
    assert_eq!(
        refused[0].error_code,
        Some(TransitionErrorCode::MirrorFailed)
    );
    alter(&to, "mended", &[("segment.bytes", Some("10000000"))]).await;
    assert_eq!(running.handle.resume(&["mended"]).await[0].error_code, None);
    running.wait_caught_up(&from, "mended").await;
    assert_identical(&from, &to, "mended").await;
    running.end().await;
}

/// Commits `offset` for a group that has no members.
async fn commit(cluster: &Cluster, group: &str, topic: &str, offset: i64) {
    let committed = CommittedOffset {
        offset,
        leader_epoch: -1,
        metadata: String::new(),
    };
    let id = TopicPartition::new(topic, 0);
    for (_, result) in cluster
        .offset_commit(group, &[(id, committed)])
        .await
        .expect("Kafka answers")
    {
        result.expect("Kafka answers");
    }
}

async fn committed(cluster: &Cluster, group: &str) -> Option<i64> {
    let offsets = cluster.offset_fetch(group).await.expect("Kafka answers");
    offsets
        .into_iter()
        .find_map(|(_, found)| found.ok())
        .map(|found| found.offset)
        .filter(|offset| *offset >= 0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_topic_belongs_to_the_destination() {
    let (source, destination) = clusters();
    for topic in ["promoted", "stays"] {
        source.create_topic(topic, 2, &[]).unwrap();
    }
    let (from, to) = (connect(source).await, connect(destination).await);
    let lifecycle = Lifecycle::default();
    let options = || {
        let mut options = link_options("promoting", source, destination, &["promoted", "stays"]);
        options.lifecycle = lifecycle.clone();
        options.groups = vec!["promoting".to_owned()];
        options.group_sync_interval = Duration::from_secs(3600);
        options
    };
    let running = Running::start(options());
    append_some(&from, "promoted", 0, 100).await;
    running.wait_caught_up(&from, "promoted").await;

    commit(&from, "promoting", "promoted", 777).await;
    append_some(&from, "promoted", 1, 50).await;
    let changes = running.handle.promote(&["promoted"], SOON).await;
    assert_clean(&changes, MirrorStatus::Stopped);
    // All of the source is there, or the promotion was too early.
    let ends = log_ends(&from, "promoted").await;
    assert_eq!(ends, [1000, 500]);
    assert_identical(&from, &to, "promoted").await;
    let told: Vec<_> = changes[0]
        .mirror_lags
        .iter()
        .map(|lag| (lag.lag, lag.destination_log_end_offset))
        .collect();
    assert_eq!(told, [(Some(0), Some(ends[0])), (Some(0), Some(ends[1]))]);
    assert_eq!(committed(&to, "promoting").await, Some(777));

    // The topic belongs to the destination now, the other mirror goes on.
    append_some(&to, "promoted", 0, 5).await;
    append_some(&from, "promoted", 0, 7).await;
    append_some(&from, "stays", 0, 5).await;
    running.wait_caught_up(&from, "stays").await;
    let again = running.handle.promote(&["promoted"], SOON).await;
    assert_clean(&again, MirrorStatus::Stopped);
    assert_eq!(
        running.handle.pause(&["promoted"]).await[0].error_code,
        Some(TransitionErrorCode::MirrorStopped)
    );
    running.end().await;

    // Also after a restart.
    let running = Running::start(options());
    append_some(&from, "stays", 1, 5).await;
    running.wait_caught_up(&from, "stays").await;
    tokio::time::sleep(NOTHING_MOVES).await;
    assert_eq!(status(&running, "promoted"), Some(MirrorStatus::Stopped));
    assert_eq!(log_ends(&to, "promoted").await, [1050, ends[1]]);

    // Beginning again is refused: the destination's log is its own.
    let refused = running.handle.create(&["promoted", "stays"], SOON).await;
    assert_eq!(
        refused[0].error_code,
        Some(TransitionErrorCode::MirrorFailed)
    );
    assert!(
        refused[0]
            .error_message
            .as_ref()
            .is_some_and(|text| text.contains("DIVERGED")),
        "{refused:?}"
    );
    assert_eq!(
        refused[1].error_code,
        Some(TransitionErrorCode::MirrorExists)
    );
    assert_eq!(log_ends(&to, "promoted").await, [1050, ends[1]]);
    running.end().await;
}

/// The destination hangs, so that the mirror lags for certain while records arrive: it is stopped only when it holds all of them.
async fn promoted_under_load(
    source: &KafkaCluster,
    destination: &KafkaCluster,
    from: &Cluster,
    to: &Cluster,
) {
    source.create_topic("loaded", 2, &[]).expect("a topic");
    let running = Running::start(link_options("loaded", source, destination, &["loaded"]));
    append_some(from, "loaded", 0, 50).await;
    running.wait_caught_up(from, "loaded").await;
    destination.pause();
    append_some(from, "loaded", 1, 50).await;
    let handle = running.handle.clone();
    let promoting = tokio::spawn(async move { handle.promote(&["loaded"], SOON * 2).await });
    running
        .wait("pending", |link| {
            link.mirrors[0].mirror_status == MirrorStatus::PendingStopped
        })
        .await;
    append_some(from, "loaded", 0, 200).await;
    tokio::time::sleep(NOTHING_MOVES).await;
    assert!(!promoting.is_finished(), "records are missing");
    destination.resume();
    let changes = promoting.await.expect("no panic");
    assert_clean(&changes, MirrorStatus::Stopped);
    assert_eq!(log_ends(to, "loaded").await, [2500, 500]);
    assert_identical(from, to, "loaded").await;
    append_some(to, "loaded", 0, 5).await;
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn promote_gives_up_when_the_source_is_away_or_never_stands_still() {
    let (source, destination) =
        tokio::task::spawn_blocking(|| (kafka("source"), kafka("destination")))
            .await
            .unwrap();
    let mut source = source;
    source.create_topic("lost", 2, &[]).unwrap();
    source.create_topic("other", 1, &[]).unwrap();
    let (from, to) = (connect(&source).await, connect(&destination).await);
    promoted_under_load(&source, &destination, &from, &to).await;
    let lifecycle = Lifecycle::default();
    let mut options = link_options("losing", &source, &destination, &["lost", "other"]);
    options.lifecycle = lifecycle.clone();
    let running = Running::start(options);
    append_some(&from, "lost", 0, 20).await;
    append_some(&from, "other", 0, 20).await;
    running.wait_caught_up(&from, "lost").await;
    running.wait_caught_up(&from, "other").await;

    // Not paused ones, nor without a source.
    running.handle.pause(&["lost"]).await;
    let refused = running.handle.promote(&["lost"], SOON).await;
    assert_eq!(
        refused[0].error_code,
        Some(TransitionErrorCode::MirrorPaused)
    );
    running.handle.resume(&["lost"]).await;
    running.wait_caught_up(&from, "lost").await;
    let ends = log_ends(&from, "lost").await;
    source.kill();
    let refused = running
        .handle
        .promote(&["lost"], Duration::from_secs(1))
        .await;
    assert_eq!(
        refused[0].error_code,
        Some(TransitionErrorCode::SourceUnavailable),
        "{refused:?}"
    );
    assert_eq!(lifecycle.wanted("lost"), Wanted::Active);

    // A failover does not need it; twice is as good as once.
    let began = std::time::Instant::now();
    let changes = running.handle.failover(&["lost"], SOON).await;
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    assert_clean(&changes, MirrorStatus::Stopped);
    let again = running.handle.failover(&["lost"], SOON).await;
    assert_clean(&again, MirrorStatus::Stopped);
    for changes in [&changes, &again] {
        let told: Vec<_> = changes[0]
            .mirror_lags
            .iter()
            .map(|l| (l.lag, l.destination_log_end_offset))
            .collect();
        assert_eq!(told, [(Some(0), Some(ends[0])), (Some(0), Some(ends[1]))]);
    }

    // The source is back and has more: it stays on the source, and the other mirror goes on.
    source.restart().unwrap();
    append_some(&from, "lost", 0, 5).await;
    append_some(&from, "other", 0, 5).await;
    running.wait_caught_up(&from, "other").await;
    tokio::time::sleep(NOTHING_MOVES).await;
    assert_eq!(log_ends(&to, "lost").await, ends);

    // Nothing was written to it meanwhile, so it may begin again where it stopped.
    let begun = running.handle.create(&["lost"], SOON).await;
    assert_clean(&begun, MirrorStatus::Active);
    running.wait_caught_up(&from, "lost").await;
    assert_identical(&from, &to, "lost").await;

    // The failover of the whole region goes on working next to a mirror that is paused and one that is stopped.
    running.handle.failover(&["lost"], SOON).await;
    running.handle.pause(&["other"]).await;
    append_some(&from, "other", 0, 2).await;
    running
        .wait("the lag of the paused mirror", |link| {
            link.mirrors[1].mirror_lags[0].lag == Some(20)
        })
        .await;
    let stopped = running.handle.stop_mirrors(SOON).await.unwrap();
    let other = stopped.iter().find(|s| s.topic == "other").unwrap();
    assert_eq!(
        (other.rpo_records, other.state_before),
        (Some(20), standfast_link::PartitionState::Paused),
        "{other:?}"
    );
    assert_eq!(
        running.handle.resume(&["other"]).await[0].error_code,
        Some(TransitionErrorCode::LinkNotRunning)
    );
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_find_topics_and_exclude_wins() {
    let (source, destination) = clusters();
    for topic in ["found.a", "found.secret", "elsewhere"] {
        source.create_topic(topic, 1, &[]).unwrap();
    }
    let (from, to) = (connect(source).await, connect(destination).await);
    for topic in ["found.a", "found.secret"] {
        append_some(&from, topic, 0, 3).await;
    }
    let lifecycle = Lifecycle::default();
    let options = || {
        let mut options = link_options("filters", source, destination, &[]);
        options.topic_filters = vec![
            filter("found.", PatternType::Prefixed, FilterType::Include),
            filter("found.secret", PatternType::Literal, FilterType::Exclude),
        ];
        options.lifecycle = lifecycle.clone();
        options
    };
    let running = Running::start(options());
    running.wait_caught_up(&from, "found.a").await;
    source.create_topic("found.later", 2, &[]).unwrap();
    append_some(&from, "found.later", 1, 3).await;
    running.wait_caught_up(&from, "found.later").await;
    assert_identical(&from, &to, "found.later").await;
    let names = |running: &Running| -> Vec<String> {
        let mirrors = running.handle.describe().mirrors.into_iter();
        mirrors.map(|m| m.mirror_topic_name).collect()
    };
    assert_eq!(names(&running), ["found.a", "found.later"]);
    assert!(
        to.topics(&["found.secret"]).await.unwrap().topics["found.secret"]
            .error
            .is_some()
    );

    // By command, outside of the filters.
    let created = running
        .handle
        .create(&["elsewhere", "__consumer_offsets", "standfast.x"], SOON)
        .await;
    assert_clean(&created[..1], MirrorStatus::Active);
    for refused in &created[1..] {
        assert_eq!(refused.error_code, Some(TransitionErrorCode::InvalidTopic));
    }
    // A source topic that is deleted leaves its mirror.
    running.handle.failover(&["found.a"], SOON).await;
    source.delete_topic("found.later").unwrap();
    running
        .wait("deleted", |link| {
            link.mirrors[1].mirror_topic_error == MirrorTopicError::SourceTopicMayBeDeleted
        })
        .await;
    assert_eq!(log_ends(&to, "found.later").await, [0, 30]);
    running.end().await;

    // What was found and created is known after a restart, without the source.
    let running = Running::start(options());
    assert_eq!(names(&running), ["elsewhere", "found.a", "found.later"]);
    assert_eq!(status(&running, "found.a"), Some(MirrorStatus::Stopped));
    append_some(&from, "elsewhere", 0, 3).await;
    running.wait_caught_up(&from, "elsewhere").await;
    running.end().await;
}
