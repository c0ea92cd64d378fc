//! What serde cannot see: names that must exist, limits, contradictions.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use standfast_discovery::{ClusterEntry, ClusterName};
use standfast_link::{
    LinkName, MIN_GROUP_SYNC_INTERVAL, MIN_RATE_LIMIT, admits_topic, can_be_excluded, excludes,
    is_internal, mirror_name,
};
use standfast_secrets::{SecretPath, SecretsOptions};
use standfast_wire::SaslMechanism;

use super::document::Entry;
use super::loops;
use super::problems::Problems;
use super::{AclSyncSection, AgentSection, FailoverSection, HealthSection, LinkSection};

/// Consul's own limits for a session TTL.
const LOCK_TTL: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(10)..=Duration::from_secs(86_400);
/// Session of an agent in the group of a shared link.
const SESSION_RANGE: std::ops::RangeInclusive<std::time::Duration> =
    std::time::Duration::from_secs(3)..=std::time::Duration::from_secs(1800);
/// The engine needs room for at least one large batch per side.
const MEMORY_MIB_MIN: usize = 8;
/// Each refresh asks both clusters for their metadata.
const REFRESH_MIN: Duration = Duration::from_millis(100);

/// The clusters that could be read, and the names of those that could not (so that links to them are not blamed).
#[derive(Debug, Default)]
pub(super) struct Clusters {
    pub(super) entries: BTreeMap<ClusterName, ClusterEntry>,
    pub(super) unreadable: BTreeSet<String>,
}

impl Clusters {
    fn knows(&self, name: &ClusterName) -> bool {
        self.entries.contains_key(name) || self.unreadable.contains(name.as_str())
    }

    fn names(&self) -> String {
        let names: Vec<&str> = self.entries.keys().map(ClusterName::as_str).collect();
        if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(", ")
        }
    }
}

pub(super) fn check_agent(agent: &AgentSection, problems: &mut Problems<'_>) {
    if agent.name.trim().is_empty() {
        problems.add(
            "agent.name",
            None,
            "is empty; give this agent a name, for example \"east-1\"",
        );
    }
    if !agent.listen.ip().is_loopback() && !agent.allow_remote {
        problems.add(
            "agent.listen",
            None,
            format!(
                "{} is not a loopback address, and the API has no authentication; use 127.0.0.1, or set allow_remote = true \
                 if something else protects it",
                agent.listen
            ),
        );
    }
    if agent.data_dir.as_os_str().is_empty() {
        problems.add(
            "agent.data_dir",
            None,
            "is empty; name a folder that this agent may write to",
        );
    }
}

pub(super) fn check_clusters(
    entries: Vec<Entry<ClusterEntry>>,
    secrets: Option<&SecretsOptions>,
    problems: &mut Problems<'_>,
) -> Clusters {
    let mut clusters = Clusters::default();
    if entries.is_empty() {
        problems.add(
            "clusters",
            None,
            "there are no clusters; add [clusters.NAME] with bootstrap = \"host:9092\"",
        );
    }
    for entry in entries {
        let Ok(name) = entry.name.parse::<ClusterName>() else {
            problems.add(
                entry.key,
                Some(entry.at),
                "is not a cluster name; use a-z, 0-9, '.', '_' and '-', starting with a letter or digit, at most 63",
            );
            continue;
        };
        let Some(cluster) = entry.value else {
            clusters.unreadable.insert(entry.name);
            continue;
        };
        for unknown in cluster.other.keys() {
            problems.add(
                format!("{}.{unknown}", entry.key),
                Some(entry.at.clone()),
                "unknown key; known keys: bootstrap, cluster_id, secret, security_protocol, sasl_mechanism",
            );
        }
        if let Err(error) = cluster.brokers() {
            problems.add(
                format!("{}.bootstrap", entry.key),
                Some(entry.at.clone()),
                error.to_string(),
            );
        }
        if let Some(Err(error)) = cluster.secret.as_deref().map(SecretPath::new) {
            problems.add(
                format!("{}.secret", entry.key),
                Some(entry.at.clone()),
                error.to_string(),
            );
        }
        if let Some(Err(error)) = cluster
            .sasl_mechanism
            .as_deref()
            .map(str::parse::<SaslMechanism>)
        {
            problems.add(
                format!("{}.sasl_mechanism", entry.key),
                Some(entry.at.clone()),
                error.to_string(),
            );
        }
        if cluster.secret.is_some() && matches!(secrets, Some(SecretsOptions::None)) {
            problems.add(
                format!("{}.secret", entry.key),
                Some(entry.at.clone()),
                "names a secret, but [secrets] is missing or has backend = \"none\"; configure [secrets]",
            );
        }
        if crate::clusters::uses_sasl(cluster.security_protocol) && cluster.secret.is_none() {
            problems.add(
                format!("{}.security_protocol", entry.key),
                Some(entry.at),
                "SASL needs credentials; name them with secret = \"…\"",
            );
        }
        clusters.entries.insert(name, cluster);
    }
    clusters
}

pub(super) fn check_links(
    links: &[Entry<LinkSection>],
    clusters: &Clusters,
    problems: &mut Problems<'_>,
) {
    let mut names = BTreeSet::new();
    let mut mirrors: BTreeMap<(&ClusterName, String), &str> = BTreeMap::new();
    for entry in links {
        let Some(link) = &entry.value else { continue };
        let mut problem = |field: &str, message: String| {
            problems.add(
                format!("{}.{field}", entry.key),
                Some(entry.at.clone()),
                message,
            );
        };
        if let Err(error) = LinkName::new(link.name.clone()) {
            problem("name", error.to_string());
        } else if !names.insert(link.name.as_str()) {
            problem(
                "name",
                format!(
                    "\"{}\" is used by another link; names must differ",
                    link.name
                ),
            );
        }
        for (field, cluster) in [("source", &link.source), ("destination", &link.destination)] {
            if !clusters.knows(cluster) {
                let known = clusters.names();
                problem(
                    field,
                    format!("there is no cluster \"{cluster}\"; known clusters: {known}"),
                );
            }
        }
        if let Some((field, message)) = link.acl_sync.as_ref().and_then(AclSyncSection::problem) {
            problem(field, message.to_owned());
        }
        if link.source == link.destination {
            problem(
                "destination",
                format!(
                    "is the source itself (\"{}\"); name another cluster",
                    link.source
                ),
            );
        }
        if link.topics.is_empty() && link.topic_filters.is_empty() {
            problem(
                "topics",
                "is empty; name at least one topic, or add [[links.topic_filters]]".to_owned(),
            );
        }
        if let Some((field, message)) = prefix_problem(link) {
            problem(field, message);
        }
        for (field, filters) in [
            ("topic_filters", &link.topic_filters),
            ("group_filters", &link.group_filters),
        ] {
            if let Some(filter) = filters.iter().find(|f| f.name.is_empty()) {
                problem(
                    field,
                    format!("{filter:?} has an empty name; `*` with LITERAL means every name"),
                );
            }
        }
        if link
            .group_sync_interval
            .is_some_and(|interval| interval < MIN_GROUP_SYNC_INTERVAL)
        {
            problem(
                "group_sync_interval",
                format!(
                    "is below {MIN_GROUP_SYNC_INTERVAL:?}; group offsets cannot be carried over more often"
                ),
            );
        }
        if link
            .refresh_interval
            .is_some_and(|interval| interval < REFRESH_MIN)
        {
            problem(
                "refresh_interval",
                format!("is below {REFRESH_MIN:?}; that would only load the clusters"),
            );
        }
        for topic in &link.topics {
            let mirror = link.prefix.add(topic);
            let unfit = check_topic(topic).and_then(|()| {
                let name = mirror_name(&link.prefix, topic);
                name.map(drop)
            });
            if let Err(message) = unfit {
                problem("topics", message);
            } else if excludes(&link.topic_filters, topic) {
                problem(
                    "topics",
                    format!(
                        "\"{topic}\" is named here and excluded by a topic filter; remove one of the two"
                    ),
                );
            } else if let Some(other) = found_by_another(links, link, &mirror) {
                problem(
                    "topics",
                    format!(
                        "\"{mirror}\" is also taken by a topic filter of link \"{other}\", which writes to \"{}\" too; exclude it there",
                        link.destination
                    ),
                );
            } else if let Some(other) =
                mirrors.insert((&link.destination, mirror.to_string()), &link.name)
            {
                problem(
                    "topics",
                    format!(
                        "\"{mirror}\" is already written to \"{}\" by link \"{other}\"; remove it from one",
                        link.destination
                    ),
                );
            }
        }
        if let Some((other, topic)) = loops::same_filters(links, link) {
            problem(
                "topic_filters",
                format!(
                    "take \"{topic}\", and so do those of link \"{other}\", which writes to \"{}\" too; exclude it in one of the two",
                    link.destination
                ),
            );
        }
        if let Some((other, topic)) =
            loops::back_to_the_source(links.iter().filter_map(|entry| entry.value.as_ref()), link)
        {
            problem(
                "follow_fleet",
                format!(
                    "is false, and link \"{other}\" carries \"{topic}\" back to \"{}\": the two would mirror each other; let them take different topics",
                    link.source
                ),
            );
        }
        if let Some(config) = link.config_exclude.iter().find(|c| !can_be_excluded(c)) {
            problem(
                "config_exclude",
                format!(
                    "\"{config}\" is the same on every mirror and cannot be left out; remove it"
                ),
            );
        }
        if let Some(group) = link.groups.iter().find(|g| g.is_empty()) {
            problem(
                "groups",
                format!("\"{group}\" is not a consumer group; remove it"),
            );
        }
        if link.memory_mib.is_some_and(|mib| mib < MEMORY_MIB_MIN) {
            problem(
                "memory_mib",
                format!("is below {MEMORY_MIB_MIN}; give the link more memory"),
            );
        }
        if link.rate_limit.is_some_and(|rate| rate.0 < MIN_RATE_LIMIT) {
            problem(
                "rate_limit",
                format!(
                    "is below {MIN_RATE_LIMIT} bytes per second; give the link more, or pause it"
                ),
            );
        }
        if let Some(session) = link.session_timeout {
            if !link.shared {
                problem(
                    "session_timeout",
                    "means nothing without `shared = true`; add that, or remove it".to_owned(),
                );
            } else if !SESSION_RANGE.contains(&session) {
                problem(
                    "session_timeout",
                    "must be 3s to 30m; brokers accept 6s and more by default".to_owned(),
                );
            }
        }
        if link.replication_factor.is_some_and(|factor| factor < 1) {
            problem(
                "replication_factor",
                "is below 1; leave it out to use the destination's default".to_owned(),
            );
        }
    }
}

/// A prefix where there must be none, or the other way round.
fn prefix_problem(link: &LinkSection) -> Option<(&'static str, String)> {
    let prefix = &link.prefix;
    if link.prefix_groups && prefix.is_empty() {
        let text =
            "is true, but there is no prefix that groups could get; set prefix, or remove it";
        return Some(("prefix_groups", text.to_owned()));
    }
    if link.follow_fleet && !prefix.is_empty() {
        let topic = link.topics.first().map_or("orders", String::as_str);
        let text = format!(
            "is \"{prefix}\" on a link that follows the fleet: applications that are moved to \"{}\" would look for \"{topic}\" and find \"{prefix}{topic}\"; remove the prefix, or set follow_fleet = false",
            link.destination
        );
        return Some(("prefix", text));
    }
    None
}

/// Another link to the same destination whose filters take the mirror's source topic.
fn found_by_another<'l>(
    links: &'l [Entry<LinkSection>],
    link: &LinkSection,
    mirror: &str,
) -> Option<&'l str> {
    let others = links.iter().filter_map(|entry| entry.value.as_ref());
    others
        .filter(|other| other.name != link.name && other.destination == link.destination)
        .find(|other| {
            let topic = other.prefix.strip(mirror);
            topic.is_some_and(|topic| admits_topic(&other.topic_filters, topic))
        })
        .map(|other| other.name.as_str())
}

/// Kafka's own rule for topic names.
fn check_topic(topic: &str) -> Result<(), String> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if topic.is_empty()
        || topic.len() > 249
        || topic == "."
        || topic == ".."
        || !topic.chars().all(legal)
    {
        return Err(format!(
            "\"{topic}\" is not a topic name; write the name in full, or use [[links.topic_filters]]"
        ));
    }
    if is_internal(topic) {
        return Err(format!(
            "\"{topic}\" is an internal topic of Kafka or Standfast and cannot be mirrored; remove it"
        ));
    }
    Ok(())
}

pub(super) fn check_health(health: &HealthSection, problems: &mut Problems<'_>) {
    for (key, value) in [("interval", health.interval), ("timeout", health.timeout)] {
        if value < Duration::from_millis(50) {
            problems.add(
                format!("health.{key}"),
                None,
                "is below 50ms; that would only load the clusters",
            );
        }
    }
    for (key, value) in [
        ("unreachable_after", health.unreachable_after),
        ("healthy_after", health.healthy_after),
    ] {
        if value == 0 {
            problems.add(format!("health.{key}"), None, "is 0; use at least 1");
        }
    }
}

pub(super) fn check_failover(failover: &FailoverSection, problems: &mut Problems<'_>) {
    if !LOCK_TTL.contains(&failover.lock_ttl) {
        problems.add(
            "failover.lock_ttl",
            None,
            "must be between 10s and 24h (Consul's limits)",
        );
    }
    if failover.step_timeout < Duration::from_millis(100)
        || failover.step_timeout >= failover.lock_ttl
    {
        problems.add(
            "failover.step_timeout",
            None,
            "must be at least 100ms and below failover.lock_ttl",
        );
    }
}
