//! Ids of a transactional client's records.
//!
//! A record that was made from another gets an id that is made from the other's: transformed once more after a failover, it
//! has the same id. The rule of all ids holds for these too: in one partition a producer's sequences only grow. So the
//! "producer" stands for one producer's records of one input partition as transformed by one group, and the sequence is
//! the source's sequence and the number of the output.

use std::collections::HashMap;

use uuid::Uuid;

use crate::consumer::Message;
use crate::record::RecordId;

/// Bits for the number of a record among those that were made from one source.
const OUTPUT_BITS: u32 = 10;

/// Sources whose last output is remembered within a transaction; beyond, ids are not derived.
const MAX_SOURCES: usize = 100_000;

/// Gives ids.
#[derive(Debug)]
pub(super) struct Ids {
    instance: Uuid,
    next: u64,
    group: u128,
    /// Per derived producer and output topic the last sequence in this transaction, and of which source.
    last: HashMap<(u128, u32), u64>,
    /// Outputs per source: of this transaction.
    outputs: HashMap<(u128, u64), u64>,
}

impl Ids {
    pub(super) fn new(instance: Uuid, group: &str) -> Self {
        Self {
            instance,
            next: 0,
            group: fnv1a(FNV_BASIS, group.as_bytes()),
            last: HashMap::new(),
            outputs: HashMap::new(),
        }
    }

    /// A transaction begins.
    pub(super) fn forget_sources(&mut self) {
        self.last.clear();
        self.outputs.clear();
    }

    /// An id that no other record has.
    pub(super) fn fresh(&mut self) -> RecordId {
        let sequence = self.next;
        self.next += 1;
        RecordId {
            producer: self.instance,
            sequence,
        }
    }

    /// The id of the next record for `topic` that is made from `source`.
    pub(super) fn derived(&mut self, source: &Message, topic: &str) -> RecordId {
        let derived = source
            .id()
            .and_then(|id| self.derive(id, source.topic(), source.partition(), topic));
        derived.unwrap_or_else(|| self.fresh())
    }

    fn derive(&mut self, id: RecordId, topic: &str, partition: i32, to: &str) -> Option<RecordId> {
        let mut hash = fnv1a(self.group, &[0]);
        hash = fnv1a(hash, topic.as_bytes());
        hash = fnv1a(hash, &partition.to_be_bytes());
        hash = fnv1a(hash, id.producer.as_bytes());
        if self.outputs.len() >= MAX_SOURCES {
            return None;
        }
        let output = self.outputs.entry((hash, id.sequence)).or_insert(0);
        let number = *output;
        *output += 1;
        let is_too_large = id.sequence.leading_zeros() < OUTPUT_BITS || number >> OUTPUT_BITS != 0;
        if is_too_large {
            return None;
        }
        let sequence = id.sequence << OUTPUT_BITS | number;
        let to = RecordId::topic_hash(to);
        match self.last.get_mut(&(hash, to)) {
            // It would be taken for a repetition.
            Some(last) if sequence <= *last => return None,
            Some(last) => *last = sequence,
            None => drop(self.last.insert((hash, to), sequence)),
        }
        Some(RecordId {
            producer: Uuid::from_u128(mix(hash)),
            sequence,
        })
    }
}

const FNV_BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
const FNV_PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;

/// FNV-1a, 128 bits.
fn fnv1a(basis: u128, bytes: &[u8]) -> u128 {
    bytes.iter().fold(basis, |hash, byte| {
        (hash ^ u128::from(*byte)).wrapping_mul(FNV_PRIME)
    })
}

/// Spreads the hash over all bits: windows keep only the first half of a producer's id.
fn mix(hash: u128) -> u128 {
    let (high, low) = ((hash >> 64) as u64, hash as u64);
    let finish = |mut word: u64| {
        word ^= word >> 33;
        word = word.wrapping_mul(0xff51_afd7_ed55_8ccd);
        word ^= word >> 33;
        word = word.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        word ^ word >> 33
    };
    u128::from(finish(high ^ low.rotate_left(32))) << 64
        | u128::from(finish(low.wrapping_add(high)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(producer: u128, sequence: u64) -> RecordId {
        RecordId {
            producer: Uuid::from_u128(producer),
            sequence,
        }
    }

    #[test]
    fn the_same_work_gives_the_same_ids_and_sequences_grow() {
        let work = |instance| {
            let mut ids = Ids::new(Uuid::from_u128(instance), "enrich");
            let mut given = Vec::new();
            for (sequence, outputs) in [(3, 2), (4, 0), (9, 3)] {
                for _ in 0..outputs {
                    given.push(
                        ids.derive(source(7, sequence), "orders", 1, "enriched")
                            .expect("derived"),
                    );
                }
            }
            given
        };
        let given = work(1);
        assert_eq!(given, work(2), "another process");
        assert!(given.is_sorted_by(|a, b| a.producer == b.producer && a.sequence < b.sequence));
    }

    #[test]
    fn what_has_nothing_to_do_with_one_another_differs() {
        let derive = |group: &str, id, topic: &str, partition| {
            Ids::new(Uuid::nil(), group)
                .derive(id, topic, partition, "out")
                .expect("derived")
                .producer
        };
        let base = derive("g", source(7, 3), "orders", 1);
        assert_eq!(base, derive("g", source(7, 4), "orders", 1));
        for other in [
            derive("h", source(7, 3), "orders", 1),
            derive("g", source(8, 3), "orders", 1),
            derive("g", source(7, 3), "other", 1),
            derive("g", source(7, 3), "orders", 2),
        ] {
            assert_ne!(base.as_u64_pair().0, other.as_u64_pair().0);
        }
    }

    #[test]
    fn an_id_that_would_look_like_a_repetition_is_not_given() {
        let mut ids = Ids::new(Uuid::nil(), "g");
        let mut derive = |id, to: &str| ids.derive(id, "orders", 0, to);
        assert!(derive(source(7, 5), "a").is_some() && derive(source(7, 4), "b").is_some());
        assert_eq!(derive(source(7, 4), "a"), None, "out of order");
        assert_eq!(derive(source(7, u64::MAX), "a"), None, "too large");
        for _ in 0..1_024 {
            assert!(derive(source(7, 6), "a").is_some());
        }
        assert_eq!(derive(source(7, 6), "a"), None, "too many");
        ids.forget_sources();
        assert!(
            ids.derive(source(7, 4), "orders", 0, "a").is_some(),
            "once more after an abort"
        );
        assert_ne!(ids.fresh(), ids.fresh());
    }
}
