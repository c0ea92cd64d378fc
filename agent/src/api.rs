//! The JSON of the HTTP API: written by the server, read by the command line. Field names are stable.
//!
//! Mirror fields and values are Confluent Cluster Linking's own names, because people and their scripts know them.

mod links;

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::config::Origin;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use standfast_discovery::{ClusterName, Epoch, FleetName, FleetRecord, FleetState};
use standfast_link::{
    AclSyncDescription, GroupDescription, MemberDescription, MirrorChange, MirrorDescription,
    MirrorRestore, RestoreMode, VerifyProgress, VerifyReport,
};

pub(crate) use links::{
    Applied, ConfigOperation, LinkAction, LinkChange, LinkCreateRequest, LinkDeleteRequest,
    LinkUpdateRequest, Setting, SettingChange, SettingDifference, Task, TaskState,
};

/// `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) agent: AgentStatus,
    pub(crate) fleet: FleetStatus,
    pub(crate) clusters: Vec<ClusterStatus>,
    pub(crate) links: Vec<LinkStatus>,
    /// A failover or switchover that is running right now.
    pub(crate) operation: Option<OperationStatus>,
    /// What of the credentials ends soon or has ended.
    #[serde(default)]
    pub(crate) expiring_credentials: Vec<ExpiringCredential>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ExpiringCredential {
    /// Path of the secret; absent for the token that Vault is read with.
    pub(crate) secret: Option<String>,
    /// `client_certificate`, `authority` or `vault_token`.
    pub(crate) part: String,
    /// Subject of the certificate.
    pub(crate) subject: String,
    pub(crate) not_after: Timestamp,
    pub(crate) expired: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct AgentStatus {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) started_at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct FleetStatus {
    pub(crate) name: FleetName,
    pub(crate) epoch: Option<Epoch>,
    pub(crate) active: Option<ClusterName>,
    pub(crate) state: Option<FleetState>,
    pub(crate) source: RecordSource,
    /// Since when discovery gives no answer.
    pub(crate) stale_since: Option<Timestamp>,
    pub(crate) last_error: Option<String>,
}

/// Where the agent's view of the fleet record comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum RecordSource {
    /// Discovery answers.
    Live,
    /// Discovery answered once and does not now; the last answer is used.
    Stale,
    /// Discovery has not answered since the start; the record kept in data_dir is used.
    Cached,
    /// There is no record at all.
    Never,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ClusterStatus {
    pub(crate) name: ClusterName,
    pub(crate) active: bool,
    pub(crate) status: Health,
    /// Since when the status is what it is.
    pub(crate) since: Timestamp,
    pub(crate) bootstrap: String,
    pub(crate) cluster_id: Option<String>,
    pub(crate) last_error: Option<String>,
}

/// A cluster as the probe sees it. Informs the operator; nothing is decided by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum Health {
    Healthy,
    Unreachable,
    /// Not probed often enough yet.
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct LinkStatus {
    pub(crate) link_name: String,
    pub(crate) source_cluster: ClusterName,
    pub(crate) destination_cluster: ClusterName,
    /// ACTIVE, FAILED, UNAVAILABLE, PAUSED, UNKNOWN as the engine says, or STOPPED by the agent.
    pub(crate) link_state: String,
    /// Why the agent holds or restarts the link.
    pub(crate) reason: Option<String>,
    pub(crate) link_error: Option<String>,
    pub(crate) mirror_count: usize,
    /// The largest lag of any partition, in records.
    pub(crate) max_lag: Option<i64>,
    /// Most bytes per second that are read from the source; `null`: no limit.
    #[serde(default)]
    pub(crate) rate_limit: Option<u64>,
    /// `null` if the link carries no ACLs over.
    #[serde(default)]
    pub(crate) acl_sync: Option<AclSyncDescription>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OperationStatus {
    /// `failover` or `switchover`.
    pub(crate) kind: String,
    pub(crate) step: String,
    pub(crate) since: Timestamp,
}

/// `GET /v1/mirrors` and `GET /v1/mirrors/{topic}`: always a list, since a topic may be mirrored by several links.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct MirrorList {
    pub(crate) data: Vec<Mirror>,
}

/// One mirror topic of one link: the engine's own words, and why the agent holds it, if it does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Mirror {
    #[serde(flatten)]
    pub(crate) description: MirrorDescription,
    #[serde(default)]
    pub(crate) mirror_state_transition_errors: Vec<TransitionError>,
}

/// Why a mirror is not in the state that one would expect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TransitionError {
    pub(crate) error_code: String,
    pub(crate) error_message: String,
}

/// Body of `POST /v1/mirrors/{topic}/verify`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VerifyRequest {
    /// Needed only if several links mirror the topic.
    #[serde(default)]
    pub(crate) link: Option<String>,
    #[serde(default)]
    pub(crate) partition: Option<i32>,
    #[serde(default)]
    pub(crate) from: Option<i64>,
    #[serde(default)]
    pub(crate) to: Option<i64>,
}

/// One line of the answer; the last one is a report or an error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum VerifyLine {
    Progress(VerifyProgress),
    Report(VerifyReport),
    Error(ErrorBody),
}

/// Body of `POST /v1/mirrors:VERB`. The mirrors are named in one of three ways.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MirrorsRequest {
    /// Needed if the agent has several links.
    #[serde(default)]
    pub(crate) link: Option<String>,
    #[serde(default)]
    pub(crate) mirror_topic_names: Vec<String>,
    /// A prefix followed by `*`.
    #[serde(default)]
    pub(crate) mirror_topic_name_pattern: Option<String>,
    /// Every mirror of the link.
    #[serde(default)]
    pub(crate) all: bool,
    #[serde(default)]
    pub(crate) dry_run: bool,
    /// How long promote and create may wait for mirrors, and failover for what is in flight.
    #[serde(default)]
    pub(crate) timeout_ms: Option<u64>,
}

/// Body of `POST /v1/mirrors:restore`. The mirrors are named in one of three ways; by pattern or all, those that are FAILED are meant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RestoreRequest {
    /// Needed if the agent has several links.
    #[serde(default)]
    pub(crate) link: Option<String>,
    #[serde(default)]
    pub(crate) mirror_topic_names: Vec<String>,
    /// A prefix followed by `*`.
    #[serde(default)]
    pub(crate) mirror_topic_name_pattern: Option<String>,
    #[serde(default)]
    pub(crate) all: bool,
    #[serde(default)]
    pub(crate) dry_run: bool,
    /// `fast` or `full`.
    #[serde(default)]
    pub(crate) mode: RestoreMode,
    /// A new file on the agent's machine, for the lost tail of one topic; otherwise one is made up in data_dir.
    #[serde(default)]
    pub(crate) export_to: Option<PathBuf>,
    /// Export to the topic `standfast.lost.<topic>` on the destination instead.
    #[serde(default)]
    pub(crate) export_topic: bool,
}

/// What became of each mirror that was to be restored or reversed, in the order asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RestoreResults {
    pub(crate) dry_run: bool,
    pub(crate) data: Vec<MirrorRestore>,
}

/// What became of each mirror, in the order asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct MirrorChanges {
    pub(crate) dry_run: bool,
    pub(crate) data: Vec<MirrorChange>,
}

/// Body of `POST /v1/links:VERB`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LinkRequest {
    /// Needed if the agent has several links.
    #[serde(default)]
    pub(crate) link: Option<String>,
    #[serde(default)]
    pub(crate) dry_run: bool,
}

/// `GET /v1/links` and `GET /v1/links/{link}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct LinkList {
    pub(crate) data: Vec<Link>,
}

/// One link: its status, its mirrors counted, and its groups.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Link {
    #[serde(flatten)]
    pub(crate) status: LinkStatus,
    pub(crate) source_cluster_id: Option<String>,
    pub(crate) destination_cluster_id: Option<String>,
    pub(crate) category_counts: Vec<CategoryCount>,
    pub(crate) groups: Vec<GroupDescription>,
    /// Of a shared link: the agents that mirror it, with what each mirrors.
    #[serde(default)]
    pub(crate) members: Vec<MemberDescription>,
    /// What goes on beside the copying.
    #[serde(default)]
    pub(crate) tasks: Vec<Task>,
    /// Where the link was said: in the file, or by a command.
    pub(crate) origin: Origin,
    /// The keys of `[[links]]` that are set.
    #[serde(default)]
    pub(crate) configs: Vec<Setting>,
}

/// How many mirrors are in one kind of state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CategoryCount {
    /// ACTIVE, PAUSED, PENDING, IN_ERROR, or NOT_APPLICABLE for stopped ones.
    pub(crate) state_category: String,
    pub(crate) count: usize,
}

/// `GET /v1/fleet`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct FleetAnswer {
    pub(crate) fleet: FleetName,
    pub(crate) source: RecordSource,
    pub(crate) last_error: Option<String>,
    pub(crate) record: Option<FleetRecord>,
}

/// Body of `POST /v1/failover`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FailoverRequest {
    #[serde(default)]
    pub(crate) dry_run: bool,
    #[serde(default)]
    pub(crate) to: Option<ClusterName>,
    #[serde(default)]
    pub(crate) reason: Option<String>,
}

/// Body of `POST /v1/switchover`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SwitchoverRequest {
    #[serde(default)]
    pub(crate) dry_run: bool,
    #[serde(default)]
    pub(crate) to: Option<ClusterName>,
    #[serde(default)]
    pub(crate) reason: Option<String>,
    /// How long the drain may take.
    #[serde(default)]
    pub(crate) timeout_ms: Option<u64>,
    /// How long the source must stand still.
    #[serde(default)]
    pub(crate) settle_ms: Option<u64>,
    /// Consumer groups may skip what they have not read and the mirrors do not hold.
    #[serde(default)]
    pub(crate) allow_skips: bool,
}

/// What a failover or switchover did, or (dry run) would do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) fleet: FleetName,
    /// `true` for a switchover.
    pub(crate) planned: bool,
    pub(crate) outcome: Outcome,
    /// The epoch of the record after the operation (dry run: as it is).
    pub(crate) epoch: Option<Epoch>,
    pub(crate) from: Option<ClusterName>,
    pub(crate) to: ClusterName,
    /// The discovery key of the handoff.
    pub(crate) handoff: Option<String>,
    /// The handoff itself: topic → per partition the offset up to which `to` holds the log of `from`.
    pub(crate) handoff_offsets: BTreeMap<String, Vec<Option<i64>>>,
    /// Records that the source is known to have had and the new cluster does not; `null` is unknown. A lower bound when the
    /// failover was not planned: the source may have taken more since its last answer.
    pub(crate) rpo_records: Option<i64>,
    /// Upper bound of the time whose records may be lost, the largest of the topics'; `null` is unknown.
    pub(crate) rpo_seconds: Option<f64>,
    pub(crate) topics: Vec<TopicReport>,
    pub(crate) steps: Vec<Step>,
    pub(crate) total_ms: u64,
    /// What the operator should know; empty is good.
    pub(crate) warnings: Vec<String>,
    /// Records written to the old cluster after the flip: they are on that cluster only.
    pub(crate) late_writes: Vec<LateWrite>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum Outcome {
    /// The record was changed.
    Flipped,
    /// The record was changed, but some topics have errors or unknown log ends.
    FlippedInPart,
    /// Nothing to do.
    AlreadyActive,
    /// Nothing was changed because that was asked for.
    DryRun,
    /// The record was not changed, and mirroring goes on.
    Failed,
    /// Discovery did not say whether the record was changed; mirrors wait until it does.
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TopicReport {
    pub(crate) link_name: String,
    pub(crate) mirror_topic_name: String,
    pub(crate) mirror_status: String,
    pub(crate) error_code: Option<String>,
    pub(crate) error_message: Option<String>,
    pub(crate) rpo_records: Option<i64>,
    pub(crate) rpo_seconds: Option<f64>,
    pub(crate) mirror_lags: Vec<MirrorLag>,
}

/// One partition in a report. Unknown values are `null`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct MirrorLag {
    pub(crate) partition: i32,
    /// Records known to be on the source only.
    pub(crate) lag: Option<i64>,
    /// Upper bound of the time whose records may be on the source only.
    pub(crate) lag_seconds: Option<f64>,
    pub(crate) last_source_fetch_offset: Option<i64>,
    /// As last seen: the source is not asked again.
    pub(crate) source_log_end_offset: Option<i64>,
    pub(crate) destination_log_end_offset: Option<i64>,
    pub(crate) error: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Step {
    pub(crate) name: String,
    pub(crate) ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LateWrite {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    /// Where they begin.
    pub(crate) from_offset: i64,
    pub(crate) records: i64,
}

/// The body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ErrorBody {
    pub(crate) error_code: ErrorCode,
    pub(crate) message: String,
    /// How far a failover or switchover got.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) report: Option<Box<Report>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum ErrorCode {
    BadRequest,
    NotFound,
    /// Another failover or switchover is running, here or elsewhere.
    OperationInProgress,
    /// A precondition does not hold; nothing was changed.
    Refused,
    /// Discovery gives no answer; nothing was changed.
    DiscoveryUnreachable,
    /// The operation failed on the way; mirroring goes on.
    OperationFailed,
    Internal,
}
