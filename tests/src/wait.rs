//! Waiting for a condition with a deadline. Tests never sleep for luck.

use std::fmt::Debug;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(20);

/// Polls `condition` until it gives a value; panics with `what` and the last refusal when `deadline` has passed.
pub fn until<T, E: Debug>(
    what: &str,
    deadline: Duration,
    mut condition: impl FnMut() -> Result<T, E>,
) -> T {
    let end = Instant::now() + deadline;
    loop {
        match condition() {
            Ok(value) => return value,
            Err(refusal) if Instant::now() > end => {
                panic!("not within {deadline:?}: {what}; last seen: {refusal:?}")
            }
            Err(_) => std::thread::sleep(POLL),
        }
    }
}

/// [`until`] for a plain yes or no.
pub fn until_true(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) {
    until(
        what,
        deadline,
        || if condition() { Ok(()) } else { Err(()) },
    );
}
