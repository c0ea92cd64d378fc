//! What of a link's settings can change while it runs, and where its parts read it.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use standfast_wire::TopicPrefix;

use crate::Error;
use crate::acls::AclSyncOptions;
use crate::description::GroupDescription;
use crate::filters::Filter;
use crate::handle::LinkHandle;
use crate::membership::SharingOptions;
use crate::options::LinkOptions;
use crate::start::MirrorStart;
use crate::topics::Topic;

/// The settings that the control plane reads anew each time.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Live {
    pub(crate) topics: Vec<String>,
    pub(crate) topic_filters: Vec<Filter>,
    /// Fixed, and here because names are made with it.
    pub(crate) prefix: TopicPrefix,
    pub(crate) prefix_groups: bool,
    pub(crate) groups: Vec<String>,
    pub(crate) group_filters: Vec<Filter>,
    pub(crate) config_exclude: Vec<String>,
    pub(crate) start: MirrorStart,
    pub(crate) topic_starts: BTreeMap<String, MirrorStart>,
    pub(crate) acl_sync: Option<AclSyncOptions>,
    pub(crate) group_sync_interval: Duration,
    pub(crate) metadata_refresh: Duration,
    pub(crate) replication_factor: Option<i16>,
}

impl Live {
    pub(crate) fn of(options: &LinkOptions) -> Self {
        Self {
            topics: options.topics.clone(),
            topic_filters: options.topic_filters.clone(),
            prefix: options.prefix.clone(),
            prefix_groups: options.prefix_groups,
            groups: options.groups.clone(),
            group_filters: options.group_filters.clone(),
            config_exclude: options.config_exclude.clone(),
            start: options.start,
            topic_starts: options.topic_starts.clone(),
            acl_sync: options.acl_sync.clone(),
            group_sync_interval: options.group_sync_interval,
            metadata_refresh: options.metadata_refresh,
            replication_factor: options.replication_factor,
        }
    }
}

impl Live {
    /// Where a mirror begins.
    pub(crate) fn start_of(&self, topic: &str) -> MirrorStart {
        let topic = self.prefix.own_name(topic);
        self.topic_starts.get(topic).copied().unwrap_or(self.start)
    }
}

impl LinkHandle {
    /// Takes new settings over while the link runs: topics and filters (as long as no mirror goes away by it), groups, excluded configs, ACL filters, the intervals, the rate limit, and the
    /// replication factor of topics that are created from now on.
    ///
    /// `Ok(false)`: something else differs too, or a mirror would go away; nothing was changed, and a new link must be started with these options. The
    /// clusters and the lifecycle are not compared: they are those of the running link.
    ///
    /// # Errors
    /// The options are not valid.
    pub fn update(&self, options: &LinkOptions) -> Result<bool, Error> {
        self.take_over(options, true)
    }

    /// What [`update`](Self::update) would answer; nothing is changed.
    ///
    /// # Errors
    /// The options are not valid.
    pub fn can_update(&self, options: &LinkOptions) -> Result<bool, Error> {
        self.take_over(options, false)
    }

    fn take_over(&self, options: &LinkOptions, change: bool) -> Result<bool, Error> {
        options.check()?;
        let inner = &self.inner;
        let state = inner.options.lifecycle.state();
        let mirrors = state.mirrors(&options.prefix, &options.topics, &options.topic_filters);
        let mirrors: HashSet<&str> = mirrors.iter().map(String::as_str).collect();
        let mut topics = inner.topics();
        let known: HashSet<Arc<str>> = topics.iter().map(Topic::name).collect();
        let stays = known.iter().all(|name| mirrors.contains(&**name));
        if !stays || needs_restart(&inner.options, options) {
            return Ok(false);
        }
        if !change {
            return Ok(true);
        }
        // In the order of the options; those that were there before keep their place.
        for name in options.topics.iter().map(|t| options.prefix.add(t)) {
            if !known.contains(&name) {
                topics.push(Topic::new(&name, &options.prefix));
            }
        }
        inner.live.send_replace(Arc::new(Live::of(options)));
        drop(topics);
        let mut groups = inner.groups();
        groups.retain(|g| {
            options.groups.contains(&g.group)
                || crate::filters::admits(&options.group_filters, &g.group)
        });
        for group in &options.groups {
            if !groups.iter().any(|g| g.group == *group) {
                groups.push(GroupDescription {
                    group: group.clone(),
                    ..GroupDescription::default()
                });
            }
        }
        drop(groups);
        if inner.rate.get() != options.rate_limit {
            self.set_rate_limit(options.rate_limit)?;
        }
        inner.look_again.notify_one();
        Ok(true)
    }
}

/// Whether anything differs that is fixed for as long as a link runs.
fn needs_restart(running: &LinkOptions, new: &LinkOptions) -> bool {
    // Every setting is named, so that a new one is put on one side or the other.
    let LinkOptions {
        name,
        source: _,
        destination: _,
        topics: _,
        topic_filters: _,
        groups: _,
        group_filters: _,
        config_exclude: _,
        start: _,
        topic_starts: _,
        acl_sync: _,
        lifecycle: _,
        prefix,
        prefix_groups,
        sharing,
        memory_bytes,
        shards,
        fetch,
        produce,
        group_sync_interval: _,
        metadata_refresh: _,
        guard_interval,
        replication_factor: _,
        join_batches,
        rate_limit: _,
        backoff,
    } = running;
    *name != new.name
        || *prefix != new.prefix
        || *prefix_groups != new.prefix_groups
        || !SharingOptions::are_same(sharing.as_ref(), new.sharing.as_ref())
        || *memory_bytes != new.memory_bytes
        || *shards != new.shards
        || *fetch != new.fetch
        || *produce != new.produce
        || *guard_interval != new.guard_interval
        || *join_batches != new.join_batches
        || *backoff != new.backoff
}
