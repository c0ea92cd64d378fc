//! What a broker or a configuration file must not be able to do: end the agent, fill its memory, spoil a log, stop other links.

use std::time::Duration;

use serde_json::Value;
use standfast_tests::agent::{Agent, AgentConfig};
use standfast_tests::compare::assert_same_batches;
use standfast_tests::faulty::{Fault, FaultyBroker};
use standfast_tests::load::{self, Seen};
use standfast_tests::wait;

use crate::shared_pair;

const SOON: Duration = Duration::from_secs(60);
/// What the agent's peak memory may grow by while brokers tell it absurd lengths.
const GROWTH_KIB: u64 = 64 << 10;
/// Spoiled answers per fault before the agent is looked at.
const SPOILED: usize = 3;

fn records(count: usize) -> Vec<Seen> {
    let record = |index: usize| Seen {
        offset: 0,
        key: None,
        value: Some(format!("value {index}").repeat(20).into_bytes()),
        headers: Vec::new(),
        timestamp: 1_700_000_000_000,
    };
    (0..count).map(record).collect()
}

fn link<'a>(status: &'a Value, name: &str) -> &'a Value {
    let links = status["links"].as_array().expect("links");
    links
        .iter()
        .find(|link| link["link_name"] == name)
        .expect("the link")
}

#[test]
fn a_source_that_tells_nonsense_harms_nothing() {
    let pair = shared_pair();
    let (sound, spoiled) = ("nonsense-sound", "nonsense-spoiled");
    for topic in [sound, spoiled] {
        pair.west.create_topic(topic, 1, &[]).expect("topic");
    }
    let broker = FaultyBroker::start(&pair.west.bootstrap());
    let mut config = AgentConfig::of(pair, &[sound]);
    config.name = "nonsense".to_owned();
    config.link_lines = format!(
        "\n[clusters.south]\nbootstrap = {:?}\n\n[[links]]\nname = \"south-to-east\"\nsource = \"south\"\n\
         destination = \"east\"\ntopics = [{spoiled:?}]\n",
        broker.bootstrap()
    );
    let agent = Agent::start(pair, &config);
    let write = |topic: &str| {
        load::write(&pair.west.bootstrap(), "none", topic, 0, &records(50));
        pair.west.log_end_offsets(topic).expect("log ends")
    };
    let wait_mirrored = |topic: &str, ends: &[i64], when: &str| {
        wait::until(&format!("{topic} is mirrored {when}"), SOON, || match pair
            .east
            .log_end_offsets(topic)
        {
            Ok(east) if east == ends => Ok(()),
            other => Err(format!("{other:?}, {}", agent.mirror(topic))),
        });
    };
    wait_mirrored(spoiled, &write(spoiled), "before");
    wait_mirrored(sound, &write(sound), "before");
    let (pid, peak) = (agent.pid(), agent.peak_memory_kib());

    for fault in Fault::ALL {
        let before = broker.spoiled();
        broker.set(fault);
        let ends = write(spoiled);
        wait::until_true(&format!("{fault:?} has been told"), SOON, || {
            broker.spoiled() >= before + SPOILED
        });
        let mirror = wait::until(&format!("{fault:?} is shown"), SOON, || {
            let mirror = agent.mirror(spoiled);
            let error = &mirror["mirror_lags"][0]["error"];
            if error.is_string() {
                Ok(mirror)
            } else {
                Err(mirror)
            }
        });
        let error = mirror["mirror_lags"][0]["error"]
            .as_str()
            .unwrap_or_default();
        println!("{fault:?}: {} {error}", mirror["mirror_status"]);
        assert!(
            error.contains(&broker.bootstrap()) || error.contains(spoiled),
            "{fault:?}: the error names the broker: {error}"
        );
        wait_mirrored(sound, &write(sound), "by the other link");
        broker.set(Fault::None);
        wait_mirrored(spoiled, &ends, "when the broker answers soundly");
    }

    assert_eq!(agent.pid(), pid);
    let grown = agent.peak_memory_kib().saturating_sub(peak);
    assert!(grown < GROWTH_KIB, "the agent's memory grew by {grown} KiB");
    assert!(!agent.log().contains("panicked"), "{}", agent.log());
    let (west, east) = (pair.west.bootstrap(), pair.east.bootstrap());
    assert_same_batches(&west, &east, spoiled, 1);
    assert_same_batches(&west, &east, sound, 1);
}

#[test]
fn a_wrong_cluster_id_fails_its_link_and_no_other() {
    let pair = shared_pair();
    let (sound, foreign) = ("ids-sound", "ids-foreign");
    for topic in [sound, foreign] {
        pair.west.create_topic(topic, 1, &[]).expect("topic");
        load::write(&pair.west.bootstrap(), "none", topic, 0, &records(10));
    }
    let mut config = AgentConfig::of(pair, &[sound]);
    config.name = "ids".to_owned();
    config.link_lines = format!(
        "\n[clusters.south]\nbootstrap = {:?}\ncluster_id = \"not-this-one\"\n\n\
         [clusters.north]\nbootstrap = \"127.0.0.1:1\"\n\n\
         [[links]]\nname = \"south-to-east\"\nsource = \"south\"\ndestination = \"east\"\ntopics = [{foreign:?}]\n\n\
         [[links]]\nname = \"north-to-east\"\nsource = \"north\"\ndestination = \"east\"\ntopics = [\"ids-unreachable\"]\n",
        pair.west.bootstrap()
    );
    let agent = Agent::start(pair, &config);
    let status = wait::until("the link is FAILED", SOON, || {
        let status = agent.json(&["status"]);
        if link(&status, "south-to-east")["link_state"] == "FAILED" {
            Ok(status)
        } else {
            Err(status)
        }
    });
    let error = link(&status, "south-to-east")["link_error"].to_string();
    for named in ["not-this-one", pair.west.cluster_id()] {
        assert!(error.contains(named), "{named} is not in {error}");
    }
    wait::until("the unreachable cluster is named", SOON, || {
        let status = agent.json(&["status"]);
        let unreachable = link(&status, "north-to-east");
        let error = unreachable["link_error"].as_str().unwrap_or_default();
        if unreachable["link_state"] == "UNAVAILABLE" && error.contains("127.0.0.1:1") {
            Ok(())
        } else {
            Err(status)
        }
    });
    wait::until("the sound link goes on", SOON, || {
        match pair.east.log_end_offsets(sound) {
            Ok(ends) if ends == [10] => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    assert!(
        pair.east.log_end_offsets(foreign).is_err(),
        "nothing is mirrored from a cluster that is not the one meant"
    );
}
