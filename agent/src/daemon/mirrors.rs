//! All links and probes of this agent, as status, as mirror list, and as what an operation works on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use standfast_discovery::{ClusterName, Epoch};
use standfast_link::{
    LinkDescription, LinkHandle, MirrorDescription, MirrorStatus, MirrorTopicError, PartitionLag,
    StoppedMirror, UnreadRecords, Wanted,
};

use super::health::ProbeHandle;
use super::link::{LinkControl, Links, Phase, StopResult};
use super::log_ends;
use crate::api::{
    CategoryCount, Health, Link, LinkStatus, Mirror, MirrorLag, Setting, TopicReport,
    TransitionError,
};
use crate::config::LinkEntry;
use crate::failover::{LogEnds, Mirrors, Route};

/// How long one question for log ends may take; steps have their own limits on top.
const LOG_ENDS_LIMIT: Duration = Duration::from_secs(3);
/// Partitions compared at the same time.
const COMPARISONS_MAX: usize = 16;

/// Every link and probe. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct LinkSet {
    links: Links,
    probes: Arc<BTreeMap<ClusterName, ProbeHandle>>,
}

impl LinkSet {
    pub(crate) fn new(links: Links, probes: Vec<ProbeHandle>) -> Self {
        let probes = probes
            .into_iter()
            .map(|probe| (probe.name().clone(), probe))
            .collect();
        Self {
            links,
            probes: Arc::new(probes),
        }
    }

    /// The links there are now.
    pub(crate) fn links(&self) -> Arc<Vec<LinkControl>> {
        self.links.get()
    }

    /// The handle of those who own them.
    pub(super) fn all(&self) -> &Links {
        &self.links
    }

    pub(crate) fn probes(&self) -> impl Iterator<Item = &ProbeHandle> {
        self.probes.values()
    }

    /// Every mirror of every link (or of one), also of links that do not run.
    pub(crate) fn mirrors(&self, link: Option<&str>) -> Vec<Mirror> {
        let links = self.links();
        let wanted = links
            .iter()
            .filter(|control| link.is_none_or(|name| control.section().name == name));
        wanted.flat_map(mirrors_of).collect()
    }

    pub(crate) fn link_statuses(&self) -> Vec<LinkStatus> {
        self.links().iter().map(link_status).collect()
    }

    /// Every link, or one.
    pub(crate) fn describe_links(&self, name: Option<&str>) -> Vec<Link> {
        let links = self.links();
        let wanted = links
            .iter()
            .filter(|control| name.is_none_or(|name| control.section().name == name));
        wanted.map(link_of).collect()
    }

    /// The links that a failover or switchover along the route is about.
    fn on_route(&self, route: &Route) -> Vec<LinkControl> {
        let mut links = self.links().to_vec();
        links.retain(|link| {
            let section = link.section();
            section.follow_fleet && section.source == route.from && section.destination == route.to
        });
        links
    }

    /// The log ends that the cluster knows; some may be missing.
    async fn ask(&self, cluster: &ClusterName, route: &Route) -> Result<log_ends::Answer, String> {
        let probe = self
            .probes
            .get(cluster)
            .ok_or_else(|| format!("cluster {cluster} is not configured"))?;
        let connection = probe.cluster().ok_or_else(|| {
            let why = probe
                .last_error()
                .unwrap_or_else(|| "it was not probed yet".to_owned());
            format!("cluster {cluster} was never reached: {why}")
        })?;
        let topics = self.topics_on(route);
        match tokio::time::timeout(LOG_ENDS_LIMIT, log_ends::ask(&connection, &topics)).await {
            Ok(result) => result.map_err(|error| format!("cluster {cluster}: {error}")),
            Err(_) => Err(format!(
                "cluster {cluster}: no log ends within {LOG_ENDS_LIMIT:?}"
            )),
        }
    }

    fn topics_on(&self, route: &Route) -> Vec<String> {
        self.on_route(route)
            .iter()
            .flat_map(LinkControl::topics_in_operation)
            .collect()
    }
}

impl Mirrors for LinkSet {
    fn routes(&self) -> BTreeSet<Route> {
        let route = |link: &LinkControl| Route {
            from: link.section().source.clone(),
            to: link.section().destination.clone(),
        };
        self.links()
            .iter()
            .filter(|link| link.section().follow_fleet)
            .map(route)
            .collect()
    }

    fn last_known(&self, route: &Route) -> Vec<TopicReport> {
        let in_operation = |link: &LinkControl| {
            let topics: BTreeSet<String> = link.topics_in_operation().into_iter().collect();
            let mut mirrors = mirrors_of(link);
            mirrors.retain(|mirror| topics.contains(&mirror.description.mirror_topic_name));
            mirrors
        };
        self.on_route(route)
            .iter()
            .flat_map(in_operation)
            .map(|mirror| last_known(&mirror))
            .collect()
    }

    async fn stop(&self, route: &Route, epoch: Epoch, limit: Duration) -> Vec<TopicReport> {
        let links = self.on_route(route);
        let stops = links
            .iter()
            .map(|link| async move { (link, link.stop(epoch, limit).await) });
        let (mut topics, mut silent) = (Vec::new(), Vec::new());
        for (link, result) in join_all(stops).await {
            for topic in &link.topics_in_operation() {
                let answered = result.mirrors.iter().any(|stopped| stopped.topic == *topic);
                let report = stopped_topic(link, topic, &result);
                if answered {
                    topics.push(report)
                } else {
                    silent.push(report)
                }
            }
        }
        self.fill_in(route, &mut silent).await;
        topics.append(&mut silent);
        topics
    }

    fn patience(&self, route: &Route) -> Duration {
        let links = self.on_route(route);
        let handles = links.iter().filter_map(LinkControl::handle);
        handles
            .map(|handle| handle.patience())
            .max()
            .unwrap_or_default()
    }

    async fn resume(&self, route: &Route) {
        let links = self.on_route(route);
        join_all(links.iter().map(LinkControl::resume)).await;
    }

    async fn sync_groups(&self, route: &Route) -> Result<(), String> {
        let links = self.on_route(route);
        for link in links.iter().filter(|link| has_groups(link)) {
            let groups = running(link)?
                .sync_groups_now()
                .await
                .map_err(|error| error.to_string())?;
            if let Some((group, error)) = groups.into_iter().find_map(|g| Some((g.group, g.error?)))
            {
                return Err(format!("group {group}: {error}"));
            }
        }
        Ok(())
    }

    fn carries_groups(&self, route: &Route) -> bool {
        self.on_route(route).iter().any(has_groups)
    }

    async fn unread(&self, route: &Route) -> Result<Vec<UnreadRecords>, String> {
        let mut unread = Vec::new();
        for link in self.on_route(route).iter().filter(|link| has_groups(link)) {
            let found = running(link)?.unread_records().await;
            unread.extend(found.map_err(|error| error.to_string())?);
        }
        Ok(unread)
    }

    async fn log_ends(&self, cluster: &ClusterName, route: &Route) -> Result<LogEnds, String> {
        let answer = self.ask(cluster, route).await?;
        match answer.error {
            None => Ok(answer.ends),
            Some(error) => Err(format!("cluster {cluster}: {error}")),
        }
    }

    async fn same_at(&self, route: &Route, offsets: &LogEnds) -> BTreeSet<(String, i32)> {
        let connection = |name| self.probes.get(name).and_then(ProbeHandle::cluster);
        let (Some(old), Some(new)) = (connection(&route.from), connection(&route.to)) else {
            return BTreeSet::new();
        };
        let compared = offsets.clone().into_iter().map(|(key, offset)| {
            let (new, old) = (new.clone(), old.clone());
            async move {
                let same = standfast_link::same_at(&new, &old, &key.0, key.1, offset).await;
                same.is_ok_and(|same| same).then_some(key)
            }
        });
        let compared = futures_util::stream::iter(compared).buffer_unordered(COMPARISONS_MAX);
        compared.filter_map(std::future::ready).collect().await
    }

    fn unreachable_for(&self, cluster: &ClusterName) -> Option<Duration> {
        self.probes.get(cluster)?.unreachable_for()
    }

    fn is_healthy(&self, cluster: &ClusterName) -> bool {
        self.probes
            .get(cluster)
            .is_some_and(|probe| probe.health() == Health::Healthy)
    }
}

impl LinkSet {
    /// A link that was not running (its source was lost before the agent was started, say) has nothing to tell. The
    /// destination itself knows how far it got.
    async fn fill_in(&self, route: &Route, topics: &mut [TopicReport]) {
        if topics.is_empty() {
            return;
        }
        let answer = self.ask(&route.to, route).await;
        for topic in topics {
            match &answer {
                Err(error) => {
                    topic
                        .error_code
                        .get_or_insert_with(|| "DESTINATION_UNREACHABLE".to_owned());
                    topic.error_message.get_or_insert(error.clone());
                }
                // A FAILED mirror's log end does not say how much of the source's log it holds.
                Ok(_) if topic.error_code.is_some() => {}
                Ok(answer) => fill_in_topic(topic, answer),
            }
        }
    }
}

/// Whether the link carries consumer groups over.
fn has_groups(link: &LinkControl) -> bool {
    let section = link.section();
    !(section.groups.is_empty() && section.group_filters.is_empty())
}

fn running(link: &LinkControl) -> Result<LinkHandle, String> {
    link.handle()
        .ok_or_else(|| format!("link {} is not running", link.section().name))
}

fn fill_in_topic(topic: &mut TopicReport, answer: &log_ends::Answer) {
    let ends = answer
        .ends
        .iter()
        .filter(|((name, _), _)| *name == topic.mirror_topic_name);
    for ((_, partition), end) in ends {
        let known = topic
            .mirror_lags
            .iter_mut()
            .find(|lag| lag.partition == *partition);
        match known {
            Some(lag) => lag.destination_log_end_offset = Some(*end),
            None => topic.mirror_lags.push(MirrorLag {
                partition: *partition,
                destination_log_end_offset: Some(*end),
                ..MirrorLag::default()
            }),
        }
    }
    if topic.mirror_lags.is_empty() {
        topic.error_code = Some("MIRROR_TOPIC_MISSING".to_owned());
        topic.error_message = answer.error.clone();
    }
}

/// One topic of a link after it was told to stop. Without an answer of the link, what was last known of the source.
fn stopped_topic(link: &LinkControl, topic: &str, result: &StopResult) -> TopicReport {
    let described = link.describe();
    let mirror = described
        .as_ref()
        .and_then(|d| d.mirrors.iter().find(|m| m.mirror_topic_name == topic));
    let mut report = TopicReport::unknown(
        &link.section().name,
        topic,
        &name_of(&MirrorStatus::Stopped),
    );
    if let Some(mirror) = mirror {
        describe_error(&mut report, mirror);
    }
    let stopped = result
        .mirrors
        .iter()
        .filter(|stopped| stopped.topic == topic);
    report.mirror_lags = stopped
        .map(|stopped| stopped_lag(stopped, mirror))
        .collect();
    if let (true, Some(mirror)) = (report.mirror_lags.is_empty(), mirror) {
        let unanswered = |lag| MirrorLag {
            destination_log_end_offset: None,
            ..described_lag(lag)
        };
        report.mirror_lags = mirror.mirror_lags.iter().map(unanswered).collect();
    }
    report.mirror_lags.sort_by_key(|lag| lag.partition);
    report
}

fn stopped_lag(stopped: &StoppedMirror, mirror: Option<&MirrorDescription>) -> MirrorLag {
    let before = mirror.and_then(|m| {
        m.mirror_lags
            .iter()
            .find(|lag| lag.partition == stopped.partition)
    });
    MirrorLag {
        partition: stopped.partition,
        lag: stopped.rpo_records,
        lag_seconds: stopped.rpo_seconds,
        last_source_fetch_offset: before.map(|lag| lag.last_source_fetch_offset),
        source_log_end_offset: stopped.source_log_end_offset,
        destination_log_end_offset: stopped.destination_log_end_offset,
        error: stopped.error.clone(),
    }
}

/// A topic as its mirror was last described.
fn last_known(mirror: &Mirror) -> TopicReport {
    let description = &mirror.description;
    let status = name_of(&description.mirror_status);
    let mut report = TopicReport::unknown(
        &description.link_name,
        &description.mirror_topic_name,
        &status,
    );
    describe_error(&mut report, description);
    if let (None, Some(held)) = (
        &report.error_message,
        mirror.mirror_state_transition_errors.first(),
    ) {
        report.error_message = Some(held.error_message.clone());
    }
    report.mirror_lags = description.mirror_lags.iter().map(described_lag).collect();
    report
}

fn described_lag(lag: &PartitionLag) -> MirrorLag {
    MirrorLag {
        partition: lag.partition,
        lag: lag.lag,
        lag_seconds: lag.lag_seconds,
        last_source_fetch_offset: Some(lag.last_source_fetch_offset),
        source_log_end_offset: lag.source_log_end_offset,
        destination_log_end_offset: lag.destination_log_end_offset,
        error: lag.error.clone(),
    }
}

/// Only a FAILED mirror is in error: a source that does not answer is what a failover is for.
fn describe_error(report: &mut TopicReport, mirror: &MirrorDescription) {
    // What the source took since then is not on the mirror, and the operator should see why.
    if matches!(
        mirror.mirror_status,
        MirrorStatus::Paused | MirrorStatus::LinkPaused
    ) {
        report.mirror_status = name_of(&mirror.mirror_status);
    }
    if mirror.mirror_status != MirrorStatus::Failed {
        return;
    }
    let of_partition = mirror.mirror_lags.iter().find_map(|lag| lag.error.clone());
    report.mirror_status = name_of(&mirror.mirror_status);
    report.error_code = Some(name_of(&mirror.mirror_topic_error));
    report.error_message = mirror.error.clone().or(of_partition);
}

pub(super) fn mirrors_of(link: &LinkControl) -> Vec<Mirror> {
    let mut described: BTreeMap<String, MirrorDescription> = link
        .describe()
        .unwrap_or_default()
        .mirrors
        .into_iter()
        .map(|mirror| (mirror.mirror_topic_name.clone(), mirror))
        .collect();
    let why = why_not_running(&link.phase());
    let state = link.lifecycle().state();
    link.mirror_names()
        .into_iter()
        .map(|topic| {
            let mut description = described
                .remove(&topic)
                .unwrap_or_else(|| MirrorDescription {
                    link_name: link.section().name.clone(),
                    mirror_topic_name: topic.clone(),
                    source_topic_name: link.section().prefix.own_name(&topic).to_owned(),
                    mirror_status: if why.is_some() {
                        MirrorStatus::Stopped
                    } else {
                        MirrorStatus::PendingMirror
                    },
                    mirror_topic_error: MirrorTopicError::NoError,
                    ..MirrorDescription::default()
                });
            // The engine says it itself; for a link that does not run it is said here.
            match state.wanted(&topic) {
                _ if why.is_none() => {}
                Wanted::Stopped => description.mirror_status = MirrorStatus::Stopped,
                Wanted::Paused => description.mirror_status = MirrorStatus::Paused,
                Wanted::Active if description.mirror_status == MirrorStatus::Paused => {
                    description.mirror_status = MirrorStatus::Stopped;
                }
                Wanted::Active => {}
            }
            Mirror {
                description,
                mirror_state_transition_errors: why.clone().into_iter().collect(),
            }
        })
        .collect()
}

fn why_not_running(phase: &Phase) -> Option<TransitionError> {
    let (code, message) = match phase {
        Phase::Running { .. } => return None,
        Phase::Held { reason } => ("LINK_HELD", reason),
        Phase::Stopped { reason } => ("LINK_STOPPED", reason),
        Phase::Failed { error } => ("LINK_FAILED", error),
    };
    Some(TransitionError {
        error_code: code.to_owned(),
        error_message: message.clone(),
    })
}

fn link_status(link: &LinkControl) -> LinkStatus {
    let description: LinkDescription = link.describe().unwrap_or_default();
    let (state, reason) = match link.phase() {
        Phase::Running { .. } => (name_of(&description.link_state), None),
        Phase::Held { reason } | Phase::Stopped { reason } => ("STOPPED".to_owned(), Some(reason)),
        Phase::Failed { error } => ("FAILED".to_owned(), Some(error)),
    };
    let lags = description
        .mirrors
        .iter()
        .flat_map(|mirror| mirror.mirror_lags.iter().filter_map(|lag| lag.lag));
    LinkStatus {
        link_name: link.section().name.clone(),
        source_cluster: link.section().source.clone(),
        destination_cluster: link.section().destination.clone(),
        link_state: state,
        reason,
        link_error: description.link_error.clone(),
        mirror_count: link.mirror_names().len(),
        max_lag: lags.max(),
        rate_limit: description.rate_limit,
        acl_sync: description.acl_sync.clone(),
    }
}

/// A link with its mirrors counted.
pub(super) fn link_of(link: &LinkControl) -> Link {
    let description = link.describe().unwrap_or_default();
    let mut counts: BTreeMap<&'static str, usize> = BTreeMap::new();
    for mirror in mirrors_of(link) {
        *counts
            .entry(category(mirror.description.mirror_status))
            .or_default() += 1;
    }
    Link {
        tasks: super::tasks::tasks(link, &description),
        status: link_status(link),
        source_cluster_id: description.source_cluster_id,
        destination_cluster_id: description.destination_cluster_id,
        category_counts: counts
            .into_iter()
            .map(|(state_category, count)| CategoryCount {
                state_category: state_category.to_owned(),
                count,
            })
            .collect(),
        groups: description.groups,
        members: description.members,
        origin: link.entry().origin,
        configs: settings_of(link.entry()),
    }
}

fn settings_of(entry: &LinkEntry) -> Vec<Setting> {
    let setting = |key: &str| {
        let (value, origin) = (entry.settings.get(key), entry.origin_of(key));
        let file = entry.in_file.as_ref().and_then(|file| file.get(key));
        Setting {
            name: key.to_owned(),
            value: value.cloned(),
            origin,
            file_value: file.filter(|file| Some(*file) != value).cloned(),
        }
    };
    entry.keys().into_iter().map(setting).collect()
}

fn category(status: MirrorStatus) -> &'static str {
    match status {
        MirrorStatus::Active => "ACTIVE",
        MirrorStatus::Paused | MirrorStatus::LinkPaused => "PAUSED",
        MirrorStatus::PendingMirror
        | MirrorStatus::PendingStopped
        | MirrorStatus::PendingSetupForRestore
        | MirrorStatus::PendingRestore => "PENDING",
        MirrorStatus::Stopped => "NOT_APPLICABLE",
        _ => "IN_ERROR",
    }
}

/// The name under which serde writes a plain enum value: Confluent's.
pub(crate) fn name_of<T: serde::Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name,
        _ => "UNKNOWN".to_owned(),
    }
}
