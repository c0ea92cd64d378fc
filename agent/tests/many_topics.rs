//! Two thousand mirrors of one partition: how long they take to start, how long one call about all of them takes, and what the agent needs.
//!
//! `cargo test -p standfast-agent --test many_topics -- --ignored --nocapture`

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;
use standfast_servers::KafkaCluster;
use standfast_wire::admin::NewTopic;
use standfast_wire::{Cluster, ClusterOptions, HostPort};
use support::{Agent, file_discovery, produce};

const TOPICS: usize = 2_000;
const TOPICS_PER_REQUEST: usize = 200;
const LONGEST: Duration = Duration::from_secs(300);

fn kafka(name: &str) -> KafkaCluster {
    let cluster = KafkaCluster::builder(name).heap_mb(1024);
    // Less is preallocated for the indexes of so many logs.
    let cluster = cluster.property("log.index.size.max.bytes", "65536");
    cluster.start().expect("a Kafka cluster")
}

fn create_topics(cluster: &KafkaCluster) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut options = ClusterOptions::new(HostPort::parse_list(&cluster.bootstrap()).unwrap());
        options.request_timeout = Duration::from_secs(60);
        let cluster = Cluster::connect(options).await.unwrap();
        let topics: Vec<NewTopic> = (0..TOPICS)
            .map(|n| NewTopic {
                name: format!("many.{n:04}"),
                partitions: 1,
                replication_factor: 1,
                configs: BTreeMap::new(),
            })
            .collect();
        for chunk in topics.chunks(TOPICS_PER_REQUEST) {
            for (name, result) in cluster.create_topics(chunk, false).await.unwrap() {
                result.unwrap_or_else(|error| panic!("{name}: {error}"));
            }
        }
    });
}

fn counts(agent: &Agent) -> Value {
    agent.json(&["link", "list"])["data"][0]["category_counts"].clone()
}

fn wait(agent: &Agent, what: &str, category: &str) -> Duration {
    let began = Instant::now();
    let expected = serde_json::json!([{"state_category": category, "count": TOPICS}]);
    loop {
        let found = counts(agent);
        if found == expected {
            return began.elapsed();
        }
        assert!(
            began.elapsed() < LONGEST,
            "{what}: {found}\n{}",
            agent.log()
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Every mirror in one call; how long it took.
fn call(agent: &Agent, arguments: &[&str]) -> Duration {
    let began = Instant::now();
    let ended = agent.cli(&[arguments, &["--output", "json"]].concat());
    let took = began.elapsed();
    assert_eq!(ended.code, 0, "{arguments:?}: {}", ended.stderr);
    let changes: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(changes["data"].as_array().unwrap().len(), TOPICS);
    took
}

#[test]
#[ignore = "a measurement; takes some minutes"]
fn two_thousand_mirrors() {
    let (mut west, east) = std::thread::scope(|scope| {
        let west = scope.spawn(|| kafka("west"));
        let east = scope.spawn(|| kafka("east"));
        (west.join().unwrap(), east.join().unwrap())
    });
    create_topics(&west);
    let mut agent = Agent::prepare("");
    agent.configure(&format!(
        "[fleet]\nname = \"many\"\n[discovery]\n{}\n\
         [clusters.west]\nbootstrap = \"{}\"\n[clusters.east]\nbootstrap = \"{}\"\n\
         [[links]]\nname = \"west-to-east\"\nsource = \"west\"\ndestination = \"east\"\n\
         [[links.topic_filters]]\nname = \"*\"\npattern_type = \"LITERAL\"\nfilter_type = \"INCLUDE\"\n",
        file_discovery(agent.folder.path()),
        west.bootstrap(),
        east.bootstrap()
    ));
    assert_eq!(agent.init_fleet("west").code, 0);
    agent.spawn();
    println!(
        "created and mirroring: {:.1?}",
        wait(&agent, "created", "ACTIVE")
    );
    println!("agent: {}", agent.memory());
    produce(&west.bootstrap(), "many.1999", 0, 10);
    agent.until("records flow", |agent| agent.mirrored("many.1999") == [10]);

    println!(
        "pause --all: {:.2?}",
        call(&agent, &["mirror", "pause", "--all"])
    );
    wait(&agent, "paused", "PAUSED");
    println!(
        "resume --all: {:.2?}",
        call(&agent, &["mirror", "resume", "--all"])
    );
    println!(
        "all resumed after {:.1?}",
        wait(&agent, "resumed", "ACTIVE")
    );
    agent.terminate();
    agent.spawn();
    println!(
        "restarted, all mirroring after {:.1?}",
        wait(&agent, "restarted", "ACTIVE")
    );
    let half: Vec<String> = (0..TOPICS / 2).map(|n| format!("many.{n:04}")).collect();
    let mut promote = vec!["mirror", "promote", "--yes", "--output", "json"];
    promote.extend(half.iter().map(String::as_str));
    let began = Instant::now();
    assert_eq!(agent.cli(&promote).code, 0);
    println!("promote of {} by name: {:.2?}", half.len(), began.elapsed());
    west.kill();
    println!(
        "failover --all, source dead: {:.2?}",
        call(&agent, &["mirror", "failover", "--all", "--yes"])
    );
    wait(&agent, "stopped", "NOT_APPLICABLE");
    println!("agent: {}", agent.memory());
}
