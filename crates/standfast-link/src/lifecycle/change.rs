//! What became of a mirror that was told to change its state.

use serde::{Deserialize, Serialize};

use crate::description::{MirrorStatus, PartitionLag};

/// What became of one mirror topic that was told to change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MirrorChange {
    /// The link's name.
    pub link_name: String,
    /// Topic on the destination.
    pub mirror_topic_name: String,
    /// Topic on the source.
    pub source_topic_name: String,
    /// State afterwards.
    pub mirror_status: MirrorStatus,
    /// Why it did not change, or not cleanly. `None`: it is as it was told to be.
    pub error_code: Option<TransitionErrorCode>,
    /// The same in words, with what to do.
    pub error_message: Option<String>,
    /// What a promotion could not carry over once more (group offsets, configs, ACLs). The mirror is stopped all the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Per partition. After a promote or failover the destination's log end is as the destination itself said.
    pub mirror_lags: Vec<PartitionLag>,
}

/// Why a mirror did not change its state as it was told to. Confluent's `mirror_state_transition_errors` have such codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[non_exhaustive]
pub enum TransitionErrorCode {
    /// The link has no such mirror.
    UnknownMirror,
    /// A name that cannot be mirrored.
    InvalidTopic,
    /// The mirror is paused; resume it first.
    MirrorPaused,
    /// The mirror was stopped by promote or failover.
    MirrorStopped,
    /// The mirror is FAILED.
    MirrorFailed,
    /// The mirror runs already.
    MirrorExists,
    /// The source was not reached.
    SourceUnavailable,
    /// The destination was not reached, so its log ends are not known.
    DestinationUnavailable,
    /// The mirror did not reach the end of the source's log in time; it goes on mirroring.
    LagNotZero,
    /// The mirror did not start in time; it goes on trying.
    NotStarted,
    /// Requests of the mirror were still unanswered when the time was up; their connections were closed.
    NotDrained,
    /// Other agents that share the link have not confirmed it; until their session has ended they may still write.
    NotConfirmed,
    /// Something else changed the mirror meanwhile.
    Superseded,
    /// Only a mirror that is FAILED or STOPPED can be restored.
    NotRestorable,
    /// The mirror is being restored.
    RestoreInProgress,
    /// The restore stopped before anything was deleted; the message says why.
    RestoreFailed,
    /// The mirror's log holds records that the source does not have: it can only go on after a restore.
    RestoreNeeded,
    /// The link does not run.
    LinkNotRunning,
    /// The state could not be saved: a restart would not know of it.
    NotSaved,
}
