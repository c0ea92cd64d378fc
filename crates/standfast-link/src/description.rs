//! What the link says about itself: states, lags and errors under Confluent's own names, because operators know them.
//!
//! The JSON field names follow the Cluster Linking REST API (`/links/{link}/mirrors`). What is ours is marked so.

use serde::{Deserialize, Serialize};

use crate::acls::AclSyncDescription;
use crate::configs::ConfigSyncDescription;
use crate::membership::MemberDescription;

/// State of the whole link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[non_exhaustive]
pub enum LinkState {
    /// Both clusters are reached and the mirrors run.
    Active,
    /// The link cannot run until a person changes something (wrong cluster id, refused credentials …).
    Failed,
    /// One of the clusters is not reached; the link retries.
    Unavailable,
    /// Paused by the operator: nothing is fetched or written.
    Paused,
    /// The mirrors were stopped by a failover.
    Stopped,
    /// The link has not connected yet.
    #[default]
    Unknown,
}

/// State of one mirror topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[non_exhaustive]
pub enum MirrorStatus {
    /// All partitions mirror, or wait for records.
    Active,
    /// At least one partition stopped and needs a person; see `mirror_topic_error`. Other partitions go on.
    Failed,
    /// The link as a whole failed.
    LinkFailed,
    /// The link as a whole is paused.
    LinkPaused,
    /// Paused by the operator.
    Paused,
    /// Being promoted: it is stopped as soon as it holds all of the source's log.
    PendingStopped,
    /// The source is not reached at the moment; retried without end.
    SourceUnavailable,
    /// Stopped by promote or failover; the topic belongs to the destination now.
    Stopped,
    /// Being created, seeded or started.
    #[default]
    PendingMirror,
    /// Being restored: what only the mirror holds is exported, then deleted.
    PendingSetupForRestore,
    /// Restored: waits until the source has passed the end of the mirror's old log, then mirrors.
    PendingRestore,
}

/// Why a mirror topic is FAILED or in trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[non_exhaustive]
pub enum MirrorTopicError {
    /// Nothing is wrong.
    #[default]
    NoError,
    /// Not classified; the partition's error text says what happened.
    Unknown,
    /// The source no longer names the topic.
    SourceTopicMayBeDeleted,
    /// The source topic was deleted and created again under the same name.
    SourceTopicIdChanged,
    /// The source has fewer partitions than the mirror topic, or the mirror topic was created by someone else with another count.
    SourcePartitionsDecreased,
    /// The source's log ends before the mirrored position, or its retention took records before they were mirrored.
    UnexpectedTruncation,
    /// The source holds something that this engine cannot reproduce (formats before v2, a rewritten batch of a transaction, a batch that is too large to decode).
    UnsupportedMessageFormat,
    /// The destination holds something that did not come from the source. Ours, not Confluent's: they have no such check.
    Diverged,
    /// The destination refuses the records (too large, policy …). Ours.
    DestinationRefused,
    /// A cluster denies the link's user an operation on the topic. Retried until the ACL is there.
    AuthorizationError,
}

/// State of one partition of a mirror. Ours: Confluent shows `ACTIVE` only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[non_exhaustive]
pub enum PartitionState {
    /// Reads both logs and compares them before anything is written.
    #[default]
    Starting,
    /// Fills the destination up to the offset that the mirror begins at; `destination_log_end_offset` shows how far.
    Seeding,
    /// Mirrors, or waits for records.
    Active,
    /// Waits before another try; the error says why.
    Retrying,
    /// The source is not reached; retried without end.
    SourceUnavailable,
    /// Stopped until a person acts and resumes it; nothing is written.
    Failed,
    /// Stopped by promote or failover.
    Stopped,
    /// Paused, alone or with the whole link.
    Paused,
    /// Mirrored by another agent of a shared link, or by none while it changes hands.
    Elsewhere,
}

/// One mirror topic, as `standfast mirror describe` shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub struct MirrorDescription {
    /// The link's name.
    pub link_name: String,
    /// Topic on the destination.
    pub mirror_topic_name: String,
    /// Topic on the source.
    pub source_topic_name: String,
    /// Partitions known so far; 0 until the source or the destination was asked.
    pub num_partitions: i32,
    /// State of the mirror.
    pub mirror_status: MirrorStatus,
    /// Reason for a state other than ACTIVE.
    pub mirror_topic_error: MirrorTopicError,
    /// Text for `mirror_topic_error` when it concerns the topic, not one partition. Ours.
    pub error: Option<String>,
    /// When the state was entered, milliseconds since 1970.
    pub state_time_ms: i64,
    /// What became of the topic's configs. Ours.
    #[serde(default)]
    pub config_sync: ConfigSyncDescription,
    /// One entry per partition, by partition number.
    pub mirror_lags: Vec<PartitionLag>,
}

impl MirrorDescription {
    /// Largest lag of any partition in records; `None` if any is unknown.
    pub fn max_lag(&self) -> Option<i64> {
        self.mirror_lags
            .iter()
            .map(|p| p.lag)
            .try_fold(0, |worst, lag| lag.map(|l| l.max(worst)))
    }
}

/// One partition of a mirror.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub struct PartitionLag {
    /// Partition number.
    pub partition: i32,
    /// Records on the source (up to its high watermark, as last seen) that the destination has not acknowledged. `None` before the first answer of the source.
    pub lag: Option<i64>,
    /// The same in bytes: lag in records times the mean size of the records mirrored so far. `None` while nothing was mirrored to estimate from.
    pub lag_bytes: Option<i64>,
    /// 0 while the destination holds all that the source is known to hold and the source answers; else seconds since that was last so. If it never was so in this run: age
    /// of the newest mirrored record by its timestamp. `None` if neither is known.
    pub lag_seconds: Option<f64>,
    /// Offset that the next fetch asks the source for.
    pub last_source_fetch_offset: i64,
    /// The source's high watermark as last seen.
    pub source_log_end_offset: Option<i64>,
    /// Offset up to which the destination acknowledged the mirror (its log end, unless a foreign writer is at work).
    pub destination_log_end_offset: Option<i64>,
    /// While SEEDING: the offset up to which the destination is being filled. Ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed_target_offset: Option<i64>,
    /// State.
    pub state: PartitionState,
    /// Why the state is not ACTIVE, with offsets and what to do.
    pub error: Option<String>,
    /// Milliseconds since 1970 of the source's last answer for this partition.
    pub last_source_contact_ms: Option<i64>,
    /// Of a shared link: the agent that mirrors it, if it is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
}

/// What became of the offsets of one consumer group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub struct GroupDescription {
    /// Consumer group, as the source calls it.
    pub group: String,
    /// Its name on the destination, if groups get the link's prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror_group: Option<String>,
    /// Offsets carried over in this run.
    pub committed_offsets: u64,
    /// Milliseconds since 1970 of the last run without an error.
    pub last_success_ms: Option<i64>,
    /// Why the last run did not carry the offsets over.
    pub error: Option<String>,
}

/// The whole link.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub struct LinkDescription {
    /// The link's name.
    pub link_name: String,
    /// State of the link.
    pub link_state: LinkState,
    /// Why the state is not ACTIVE.
    pub link_error: Option<String>,
    /// Cluster id of the source, once it was reached.
    pub source_cluster_id: Option<String>,
    /// Cluster id of the destination, once it was reached.
    pub destination_cluster_id: Option<String>,
    /// Producer id on the destination that all engines of this link share.
    pub producer_id: Option<i64>,
    /// Bytes of record data per second that may be read from the source; `None`: no limit.
    #[serde(default)]
    pub rate_limit: Option<u64>,
    /// Seconds that reading was held back by the rate limit, summed over all readers of the link.
    #[serde(default)]
    pub throttled_seconds: f64,
    /// One entry per mirror topic, in the order of the options.
    pub mirrors: Vec<MirrorDescription>,
    /// One entry per consumer group, in the order of the options.
    pub groups: Vec<GroupDescription>,
    /// Of a shared link: the agents that mirror it, as the last assignment says. Empty for one that is not shared.
    #[serde(default)]
    pub members: Vec<MemberDescription>,
    /// `None` if ACLs are not carried over.
    #[serde(default)]
    pub acl_sync: Option<AclSyncDescription>,
}

/// One partition after [`LinkHandle::stop_mirrors`](crate::LinkHandle::stop_mirrors).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoppedMirror {
    /// Mirror topic.
    pub topic: String,
    /// Partition number.
    pub partition: i32,
    /// Log end offset of the destination, asked from it after the last append: the destination holds the source's log up to here. `None` if the
    /// destination did not answer, or if the partition had FAILED (its content is not known to be the source's).
    pub destination_log_end_offset: Option<i64>,
    /// The source's high watermark as last seen; `None` if it was never seen.
    pub source_log_end_offset: Option<i64>,
    /// Records known to be on the source only (RPO). At least this many: the source may have taken more since `last_source_contact_ms`. `None` if unknown.
    pub rpo_records: Option<i64>,
    /// Upper bound of what may be lost, in seconds: the time since the destination last held all that the source was known to hold. `None` if unknown.
    pub rpo_seconds: Option<f64>,
    /// Milliseconds since 1970 of the source's last answer for this partition.
    pub last_source_contact_ms: Option<i64>,
    /// Transactions of the source of which only a part was mirrored; they were aborted on the destination. Each abort marker takes one offset above `destination_log_end_offset`.
    #[serde(default)]
    pub aborted_transactions: usize,
    /// All that had been sent was acknowledged before the deadline.
    pub drained: bool,
    /// State of the partition before it was stopped.
    pub state_before: PartitionState,
    /// What went wrong, if anything.
    pub error: Option<String>,
}

/// Log ends of one partition, asked from both clusters at about the same time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LagNow {
    /// Mirror topic.
    pub topic: String,
    /// Partition number.
    pub partition: i32,
    /// High watermark of the source, asked first.
    pub source_log_end_offset: i64,
    /// Log end of the destination, asked afterwards.
    pub destination_log_end_offset: i64,
}

impl LagNow {
    /// Records that the destination does not hold yet.
    pub fn records(&self) -> i64 {
        (self.source_log_end_offset - self.destination_log_end_offset).max(0)
    }
}
