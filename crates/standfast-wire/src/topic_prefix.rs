//! Another name for every topic of a cluster: its own, with something in front.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::error::Error;

/// Longest prefix, so that most of Kafka's 249 characters are left for the name.
pub const TOPIC_PREFIX_MAX: usize = 64;

/// What stands in front of all topic names of a cluster as this program sees it; empty: nothing does.
///
/// A [`Cluster`](crate::Cluster) that is connected with one speaks of `eu.orders` where its brokers know `orders`: it takes the prefix off in every request and puts
/// it on in every answer. A topic that does not begin with the prefix does not exist there. Such a cluster is for reading; calls that would change something in it
/// are refused. Errors quote the broker's own names. Left as they are: the names of groups and transactional ids, and those in ACLs, which may be patterns.
/// [`RawConnection`](crate::RawConnection) and [`Connection`](crate::Connection) know nothing of it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct TopicPrefix(Arc<str>);

impl TopicPrefix {
    /// Checks the prefix: 1 to [`TOPIC_PREFIX_MAX`] of the characters that topic names may have.
    ///
    /// # Errors
    /// [`Error::Options`] says what is wrong.
    pub fn new(prefix: &str) -> Result<Self, Error> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let wrong = if prefix.is_empty() {
            "is empty; leave it out for the source's own names"
        } else if prefix.len() > TOPIC_PREFIX_MAX {
            "is longer than 64 characters"
        } else if !prefix.bytes().all(legal) {
            "has characters that topic names cannot have; use A-Z, a-z, 0-9, '.', '_' and '-'"
        } else {
            return Ok(Self(prefix.into()));
        };
        Err(Error::Options {
            setting: "prefix",
            reason: format!("{prefix:?} {wrong}"),
        })
    }

    /// The prefix as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Nothing stands in front.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The broker's name with the prefix in front.
    pub fn add(&self, name: &str) -> Arc<str> {
        if self.is_empty() {
            return name.into();
        }
        let mut whole = String::with_capacity(self.0.len() + name.len());
        whole.push_str(&self.0);
        whole.push_str(name);
        whole.into()
    }

    /// The broker's name of what is called `name` here; `None` if it does not begin with the prefix, so that no topic is called so.
    pub fn strip<'n>(&self, name: &'n str) -> Option<&'n str> {
        let own = name.strip_prefix(&*self.0)?;
        (self.is_empty() || !own.is_empty()).then_some(own)
    }

    /// As [`TopicPrefix::strip`]; a name without the prefix is left as it is. For messages.
    pub fn own_name<'n>(&self, name: &'n str) -> &'n str {
        self.strip(name).unwrap_or(name)
    }
}

impl FromStr for TopicPrefix {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::new(text)
    }
}

impl fmt::Debug for TopicPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for TopicPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_there_and_back() {
        let eu = TopicPrefix::new("eu.").unwrap();
        assert_eq!(&*eu.add("orders"), "eu.orders");
        assert_eq!(eu.strip("eu.orders"), Some("orders"));
        assert_eq!(eu.strip("eu.eu.orders"), Some("eu.orders"));
        for no_name in ["orders", "eu.", "eu", ""] {
            assert_eq!(eu.strip(no_name), None, "{no_name:?}");
        }
        let none = TopicPrefix::default();
        assert_eq!(&*none.add("orders"), "orders");
        assert_eq!(none.strip("orders"), Some("orders"));
    }

    #[test]
    fn only_what_a_topic_name_can_have() {
        for good in ["eu.", "a", "EU_", "x-y-", &"a".repeat(64)] {
            assert!(TopicPrefix::new(good).is_ok(), "{good:?}");
        }
        for bad in ["", "eu/", "e u", "ü", "*", &"a".repeat(65)] {
            let error = TopicPrefix::new(bad).unwrap_err().to_string();
            assert!(error.starts_with("prefix: "), "{error}");
        }
    }
}
