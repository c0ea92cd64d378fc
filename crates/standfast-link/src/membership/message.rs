//! What members say to their leader, and what it gives to all of them: JSON, deflated, because topic names repeat.

use std::collections::BTreeSet;
use std::io::{Read, Write};

use bytes::Bytes;
use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::assignment::Parts;
use crate::lifecycle::RunningState;

/// A message larger than this once inflated is refused.
const MAX_BYTES: u64 = 64 << 20;

/// The coordinator keeps all messages of a generation in one record of its log, which takes 1 MiB by default.
pub(super) const MAX_GENERATION_BYTES: usize = 900 << 10;

pub(super) const VERSION: u32 = 1;

/// In [`Says::asks`]: the generation that is being formed.
pub(super) const THIS_GENERATION: i32 = -1;

/// A member about itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Says {
    pub(super) version: u32,
    pub(super) name: String,
    /// What it mirrored, and in which generation it was given that.
    pub(super) had: Parts,
    pub(super) generation: i32,
    /// What FAILED here.
    pub(super) failed: Parts,
    /// What it was told.
    pub(super) state: RunningState,
    /// It waits for the others to confirm that they do what was said up to this generation.
    pub(super) asks: Option<i32>,
    /// It does what it was told up to this generation.
    pub(super) enacted: i32,
    /// When it last found a member gone.
    #[serde(default)]
    pub(super) lost_at_ms: i64,
    /// The topics that it is restoring, for which it needs all partitions.
    #[serde(default)]
    pub(super) restoring: BTreeSet<String>,
}

/// The leader to everybody, all in the same words.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Given {
    pub(super) version: u32,
    pub(super) members: Vec<Member>,
    /// The latest that anybody was told.
    pub(super) state: RunningState,
    /// Somebody waits until all do what was said up to this generation.
    pub(super) confirm: Option<i32>,
    /// When any of them last found a member gone.
    #[serde(default)]
    pub(super) lost_at_ms: i64,
}

/// One member in a generation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Member {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) leader: bool,
    pub(crate) parts: Parts,
    pub(crate) failed: Parts,
    pub(crate) enacted: i32,
    #[serde(default)]
    pub(crate) restoring: BTreeSet<String>,
}

pub(super) fn pack<T: Serialize>(message: &T) -> Result<Bytes, String> {
    let mut out = DeflateEncoder::new(Vec::new(), Compression::fast());
    let json = serde_json::to_vec(message).map_err(|e| e.to_string())?;
    out.write_all(&json).map_err(|e| e.to_string())?;
    out.finish().map(Bytes::from).map_err(|e| e.to_string())
}

pub(super) fn unpack<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let mut json = Vec::new();
    let mut inflated = DeflateDecoder::new(bytes).take(MAX_BYTES + 1);
    inflated.read_to_end(&mut json).map_err(|e| e.to_string())?;
    if json.len() as u64 > MAX_BYTES {
        return Err(format!("it is larger than {MAX_BYTES} bytes"));
    }
    serde_json::from_slice(&json).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn thousands_of_topics_fit_and_bombs_are_refused() {
        let parts: Parts = (0..20_000)
            .map(|n| (format!("team-{}.orders.v{n}", n % 50), 0))
            .collect();
        let packed = pack(&parts).unwrap();
        assert!(packed.len() < MAX_GENERATION_BYTES / 4, "{}", packed.len());
        assert_eq!(unpack::<Parts>(&packed).unwrap(), parts);
        let mut bomb = DeflateEncoder::new(Vec::new(), Compression::best());
        bomb.write_all(&vec![b' '; (MAX_BYTES + 2) as usize])
            .unwrap();
        assert!(
            unpack::<Parts>(&bomb.finish().unwrap())
                .unwrap_err()
                .contains("larger")
        );
    }

    proptest! {
        #[test]
        fn garbage_is_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(unpack::<Given>(&bytes).is_err());
        }
    }
}
