//! Agents that share a link of transactional topics: one is killed inside transactions, one frozen, and the logs stay the same.

use std::time::Duration;

use nix::sys::signal::Signal;
use standfast_tests::agent::{Agent, AgentConfig};
use standfast_tests::compare::assert_same_batches;
use standfast_tests::pair::Pair;
use standfast_tests::transactions::TransactionLoad;
use standfast_tests::wait;

use crate::shared_pair;
use crate::sharing::{PARTITIONS, wait_equal, wait_grown, wait_shares};

const TOPIC: &str = "shared-transactions";
const PRODUCERS: usize = 2;
const PATIENCE: Duration = Duration::from_secs(90);

fn config(pair: &Pair, name: &str) -> AgentConfig {
    let mut config = AgentConfig::of(pair, &[TOPIC]);
    config.name = name.to_owned();
    config.link_name = Some("transactional");
    let discovery = pair.folder().join("transactional-discovery");
    config.discovery = format!("backend = \"file\"\npath = {discovery:?}");
    config.link_lines = "shared = true".to_owned();
    config
}

#[test]
fn agents_killed_and_frozen_inside_transactions_leave_one_log() {
    let pair = shared_pair();
    pair.west
        .create_topic(TOPIC, PARTITIONS, &[])
        .expect("topic");
    let load = TransactionLoad::start(&pair.west.bootstrap(), TOPIC, PARTITIONS, PRODUCERS);
    let one = Agent::start(pair, &config(pair, "transactional-one"));
    let mut two = Agent::start(pair, &config(pair, "transactional-two"));
    let both = ["transactional-one", "transactional-two"];
    wait_shares(&[&one, &two], &both);
    wait_grown(pair, TOPIC);

    two.kill();
    wait_shares(&[&one], &both[..1]);
    wait_grown(pair, TOPIC);
    two.spawn();
    two.wait_ready();
    wait_shares(&[&one, &two], &both);

    // The leader of the group, which is what the first one became.
    one.signal(Signal::SIGSTOP);
    wait_shares(&[&two], &both[1..]);
    wait_grown(pair, TOPIC);
    one.signal(Signal::SIGCONT);
    wait_shares(&[&one, &two], &both);
    wait_grown(pair, TOPIC);

    let enough = load.ended() + 50;
    wait::until_true("transactions go on", PATIENCE, || load.ended() > enough);
    println!("{} transactions", load.finish());
    wait_equal(pair, TOPIC);
    assert_same_batches(
        &pair.west.bootstrap(),
        &pair.east.bootstrap(),
        TOPIC,
        PARTITIONS,
    );
    for agent in [&one, &two] {
        assert_eq!(agent.mirror(TOPIC)["mirror_status"], "ACTIVE");
    }
}
