//! Names and the epoch: parsed once, then trusted.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest accepted fleet or cluster name, in bytes.
pub const MAX_NAME_BYTES: usize = 63;

/// A name that is neither empty nor longer than [`MAX_NAME_BYTES`] and matches `[a-z0-9][a-z0-9._-]*`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{kind} name {name:?} is not valid: use 1 to 63 of a-z, 0-9, '.', '_', '-', starting with a letter or digit"
)]
pub struct NameError {
    kind: &'static str,
    name: String,
}

impl NameError {
    fn new(kind: &'static str, name: &str) -> Self {
        // A remote value may be huge; the message quotes only its beginning.
        let name = name.chars().take(MAX_NAME_BYTES + 1).collect();
        Self { kind, name }
    }
}

fn is_valid(name: &str) -> bool {
    let mut bytes = name.bytes();
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    name.len() <= MAX_NAME_BYTES
        && bytes.next().is_some_and(alphanumeric)
        && bytes.all(|b| alphanumeric(b) || matches!(b, b'.' | b'_' | b'-'))
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// Checks `name`: 1 to 63 bytes of `[a-z0-9][a-z0-9._-]*`.
            ///
            /// # Errors
            /// [`NameError`], which quotes the name.
            pub fn new(name: impl Into<String>) -> Result<Self, NameError> {
                let name = name.into();
                if is_valid(&name) {
                    Ok(Self(name))
                } else {
                    Err(NameError::new($kind, &name))
                }
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = NameError;
            fn from_str(name: &str) -> Result<Self, NameError> {
                Self::new(name)
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(name: String) -> Result<Self, NameError> {
                Self::new(name)
            }
        }

        impl TryFrom<&str> for $type {
            type Error = NameError;
            fn try_from(name: &str) -> Result<Self, NameError> {
                Self::new(name)
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.0
            }
        }
    };
}

name! {
    /// The name of a fleet: the set of clusters that stand in for one another.
    FleetName, "fleet"
}
name! {
    /// The name of a Kafka cluster within its fleet.
    ClusterName, "cluster"
}

impl ClusterName {
    /// The name given to the only cluster of a fleet that is kept as a bare bootstrap string.
    pub fn default_cluster() -> Self {
        Self("default".to_owned())
    }
}

/// Counts the changes of a fleet record; it only grows. 0 is reserved for a bare bootstrap string.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch of a bare bootstrap string.
    pub const BARE: Self = Self(0);
    /// The epoch of a newly created record.
    pub const FIRST: Self = Self(1);
    /// The highest accepted epoch, 2^53 - 1: what every JSON tool can hold exactly.
    pub const MAX: Self = Self((1 << 53) - 1);

    /// The epoch of the next change; stays at [`Epoch::MAX`], where a write is refused for not growing.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1).min(Self::MAX.0))
    }

    /// The plain number.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn refuses_what_could_leave_the_folder_or_the_key() {
        for bad in [
            "", ".", "..", "../x", "a/b", "a b", "A", "-a", "_a", "a\n", "é", "a\0",
        ] {
            assert!(FleetName::new(bad).is_err(), "{bad:?}");
        }
        assert!(FleetName::new("a".repeat(MAX_NAME_BYTES)).is_ok());
        let error = FleetName::new("a".repeat(10_000)).unwrap_err().to_string();
        assert!(error.len() < 300, "{error}");
    }

    #[test]
    fn epoch_stops_at_its_maximum() {
        assert_eq!(Epoch(6).next(), Epoch(7));
        assert_eq!(Epoch::MAX.next(), Epoch::MAX);
    }

    proptest! {
        #[test]
        fn accepts_exactly_the_documented_pattern(name in "[a-z0-9][a-z0-9._-]{0,62}") {
            let parsed = ClusterName::new(name.clone()).unwrap();
            prop_assert_eq!(parsed.as_str(), name);
        }

        #[test]
        fn accepts_nothing_else(name in "\\PC{0,70}") {
            let accepted = ClusterName::new(name.clone()).is_ok();
            let clean = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-_".contains(c));
            prop_assert_eq!(accepted, clean && (1..=63).contains(&name.len()) && !name.starts_with(['.', '-', '_']));
        }
    }
}
