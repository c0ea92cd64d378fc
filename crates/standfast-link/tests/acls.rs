//! ACLs are carried over, and nobody can write into a mirror until it is stopped.

#[path = "support/secure.rs"]
mod secure;
mod support;

use std::sync::OnceLock;
use std::time::Duration;

use secure::*;
use standfast_link::{AclFilter, AclSyncOptions, LinkOptions, TopicPrefix, Wanted};
use standfast_servers::KafkaCluster;
use standfast_wire::Cluster;
use standfast_wire::admin::{AclBinding, AclOperation as Op, AclPattern, AclResource};
use support::{
    PATIENCE, PLAIN, Record, Running, append, append_some, batch, connect, link_options, wait_for,
};

const APP: &str = "app";
const TOPIC_AUTHORIZATION_FAILED: i16 = 29;

struct World {
    authority: Authority,
    source: KafkaCluster,
    destination: KafkaCluster,
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let authority = Authority::new();
        let start = |name: &str| {
            let builder = builder(name, &authority).scram_user(APP, "app-password");
            builder.start().expect("a cluster")
        };
        let (source, destination) = std::thread::scope(|scope| {
            let source = scope.spawn(|| start("acl-source"));
            (source.join().expect("started"), start("acl-destination"))
        });
        World {
            authority,
            source,
            destination,
        }
    })
}

fn app(operation: Op, resource: AclResource, pattern: AclPattern, name: &str) -> AclBinding {
    AclBinding::allow("User:app", operation, resource, pattern, name)
}

/// The set-up's user is a super user on both sides.
fn link(name: &str, topics: &[&str]) -> LinkOptions {
    let World {
        source,
        destination,
        ..
    } = world();
    let mut link = link_options(name, source, destination, topics);
    link.acl_sync = Some(AclSyncOptions {
        interval: Duration::from_secs(1),
        filters: vec![AclFilter {
            principal: Some("User:app".to_owned()),
            ..AclFilter::default()
        }],
    });
    link
}

/// The destination as the application sees it.
async fn as_app() -> Cluster {
    let World {
        authority,
        destination,
        ..
    } = world();
    let (options, _) = options(destination, login(authority, APP, "app-password"));
    Cluster::connect(options).await.expect("let in")
}

async fn write(cluster: &Cluster, topic: &str) -> Result<i64, i16> {
    append(cluster, topic, 0, &batch(&[Record::new("k", "v")], PLAIN)).await
}

async fn holds(cluster: &Cluster, acl: &AclBinding) -> bool {
    let found = cluster.describe_acls().await.expect("ACLs");
    found.contains(acl)
}

async fn synced(running: &Running) {
    running
        .wait("ACLs are carried over", |link| {
            link.acl_sync
                .as_ref()
                .is_some_and(|acls| acls.last_success_ms.is_some() && acls.error.is_none())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_is_refused_on_a_mirror_until_it_is_stopped() {
    let World {
        source,
        destination,
        ..
    } = world();
    let (from, to) = (connect(source).await, connect(destination).await);
    let literal = AclPattern::Literal;
    for topic in ["one", "two", "pre-three"] {
        source.create_topic(topic, 1, &[]).expect("created");
        append_some(&from, topic, 0, 3).await;
    }
    let topic = |operation, pattern, name| app(operation, AclResource::Topic, pattern, name);
    let group = app(Op::Read, AclResource::Group, AclPattern::Prefixed, "bill");
    let transactional = app(Op::Write, AclResource::TransactionalId, literal, "app-1");
    let acls = [
        topic(Op::Read, literal, "one"),
        topic(Op::Write, literal, "one"),
        topic(Op::All, literal, "two"),
        topic(Op::Write, AclPattern::Prefixed, "pre-"),
        topic(Op::Describe, AclPattern::Prefixed, "pre-"),
        group.clone(),
        transactional.clone(),
    ];
    grant(&from, &acls).await;
    let own = topic(Op::Read, literal, "of-the-destination");
    let stranger = allow(AclResource::Topic, literal, "one", Op::Write);
    grant(&to, std::slice::from_ref(&own)).await;
    grant(&from, std::slice::from_ref(&stranger)).await;

    let running = Running::start(link("acls", &["one", "two", "pre-three"]));
    for topic in ["one", "two", "pre-three"] {
        running.wait_caught_up(&from, topic).await;
    }
    synced(&running).await;
    let application = as_app().await;
    for topic in ["one", "two", "pre-three"] {
        let refused = write(&application, topic).await;
        assert_eq!(refused, Err(TOPIC_AUTHORIZATION_FAILED), "{topic}");
    }
    // Reading is allowed, also where the source allows everything.
    for topic in ["one", "two"] {
        let fetched = application.fetch_batches(topic, 0, 0, 1 << 20).await;
        assert!(!fetched.expect("records").batches.is_empty(), "{topic}");
    }
    for acl in [&group, &transactional, &own] {
        assert!(holds(&to, acl).await, "{acl:?}");
    }
    assert!(!holds(&to, &stranger).await, "no filter takes it");

    // One mirror is stopped: there, and only there, the application may write.
    let changes = running.handle.failover(&["two"], PATIENCE).await;
    assert_eq!(changes.len(), 1, "{changes:?}");
    wait_for("the application may write", || async {
        write(&application, "two").await.is_ok()
    })
    .await;
    assert_eq!(
        write(&application, "one").await,
        Err(TOPIC_AUTHORIZATION_FAILED)
    );

    // An ACL that leaves the source leaves the destination; the destination's own stays.
    revoke(&from, std::slice::from_ref(&group)).await;
    wait_for("the ACL is gone", || async { !holds(&to, &group).await }).await;
    assert!(holds(&to, &own).await);

    // A restart does not forget what is withheld; then the whole link fails over with its source dead to it.
    running.end().await;
    let mut options = link("acls", &["one", "two", "pre-three"]);
    options.lifecycle.set(["two"], Wanted::Stopped);
    options.source.bootstrap = vec!["127.0.0.1:1".parse().expect("an address")];
    let running = Running::start(options);
    running
        .wait("the destination is reached", |link| {
            link.destination_cluster_id.is_some()
        })
        .await;
    let stopped = running.handle.stop_mirrors(PATIENCE).await;
    assert!(stopped.is_ok(), "{stopped:?}");
    for topic in ["one", "two", "pre-three"] {
        wait_for(&format!("the application may write to {topic}"), || async {
            write(&application, topic).await.is_ok()
        })
        .await;
    }
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn acls_name_the_mirrors_of_a_link_with_a_prefix() {
    let World {
        source,
        destination,
        ..
    } = world();
    let (from, to) = (connect(source).await, connect(destination).await);
    source.create_topic("renamed", 1, &[]).expect("created");
    append_some(&from, "renamed", 0, 3).await;
    let second = |operation, resource, pattern, name| {
        AclBinding::allow("User:second", operation, resource, pattern, name)
    };
    use AclPattern::{Literal, Prefixed};
    let theirs = [
        second(Op::Write, AclResource::Topic, Literal, "renamed"),
        second(Op::Read, AclResource::Topic, Literal, "*"),
        second(Op::Read, AclResource::Group, Prefixed, "bill"),
    ];
    grant(&from, &theirs).await;
    // One that the filter owns, and one of the same principal that is about no mirror of this link.
    let stray = second(Op::Describe, AclResource::Topic, Literal, "eu.stray");
    let own = second(Op::Describe, AclResource::Topic, Literal, "own");
    grant(&to, &[stray.clone(), own.clone()]).await;
    let mut options = link("renaming", &["renamed"]);
    options.prefix = TopicPrefix::new("eu.").expect("a prefix");
    options.prefix_groups = true;
    options.acl_sync = Some(AclSyncOptions {
        interval: Duration::from_secs(1),
        filters: vec![AclFilter {
            principal: Some("User:second".to_owned()),
            owns: true,
            ..AclFilter::default()
        }],
    });
    let running = Running::start(options);
    let read = second(Op::Read, AclResource::Topic, Prefixed, "eu.");
    let group = second(Op::Read, AclResource::Group, Prefixed, "eu.bill");
    for acl in [&read, &group] {
        wait_for("carried over", || async { holds(&to, acl).await }).await;
    }
    wait_for("owned", || async { !holds(&to, &stray).await }).await;
    assert!(holds(&to, &own).await);
    let write = second(Op::Write, AclResource::Topic, Literal, "eu.renamed");
    assert!(!holds(&to, &write).await, "withheld");
    for acl in &theirs {
        assert!(!holds(&to, acl).await, "{acl:?}");
    }
    let changes = running.handle.failover(&["eu.renamed"], PATIENCE).await;
    assert_eq!(changes[0].error_code, None, "{changes:?}");
    wait_for("released", || async { holds(&to, &write).await }).await;
    running.end().await;
}
