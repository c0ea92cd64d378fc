//! From log ends to what was lost.

use std::collections::BTreeMap;

use standfast_discovery::{Epoch, FleetName};

use super::{Route, Steps};
use crate::api::{MirrorLag, Outcome, Report, TopicReport};

impl TopicReport {
    /// A topic about which nothing is known yet.
    pub(crate) fn unknown(link_name: &str, topic: &str, mirror_status: &str) -> Self {
        Self {
            link_name: link_name.to_owned(),
            mirror_topic_name: topic.to_owned(),
            mirror_status: mirror_status.to_owned(),
            error_code: None,
            error_message: None,
            rpo_records: None,
            rpo_seconds: None,
            mirror_lags: Vec::new(),
        }
    }

    /// Whether the handoff can say how far every partition goes, and the mirror itself is sound.
    pub(super) fn is_complete(&self) -> bool {
        self.error_code.is_none()
            && !self.mirror_lags.is_empty()
            && self
                .mirror_lags
                .iter()
                .all(|lag| lag.destination_log_end_offset.is_some())
    }

    /// Works out the lags and the RPO from the log ends.
    pub(super) fn assess(&mut self) {
        for lag in &mut self.mirror_lags {
            if let (Some(source), Some(destination)) =
                (lag.source_log_end_offset, lag.destination_log_end_offset)
            {
                lag.lag = Some(source.saturating_sub(destination).max(0));
            } else {
                lag.lag = None;
            }
        }
        self.rpo_records = total(self.mirror_lags.iter().map(|lag| lag.lag));
        self.rpo_seconds = largest(self.mirror_lags.iter().map(|lag| lag.lag_seconds));
    }
}

/// What a report is made of, apart from the steps.
#[derive(Debug, Clone)]
pub(super) struct Draft {
    pub(super) fleet: FleetName,
    pub(super) planned: bool,
    pub(super) epoch: Option<Epoch>,
    pub(super) route: Route,
    pub(super) handoff: Option<String>,
    pub(super) topics: Vec<TopicReport>,
    pub(super) warnings: Vec<String>,
}

impl Draft {
    /// A paused mirror holds only what the source had when it was paused.
    pub(super) fn warn_of_paused(&mut self) {
        let paused = self
            .topics
            .iter()
            .filter(|topic| matches!(topic.mirror_status.as_str(), "PAUSED" | "LINK_PAUSED"));
        let warnings: Vec<String> = paused
            .map(|topic| {
                format!(
                    "mirror topic \"{}\" is {}: what \"{}\" took since then is not on \"{}\"",
                    topic.mirror_topic_name, topic.mirror_status, self.route.from, self.route.to
                )
            })
            .collect();
        self.warnings.extend(warnings);
    }

    pub(super) fn finish(mut self, outcome: Outcome, steps: &Steps) -> Report {
        for topic in &mut self.topics {
            topic.assess();
        }
        Report {
            fleet: self.fleet,
            planned: self.planned,
            outcome,
            epoch: self.epoch,
            from: Some(self.route.from),
            to: self.route.to,
            handoff: self.handoff,
            handoff_offsets: handoff_offsets(&self.topics),
            rpo_records: total(self.topics.iter().map(|t| t.rpo_records)),
            rpo_seconds: largest(self.topics.iter().map(|t| t.rpo_seconds)),
            topics: self.topics,
            steps: steps.done(),
            total_ms: steps.total_ms(),
            warnings: self.warnings,
            late_writes: Vec::new(),
        }
    }
}

/// Per topic, by partition: the offset up to which the destination holds the source's log. `None` where that is not
/// known; the engine answers so for a FAILED partition too, whose log end does not mean that.
pub(super) fn handoff_offsets(topics: &[TopicReport]) -> BTreeMap<String, Vec<Option<i64>>> {
    topics
        .iter()
        .map(|topic| {
            (
                topic.mirror_topic_name.clone(),
                by_partition(&topic.mirror_lags),
            )
        })
        .collect()
}

fn by_partition(lags: &[MirrorLag]) -> Vec<Option<i64>> {
    let count = lags
        .iter()
        .filter_map(|lag| usize::try_from(lag.partition).ok())
        .max()
        .map_or(0, |max| max + 1);
    let mut offsets = vec![None; count];
    for lag in lags {
        let slot = usize::try_from(lag.partition)
            .ok()
            .and_then(|index| offsets.get_mut(index));
        if let Some(slot) = slot {
            *slot = lag.destination_log_end_offset;
        }
    }
    offsets
}

/// The sum; unknown if any part is unknown or there is none.
fn total(values: impl Iterator<Item = Option<i64>>) -> Option<i64> {
    let mut values = values.peekable();
    values.peek()?;
    values.try_fold(0i64, |sum, value| Some(sum.saturating_add(value?)))
}

/// The largest; unknown if any part is unknown or there is none.
fn largest(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let mut values = values.peekable();
    values.peek()?;
    values.try_fold(0f64, |max, value| Some(max.max(value?)))
}
