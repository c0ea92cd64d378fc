//! Types that keep secrets out of logs, and paths that name secrets.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use crate::Error;

/// Longest secret path, in bytes.
const MAX_PATH_LEN: usize = 512;

/// Path of a secret, for example `kafka/east`: in Vault relative to the KV mount and without `data/`, in a file the
/// name of a table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SecretPath(String);

impl SecretPath {
    /// Checks a path: 1 to 512 bytes, segments parted by single `/`, letters, digits and `._-@:+=~` only.
    pub fn new(path: impl Into<String>) -> Result<Self, Error> {
        let path = path.into();
        match Self::fault(&path) {
            None => Ok(Self(path)),
            Some(reason) => Err(Error::InvalidPath {
                path: path.chars().take(80).collect(),
                reason,
            }),
        }
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn fault(path: &str) -> Option<&'static str> {
        if path.is_empty() {
            return Some("it is empty");
        }
        if path.len() > MAX_PATH_LEN {
            return Some("it is longer than 512 bytes");
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-@:+=~/".contains(c);
        if !path.chars().all(allowed) {
            return Some("only letters, digits, `/` and `._-@:+=~` are allowed");
        }
        path.split('/')
            .any(|segment| matches!(segment, "" | "." | ".."))
            .then_some("it has an empty, `.` or `..` segment, or a slash at its start or end")
    }
}

impl fmt::Display for SecretPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for SecretPath {
    type Err = Error;

    fn from_str(path: &str) -> Result<Self, Error> {
        Self::new(path)
    }
}

impl TryFrom<String> for SecretPath {
    type Error = Error;

    fn try_from(path: String) -> Result<Self, Error> {
        Self::new(path)
    }
}

impl From<SecretPath> for String {
    fn from(path: SecretPath) -> Self {
        path.0
    }
}

/// A text that must not be seen: `Debug` prints `***`, there is no `Display`, memory is wiped on drop.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretString(Zeroizing<String>);

impl SecretString {
    /// The text itself. Never log it, never put it into an error or a command line.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for SecretString {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl From<&str> for SecretString {
    fn from(text: &str) -> Self {
        Self::from(text.to_owned())
    }
}

impl fmt::Debug for SecretString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// PEM text: certificates or a private key. `Debug` prints `***`, memory is wiped on drop.
#[derive(Clone, PartialEq, Eq)]
pub struct Pem(SecretString);

impl Pem {
    /// The PEM text, ready for librdkafka's `ssl.*.pem` properties. Never log it.
    pub fn expose(&self) -> &str {
        self.0.expose()
    }

    /// Takes a text that has a PEM block whose label ends with `label`.
    pub(crate) fn parse(text: String, label: &str) -> Result<Self, String> {
        let text = SecretString::from(text);
        let has_block = text.expose().lines().any(|line| {
            line.trim()
                .strip_prefix("-----BEGIN ")
                .and_then(|rest| rest.strip_suffix("-----"))
                .is_some_and(|found| found.ends_with(label))
        });
        if has_block {
            Ok(Self(text))
        } else {
            Err(format!("holds no PEM block `-----BEGIN {label}-----`"))
        }
    }
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Wipes every text in a parsed document.
pub(crate) fn wipe(value: serde_json::Value) {
    match value {
        serde_json::Value::String(mut text) => text.zeroize(),
        serde_json::Value::Array(values) => values.into_iter().for_each(wipe),
        serde_json::Value::Object(values) => values.into_iter().for_each(|(_, value)| wipe(value)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_checked() {
        for good in ["kafka/east", "a", "team-1/kafka.v2/east_1"] {
            assert!(SecretPath::new(good).is_ok(), "{good}");
        }
        let long = "a".repeat(513);
        for bad in [
            "",
            "/a",
            "a/",
            "a//b",
            "a/../b",
            "a b",
            "a?version=1",
            "a%2e",
            "a#b",
            "a\nb",
            &long,
        ] {
            assert!(SecretPath::new(bad).is_err(), "{bad}");
        }
    }
}
