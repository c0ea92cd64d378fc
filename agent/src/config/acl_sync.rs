//! `acl_sync` of a link.

use std::time::Duration;

use serde::Deserialize;
use standfast_link::{AclFilter, AclSyncOptions};

/// Most ACL filters of one link.
const FILTERS_MAX: usize = 1000;
const INTERVAL_MIN: Duration = Duration::from_secs(1);

/// `acl_sync = { filters = [{ principal = "User:app" }] }`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AclSyncSection {
    #[serde(default = "on")]
    pub(crate) enable: bool,
    /// How often both clusters are asked for their ACLs.
    #[serde(default = "interval", deserialize_with = "super::duration")]
    pub(crate) interval: Duration,
    pub(crate) filters: Vec<AclFilter>,
}

impl AclSyncSection {
    /// What the engine is given; `None`: nothing is carried over.
    pub(crate) fn options(&self) -> Option<AclSyncOptions> {
        self.enable.then(|| AclSyncOptions {
            interval: self.interval,
            filters: self.filters.clone(),
        })
    }

    /// The key and what is wrong with it.
    pub(super) fn problem(&self) -> Option<(&'static str, &'static str)> {
        let owns_all = |filter: &AclFilter| filter.owns && filter.principal.is_none();
        if self.interval < INTERVAL_MIN {
            Some(("acl_sync.interval", "must be at least \"1s\""))
        } else if self.filters.is_empty() {
            Some((
                "acl_sync.filters",
                "names no ACL; write `filters = [{}]` to carry all of them over, or `enable = false`",
            ))
        } else if self.filters.len() > FILTERS_MAX {
            Some(("acl_sync.filters", "are more than 1000; use prefixes"))
        } else if self.filters.iter().any(owns_all) {
            Some((
                "acl_sync.filters",
                "`owns = true` needs `principal`: without one it would delete every ACL that only the destination has",
            ))
        } else {
            None
        }
    }
}

fn on() -> bool {
    true
}

fn interval() -> Duration {
    Duration::from_secs(5)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(text: &str) -> Result<AclSyncSection, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_and_mistakes() {
        let all = section("filters = [{}]").unwrap();
        assert_eq!(all.options().unwrap().interval, Duration::from_secs(5));
        assert_eq!(all.problem(), None);
        assert_eq!(
            section("filters = [{}]\nenable = false").unwrap().options(),
            None
        );
        for (text, key) in [
            ("filters = []", "acl_sync.filters"),
            ("filters = [{ owns = true }]", "acl_sync.filters"),
            ("filters = [{}]\ninterval = \"10ms\"", "acl_sync.interval"),
        ] {
            assert_eq!(
                section(text).unwrap().problem().map(|(key, _)| key),
                Some(key),
                "{text}"
            );
        }
        let filter = "filters = [{ resource_type = \"TOPIC\", name = \"orders.\", pattern_type = \"PREFIXED\", principal = \"User:app\", owns = true }]";
        assert_eq!(section(filter).unwrap().problem(), None);
        assert!(section("filters = [{ nmae = \"x\" }]").is_err());
    }
}
