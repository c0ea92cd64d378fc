//! Failover (unplanned) and switchover (planned): moving the fleet from one cluster to another.
//!
//! Order of a failover: lock → read the record fresh → preconditions → stop the mirrors and note their log ends →
//! write the handoff for epoch + 1 → compare-and-set the record, only while the lock is still valid → report.
//! The source is never waited for, and every step has a deadline. Whatever step it dies in, running it again is safe:
//! until the record is changed nothing has happened that a restarted agent does not undo (it mirrors on), and
//! afterwards there is nothing left to do.

mod coordination;
mod drain;
mod flip;
mod late_writes;
mod planned;
mod report;
mod steps;
#[cfg(test)]
mod tests;
mod unplanned;
mod unread;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::Duration;

use standfast_discovery::{
    CasOutcome, ClusterName, Epoch, FleetName, FleetRecord, Handoff, Version, Versioned,
};

use standfast_link::UnreadRecords;
use tokio_util::sync::CancellationToken;

use crate::api::{ErrorCode, Report, TopicReport};

pub(crate) use coordination::DiscoveryCoordination;
pub(crate) use flip::handoff_epoch;
pub(crate) use planned::{Drain, switchover};
pub(crate) use steps::Steps;
pub(crate) use unplanned::failover;
pub(crate) use unread::GROUP_READS_MAX;

/// What failover needs of discovery. Real servers implement it through [`DiscoveryCoordination`]; the tests put
/// faults here that a real server does not produce on demand.
pub(crate) trait Coordination: Send + Sync {
    type Lock: FleetLock;
    fn lock(&self) -> impl Future<Output = Result<Self::Lock, CoordinationError>> + Send;
    fn read(
        &self,
    ) -> impl Future<Output = Result<Option<Versioned<FleetRecord>>, CoordinationError>> + Send;
    fn compare_and_set(
        &self,
        expected: &Version,
        record: &FleetRecord,
    ) -> impl Future<Output = Result<CasOutcome, CoordinationError>> + Send;
    fn write_handoff(
        &self,
        handoff: &Handoff,
    ) -> impl Future<Output = Result<String, CoordinationError>> + Send;
    fn read_handoff(
        &self,
        epoch: Epoch,
    ) -> impl Future<Output = Result<Option<Handoff>, CoordinationError>> + Send;
}

/// The right to change the record, for a while.
pub(crate) trait FleetLock: Send {
    /// How long the holder may still write without a further renewal, whatever the server says later. `None`: the
    /// lock does not expire.
    fn time_left(&self) -> Option<Duration>;
    fn release(self) -> impl Future<Output = ()> + Send;
}

/// Why discovery did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CoordinationError {
    /// Somebody else holds the lock.
    Locked(String),
    /// No answer. A write may or may not have happened.
    Unreachable(String),
    /// An answer that forbids going on (malformed record, access denied, …).
    Refused(String),
}

impl std::fmt::Display for CoordinationError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self::Locked(text) | Self::Unreachable(text) | Self::Refused(text)) = self;
        f.write_str(text)
    }
}

/// Log end offsets by topic and partition.
pub(crate) type LogEnds = BTreeMap<(String, i32), i64>;

/// What failover needs of the links and clusters. `route` is the direction that is given up: from, to.
pub(crate) trait Mirrors: Send + Sync {
    /// Every direction that this agent has a link for.
    fn routes(&self) -> BTreeSet<Route>;
    /// The mirrors as they were last seen. Asks nobody.
    fn last_known(&self, route: &Route) -> Vec<TopicReport>;
    /// Stops the mirrors, for an operation that read the record at `epoch`; after it returns nothing more is appended.
    /// Log ends are as the destination says now. Never waits for the source. Trouble is told per topic.
    fn stop(
        &self,
        route: &Route,
        epoch: Epoch,
        limit: Duration,
    ) -> impl Future<Output = Vec<TopicReport>> + Send;
    /// How long a stop may take on top of its limit: until agents that share a link and are silent are out of its group.
    fn patience(&self, _route: &Route) -> Duration {
        Duration::ZERO
    }
    /// Lets stopped mirrors run again, as far as the record allows it.
    fn resume(&self, route: &Route) -> impl Future<Output = ()> + Send;
    /// Carries over the group offsets now.
    fn sync_groups(&self, route: &Route) -> impl Future<Output = Result<(), String>> + Send;
    /// Whether any link of the route carries consumer groups over.
    fn carries_groups(&self, route: &Route) -> bool;
    /// What these groups have yet to read on the source and the mirrors do not hold. Asks both clusters.
    fn unread(
        &self,
        route: &Route,
    ) -> impl Future<Output = Result<Vec<UnreadRecords>, String>> + Send;
    /// Asks a cluster for the log ends of the route's topics.
    fn log_ends(
        &self,
        cluster: &ClusterName,
        route: &Route,
    ) -> impl Future<Output = Result<LogEnds, String>> + Send;
    /// Of these partitions, those whose logs hold the same on both clusters at the offset given for each.
    fn same_at(
        &self,
        route: &Route,
        offsets: &LogEnds,
    ) -> impl Future<Output = BTreeSet<(String, i32)>> + Send;
    /// What the health probe says.
    fn is_healthy(&self, cluster: &ClusterName) -> bool;
    /// For how long the health probe has had no answer.
    fn unreachable_for(&self, cluster: &ClusterName) -> Option<Duration>;
}

/// A direction of mirroring.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Route {
    pub(crate) from: ClusterName,
    pub(crate) to: ClusterName,
}

/// What an operation works on, and its time limits.
#[derive(Debug, Clone)]
pub(crate) struct Context<C, M> {
    pub(crate) fleet: FleetName,
    pub(crate) coordination: C,
    pub(crate) mirrors: M,
    pub(crate) limits: Limits,
    /// The agent wants to end: a drain gives up, so that no fence is left behind. A failover goes on, it is short.
    pub(crate) shutdown: CancellationToken,
}

/// Upper bounds of the waits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) step: Duration,
    pub(crate) group_sync: Duration,
    /// How long a switchover waits for consumer groups to read what the mirrors do not hold.
    pub(crate) group_reads: Duration,
    pub(crate) late_write_watch: Duration,
}

/// What is asked for, the same for both operations.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    pub(crate) dry_run: bool,
    pub(crate) to: Option<ClusterName>,
    pub(crate) reason: Option<String>,
    /// Of a switchover: consumer groups may skip what they have not read and the mirrors do not hold.
    pub(crate) allow_skips: bool,
}

/// Why an operation did not do what was asked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Failure {
    pub(crate) code: ErrorCode,
    pub(crate) message: String,
    /// How far it got, if it got anywhere.
    pub(crate) report: Option<Box<Report>>,
}

impl Failure {
    fn refused(message: impl Into<String>) -> Self {
        Self {
            code: ErrorCode::Refused,
            message: message.into(),
            report: None,
        }
    }
}

/// Before anything was changed, an error of discovery is a refusal.
impl From<CoordinationError> for Failure {
    fn from(error: CoordinationError) -> Self {
        let (code, message) = match error {
            CoordinationError::Locked(text) => (ErrorCode::OperationInProgress, text),
            CoordinationError::Refused(text) => (ErrorCode::Refused, text),
            CoordinationError::Unreachable(text) => (
                ErrorCode::DiscoveryUnreachable,
                format!(
                    "refused, nothing was changed: discovery gives no answer, and an agent that is cut off must not flip: {text}"
                ),
            ),
        };
        Self {
            code,
            message,
            report: None,
        }
    }
}
