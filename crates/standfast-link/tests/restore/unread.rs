//! Groups that have yet to read what a mirror restored in mode fast does not hold.

use standfast_link::UnreadRecords;
use standfast_wire::admin::CommittedOffset;

use super::*;

pub(super) async fn commit(cluster: &Cluster, group: &str, topic: &str, offsets: &[i64]) {
    let each = (0..).zip(offsets).map(|(partition, offset)| {
        let committed = CommittedOffset {
            offset: *offset,
            leader_epoch: -1,
            metadata: String::new(),
        };
        (TopicPartition::new(topic, partition), committed)
    });
    let offsets: Vec<_> = each.collect();
    let answers = cluster.offset_commit(group, &offsets).await;
    for (_, result) in answers.expect("Kafka answers") {
        result.expect("committed");
    }
}

pub(super) async fn unread(running: &Running) -> Vec<UnreadRecords> {
    running.handle.unread_records().await.expect("both answer")
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_behind_the_beginning_of_a_fast_restored_mirror_are_named_until_they_have_read_on() {
    const TOPIC: &str = "unread";
    let (west, east) = clusters();
    mirrored(TOPIC, 2, &[], 10).await;
    let (old, new) = (connect(west).await, connect(east).await);
    // Lost: 100 to 129. East has other records there; 129 is the marker behind the one at 128.
    append_some(&old, TOPIC, 0, 3).await;
    append_some(&new, TOPIC, 0, 2).await;
    let eight = plain((0..8).map(|n| format!("new {n}")));
    append(&new, TOPIC, 0, &eight).await.unwrap();
    let identity = new.init_producer_id(Some("unread-app")).await.unwrap();
    write_in(&new, TOPIC, "unread-app", identity, 0, "last").await;
    end(&new, TOPIC, "unread-app", identity, true).await;
    assert_eq!(log_ends(&new, TOPIC).await, [130, 100]);
    append_some(&new, TOPIC, 0, 3).await;

    let lifecycle = Lifecycle::default();
    let mut options = back(TOPIC, &lifecycle);
    options.groups = ["behind", "just", "marker", "never"]
        .map(str::to_owned)
        .into();
    let running = Running::start(options.clone());
    wait_status(&running, MirrorStatus::Failed).await;
    let (_folder, export, _) = folder();
    let result = restore(&running, TOPIC, &fast(export.clone())).await;
    assert_eq!(result.change.error_code, None, "{result:?}");
    running.wait_caught_up(&new, TOPIC).await;
    assert_eq!(log_starts(&old, TOPIC).await, [130, 0]);

    // No group has committed anything yet.
    assert_eq!(unread(&running).await, []);
    for (group, offset) in [
        ("behind", 110),
        ("just", 128),
        ("marker", 129),
        ("other", 0),
    ] {
        commit(&new, group, TOPIC, &[offset, 0]).await;
    }
    let expected = |group: &str, offset| UnreadRecords {
        group: group.to_owned(),
        topic: TOPIC.to_owned(),
        partition: 0,
        committed_offset: offset,
        from_offset: offset,
        records: 130 - offset,
        mirror_log_start_offset: 130,
    };
    assert_eq!(
        unread(&running).await,
        [expected("behind", 110), expected("just", 128)]
    );
    commit(&new, "just", TOPIC, &[130, 0]).await;
    assert_eq!(unread(&running).await, [expected("behind", 110)]);

    // What the source no longer has is nothing to wait for.
    let cut = [(TopicPartition::new(TOPIC, 0), 125)];
    for (_, deleted) in new.delete_records(&cut).await {
        deleted.expect("deleted");
    }
    let left = UnreadRecords {
        from_offset: 125,
        records: 5,
        ..expected("behind", 110)
    };
    assert_eq!(unread(&running).await, [left]);
    running.end().await;

    // A link that carries no groups has nothing to say.
    let none = LinkOptions {
        groups: Vec::new(),
        ..options.clone()
    };
    let running = Running::start(none);
    running.wait_caught_up(&new, TOPIC).await;
    assert_eq!(unread(&running).await, []);
    running.end().await;

    // Mirrored again from the source's beginning, the mirror holds all that there is.
    let running = Running::start(options);
    running.wait_caught_up(&new, TOPIC).await;
    assert_eq!(unread(&running).await.len(), 1);
    running.handle.failover(&[TOPIC], PATIENCE).await;
    assert_eq!(
        unread(&running).await,
        [],
        "the topic is the destination's own"
    );
    let result = restore(&running, TOPIC, &full(export)).await;
    assert_eq!(result.change.error_code, None, "{result:?}");
    running.wait_caught_up(&new, TOPIC).await;
    wait_status(&running, MirrorStatus::Active).await;
    assert_eq!(unread(&running).await, []);
    running.end().await;
}
