//! A source that wants SASL, and credentials that change while the agent runs.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use standfast_servers::KafkaCluster;
use support::{Agent, file_discovery, produce, west_to_east};

const TOPIC: &str = "orders";

#[test]
fn a_link_picks_up_new_credentials() {
    let (west, east) = std::thread::scope(|scope| {
        let west = scope.spawn(|| {
            KafkaCluster::builder("west")
                .sasl_plain("standfast", "right")
                .start()
                .expect("west")
        });
        let east = scope.spawn(|| KafkaCluster::start("east").expect("east"));
        (west.join().expect("west"), east.join().expect("east"))
    });
    west.create_topic(TOPIC, 1, &[]).expect("create the topic");
    produce(&west.bootstrap(), TOPIC, 0, 10);

    let mut agent = Agent::prepare("");
    let discovery = file_discovery(agent.folder.path());
    let sasl = west.sasl_bootstrap().expect("a SASL listener");
    let text = west_to_east(
        "payments",
        &discovery,
        &sasl,
        &east.bootstrap(),
        &format!("{TOPIC:?}"),
    );
    let west_section = format!("bootstrap = {sasl:?}\n");
    let with_secret =
        format!("{west_section}secret = \"kafka/west\"\nsecurity_protocol = \"SASL_PLAINTEXT\"\n");
    agent.configure(
        &(text.replace(&west_section, &with_secret)
            + "[secrets]\nbackend = \"file\"\npath = \"FOLDER/secrets.toml\"\n"),
    );
    assert_eq!(agent.init_fleet("west").code, 0);

    // No secret yet: the link waits and says for what.
    agent.spawn();
    let reason = agent.json(&["status"])["links"][0]["reason"].clone();
    assert!(
        reason
            .as_str()
            .is_some_and(|r| r.contains("waiting for the credentials \"kafka/west\"")),
        "{reason}"
    );

    // A wrong password: no mirroring, the reason is shown, the password is not.
    write_secret(&agent, "wr0ng-pass");
    agent.until("the refusal is shown", |agent| {
        let status = agent.json(&["status"]);
        let cluster = status["clusters"][1]["last_error"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        cluster.contains("authentication failed")
            && status["links"][0]["link_error"]
                .as_str()
                .is_some_and(|e| e.contains("AUTHENTICATION_ERROR"))
    });
    let config = agent.config().display().to_string();
    let checked = support::standfast(&["config", "check", &config, "--connect"]);
    assert!(
        checked.code == 1 && checked.stdout.contains("authentication failed"),
        "{checked:?}"
    );

    // The right one is picked up without a restart.
    write_secret(&agent, "right");
    agent.until("everything is mirrored", |agent| {
        agent.mirrored(TOPIC) == [10]
    });
    let report = agent.json(&["mirror", "verify", TOPIC]);
    assert_eq!(report["result"], "EQUAL", "{report:#}");
    assert!(report["partitions"][0]["equal_batches"].as_u64() > Some(0));
    let unknown = agent.cli(&["mirror", "verify", "nothing"]);
    assert!(
        unknown.code == 1 && unknown.stderr.contains("no link mirrors the topic"),
        "{unknown:?}"
    );
    assert_eq!(
        agent.log().matches("the link starts").count(),
        1,
        "the link was started again for new credentials:\n{}",
        agent.log()
    );
    assert!(
        !agent.log().contains("wr0ng-pass"),
        "a password is in the log:\n{}",
        agent.log()
    );
    agent.until("the probe is let in", |agent| {
        agent.json(&["status"])["clusters"][1]["status"] == "HEALTHY"
    });
}

fn write_secret(agent: &Agent, password: &str) {
    let file = agent.folder.path().join("secrets.toml");
    let new = agent.folder.path().join("secrets.new.toml");
    fs::write(
        &new,
        format!("[\"kafka/west\"]\nusername = \"standfast\"\npassword = {password:?}\n"),
    )
    .expect("write");
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).expect("mode");
    fs::rename(&new, &file).expect("replace");
}
