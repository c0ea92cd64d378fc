//! When a link may run, with which options, and what is said of it when it does not.

use standfast_discovery::FleetRecord;
use standfast_link::{Lifecycle, LinkDescription, LinkName, LinkOptions, LinkState, MirrorStatus};
use standfast_wire::ClusterOptions;

use crate::config::{AclSyncSection, LinkSection};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Run,
    Hold(String),
}

/// The rule. Without a record nobody knows which cluster is active, so nothing is written.
pub(super) fn verdict(record: Option<&FleetRecord>, section: &LinkSection) -> Verdict {
    match record {
        // Its topics are not those of the fleet's applications.
        _ if !section.follow_fleet => Verdict::Run,
        None => Verdict::Hold(
            "there is no fleet record yet; create it with `standfast fleet init`, or bring discovery back".to_owned(),
        ),
        Some(record) if record.active == section.destination => {
            Verdict::Hold(format!("{} is the active cluster", section.destination))
        }
        Some(_) => Verdict::Run,
    }
}

pub(super) fn link_options(
    section: &LinkSection,
    name: LinkName,
    clusters: &(ClusterOptions, ClusterOptions),
    lifecycle: &Lifecycle,
) -> LinkOptions {
    let (source, destination) = clusters.clone();
    let mut options = LinkOptions::new(name, source, destination, section.topics.clone());
    options.lifecycle = lifecycle.clone();
    options.topic_filters.clone_from(&section.topic_filters);
    options.prefix = section.prefix.clone();
    options.prefix_groups = section.prefix_groups;
    options.groups.clone_from(&section.groups);
    options.group_filters.clone_from(&section.group_filters);
    options.config_exclude.clone_from(&section.config_exclude);
    options.start = section.start.0;
    let starts = section.topic_starts.iter();
    options.topic_starts = starts
        .map(|(topic, start)| (topic.clone(), start.0))
        .collect();
    options.acl_sync = section.acl_sync.as_ref().and_then(AclSyncSection::options);
    options.replication_factor = section.replication_factor;
    options.join_batches = section.join_batches.unwrap_or(true);
    options.rate_limit = section.rate_limit.map(|rate| rate.0);
    if let Some(mib) = section.memory_mib {
        options.memory_bytes = mib << 20;
    }
    if let Some(interval) = section.refresh_interval {
        options.metadata_refresh = interval;
    }
    if let Some(interval) = section.group_sync_interval {
        options.group_sync_interval = interval;
    }
    options
}

/// The last word of a link that no longer runs: lags as they were, states as they are.
pub(super) fn as_stopped(mut description: LinkDescription) -> LinkDescription {
    description.link_state = LinkState::Stopped;
    for mirror in &mut description.mirrors {
        let told = [
            MirrorStatus::Failed,
            MirrorStatus::Paused,
            MirrorStatus::LinkPaused,
        ];
        if !told.contains(&mirror.mirror_status) {
            mirror.mirror_status = MirrorStatus::Stopped;
        }
    }
    description
}

#[cfg(test)]
mod tests {
    use super::*;
    use standfast_discovery::{ClusterEntry, ClusterName};
    use std::collections::BTreeMap;

    fn section() -> LinkSection {
        let text =
            "name = 'west-to-east'\nsource = 'west'\ndestination = 'east'\ntopics = ['orders']";
        toml::from_str(text).unwrap()
    }

    fn record(active: &str) -> FleetRecord {
        let name = |n: &str| ClusterName::new(n).unwrap();
        let clusters = BTreeMap::from([
            (name("west"), ClusterEntry::new("w:9092")),
            (name("east"), ClusterEntry::new("e:9092")),
        ]);
        FleetRecord::first(name(active), clusters, "test")
    }

    #[test]
    fn a_link_never_writes_into_the_active_cluster() {
        assert_eq!(verdict(Some(&record("west")), &section()), Verdict::Run);
        assert_eq!(
            verdict(Some(&record("east")), &section()),
            Verdict::Hold("east is the active cluster".to_owned())
        );
    }

    #[test]
    fn a_link_that_does_not_follow_the_fleet_runs_always() {
        let mut section = section();
        section.follow_fleet = false;
        assert_eq!(verdict(Some(&record("east")), &section), Verdict::Run);
        assert_eq!(verdict(None, &section), Verdict::Run);
    }

    #[test]
    fn without_a_record_nothing_is_written() {
        assert!(matches!(verdict(None, &section()), Verdict::Hold(_)));
    }
}
