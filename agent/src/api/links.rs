//! Links that are created, changed and deleted, and what is said of their settings and tasks.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use standfast_link::MirrorChange;

use super::TransitionError;
use crate::config::Origin;

/// Body of `POST /v1/links:create`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LinkCreateRequest {
    pub(crate) link_name: String,
    #[serde(default)]
    pub(crate) dry_run: bool,
    /// The keys of `[[links]]` in the configuration file.
    pub(crate) settings: Map<String, Value>,
}

/// Body of `POST /v1/links:update`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LinkUpdateRequest {
    pub(crate) link: String,
    #[serde(default)]
    pub(crate) dry_run: bool,
    /// Carried out in this order, all or none.
    pub(crate) changes: Vec<SettingChange>,
}

/// One change of one key of `[[links]]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SettingChange {
    pub(crate) name: String,
    pub(crate) operation: ConfigOperation,
    #[serde(default)]
    pub(crate) value: Option<Value>,
}

/// What is done to a key: Kafka's names for the changes of a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum ConfigOperation {
    Set,
    /// Back to the default.
    Delete,
    /// Adds to a list what it does not have yet.
    Append,
    /// Takes out of a list what it has.
    Subtract,
    /// Back to what the configuration file says. Ours.
    Reset,
}

/// Body of `POST /v1/links:delete`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LinkDeleteRequest {
    pub(crate) link: String,
    #[serde(default)]
    pub(crate) dry_run: bool,
    /// Stop the mirrors first, as `mirrors:failover` does.
    #[serde(default)]
    pub(crate) force: bool,
    /// How long that may wait for what is in flight.
    #[serde(default)]
    pub(crate) timeout_ms: Option<u64>,
}

/// What a create, update or delete did, or (dry run) would do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct LinkChange {
    pub(crate) link_name: String,
    pub(crate) dry_run: bool,
    pub(crate) action: LinkAction,
    /// How the link took it. A dry run of an update says how it would.
    pub(crate) applied: Option<Applied>,
    /// The keys that change.
    pub(crate) configs: Vec<SettingDifference>,
    /// Mirrors that come by it: those that are named. Filters find theirs when the source is looked at.
    pub(crate) mirrors_added: Vec<String>,
    pub(crate) mirrors_removed: Vec<String>,
    /// Topics that the source has now and the filters take; `null` if there are none or the source was not asked.
    pub(crate) matching_topics: Option<Vec<String>>,
    pub(crate) warnings: Vec<String>,
    /// What a forced delete did to the mirrors.
    pub(crate) mirrors: Vec<MirrorChange>,
}

impl LinkChange {
    pub(crate) fn new(link: &str, action: LinkAction, dry_run: bool) -> Self {
        Self {
            link_name: link.to_owned(),
            dry_run,
            action,
            applied: None,
            configs: Vec::new(),
            mirrors_added: Vec::new(),
            mirrors_removed: Vec::new(),
            matching_topics: None,
            warnings: Vec::new(),
            mirrors: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum LinkAction {
    Created,
    Updated,
    Deleted,
    /// It is so already.
    Unchanged,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum Applied {
    /// A new link, under way.
    Started,
    /// The running link goes on with it.
    Live,
    /// The link starts again from its logs; other links go on.
    Restarted,
    /// The link does not run now; it will start with it.
    NotRunning,
    /// The link has ended.
    Stopped,
}

/// A key of a link's settings before and after; `null`: not set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SettingDifference {
    pub(crate) name: String,
    pub(crate) before: Option<Value>,
    pub(crate) after: Option<Value>,
}

/// One key of a link's settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Setting {
    pub(crate) name: String,
    /// `null`: the file sets it, and a command took it out.
    pub(crate) value: Option<Value>,
    pub(crate) origin: Origin,
    /// What the file says, if that is something else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) file_value: Option<Value>,
}

/// One of Confluent's link tasks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Task {
    /// `ConsumerOffsetSync`, `AclSync`, `AutoCreateMirror` or `TopicConfigsSync`.
    pub(crate) task_name: String,
    pub(crate) state: TaskState,
    pub(crate) errors: Vec<TransitionError>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum TaskState {
    Active,
    /// Something did not go well; the rest of the task goes on.
    InError,
    NotConfigured,
    LinkFailed,
    LinkUnavailable,
    LinkPaused,
    /// The agent holds the link, or an operation stopped it. Ours.
    LinkStopped,
}
