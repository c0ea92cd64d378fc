//! An agent that is cut off from Consul and from nothing else: a shared link goes on, and this agent flips nothing. The others switch over, and it stops with them.

use std::time::Duration;

use standfast::Fleet;
use standfast::discovery::DiscoveryOptions;
use standfast_servers::Consul;
use standfast_tests::agent::{Agent, AgentConfig};
use standfast_tests::application::{Application, counted, lost_and_duplicated};
use standfast_tests::cable::Cable;
use standfast_tests::pair::Pair;
use standfast_tests::wait;

use crate::shared_pair;
use crate::sharing::{PARTITIONS, ends, wait_grown, wait_shares};

const TOPIC: &str = "cut-off";
const SOON: Duration = Duration::from_secs(60);

fn config(pair: &Pair, name: &str, consul: &str) -> AgentConfig {
    let mut config = AgentConfig::of(pair, &[TOPIC]);
    config.name = name.to_owned();
    config.link_name = Some("cut-off");
    config.discovery = format!("backend = \"consul\"\naddresses = [{consul:?}]");
    config.link_lines = "shared = true".to_owned();
    config
}

#[test]
fn an_agent_cut_off_from_consul_mirrors_on_never_flips_and_stops_with_the_others() {
    let pair = shared_pair();
    let consul = Consul::start().expect("consul");
    pair.west
        .create_topic(TOPIC, PARTITIONS, &[])
        .expect("topic");
    let address = consul.addr();
    let plain = address.strip_prefix("http://").unwrap_or(&address);
    let cable = Cable::to(plain);
    let names = ["cut-off-one", "cut-off-two"];
    let one = Agent::start(pair, &config(pair, names[0], &address));
    let behind = format!("http://{}", cable.address());
    let two = Agent::start(pair, &config(pair, names[1], &behind));
    let fleet = Fleet::builder("payments").discovery(DiscoveryOptions::consul([address.clone()]));
    let mut application = Application::start(fleet, TOPIC);
    application.wait_progress("the application works on west", 1_000, SOON);
    wait_shares(&[&one, &two], &names);

    cable.cut();
    wait::until("the agent notices", SOON, || {
        let fleet = two.json(&["fleet", "show"]);
        let source = fleet["source"].clone();
        if source == "STALE" {
            Ok(())
        } else {
            Err(source)
        }
    });
    let refused = two.cli(&["failover", "--yes", "--output", "json"]);
    println!(
        "failover at the one cut off: {} {}",
        refused.status,
        String::from_utf8_lossy(&refused.stdout)
    );
    assert!(!refused.status.success());
    assert_eq!(one.json(&["fleet", "show"])["record"]["epoch"], 1);
    // Both mirror on, also what the one cut off has.
    wait_grown(pair, TOPIC);
    wait_shares(&[&one, &two], &names);

    let report = one.json(&["switchover", "--yes"]);
    assert_eq!(report["outcome"], "FLIPPED", "{report}");
    assert_eq!(report["rpo_records"], 0, "{report}");
    assert_eq!(
        report["late_writes"].as_array().map(Vec::len),
        Some(0),
        "{report}"
    );
    // It has heard of it from the group, not from Consul.
    assert_eq!(two.json(&["fleet", "show"])["source"], "STALE");
    assert_eq!(two.mirror(TOPIC)["mirror_status"], "STOPPED");
    application.wait_progress("the application works on east", 1_000, SOON);
    cable.mend();
    wait::until("its link is held by the record", SOON, || {
        let status = two.json(&["status"]);
        let reason = status["links"][0]["reason"].clone();
        let held = reason.as_str().is_some_and(|r| r.contains("is the active"));
        if held { Ok(()) } else { Err(status) }
    });

    let sent = application.finish_load();
    let ends = ends(&pair.east, TOPIC);
    application.wait_consumed_to("east", &ends);
    let consumed = counted(application.received().iter().map(|record| record.number));
    let nothing = (Default::default(), Default::default());
    assert_eq!(lost_and_duplicated(sent.len(), &consumed), nothing);
    let log = (0..)
        .zip(&ends)
        .flat_map(|(partition, end)| application.log(&pair.east.bootstrap(), partition, *end));
    assert_eq!(lost_and_duplicated(sent.len(), &counted(log)), nothing);
}
