//! Requests of a lost agent that reach the broker when others have gone on: while the link mirrors, and after a failover.

use std::time::Duration;

use standfast_tests::agent::{Agent, AgentConfig};
use standfast_tests::faulty::FaultyBroker;
use standfast_tests::load::SteadyLoad;
use standfast_tests::pair::Pair;
use standfast_tests::wait;

use crate::shared_pair;
use crate::sharing::{PARTITIONS, ends, wait_grown, wait_shares};

const PATIENCE: Duration = Duration::from_secs(90);
const TOPIC: &str = "late";

fn config(pair: &Pair, name: &str) -> AgentConfig {
    let mut config = AgentConfig::of(pair, &[TOPIC]);
    config.name = name.to_owned();
    config.link_name = Some("late");
    let discovery = pair.folder().join("late-discovery");
    config.discovery = format!("backend = \"file\"\npath = {discovery:?}");
    config.link_lines = "shared = true".to_owned();
    config
}

/// The agent is killed with requests on their way, which the proxy keeps.
fn lose(agent: &mut Agent, proxy: &FaultyBroker) {
    proxy.hold();
    wait::until_true("requests are held back", PATIENCE, || proxy.held() > 0);
    agent.kill();
}

#[test]
fn a_request_that_arrives_late_changes_nothing() {
    let pair = shared_pair();
    pair.west
        .create_topic(TOPIC, PARTITIONS, &[])
        .expect("topic");
    let load = SteadyLoad::start(&pair.west.bootstrap(), TOPIC, PARTITIONS);
    let proxy = FaultyBroker::start(&pair.east.bootstrap());
    let one = Agent::start(pair, &config(pair, "late-one"));
    let mut behind = config(pair, "late-two");
    behind.bootstrap[1] = proxy.bootstrap();
    let mut two = Agent::start(pair, &behind);
    wait_shares(&[&one, &two], &["late-one", "late-two"]);

    // Others mirror the partitions by now: it repeats what they have written.
    lose(&mut two, &proxy);
    wait_shares(&[&one], &["late-one"]);
    wait_grown(pair, TOPIC);
    println!("delivered late: {} requests", proxy.deliver());
    wait_grown(pair, TOPIC);
    two.spawn();
    two.wait_ready();
    wait_shares(&[&one, &two], &["late-one", "late-two"]);

    // Nobody has mirrored what it sends, and the topic is the applications' own by now.
    lose(&mut two, &proxy);
    let report = one.json(&["failover", "--yes"]);
    assert_eq!(report["outcome"], "FLIPPED", "{report}");
    let written = load.finish();
    let lags = report["topics"][0]["mirror_lags"].as_array();
    let mirrored: Vec<i64> = lags
        .expect("lags")
        .iter()
        .map(|lag| lag["destination_log_end_offset"].as_i64().expect("an end"))
        .collect();
    assert_eq!(mirrored.len(), PARTITIONS as usize);
    assert!(mirrored.iter().sum::<i64>() < written);
    // One marker each, which keeps it out.
    let fenced: Vec<i64> = mirrored.iter().map(|end| end + 1).collect();
    wait::until("the partitions are fenced", PATIENCE, || {
        let found = ends(&pair.east, TOPIC);
        if found == fenced {
            Ok(())
        } else {
            Err(format!("{found:?}, wanted {fenced:?}"))
        }
    });
    println!("delivered after the failover: {} requests", proxy.deliver());
    assert_eq!(
        ends(&pair.east, TOPIC),
        fenced,
        "nothing came behind the flip"
    );
}
