//! End-to-end tests: the `standfast` binary and the wrapper on real servers. One file per theme.

mod bad_input;
mod chaos;
mod crash;
mod cut_off;
mod divergence;
mod failover;
mod filler;
mod forgotten;
mod identity;
mod outages;
mod returned;
mod sharing;
mod sharing_transactions;
mod stragglers;
mod switchover;
mod transactional;

use std::sync::OnceLock;

use standfast_tests::pair::Pair;

/// The pair of clusters for tests that stop no server; each test uses topics of its own. It ends with this process.
pub(crate) fn shared_pair() -> &'static Pair {
    static PAIR: OnceLock<Pair> = OnceLock::new();
    PAIR.get_or_init(Pair::start)
}
