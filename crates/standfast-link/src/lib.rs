//! The link engine: mirrors Kafka topics byte for byte and offset for offset into a stock Apache Kafka cluster.
//!
//! [`Link`] runs, [`LinkHandle`] asks and steers. The logs are the state: there is no offsets topic and no checkpoint.
//! `DESIGN.md` of the project explains compare-and-append, on which everything here rests.
#![forbid(unsafe_code)]

mod acls;
mod beginning;
mod budget;
mod calls;
mod classify;
mod codec;
mod compare;
mod configs;
mod contain;
mod description;
mod discover;
mod error;
mod fence;
mod fetcher;
mod filler;
mod filters;
mod gap;
mod groups;
mod guard;
mod handle;
mod identity;
mod join;
mod lifecycle;
mod link;
mod live;
mod membership;
mod metrics;
mod names;
mod numbering;
mod options;
mod outputs;
mod oversize;
mod partition;
mod paused;
mod promote;
mod rate;
mod records;
mod refusal;
mod rest;
mod restore;
mod retention;
mod rewrite;
mod seed;
mod shard;
mod slow;
mod start;
mod startup;
mod status;
mod topics;
mod transactions;
mod transitions;
mod unread;
mod verify;
mod writer;

pub use acls::{AclFilter, AclResourceType, AclSyncDescription, AclSyncOptions};
pub use configs::{ConfigSyncDescription, can_be_excluded};
pub use description::{
    GroupDescription, LagNow, LinkDescription, LinkState, MirrorDescription, MirrorStatus,
    MirrorTopicError, PartitionLag, PartitionState, StoppedMirror,
};
pub use error::Error;
pub use filler::{FILLER_HEADER, FILLER_KEY, is_filler_record};
pub use filters::{Filter, FilterType, PatternType, admits, admits_topic, excludes, is_internal};
pub use handle::LinkHandle;
pub use lifecycle::{
    Lifecycle, MirrorChange, RunningState, StopOrder, TopicState, TransitionErrorCode, Wanted,
};
pub use link::Link;
pub use membership::{MemberDescription, SharingOptions};
pub use names::mirror_name;
pub use options::{
    BackoffOptions, FetchOptions, LinkName, LinkOptions, MAX_IN_FLIGHT, MAX_NAME_LEN,
    MIN_GROUP_SYNC_INTERVAL, ProduceOptions,
};
pub use rate::MIN_RATE_LIMIT;
pub use restore::{
    LostTail, MirrorRestore, PartitionTruncation, RestoreExport, RestoreMode, RestoreOptions,
    RestorePhase, RestoreState, TopicShape,
};
pub use standfast_wire::TopicPrefix;
pub use start::MirrorStart;
pub use transitions::Transition;
pub use unread::UnreadRecords;
pub use verify::{
    Difference, DifferenceKind, NotComparable, PartitionVerified, VerifyError, VerifyOptions,
    VerifyProgress, VerifyReport, VerifyResult, same_at, verify,
};
