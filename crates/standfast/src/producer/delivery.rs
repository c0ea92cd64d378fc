//! The way of an acknowledgement from the client's thread to the one who waits for it.
//!
//! What crosses threads is small and counts no references: names are put in by the one who waits.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use standfast_discovery::{ClusterName, Epoch};
use tokio::sync::oneshot;

use crate::error::{Error, Result};
use crate::record::{Delivery, RecordId};

/// Answers a send.
pub(super) type Completion = oneshot::Sender<std::result::Result<Ack, Box<Error>>>;

/// The other end of it.
pub(super) type Answer = oneshot::Receiver<std::result::Result<Ack, Box<Error>>>;

/// An acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ack {
    pub(super) partition: i32,
    pub(super) offset: i64,
    /// Under which the cluster was active.
    pub(super) epoch: Epoch,
    pub(super) cluster: ClusterNumber,
}

/// Stands for the name of a cluster that acknowledges.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct ClusterNumber(usize);

/// The clusters that a producer has had clients of; as many as the fleet's record has named.
#[derive(Debug, Default)]
pub(super) struct Clusters(Mutex<Vec<ClusterName>>);

impl Clusters {
    pub(super) fn number(&self, name: &ClusterName) -> ClusterNumber {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = names.iter().position(|known| known == name);
        ClusterNumber(known.unwrap_or_else(|| {
            names.push(name.clone());
            names.len() - 1
        }))
    }

    fn name(&self, number: ClusterNumber) -> Option<ClusterName> {
        let names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        names.get(number.0).cloned()
    }
}

/// The acknowledgement of a record, to come. Dropping it does not take the record back.
#[derive(Debug)]
pub struct DeliveryFuture {
    answer: Answer,
    id: RecordId,
    topic: Arc<str>,
    clusters: Arc<Clusters>,
}

impl DeliveryFuture {
    pub(super) fn new(
        answer: Answer,
        id: RecordId,
        topic: Arc<str>,
        clusters: Arc<Clusters>,
    ) -> Self {
        Self {
            answer,
            id,
            topic,
            clusters,
        }
    }

    /// The record's id.
    pub fn id(&self) -> RecordId {
        self.id
    }
}

impl Future for DeliveryFuture {
    type Output = Result<Delivery>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = ready!(Pin::new(&mut self.answer).poll(cx));
        Poll::Ready(match answer {
            Ok(Ok(ack)) => {
                let cluster = self.clusters.name(ack.cluster).ok_or(Error::Closed)?;
                Ok(Delivery {
                    topic: Arc::clone(&self.topic),
                    partition: ack.partition,
                    offset: ack.offset,
                    epoch: ack.epoch,
                    cluster,
                    id: self.id,
                })
            }
            Ok(Err(error)) => Err(*error),
            Err(_) => Err(Error::Closed),
        })
    }
}
