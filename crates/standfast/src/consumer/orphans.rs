//! Records that the application was given from a cluster that is not the active one any more, at offsets above the handoff.
//!
//! Their producer sends them again. The second one is left out, but the application's acknowledgement of the first is waited
//! for: only then may the group's offset move past the second.

use std::collections::HashMap;

use super::partition::MAX_UNACKNOWLEDGED;
use crate::record::RecordId;

/// Generation and offset of a record as it was handed out.
pub(super) type Place = (u64, i64);

#[derive(Debug, Default)]
pub(super) struct Orphans {
    records: HashMap<RecordId, Orphan>,
    places: HashMap<Place, RecordId>,
}

#[derive(Debug, Clone, Copy)]
struct Orphan {
    place: Place,
    acknowledged: bool,
    /// Where it has come again.
    offset: Option<i64>,
}

/// What an acknowledgement of an orphan means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is noted for when the record comes again.
    Noted,
    /// It is that of the record at this offset.
    Of(i64),
}

impl Orphans {
    pub(super) fn add(&mut self, place: Place, id: RecordId, acknowledged: bool) {
        if self.records.len() >= MAX_UNACKNOWLEDGED {
            // Its second one will be taken for acknowledged; no application has so many open.
            return;
        }
        let orphan = Orphan {
            place,
            acknowledged,
            offset: None,
        };
        self.records.insert(id, orphan);
        self.places.insert(place, id);
    }

    /// The record has come again at `offset`. Whether its acknowledgement is still to come.
    pub(super) fn came(&mut self, id: RecordId, offset: i64) -> bool {
        match self.records.get_mut(&id) {
            Some(orphan) if orphan.acknowledged => {
                let place = orphan.place;
                self.records.remove(&id);
                self.places.remove(&place);
                false
            }
            Some(orphan) if orphan.offset.is_none() => {
                orphan.offset = Some(offset);
                true
            }
            _ => false,
        }
    }

    /// What came again did so on a cluster that is lost too: it is to come once more.
    pub(super) fn gone(&mut self, id: RecordId) {
        if let Some(orphan) = self.records.get_mut(&id) {
            orphan.offset = None;
        }
    }

    pub(super) fn has(&self, place: Place) -> bool {
        self.places.contains_key(&place)
    }

    pub(super) fn acknowledge(&mut self, place: Place) -> Option<Answer> {
        let id = *self.places.get(&place)?;
        let orphan = self.records.get_mut(&id)?;
        let Some(offset) = orphan.offset else {
            orphan.acknowledged = true;
            return Some(Answer::Noted);
        };
        self.records.remove(&id);
        self.places.remove(&place);
        Some(Answer::Of(offset))
    }

    /// All places.
    pub(super) fn places(&self) -> Vec<Place> {
        self.places.keys().copied().collect()
    }

    /// The places of a generation up to this one.
    pub(super) fn up_to(&self, (generation, offset): Place) -> Vec<Place> {
        let earlier = |place: &&Place| place.0 == generation && place.1 <= offset;
        self.places.keys().filter(earlier).copied().collect()
    }
}
