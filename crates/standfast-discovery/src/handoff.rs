//! The handoff: how far the new active cluster holds the old one's log.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::name::{ClusterName, Epoch, FleetName};
use crate::record::{MAX_VALUE_BYTES, RecordError};

/// Written before the flip to `epoch`. Clients use it to decide what to resend and where to resume.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Handoff {
    /// The fleet that is flipped.
    pub fleet: FleetName,
    /// The epoch that the flip will have.
    pub epoch: Epoch,
    /// The cluster that was active.
    pub from: ClusterName,
    /// The cluster that becomes active.
    pub to: ClusterName,
    /// When the offsets were taken.
    pub written_at: Timestamp,
    /// True for a switchover (mirrors drained to lag 0), false for a failover.
    pub planned: bool,
    /// Per topic, by partition: the offset up to which `to` holds `from`'s log (exclusive); `None` = unknown.
    pub topics: BTreeMap<String, Vec<Option<i64>>>,
}

impl Handoff {
    /// The offset up to which `to` holds `from`'s log of this partition (exclusive); `None` if it is not known.
    pub fn offset(&self, topic: &str, partition: i32) -> Option<i64> {
        let partition = usize::try_from(partition).ok()?;
        self.topics.get(topic)?.get(partition).copied().flatten()
    }

    /// Reads a stored handoff.
    ///
    /// # Errors
    /// [`RecordError`] if the value is too large, not JSON or lacks a field.
    pub fn parse(value: &[u8]) -> Result<Self, RecordError> {
        check_size(value.len())?;
        let handoff: Self = serde_json::from_slice(value).map_err(RecordError::json)?;
        if handoff
            .topics
            .values()
            .flatten()
            .flatten()
            .any(|offset| *offset < 0)
        {
            return Err(RecordError::new("an offset is negative"));
        }
        Ok(handoff)
    }

    /// The JSON to store.
    ///
    /// # Errors
    /// [`RecordError`] if it is larger than Consul takes (512 KiB: about 40,000 partitions).
    pub fn to_json(&self) -> Result<Vec<u8>, RecordError> {
        let json = serde_json::to_vec(self).map_err(RecordError::json)?;
        check_size(json.len())?;
        Ok(json)
    }
}

fn check_size(bytes: usize) -> Result<(), RecordError> {
    if bytes > MAX_VALUE_BYTES {
        return Err(RecordError::new(format!(
            "the handoff has {bytes} bytes, more than the {MAX_VALUE_BYTES} that Consul takes"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn json_round_trip(
            topics in proptest::collection::btree_map(
                "[a-zA-Z0-9._-]{1,30}",
                proptest::collection::vec(proptest::option::of(0i64..), 0..20),
                0..10,
            ),
            planned in any::<bool>(),
        ) {
            let handoff = Handoff {
                fleet: FleetName::new("payments").unwrap(),
                epoch: Epoch(7),
                from: ClusterName::new("west").unwrap(),
                to: ClusterName::new("east").unwrap(),
                written_at: Timestamp::from_second(1_800_000_000).unwrap(),
                planned,
                topics,
            };
            let read = Handoff::parse(&handoff.to_json().unwrap()).unwrap();
            for (topic, offsets) in &handoff.topics {
                for (partition, offset) in offsets.iter().enumerate() {
                    prop_assert_eq!(read.offset(topic, i32::try_from(partition).unwrap()), *offset);
                }
                prop_assert_eq!(read.offset(topic, i32::try_from(offsets.len()).unwrap()), None);
                prop_assert_eq!(read.offset(topic, -1), None);
            }
            prop_assert_eq!(read, handoff);
        }
    }
}
