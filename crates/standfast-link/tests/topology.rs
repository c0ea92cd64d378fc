//! Several links at once: a chain, a pair in both directions, a hub.

#[path = "support/payer.rs"]
mod payer;
mod support;

use payer::write_transactions;
use support::*;

/// A chain a → b → c (with transactions), a pair a ⇄ b on two topics, and c as a hub that two clusters are mirrored into: five links at once, equal offsets
/// everywhere, also at the end of the chain after its middle has lost its engines for a while.
#[tokio::test(flavor = "multi_thread")]
async fn chain_pair_and_hub_run_at_once() {
    let (a, b, c) = std::thread::scope(|scope| {
        let start = |name: &'static str| scope.spawn(move || kafka(name));
        let (a, b, c) = (start("a"), start("b"), start("c"));
        (a.join().unwrap(), b.join().unwrap(), c.join().unwrap())
    });
    let (at_a, at_b, at_c) = (connect(&a).await, connect(&b).await, connect(&c).await);
    a.create_topic("relay", 2, &[]).expect("a topic");
    a.create_topic("from-a", 2, &[]).expect("a topic");
    b.create_topic("from-b", 2, &[]).expect("a topic");
    b.create_topic("back", 1, &[]).expect("a topic");

    let second_leg = || link_options("b-c", &b, &c, &["relay", "from-b"]);
    let first = Running::start(link_options("a-b", &a, &b, &["relay"]));
    let back = Running::start(link_options("b-a", &b, &a, &["back"]));
    let hub = Running::start(link_options("a-c", &a, &c, &["from-a"]));
    let second = Running::start(second_leg());

    write_transactions(&at_a, "relay").await;
    append_some(&at_a, "relay", 1, 40).await;
    append_some(&at_a, "from-a", 0, 20).await;
    append_some(&at_b, "from-b", 1, 20).await;
    append_some(&at_b, "back", 0, 20).await;
    first.wait_caught_up(&at_a, "relay").await;
    second.end().await;
    append_some(&at_a, "relay", 0, 20).await;
    write_transactions(&at_a, "relay").await;
    first.wait_caught_up(&at_a, "relay").await;

    let second = Running::start(second_leg());
    second.wait_caught_up(&at_a, "relay").await;
    second.wait_caught_up(&at_b, "from-b").await;
    hub.wait_caught_up(&at_a, "from-a").await;
    back.wait_caught_up(&at_b, "back").await;
    for (source, destination, topic) in [
        (&at_a, &at_b, "relay"),
        (&at_a, &at_c, "relay"),
        (&at_a, &at_c, "from-a"),
        (&at_b, &at_c, "from-b"),
        (&at_b, &at_a, "back"),
    ] {
        assert_identical(source, destination, topic).await;
    }
    for link in [first, back, hub, second] {
        link.end().await;
    }
}
