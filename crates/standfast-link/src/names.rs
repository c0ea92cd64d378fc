//! Names of mirrors: the source's own, with the link's prefix in front.
//!
//! All of the engine knows a topic by its mirror's name, because the source is connected with the prefix ([`ClusterOptions::topic_prefix`](standfast_wire::ClusterOptions)) and takes it off
//! itself. Left to be done are what names no topic to a cluster: settings, whose names are the source's; consumer groups; ACLs; and the data plane, which makes
//! its requests by hand.

use std::sync::Arc;

use standfast_wire::TopicPrefix;
use standfast_wire::admin::{AclBinding, AclPattern, AclResource};

use crate::Error;
use crate::filters::{self, Filter};
use crate::lifecycle::RunningState;
use crate::live::Live;

/// Longest topic name that Kafka takes.
const TOPIC_NAME_MAX: usize = 249;

/// In a LITERAL ACL: every name.
const ANY_NAME: &str = "*";

/// The name of a source topic's mirror.
///
/// # Errors
/// Why the topic cannot be mirrored under that name, in words.
pub fn mirror_name(prefix: &TopicPrefix, topic: &str) -> Result<Arc<str>, String> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if topic.is_empty()
        || topic.len() > TOPIC_NAME_MAX
        || matches!(topic, "." | "..")
        || !topic.chars().all(legal)
    {
        return Err(format!("{topic:?} is not a topic name"));
    }
    if filters::is_internal(topic) {
        return Err(format!(
            "{topic:?} is an internal topic of Kafka or Standfast, which are never mirrored"
        ));
    }
    let name = prefix.add(topic);
    if name.len() > TOPIC_NAME_MAX {
        return Err(format!(
            "the mirror of {topic:?} would be called {name:?}, which has {} characters and may have {TOPIC_NAME_MAX}; take a shorter prefix, or exclude the topic",
            name.len()
        ));
    }
    if filters::is_internal(&name) || &*name == ".." {
        return Err(format!(
            "the mirror of {topic:?} would be called {name:?}, a name that is Kafka's or Standfast's own; take another prefix, or exclude the topic"
        ));
    }
    Ok(name)
}

/// What a mirror's name must look like, for one that does not.
pub(crate) fn not_a_mirror(prefix: &TopicPrefix, name: &str) -> Option<String> {
    match prefix.strip(name) {
        None => Some(format!(
            "{name:?} cannot be a mirror of this link, whose mirrors are the source's topics with {prefix:?} in front; the mirror of {name:?} is \"{prefix}{name}\""
        )),
        Some(topic) => mirror_name(prefix, topic).err(),
    }
}

/// Whether the filters take the source topic of a mirror.
pub(crate) fn admits(prefix: &TopicPrefix, filters: &[Filter], mirror: &str) -> bool {
    prefix
        .strip(mirror)
        .is_some_and(|topic| filters::admits_topic(filters, topic))
}

impl Live {
    /// The name that a group of the source has on the destination.
    pub(crate) fn mirror_group(&self, group: &str) -> String {
        if self.prefix_groups {
            format!("{}{group}", self.prefix)
        } else {
            group.to_owned()
        }
    }
}

/// How the names in ACLs differ between the two clusters.
#[derive(Debug, Clone, Default)]
pub(crate) struct AclNames {
    pub(crate) prefix: TopicPrefix,
    pub(crate) prefix_groups: bool,
}

impl AclNames {
    fn is_renamed(&self, resource: AclResource) -> bool {
        !self.prefix.is_empty()
            && match resource {
                AclResource::Topic => true,
                AclResource::Group => self.prefix_groups,
                _ => false,
            }
    }

    /// An ACL of the source as it is to stand on the destination. One for every name becomes one for every name with the prefix.
    pub(crate) fn mirrored(&self, acl: &AclBinding) -> AclBinding {
        let mut acl = acl.clone();
        if self.is_renamed(acl.resource) {
            if acl.pattern == AclPattern::Literal && acl.name == ANY_NAME {
                acl.pattern = AclPattern::Prefixed;
                acl.name = self.prefix.to_string();
            } else {
                acl.name = self.prefix.add(&acl.name).to_string();
            }
        }
        acl
    }

    /// The other way round; `None` for one that no ACL of the source could become.
    pub(crate) fn original(&self, acl: &AclBinding) -> Option<AclBinding> {
        let mut acl = acl.clone();
        if self.is_renamed(acl.resource) {
            let own = acl.name.strip_prefix(self.prefix.as_str())?;
            if own.is_empty() {
                acl.pattern = AclPattern::Literal;
                acl.name = ANY_NAME.to_owned();
            } else {
                acl.name = own.to_owned();
            }
        }
        Some(acl)
    }
}

/// A link keeps the prefix that it began with: under another one all its mirrors would begin again, and the old ones would no longer be anybody's.
pub(crate) fn check_same_prefix(state: &RunningState, prefix: &TopicPrefix) -> Result<(), Error> {
    let began = state.prefix.as_str();
    if began == prefix.as_str() || (began.is_empty() && state.topics.is_empty()) {
        return Ok(());
    }
    let called = |prefix: &str| match prefix {
        "" => "without a prefix".to_owned(),
        prefix => format!("with the prefix {prefix:?}"),
    };
    Err(Error::InvalidOption {
        option: "prefix",
        reason: format!(
            "the mirrors of this link were made {} and cannot go on {}; put the prefix back, or make a link of another name",
            called(began),
            called(prefix.as_str())
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use standfast_wire::admin::AclOperation;

    fn eu() -> TopicPrefix {
        TopicPrefix::new("eu.").unwrap()
    }

    #[test]
    fn names_that_kafka_would_refuse_are_refused_here() {
        assert_eq!(&*mirror_name(&eu(), "orders").unwrap(), "eu.orders");
        let longest = "o".repeat(246);
        assert!(mirror_name(&eu(), &longest).is_ok());
        let error = mirror_name(&eu(), &format!("{longest}o")).unwrap_err();
        assert!(error.contains("250 characters"), "{error}");
        for (prefix, topic) in [
            ("eu.", "__consumer_offsets"),
            ("eu.", "standfast.lost.orders"),
            ("_", "_orders"),
            ("standfast", ".orders"),
            (".", "."),
        ] {
            let prefix = TopicPrefix::new(prefix).unwrap();
            assert!(mirror_name(&prefix, topic).is_err(), "{prefix}{topic}");
        }
        let hint = not_a_mirror(&eu(), "orders").unwrap();
        assert!(hint.contains("is \"eu.orders\""), "{hint}");
        assert_eq!(not_a_mirror(&eu(), "eu.orders"), None);
    }

    #[test]
    fn acls_for_all_topics_become_those_for_all_mirrors() {
        let acl = |resource, pattern, name: &str| {
            AclBinding::allow("User:a", AclOperation::Read, resource, pattern, name)
        };
        use AclPattern::{Literal, Prefixed};
        use AclResource::{Group, Topic, TransactionalId};
        let names = |prefix_groups| AclNames {
            prefix: eu(),
            prefix_groups,
        };
        for (groups, theirs, ours) in [
            (false, acl(Topic, Literal, "o"), acl(Topic, Literal, "eu.o")),
            (
                false,
                acl(Topic, Prefixed, "o"),
                acl(Topic, Prefixed, "eu.o"),
            ),
            (false, acl(Topic, Literal, "*"), acl(Topic, Prefixed, "eu.")),
            (false, acl(Group, Literal, "*"), acl(Group, Literal, "*")),
            (true, acl(Group, Literal, "*"), acl(Group, Prefixed, "eu.")),
            (true, acl(Group, Literal, "g"), acl(Group, Literal, "eu.g")),
            (
                true,
                acl(TransactionalId, Literal, "t"),
                acl(TransactionalId, Literal, "t"),
            ),
        ] {
            assert_eq!(names(groups).mirrored(&theirs), ours);
            assert_eq!(names(groups).original(&ours), Some(theirs));
        }
        assert_eq!(names(false).original(&acl(Topic, Literal, "other")), None);
        let plain = AclNames::default();
        let every = acl(Topic, Literal, "*");
        assert_eq!(plain.mirrored(&every), every);
        assert_eq!(plain.original(&every), Some(every));
    }
}
