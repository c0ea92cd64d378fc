//! Restore of a returned cluster: the lost tail is exported, then deleted, and the mirror goes on with equal offsets.
//!
//! `west` was the primary; the link from west to east ended, applications went on in east, and west came back with records that were never mirrored.

#[path = "restore/killed.rs"]
mod killed;
#[path = "restore/records.rs"]
mod records;
#[path = "restore/shared.rs"]
mod shared;
mod support;
#[path = "restore/unread.rs"]
mod unread;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use bytes::{BufMut, BytesMut};
use standfast_link::{
    Lifecycle, LinkOptions, MirrorRestore, MirrorStatus, RestoreExport, RestoreMode,
    RestoreOptions, RestorePhase, RunningState, TransitionErrorCode, Wanted,
};
use standfast_servers::KafkaCluster;
use standfast_wire::admin::ProducerIdentity;
use standfast_wire::batch::{HEADER_LEN, RawBatch};
use standfast_wire::{Cluster, ResponseError, TopicPartition};
use support::*;

fn clusters() -> &'static (KafkaCluster, KafkaCluster) {
    static CLUSTERS: OnceLock<(KafkaCluster, KafkaCluster)> = OnceLock::new();
    CLUSTERS.get_or_init(|| {
        let west = KafkaCluster::builder("west")
            .heap_mb(256)
            .property("log.cleaner.backoff.ms", "100")
            .start()
            .expect("a Kafka cluster");
        (west, kafka("east"))
    })
}

/// A topic that west had and east mirrored up to some offset per partition.
async fn mirrored(topic: &str, partitions: i32, configs: &[(&str, &str)], batches: usize) {
    let (west, east) = clusters();
    west.create_topic(topic, partitions, configs).expect("done");
    let from = connect(west).await;
    for partition in 0..partitions {
        append_some(&from, topic, partition, batches).await;
    }
    let name = format!("w-e-{topic}");
    let running = Running::start(link_options(&name, west, east, &[topic]));
    running.wait_caught_up(&from, topic).await;
    running.handle.stop_mirrors(PATIENCE).await.expect("done");
    running.end().await;
}

/// The link back.
fn back(topic: &str, lifecycle: &Lifecycle) -> LinkOptions {
    let (west, east) = clusters();
    let mut options = link_options(&format!("e-w-{topic}"), east, west, &[topic]);
    options.lifecycle = lifecycle.clone();
    // So that the logs can be compared batch by batch; on the way to east batches were joined.
    options.join_batches = false;
    options
}

fn fast(export: RestoreExport) -> RestoreOptions {
    RestoreOptions {
        mode: RestoreMode::Fast,
        export,
        hints: BTreeMap::new(),
        dry_run: false,
    }
}

fn full(export: RestoreExport) -> RestoreOptions {
    RestoreOptions {
        mode: RestoreMode::Full,
        ..fast(export)
    }
}

async fn restore(running: &Running, topic: &str, options: &RestoreOptions) -> MirrorRestore {
    let mut results = running.handle.restore(&[topic], options).await;
    assert_eq!(results.len(), 1);
    results.remove(0)
}

/// After a restore that was refused or broken off. The mirror is started anew then, and has to fail again first: that it did is
/// not to be seen by its status, which may still be that of before.
async fn restore_again(running: &Running, topic: &str, options: &RestoreOptions) -> MirrorRestore {
    let deadline = Instant::now() + PATIENCE;
    loop {
        wait_status(running, MirrorStatus::Failed).await;
        let result = restore(running, topic, options).await;
        let is_starting = result.change.error_code == Some(TransitionErrorCode::NotRestorable)
            && matches!(&result.change.error_message, Some(text) if text.contains("neither FAILED"));
        if !is_starting || Instant::now() > deadline {
            return result;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn wait_status(running: &Running, status: MirrorStatus) {
    running
        .wait(&format!("{status:?}"), |link| {
            link.mirrors[0].mirror_status == status
        })
        .await;
}

fn plain(values: impl IntoIterator<Item = String>) -> RawBatch {
    let records: Vec<Record> = values
        .into_iter()
        .map(|value| Record {
            headers: vec![("h".to_owned(), Some(b"1".to_vec()))],
            ..Record::new("k", value)
        })
        .collect();
    batch(&records, PLAIN)
}

fn gzip(batch: &RawBatch) -> RawBatch {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packer.write_all(&batch.bytes[HEADER_LEN..]).expect("done");
    let body = packer.finish().expect("done");
    let mut covered = BytesMut::from(&batch.bytes[21..HEADER_LEN]);
    covered[1] |= 1;
    covered.put_slice(&body);
    let mut whole = BytesMut::new();
    whole.put_i64(0);
    whole.put_i32(covered.len() as i32 + 9);
    whole.put_i32(-1);
    whole.put_i8(2);
    whole.put_u32(crc_fast::crc32_iscsi(&covered));
    whole.put_slice(&covered);
    RawBatch::new(whole.freeze()).expect("done")
}

/// A batch of an application's transaction.
async fn write_in(
    cluster: &Cluster,
    topic: &str,
    id: &str,
    identity: ProducerIdentity,
    sequence: i32,
    value: &str,
) {
    let stamp = Stamp {
        attributes: 0x10,
        producer_id: identity.producer_id,
        producer_epoch: identity.epoch,
        base_sequence: sequence,
    };
    let batch = batch(&[Record::new("t", value)], stamp);
    let busy = ResponseError::ConcurrentTransactions.code();
    let partition = TopicPartition::new(topic, 0);
    let added = cluster.add_partition_to_transaction(id, identity, &partition);
    added.await.expect("done");
    wait_for("a batch of a transaction", || async {
        match append_in(cluster, topic, 0, &batch, Some(id)).await {
            Ok(_) => true,
            Err(code) if code == busy => false,
            Err(code) => panic!("{id}: {code}"),
        }
    })
    .await;
}

async fn end(cluster: &Cluster, topic: &str, id: &str, identity: ProducerIdentity, commit: bool) {
    let partition = TopicPartition::new(topic, 0);
    let before = cluster.leader_log_end(&partition).await.expect("done");
    cluster
        .end_transaction(id, identity, commit)
        .await
        .expect("done");
    wait_for("a marker", || async {
        cluster.leader_log_end(&partition).await.expect("done") > before
    })
    .await;
}

fn lines(file: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(file).expect("an export");
    text.lines()
        .map(|line| serde_json::from_str(line).expect("a line of JSON"))
        .collect()
}

fn unpacked(line: &serde_json::Value, field: &str) -> String {
    use base64::Engine as _;
    let text = line[field].as_str().expect("text");
    let bytes = base64::engine::general_purpose::STANDARD.decode(text);
    String::from_utf8(bytes.expect("base64")).expect("UTF-8")
}

/// Offset, value and transaction of every line.
fn told(file: &Path) -> Vec<(i64, String, Option<String>)> {
    let each = lines(file).into_iter().map(|line| {
        let transaction = line["transaction"].as_str().map(str::to_owned);
        (
            line["offset"].as_i64().expect("an offset"),
            unpacked(&line, "value"),
            transaction,
        )
    });
    each.collect()
}

/// From the mirror's log start on both logs are the same.
async fn assert_same_from_start(topic: &str, partition: i32) {
    let (west, east) = clusters();
    let (west, east) = (connect(west).await, connect(east).await);
    let start = log_starts(&west, topic).await[partition as usize];
    let (ours, theirs) = (
        read_all(&west, topic, partition).await,
        read_all(&east, topic, partition).await,
    );
    let same = |b: &RawBatch| {
        (
            b.header.base_offset,
            b.header.record_count,
            b.bytes[HEADER_LEN..].to_vec(),
        )
    };
    let theirs: Vec<_> = theirs
        .iter()
        .filter(|b| b.header.base_offset >= start)
        .map(same)
        .collect();
    assert!(!theirs.is_empty());
    assert!(
        ours.iter().map(same).collect::<Vec<_>>() == theirs,
        "{topic}-{partition}"
    );
    assert_eq!(log_ends(&west, topic).await, log_ends(&east, topic).await);
}

fn folder() -> (tempfile::TempDir, RestoreExport, PathBuf) {
    let folder = tempfile::tempdir().expect("done");
    let lost = folder.path().join("lost");
    (folder, RestoreExport::Folder(lost.clone()), lost)
}

#[tokio::test(flavor = "multi_thread")]
async fn fast_exports_the_tail_and_goes_on_inside_a_batch_of_the_source() {
    let (west, east) = clusters();
    mirrored("fast", 2, &[], 10).await;
    let (old, new) = (connect(west).await, connect(east).await);
    // Lost: three batches of ten behind offset 100. East goes on in batches of seven.
    for n in 0..3 {
        let values = (0..10).map(|r| format!("lost {n} {r}"));
        append(&old, "fast", 0, &plain(values)).await.unwrap();
    }
    let seven = || plain((0..7).map(|r| format!("new {r}")));
    for _ in 0..3 {
        append(&new, "fast", 0, &seven()).await.unwrap();
    }
    append_some(&new, "fast", 1, 5).await;
    let lifecycle = Lifecycle::default();
    let running = Running::start(back("fast", &lifecycle));
    wait_status(&running, MirrorStatus::Failed).await;
    // Nothing to lose: only the partition with a tail has FAILED.
    let (_folder, export, lost) = folder();
    let rehearsal = RestoreOptions {
        dry_run: true,
        ..fast(export.clone())
    };
    let expected = |result: &MirrorRestore| {
        assert_eq!(result.messages_truncated, 30, "{result:?}");
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
            (0, 100, 30, 130)
        );
    };
    let told_before = restore(&running, "fast", &rehearsal).await;
    expected(&told_before);
    assert!(!lost.exists());
    // A wrong hint changes nothing: the logs decide.
    for hint in [0, 95, 117, 130, 5000] {
        let hinted = RestoreOptions {
            hints: BTreeMap::from([("fast".to_owned(), vec![Some(hint), Some(hint)])]),
            ..rehearsal.clone()
        };
        expected(&restore(&running, "fast", &hinted).await);
    }

    let result = restore(&running, "fast", &fast(export)).await;
    assert_eq!(result.change.error_code, None, "{result:?}");
    expected(&result);
    let file = result.export.clone().and_then(|e| e.file).expect("a file");
    assert_eq!(file.parent(), Some(lost.as_path()));
    let found = told(&file);
    let wanted: Vec<_> = (0..30)
        .map(|n| (100 + n, format!("lost {} {}", n / 10, n % 10), None))
        .collect();
    assert_eq!(found, wanted);
    let first = &lines(&file)[0];
    assert_eq!(
        (&first["topic"], &first["partition"]),
        (&"fast".into(), &0.into())
    );
    assert_eq!(unpacked(first, "key"), "k");
    assert_eq!(first["headers"][0]["key"], "h");
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    // East has not passed offset 130 yet. A restart meanwhile changes nothing.
    wait_status(&running, MirrorStatus::PendingRestore).await;
    assert_eq!(log_starts(&old, "fast").await, [130, 0]);
    running.end().await;
    let running = Running::start(back("fast", &lifecycle));
    wait_status(&running, MirrorStatus::PendingRestore).await;
    for _ in 0..2 {
        append(&new, "fast", 0, &seven()).await.unwrap();
    }
    // 130 lies inside the batch from 128 to 134.
    running.wait_caught_up(&new, "fast").await;
    wait_status(&running, MirrorStatus::Active).await;
    assert_eq!(lifecycle.restore_phase("fast"), None);
    assert_eq!(log_starts(&old, "fast").await, [135, 0]);
    for _ in 0..4 {
        append(&new, "fast", 0, &seven()).await.unwrap();
    }
    running.wait_caught_up(&new, "fast").await;
    assert_same_from_start("fast", 0).await;
    assert_same_from_start("fast", 1).await;

    // What runs is not restored.
    let refused = restore(&running, "fast", &fast(RestoreExport::Topic)).await;
    assert_eq!(
        refused.change.error_code,
        Some(TransitionErrorCode::NotRestorable)
    );
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn full_exports_compressed_batches_and_transactions_and_mirrors_everything_again() {
    let (west, east) = clusters();
    mirrored("full", 1, &[("retention.ms", "86400000")], 5).await;
    let (old, new) = (connect(west).await, connect(east).await);
    let values = || (0..3).map(|r| format!("packed {r}"));
    append(&old, "full", 0, &gzip(&plain(values())))
        .await
        .unwrap();
    for (id, ends) in [
        ("full-a", Some(true)),
        ("full-b", Some(false)),
        ("full-c", None),
    ] {
        let identity = old.init_producer_id(Some(id)).await.unwrap();
        write_in(&old, "full", id, identity, 0, id).await;
        if let Some(commit) = ends {
            end(&old, "full", id, identity, commit).await;
        }
    }
    append_some(&new, "full", 0, 20).await;
    let lifecycle = Lifecycle::default();
    let running = Running::start(back("full", &lifecycle));
    wait_status(&running, MirrorStatus::Failed).await;

    // An export that cannot be made deletes nothing.
    let folder = tempfile::tempdir().unwrap();
    let taken = folder.path().join("taken.jsonl");
    std::fs::write(&taken, "mine").unwrap();
    for bad in [taken.clone(), folder.path().join("no/such/folder.jsonl")] {
        let failed = restore_again(&running, "full", &full(RestoreExport::File(bad))).await;
        assert_eq!(
            failed.change.error_code,
            Some(TransitionErrorCode::RestoreFailed)
        );
        let text = failed.change.error_message.unwrap();
        assert!(text.contains("nothing was deleted"), "{text}");
    }
    assert_eq!(std::fs::read_to_string(&taken).unwrap(), "mine");
    assert_eq!(log_ends(&old, "full").await, [58]);

    let file = folder.path().join("tail.jsonl");
    let result = restore_again(&running, "full", &full(RestoreExport::File(file.clone()))).await;
    assert_eq!(result.change.error_code, None, "{result:?}");
    assert_eq!(result.messages_truncated, 6);
    assert_eq!(result.export.map(|e| e.records), Some(6));
    let state = |text: &str| Some(text.to_owned());
    let wanted = [
        (50, "packed 0".to_owned(), None),
        (51, "packed 1".to_owned(), None),
        (52, "packed 2".to_owned(), None),
        (53, "full-a".to_owned(), state("committed")),
        (55, "full-b".to_owned(), state("aborted")),
        (57, "full-c".to_owned(), state("open")),
    ];
    assert_eq!(told(&file), wanted);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    running.wait_caught_up(&new, "full").await;
    assert_identical(&new, &old, "full").await;
    assert_eq!(log_starts(&old, "full").await, [0]);
    let described = old
        .describe_configs(&[standfast_wire::admin::ConfigResource::Topic(
            "full".to_owned(),
        )])
        .await
        .unwrap();
    let configs = described.into_iter().next().unwrap().1.unwrap();
    let retention = configs.iter().find(|c| c.name == "retention.ms").unwrap();
    assert_eq!(retention.value.as_deref(), Some("86400000"));
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fast_ends_open_transactions_before_their_markers_can_hit_the_mirror() {
    let (west, east) = clusters();
    mirrored("open", 1, &[], 5).await;
    let (old, new) = (connect(west).await, connect(east).await);
    let identity = old.init_producer_id(Some("open-app")).await.unwrap();
    write_in(&old, "open", "open-app", identity, 0, "undecided").await;
    append_some(&new, "open", 0, 20).await;
    let lifecycle = Lifecycle::default();
    let running = Running::start(back("open", &lifecycle));
    wait_status(&running, MirrorStatus::Failed).await;
    let result = restore(&running, "open", &fast(RestoreExport::Topic)).await;
    assert_eq!(result.change.error_code, None, "{result:?}");
    assert_eq!(
        (
            result.messages_truncated,
            result.export.clone().unwrap().records
        ),
        (1, 1)
    );
    // The abort marker took offset 51.
    running.wait_caught_up(&new, "open").await;
    assert_same_from_start("open", 0).await;
    let late = old.end_transaction("open-app", identity, true).await;
    assert!(
        late.is_err(),
        "a fenced producer must not end its transaction"
    );
    append_some(&new, "open", 0, 5).await;
    running.wait_caught_up(&new, "open").await;
    assert_same_from_start("open", 0).await;

    // The topic that keeps the tail says where each record stood.
    let kept = read_all(&old, "standfast.lost.open", 0).await;
    assert_eq!(kept.len(), 1);
    let mut text = Vec::new();
    let mut unpack = flate2::read::GzDecoder::new(&kept[0].bytes[HEADER_LEN..]);
    std::io::Read::read_to_end(&mut unpack, &mut text).unwrap();
    let text = String::from_utf8_lossy(&text);
    for part in [
        "undecided",
        "standfast.offset",
        "50",
        "standfast.transaction",
        "open",
    ] {
        assert!(text.contains(part), "{part} is not in {text:?}");
    }
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_was_cut_off_is_taken_up_by_the_next_engine() {
    let (west, east) = clusters();
    mirrored("cut", 1, &[], 5).await;
    let (old, new) = (connect(west).await, connect(east).await);
    append(&old, "cut", 0, &plain(["lost".to_owned()]))
        .await
        .unwrap();
    append_some(&new, "cut", 0, 20).await;
    // As it stands in the agent's file: told to restore, and killed before, or after, the export.
    let (_folder, export, lost) = folder();
    std::fs::create_dir(&lost).unwrap();
    std::fs::write(lost.join("earlier.jsonl"), "").unwrap();
    let state = serde_json::json!({"paused": false, "topics": {"cut": {"state": "ACTIVE", "restore": {
        "phase": "PENDING_SETUP_FOR_RESTORE", "mode": "fast", "export": export,
    }}}});
    let state: RunningState = serde_json::from_value(state).unwrap();
    let lifecycle = Lifecycle::new(state);
    assert_eq!(
        lifecycle.restore_phase("cut"),
        Some(RestorePhase::PendingSetupForRestore)
    );
    let running = Running::start(back("cut", &lifecycle));
    running.wait_caught_up(&new, "cut").await;
    wait_status(&running, MirrorStatus::Active).await;
    assert_same_from_start("cut", 0).await;
    let files: Vec<PathBuf> = std::fs::read_dir(&lost)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| !path.ends_with("earlier.jsonl"))
        .collect();
    assert_eq!(files.len(), 1);
    assert_eq!(told(&files[0]), [(50, "lost".to_owned(), None)]);
    running.end().await;

    // Stopped by hand, and nothing lost since: nothing is exported or deleted, whatever the mode of the question.
    let running = Running::start(back("cut", &lifecycle));
    running.wait_caught_up(&new, "cut").await;
    running.handle.failover(&["cut"], PATIENCE).await;
    append_some(&new, "cut", 0, 5).await;
    let start = log_starts(&old, "cut").await;
    let (_folder, export, lost) = folder();
    let result = restore(&running, "cut", &fast(export)).await;
    assert_eq!(
        (result.change.error_code, result.messages_truncated),
        (None, 0),
        "{result:?}"
    );
    assert_eq!(result.export, None);
    assert!(!lost.exists());
    running.wait_caught_up(&new, "cut").await;
    assert_eq!(log_starts(&old, "cut").await, start);
    assert_eq!(lifecycle.wanted("cut"), Wanted::Active);
    assert_same_from_start("cut", 0).await;
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compacted_tail_is_exported_and_the_topic_mirrored_again() {
    let (west, east) = clusters();
    mirrored("compacted", 1, &COMPACTED, 3).await;
    let (old, new) = (connect(west).await, connect(east).await);
    compact_no_more(&new, "compacted").await;
    for n in 0..20 {
        append(&old, "compacted", 0, &plain([format!("lost {n}")]))
            .await
            .unwrap();
    }
    append_some(&new, "compacted", 0, 10).await;
    // Compaction leaves the last value of the key, in the tail too.
    wait_for("compaction", || async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let last = plain(["last".to_owned()]);
        append(&old, "compacted", 0, &last).await.unwrap();
        read_all(&old, "compacted", 0)
            .await
            .iter()
            .filter(|b| b.header.record_count > 0 && b.header.base_offset >= 30)
            .count()
            < 15
    })
    .await;
    let lifecycle = Lifecycle::default();
    let running = Running::start(back("compacted", &lifecycle));
    wait_status(&running, MirrorStatus::Failed).await;
    let (_folder, export, _) = folder();
    // As brokers do; the rehearsal says so too.
    for dry_run in [true, false] {
        let options = RestoreOptions {
            dry_run,
            ..fast(export.clone())
        };
        let refused = restore(&running, "compacted", &options).await;
        let text = refused.change.error_message.unwrap();
        assert!(text.contains("--mode full"), "{text}");
    }
    let partition = TopicPartition::new("compacted", 0);
    for (_, deleted) in old.delete_records(&[(partition, 1)]).await {
        let refused = deleted.unwrap_err().code();
        assert_eq!(refused, Some(ResponseError::PolicyViolation));
    }
    let end = log_ends(&old, "compacted").await[0];
    let result = restore_again(&running, "compacted", &full(export)).await;
    assert_eq!(result.change.error_code, None, "{result:?}");
    let file = result.export.and_then(|e| e.file).expect("a file");
    let found = told(&file);
    assert_eq!(
        found
            .last()
            .map(|(offset, value, _)| (*offset, value.as_str())),
        Some((end - 1, "last"))
    );
    assert!(
        found.iter().all(|(offset, _, _)| *offset >= 30),
        "{found:?}"
    );
    running.wait_caught_up(&new, "compacted").await;
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_still_writes_to_the_returned_cluster_stops_the_restore() {
    let (west, east) = clusters();
    mirrored("busy", 1, &[], 5).await;
    let (old, new) = (connect(west).await, connect(east).await);
    append_some(&old, "busy", 0, 1).await;
    append_some(&new, "busy", 0, 30).await;
    let lifecycle = Lifecycle::default();
    let running = Running::start(back("busy", &lifecycle));
    wait_status(&running, MirrorStatus::Failed).await;
    let stop = tokio_util::sync::CancellationToken::new();
    let writing = tokio::spawn({
        let (old, stop) = (old.clone(), stop.clone());
        async move {
            let mut written = 0i64;
            while !stop.is_cancelled() {
                append(&old, "busy", 0, &plain([format!("late {written}")]))
                    .await
                    .unwrap();
                written += 1;
            }
            written
        }
    });
    let (_folder, export, lost) = folder();
    let result = restore(&running, "busy", &fast(export.clone())).await;
    stop.cancel();
    let written = writing.await.unwrap();
    let end = log_ends(&old, "busy").await[0];
    assert_eq!(end, 60 + written);
    match result.change.error_code {
        // Noticed before anything was deleted.
        Some(code) => {
            assert_eq!(code, TransitionErrorCode::RestoreFailed);
            assert_eq!(log_starts(&old, "busy").await, [0]);
        }
        // Every deleted record is exported; what came later is FAILED again and exported by the next restore.
        None => assert!(log_starts(&old, "busy").await[0] <= end),
    }
    let again = restore_again(&running, "busy", &fast(export)).await;
    assert_eq!(again.change.error_code, None, "{again:?}");
    let mut offsets: Vec<i64> = Vec::new();
    for entry in std::fs::read_dir(&lost).unwrap() {
        offsets.extend(
            told(&entry.unwrap().path())
                .iter()
                .map(|(offset, _, _)| *offset),
        );
    }
    offsets.sort_unstable();
    offsets.dedup();
    assert_eq!(offsets, (50..end).collect::<Vec<_>>());
    append_some(&new, "busy", 0, usize::try_from(written).unwrap() / 10 + 2).await;
    running.wait_caught_up(&new, "busy").await;
    assert_same_from_start("busy", 0).await;
    running.end().await;
}
