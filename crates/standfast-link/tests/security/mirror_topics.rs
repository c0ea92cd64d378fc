//! Mirror topics that the link's user may not create, or change, for a while.

use std::collections::BTreeMap;

use standfast_link::{
    Lifecycle, MirrorStatus, RestoreExport, RestoreMode, RestoreOptions, RestorePhase,
};
use standfast_wire::admin::ConfigResource;

use super::support::{PLAIN, alter, append};
use super::*;

async fn config(cluster: &Cluster, topic: &str, name: &str) -> String {
    let asked = [ConfigResource::Topic(topic.to_owned())];
    let described = cluster.describe_configs(&asked).await.expect("an answer");
    let configs = described.into_iter().next().expect("one").1.expect("known");
    let found = configs.into_iter().find(|c| c.name == name);
    found.and_then(|c| c.value).expect("a value")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_may_not_be_raised_stops_its_partition_until_it_may() {
    let _granted = PERMISSIONS.read().await;
    let World {
        source,
        destination,
        ..
    } = world();
    let (from, to) = (connect(source).await, connect(destination).await);
    grant(&from, &source_acls("limit-")).await;
    grant(&to, &destination_acls("limit-")).await;
    let topic = "limit-a";
    source.create_topic(topic, 2, &[]).expect("created");
    let small = [("max.message.bytes", "10000")];
    destination.create_topic(topic, 2, &small).expect("created");
    let large = batch(&[Record::new("k", vec![1; 50_000])], PLAIN);
    append(&from, topic, 0, &large).await.expect("appended");
    append_some(&from, topic, 1, 3).await;
    // The source itself would not take it any more, so that only the batch asks for a larger limit.
    alter(&from, topic, &[("max.message.bytes", Some("20000"))]).await;
    // It may read configs, but not change them.
    let named = |operation| {
        allow(
            AclResource::Topic,
            AclPattern::Prefixed,
            "limit-",
            operation,
        )
    };
    let alter = named(Op::AlterConfigs);
    grant(&to, &[named(Op::DescribeConfigs)]).await;
    revoke(&to, std::slice::from_ref(&alter)).await;
    let (mut options, _) = link("limit-", &[topic]);
    options.groups = Vec::new();
    let running = Running::start(options);
    let at = |link: &LinkDescription, partition: usize| {
        let lags = &link.mirrors[0].mirror_lags;
        lags.get(partition)
            .and_then(|p| p.destination_log_end_offset)
    };
    running
        .wait("one is refused, the other mirrors", |link| {
            let mirror = &link.mirrors[0];
            mirror.mirror_topic_error == MirrorTopicError::AuthorizationError
                && at(link, 1) == Some(30)
        })
        .await;
    let error = running.partition(0).and_then(|p| p.error).expect("why");
    for part in ["offset 0", "max.message.bytes (10000)", "ALTER_CONFIGS"] {
        assert!(error.contains(part), "{error}");
    }
    append_some(&from, topic, 1, 3).await;
    running
        .wait("the other goes on", |link| at(link, 1) == Some(60))
        .await;
    assert_eq!(log_ends(&to, topic).await, [0, 60]);
    grant(&to, &[alter]).await;
    running.wait_caught_up(&from, topic).await;
    assert_identical(&from, &to, topic).await;
    let limit = config(&to, topic, "max.message.bytes").await;
    assert!(limit.parse::<i64>().expect("a number") > 50_000, "{limit}");
    running
        .wait("no refusal is left", |link| refusals(link).is_empty())
        .await;
    running.end().await;
}

/// Its own configs are kept from before the deletion, and the next engine takes the restore up, whatever hindered the first one.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_may_not_be_created_again_gets_its_own_configs_when_it_may() {
    let _granted = PERMISSIONS.read().await;
    let World {
        source,
        destination,
        ..
    } = world();
    let (from, to) = (connect(source).await, connect(destination).await);
    grant(&from, &source_acls("again-")).await;
    grant(&to, &destination_acls("again-")).await;
    let topic = "again-a";
    source
        .create_topic(topic, 1, &[("retention.ms", "800000000")])
        .expect("created");
    let own = [("retention.ms", "700000000"), ("segment.bytes", "20000000")];
    destination.create_topic(topic, 1, &own).expect("created");
    append_some(&from, topic, 0, 3).await;
    let lost = batch(&[Record::new("k", "lost")], PLAIN);
    append(&to, topic, 0, &lost).await.expect("appended");
    let (mut options, _) = link("again-", &[topic]);
    options.groups = Vec::new();
    options.config_exclude = ["retention.ms", "segment.bytes"].map(str::to_owned).into();
    let lifecycle = options.lifecycle.clone();
    let create = allow(
        AclResource::Topic,
        AclPattern::Prefixed,
        "again-",
        Op::Create,
    );
    revoke(&to, std::slice::from_ref(&create)).await;
    let running = Running::start(options.clone());
    running
        .wait("FAILED", |link| {
            link.mirrors[0].mirror_status == MirrorStatus::Failed
        })
        .await;
    let folder = tempfile::tempdir().expect("a folder");
    let how = RestoreOptions {
        mode: RestoreMode::Full,
        export: RestoreExport::File(folder.path().join("lost.jsonl")),
        hints: BTreeMap::new(),
        dry_run: false,
    };
    let done = running.handle.restore(&[topic], &how).await.remove(0);
    let text = done.change.error_message.unwrap_or_default();
    assert!(text.contains("could not be created again"), "{text}");
    assert!(text.contains("exported to"), "{text}");
    let phase = Some(RestorePhase::PendingSetupForRestore);
    assert_eq!(lifecycle.restore_phase(topic), phase);
    let gone = to.topics(&[topic]).await.expect("metadata");
    assert!(
        gone.topics
            .get(topic)
            .is_none_or(|t| t.partitions.is_empty())
    );
    running.end().await;

    // Another process, which knows what the agent has kept.
    let kept = serde_json::to_string(&lifecycle.state()).expect("JSON");
    options.lifecycle = Lifecycle::new(serde_json::from_str(&kept).expect("JSON"));
    let lifecycle = options.lifecycle.clone();
    let running = Running::start(options);
    let refused = |link: &LinkDescription| {
        let error = link.mirrors[0].error.as_deref().unwrap_or_default();
        error.contains("could not be created again")
    };
    running.wait("tried again, and refused", refused).await;
    grant(&to, &[create]).await;
    running.wait_caught_up(&from, topic).await;
    assert_identical(&from, &to, topic).await;
    wait_for("restored", || async {
        lifecycle.restore_phase(topic).is_none()
    })
    .await;
    for (name, value) in own {
        assert_eq!(config(&to, topic, name).await, value);
    }
    running.end().await;
}
