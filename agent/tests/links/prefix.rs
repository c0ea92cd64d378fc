//! A link that puts a prefix in front of the names of its mirrors.

use super::*;

const CREATE: [&str; 11] = [
    "link",
    "create",
    "renamed",
    "--source",
    "west",
    "--destination",
    "east",
    "--topic",
    "named",
    "--group",
    "audit",
];
const RUNS_ALWAYS: [&str; 2] = ["--set", "follow_fleet=false"];

/// Refused with this exit code, and these words on stderr.
fn refused(agent: &Agent, arguments: &[&str], code: i32, texts: &[&str]) {
    let ended = agent.cli(arguments);
    assert_eq!(ended.code, code, "{arguments:?}: {ended:?}");
    let said = format!("{}{}", ended.stdout, ended.stderr);
    for text in texts {
        assert!(said.contains(text), "{text}: {said}");
    }
}

pub(super) fn under_another_name(agent: &mut Agent, west: &KafkaCluster) {
    let create = |more: &[&'static str]| [&CREATE[..], more].concat();
    let always = |more: &[&'static str]| create(&[&RUNS_ALWAYS[..], more].concat());
    for (arguments, texts) in [
        (
            create(&["--prefix", "west."]),
            ["follows the fleet", "\"west.named\""],
        ),
        (always(&["--prefix", "we/st"]), ["prefix", "'-'"]),
        (
            always(&["--prefix", "west.", "--topic", "__consumer_offsets"]),
            ["topics", "internal"],
        ),
        (
            always(&["--set", "prefix_groups=true"]),
            ["prefix_groups", "no prefix"],
        ),
    ] {
        refused(agent, &arguments, 2, &texts);
    }
    let created = agent.json(&always(&["--prefix", "west.", "--filter", "app.*"]));
    assert_eq!(created["mirrors_added"], json!(["west.named"]), "{created}");
    assert_eq!(
        created["matching_topics"],
        json!(["app.a", "app.b"]),
        "{created}"
    );
    agent.until("the same topic is mirrored under both names", |agent| {
        agent.mirrored("west.named") == [15]
            && agent.mirrored("west.app.a") == [10]
            && agent.mirrored("named") == [15]
    });
    let mirror = &agent.json(&["mirror", "describe", "west.named"])["data"][0];
    assert_eq!(mirror["source_topic_name"], "named");
    assert_eq!(mirror["link_name"], "renamed");

    // Names in commands are the mirrors'.
    let one_more = |topic| ["mirror", "create", topic, "--link", "renamed"];
    refused(agent, &one_more("extra"), 5, &["\"west.extra\""]);
    assert_eq!(agent.cli(&one_more("west.extra")).code, 0);
    agent.until("created by a command", |agent| {
        agent.mirrored("west.extra") == [15]
    });
    let verified = agent.cli(&["mirror", "verify", "west.named"]);
    assert_eq!(verified.code, 0, "{verified:?}");
    let change = ["link", "update", "renamed", "prefix=other."];
    refused(agent, &change, 2, &["prefix cannot be changed"]);
    let reverse = ["mirror", "reverse", "west.named", "--link", "renamed"];
    refused(agent, &reverse, 5, &["prefix", "nothing of the same name"]);
    let mut collides = CREATE;
    (collides[2], collides[8]) = ("third", "west.extra");
    refused(agent, &collides, 2, &["\"west.extra\"", "\"renamed\""]);

    // It is no part of a failover, and the same after a crash.
    let rehearsed = agent.json(&["failover", "--dry-run"]);
    let topics = rehearsed["topics"].to_string();
    assert!(!topics.contains("west.named"), "{rehearsed}");
    agent.kill();
    produce(&west.bootstrap(), "extra", 0, 1);
    agent.spawn();
    agent.until("it goes on after a crash", |agent| {
        agent.mirrored("west.extra") == [16] && agent.mirrored("west.named") == [15]
    });
    let gone = agent.json(&["link", "delete", "renamed", "--force", "--yes"]);
    assert_eq!(
        gone["mirrors_removed"],
        json!(["west.named", "west.app.a", "west.app.b", "west.extra"]),
        "{gone}"
    );
}
