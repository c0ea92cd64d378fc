//! One mirror topic as the control plane knows it, and the state that an operator is shown of it.

use std::sync::Arc;

use standfast_wire::TopicPrefix;
use tracing::{error, warn};
use uuid::Uuid;

use crate::configs::ConfigSyncDescription;
use crate::description::{MirrorDescription, MirrorStatus, MirrorTopicError, PartitionState};
use crate::lifecycle::Wanted;
use crate::partition::PartitionId;
use crate::status::{PartitionStatus, now_ms};

/// One mirror topic as the control plane knows it.
#[derive(Debug)]
pub(crate) struct Topic {
    pub(super) name: Arc<str>,
    source_name: Arc<str>,
    pub(super) source_topic_id: Option<Uuid>,
    pub(super) partitions: Vec<Arc<PartitionStatus>>,
    pub(super) trouble: Option<(MirrorTopicError, String)>,
    pub(super) failed: bool,
    state_time_ms: i64,
    /// Its partitions are to start again from the logs, also those that FAILED.
    pub(super) again: bool,
    /// It is to be stopped as soon as it holds all of the source's log.
    pub(crate) promoting: bool,
    /// It rests while its log ends are compared for the last time.
    pub(crate) held: bool,
    pub(crate) config_sync: ConfigSyncDescription,
}

impl Topic {
    pub(crate) fn new(name: &str, prefix: &TopicPrefix) -> Self {
        Self {
            name: name.into(),
            source_name: prefix.own_name(name).into(),
            source_topic_id: None,
            partitions: Vec::new(),
            trouble: None,
            failed: false,
            state_time_ms: now_ms(),
            again: false,
            promoting: false,
            held: false,
            config_sync: ConfigSyncDescription::default(),
        }
    }

    /// The topic or one of its partitions is FAILED.
    pub(crate) fn has_failed(&self) -> bool {
        let failed = |p: &Arc<PartitionStatus>| p.state() == PartitionState::Failed;
        self.failed || self.partitions.iter().any(failed)
    }

    /// One of its partitions was stopped for good.
    pub(crate) fn has_stopped(&self) -> bool {
        let stopped = |p: &Arc<PartitionStatus>| p.state() == PartitionState::Stopped;
        self.partitions.iter().any(stopped)
    }

    /// The source topic that this run began with.
    pub(crate) fn source_topic_id(&self) -> Option<Uuid> {
        self.source_topic_id
    }

    /// Everything starts again from the logs, whatever went wrong before.
    pub(crate) fn begin_again(&mut self) {
        (self.again, self.failed, self.trouble) = (true, false, None);
        self.source_topic_id = None;
    }

    /// Up to where the destination holds the mirror, for the partitions that run.
    pub(crate) fn active_positions(&self) -> impl Iterator<Item = (PartitionId, Option<i64>)> {
        self.ids().zip(&self.partitions).map(|(id, status)| {
            // Elsewhere it is as the destination said last.
            let known = matches!(
                status.state(),
                PartitionState::Active | PartitionState::Elsewhere
            );
            (id, status.position().filter(|_| known))
        })
    }

    /// Whether its partitions rest as they should.
    pub(super) fn rests(&self, wanted: PartitionState) -> bool {
        self.partitions.iter().map(|p| p.state()).all(|state| {
            state == wanted
                || state == PartitionState::Elsewhere
                || (wanted == PartitionState::Paused && state == PartitionState::Failed)
        })
    }

    pub(crate) fn name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }

    pub(crate) fn partitions(&self) -> &[Arc<PartitionStatus>] {
        &self.partitions
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = PartitionId> {
        let name = self.name();
        (0..self.partitions.len()).map(move |n| PartitionId {
            topic: Arc::clone(&name),
            partition: i32::try_from(n).unwrap_or(i32::MAX),
        })
    }

    pub(crate) fn set_trouble(&mut self, error: MirrorTopicError, text: String, failed: bool) {
        if self
            .trouble
            .as_ref()
            .is_none_or(|(_, before)| *before != text)
        {
            self.state_time_ms = now_ms();
            if failed {
                error!(topic = %self.name, reason = %text, "mirror topic FAILED");
            } else {
                warn!(topic = %self.name, reason = %text, "mirror topic waits");
            }
        }
        (self.trouble, self.failed) = (Some((error, text)), failed);
    }

    fn status(&self, wanted: Wanted, link_paused: bool) -> MirrorStatus {
        let states: Vec<PartitionState> = self.partitions.iter().map(|p| p.state()).collect();
        let any = |wanted: &[PartitionState]| states.iter().any(|s| wanted.contains(s));
        match wanted {
            Wanted::Stopped if self.rests(PartitionState::Stopped) => return MirrorStatus::Stopped,
            Wanted::Stopped => return MirrorStatus::PendingStopped,
            Wanted::Paused if self.rests(PartitionState::Paused) => return MirrorStatus::Paused,
            _ => {}
        }
        if link_paused && self.rests(PartitionState::Paused) {
            return MirrorStatus::LinkPaused;
        }
        if self.promoting {
            return MirrorStatus::PendingStopped;
        }
        if self.again {
            return MirrorStatus::PendingMirror;
        }
        let failed_elsewhere = |p: &Arc<PartitionStatus>| {
            p.state() == PartitionState::Elsewhere && p.trouble().is_some()
        };
        if self.failed
            || any(&[PartitionState::Failed])
            || self.partitions.iter().any(failed_elsewhere)
        {
            MirrorStatus::Failed
        } else if any(&[PartitionState::Stopped]) {
            MirrorStatus::Stopped
        } else if any(&[PartitionState::SourceUnavailable]) {
            MirrorStatus::SourceUnavailable
        } else if states.is_empty()
            || any(&[
                PartitionState::Starting,
                PartitionState::Seeding,
                PartitionState::Paused,
            ])
        {
            MirrorStatus::PendingMirror
        } else {
            MirrorStatus::Active
        }
    }

    pub(crate) fn describe(
        &self,
        link: &str,
        wanted: Wanted,
        link_paused: bool,
    ) -> MirrorDescription {
        let partition_error = self
            .partitions
            .iter()
            .filter_map(|p| p.trouble())
            .map(|(error, _)| error)
            .find(|e| *e != MirrorTopicError::NoError);
        let newest_state = self
            .partitions
            .iter()
            .map(|p| p.state_time_ms())
            .max()
            .unwrap_or(0);
        MirrorDescription {
            link_name: link.to_owned(),
            mirror_topic_name: self.name.to_string(),
            source_topic_name: self.source_name.to_string(),
            num_partitions: i32::try_from(self.partitions.len()).unwrap_or(i32::MAX),
            mirror_status: self.status(wanted, link_paused),
            mirror_topic_error: self
                .trouble
                .as_ref()
                .map(|(e, _)| *e)
                .or(partition_error)
                .unwrap_or_default(),
            error: self.trouble.as_ref().map(|(_, text)| text.clone()),
            state_time_ms: newest_state.max(self.state_time_ms),
            config_sync: self.config_sync.clone(),
            mirror_lags: self
                .partitions
                .iter()
                .zip(0..)
                .map(|(p, n)| p.describe(n))
                .collect(),
        }
    }
}

/// The published state of a partition; an empty one if the link never started it.
pub(crate) fn status(topics: &[Topic], id: &PartitionId) -> Arc<PartitionStatus> {
    let known = topics
        .iter()
        .find(|t| t.name == id.topic)
        .and_then(|t| t.partitions.get(usize::try_from(id.partition).ok()?));
    known.map_or_else(|| Arc::new(PartitionStatus::new()), Arc::clone)
}

/// The published state of one partition; an empty one if the link never started it.
pub(crate) fn status_of(topic: &Topic, partition: i32) -> Arc<PartitionStatus> {
    let known = usize::try_from(partition)
        .ok()
        .and_then(|n| topic.partitions.get(n));
    known.map_or_else(|| Arc::new(PartitionStatus::new()), Arc::clone)
}
