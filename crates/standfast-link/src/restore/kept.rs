//! What must be safe before a restore deletes anything: that it goes on, and what its topic looked like.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::lifecycle::Lifecycle;

/// How long a restore waits for the running state to be kept.
const KEPT_WITHIN: Duration = Duration::from_secs(30);

/// What a topic is created with again by a restore in mode full: its own, not the source's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopicShape {
    /// Configs set on the topic.
    pub configs: BTreeMap<String, String>,
    /// Replicas per partition.
    pub replication_factor: i16,
}

impl Lifecycle {
    /// Says that the state is kept over restarts, and up to which [revision](crate::RunningState::revision) that is done. Whoever keeps it calls this once at the beginning
    /// and after each write: from the first call on, a restore deletes nothing before what the next engine needs to know is safe.
    pub fn note_kept(&self, revision: u64) {
        self.kept.send_replace(Some(revision));
    }

    /// Waits until the state as it is now is kept; at once if nobody keeps it.
    pub(super) async fn kept(&self) -> Result<(), String> {
        let revision = self.state().revision;
        let mut kept = self.kept.subscribe();
        let safe = kept.wait_for(|kept| kept.is_none_or(|kept| kept >= revision));
        match tokio::time::timeout(KEPT_WITHIN, safe).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(format!(
                "that the restore is under way was not saved within {KEPT_WITHIN:?}, so nothing was deleted; the log says why"
            )),
        }
    }
}
