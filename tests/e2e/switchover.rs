//! A planned switchover under load: nothing lost, nothing twice.

use std::collections::BTreeMap;
use std::time::Duration;

use standfast::Fleet;
use standfast::discovery::DiscoveryOptions;
use standfast_tests::agent::{Agent, AgentConfig};
use standfast_tests::application::{Application, counted, lost_and_duplicated};
use standfast_tests::wait;

use crate::shared_pair;

const TOPIC: &str = "switchover";
const PARTITIONS: i32 = 4;
const SOON: Duration = Duration::from_secs(60);

#[test]
fn a_switchover_under_load_loses_and_repeats_nothing() {
    let pair = shared_pair();
    pair.west
        .create_topic(TOPIC, PARTITIONS, &[])
        .expect("topic");
    let discovery = pair.folder().join("switchover-discovery");
    let mut config = AgentConfig::of(pair, &[TOPIC]);
    config.name = "switchover".to_owned();
    config.discovery = format!("backend = \"file\"\npath = {discovery:?}");
    config.groups = vec!["billing".to_owned()];
    let agent = Agent::start(pair, &config);
    let fleet = Fleet::builder("payments").discovery(DiscoveryOptions::file(discovery));
    let mut application = Application::start(fleet, TOPIC);
    application.wait_progress("the application works on west", 3_000, SOON);
    wait::until_true("the copy is under way", SOON, || {
        pair.east
            .log_end_offsets(TOPIC)
            .is_ok_and(|ends| ends.iter().all(|&end| end > 100))
    });

    let report = agent.json(&["switchover", "--yes", "--reason", "maintenance"]);
    assert_eq!(report["outcome"], "FLIPPED", "{report}");
    assert_eq!(report["rpo_records"], 0, "{report}");
    assert_eq!(
        report["late_writes"].as_array().map(Vec::len),
        Some(0),
        "{report}"
    );
    application.wait_progress("the application works on east", 3_000, SOON);

    let sent = application.finish_load();
    let ends = pair.east.log_end_offsets(TOPIC).expect("log ends");
    application.wait_consumed_to("east", &ends);
    let on_east = sent
        .iter()
        .filter(|sent| sent.delivery.cluster.as_str() == "east")
        .count();
    assert!(
        on_east >= 3_000 && sent.len() - on_east >= 3_000,
        "{on_east} of {}",
        sent.len()
    );

    let consumed = counted(application.received().iter().map(|record| record.number));
    let nothing = (Default::default(), Default::default());
    assert_eq!(
        lost_and_duplicated(sent.len(), &consumed),
        nothing,
        "(lost, duplicated) at the consumer"
    );

    let mut last = BTreeMap::new();
    for record in application.received() {
        let before = last.insert(record.partition, record.number);
        assert!(before < Some(record.number), "after {before:?}: {record:?}");
    }

    let bootstrap = pair.east.bootstrap();
    let mut numbers = Vec::new();
    for (partition, &end) in (0..).zip(&ends) {
        let log = application.log(&bootstrap, partition, end);
        let disorder = log.windows(2).find(|two| two[0] >= two[1]);
        assert_eq!(disorder, None, "partition {partition} is out of order");
        numbers.extend(log);
    }
    assert_eq!(
        lost_and_duplicated(sent.len(), &counted(numbers)),
        nothing,
        "(lost, duplicated) in east's log"
    );
    println!(
        "switchover: {} sent, {} held and handed to east first, {} ms",
        sent.len(),
        application.fleet().snapshot().records_resent,
        report["total_ms"]
    );
}
