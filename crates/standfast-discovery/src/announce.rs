//! What the agents of a fleet announce of themselves, so that they know of one another's links: one value per fleet.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::record::{MAX_VALUE_BYTES, RecordError};

/// An agent that has not announced itself for so long is gone.
pub const ANNOUNCED_FOR: Duration = Duration::from_secs(60);

/// Tries when another agent announces itself at the same moment.
pub(crate) const TRIES: u32 = 5;

/// The last part of the key.
pub(crate) const KEY: &str = "agents";

/// One agent's announcement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Announcement {
    /// When it was made, by that agent's clock.
    pub at: Timestamp,
    /// What it says; its meaning is the agents'.
    pub content: Value,
}

/// All of them, by the agent's name.
pub(crate) type Announcements = BTreeMap<String, Announcement>;

/// The stored value with one agent's announcement in it, without those of agents that are gone. What cannot be read is left behind: it only lives for a minute.
pub(crate) fn with(
    stored: Option<&[u8]>,
    agent: &str,
    content: &Value,
) -> Result<(Announcements, Vec<u8>), RecordError> {
    let now = Timestamp::now();
    let mut all: Announcements = stored
        .and_then(|bytes| serde_json::from_slice(bytes).ok())
        .unwrap_or_default();
    all.retain(|_, one| now.duration_since(one.at).unsigned_abs() < ANNOUNCED_FOR);
    let announcement = Announcement {
        at: now,
        content: content.clone(),
    };
    all.insert(agent.to_owned(), announcement);
    let json = serde_json::to_vec(&all).map_err(RecordError::json)?;
    if json.len() > MAX_VALUE_BYTES {
        return Err(RecordError::new(format!(
            "the agents of the fleet announce {} bytes, more than {MAX_VALUE_BYTES}",
            json.len()
        )));
    }
    Ok((all, json))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_that_are_gone_and_nonsense_are_left_out() {
        let (_, json) = with(Some(b"nonsense"), "one", &Value::from(1)).unwrap();
        let (all, json) = with(Some(&json), "two", &Value::from(2)).unwrap();
        assert_eq!(all.len(), 2);
        let long_ago = Timestamp::now() - ANNOUNCED_FOR * 2;
        let mut late: Announcements = serde_json::from_slice(&json).unwrap();
        late.get_mut("one").unwrap().at = long_ago;
        let late = serde_json::to_vec(&late).unwrap();
        let (all, _) = with(Some(&late), "two", &Value::from(3)).unwrap();
        assert_eq!(all.keys().collect::<Vec<_>>(), ["two"]);
        assert_eq!(all["two"].content, Value::from(3));
        let huge = Value::from("x".repeat(MAX_VALUE_BYTES));
        assert!(with(None, "one", &huge).is_err());
    }
}
