//! The fleet record: which cluster of a fleet is active, and how to reach each of them.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::bootstrap::parse_bootstrap;
use crate::name::{ClusterName, Epoch};

/// Largest value read or written, in bytes: Consul's default `kv_max_value_size`.
pub const MAX_VALUE_BYTES: usize = 512 * 1024;
/// Most clusters in one fleet.
pub const MAX_CLUSTERS: usize = 64;

/// Whether the active cluster takes writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FleetState {
    /// Producers and consumers work on the active cluster.
    Active,
    /// Producers hold their records: a planned switchover is draining the mirrors.
    Fenced,
}

/// How clients talk to the brokers: Kafka's `security.protocol`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SecurityProtocol {
    /// No encryption, no authentication.
    #[default]
    #[serde(rename = "PLAINTEXT")]
    Plaintext,
    /// TLS.
    #[serde(rename = "SSL")]
    Ssl,
    /// SASL without encryption.
    #[serde(rename = "SASL_PLAINTEXT")]
    SaslPlaintext,
    /// SASL over TLS.
    #[serde(rename = "SASL_SSL")]
    SaslSsl,
}

impl SecurityProtocol {
    /// Kafka's and librdkafka's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plaintext => "PLAINTEXT",
            Self::Ssl => "SSL",
            Self::SaslPlaintext => "SASL_PLAINTEXT",
            Self::SaslSsl => "SASL_SSL",
        }
    }

    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl std::fmt::Display for SecurityProtocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How to reach one cluster of the fleet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClusterEntry {
    /// `host:port,host:port`, checked by [`parse_bootstrap`].
    pub bootstrap: String,
    /// Kafka's own cluster id; a client that finds another one must not use the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    /// Where the credentials are kept: a path for `standfast-secrets`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// Kafka's `security.protocol`.
    #[serde(default, skip_serializing_if = "SecurityProtocol::is_default")]
    pub security_protocol: SecurityProtocol,
    /// Kafka's `sasl.mechanism`, for example `SCRAM-SHA-512`. Read in any case and kept in upper case, as clients want it.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "upper_case"
    )]
    pub sasl_mechanism: Option<String>,
    /// Fields of a newer version: kept when the record is written again.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

impl ClusterEntry {
    /// A cluster that is reached in plain text.
    pub fn new(bootstrap: impl Into<String>) -> Self {
        Self {
            bootstrap: bootstrap.into(),
            cluster_id: None,
            secret: None,
            security_protocol: SecurityProtocol::default(),
            sasl_mechanism: None,
            other: BTreeMap::new(),
        }
    }

    /// The brokers of the bootstrap list.
    ///
    /// # Errors
    /// [`RecordError`] if the list is not `host:port,host:port`.
    pub fn brokers(&self) -> Result<Vec<(&str, u16)>, RecordError> {
        parse_bootstrap(&self.bootstrap)
    }
}

/// What discovery knows about a fleet. Changed only by compare-and-set, each time with a higher epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FleetRecord {
    /// Grows with every change.
    pub epoch: Epoch,
    /// The cluster that applications use; always one of `clusters`.
    pub active: ClusterName,
    /// Whether producers may write.
    pub state: FleetState,
    /// When the record was written.
    pub changed_at: Timestamp,
    /// Why, for the people who look at it later.
    #[serde(default)]
    pub reason: String,
    /// The key of the [`Handoff`](crate::Handoff) that belongs to this epoch, written before the flip.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handoff: Option<String>,
    /// Every cluster of the fleet.
    pub clusters: BTreeMap<ClusterName, ClusterEntry>,
    /// Fields of a newer version: kept when the record is written again.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

impl FleetRecord {
    /// The first record of a fleet: epoch 1, changed now.
    pub fn first(
        active: ClusterName,
        clusters: BTreeMap<ClusterName, ClusterEntry>,
        reason: impl Into<String>,
    ) -> Self {
        Self {
            epoch: Epoch::FIRST,
            active,
            state: FleetState::Active,
            changed_at: Timestamp::now(),
            reason: reason.into(),
            handoff: None,
            clusters,
            other: BTreeMap::new(),
        }
    }

    /// The record that follows this one: next epoch, changed now, no handoff; everything else is kept.
    #[must_use]
    pub fn next(&self, active: ClusterName, state: FleetState, reason: impl Into<String>) -> Self {
        Self {
            epoch: self.epoch.next(),
            active,
            state,
            changed_at: Timestamp::now(),
            reason: reason.into(),
            handoff: None,
            ..self.clone()
        }
    }

    /// The entry of the active cluster; `None` only for a record that [`check`](Self::check) refuses.
    pub fn active_cluster(&self) -> Option<&ClusterEntry> {
        self.clusters.get(&self.active)
    }

    /// Reads a stored value: the JSON of DESIGN.md, or a bare `host:port,host:port`, which becomes epoch 0 with
    /// one cluster named `default`.
    ///
    /// # Errors
    /// [`RecordError`] if the value is too large, not UTF-8, not JSON, lacks a field or contradicts itself.
    pub fn parse(value: &[u8]) -> Result<Self, RecordError> {
        if value.len() > MAX_VALUE_BYTES {
            return Err(RecordError::new(format!(
                "the value has {} bytes, more than the {MAX_VALUE_BYTES} that are accepted",
                value.len()
            )));
        }
        let text = std::str::from_utf8(value)
            .map_err(|e| RecordError::new(format!("the value is not UTF-8: {e}")))?
            .trim();
        let record = match text.as_bytes().first() {
            None => return Err(RecordError::new("the value is empty")),
            Some(b'{') => serde_json::from_str(text).map_err(RecordError::json)?,
            Some(b'"') => {
                Self::bare(&serde_json::from_str::<String>(text).map_err(RecordError::json)?)
            }
            Some(_) => Self::bare(text),
        };
        record.check()?;
        Ok(record)
    }

    /// The JSON to store, after [`check`](Self::check).
    ///
    /// # Errors
    /// [`RecordError`] if the record contradicts itself or is too large.
    pub fn to_json(&self) -> Result<Vec<u8>, RecordError> {
        self.check()?;
        let json = serde_json::to_vec(self).map_err(RecordError::json)?;
        if json.len() > MAX_VALUE_BYTES {
            return Err(RecordError::new(format!(
                "the record has {} bytes, more than the {MAX_VALUE_BYTES} that Consul takes",
                json.len()
            )));
        }
        Ok(json)
    }

    /// Checks what the types cannot: the active cluster exists, every bootstrap list is well formed, bounds hold.
    ///
    /// # Errors
    /// [`RecordError`] naming the field.
    pub fn check(&self) -> Result<(), RecordError> {
        if self.epoch > Epoch::MAX {
            return Err(RecordError::new(format!(
                "epoch {} is above {}",
                self.epoch,
                Epoch::MAX
            )));
        }
        if self.clusters.len() > MAX_CLUSTERS {
            return Err(RecordError::new(format!(
                "{} clusters are listed, more than {MAX_CLUSTERS}",
                self.clusters.len()
            )));
        }
        if !self.clusters.contains_key(&self.active) {
            return Err(RecordError::new(format!(
                "the active cluster {:?} is not listed under clusters",
                self.active.as_str()
            )));
        }
        for (name, entry) in &self.clusters {
            entry
                .brokers()
                .map_err(|e| RecordError::new(format!("cluster {name}: {e}")))?;
        }
        Ok(())
    }

    fn bare(bootstrap: &str) -> Self {
        let active = ClusterName::default_cluster();
        Self {
            epoch: Epoch::BARE,
            clusters: BTreeMap::from([(active.clone(), ClusterEntry::new(bootstrap.trim()))]),
            active,
            state: FleetState::Active,
            changed_at: Timestamp::UNIX_EPOCH,
            reason: "bare bootstrap string".to_owned(),
            handoff: None,
            other: BTreeMap::new(),
        }
    }
}

/// Why a value is not a fleet record (or a handoff).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RecordError(String);

impl RecordError {
    pub(crate) fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }

    pub(crate) fn json(error: serde_json::Error) -> Self {
        // serde_json quotes the offending value; a huge one must not end up in a log line.
        let text: String = error.to_string().chars().take(300).collect();
        Self(text)
    }
}

fn upper_case<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    Ok(text.map(|text| text.trim().to_ascii_uppercase()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DESIGN: &str = r#"{"epoch": 7, "active": "east", "state": "active", "changed_at": "2026-11-22T18:00:00Z",
        "reason": "failover: west unreachable for 12s", "handoff": "standfast/payments/handoff/7",
        "clusters": {"east": {"bootstrap": "k1.east:9092,k2.east:9092", "cluster_id": "abc", "secret": "kafka/east",
                              "security_protocol": "SASL_SSL"},
                     "west": {"bootstrap": "k1.west:9092"}}}"#;

    #[test]
    fn a_mechanism_is_kept_in_upper_case() {
        let text = DESIGN.replace(
            "\"cluster_id\": \"abc\"",
            "\"cluster_id\": \"abc\", \"sasl_mechanism\": \" scram-sha-512\"",
        );
        let record = FleetRecord::parse(text.as_bytes()).expect("record");
        let east = record.active_cluster().expect("east");
        assert_eq!(east.sasl_mechanism.as_deref(), Some("SCRAM-SHA-512"));
    }

    #[test]
    fn reads_the_record_of_the_design() {
        let record = FleetRecord::parse(DESIGN.as_bytes()).unwrap();
        assert_eq!(record.epoch, Epoch(7));
        assert_eq!(record.state, FleetState::Active);
        assert_eq!(record.changed_at.to_string(), "2026-11-22T18:00:00Z");
        let east = record.active_cluster().unwrap();
        assert_eq!(east.security_protocol, SecurityProtocol::SaslSsl);
        assert_eq!(east.brokers().unwrap().len(), 2);
        // Written again, it is the same JSON value: nothing renamed, nothing added.
        let written: serde_json::Value =
            serde_json::from_slice(&record.to_json().unwrap()).unwrap();
        assert_eq!(
            written,
            serde_json::from_str::<serde_json::Value>(DESIGN).unwrap()
        );
    }

    #[test]
    fn keeps_fields_of_a_newer_version() {
        let newer = DESIGN
            .replace("\"epoch\"", "\"lease\": {\"s\": 5}, \"epoch\"")
            .replace("\"cluster_id\"", "\"rack\": \"a\", \"cluster_id\"");
        let record = FleetRecord::parse(newer.as_bytes()).unwrap();
        let next = record.next(
            ClusterName::new("west").unwrap(),
            FleetState::Active,
            "test",
        );
        assert_eq!(next.epoch, Epoch(8));
        let json: serde_json::Value = serde_json::from_slice(&next.to_json().unwrap()).unwrap();
        assert_eq!(json["lease"]["s"], 5);
        assert_eq!(json["clusters"]["east"]["rack"], "a");
    }

    #[test]
    fn a_bare_string_is_epoch_zero() {
        for bare in [
            "k1:9092,k2:9092",
            " k1:9092,k2:9092\n",
            "\"k1:9092,k2:9092\"",
        ] {
            let record = FleetRecord::parse(bare.as_bytes()).unwrap();
            assert_eq!(record.epoch, Epoch::BARE);
            assert_eq!(
                record.active_cluster().unwrap().bootstrap,
                "k1:9092,k2:9092"
            );
        }
    }

    #[test]
    fn refuses_what_contradicts_itself() {
        let cases = [
            (
                DESIGN.replace("\"active\": \"east\"", "\"active\": \"north\""),
                "north",
            ),
            (DESIGN.replace("k1.west:9092", "k1.west"), "west"),
            (
                DESIGN.replace("\"epoch\": 7", "\"epoch\": 18446744073709551615"),
                "epoch",
            ),
            (
                DESIGN.replace("\"epoch\": 7", "\"epoch\": -1"),
                "invalid value",
            ),
            (DESIGN.replace("\"epoch\": 7,", ""), "epoch"),
            (
                DESIGN.replace("\"state\": \"active\"", "\"state\": \"paused\""),
                "paused",
            ),
            (DESIGN.replace("\"west\":", "\"../west\":"), "../west"),
            (DESIGN[..DESIGN.len() - 1].to_owned(), "EOF"),
            (String::new(), "empty"),
            ("k1".to_owned(), "k1"),
            ("k".repeat(MAX_VALUE_BYTES + 1), "bytes"),
        ];
        for (value, names) in cases {
            let error = FleetRecord::parse(value.as_bytes())
                .unwrap_err()
                .to_string();
            assert!(error.contains(names), "{error} should name {names}");
            assert!(error.len() < 400);
        }
        assert!(FleetRecord::parse(&[0xff, 0xfe]).is_err());
    }

    pub(crate) fn any_record() -> impl Strategy<Value = FleetRecord> {
        let name = "[a-z0-9][a-z0-9._-]{0,20}";
        let entry = ("[a-z0-9]{1,20}", 1u16.., proptest::option::of("\\PC{0,20}"));
        (
            proptest::collection::btree_map(name, entry, 1..5),
            0u64..=Epoch::MAX.0,
            any::<bool>(),
            "\\PC{0,40}",
            0i64..4_000_000_000,
            proptest::option::of("\\PC{0,40}"),
        )
            .prop_map(|(clusters, epoch, fenced, reason, seconds, handoff)| {
                let clusters: BTreeMap<_, _> = clusters
                    .into_iter()
                    .map(|(name, (host, port, secret))| {
                        let mut entry = ClusterEntry::new(format!("{host}:{port}"));
                        entry.secret = secret;
                        entry
                            .other
                            .insert("x".into(), serde_json::json!({"port": port}));
                        (ClusterName::new(name).unwrap(), entry)
                    })
                    .collect();
                FleetRecord {
                    epoch: Epoch(epoch),
                    active: clusters.keys().next_back().unwrap().clone(),
                    state: if fenced {
                        FleetState::Fenced
                    } else {
                        FleetState::Active
                    },
                    changed_at: Timestamp::from_second(seconds).unwrap(),
                    reason,
                    handoff,
                    clusters,
                    other: BTreeMap::new(),
                }
            })
    }

    proptest! {
        #[test]
        fn json_round_trip(record in any_record()) {
            prop_assert_eq!(FleetRecord::parse(&record.to_json().unwrap()).unwrap(), record);
        }

        #[test]
        fn parse_never_panics(value in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = FleetRecord::parse(&value);
        }

        #[test]
        fn parse_survives_damage(at in 0usize..300, byte in any::<u8>()) {
            let mut value = DESIGN.as_bytes().to_vec();
            let at = at % value.len();
            value[at] = byte;
            if let Ok(record) = FleetRecord::parse(&value) {
                prop_assert!(record.active_cluster().is_some());
            }
        }
    }
}
