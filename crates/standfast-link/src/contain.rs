//! A panic in one task of a shard is a bug, but only that task's connection pays for it: its partitions start again from the logs.

use std::future::Future;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use tracing::error;

/// Runs a task to its end; a panic becomes the text of an error.
///
/// The runtime would drop the panic in silence and leave the task's partitions standing still. State that the task shares may be taken as sound after it:
/// borrows end with the unwinding, and a partition that starts again forgets all but the logs.
pub(crate) async fn contain<T>(
    what: &'static str,
    task: impl Future<Output = T>,
) -> Result<T, String> {
    AssertUnwindSafe(task).catch_unwind().await.map_err(|_| {
        error!(task = what, "a task of the link panicked, its partitions start again; this is a bug, please report it with the lines above");
        format!("internal error: the {what} panicked, see the agent's log")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_becomes_an_error_and_a_value_passes() {
        assert_eq!(contain("adder", async { 1 + 1 }).await, Ok(2));
        let outcome = contain::<()>("fetcher", async { panic!("a bug") }).await;
        assert!(outcome.unwrap_err().contains("the fetcher panicked"));
    }
}
