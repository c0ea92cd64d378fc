//! Group membership against a real Apache Kafka broker: what the link's agents rest upon when they share a link.
#![allow(clippy::unwrap_used)] // a test

use std::time::{Duration, Instant};

use bytes::Bytes;
use standfast_servers::KafkaCluster;
use standfast_wire::{
    Cluster, ClusterOptions, Error, GroupAssignment, GroupOptions, GroupSession, HostPort,
    JoinedGroup, ResponseError,
};

const PATIENCE: Duration = Duration::from_secs(30);
const SESSION: Duration = Duration::from_secs(6);

fn group() -> GroupOptions {
    GroupOptions {
        group: "standfast-test".to_owned(),
        protocol_type: "standfast",
        protocol: "v1",
        session_timeout: SESSION,
        rebalance_timeout: SESSION,
    }
}

/// The offsets topic may still be being created.
async fn open(cluster: &Cluster) -> GroupSession {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match cluster.open_group(group()).await {
            Ok(session) => return session,
            Err(error) => assert!(error.is_retriable() && Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn join(session: &GroupSession, id: &str, says: &'static [u8]) -> JoinedGroup {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match session.join(id, Bytes::from_static(says)).await {
            Ok(joined) => return joined,
            Err(error) => assert!(error.is_retriable() && Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn give(joined: &JoinedGroup) -> Vec<GroupAssignment> {
    let each = joined.members.iter().map(|member| GroupAssignment {
        member_id: member.member_id.clone(),
        assignment: Bytes::from([b"for ", &member.metadata[..]].concat()),
    });
    each.collect()
}

fn code(result: Result<(), Error>) -> Option<ResponseError> {
    result.err().and_then(|error| error.code())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_assigns_beats_rebalances_and_is_no_consumer_group() {
    let kafka = KafkaCluster::builder("groups")
        .heap_mb(256)
        .start()
        .unwrap();
    let cluster = Cluster::connect(ClusterOptions::new(
        HostPort::parse_list(&kafka.bootstrap()).unwrap(),
    ))
    .await
    .unwrap();
    let first = open(&cluster).await;
    let a = join(&first, "", b"one").await;
    assert!(a.is_leader && a.members.len() == 1, "{a:?}");
    let mine = first
        .sync(&a.member_id, a.generation, give(&a))
        .await
        .unwrap();
    assert_eq!(&mine[..], b"for one");
    first.heartbeat(&a.member_id, a.generation).await.unwrap();

    // A second one joins: the first learns of it by its heartbeat, which keeps it alive, also while its join is held back.
    let second = open(&cluster).await;
    let joining = tokio::spawn({
        let second = second.clone();
        async move { join(&second, "", b"two").await }
    });
    let deadline = Instant::now() + PATIENCE;
    while code(first.heartbeat(&a.member_id, a.generation).await)
        != Some(ResponseError::RebalanceInProgress)
    {
        assert!(Instant::now() < deadline, "no rebalance");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let a = join(&first, &a.member_id, b"one").await;
    let b = joining.await.unwrap();
    assert_eq!(a.generation, b.generation);
    assert!(a.is_leader && !b.is_leader && a.members.len() == 2 && b.members.is_empty());
    let waiting = second.sync(&b.member_id, b.generation, Vec::new());
    let (leader, follower) =
        tokio::join!(first.sync(&a.member_id, a.generation, give(&a)), waiting);
    assert_eq!(&leader.unwrap()[..], b"for one");
    assert_eq!(&follower.unwrap()[..], b"for two");

    // It is shown to tools as a group of its own kind, and never carried over as a consumer group.
    assert!(
        !cluster
            .list_groups()
            .await
            .unwrap()
            .contains(&group().group)
    );
    assert_eq!(
        cluster
            .describe_group(&group().group)
            .await
            .unwrap()
            .members
            .len(),
        2
    );

    // One leaves: the other goes on alone.
    first.leave(&a.member_id).await.unwrap();
    assert_eq!(
        code(first.heartbeat(&a.member_id, a.generation).await),
        Some(ResponseError::UnknownMemberId)
    );
    let b = join(&second, &b.member_id, b"two").await;
    assert!(b.is_leader && b.members.len() == 1, "{b:?}");
    second
        .sync(&b.member_id, b.generation, give(&b))
        .await
        .unwrap();

    // One that falls silent is out after its session.
    let silent_since = Instant::now();
    let back = join(&first, "", b"three").await;
    assert!(
        silent_since.elapsed() >= SESSION - Duration::from_secs(1),
        "{:?}",
        silent_since.elapsed()
    );
    assert_eq!((back.is_leader, back.members.len()), (true, 1));
    assert_eq!(
        code(second.heartbeat(&b.member_id, b.generation).await),
        Some(ResponseError::UnknownMemberId)
    );
}
