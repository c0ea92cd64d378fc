//! Settings of a link. All have defaults but the name, the two clusters and the topics.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use standfast_wire::{ClusterOptions, TopicPrefix};

use crate::acls::{self, AclSyncOptions};
use crate::filters::Filter;
use crate::names;
use crate::start::MirrorStart;
use crate::{Error, Lifecycle, SharingOptions, configs, rate};

/// At most five requests may be in flight per producer id and partition, or the broker no longer recognises repeats.
pub const MAX_IN_FLIGHT: usize = 5;

/// Longest link name; it becomes part of a transactional id.
pub const MAX_NAME_LEN: usize = 63;

/// Shortest time between two runs of the group offsets.
pub const MIN_GROUP_SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// Name of a link: `[a-z0-9][a-z0-9._-]{0,62}`.
///
/// All engines of one link must carry the same name: the name leads to the producer id that they share on the destination, and that id
/// keeps two engines from appending the same batch twice.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkName(String);

impl LinkName {
    /// Checks the name.
    pub fn new(name: impl Into<String>) -> Result<Self, Error> {
        let name = name.into();
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let valid = name.len() <= MAX_NAME_LEN
            && name.bytes().next().is_some_and(plain)
            && name
                .bytes()
                .all(|b| plain(b) || matches!(b, b'.' | b'_' | b'-'));
        if valid {
            Ok(Self(name))
        } else {
            Err(Error::InvalidOption {
                option: "name",
                reason: format!("{name:?} is not [a-z0-9][a-z0-9._-]{{0,62}}"),
            })
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The transactional id whose producer id stamps every mirrored batch.
    pub fn transactional_id(&self) -> String {
        format!("standfast-{}", self.0)
    }
}

impl fmt::Debug for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Reading from the source.
#[derive(Debug, Clone, PartialEq)]
pub struct FetchOptions {
    /// How long the source may wait for records before it answers with none.
    pub max_wait: Duration,
    /// Bytes asked for per partition and request. One batch is always answered, however large it is.
    pub partition_max_bytes: usize,
    /// Bytes asked for per request.
    pub max_bytes: usize,
}

impl Default for FetchOptions {
    fn default() -> Self {
        Self {
            max_wait: Duration::from_millis(500),
            partition_max_bytes: 512 << 10,
            max_bytes: 2 << 20,
        }
    }
}

/// Writing to the destination.
#[derive(Debug, Clone, PartialEq)]
pub struct ProduceOptions {
    /// Most connections per destination broker; partitions are spread over them, because a broker works on one request per connection at a time.
    /// Few partitions share one, because their batches then share requests.
    pub connections_per_broker: usize,
    /// Requests in flight per connection, and so per partition; 1 to [`MAX_IN_FLIGHT`].
    pub max_in_flight: usize,
    /// Bytes collected into one request, over several partitions. A single batch may exceed it.
    pub request_max_bytes: usize,
}

impl Default for ProduceOptions {
    fn default() -> Self {
        Self {
            connections_per_broker: 2,
            max_in_flight: MAX_IN_FLIGHT,
            request_max_bytes: 1 << 20,
        }
    }
}

/// Waiting between tries of the same partition or cluster; doubled each time, with jitter.
#[derive(Debug, Clone, PartialEq)]
pub struct BackoffOptions {
    /// First wait.
    pub min: Duration,
    /// Longest wait.
    pub max: Duration,
}

impl Default for BackoffOptions {
    fn default() -> Self {
        Self {
            min: Duration::from_millis(50),
            max: Duration::from_secs(2),
        }
    }
}

/// Settings of a link.
#[derive(Debug, Clone)]
pub struct LinkOptions {
    /// Name of the link; the same for all engines that work on it.
    pub name: LinkName,
    /// The cluster that is read.
    pub source: ClusterOptions,
    /// The cluster that is written.
    pub destination: ClusterOptions,
    /// Topics to mirror, by exact name.
    pub topics: Vec<String>,
    /// Further topics of the source that are mirrored as soon as they exist (looked for at each `metadata_refresh`).
    pub topic_filters: Vec<Filter>,
    /// Stands in front of the names of all mirrors; all other settings name topics as the source does. The same for as long as the link exists.
    pub prefix: TopicPrefix,
    /// Consumer groups get the prefix too, instead of going by the same name on both sides.
    pub prefix_groups: bool,
    /// Consumer groups whose committed offsets are carried over.
    pub groups: Vec<String>,
    /// Further groups of the source, looked for at each `group_sync_interval`.
    pub group_filters: Vec<Filter>,
    /// Configs of the mirror topics that are left to the destination: neither carried over nor taken back when they are changed there.
    pub config_exclude: Vec<String>,
    /// Where mirrors begin that are new.
    pub start: MirrorStart,
    /// The same for some topics.
    pub topic_starts: BTreeMap<String, MirrorStart>,
    /// ACLs that are carried over; `None`: none.
    pub acl_sync: Option<AclSyncOptions>,
    /// Other engines work on this link too, and each partition is to be mirrored by one of them. `None`: this engine mirrors all.
    pub sharing: Option<SharingOptions>,
    /// Which mirrors are paused or stopped; shared with whoever keeps it over restarts.
    pub lifecycle: Lifecycle,
    /// Bound on the bytes of record data in memory, whatever the number of partitions.
    pub memory_bytes: usize,
    /// Operating system threads that copy data; partitions are spread over them.
    pub shards: usize,
    /// Reading.
    pub fetch: FetchOptions,
    /// Writing.
    pub produce: ProduceOptions,
    /// How often group offsets are carried over.
    pub group_sync_interval: Duration,
    /// How often topics, partition counts and the producer id are looked at again.
    pub metadata_refresh: Duration,
    /// How often the destination's log ends are compared with what was acknowledged; bounds the time until a foreign write into an idle mirror is seen.
    pub guard_interval: Duration,
    /// Replication factor of created topics. `None`: the source's, or the number of destination brokers if that is smaller.
    pub replication_factor: Option<i16>,
    /// Under lag, tiny uncompressed batches are joined on their way: the same records at the same offsets in fewer batches. `false`: every batch of the source is
    /// one batch of the mirror, with the same bytes.
    pub join_batches: bool,
    /// Bytes of record data per second that may be read from the source, over all topics; `None`: no limit. Changed on a running link by
    /// [`LinkHandle::set_rate_limit`](crate::LinkHandle::set_rate_limit).
    pub rate_limit: Option<u64>,
    /// Waits between tries.
    pub backoff: BackoffOptions,
}

impl LinkOptions {
    /// The defaults for all that is optional.
    pub fn new(
        name: LinkName,
        source: ClusterOptions,
        destination: ClusterOptions,
        topics: Vec<String>,
    ) -> Self {
        Self {
            name,
            source,
            destination,
            topics,
            topic_filters: Vec::new(),
            prefix: TopicPrefix::default(),
            prefix_groups: false,
            groups: Vec::new(),
            group_filters: Vec::new(),
            config_exclude: Vec::new(),
            start: MirrorStart::default(),
            topic_starts: BTreeMap::new(),
            acl_sync: None,
            sharing: None,
            lifecycle: Lifecycle::default(),
            memory_bytes: 16 << 20,
            shards: 1,
            fetch: FetchOptions::default(),
            produce: ProduceOptions::default(),
            group_sync_interval: Duration::from_secs(5),
            metadata_refresh: Duration::from_secs(30),
            guard_interval: Duration::from_millis(400),
            replication_factor: None,
            join_batches: true,
            rate_limit: None,
            backoff: BackoffOptions::default(),
        }
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let invalid = |option, reason: &str| {
            Err(Error::InvalidOption {
                option,
                reason: reason.to_owned(),
            })
        };
        if self.topics.is_empty() && self.topic_filters.is_empty() {
            return invalid("topics", "at least one topic or topic filter is needed");
        }
        if let Some(sharing) = &self.sharing {
            sharing.check()?;
        }
        if self.group_sync_interval < MIN_GROUP_SYNC_INTERVAL {
            return invalid("group_sync_interval", "must be at least 1s");
        }
        rate::check(self.rate_limit)?;
        let fixed = |name: &&String| !configs::can_be_excluded(name);
        if let Some(name) = self.config_exclude.iter().find(fixed) {
            return invalid(
                "config_exclude",
                &format!("{name:?} is the same on every mirror and cannot be left out"),
            );
        }
        if let Some(sync) = &self.acl_sync {
            if sync.interval < acls::MIN_INTERVAL {
                return invalid("acl_sync.interval", "must be at least 1s");
            }
            if sync.filters.iter().any(|f| f.owns && f.principal.is_none()) {
                return invalid(
                    "acl_sync.filters",
                    "a filter that owns ACLs must name their principal",
                );
            }
        }
        let mut unfit = self.topics.iter();
        if let Some(why) = unfit.find_map(|t| names::mirror_name(&self.prefix, t).err()) {
            return invalid("topics", &why);
        }
        if self.prefix_groups && self.prefix.is_empty() {
            return invalid("prefix_groups", "there is no prefix that groups could get");
        }
        if self
            .topics
            .iter()
            .collect::<std::collections::HashSet<_>>()
            .len()
            != self.topics.len()
        {
            return invalid("topics", "a topic is named twice");
        }
        if !(1..=MAX_IN_FLIGHT).contains(&self.produce.max_in_flight) {
            return invalid("produce.max_in_flight", "must be 1 to 5");
        }
        if !(1..=64).contains(&self.produce.connections_per_broker) {
            return invalid("produce.connections_per_broker", "must be 1 to 64");
        }
        if !(1..=64).contains(&self.shards) {
            return invalid("shards", "must be 1 to 64");
        }
        if self.fetch.max_bytes < 64 << 10 || self.fetch.partition_max_bytes < 4 << 10 {
            return invalid(
                "fetch",
                "max_bytes must be at least 64 KiB and partition_max_bytes 4 KiB",
            );
        }
        if self.memory_bytes / self.shards < self.fetch.max_bytes {
            return invalid(
                "memory_bytes",
                "must be at least fetch.max_bytes for each shard",
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert!(LinkName::new("west-to-east").is_ok());
        for bad in ["", "-a", "West", "a b", "a/b", &"a".repeat(64)] {
            assert!(LinkName::new(bad).is_err(), "{bad:?}");
        }
    }
}
