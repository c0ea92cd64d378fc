//! There and back three times under load: the active cluster is killed, the other takes over, the first returns, is restored, and takes over again.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::sys::signal::Signal;
use serde_json::Value;
use standfast::Fleet;
use standfast::discovery::DiscoveryOptions;
use standfast_tests::agent::{Agent, AgentConfig};
use standfast_tests::application::{Application, Sent};
use standfast_tests::pair::Pair;
use standfast_tests::wait;

const TOPIC: &str = "returned";
const PARTITIONS: i32 = 2;
const SOON: Duration = Duration::from_secs(90);
const MODES: [&str; 3] = ["fast", "full", "fast"];

fn status(agent: &Agent) -> String {
    let mirror = agent.mirror(TOPIC);
    mirror["mirror_status"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

fn wait_status(agent: &Agent, what: &str, wanted: &[&str]) -> String {
    wait::until(what, SOON, || {
        let found = status(agent);
        if wanted.contains(&found.as_str()) {
            Ok(found)
        } else {
            Err(agent.mirror(TOPIC).to_string())
        }
    })
}

/// The numbers of the records in an export, each with the partition and offset that it had.
fn exported(result: &Value) -> BTreeSet<(i64, i64, usize)> {
    let Some(file) = result["export"]["file"].as_str() else {
        return BTreeSet::new();
    };
    let text = fs::read_to_string(file).expect("the export");
    let each = text.lines().map(|line| {
        let line: Value = serde_json::from_str(line).expect("JSON");
        let value = line["value"].as_str().expect("a value");
        let value = STANDARD.decode(value).expect("base64");
        let number = String::from_utf8_lossy(&value).parse().expect("a number");
        let place = |name: &str| line[name].as_i64().expect("an integer");
        (place("partition"), place("offset"), number)
    });
    each.collect()
}

/// Both logs are equal as far as both hold them, at this moment under load.
fn assert_equal(agent: &Agent, turn: usize) {
    let report = agent.cli(&["mirror", "verify", TOPIC, "--output", "json"]);
    let text = String::from_utf8_lossy(&report.stdout);
    assert!(
        report.status.success(),
        "turn {turn}: {text}\n{}",
        String::from_utf8_lossy(&report.stderr)
    );
}

#[test]
fn three_times_there_and_back_loses_nothing_that_was_mirrored() {
    let mut pair = Pair::start();
    pair.west
        .create_topic(TOPIC, PARTITIONS, &[])
        .expect("topic");
    let groups = vec!["billing".to_owned()];
    let mut config = AgentConfig::of(&pair, &[TOPIC]);
    config.groups = groups.clone();
    let east = Agent::start(&pair, &config);
    config.name = "west-1".to_owned();
    config.link = ["east", "west"];
    let west = Agent::start(&pair, &config);
    let fleet =
        Fleet::builder("payments").discovery(DiscoveryOptions::file(pair.discovery_folder()));
    let mut application = Application::start(fleet, TOPIC);
    let mut tails = BTreeSet::new();
    for (turn, mode) in MODES.into_iter().enumerate() {
        application.wait_progress("the application works on west", 2_000, SOON);
        wait_status(&east, "east mirrors", &["ACTIVE"]);
        assert_equal(&east, turn);
        // Nobody restores, or reverses into, the active cluster.
        for verb in ["restore", "reverse"] {
            let yes: &[&str] = if verb == "restore" { &["--yes"] } else { &[] };
            let refused = west.cli(&[&["mirror", verb, TOPIC], yes].concat());
            let text = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(
                !refused.status.success() && text.contains("active cluster"),
                "{text}"
            );
        }

        // East's agent hangs for a moment, so that west takes records that are never mirrored.
        east.signal(Signal::SIGSTOP);
        application.wait_progress("west takes records alone", 2_000, SOON);
        pair.west.kill();
        east.signal(Signal::SIGCONT);
        let report = east.json(&["failover", "--yes", "--reason", "west is lost"]);
        assert_eq!(report["outcome"], "FLIPPED", "{report}");
        application.wait_progress("the application works on east", 2_000, SOON);

        pair.west.restart().expect("west returns");
        wait_status(&west, "west is compared", &["FAILED"]);
        let rehearsed = west.cli(&["mirror", "reverse", TOPIC, "--dry-run", "--output", "json"]);
        let rehearsed: Value = serde_json::from_slice(&rehearsed.stdout).expect("JSON");
        assert_eq!(
            rehearsed["data"][0]["error_code"], "RESTORE_NEEDED",
            "{rehearsed}"
        );
        let restored = west.json(&["mirror", "restore", "--all", "--mode", mode, "--yes"]);
        let result = &restored["data"][0];
        assert_eq!(result["error_code"], Value::Null, "{restored}");
        let tail = exported(result);
        assert_eq!(
            result["messages_truncated"].as_u64(),
            Some(tail.len() as u64),
            "{restored}"
        );
        assert_eq!(
            result["messages_truncated"],
            rehearsed["data"][0]["messages_truncated"]
        );
        let handoff = &report["handoff_offsets"][TOPIC];
        for (partition, offset, _) in &tail {
            let from = handoff[*partition as usize].as_i64();
            assert!(
                from.is_some_and(|from| *offset >= from),
                "{partition} {offset}: {report}"
            );
        }
        println!(
            "turn {turn} ({mode}): {} records were lost with west and exported",
            tail.len()
        );
        tails.extend(tail);
        wait_status(&west, "west mirrors", &["ACTIVE"]);
        let again = west.json(&["mirror", "reverse", TOPIC]);
        assert_eq!(again["data"][0]["error_code"], Value::Null, "{again}");
        assert_equal(&west, turn);
        // Refused until the health probe has seen west for a while.
        let back = wait::until("the fleet goes back to west", SOON, || {
            let args = [
                "switchover",
                "--yes",
                "--timeout",
                "60s",
                "--output",
                "json",
            ];
            let output = west.cli(&args);
            if output.status.success() {
                Ok(serde_json::from_slice::<Value>(&output.stdout).expect("JSON"))
            } else {
                Err(String::from_utf8_lossy(&output.stderr).into_owned())
            }
        });
        assert_eq!(back["outcome"], "FLIPPED", "{back}");
        assert_eq!(back["rpo_records"], 0, "{back}");
        // What the other link has copied back by then is not taken for a producer that goes on.
        assert_eq!(back["late_writes"], Value::Array(Vec::new()), "{back}");
    }
    application.wait_progress("the application works on west again", 2_000, SOON);
    let sent = application.finish_load();
    wait_status(&east, "east mirrors", &["ACTIVE"]);
    let ends = wait::until("both logs end at the same offsets", SOON, || {
        let (west, east) = (
            pair.west.log_end_offsets(TOPIC),
            pair.east.log_end_offsets(TOPIC),
        );
        match (west, east) {
            (Ok(west), Ok(east)) if west == east => Ok(west),
            other => Err(format!("{other:?}")),
        }
    });
    assert_equal(&east, MODES.len());
    check(&application, &pair, &sent, &ends, &tails);
}

/// Every acknowledged record stands where its acknowledgement says, in the log that was never cut, or in an export.
fn check(
    application: &Application,
    pair: &Pair,
    sent: &[Sent],
    ends: &[i64],
    tails: &BTreeSet<(i64, i64, usize)>,
) {
    let bootstrap = pair.east.bootstrap();
    let logs: Vec<Vec<usize>> = (0..PARTITIONS)
        .zip(ends)
        .map(|(partition, &end)| application.log(&bootstrap, partition, end))
        .collect();
    let mut lost = 0;
    for (number, Sent { delivery, .. }) in sent.iter().enumerate() {
        if delivery.offset < 0 {
            continue;
        }
        let found = logs[delivery.partition as usize].get(delivery.offset as usize);
        if found == Some(&number) {
            continue;
        }
        lost += 1;
        let place = (i64::from(delivery.partition), delivery.offset, number);
        assert!(
            delivery.cluster.as_str() == "west" && tails.contains(&place),
            "{number} is in no log and no export: {delivery:?}, found {found:?}"
        );
    }
    println!(
        "{} sent, {lost} of them were on west alone when it was lost, {} exported",
        sent.len(),
        tails.len()
    );
}
