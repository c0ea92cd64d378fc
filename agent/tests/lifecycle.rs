//! Mirrors told to pause, resume and stop by the command line, over restarts of the agent, on two real Kafka clusters.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use serde_json::{Value, json};
use standfast_servers::KafkaCluster;
use support::{Agent, file_discovery, produce};

fn config(agent: &Agent, west: &KafkaCluster, east: &KafkaCluster) -> String {
    format!(
        "[fleet]\nname = \"lifecycle\"\n[discovery]\n{}\n\
         [clusters.west]\nbootstrap = \"{}\"\n[clusters.east]\nbootstrap = \"{}\"\n\
         [[links]]\nname = \"west-to-east\"\nsource = \"west\"\ndestination = \"east\"\ntopics = [\"named\"]\n\
         refresh_interval = \"500ms\"\n\
         [[links.topic_filters]]\nname = \"app.\"\npattern_type = \"PREFIXED\"\nfilter_type = \"INCLUDE\"\n\
         [[links.topic_filters]]\nname = \"app.secret\"\npattern_type = \"LITERAL\"\nfilter_type = \"EXCLUDE\"\n\
         [health]\ninterval = \"200ms\"\ntimeout = \"1s\"\n",
        file_discovery(agent.folder.path()),
        west.bootstrap(),
        east.bootstrap()
    )
}

fn status(agent: &Agent, topic: &str) -> Value {
    agent.json(&["mirror", "describe", topic])["data"][0]["mirror_status"].clone()
}

fn names(agent: &Agent) -> Vec<String> {
    let list = agent.json(&["mirror", "list"]);
    let mirrors = list["data"].as_array().unwrap().iter();
    mirrors
        .map(|m| m["mirror_topic_name"].as_str().unwrap().to_owned())
        .collect()
}

fn changed(ended: &support::Ended, code: i32) -> Vec<Value> {
    assert_eq!(ended.code, code, "{ended:?}");
    let changes: Value = serde_json::from_str(&ended.stdout).unwrap();
    changes["data"].as_array().unwrap().clone()
}

#[test]
fn mirrors_are_paused_promoted_and_failed_over_one_by_one() {
    let (mut west, east) = std::thread::scope(|scope| {
        let west = scope.spawn(|| KafkaCluster::start("west").expect("west"));
        let east = scope.spawn(|| KafkaCluster::start("east").expect("east"));
        (west.join().expect("west"), east.join().expect("east"))
    });
    for topic in ["named", "app.a", "app.b", "app.secret", "aside"] {
        west.create_topic(topic, 2, &[]).unwrap();
    }
    let mut agent = Agent::prepare("");
    agent.configure(&config(&agent, &west, &east));
    assert_eq!(agent.init_fleet("west").code, 0);
    agent.spawn();
    let write = |topic: &str, count| produce(&west.bootstrap(), topic, 0, count);
    for topic in ["named", "app.a", "app.b", "app.secret"] {
        write(topic, 10);
    }
    let topics = ["named", "app.a", "app.b"];
    agent.until("the filters' topics are found and mirrored", |agent| {
        names(agent) == topics && topics.iter().all(|t| agent.mirrored(t) == [10, 0])
    });
    west.create_topic("app.c", 1, &[]).unwrap();
    agent.until("a topic that comes later is found", |agent| {
        names(agent).contains(&"app.c".to_owned())
    });

    refusals(&agent);
    paused_over_a_restart(&mut agent, &west);
    promoted(&agent, &west, &east);
    let aside = agent.cli(&["mirror", "create", "aside", "--output", "json"]);
    assert_eq!(changed(&aside, 0)[0]["mirror_status"], "ACTIVE");
    the_link_as_a_whole(&agent, &west);
    damaged(&mut agent);
    failed_over(&mut agent, &mut west);
    the_region(&mut agent);
}

/// What does not make sense changes nothing.
fn refusals(agent: &Agent) {
    for (arguments, code, text) in [
        (&["mirror", "failover", "named"][..], 2, "--yes"),
        (&["mirror", "pause"], 2, "TOPIC"),
        (&["mirror", "pause", "named", "--all"], 2, "--all"),
        (&["mirror", "pause", "--pattern", "app"], 2, "prefix"),
        (&["mirror", "pause", "--pattern", "zzz*"], 1, "no mirror"),
        (&["mirror", "pause", "named", "--link", "x"], 1, "no link"),
        (&["mirror", "pause", "unknown"], 5, ""),
    ] {
        let ended = agent.cli(arguments);
        assert_eq!(ended.code, code, "{arguments:?}: {ended:?}");
        assert!(ended.stderr.contains(text), "{arguments:?}: {ended:?}");
    }
    let partial = agent.cli(&["mirror", "pause", "unknown", "app.c", "--output", "json"]);
    let partial = changed(&partial, 4);
    assert_eq!(partial[0]["error_code"], "UNKNOWN_MIRROR");
    assert_eq!(partial[1]["mirror_status"], "PAUSED");
    assert_eq!(agent.cli(&["mirror", "resume", "app.c"]).code, 0);
    // Thousands of names fit into one call.
    let many: Vec<String> = (0..4_000)
        .map(|n| format!("no-such-topic-{n:06}"))
        .collect();
    let mut pause = vec!["mirror", "pause", "--output", "json"];
    pause.extend(many.iter().map(String::as_str));
    assert_eq!(changed(&agent.cli(&pause), 5).len(), many.len());
    let rehearsed = agent.cli(&[
        "mirror",
        "failover",
        "--all",
        "--dry-run",
        "--output",
        "json",
    ]);
    assert_eq!(changed(&rehearsed, 0).len(), 4);
    assert_eq!(status(agent, "named"), "ACTIVE");
}

fn paused_over_a_restart(agent: &mut Agent, west: &KafkaCluster) {
    let paused = agent.cli(&["mirror", "pause", "--pattern", "app.*", "--output", "json"]);
    let paused = changed(&paused, 0);
    assert_eq!(paused.len(), 3);
    assert!(
        paused.iter().all(|c| c["mirror_status"] == "PAUSED"),
        "{paused:?}"
    );
    agent.kill();
    agent.spawn();
    produce(&west.bootstrap(), "app.a", 0, 5);
    produce(&west.bootstrap(), "named", 0, 5);
    agent.until("the others go on", |agent| {
        agent.mirrored("named") == [15, 0]
    });
    agent.until("a paused mirror's lag is shown after a restart", |agent| {
        let mirror = agent.json(&["mirror", "describe", "app.a"])["data"][0].clone();
        mirror["mirror_status"] == "PAUSED" && mirror["mirror_lags"][0]["lag"] == 5
    });
    assert_eq!(agent.mirrored("app.a"), [10, 0]);
    assert_eq!(agent.cli(&["mirror", "resume", "app.a", "app.c"]).code, 0);
    agent.until("resumed", |agent| agent.mirrored("app.a") == [15, 0]);
    assert_eq!(status(agent, "app.b"), "PAUSED");
}

fn promoted(agent: &Agent, west: &KafkaCluster, east: &KafkaCluster) {
    let promoted = agent.cli(&[
        "mirror", "promote", "app.a", "app.b", "--yes", "--output", "json",
    ]);
    let promoted = changed(&promoted, 4);
    assert_eq!(promoted[0]["mirror_status"], "STOPPED");
    assert_eq!(
        promoted[0]["mirror_lags"][0]["destination_log_end_offset"],
        15
    );
    assert_eq!(promoted[0]["mirror_lags"][0]["lag"], 0);
    assert_eq!(promoted[1]["error_code"], "MIRROR_PAUSED");
    // The topic is the destination's own now.
    produce(&east.bootstrap(), "app.a", 0, 3);
    produce(&west.bootstrap(), "app.a", 0, 3);
    produce(&west.bootstrap(), "named", 0, 5);
    agent.until("the others go on", |agent| {
        agent.mirrored("named") == [20, 0]
    });
    assert_eq!(east.log_end_offsets("app.a").unwrap(), [18, 0]);
    let again = agent.cli(&["mirror", "promote", "app.a", "--yes"]);
    assert_eq!(again.code, 0, "{again:?}");
    let refused = agent.cli(&["mirror", "create", "app.a", "--output", "json"]);
    let refused = changed(&refused, 5);
    assert_eq!(refused[0]["error_code"], "MIRROR_FAILED", "{refused:?}");
    assert!(
        refused[0]["error_message"]
            .as_str()
            .unwrap()
            .contains("DIVERGED")
    );
    assert_eq!(east.log_end_offsets("app.a").unwrap(), [18, 0]);
    assert_eq!(agent.cli(&["mirror", "failover", "app.a", "--yes"]).code, 0);
}

fn the_link_as_a_whole(agent: &Agent, west: &KafkaCluster) {
    let link = agent.json(&["link", "pause"]);
    assert_eq!(link["link_state"], "PAUSED", "{link}");
    assert_eq!(status(agent, "named"), "LINK_PAUSED");
    produce(&west.bootstrap(), "named", 0, 5);
    agent.until("the lag is shown", |agent| {
        agent.json(&["mirror", "describe", "named"])["data"][0]["mirror_lags"][0]["lag"] == 5
    });
    let links = agent.json(&["link", "list"]);
    assert_eq!(links["data"][0]["max_lag"], 5);
    let counts =
        agent.json(&["link", "describe", "west-to-east"])["data"][0]["category_counts"].clone();
    assert_eq!(
        counts,
        json!([{"state_category": "NOT_APPLICABLE", "count": 1}, {"state_category": "PAUSED", "count": 4}])
    );
    assert_eq!(agent.cli(&["link", "resume", "west-to-east"]).code, 0);
    agent.until("resumed", |agent| agent.mirrored("named") == [25, 0]);
    let table = agent.cli(&["link", "describe", "west-to-east"]);
    assert!(table.stdout.contains("State Category"), "{table:?}");
}

/// A state that cannot be read is no reason to start mirrors that were stopped.
fn damaged(agent: &mut Agent) {
    agent.terminate();
    let file = agent.folder.path().join("data/links/west-to-east.json");
    let good = std::fs::read_to_string(&file).unwrap();
    assert!(good.contains("STOPPED"), "{good}");
    std::fs::write(&file, &good[..good.len() / 2]).unwrap();
    let config = agent.config();
    let refused = support::standfast(&["agent", "--config", config.to_str().unwrap()]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(
        refused.stderr.contains("west-to-east.json")
            && refused.stderr.contains("paused or stopped"),
        "{refused:?}"
    );
    std::fs::write(&file, good).unwrap();
    agent.spawn();
    assert_eq!(status(agent, "app.a"), "STOPPED");
}

fn failed_over(agent: &mut Agent, west: &mut KafkaCluster) {
    agent.until("running", |agent| {
        agent.mirrored("named") == [25, 0] && status(agent, "named") == "ACTIVE"
    });
    west.kill();
    for _ in 0..2 {
        let stopped = agent.cli(&["mirror", "failover", "named", "--yes", "--output", "json"]);
        let stopped = changed(&stopped, 0);
        assert_eq!(stopped[0]["mirror_status"], "STOPPED");
        let lag = &stopped[0]["mirror_lags"][0];
        assert_eq!(
            (&lag["lag"], &lag["destination_log_end_offset"]),
            (&json!(0), &json!(25)),
            "{stopped:?}"
        );
    }
    // The agent is started again, and the source is back with more: none of it is mirrored.
    agent.kill();
    west.restart().unwrap();
    produce(&west.bootstrap(), "named", 0, 5);
    produce(&west.bootstrap(), "aside", 0, 5);
    agent.spawn();
    agent.until("the others go on", |agent| {
        agent.mirrored("aside") == [5, 0]
    });
    assert_eq!(status(agent, "named"), "STOPPED");
    let missing = agent.cli(&["mirror", "promote", "named", "--yes", "--output", "json"]);
    let lag = changed(&missing, 0)[0]["mirror_lags"][0].clone();
    assert_eq!(lag["destination_log_end_offset"], 25, "{lag}");
}

/// The failover of the fleet leaves stopped mirrors alone and names paused ones.
fn the_region(agent: &mut Agent) {
    assert_eq!(status(agent, "app.b"), "PAUSED");
    let refused = agent.cli(&["switchover", "--yes"]);
    assert_eq!(refused.code, 5, "{refused:?}");
    assert!(
        refused.stderr.contains("app.b") && refused.stderr.contains("PAUSED"),
        "{refused:?}"
    );
    let rehearsed = agent.json(&["failover", "--dry-run"]);
    assert!(
        rehearsed["warnings"].to_string().contains("app.b"),
        "{rehearsed}"
    );
    let report = agent.json(&["failover", "--yes"]);
    assert_eq!(report["outcome"], "FLIPPED", "{report}");
    let topics: Vec<&str> = report["handoff_offsets"]
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(topics, ["app.b", "app.c", "aside"], "{report}");
    let warnings = report["warnings"].to_string();
    assert!(
        warnings.contains("app.b") && warnings.contains("PAUSED"),
        "{report}"
    );
    // The link is held now; what its mirrors should do can still be said.
    let resumed = agent.cli(&["mirror", "resume", "app.b", "--output", "json"]);
    assert_eq!(changed(&resumed, 0)[0]["mirror_status"], "STOPPED");
    let refused = agent.cli(&["mirror", "promote", "app.b", "--yes", "--output", "json"]);
    assert_eq!(changed(&refused, 5)[0]["error_code"], "LINK_NOT_RUNNING");
}
