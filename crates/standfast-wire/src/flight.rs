//! One attempt shared by all who want its result.

use std::future::Future;
use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

use crate::error::Error;

type Outcome<T> = Option<Result<T, Error>>;

/// Runs an attempt at most once at a time; everybody who comes meanwhile gets its result.
///
/// The attempt runs in a task of its own, so a caller that goes away does not take it from the others.
#[derive(Debug)]
pub(crate) struct Flight<T> {
    latest: Mutex<Option<watch::Receiver<Outcome<T>>>>,
}

impl<T: Clone + Send + Sync + 'static> Flight<T> {
    pub(crate) fn new() -> Self {
        Self {
            latest: Mutex::new(None),
        }
    }

    /// The result of the latest attempt, if it ended well.
    pub(crate) fn peek(&self) -> Option<T> {
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = latest.as_ref()?.borrow();
        outcome.as_ref()?.as_ref().ok().cloned()
    }

    /// Joins the attempt under way, takes the latest result if it is still `valid`, or else starts `attempt`.
    pub(crate) async fn join<F>(
        &self,
        valid: impl Fn(&T) -> bool,
        attempt: impl FnOnce() -> F,
        lost: Error,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let mut receiver = self.receiver(valid, attempt);
        // Closed without a value: the task was dropped with its runtime.
        match receiver.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or(Err(lost)),
            Err(_) => Err(lost),
        }
    }

    fn receiver<F>(
        &self,
        valid: impl Fn(&T) -> bool,
        attempt: impl FnOnce() -> F,
    ) -> watch::Receiver<Outcome<T>>
    where
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(receiver) = &*latest {
            let usable = match &*receiver.borrow() {
                None => receiver.has_changed().is_ok(),
                Some(Ok(value)) => valid(value),
                Some(Err(_)) => false,
            };
            if usable {
                return receiver.clone();
            }
        }
        let (sender, receiver) = watch::channel(None);
        let attempt = attempt();
        tokio::spawn(async move {
            let outcome = attempt.await;
            sender.send_replace(Some(outcome));
        });
        *latest = Some(receiver.clone());
        receiver
    }
}
