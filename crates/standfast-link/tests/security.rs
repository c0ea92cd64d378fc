//! A link whose users hold only the documented ACLs, on brokers with TLS, SCRAM and the authorizer; and what happens when one is refused.

#[path = "security/mirror_topics.rs"]
mod mirror_topics;
#[path = "support/secure.rs"]
mod secure;
mod support;

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use secure::*;
use standfast_link::{
    AclFilter, AclSyncOptions, LinkDescription, LinkName, LinkOptions, LinkState, MirrorTopicError,
    PartitionState, SharingOptions, VerifyOptions, VerifyResult, verify,
};
use standfast_servers::KafkaCluster;
use standfast_wire::admin::{
    AclBinding, AclOperation as Op, AclPattern, AclResource, CommittedOffset,
};
use standfast_wire::batch::ProducerStamp;
use standfast_wire::{Cluster, Connection, SharedLogin, TopicPartition};
use support::{
    Record, Running, Stamp, append_some, assert_identical, batch, connect, leader, log_ends,
    wait_for,
};

/// Brokers end a session after this time (KIP-368).
const SESSION: Duration = Duration::from_secs(6);
const GROUP: &str = "billing";

/// All tests share the clusters and the user. Held for writing while a permission is missing that the others need, or would grant again.
static PERMISSIONS: tokio::sync::RwLock<()> = tokio::sync::RwLock::const_new(());

struct World {
    authority: Authority,
    source: KafkaCluster,
    destination: KafkaCluster,
}

fn start(name: &str, authority: &Authority) -> KafkaCluster {
    builder(name, authority)
        .property(
            "connections.max.reauth.ms",
            &SESSION.as_millis().to_string(),
        )
        .start()
        .expect("a cluster")
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let authority = Authority::new();
        let (source, destination) = std::thread::scope(|scope| {
            let source = scope.spawn(|| start("secure-source", &authority));
            (
                source.join().expect("started"),
                start("secure-destination", &authority),
            )
        });
        World {
            authority,
            source,
            destination,
        }
    })
}

/// SECURITY.md, table "source cluster".
fn source_acls(topics: &str) -> Vec<AclBinding> {
    vec![
        allow(AclResource::Topic, AclPattern::Prefixed, topics, Op::Read),
        allow(
            AclResource::Topic,
            AclPattern::Prefixed,
            topics,
            Op::DescribeConfigs,
        ),
        allow(AclResource::Group, AclPattern::Literal, GROUP, Op::Describe),
        allow(
            AclResource::Cluster,
            AclPattern::Literal,
            "kafka-cluster",
            Op::Describe,
        ),
    ]
}

/// SECURITY.md, table "destination cluster".
fn destination_acls(topics: &str) -> Vec<AclBinding> {
    let topic = |operation| allow(AclResource::Topic, AclPattern::Prefixed, topics, operation);
    vec![
        topic(Op::Read),
        topic(Op::Write),
        topic(Op::Create),
        // It includes DESCRIBE_CONFIGS.
        topic(Op::AlterConfigs),
        topic(Op::Delete),
        topic(Op::Alter),
        allow(
            AclResource::TransactionalId,
            AclPattern::Literal,
            &format!("standfast-{topics}"),
            Op::Write,
        ),
        allow(
            AclResource::TransactionalId,
            AclPattern::Prefixed,
            &format!("standfast-{topics}/"),
            Op::Write,
        ),
        allow(AclResource::Group, AclPattern::Literal, GROUP, Op::Read),
        // The link's own group, in which its agents share it.
        allow(
            AclResource::Group,
            AclPattern::Literal,
            &format!("standfast-{topics}"),
            Op::Read,
        ),
        allow(
            AclResource::Cluster,
            AclPattern::Literal,
            "kafka-cluster",
            Op::Alter,
        ),
    ]
}

fn link(name: &str, topics: &[&str]) -> (LinkOptions, SharedLogin) {
    let World {
        authority,
        source,
        destination,
    } = world();
    let (from, source_login) = options(source, login(authority, USER, PASSWORD));
    let (to, _) = options(destination, login(authority, USER, PASSWORD));
    let topics = topics.iter().map(|t| (*t).to_owned()).collect();
    let mut link = LinkOptions::new(LinkName::new(name).expect("a name"), from, to, topics);
    link.metadata_refresh = Duration::from_millis(500);
    link.group_sync_interval = Duration::from_secs(1);
    link.backoff.max = Duration::from_millis(500);
    link.groups = vec![GROUP.to_owned()];
    if name == "need-" {
        link.sharing = Some(SharingOptions::new("alone"));
        link.acl_sync = Some(AclSyncOptions {
            interval: Duration::from_secs(1),
            filters: vec![AclFilter {
                name: Some("nothing".to_owned()),
                ..AclFilter::default()
            }],
        });
    }
    (link, source_login)
}

/// A topic whose log does not begin at 0, and a group that has read some of it.
async fn prepare(from: &Cluster, topic: &str) {
    world().source.create_topic(topic, 1, &[]).expect("created");
    append_some(from, topic, 0, 20).await;
    let id = TopicPartition::new(topic, 0);
    for (_, deleted) in from.delete_records(&[(id.clone(), 50)]).await {
        deleted.expect("deleted");
    }
    commit(from, topic, 120).await;
}

async fn commit(from: &Cluster, topic: &str, offset: i64) {
    let committed = CommittedOffset {
        offset,
        leader_epoch: -1,
        metadata: String::new(),
    };
    let offsets = [(TopicPartition::new(topic, 0), committed)];
    for (_, done) in from.offset_commit(GROUP, &offsets).await.expect("answer") {
        done.expect("committed");
    }
}

/// A committed transaction of one record.
async fn transact(from: &Cluster, topic: &str) {
    let id = TopicPartition::new(topic, 0);
    let name = format!("app-{topic}");
    let identity = from.init_producer_id(Some(&name)).await.expect("an id");
    let stamp = Stamp {
        attributes: 0x10,
        producer_id: identity.producer_id,
        producer_epoch: identity.epoch,
        base_sequence: 0,
    };
    let batch = batch(&[Record::new("k", "in a transaction")], stamp)
        .restamp(ProducerStamp {
            producer_id: identity.producer_id,
            producer_epoch: identity.epoch,
            base_sequence: 0,
        })
        .expect("restamped");
    let leader = leader(from, topic, 0).await;
    let raw = from.open_raw(leader).await.expect("a connection");
    let connection = Connection::start(raw, from.options());
    let answer = connection
        .produce_one(Some(&name), &id, &batch, Duration::from_secs(10))
        .await
        .expect("an answer");
    assert_eq!(answer.code, None);
    from.end_transaction(&name, identity, true)
        .await
        .expect("committed");
    wait_for("the marker is in the log", || async {
        log_ends(from, topic).await[0] == 202
    })
    .await;
}

/// The users' permissions are enough to compare, too.
async fn assert_verified(topic: &str) {
    let (options, _) = link("need-", &[topic]);
    let question = VerifyOptions {
        source: options.source,
        destination: options.destination,
        source_topic: topic.to_owned(),
        mirror_topic: topic.to_owned(),
        partition: None,
        from: None,
        to: None,
    };
    let report = verify(question, |_| {}).await.expect("a report");
    assert_ne!(report.result, VerifyResult::Different, "{report:#?}");
    let partition = &report.partitions[0];
    assert!(
        partition.equal_batches + partition.joined_batches > 1,
        "{report:#?}"
    );
}

/// Whatever the link says about a refusal.
fn refusals(link: &LinkDescription) -> Vec<String> {
    let topics = link
        .mirrors
        .iter()
        .filter(|m| m.mirror_topic_error == MirrorTopicError::AuthorizationError)
        .map(|m| format!("{}: {m:?}", m.mirror_topic_name));
    let groups = link.groups.iter().filter_map(|g| g.error.clone());
    topics
        .chain(groups)
        .chain(link.link_error.clone())
        .chain(link.acl_sync.iter().filter_map(|acls| acls.error.clone()))
        .chain(
            link.mirrors
                .iter()
                .filter_map(|m| m.config_sync.error.clone()),
        )
        .filter(|text| text.contains("AUTHORIZATION") || text.contains("AuthorizationFailed"))
        .collect()
}

/// The topic is the same on both sides, with its group's offset.
async fn done(running: &Running, from: &Cluster, to: &Cluster, topic: &str) {
    let partitions = log_ends(from, topic).await.len();
    wait_for(&format!("{topic} is mirrored"), || async {
        let description = running.handle.describe();
        let mirror = description
            .mirrors
            .iter()
            .find(|m| m.mirror_topic_name == topic);
        mirror.is_some_and(|m| {
            m.mirror_lags.len() == partitions && m.mirror_lags.iter().all(|p| p.lag == Some(0))
        })
    })
    .await;
    wait_for(&format!("the group's offset in {topic}"), || async {
        let found = to.offset_fetch(GROUP).await.unwrap_or_default();
        found
            .iter()
            .any(|(id, at)| &*id.topic == topic && at.as_ref().is_ok_and(|at| at.offset == 120))
    })
    .await;
    running
        .wait("no refusal is left", |link| refusals(link).is_empty())
        .await;
}

async fn grow(from: &Cluster, topic: &str) {
    for (_, grown) in from.create_partitions(&[(topic, 2)]).await.expect("answer") {
        grown.expect("grown");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_acls_are_enough_and_each_is_needed() {
    let World {
        source,
        destination,
        ..
    } = world();
    let (from, to) = (connect(source).await, connect(destination).await);
    grant(&from, &source_acls("need-")).await;
    grant(&to, &destination_acls("need-")).await;

    // All of them: no refusal from the first look to the last offset.
    prepare(&from, "need-all").await;
    transact(&from, "need-all").await;
    let running = Running::start(link("need-", &["need-all"]).0);
    done(&running, &from, &to, "need-all").await;
    running.end().await;

    let sides = [
        (&from, source_acls("need-")),
        (&to, destination_acls("need-")),
    ];
    for (side, (cluster, acls)) in sides.into_iter().enumerate() {
        for (number, acl) in acls.into_iter().enumerate() {
            let topic = format!("need-{side}-{number}");
            let what = format!("{side} without {acl:?}");
            prepare(&from, &topic).await;
            transact(&from, &topic).await;
            // A mirror must be there to be grown, or to be looked at by a second start.
            let existing = side == 1 && matches!(acl.operation, Op::Alter | Op::AlterConfigs);
            if existing {
                let running = Running::start(link("need-", &[&topic]).0);
                done(&running, &from, &to, &topic).await;
                running.end().await;
            }
            let alone = PERMISSIONS.write().await;
            revoke(cluster, std::slice::from_ref(&acl)).await;
            if acl.operation == Op::Alter {
                grow(&from, &topic).await;
            }
            let running = Running::start(link("need-", &[&topic]).0);
            running.wait(&what, |link| !refusals(link).is_empty()).await;
            grant(cluster, &[acl]).await;
            drop(alone);
            done(&running, &from, &to, &topic).await;
            running.end().await;
            assert_verified(&topic).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_may_not_be_read_does_not_hold_up_the_others() {
    let _granted = PERMISSIONS.read().await;
    let World {
        source,
        destination,
        ..
    } = world();
    let (from, to) = (connect(source).await, connect(destination).await);
    grant(&from, &source_acls("open-")).await;
    grant(&to, &destination_acls("open-")).await;
    grant(&to, &destination_acls("closed-")).await;
    for topic in ["open-a", "closed-b"] {
        prepare(&from, topic).await;
    }
    let (mut options, _) = link("open-", &["open-a", "closed-b"]);
    options.groups = Vec::new();
    let running = Running::start(options);
    running
        .wait("one mirrors, the other is refused", |link| {
            let [a, b] = link.mirrors.as_slice() else {
                return false;
            };
            link.link_state == LinkState::Active
                && a.max_lag() == Some(0)
                && !a.mirror_lags.is_empty()
                && a.mirror_topic_error == MirrorTopicError::NoError
                && b.mirror_topic_error == MirrorTopicError::AuthorizationError
        })
        .await;
    grant(&from, &source_acls("closed-")).await;
    running
        .wait("both mirror", |link| {
            link.mirrors.iter().all(|m| {
                m.mirror_topic_error == MirrorTopicError::NoError
                    && !m.mirror_lags.is_empty()
                    && m.max_lag() == Some(0)
            })
        })
        .await;

    // Taken away while it runs, and given back.
    let read = allow(
        AclResource::Topic,
        AclPattern::Prefixed,
        "closed-",
        Op::Read,
    );
    revoke(&from, std::slice::from_ref(&read)).await;
    running
        .wait("refused in the middle", |link| {
            link.mirrors[1].mirror_topic_error == MirrorTopicError::AuthorizationError
                && link.mirrors[0].mirror_topic_error == MirrorTopicError::NoError
        })
        .await;
    append_some(&from, "closed-b", 0, 5).await;
    grant(&from, &[read]).await;
    running
        .wait("it goes on", |link| {
            link.mirrors[1].mirror_topic_error == MirrorTopicError::NoError
                && link.mirrors[1].mirror_lags[0].destination_log_end_offset == Some(250)
        })
        .await;
    assert_identical(&from, &to, "closed-b").await;
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_credentials_are_named_and_corrected_without_a_restart() {
    let _granted = PERMISSIONS.read().await;
    let World {
        authority,
        source,
        destination,
    } = world();
    let (from, to) = (connect(source).await, connect(destination).await);
    grant(&from, &source_acls("login-")).await;
    grant(&to, &destination_acls("login-")).await;
    prepare(&from, "login-a").await;
    let (mut options, source_login) = link("login-", &["login-a"]);
    options.groups = Vec::new();
    source_login.set(login(authority, USER, "wr0ng"));
    let running = Running::start(options);
    let refused_with = |link: &LinkDescription, words: &str| {
        let text = link.link_error.clone().unwrap_or_default();
        assert!(!text.contains("wr0ng"), "{text}");
        link.link_state == LinkState::Failed
            && text.contains("AUTHENTICATION_ERROR")
            && text.contains(words)
    };
    running
        .wait("refused", |link| {
            refused_with(link, "authentication failed")
        })
        .await;
    // A certificate that nobody here knows.
    source_login.set(login(&Authority::new(), USER, PASSWORD));
    running
        .wait("distrusted", |link| {
            refused_with(link, "invalid peer certificate")
        })
        .await;
    source_login.set(login(authority, USER, PASSWORD));
    running
        .wait("let in", |link| {
            link.link_state == LinkState::Active
                && link.mirrors[0].max_lag() == Some(0)
                && !link.mirrors[0].mirror_lags.is_empty()
        })
        .await;
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_run_out_are_renewed_without_an_error() {
    let _granted = PERMISSIONS.read().await;
    let World {
        source,
        destination,
        ..
    } = world();
    let (from, to) = (connect(source).await, connect(destination).await);
    grant(&from, &source_acls("session-")).await;
    grant(&to, &destination_acls("session-")).await;
    source.create_topic("session-a", 2, &[]).expect("created");
    let (mut options, _) = link("session-", &["session-a"]);
    options.groups = Vec::new();
    let running = Running::start(options);
    append_some(&from, "session-a", 0, 1).await;
    running
        .wait("it mirrors", |link| {
            link.mirrors[0].mirror_lags.len() == 2
                && link.mirrors[0].mirror_lags.iter().all(|p| p.lag == Some(0))
        })
        .await;
    // One partition is busy, the other idle, over more than two sessions.
    let until = Instant::now() + SESSION * 5 / 2;
    while Instant::now() < until {
        append_some(&from, "session-a", 0, 3).await;
        let link = running.handle.describe();
        assert_eq!(link.link_state, LinkState::Active, "{link:#?}");
        for partition in &link.mirrors[0].mirror_lags {
            assert_eq!(partition.state, PartitionState::Active, "{link:#?}");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    append_some(&from, "session-a", 1, 3).await;
    running.wait_caught_up(&from, "session-a").await;
    assert_identical(&from, &to, "session-a").await;
    running.end().await;
}
