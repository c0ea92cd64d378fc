//! How the link's plain producer id numbers what it writes to a partition: read from the destination's log, like everything else.

use standfast_wire::batch::{ProducerStamp, RawBatch, sequence_of};

/// What goes into a batch header beside the producer id. Two engines at the same position have the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Numbering {
    /// How far the sequence numbers lag behind the offsets: by what was written under other ids (transactions), or before a fence.
    pub(crate) shift: i64,
    /// 0 until the partition was fenced (see [`crate::fence`]).
    pub(crate) epoch: i16,
}

impl Numbering {
    /// With which `offset` has sequence number `sequence`.
    pub(crate) fn of(offset: i64, sequence: i32, epoch: i16) -> Self {
        Self {
            shift: (offset - i64::from(sequence)) & i64::from(i32::MAX),
            epoch,
        }
    }

    /// As a batch of the link tells it; `None` if that is a marker, which has no sequence number.
    pub(crate) fn of_batch(batch: &RawBatch) -> Option<Self> {
        let header = &batch.header;
        (!header.attributes.is_control()).then(|| {
            Self::of(
                header.base_offset,
                header.base_sequence,
                header.producer_epoch,
            )
        })
    }

    /// The stamp of a batch at `offset`.
    pub(crate) fn stamp(self, producer_id: i64, offset: i64) -> ProducerStamp {
        ProducerStamp {
            producer_id,
            producer_epoch: self.epoch,
            base_sequence: sequence_of(offset - self.shift),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_go_on_where_they_were_also_over_their_end() {
        let plain = Numbering::default().stamp(7, 5);
        assert_eq!((plain.producer_epoch, plain.base_sequence), (0, 5));
        // Behind a fence they begin anew, under another epoch.
        let fenced = Numbering::of(1000, 0, 3);
        assert_eq!(fenced.stamp(7, 1000).base_sequence, 0);
        assert_eq!(fenced.stamp(7, 1004).base_sequence, 4);
        assert_eq!(fenced.stamp(7, 1004).producer_epoch, 3);
        let late = Numbering::of(10, i32::MAX, 0);
        assert_eq!(late.stamp(7, 10).base_sequence, i32::MAX);
        assert_eq!(late.stamp(7, 11).base_sequence, 0);
    }
}
