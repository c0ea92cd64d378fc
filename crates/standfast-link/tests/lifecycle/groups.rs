//! The committed offsets of consumer groups.

use std::process::{Child, Stdio};

use super::*;

const CONSOLE_CONSUMER: &str = "org.apache.kafka.tools.consumer.ConsoleConsumer";

#[tokio::test(flavor = "multi_thread")]
async fn groups_are_found_by_filters_and_a_deleted_one_is_not_revived() {
    let (source, destination) = clusters();
    source.create_topic("grouped", 1, &[]).unwrap();
    let (from, to) = (connect(source).await, connect(destination).await);
    append_some(&from, "grouped", 0, 10).await;
    for group in ["team.a", "team.b", "team.not", "other"] {
        commit(&from, group, "grouped", 42).await;
    }
    let mut options = link_options("groups", source, destination, &["grouped"]);
    options.group_filters = vec![
        filter("team.", PatternType::Prefixed, FilterType::Include),
        filter("team.not", PatternType::Literal, FilterType::Exclude),
    ];
    options.group_sync_interval = Duration::from_secs(1);
    let running = Running::start(options);
    running.wait_caught_up(&from, "grouped").await;
    for group in ["team.a", "team.b"] {
        wait_for("carried over", || async {
            committed(&to, group).await == Some(42)
        })
        .await;
    }
    for group in ["team.not", "other"] {
        assert_eq!(committed(&to, group).await, None, "{group}");
    }

    // Deleted on both clusters: it stays deleted, and is no longer shown.
    for cluster in [source, destination] {
        delete_group(cluster, "team.a").await;
    }
    commit(&from, "team.b", "grouped", 50).await;
    wait_for("the others are carried over on", || async {
        committed(&to, "team.b").await == Some(50)
    })
    .await;
    running
        .wait("forgotten", |link| {
            link.groups.iter().map(|g| g.group.as_str()).eq(["team.b"])
        })
        .await;
    assert_eq!(committed(&to, "team.a").await, None);
    running.end().await;
}

async fn delete_group(cluster: &'static KafkaCluster, group: &str) {
    let group = group.to_owned();
    let output = tokio::task::spawn_blocking(move || {
        let bootstrap = cluster.bootstrap();
        let args = [
            "--bootstrap-server",
            &bootstrap,
            "--delete",
            "--group",
            &group,
        ];
        cluster
            .tool(
                "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
                &args,
            )
            .expect("the tool runs")
    });
    let output = output.await.expect("Kafka answers");
    assert!(output.status.success(), "{output:?}");
}

/// Kafka's own consumer with the new protocol (KIP-848).
fn consumer(cluster: &KafkaCluster, topic: &str, group: &str, more: &[&str]) -> Child {
    let bootstrap = cluster.bootstrap();
    let mut arguments = vec![
        "--bootstrap-server",
        &bootstrap,
        "--topic",
        topic,
        "--group",
        group,
    ];
    arguments.extend([
        "--from-beginning",
        "--consumer-property",
        "group.protocol=consumer",
    ]);
    arguments.extend(more);
    let mut command = cluster.tool_command(CONSOLE_CONSUMER, &arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
        .stderr(Stdio::null())
        .spawn()
        .expect("the tool runs")
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_of_the_new_protocol_are_carried_over_and_members_are_respected() {
    const GROUP: &str = "new-protocol";
    let (source, destination) = clusters();
    source.create_topic("kip848", 1, &[]).unwrap();
    let (from, to) = (connect(source).await, connect(destination).await);
    append_some(&from, "kip848", 0, 30).await;
    let end = log_ends(&from, "kip848").await[0];
    let count = end.to_string();
    let mut read = consumer(source, "kip848", GROUP, &["--max-messages", &count]);
    let ended = tokio::task::spawn_blocking(move || read.wait())
        .await
        .unwrap();
    assert!(ended.unwrap().success());
    assert_eq!(committed(&from, GROUP).await, Some(end));

    // The running link is told of the group.
    let mut options = link_options("kip848", source, destination, &["kip848"]);
    options.group_sync_interval = Duration::from_secs(1);
    let running = Running::start(options.clone());
    running.wait_caught_up(&from, "kip848").await;
    options.groups = vec![GROUP.to_owned()];
    assert!(running.handle.update(&options).unwrap());
    wait_for("carried over", || async {
        committed(&to, GROUP).await == Some(end)
    })
    .await;

    // Applications of the destination use the group: its offsets there are theirs.
    let mut member = consumer(destination, "kip848", GROUP, &[]);
    let in_use = |link: &standfast_link::LinkDescription| {
        let error = link.groups.iter().find_map(|group| group.error.clone());
        error.is_some_and(|text| text.contains("CONSUMER_GROUP_IN_USE_ERROR"))
    };
    running.wait("the member is seen", in_use).await;
    append_some(&from, "kip848", 0, 10).await;
    running.wait_caught_up(&from, "kip848").await;
    let more = log_ends(&from, "kip848").await[0];
    commit(&from, GROUP, "kip848", more).await;
    running.wait("still not touched", in_use).await;
    let stopped = std::process::Command::new("kill")
        .arg(member.id().to_string())
        .status();
    assert!(stopped.unwrap().success());
    tokio::task::spawn_blocking(move || member.wait())
        .await
        .unwrap()
        .unwrap();
    running
        .wait("carried over again", |link| {
            link.groups.iter().all(|group| group.error.is_none())
        })
        .await;
    wait_for("the new offset", || async {
        committed(&to, GROUP).await == Some(more)
    })
    .await;

    // What a running link does not take over changes nothing.
    options.topics = vec!["another".to_owned()];
    assert!(!running.handle.update(&options).unwrap());
    options.topics = vec!["kip848".to_owned()];
    options.memory_bytes *= 2;
    assert!(!running.handle.update(&options).unwrap());
    assert_eq!(running.handle.describe().mirrors.len(), 1);
    running.end().await;
}
