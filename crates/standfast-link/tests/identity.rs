//! What arrives on the destination is what stands on the source: offsets, batches, bytes.

mod support;

use std::sync::OnceLock;
use std::time::Duration;

use standfast_link::{LinkState, MirrorStatus, MirrorTopicError, PartitionState};
use standfast_servers::KafkaCluster;
use support::*;

fn clusters() -> &'static (KafkaCluster, KafkaCluster) {
    static CLUSTERS: OnceLock<(KafkaCluster, KafkaCluster)> = OnceLock::new();
    CLUSTERS.get_or_init(|| (kafka("source"), kafka("destination")))
}

/// Writes records through Kafka's own producer, with its compression.
async fn produce_compressed(topic: &str, codec: &str, count: u32, size: u32) {
    let (topic, codec) = (topic.to_owned(), codec.to_owned());
    let done = tokio::task::spawn_blocking(move || {
        let source = &clusters().0;
        let args = [
            "--topic".to_owned(),
            topic,
            "--num-records".to_owned(),
            count.to_string(),
            "--record-size".to_owned(),
            size.to_string(),
            "--throughput".to_owned(),
            "-1".to_owned(),
            "--producer-props".to_owned(),
            format!("bootstrap.servers={}", source.bootstrap()),
            format!("compression.type={codec}"),
            "max.request.size=1000000".to_owned(),
        ];
        source
            .tool(
                "org.apache.kafka.tools.ProducerPerformance",
                &args.each_ref().map(String::as_str),
            )
            .expect("the tool runs")
    });
    let output = done.await.expect("no panic");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_codec_is_mirrored_byte_for_byte() {
    let (source, destination) = clusters();
    let codecs = ["none", "gzip", "snappy", "lz4", "zstd"];
    let topics: Vec<String> = codecs.iter().map(|c| format!("codec-{c}")).collect();
    for (topic, codec) in topics.iter().zip(codecs) {
        source
            .create_topic(topic, 3, &[("retention.ms", "-1")])
            .unwrap();
        produce_compressed(topic, codec, 2_000, 500).await;
        produce_compressed(topic, codec, 3, 900_000).await;
    }
    let names: Vec<&str> = topics.iter().map(String::as_str).collect();
    let running = Running::start(link_options("codecs", source, destination, &names));
    let (from, to) = (connect(source).await, connect(destination).await);
    for topic in &names {
        running.wait_caught_up(&from, topic).await;
        assert_identical(&from, &to, topic).await;
    }
    // Records that arrive while the link runs, with the same result.
    produce_compressed(names[3], "zstd", 1_000, 100).await;
    running.wait_caught_up(&from, names[3]).await;
    assert_identical(&from, &to, names[3]).await;
    let description = running.handle.describe();
    assert_eq!(description.link_state, LinkState::Active);
    let lag = &description.mirrors[3].mirror_lags[0];
    assert_eq!(
        (lag.lag, lag.lag_bytes, lag.lag_seconds),
        (Some(0), Some(0), Some(0.0))
    );
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_records_and_restarts_keep_the_logs_equal() {
    let (source, destination) = clusters();
    source.create_topic("odd", 1, &[]).unwrap();
    let (from, to) = (connect(source).await, connect(destination).await);
    let header = |n: &str, v: Option<&[u8]>| (n.to_owned(), v.map(<[u8]>::to_vec));
    let odd = [
        Record::default(),
        Record {
            key: Some(vec![]),
            value: Some(vec![]),
            ..Record::default()
        },
        Record {
            value: Some(vec![7]),
            headers: vec![
                header("h", None),
                header("h", Some(b"2")),
                header("", Some(b"")),
            ],
            ..Record::default()
        },
    ];
    for round in 0..5 {
        append(&from, "odd", 0, &batch(&odd, PLAIN)).await.unwrap();
        append(
            &from,
            "odd",
            0,
            &batch(&[Record::new("big", vec![round; 900_000])], PLAIN),
        )
        .await
        .unwrap();
        append_some(&from, "odd", 0, 20).await;
        // Ended at whatever it is doing: a quarter of the rounds in the middle of the copy.
        let running = Running::start(link_options("odd", source, destination, &["odd"]));
        if round % 2 == 0 {
            running
                .wait("begun", |link| {
                    link.mirrors[0]
                        .mirror_lags
                        .first()
                        .is_some_and(|p| p.destination_log_end_offset > Some(0))
                })
                .await;
        } else {
            running.wait_caught_up(&from, "odd").await;
        }
        running.end().await;
    }
    let running = Running::start(link_options("odd", source, destination, &["odd"]));
    running.wait_caught_up(&from, "odd").await;
    assert_identical(&from, &to, "odd").await;
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_engines_from_an_empty_topic_make_one_log() {
    let (source, destination) = clusters();
    source.create_topic("twins", 4, &[]).unwrap();
    let (from, to) = (connect(source).await, connect(destination).await);
    let twins =
        [1, 2].map(|_| Running::start(link_options("twins", source, destination, &["twins"])));
    for _ in 0..5 {
        for partition in 0..4 {
            append_some(&from, "twins", partition, 100).await;
        }
    }
    for twin in &twins {
        twin.wait_caught_up(&from, "twins").await;
    }
    assert_eq!(
        twins[0].handle.describe().producer_id,
        twins[1].handle.describe().producer_id
    );
    assert_identical(&from, &to, "twins").await;
    for twin in twins {
        twin.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_write_into_an_idle_mirror_is_seen_within_a_second() {
    let (source, destination) = clusters();
    source.create_topic("foreign", 1, &[]).unwrap();
    let (from, to) = (connect(source).await, connect(destination).await);
    append_some(&from, "foreign", 0, 5).await;
    let running = Running::start(link_options("foreign", source, destination, &["foreign"]));
    running.wait_caught_up(&from, "foreign").await;
    let began = std::time::Instant::now();
    append(
        &to,
        "foreign",
        0,
        &batch(&[Record::new("x", "not from the source")], PLAIN),
    )
    .await
    .unwrap();
    running
        .wait("diverged", |link| {
            link.mirrors[0].mirror_status == MirrorStatus::Failed
        })
        .await;
    // Within a second (the log ends are polled every 500 ms); twice that where builds and tests share two cores.
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    let mirror = running.handle.describe().mirrors.remove(0);
    assert_eq!(mirror.mirror_topic_error, MirrorTopicError::Diverged);
    assert!(
        mirror.mirror_lags[0]
            .error
            .as_ref()
            .is_some_and(|e| e.contains("offset 51") || e.contains("offset 50")),
        "{mirror:?}"
    );
    // Nothing more is written.
    append_some(&from, "foreign", 0, 5).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(log_ends(&to, "foreign").await, [51]);
    running.end().await;
    // Nor after a restart, now that the source is longer than the mirror.
    let running = Running::start(link_options("foreign", source, destination, &["foreign"]));
    running
        .wait("diverged", |link| {
            link.mirrors[0].mirror_topic_error == MirrorTopicError::Diverged
        })
        .await;
    assert_eq!(log_ends(&to, "foreign").await, [51]);
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_whose_log_starts_later_is_seeded() {
    let (source, destination) = clusters();
    source.create_topic("seeded", 2, &[]).unwrap();
    let (from, to) = (connect(source).await, connect(destination).await);
    append_some(&from, "seeded", 0, 100).await;
    append_some(&from, "seeded", 1, 10).await;
    let delete_before = async |offset| {
        from.delete_records(&[(standfast_wire::TopicPartition::new("seeded", 0), offset)])
            .await[0]
            .1
            .as_ref()
            .unwrap();
    };
    delete_before(777).await;
    let mut exact = link_options("seeded", source, destination, &["seeded"]);
    exact.join_batches = false;
    let running = Running::start(exact);
    running.wait_caught_up(&from, "seeded").await;
    // The log start lies inside the batch of offsets 770 to 779, which is mirrored whole; then the log start is followed.
    wait_for("the same log start", async || {
        log_starts(&to, "seeded").await == [777, 0]
    })
    .await;
    let end = log_ends(&from, "seeded").await[0];
    let (theirs, ours) = (
        read_all(&from, "seeded", 0).await,
        read_all(&to, "seeded", 0).await,
    );
    assert_eq!(
        (
            ours[0].header.base_offset,
            ours.last().unwrap().header.next_offset()
        ),
        (770, end)
    );
    assert!(
        theirs
            .iter()
            .zip(&ours)
            .all(|(a, b)| a.bytes[61..] == b.bytes[61..])
    );
    // Retention goes on at the source while the mirror runs, and takes all in the end.
    for start in [845, end] {
        delete_before(start).await;
        wait_for("the source's log start is followed", async || {
            log_starts(&to, "seeded").await == [start, 0]
        })
        .await;
    }
    running.end().await;
    // A start from an empty log whose offsets go on.
    let running = Running::start(link_options("seeded", source, destination, &["seeded"]));
    append_some(&from, "seeded", 0, 5).await;
    running.wait_caught_up(&from, "seeded").await;
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn seeding_goes_on_after_a_restart_and_filler_is_deleted() {
    const BATCH: i64 = 90_000;
    let (source, destination) = clusters();
    source.create_topic("far", 1, &[]).unwrap();
    let (from, to) = (connect(source).await, connect(destination).await);
    let nulls = batch(&vec![Record::default(); BATCH as usize], PLAIN);
    for _ in 0..15 {
        append(&from, "far", 0, &nulls).await.unwrap();
    }
    let start = 14 * BATCH;
    let far = standfast_wire::TopicPartition::new("far", 0);
    from.delete_records(&[(far, start)]).await[0]
        .1
        .as_ref()
        .unwrap();
    append_some(&from, "far", 0, 10).await;
    let running = Running::start(link_options("far", source, destination, &["far"]));
    running
        .wait("seeding", |link| {
            link.mirrors[0].mirror_lags.first().is_some_and(|p| {
                p.state == PartitionState::Seeding && p.last_source_fetch_offset > 0
            })
        })
        .await;
    running.end().await;
    let seeded = log_ends(&to, "far").await[0];
    assert!(seeded > 0 && seeded < start, "{seeded}");
    let running = Running::start(link_options("far", source, destination, &["far"]));
    running.wait_caught_up(&from, "far").await;
    assert_eq!(log_starts(&to, "far").await, [start]);
    assert_identical(&from, &to, "far").await;
    running.end().await;
    // Nothing but filler and its deletion, then a start: still the same log.
    let running = Running::start(link_options("far", source, destination, &["far"]));
    append_some(&from, "far", 0, 10).await;
    running.wait_caught_up(&from, "far").await;
    assert_identical(&from, &to, "far").await;
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_topic_that_is_created_again_or_cut_is_not_mirrored_on() {
    let (source, destination) = clusters();
    source.create_topic("again", 1, &[]).unwrap();
    source.create_topic("emptied", 1, &[]).unwrap();
    let (from, to) = (connect(source).await, connect(destination).await);
    append_some(&from, "again", 0, 5).await;
    append_some(&from, "emptied", 0, 5).await;
    let options = || link_options("again", source, destination, &["again", "emptied"]);
    let running = Running::start(options());
    running.wait_caught_up(&from, "again").await;
    running.wait_caught_up(&from, "emptied").await;
    source.delete_topic("again").unwrap();
    source.create_topic("again", 1, &[]).unwrap();
    append_some(&from, "again", 0, 20).await;
    running
        .wait("another topic id", |link| {
            link.mirrors[0].mirror_topic_error == MirrorTopicError::SourceTopicIdChanged
        })
        .await;
    running.end().await;
    // The source's retention takes all, also the last mirrored batch: mirroring goes on from there.
    let emptied = standfast_wire::TopicPartition::new("emptied", 0);
    from.delete_records(&[(emptied.clone(), 50)]).await[0]
        .1
        .as_ref()
        .unwrap();
    let running = Running::start(options());
    running
        .wait("another log", |link| {
            link.mirrors[0].mirror_topic_error == MirrorTopicError::Diverged
        })
        .await;
    append_some(&from, "emptied", 0, 1).await;
    running
        .wait("mirrored on", |link| {
            link.mirrors[1].mirror_lags[0].destination_log_end_offset == Some(60)
        })
        .await;
    running.end().await;
    assert_eq!(log_ends(&to, "again").await, [50]);
    // Retention overtakes the mirror: what is gone is named, nothing is skipped.
    append_some(&from, "emptied", 0, 2).await;
    from.delete_records(&[(emptied, 80)]).await[0]
        .1
        .as_ref()
        .unwrap();
    let running = Running::start(options());
    running
        .wait("retention", |link| {
            link.mirrors[1].mirror_topic_error == MirrorTopicError::UnexpectedTruncation
        })
        .await;
    let error = running.handle.describe().mirrors[1].mirror_lags[0]
        .error
        .clone()
        .unwrap();
    assert!(error.contains("60 to 79"), "{error}");
    assert_eq!(log_ends(&to, "emptied").await, [60]);
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_the_destination_refuses_fails_its_partition_only() {
    let (source, destination) = clusters();
    source
        .create_topic("large", 2, &[("max.message.bytes", "2000000")])
        .unwrap();
    // A batch has to fit a segment of the log.
    let small = [
        ("max.message.bytes", "2000000"),
        ("segment.bytes", "1048576"),
    ];
    destination.create_topic("large", 2, &small).unwrap();
    let (from, to) = (connect(source).await, connect(destination).await);
    append_some(&from, "large", 0, 3).await;
    append(
        &from,
        "large",
        0,
        &batch(&[Record::new("k", vec![1; 1_500_000])], PLAIN),
    )
    .await
    .unwrap();
    append_some(&from, "large", 0, 3).await;
    append_some(&from, "large", 1, 3).await;
    let mut options = link_options("large", source, destination, &["large"]);
    options.config_exclude = vec!["segment.bytes".to_owned()];
    let running = Running::start(options);
    running
        .wait("refused", |link| {
            link.mirrors[0].mirror_topic_error == MirrorTopicError::DestinationRefused
        })
        .await;
    running
        .wait("the other partition", |link| {
            link.mirrors[0].mirror_lags[1].destination_log_end_offset == Some(30)
        })
        .await;
    assert_eq!(log_ends(&to, "large").await, [30, 30]);
    assert!(
        running
            .partition(0)
            .unwrap()
            .error
            .is_some_and(|e| e.contains("offset 30") && e.contains("segment.bytes"))
    );
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_are_created_like_the_source_and_grow_with_it() {
    let (source, destination) = clusters();
    source
        .create_topic(
            "grows",
            2,
            &[("retention.ms", "123456789"), ("segment.bytes", "10485760")],
        )
        .unwrap();
    let (from, to) = (connect(source).await, connect(destination).await);
    append_some(&from, "grows", 1, 2).await;
    let running = Running::start(link_options("grows", source, destination, &["grows"]));
    running.wait_caught_up(&from, "grows").await;
    let configs = to
        .describe_configs(&[standfast_wire::admin::ConfigResource::Topic(
            "grows".to_owned(),
        )])
        .await
        .unwrap();
    let configs = configs[0].1.as_ref().unwrap();
    let value = |name: &str| {
        configs
            .iter()
            .find(|c| c.name == name)
            .and_then(|c| c.value.clone())
    };
    assert_eq!(value("retention.ms").as_deref(), Some("123456789"));
    assert_eq!(value("segment.bytes").as_deref(), Some("10485760"));
    assert_eq!(value("compression.type").as_deref(), Some("producer"));
    from.create_partitions(&[("grows", 5)]).await.unwrap();
    append_some(&from, "grows", 4, 2).await;
    running
        .wait("grown", |link| link.mirrors[0].num_partitions == 5)
        .await;
    running.wait_caught_up(&from, "grows").await;
    assert_identical(&from, &to, "grows").await;
    running.end().await;

    destination.create_topic("other-count", 3, &[]).unwrap();
    source.create_topic("other-count", 2, &[]).unwrap();
    let running = Running::start(link_options("grows", source, destination, &["other-count"]));
    running
        .wait("refused", |link| {
            link.mirrors[0].mirror_status == MirrorStatus::Failed
        })
        .await;
    assert!(
        running.handle.describe().mirrors[0]
            .error
            .as_ref()
            .is_some_and(|e| e.contains("2 partitions") && e.contains('3'))
    );
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn group_offsets_are_carried_over() {
    use standfast_wire::TopicPartition;
    use standfast_wire::admin::CommittedOffset;
    let (source, destination) = clusters();
    source.create_topic("grouped", 2, &[]).unwrap();
    let (from, to) = (connect(source).await, connect(destination).await);
    append_some(&from, "grouped", 0, 3).await;
    let commit = |offset| {
        (
            TopicPartition::new("grouped", 0),
            CommittedOffset {
                offset,
                leader_epoch: 0,
                metadata: "m".to_owned(),
            },
        )
    };
    let mut options = link_options("grouped", source, destination, &["grouped"]);
    options.groups = vec!["billing".to_owned()];
    options.group_sync_interval = Duration::from_secs(1);
    let running = Running::start(options);
    // Committed only now: before the copy has caught up it would be carried over clamped first, and counted twice.
    running.wait_caught_up(&from, "grouped").await;
    from.offset_commit("billing", &[commit(17)]).await.unwrap();
    let carried = async || {
        let offsets = to.offset_fetch("billing").await.unwrap();
        offsets
            .into_iter()
            .find(|(id, _)| id.partition == 0)
            .map(|(_, c)| c.unwrap())
    };
    wait_for("carried over", || async {
        carried()
            .await
            .is_some_and(|c| c.offset == 17 && c.metadata == "m")
    })
    .await;
    // Backwards on the source is backwards on the destination; beyond the log end is clamped.
    from.offset_commit("billing", &[commit(5)]).await.unwrap();
    wait_for("went back", || async {
        carried().await.is_some_and(|c| c.offset == 5)
    })
    .await;
    from.offset_commit("billing", &[commit(99)]).await.unwrap();
    wait_for("clamped", || async {
        carried().await.is_some_and(|c| c.offset == 30)
    })
    .await;
    // Counted only after the destination has taken it.
    running
        .wait("counted", |link| {
            link.groups[0].error.is_none() && link.groups[0].committed_offsets == 3
        })
        .await;
    // A stop of what was well leaves no error behind.
    let stopped = running.handle.stop_mirrors(Duration::from_secs(5)).await;
    assert!(stopped.unwrap().iter().all(|partition| partition.drained));
    let mirror = running.handle.describe().mirrors.remove(0);
    assert!(
        mirror.mirror_lags.iter().all(|lag| lag.error.is_none()),
        "{mirror:?}"
    );
    running.end().await;
}
