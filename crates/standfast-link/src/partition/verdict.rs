//! What follows for a partition from what a cluster answered: it goes on, starts again, takes the slow path, or stops for good.

use crate::description::MirrorTopicError;
use crate::refusal;

/// What follows from an answer of the destination.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing special.
    GoOn,
    /// Reset and start again.
    StartAgain(Doubt),
    /// Reset and go on on the slow path: the next batch cannot be copied as it is (see [`crate::slow`]).
    Slow,
    /// Reset and stop for good.
    Fail(Failure),
}

/// Why a partition stops for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) error: MirrorTopicError,
    pub(crate) text: String,
}

impl Failure {
    pub(crate) fn new(error: MirrorTopicError, text: impl Into<String>) -> Self {
        Self {
            error,
            text: text.into(),
        }
    }
}

/// Why a partition starts again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Doubt {
    /// The cluster that caused it.
    pub(crate) side: Side,
    pub(crate) error: MirrorTopicError,
    pub(crate) text: String,
}

/// One of the two clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Source,
    Destination,
}

impl Doubt {
    pub(crate) fn source(text: impl Into<String>) -> Self {
        Self {
            side: Side::Source,
            error: MirrorTopicError::NoError,
            text: text.into(),
        }
    }

    pub(crate) fn destination(text: impl Into<String>) -> Self {
        Self {
            side: Side::Destination,
            error: MirrorTopicError::NoError,
            text: text.into(),
        }
    }

    /// A call failed.
    pub(crate) fn failed(side: Side, error: &standfast_wire::Error) -> Self {
        Self {
            side,
            error: refusal::topic_error(error, MirrorTopicError::NoError),
            text: refusal::text(error),
        }
    }

    /// The same doubt, from the error code of one partition.
    pub(crate) fn with_code(mut self, code: standfast_wire::ResponseError) -> Self {
        if refusal::is_authorization(code) {
            self.error = MirrorTopicError::AuthorizationError;
            self.text = format!("{}: {}", refusal::AUTHORIZATION, self.text);
        }
        self
    }
}

/// What follows when all that was fetched is acknowledged.
#[derive(Debug)]
pub(super) enum End {
    Fail(Failure),
    Slow,
}

impl From<End> for Verdict {
    fn from(end: End) -> Self {
        match end {
            End::Fail(failure) => Self::Fail(failure),
            End::Slow => Self::Slow,
        }
    }
}
