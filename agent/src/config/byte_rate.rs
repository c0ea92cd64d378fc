//! A byte rate, as a number of bytes per second or as text with a unit.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// Units, by powers of 1000 and of 1024.
const UNITS: [(&str, u64); 9] = [
    ("", 1),
    ("b", 1),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("bytes", 1),
];

/// Bytes per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ByteRate(pub(crate) u64);

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Number(u64),
    Text(String),
}

impl<'de> Deserialize<'de> for ByteRate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = match Written::deserialize(deserializer) {
            Ok(Written::Number(bytes)) => return Ok(Self(bytes)),
            Ok(Written::Text(text)) => text,
            Err(_) => {
                return Err(D::Error::custom(
                    "not a byte rate; write for example \"50MB\" or 50000000",
                ));
            }
        };
        parse(&text).ok_or_else(|| {
            D::Error::custom(format!(
                "`{text}` is not a byte rate; write for example \"50MB\", \"800KiB\" or 50000000 (bytes per second)"
            ))
        })
    }
}

fn parse(text: &str) -> Option<ByteRate> {
    let text = text.trim().to_ascii_lowercase();
    let text = text.strip_suffix("/s").unwrap_or(&text);
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at_checked(digits)?;
    let (_, scale) = UNITS.iter().find(|(name, _)| *name == unit.trim())?;
    let number: u64 = number.parse().ok()?;
    number.checked_mul(*scale).map(ByteRate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_units() {
        for (text, bytes) in [
            ("50MB", 50_000_000),
            ("50 MiB/s", 50 << 20),
            ("800kb", 800_000),
            ("1048576", 1 << 20),
            ("2GB", 2_000_000_000),
        ] {
            assert_eq!(parse(text), Some(ByteRate(bytes)), "{text}");
        }
        for text in ["", "MB", "-1MB", "1.5MB", "5 elephants", "99999999999GB"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
