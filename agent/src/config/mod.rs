//! The agent's configuration file (TOML).
//!
//! Unknown keys are errors everywhere, and every mistake found is reported together: see [`load`].

mod acl_sync;
mod byte_rate;
mod document;
mod loops;
mod problems;
mod rules;
mod runtime;
mod start;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use standfast_discovery::{ClusterEntry, ClusterName, DiscoveryOptions, FleetName};
use standfast_link::{Filter, PatternType, TopicPrefix, admits_topic};
use standfast_secrets::SecretsOptions;

pub(crate) use acl_sync::AclSyncSection;
pub(crate) use byte_rate::ByteRate;
pub(crate) use loops::back_to_the_source;
pub(crate) use problems::ConfigError;
pub(crate) use runtime::{FIXED, LinkBase, LinkEntry, LinkProblem, Origin, RuntimeLinks, Settings};

pub(crate) use start::StartSetting;

use document::Document;
use problems::Problems;

/// A whole, checked configuration.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) agent: AgentSection,
    pub(crate) fleet: FleetSection,
    pub(crate) discovery: DiscoveryOptions,
    pub(crate) secrets: SecretsOptions,
    pub(crate) clusters: BTreeMap<ClusterName, ClusterEntry>,
    /// The links as they were written, checked; see [`LinkBase`].
    pub(crate) link_settings: Vec<Settings>,
    pub(crate) health: HealthSection,
    pub(crate) failover: FailoverSection,
}

/// `[agent]`: this process.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AgentSection {
    /// Who this agent is: shown as lock holder and in the status.
    pub(crate) name: String,
    /// Where the HTTP API listens.
    #[serde(default = "default_listen")]
    pub(crate) listen: SocketAddr,
    /// Lets the API listen beyond loopback. It has no authentication.
    #[serde(default)]
    pub(crate) allow_remote: bool,
    /// Where the last known fleet record is kept.
    pub(crate) data_dir: PathBuf,
    /// How long a running operation and the links may take to end after SIGTERM.
    #[serde(default = "default_shutdown_grace", deserialize_with = "duration")]
    pub(crate) shutdown_grace: Duration,
}

/// `[fleet]`: which fleet this agent serves.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FleetSection {
    pub(crate) name: FleetName,
}

/// `[[links]]`: one direction of mirroring.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LinkSection {
    pub(crate) name: String,
    pub(crate) source: ClusterName,
    pub(crate) destination: ClusterName,
    /// Topics by name.
    #[serde(default)]
    pub(crate) topics: Vec<String>,
    /// Further topics of the source, mirrored as soon as they exist.
    #[serde(default)]
    pub(crate) topic_filters: Vec<Filter>,
    /// Stands in front of the names of all mirrors; all other keys name topics as the source does.
    #[serde(default, deserialize_with = "topic_prefix")]
    pub(crate) prefix: TopicPrefix,
    /// Consumer groups get the prefix too.
    #[serde(default)]
    pub(crate) prefix_groups: bool,
    /// Consumer groups whose offsets are carried over.
    #[serde(default)]
    pub(crate) groups: Vec<String>,
    /// Further groups of the source.
    #[serde(default)]
    pub(crate) group_filters: Vec<Filter>,
    /// How often topics, partition counts and filters are looked at.
    #[serde(default, deserialize_with = "optional_duration")]
    pub(crate) refresh_interval: Option<Duration>,
    /// Upper bound of the memory for records in flight.
    #[serde(default)]
    pub(crate) memory_mib: Option<usize>,
    /// Most bytes of record data per second that are read from the source; without it, no limit.
    #[serde(default)]
    pub(crate) rate_limit: Option<ByteRate>,
    /// Whether tiny batches are joined under lag; without it, they are.
    #[serde(default)]
    pub(crate) join_batches: Option<bool>,
    /// How often group offsets are carried over.
    #[serde(default, deserialize_with = "optional_duration")]
    pub(crate) group_sync_interval: Option<Duration>,
    /// Configs of the mirror topics that are left to the destination.
    #[serde(default)]
    pub(crate) config_exclude: Vec<String>,
    /// Where new mirrors begin.
    #[serde(default)]
    pub(crate) start: StartSetting,
    /// The same for some topics.
    #[serde(default)]
    pub(crate) topic_starts: BTreeMap<String, StartSetting>,
    /// Which ACLs are carried over; without it, none.
    #[serde(default)]
    pub(crate) acl_sync: Option<AclSyncSection>,
    /// Replication factor of the mirror topics; without it, the destination's default.
    #[serde(default)]
    pub(crate) replication_factor: Option<i16>,
    /// Other agents have the same link, and each partition is to be mirrored by one of them.
    #[serde(default)]
    pub(crate) shared: bool,
    /// Of a shared link: an agent that is silent for so long has lost its partitions to the others.
    #[serde(default, deserialize_with = "optional_duration")]
    pub(crate) session_timeout: Option<Duration>,
    /// `false`: the link runs whichever cluster is active, and a failover or switchover leaves it alone.
    #[serde(default = "follow_fleet")]
    pub(crate) follow_fleet: bool,
}

impl LinkSection {
    /// The mirrors of the topics that are named.
    pub(crate) fn named_mirrors(&self) -> Vec<String> {
        let names = self.topics.iter().map(|topic| self.prefix.add(topic));
        names.map(|name| name.to_string()).collect()
    }

    /// Whether names or filters take the source topic of a mirror.
    pub(crate) fn takes(&self, mirror: &str) -> bool {
        self.prefix.strip(mirror).is_some_and(|topic| {
            self.topics.iter().any(|named| named == topic)
                || admits_topic(&self.topic_filters, topic)
        })
    }

    /// The topic filters in the names of the mirrors.
    pub(crate) fn mirror_filters(&self) -> Vec<Filter> {
        let renamed = |filter: &Filter| {
            let every = filter.pattern_type == PatternType::Literal && filter.name == "*";
            if self.prefix.is_empty() {
                filter.clone()
            } else if every {
                Filter {
                    name: self.prefix.to_string(),
                    pattern_type: PatternType::Prefixed,
                    ..filter.clone()
                }
            } else {
                Filter {
                    name: self.prefix.add(&filter.name).to_string(),
                    ..filter.clone()
                }
            }
        };
        self.topic_filters.iter().map(renamed).collect()
    }
}

/// `[health]`: when a cluster counts as unreachable.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct HealthSection {
    /// Time between two probes of one cluster.
    #[serde(deserialize_with = "duration")]
    pub(crate) interval: Duration,
    /// How long one probe may take.
    #[serde(deserialize_with = "duration")]
    pub(crate) timeout: Duration,
    /// Failed probes in a row that make a cluster UNREACHABLE.
    pub(crate) unreachable_after: u32,
    /// Good probes in a row that make it HEALTHY again.
    pub(crate) healthy_after: u32,
}

impl Default for HealthSection {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(2),
            unreachable_after: 3,
            healthy_after: 2,
        }
    }
}

/// `[failover]`: the time limits of failover and switchover.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct FailoverSection {
    /// How long the lock outlives an agent that died holding it.
    #[serde(deserialize_with = "duration")]
    pub(crate) lock_ttl: Duration,
    /// The longest that any one step may take (a drain has its own limit).
    #[serde(deserialize_with = "duration")]
    pub(crate) step_timeout: Duration,
    /// How long carrying over group offsets may hold up a failover while the source is alive.
    #[serde(deserialize_with = "duration")]
    pub(crate) group_sync_timeout: Duration,
    /// How long the old cluster is watched for late writes after a switchover.
    #[serde(deserialize_with = "duration")]
    pub(crate) late_write_watch: Duration,
}

impl Default for FailoverSection {
    fn default() -> Self {
        Self {
            lock_ttl: Duration::from_secs(15),
            step_timeout: Duration::from_secs(5),
            group_sync_timeout: Duration::from_secs(2),
            late_write_watch: Duration::from_secs(2),
        }
    }
}

/// Reads and checks the file.
///
/// # Errors
/// Every problem found, with line, key and what to do; or why the file cannot be read.
pub(crate) fn load(path: &Path) -> Result<Config, ConfigError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| ConfigError::unreadable(path, &source))?;
    parse(&path.display().to_string(), &text)
}

fn parse(file: &str, text: &str) -> Result<Config, ConfigError> {
    let mut problems = Problems::new(file, text);
    let config = read(text, &mut problems);
    match config {
        Some(config) if problems.is_empty() => Ok(config),
        _ => Err(problems.into_error()),
    }
}

/// `None` if a section could not be read; sections that could are checked all the same.
fn read(text: &str, problems: &mut Problems<'_>) -> Option<Config> {
    let mut document = Document::parse(text, problems)?;
    let agent: Option<AgentSection> = document.section("agent", problems);
    let fleet: Option<FleetSection> = document.section("fleet", problems);
    let discovery: Option<DiscoveryOptions> = document.section("discovery", problems);
    let secrets: Option<SecretsOptions> =
        document.optional_section("secrets", problems, || SecretsOptions::None);
    let health = document.optional_section("health", problems, HealthSection::default);
    let failover = document.optional_section("failover", problems, FailoverSection::default);
    let clusters = document.named_sections::<ClusterEntry>("clusters", problems);
    let links = document.listed_sections::<LinkSection>("links", problems);
    document.refuse_the_rest(problems);

    if let Some(agent) = &agent {
        rules::check_agent(agent, problems);
    }
    let clusters = rules::check_clusters(clusters, secrets.as_ref(), problems);
    rules::check_links(&links, &clusters, problems);
    if let Some(health) = &health {
        rules::check_health(health, problems);
    }
    if let Some(failover) = &failover {
        rules::check_failover(failover, problems);
    }
    Some(Config {
        agent: agent?,
        fleet: fleet?,
        discovery: discovery?,
        secrets: secrets?,
        clusters: clusters.entries,
        link_settings: runtime::settings_in(text),
        health: health?,
        failover: failover?,
    })
}

fn follow_fleet() -> bool {
    true
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 9370))
}

fn default_shutdown_grace() -> Duration {
    Duration::from_secs(15)
}

fn duration<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text).map_err(|e| {
        serde::de::Error::custom(format!(
            "`{text}` is not a duration ({e}); write for example \"500ms\", \"5s\" or \"2m\""
        ))
    })
}

fn topic_prefix<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<TopicPrefix, D::Error> {
    let text = String::deserialize(deserializer)?;
    TopicPrefix::new(&text).map_err(|error| match error {
        standfast_wire::Error::Options { reason, .. } => serde::de::Error::custom(reason),
        other => serde::de::Error::custom(other),
    })
}

fn optional_duration<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Duration>, D::Error> {
    duration(deserializer).map(Some)
}

#[cfg(test)]
mod tests;
