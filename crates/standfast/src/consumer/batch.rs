//! Several records at a time.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use super::mailbox::Item;
use super::{FailoverConsumer, Message};
use crate::error::Result;

impl FailoverConsumer {
    /// The next records, at most `max`: as soon as so many are there, or those that are there after `wait`, which may be none.
    /// No more are waited for than are read ahead ([`read_ahead`](crate::ConsumerBuilder::read_ahead)). `None` once the consumer is
    /// closed. Cancel-safe: nothing is taken before all of it is returned.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # async fn example(mut consumer: standfast::FailoverConsumer) -> standfast::Result<()> {
    /// # async fn store(_: &[standfast::Message]) {}
    /// while let Some(batch) = consumer.next_batch(500, Duration::from_millis(200)).await {
    ///     let batch = batch?;
    ///     store(&batch).await;
    ///     consumer.ack_batch(&batch)?;
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`next`](Self::next). Records that come before an error are returned without it, and the error by the next call.
    pub async fn next_batch(&mut self, max: usize, wait: Duration) -> Option<Result<Vec<Message>>> {
        let max = max.max(1);
        let mut deadline = pin!(tokio::time::sleep(wait));
        let mut is_late = false;
        poll_fn(|cx| {
            is_late = is_late || deadline.as_mut().poll(cx).is_ready();
            if !is_late && !self.has_waiting(cx, max) {
                return Poll::Pending;
            }
            match self.take_batch(cx, max) {
                // What was there is not handed out, such as filler.
                Poll::Ready(Some(Ok(batch))) if batch.is_empty() && !is_late => Poll::Pending,
                taken => taken,
            }
        })
        .await
    }

    fn has_waiting(&self, cx: &Context<'_>, max: usize) -> bool {
        let local = self.local.len();
        let wanted = max.saturating_sub(local);
        wanted == 0 || self.shared().mailbox.holds(cx, wanted)
    }

    fn take_batch(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
    ) -> Poll<Option<Result<Vec<Message>>>> {
        let mut batch = Vec::new();
        while batch.len() < max {
            match self.poll_message(cx) {
                Poll::Ready(Some(Ok(message))) => batch.push(message),
                Poll::Ready(Some(Err(error))) if batch.is_empty() => {
                    return Poll::Ready(Some(Err(error)));
                }
                Poll::Ready(Some(Err(error))) => {
                    self.local.push_front(Item::Failure(error));
                    break;
                }
                Poll::Ready(None) if batch.is_empty() => return Poll::Ready(None),
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
        Poll::Ready(Some(Ok(batch)))
    }
}
