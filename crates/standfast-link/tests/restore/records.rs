//! Where bytes cannot tell what is lost: the source holds the same records encoded otherwise, fewer of them, or the beginning of a transaction only.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn with_log_append_time_only_what_is_lost_is_exported_and_deleted() {
    let (west, east) = clusters();
    let clock = [("message.timestamp.type", "LogAppendTime")];
    mirrored("clock", 2, &clock, 5).await;
    let (old, new) = (connect(west).await, connect(east).await);
    let lost = plain((0..20).map(|n| format!("lost {n}")));
    append(&old, "clock", 0, &gzip(&lost)).await.unwrap();
    append_some(&new, "clock", 0, 10).await;
    append_some(&new, "clock", 1, 3).await;
    let lifecycle = Lifecycle::default();
    let running = Running::start(back("clock", &lifecycle));
    wait_status(&running, MirrorStatus::Failed).await;
    let (_folder, export, _) = folder();
    // With a hint, which is looked at first, and without.
    for hint in [None, Some(50)] {
        let rehearsal = RestoreOptions {
            dry_run: true,
            hints: BTreeMap::from([("clock".to_owned(), vec![hint, hint])]),
            ..fast(export.clone())
        };
        let told = restore(&running, "clock", &rehearsal).await;
        assert_eq!(told.messages_truncated, 20, "{told:?}");
    }
    let result = restore(&running, "clock", &fast(export)).await;
    assert_eq!(result.change.error_code, None, "{result:?}");
    let [one] = result.partition_level_truncation_data[..] else {
        panic!("{result:?}");
    };
    assert_eq!(
        (
            one.partition_id,
            one.offset_truncated_to,
            one.messages_truncated,
            one.log_end_offset
        ),
        (0, 50, 20, 70)
    );
    let file = result.export.and_then(|e| e.file).expect("a file");
    let offsets: Vec<i64> = told(&file).iter().map(|(offset, _, _)| *offset).collect();
    assert_eq!(offsets, (50..70).collect::<Vec<_>>());
    // The topic that applications wrote to is a mirror now, which keeps their timestamps.
    running.wait_caught_up(&new, "clock").await;
    assert_eq!(log_starts(&old, "clock").await, [70, 0]);
    assert_same_from_start("clock", 0).await;
    let timestamps = |batches: Vec<RawBatch>| -> Vec<i64> {
        batches.iter().map(|b| b.header.max_timestamp).collect()
    };
    let ours = timestamps(read_all(&old, "clock", 1).await);
    assert_eq!(ours, timestamps(read_all(&new, "clock", 1).await));
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_compaction_took_in_front_of_the_tail_is_no_loss() {
    let (west, east) = clusters();
    let compacted = [
        ("cleanup.policy", "compact,delete"),
        ("min.cleanable.dirty.ratio", "0.01"),
        ("segment.ms", "200"),
        ("delete.retention.ms", "0"),
    ];
    mirrored("sparse", 1, &compacted, 3).await;
    let (old, new) = (connect(west).await, connect(east).await);
    compact_no_more(&new, "sparse").await;
    // Of the thirty records that are mirrored compaction leaves eight: the last of each key, but for the two that were written again.
    let again = ["k3", "k9"].map(|key| Record::new(key, "lost"));
    wait_for("compaction", || async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        append(&old, "sparse", 0, &batch(&again, PLAIN))
            .await
            .unwrap();
        let left = read_all(&old, "sparse", 0).await;
        let front = left.iter().filter(|b| b.header.base_offset < 30);
        front.map(|b| b.header.record_count).sum::<i32>() == 8
    })
    .await;
    compact_no_more(&old, "sparse").await;
    let end = log_ends(&old, "sparse").await[0];
    append_some(&new, "sparse", 0, usize::try_from(end).unwrap() / 10 + 2).await;
    let lifecycle = Lifecycle::default();
    let running = Running::start(back("sparse", &lifecycle));
    wait_status(&running, MirrorStatus::Failed).await;
    let (_folder, export, _) = folder();
    let result = restore(&running, "sparse", &fast(export)).await;
    assert_eq!(result.change.error_code, None, "{result:?}");
    let one = &result.partition_level_truncation_data[0];
    assert_eq!((one.offset_truncated_to, one.log_end_offset), (30, end));
    let file = result.export.and_then(|e| e.file).expect("a file");
    let found = told(&file);
    assert_eq!(found.last().map(|(offset, _, _)| *offset), Some(end - 1));
    assert!(found.iter().all(|(offset, _, _)| *offset >= 30));
    running.wait_caught_up(&new, "sparse").await;
    assert_same_from_start("sparse", 0).await;
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_began_in_front_of_the_tail_is_exported_whole() {
    let (west, east) = clusters();
    mirrored("front", 1, &[], 5).await;
    let (old, new) = (connect(west).await, connect(east).await);
    // West: two batches and a commit. East got the first one, and the failover aborted it there.
    let stamp = Stamp {
        attributes: 0x10,
        ..PLAIN
    };
    let first = batch(&[Record::new("t", "began")], stamp);
    let mut identities = Vec::new();
    for (cluster, id) in [(&old, "front-app"), (&new, "front-link")] {
        let identity = cluster.init_producer_id(Some(id)).await.unwrap();
        let partition = TopicPartition::new("front", 0);
        let added = cluster.add_partition_to_transaction(id, identity, &partition);
        added.await.expect("added");
        let mut mine = first.clone();
        mine.header.producer_id = identity.producer_id;
        mine.header.producer_epoch = identity.epoch;
        mine.header.base_sequence = 0;
        let at = append_in(cluster, "front", 0, &mine, Some(id)).await;
        assert_eq!(at, Ok(50));
        identities.push(identity);
    }
    write_in(&old, "front", "front-app", identities[0], 1, "ended").await;
    end(&old, "front", "front-app", identities[0], true).await;
    end(&new, "front", "front-link", identities[1], false).await;
    append_some(&new, "front", 0, 5).await;
    let lifecycle = Lifecycle::default();
    let running = Running::start(back("front", &lifecycle));
    wait_status(&running, MirrorStatus::Failed).await;
    let (_folder, export, _) = folder();
    let result = restore(&running, "front", &fast(export)).await;
    assert_eq!(result.change.error_code, None, "{result:?}");
    let one = &result.partition_level_truncation_data[0];
    assert_eq!((one.offset_truncated_to, one.messages_truncated), (51, 1));
    let file = result.export.and_then(|e| e.file).expect("a file");
    let committed = || Some("committed".to_owned());
    let wanted = [
        (50, "began".to_owned(), committed()),
        (51, "ended".to_owned(), committed()),
    ];
    assert_eq!(told(&file), wanted);
    let front: Vec<bool> = lines(&file)
        .iter()
        .map(|line| line["aborted_on_source"] == true)
        .collect();
    assert_eq!(front, [true, false]);
    running.wait_caught_up(&new, "front").await;
    assert_same_from_start("front", 0).await;
    running.end().await;
}
