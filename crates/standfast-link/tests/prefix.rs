//! Mirrors under another name: the source's with a prefix in front. And what becomes of a mirror whose source topic is deleted.

#[path = "support/payer.rs"]
mod payer;
mod support;

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::Duration;

use payer::write_transactions;
use standfast_link::{
    Filter, FilterType, Lifecycle, Link, LinkOptions, MirrorStart, MirrorStatus, MirrorTopicError,
    PartitionState, PatternType, RestoreExport, RestoreMode, RestoreOptions, SharingOptions,
    TopicPrefix, TransitionErrorCode, VerifyOptions, VerifyResult, verify,
};
use standfast_servers::KafkaCluster;
use standfast_wire::admin::CommittedOffset;
use standfast_wire::{Cluster, TopicPartition};
use support::*;

const SOON: Duration = Duration::from_secs(30);

fn clusters() -> &'static (KafkaCluster, KafkaCluster) {
    static CLUSTERS: OnceLock<(KafkaCluster, KafkaCluster)> = OnceLock::new();
    CLUSTERS.get_or_init(|| {
        let eu = KafkaCluster::builder("eu")
            .heap_mb(256)
            .property("log.cleaner.backoff.ms", "100")
            .start()
            .expect("a Kafka cluster");
        (eu, kafka("us"))
    })
}

fn prefix(text: &str) -> TopicPrefix {
    TopicPrefix::new(text).expect("a prefix")
}

fn filter(name: &str, pattern_type: PatternType) -> Filter {
    Filter {
        name: name.to_owned(),
        pattern_type,
        filter_type: FilterType::Include,
    }
}

/// The cluster with its topics under their mirrors' names.
async fn as_mirrored(cluster: &KafkaCluster, text: &str) -> Cluster {
    let mut options = options(cluster);
    options.topic_prefix = prefix(text);
    Cluster::connect(options).await.expect("a connection")
}

async fn commit(cluster: &Cluster, group: &str, topic: &str, offset: i64) {
    let committed = CommittedOffset {
        offset,
        leader_epoch: -1,
        metadata: "note".to_owned(),
    };
    let ids = [(TopicPartition::new(topic, 0), committed)];
    for (_, result) in cluster.offset_commit(group, &ids).await.expect("an answer") {
        result.expect("committed");
    }
}

async fn committed(cluster: &Cluster, group: &str) -> BTreeMap<String, i64> {
    let offsets = cluster.offset_fetch(group).await.expect("an answer");
    let known = offsets.into_iter().filter_map(|(id, found)| {
        let offset = found.ok()?.offset;
        (offset >= 0).then(|| (id.to_string(), offset))
    });
    known.collect()
}

async fn topic_names(cluster: &Cluster, part: &str) -> Vec<String> {
    let all = cluster.all_topics().await.expect("an answer").topics;
    let names = all.keys().filter(|name| name.contains(part));
    names.map(ToString::to_string).collect()
}

/// Ten keys over and over, until the cleaner has emptied the beginning of the log.
async fn write_compacted(cluster: &Cluster, topic: &str) {
    wait_for("compacted", || async {
        append_some(cluster, topic, 0, 5).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let fetched = cluster.fetch_batches(topic, 0, 10, 1).await;
        let first = fetched.expect("an answer").batches.into_iter().next();
        first.is_some_and(|batch| batch.header.base_offset > 20)
    })
    .await;
}

async fn assert_verified(topic: &str, mirror: &str) {
    let (eu, us) = clusters();
    // The cleaner works on, so a hole may grow meanwhile; it is compared as such.
    let report = verify(
        VerifyOptions {
            source: options(eu),
            destination: options(us),
            source_topic: topic.to_owned(),
            mirror_topic: mirror.to_owned(),
            partition: None,
            from: None,
            to: None,
        },
        |_| {},
    );
    let report = report.await.expect("a report");
    assert_ne!(report.result, VerifyResult::Different, "{report:#?}");
    assert_eq!(report.partitions[0].only_on_source, 0, "{report:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_with_a_prefix_is_the_mirror_that_it_would_be_without() {
    let (eu, us) = clusters();
    let (from, to) = (connect(eu).await, connect(us).await);
    let view = as_mirrored(eu, "eu.").await;
    let compact = [
        ("cleanup.policy", "compact"),
        ("min.cleanable.dirty.ratio", "0.01"),
        ("segment.ms", "200"),
    ];
    eu.create_topic("orders", 2, &[("retention.ms", "400000000")])
        .unwrap();
    eu.create_topic("ledger", 1, &[]).unwrap();
    eu.create_topic("stamped", 1, &[("message.timestamp.type", "LogAppendTime")])
        .unwrap();
    eu.create_topic("compacted", 1, &compact).unwrap();
    eu.create_topic("late", 1, &[]).unwrap();
    append_some(&from, "late", 0, 3).await;
    append_some(&from, "orders", 0, 40).await;
    append_some(&from, "stamped", 0, 5).await;
    write_compacted(&from, "compacted").await;
    write_transactions(&from, "ledger").await;
    commit(&from, "billing", "orders", 7).await;

    let lifecycle = Lifecycle::default();
    let options = || {
        let topics = ["orders", "ledger", "stamped", "compacted"];
        let mut options = link_options("eu-us", eu, us, &topics);
        options.prefix = prefix("eu.");
        options.topic_filters = vec![filter("lat", PatternType::Prefixed)];
        options.topic_starts = BTreeMap::from([("late".to_owned(), MirrorStart::Latest)]);
        options.groups = vec!["billing".to_owned()];
        options.group_sync_interval = Duration::from_secs(1);
        options.lifecycle = lifecycle.clone();
        options
    };
    let mirrors = ["orders", "ledger", "stamped", "compacted", "late"];
    let running = Running::start(options());
    for topic in mirrors {
        running.wait_caught_up(&view, &format!("eu.{topic}")).await;
    }
    for mirror in running.handle.describe().mirrors {
        let name = format!("eu.{}", mirror.source_topic_name);
        assert_eq!(mirror.mirror_topic_name, name);
    }
    assert!(topic_names(&to, "").await.iter().all(|t| t != "orders"));
    assert_eq!(log_starts(&to, "eu.late").await, [30]);
    wait_for("group offsets", || async {
        committed(&to, "billing").await == BTreeMap::from([("eu.orders-0".to_owned(), 7)])
    })
    .await;

    // The engine starts again inside the logs; the source grows by records, a transaction and a partition.
    running.end().await;
    append_some(&from, "orders", 1, 20).await;
    write_transactions(&from, "ledger").await;
    for (_, grown) in from.create_partitions(&[("orders", 3)]).await.unwrap() {
        grown.unwrap();
    }
    wait_for("the partition has a leader", || async {
        from.leader("orders", 2).await.is_ok()
    })
    .await;
    append_some(&from, "orders", 2, 5).await;
    append_some(&from, "stamped", 0, 5).await;
    append_some(&from, "compacted", 0, 5).await;
    let running = Running::start(options());
    view.refresh_metadata().await.unwrap();
    for topic in mirrors {
        running.wait_caught_up(&view, &format!("eu.{topic}")).await;
    }
    for topic in ["eu.orders", "eu.ledger"] {
        assert_identical(&view, &to, topic).await;
    }
    for topic in ["compacted", "stamped"] {
        assert_verified(topic, &format!("eu.{topic}")).await;
    }

    // Commands know mirrors by their own names.
    let refused = running.handle.create(&["new"], SOON).await;
    assert_eq!(
        refused[0].error_code,
        Some(TransitionErrorCode::InvalidTopic)
    );
    let text = refused[0].error_message.clone().unwrap_or_default();
    assert!(text.contains("\"eu.new\""), "{text}");
    eu.create_topic("new", 1, &[]).unwrap();
    append_some(&from, "new", 0, 2).await;
    let created = running.handle.create(&["eu.new"], SOON).await;
    assert_eq!(created[0].error_code, None, "{created:?}");
    assert_eq!(created[0].source_topic_name, "new");
    running.wait_caught_up(&view, "eu.new").await;
    let paused = running.handle.pause(&["eu.new"]).await;
    assert_eq!(paused[0].mirror_status, MirrorStatus::Paused, "{paused:?}");
    commit(&from, "billing", "orders", 9).await;
    let promoted = running.handle.promote(&["eu.orders"], SOON).await;
    assert_eq!(promoted[0].error_code, None, "{promoted:?}");
    assert_eq!(promoted[0].warnings, Vec::<String>::new());
    assert_eq!(committed(&to, "billing").await["eu.orders-0"], 9);
    append_some(&to, "eu.orders", 0, 1).await;
    running.end().await;
    wrong_prefix(options());
}

/// A link that began with a prefix goes on with that one only.
fn wrong_prefix(options: LinkOptions) {
    for other in [TopicPrefix::default(), prefix("europe.")] {
        let mut options = options.clone();
        options.prefix = other;
        let error = Link::new(options).expect_err("refused").to_string();
        assert!(
            error.contains("with the prefix \"eu.\"") && error.contains("put the prefix back"),
            "{error}"
        );
    }
    assert!(Link::new(options).is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_links_with_prefixes_carry_nothing_round_in_a_circle() {
    let (eu, us) = clusters();
    let (at_eu, at_us) = (connect(eu).await, connect(us).await);
    for (cluster, at) in [(eu, &at_eu), (us, &at_us)] {
        cluster.create_topic("pair", 1, &[]).unwrap();
        append_some(at, "pair", 0, 5).await;
        commit(at, "pairing", "pair", 20).await;
    }
    append_some(&at_us, "pair", 0, 5).await;
    // Both would take the other one's mirrors.
    let both = |name: &str, from: &KafkaCluster, to: &KafkaCluster, text: &str| {
        let mut options = link_options(name, from, to, &[]);
        options.prefix = prefix(text);
        options.prefix_groups = true;
        options.topic_filters = ["pair", "east.", "west."]
            .map(|name| filter(name, PatternType::Prefixed))
            .to_vec();
        options.group_filters = vec![filter("*", PatternType::Literal)];
        options.group_sync_interval = Duration::from_secs(1);
        options.metadata_refresh = Duration::from_millis(300);
        options
    };
    let there = Running::start(both("pair-there", eu, us, "east."));
    let back = Running::start(both("pair-back", us, eu, "west."));
    let (eu_view, us_view) = (
        as_mirrored(eu, "east.").await,
        as_mirrored(us, "west.").await,
    );
    there.wait_caught_up(&eu_view, "east.pair").await;
    back.wait_caught_up(&us_view, "west.pair").await;
    assert_identical(&eu_view, &at_us, "east.pair").await;
    assert_identical(&us_view, &at_eu, "west.pair").await;
    for (at, group, offset) in [
        (&at_us, "east.pairing", ("east.pair-0".to_owned(), 20)),
        (&at_eu, "west.pairing", ("west.pair-0".to_owned(), 20)),
    ] {
        wait_for(group, || async {
            committed(at, group).await == BTreeMap::from([offset.clone()])
        })
        .await;
    }

    // Both links have looked at the other's mirrors when they find what came after them.
    eu.create_topic("pair-later", 1, &[]).unwrap();
    us.create_topic("pair-later", 1, &[]).unwrap();
    there.wait_caught_up(&eu_view, "east.pair-later").await;
    back.wait_caught_up(&us_view, "west.pair-later").await;
    eu.create_topic("pair-last", 1, &[]).unwrap();
    us.create_topic("pair-last", 1, &[]).unwrap();
    there.wait_caught_up(&eu_view, "east.pair-last").await;
    back.wait_caught_up(&us_view, "west.pair-last").await;
    let mine = ["pair", "pair-last", "pair-later"].map(str::to_owned);
    for (at, other) in [(&at_eu, "west."), (&at_us, "east.")] {
        let mirrors = mine.iter().map(|name| format!("{other}{name}"));
        let mut expected: Vec<String> = mine.iter().cloned().chain(mirrors).collect();
        expected.sort();
        assert_eq!(topic_names(at, "pair").await, expected);
    }
    assert_eq!(topic_names(&at_us, "offsets").await.len(), 1);
    assert_eq!(
        committed(&at_eu, "west.east.pairing").await,
        BTreeMap::new()
    );

    // Unless it is asked for by its whole name.
    let mut wider = both("pair-there", eu, us, "east.");
    let named = filter("west.pair", PatternType::Literal);
    wider.topic_filters.push(named);
    assert!(there.handle.update(&wider).unwrap());
    there.wait_caught_up(&eu_view, "east.west.pair").await;
    assert_identical(&eu_view, &at_us, "east.west.pair").await;
    assert_eq!(topic_names(&at_us, "east.west").await, ["east.west.pair"]);
    there.end().await;
    back.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_source_topic_leaves_its_mirror_as_it_is() {
    let (eu, us) = clusters();
    let (from, to) = (connect(eu).await, connect(us).await);
    let view = as_mirrored(eu, "gone.").await;
    let topics = ["deleted", "handed-over", "created-again", "stays"];
    for topic in topics {
        eu.create_topic(topic, 1, &[]).unwrap();
        append_some(&from, topic, 0, 5).await;
    }
    let mut options = link_options("gone", eu, us, &topics);
    options.prefix = prefix("gone.");
    options.metadata_refresh = Duration::from_millis(500);
    let running = Running::start(options.clone());
    for topic in topics {
        running
            .wait_caught_up(&view, &format!("gone.{topic}"))
            .await;
    }
    for topic in &topics[..3] {
        eu.delete_topic(topic).unwrap();
    }
    // It says so, by the name that the source's operator knows, and waits; the others go on.
    running
        .wait("all three are missed", |link| {
            let waits = |m: &&standfast_link::MirrorDescription| {
                m.mirror_topic_error == MirrorTopicError::SourceTopicMayBeDeleted
                    && m.mirror_status == MirrorStatus::SourceUnavailable
                    && m.error
                        .as_ref()
                        .is_some_and(|e| e.contains(&format!("{:?}", m.source_topic_name)))
            };
            link.mirrors.iter().filter(waits).count() == 3
        })
        .await;
    append_some(&from, "stays", 0, 5).await;
    running.wait_caught_up(&view, "gone.stays").await;

    // Under the same name comes another topic: its records are not put behind those of the old one, not even after a resume.
    eu.create_topic("created-again", 1, &[]).unwrap();
    append_some(&from, "created-again", 0, 8).await;
    let failed = |error: MirrorTopicError| {
        move |link: &standfast_link::LinkDescription| {
            link.mirrors[2].mirror_status == MirrorStatus::Failed
                && link.mirrors[2].mirror_topic_error == error
        }
    };
    running
        .wait("another id", failed(MirrorTopicError::SourceTopicIdChanged))
        .await;
    running.handle.resume(&["gone.created-again"]).await;
    running
        .wait("another log", failed(MirrorTopicError::Diverged))
        .await;

    // An engine that starts without the topics leaves the mirrors as they are, too.
    running.end().await;
    let running = Running::start(options);
    running
        .wait("missed from the start", |link| {
            link.mirrors[..2]
                .iter()
                .all(|m| m.mirror_topic_error == MirrorTopicError::SourceTopicMayBeDeleted)
        })
        .await;
    for topic in &topics[..3] {
        let records = read_all(&to, &format!("gone.{topic}"), 0).await;
        let count: i32 = records.iter().map(|b| b.header.record_count).sum();
        assert_eq!(count, 50, "{topic}");
    }
    // Nobody can say whether the mirror holds all of a log that is gone.
    let promoted = running
        .handle
        .promote(&["gone.handed-over"], Duration::from_secs(2))
        .await;
    assert_eq!(
        promoted[0].error_code,
        Some(TransitionErrorCode::SourceUnavailable)
    );
    let text = promoted[0].error_message.clone().unwrap_or_default();
    assert!(
        text.contains("\"handed-over\"") && text.contains("use failover"),
        "{text}"
    );
    let stopped = running
        .handle
        .failover(
            &["gone.deleted", "gone.handed-over", "gone.created-again"],
            SOON,
        )
        .await;
    for change in stopped {
        assert_eq!(
            (change.error_code, change.mirror_status),
            (None, MirrorStatus::Stopped),
            "{change:?}"
        );
        // What is not the source's any more has no end that means anything there.
        let known = change.source_topic_name != "created-again";
        let end = change
            .mirror_lags
            .first()
            .and_then(|l| l.destination_log_end_offset);
        assert_eq!(end, known.then_some(50), "{change:?}");
        append_some(&to, &change.mirror_topic_name, 0, 1).await;
    }
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_way_of_a_mirror_is_told_and_can_be_put_right() {
    let (eu, us) = clusters();
    let (from, to) = (connect(eu).await, connect(us).await);
    let view = as_mirrored(eu, "way.").await;
    // As long as a topic name may be, and a name that is somebody else's on the destination.
    let long = format!("long-{}", "x".repeat(244));
    eu.create_topic(&long, 1, &[]).unwrap();
    eu.create_topic("taken", 1, &[]).unwrap();
    us.create_topic("way.taken", 1, &[]).unwrap();
    append_some(&from, "taken", 0, 5).await;
    append_some(&to, "way.taken", 0, 2).await;
    let mut options = link_options("way", eu, us, &["taken"]);
    options.prefix = prefix("way.");
    options.topic_filters = vec![filter("long-", PatternType::Prefixed)];
    let running = Running::start(options);
    let failed = |name: &'static str, error: MirrorTopicError, text: &'static str| {
        move |link: &standfast_link::LinkDescription| {
            let mut mirrors = link.mirrors.iter();
            mirrors.any(|m| {
                let of_partition = m.mirror_lags.iter().find_map(|l| l.error.clone());
                let told = m.error.clone().or(of_partition).unwrap_or_default();
                m.source_topic_name.starts_with(name)
                    && (m.mirror_status, m.mirror_topic_error) == (MirrorStatus::Failed, error)
                    && told.contains(text)
            })
        }
    };
    let refused = failed(
        "long-",
        MirrorTopicError::DestinationRefused,
        "253 characters",
    );
    running.wait("too long", refused).await;
    running
        .wait(
            "taken",
            failed("taken", MirrorTopicError::Diverged, "offsets 10 to 19"),
        )
        .await;
    assert_eq!(log_ends(&to, "way.taken").await, [20]);
    let folder = tempfile::tempdir().expect("a folder");
    let restore = RestoreOptions {
        mode: RestoreMode::Full,
        export: RestoreExport::Folder(folder.path().join("lost")),
        hints: BTreeMap::new(),
        dry_run: false,
    };
    let restored = running.handle.restore(&["way.taken"], &restore).await;
    assert_eq!(restored[0].change.error_code, None, "{restored:?}");
    assert_eq!(restored[0].messages_truncated, 20, "{restored:?}");
    running.wait_caught_up(&view, "way.taken").await;
    assert_identical(&view, &to, "way.taken").await;
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_link_has_a_prefix_like_any_other() {
    let (eu, us) = clusters();
    let (from, to) = (connect(eu).await, connect(us).await);
    let view = as_mirrored(eu, "ours.").await;
    eu.create_topic("spread", 4, &[]).unwrap();
    let start = |name: &str| {
        let mut options = link_options("ours", eu, us, &["spread"]);
        options.prefix = prefix("ours.");
        options.sharing = Some(SharingOptions::new(name));
        Running::start(options)
    };
    let (one, two) = (start("one"), start("two"));
    for engine in [&one, &two] {
        engine
            .wait("half of it each", |link| {
                let lags = link.mirrors.iter().flat_map(|m| &m.mirror_lags);
                let active = lags.filter(|lag| lag.state == PartitionState::Active);
                link.members.len() == 2 && active.count() == 2
            })
            .await;
    }
    for partition in 0..4 {
        append_some(&from, "spread", partition, 5).await;
    }
    two.end().await;
    append_some(&from, "spread", 3, 5).await;
    one.wait_caught_up(&view, "ours.spread").await;
    assert_identical(&view, &to, "ours.spread").await;
    one.end().await;
}
