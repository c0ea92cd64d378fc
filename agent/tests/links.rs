//! Links created, changed and deleted while the agent runs, on two real Kafka clusters.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "links/prefix.rs"]
mod prefix;
mod support;

use serde_json::{Value, json};
use standfast_servers::KafkaCluster;
use support::{Agent, file_discovery, produce, standfast};

fn config(agent: &Agent, west: &KafkaCluster, east: &KafkaCluster) -> String {
    format!(
        "[fleet]\nname = \"links\"\n[discovery]\n{}\n\
         [clusters.west]\nbootstrap = \"{}\"\n[clusters.east]\nbootstrap = \"{}\"\n\
         [[links]]\nname = \"west-to-east\"\nsource = \"west\"\ndestination = \"east\"\ntopics = [\"named\"]\n\
         refresh_interval = \"500ms\"\n\
         [health]\ninterval = \"200ms\"\ntimeout = \"1s\"\n",
        file_discovery(agent.folder.path()),
        west.bootstrap(),
        east.bootstrap()
    )
}

fn link(agent: &Agent, name: &str) -> Value {
    agent.json(&["link", "describe", name])["data"][0].clone()
}

fn names(agent: &Agent) -> Vec<String> {
    let links = agent.json(&["link", "list"]);
    let links = links["data"].as_array().unwrap().iter();
    links
        .map(|link| link["link_name"].as_str().unwrap().to_owned())
        .collect()
}

fn setting(link: &Value, key: &str) -> Value {
    let configs = link["configs"].as_array().unwrap().iter();
    let mut found = configs.filter(|config| config["name"] == key);
    found.next().cloned().unwrap_or_default()
}

/// How often the link was started in this run of the agent.
fn starts(agent: &Agent, link: &str) -> usize {
    let log = agent.log();
    let lines = log.lines().filter(|l| l.contains("the link starts"));
    lines.filter(|l| l.contains(&format!("\"{link}\""))).count()
}

#[test]
fn links_come_change_and_go_while_the_agent_runs() {
    let (west, east) = std::thread::scope(|scope| {
        let west = scope.spawn(|| KafkaCluster::start("west").expect("west"));
        let east = scope.spawn(|| KafkaCluster::start("east").expect("east"));
        (west.join().expect("west"), east.join().expect("east"))
    });
    for topic in ["named", "extra", "app.a", "more.a"] {
        west.create_topic(topic, 1, &[]).unwrap();
        produce(&west.bootstrap(), topic, 0, 10);
    }
    east.create_topic("back", 1, &[]).unwrap();
    produce(&east.bootstrap(), "back", 0, 7);
    let mut agent = Agent::prepare("");
    agent.configure(&config(&agent, &west, &east));
    assert_eq!(agent.init_fleet("west").code, 0);
    agent.spawn();
    agent.until("the link of the file mirrors", |agent| {
        agent.mirrored("named") == [10]
    });

    mistakes(&agent);
    created(&agent, &west);
    changed(&agent, &west);
    both_ways(&agent);
    prefix::under_another_name(&mut agent, &west);
    over_a_crash(&mut agent, &west);
    deleted(&mut agent, &west, &east);
}

/// A mistake changes nothing, and the answer says how to mend it.
fn mistakes(agent: &Agent) {
    let create = |rest: &[&'static str]| {
        let head = ["link", "create", "second", "--source", "west"];
        [&head[..], rest].concat()
    };
    for (arguments, code, texts) in [
        (
            create(&["--destination", "eats", "--topic", "extra"]),
            2,
            ["eats", "known clusters: east, west"],
        ),
        (
            create(&["--destination", "east"]),
            2,
            ["topics", "is empty"],
        ),
        (create(&["--topic", "extra"]), 2, ["second", "destination"]),
        (
            create(&["--destination", "east", "--topic", "named"]),
            2,
            ["already written", "west-to-east"],
        ),
        (
            create(&[
                "--destination",
                "east",
                "--topic",
                "extra",
                "--set",
                "rate_limt=1MB",
            ]),
            2,
            ["rate_limt", "did you mean `rate_limit`"],
        ),
        (
            create(&[
                "--destination",
                "east",
                "--topic",
                "extra",
                "--set",
                "memory_mib=1",
            ]),
            2,
            ["memory_mib", "below"],
        ),
        (
            vec![
                "link",
                "create",
                "Second",
                "--source",
                "west",
                "--destination",
                "east",
                "--topic",
                "extra",
            ],
            2,
            ["name", "a-z0-9"],
        ),
        (
            vec![
                "link",
                "create",
                "west-to-east",
                "--source",
                "west",
                "--destination",
                "east",
                "--topic",
                "x",
            ],
            2,
            ["already", "topics"],
        ),
        (
            vec!["link", "update", "west-to-east", "group+=x"],
            2,
            ["group", "did you mean `groups`"],
        ),
        (
            vec!["link", "update", "west-to-east", "source=east"],
            2,
            ["source", "cannot be changed"],
        ),
        (
            vec!["link", "update", "west-to-east", "rate_limit=fast"],
            2,
            ["rate_limit", "50MB"],
        ),
        (
            vec!["link", "update", "west-to-east", "rate_limit"],
            2,
            ["KEY=VALUE", "rate_limit"],
        ),
        (
            vec!["link", "update", "west-to-east"],
            2,
            ["KEY=VALUE", "Usage"],
        ),
        (
            vec!["link", "update", "nobody", "rate_limit=1MB"],
            1,
            ["no link \"nobody\"", "west-to-east"],
        ),
        (vec!["link", "delete", "nobody"], 1, ["no link", "nobody"]),
        (
            vec!["link", "delete", "west-to-east"],
            5,
            ["named", "--force"],
        ),
        (
            vec!["link", "delete", "west-to-east", "--force"],
            2,
            ["--yes", "1 mirror topic"],
        ),
    ] {
        let ended = agent.cli(&arguments);
        assert_eq!(ended.code, code, "{arguments:?}: {ended:?}");
        for text in texts {
            assert!(ended.stderr.contains(text), "{arguments:?}: {ended:?}");
        }
    }
    assert_eq!(names(agent), ["west-to-east"]);
    assert!(!agent.folder.path().join("data/links.json").exists());
}

fn created(agent: &Agent, west: &KafkaCluster) {
    let file = agent.folder.path().join("second.toml");
    std::fs::write(
        &file,
        "refresh_interval = \"500ms\"\ngroups = [\"billing\"]\n",
    )
    .unwrap();
    let create = [
        "link",
        "create",
        "second",
        "--source",
        "west",
        "--destination",
        "east",
        "--topic",
        "extra",
        "--filter",
        "app.*",
        "--filter",
        "!app.tmp.*",
        "--file",
        file.to_str().unwrap(),
    ];
    let rehearsed = agent.json(&[&create[..], &["--dry-run"]].concat());
    assert_eq!(
        (
            &rehearsed["action"],
            &rehearsed["matching_topics"],
            &rehearsed["mirrors_added"]
        ),
        (&json!("CREATED"), &json!(["app.a"]), &json!(["extra"])),
        "{rehearsed}"
    );
    assert_eq!(names(agent), ["west-to-east"]);
    let change = agent.json(&create);
    assert_eq!(
        (&change["action"], &change["applied"]),
        (&json!("CREATED"), &json!("STARTED"))
    );
    let again = agent.json(&create);
    assert_eq!(again["action"], "UNCHANGED");
    agent.until("a link created at runtime mirrors", |agent| {
        agent.mirrored("extra") == [10]
            && agent.json(&["mirror", "list"])["data"]
                .to_string()
                .contains("app.a")
    });
    west.create_topic("app.b", 1, &[]).unwrap();
    agent.until("its filters find new topics", |agent| {
        agent.cli(&["mirror", "describe", "app.b"]).code == 0
    });
    let second = link(agent, "second");
    assert_eq!(second["origin"], "API");
    assert_eq!(setting(&second, "groups")["origin"], "API");
    let tasks = second["tasks"].as_array().unwrap();
    let states: Vec<(&str, &str)> = tasks
        .iter()
        .map(|t| {
            (
                t["task_name"].as_str().unwrap(),
                t["state"].as_str().unwrap(),
            )
        })
        .collect();
    for expected in [
        ("ConsumerOffsetSync", "ACTIVE"),
        ("AclSync", "NOT_CONFIGURED"),
        ("AutoCreateMirror", "ACTIVE"),
    ] {
        assert!(states.contains(&expected), "{states:?}");
    }
    // Two links that write one topic would spoil it.
    for arguments in [
        &["mirror", "create", "app.x", "--link", "west-to-east"][..],
        &["link", "update", "west-to-east", "topic_filters+=app.a"],
        &["link", "update", "west-to-east", "topics+=extra"],
    ] {
        let refused = agent.cli(arguments);
        assert_eq!(refused.code, 2, "{arguments:?}: {refused:?}");
        assert!(
            refused.stderr.contains("second"),
            "{arguments:?}: {refused:?}"
        );
    }
    let table = agent.cli(&["link", "describe", "second"]);
    assert!(
        table.stdout.contains("Task Name") && table.stdout.contains("app.*,!app.tmp.*"),
        "{table:?}"
    );
}

fn changed(agent: &Agent, west: &KafkaCluster) {
    let rehearsed = agent.json(&[
        "link",
        "update",
        "west-to-east",
        "topic_filters+=more.*",
        "--dry-run",
    ]);
    assert_eq!(
        (&rehearsed["applied"], &rehearsed["matching_topics"]),
        (&json!("LIVE"), &json!(["more.a"])),
        "{rehearsed}"
    );
    assert_eq!(agent.cli(&["mirror", "describe", "more.a"]).code, 1);
    let change = agent.json(&[
        "link",
        "update",
        "west-to-east",
        "topic_filters+=more.*",
        "rate_limit=50MB",
        "groups+=billing,fraud",
    ]);
    assert_eq!(change["applied"], "LIVE", "{change}");
    agent.until("a filter added at runtime picks up its topic", |agent| {
        agent.cli(&["mirror", "describe", "more.a"]).code == 0 && agent.mirrored("more.a") == [10]
    });
    let changed = link(agent, "west-to-east");
    assert_eq!(changed["rate_limit"], 50_000_000, "{changed}");
    assert_eq!(changed["origin"], "FILE");
    assert_eq!(
        (
            setting(&changed, "rate_limit")["origin"].clone(),
            setting(&changed, "topics")["origin"].clone()
        ),
        (json!("API"), json!("FILE"))
    );
    let groups: Vec<&str> = changed["groups"]
        .as_array()
        .unwrap()
        .iter()
        .map(|g| g["group"].as_str().unwrap())
        .collect();
    assert_eq!(groups, ["billing", "fraud"]);
    assert_eq!(starts(agent, "west-to-east"), 1, "{}", agent.log());
    let again = agent.json(&[
        "link",
        "update",
        "west-to-east",
        "groups+=fraud",
        "topic_filters+=more.*",
    ]);
    assert_eq!(again["action"], "UNCHANGED");

    let rehearsed = agent.json(&[
        "link",
        "update",
        "west-to-east",
        "memory_mib=32",
        "--dry-run",
    ]);
    assert_eq!(rehearsed["applied"], "RESTARTED");
    let change = agent.json(&["link", "update", "west-to-east", "memory_mib=32"]);
    assert_eq!(change["applied"], "RESTARTED");
    produce(&west.bootstrap(), "named", 0, 5);
    agent.until("a link that was started again goes on", |agent| {
        agent.mirrored("named") == [15]
    });
    assert_eq!(
        (starts(agent, "west-to-east"), starts(agent, "second")),
        (2, 1)
    );
    // A mirror that goes away by a change is named.
    let change = agent.json(&["link", "update", "second", "topics-=extra"]);
    assert_eq!(change["mirrors_removed"], json!(["extra"]), "{change}");
    assert_eq!(change["applied"], "RESTARTED");
    assert_eq!(agent.cli(&["mirror", "describe", "extra"]).code, 1);
    let back = agent.json(&["link", "update", "second", "topics+=extra"]);
    assert_eq!(
        (&back["applied"], &back["mirrors_added"]),
        (&json!("LIVE"), &json!(["extra"]))
    );
    produce(&west.bootstrap(), "extra", 0, 5);
    agent.until("it is mirrored again", |agent| {
        agent.mirrored("extra") == [15]
    });
}

/// Both directions at once, on different topics.
fn both_ways(agent: &Agent) {
    let create = |topic: &'static str| {
        [
            "link",
            "create",
            "east-to-west",
            "--source",
            "east",
            "--destination",
            "west",
            "--topic",
            topic,
            "--set",
            "follow_fleet=false",
        ]
    };
    let refused = agent.cli(&create("named"));
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(refused.stderr.contains("mirror each other"), "{refused:?}");
    assert_eq!(agent.cli(&create("back")).code, 0);
    agent.until("the other direction mirrors too", |agent| {
        agent.mirrored("back") == [7] && agent.mirrored("named") == [15]
    });
    // Neither is a part of a failover of the fleet that it does not follow.
    let rehearsed = agent.json(&["failover", "--dry-run"]);
    assert!(
        !rehearsed["topics"].to_string().contains("back"),
        "{rehearsed}"
    );
    assert_eq!(rehearsed["to"], "east");
}

fn over_a_crash(agent: &mut Agent, west: &KafkaCluster) {
    agent.kill();
    produce(&west.bootstrap(), "extra", 0, 5);
    agent.spawn();
    assert_eq!(names(agent), ["west-to-east", "east-to-west", "second"]);
    agent.until(
        "what was created and changed is there after a crash",
        |agent| {
            agent.mirrored("extra") == [21]
                && link(agent, "west-to-east")["rate_limit"] == 50_000_000
        },
    );
    let check = |agent: &Agent| standfast(&["config", "check", agent.config().to_str().unwrap()]);
    let checked = check(agent);
    assert_eq!(checked.code, 0, "{checked:?}");
    assert!(
        checked
            .stderr
            .contains("groups, memory_mib, rate_limit, topic_filters"),
        "{checked:?}"
    );
    let change = agent.json(&[
        "link",
        "update",
        "west-to-east",
        "--reset",
        "rate_limit",
        "--reset",
        "memory_mib",
    ]);
    assert_eq!(change["applied"], "RESTARTED");
    assert_eq!(link(agent, "west-to-east")["rate_limit"], Value::Null);
    assert!(!check(agent).stderr.contains("memory_mib"));
    let stored = std::fs::read_to_string(agent.folder.path().join("data/links.json")).unwrap();
    assert!(
        !stored.contains("bootstrap") && !stored.contains("secret"),
        "{stored}"
    );
    // What does not fit is no silent start without it.
    agent.terminate();
    let file = agent.folder.path().join("data/links.json");
    for (damage, text) in [
        (
            stored.replace("\"west\"", "\"gone\""),
            "no cluster \"gone\"",
        ),
        (stored[..stored.len() / 2].to_owned(), "links.json"),
    ] {
        std::fs::write(&file, damage).unwrap();
        let config = agent.config();
        for (arguments, code) in [(["agent", "--config"], 1), (["config", "check"], 2)] {
            let ended = standfast(&[&arguments[..], &[config.to_str().unwrap()]].concat());
            assert_eq!(ended.code, code, "{ended:?}");
            assert!(
                ended.stderr.contains(text) && ended.stderr.contains("links.json"),
                "{ended:?}"
            );
        }
    }
    std::fs::write(&file, stored).unwrap();
    agent.spawn();
}

fn deleted(agent: &mut Agent, west: &KafkaCluster, east: &KafkaCluster) {
    agent.until("all mirrors run", |agent| {
        let mirrors = agent.json(&["mirror", "list"]);
        let mut mirrors = mirrors["data"].as_array().unwrap().iter();
        mirrors.all(|mirror| mirror["mirror_status"] == "ACTIVE")
    });
    let refused = agent.cli(&["link", "delete", "second", "--yes"]);
    assert_eq!(refused.code, 5, "{refused:?}");
    let rehearsed = agent.json(&["link", "delete", "second", "--force", "--dry-run"]);
    assert_eq!(
        rehearsed["mirrors"].as_array().unwrap().len(),
        3,
        "{rehearsed}"
    );
    assert_eq!(names(agent).len(), 3);
    let gone = agent.json(&["link", "delete", "second", "--force", "--yes"]);
    let mirrors = gone["mirrors"].as_array().unwrap();
    assert!(
        mirrors.iter().all(|m| m["mirror_status"] == "STOPPED"),
        "{gone}"
    );
    // One whose mirrors were stopped before needs no force.
    let stopped = agent.cli(&[
        "mirror",
        "failover",
        "--all",
        "--link",
        "west-to-east",
        "--yes",
    ]);
    assert_eq!(stopped.code, 0, "{stopped:?}");
    assert_eq!(agent.cli(&["link", "delete", "west-to-east"]).code, 0);
    assert_eq!(names(agent), ["east-to-west"]);
    assert!(!agent.folder.path().join("data/links/second.json").exists());
    let checked = standfast(&["config", "check", agent.config().to_str().unwrap()]);
    assert!(checked.stderr.contains("link delete"), "{checked:?}");
    agent.kill();
    agent.spawn();
    assert_eq!(names(agent), ["east-to-west"]);
    // The topics belong to the destination now.
    produce(&west.bootstrap(), "extra", 0, 5);
    produce(&east.bootstrap(), "extra", 0, 1);
    produce(&east.bootstrap(), "back", 0, 1);
    agent.until("the other link goes on", |agent| {
        agent.mirrored("back") == [8]
    });
    assert_eq!(east.log_end_offsets("extra").unwrap(), [22]);
    // The name is free again, for something else; a topic that went its own way is not written to.
    let create = [
        "link",
        "create",
        "west-to-east",
        "--source",
        "west",
        "--destination",
        "east",
        "--topic",
        "extra",
    ];
    assert_eq!(agent.cli(&create).code, 0);
    agent.until("what diverged is FAILED", |agent| {
        agent.json(&["mirror", "describe", "extra"])["data"][0]["mirror_topic_error"] == "DIVERGED"
    });
    // So it is again after a restart: the logs say it, nothing has to be remembered.
    agent.kill();
    agent.spawn();
    agent.until("FAILED after a restart", |agent| {
        let mirror = agent.json(&["mirror", "describe", "extra"])["data"][0].clone();
        mirror["mirror_status"] == "FAILED" && mirror["mirror_topic_error"] == "DIVERGED"
    });
    let counts = link(agent, "west-to-east")["category_counts"].clone();
    assert_eq!(counts, json!([{"state_category": "IN_ERROR", "count": 1}]));
    assert_eq!(east.log_end_offsets("extra").unwrap(), [22]);
}
