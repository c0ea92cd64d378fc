//! A mirror never diverges silently.

use std::time::{Duration, Instant};

use standfast_tests::agent::{Agent, AgentConfig};
use standfast_tests::load::{self, Seen};
use standfast_tests::wait;

use crate::shared_pair;

const SOON: Duration = Duration::from_secs(30);
/// From the foreign record's acknowledgement to the state in `mirror describe`.
const NOTICED: Duration = Duration::from_secs(1);

fn record(value: &str) -> Seen {
    Seen {
        offset: 0,
        key: None,
        value: Some(value.into()),
        headers: Vec::new(),
        timestamp: 1_700_000_000_000,
    }
}

#[test]
fn a_foreign_writer_stops_the_mirror_within_a_second() {
    let pair = shared_pair();
    let topic = "diverged";
    pair.west.create_topic(topic, 2, &[]).expect("topic");
    let mut config = AgentConfig::of(pair, &[topic]);
    config.name = "diverged".to_owned();
    let agent = Agent::start(pair, &config);
    let ours: Vec<Seen> = (0..100)
        .map(|index| record(&format!("ours {index}")))
        .collect();
    for partition in 0..2 {
        load::write(&pair.west.bootstrap(), "none", topic, partition, &ours);
    }
    wait::until_true("mirrored", SOON, || {
        pair.east.log_end_offsets(topic).ok() == Some(vec![100, 100])
    });

    load::write(
        &pair.east.bootstrap(),
        "none",
        topic,
        0,
        &[record("foreign")],
    );
    let written = Instant::now();
    let mirror = wait::until("the mirror is FAILED", SOON, || {
        let mirror = agent.mirror(topic);
        if mirror["mirror_status"] == "FAILED" {
            Ok(mirror)
        } else {
            Err(mirror)
        }
    });
    let noticed = written.elapsed();
    assert!(noticed < NOTICED, "noticed after {noticed:?}");
    assert_eq!(mirror["mirror_topic_error"], "DIVERGED", "{mirror}");
    let error = mirror["mirror_lags"][0]["error"]
        .as_str()
        .unwrap_or_default();
    assert!(
        error.contains("100"),
        "the error names the offset: {mirror}"
    );

    // What the source gets now is not written behind the foreign record; the sound partition goes on.
    load::write(&pair.west.bootstrap(), "none", topic, 0, &ours);
    load::write(&pair.west.bootstrap(), "none", topic, 1, &ours);
    wait::until_true("the other partition goes on", SOON, || {
        pair.east
            .log_end_offsets(topic)
            .is_ok_and(|ends| ends[1] == 200)
    });
    assert_eq!(
        pair.east.log_end_offsets(topic).expect("log ends"),
        [101, 200]
    );
}
