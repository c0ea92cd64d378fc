//! Which records of a partition have been seen: the highest sequence of each producer.
//!
//! That is enough, because in one partition a producer's sequences only grow (idempotence is always on, records are handed to a
//! cluster in their order), and what is sent again repeats what is there, in order. So a sequence that is not above the
//! highest one seen is a repetition.

use std::collections::HashMap;

use crate::record::RecordId;

/// Producers that are remembered per partition; of more, those that were silent the longest are forgotten.
const MAX_PRODUCERS: usize = 512;

/// Longest text of a window in the metadata of a commit, in bytes. Brokers take 4,096 for all of it by default
/// (`offset.metadata.max.bytes`).
pub(crate) const MAX_TEXT: usize = 3_900;

/// The first half of a producer's UUID: random enough to tell the few producers of a partition apart, half as long.
type Producer = u64;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Window {
    highest: HashMap<Producer, Mark>,
    /// Counts what was noted, for the order of the last use.
    clock: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    sequence: u64,
    used: u64,
}

impl Window {
    /// Whether the record, or a later one of its producer, has been seen.
    pub(crate) fn has(&self, id: RecordId) -> bool {
        let mark = self.highest.get(&short(id));
        mark.is_some_and(|mark| id.sequence <= mark.sequence)
    }

    pub(crate) fn note(&mut self, id: RecordId) {
        self.raise(short(id), id.sequence);
    }

    /// Takes in what another window has seen.
    pub(crate) fn merge(&mut self, other: &Self) {
        let mut marks: Vec<_> = other.highest.iter().collect();
        marks.sort_by_key(|(_, mark)| mark.used);
        for (producer, mark) in marks {
            self.raise(*producer, mark.sequence);
        }
    }

    fn raise(&mut self, producer: Producer, sequence: u64) {
        self.clock += 1;
        let used = self.clock;
        if let Some(mark) = self.highest.get_mut(&producer) {
            mark.sequence = mark.sequence.max(sequence);
            mark.used = used;
            return;
        }
        if self.highest.len() >= MAX_PRODUCERS {
            let longest_silent = self.highest.iter().min_by_key(|(_, mark)| mark.used);
            if let Some(producer) = longest_silent.map(|(producer, _)| *producer) {
                self.highest.remove(&producer);
            }
        }
        self.highest.insert(producer, Mark { sequence, used });
    }

    /// As text of at most `limit` bytes, the most recently used producers first: hexadecimal, `producer-sequence`, parted by
    /// commas.
    pub(crate) fn text(&self, limit: usize) -> String {
        let mut marks: Vec<_> = self.highest.iter().collect();
        marks.sort_by_key(|(_, mark)| std::cmp::Reverse(mark.used));
        let mut text = String::new();
        for (producer, mark) in marks {
            let comma = if text.is_empty() { "" } else { "," };
            let entry = format!("{comma}{producer:x}-{:x}", mark.sequence);
            if text.len() + entry.len() > limit {
                break;
            }
            text.push_str(&entry);
        }
        text
    }

    /// Reads [`text`](Self::text); what is not of its form is left out.
    pub(crate) fn parse(text: &str) -> Self {
        let entries: Vec<(Producer, u64)> = text
            .split(',')
            .take(MAX_PRODUCERS)
            .filter_map(|entry| {
                let (producer, sequence) = entry.split_once('-')?;
                let number = |hex| u64::from_str_radix(hex, 16).ok();
                Some((number(producer)?, number(sequence)?))
            })
            .collect();
        let mut window = Self::default();
        for (producer, sequence) in entries.into_iter().rev() {
            window.raise(producer, sequence);
        }
        window
    }
}

fn short(id: RecordId) -> Producer {
    id.producer.as_u64_pair().0
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn id(producer: u64, sequence: u64) -> RecordId {
        RecordId {
            producer: Uuid::from_u64_pair(producer, 1),
            sequence,
        }
    }

    #[test]
    fn a_repetition_is_known_and_survives_the_metadata() {
        let mut window = Window::default();
        assert!(!window.has(id(1, 0)));
        window.note(id(1, 5));
        window.note(id(2, u64::MAX));
        window.note(id(1, 3));
        assert!(window.has(id(1, 0)) && window.has(id(1, 5)) && !window.has(id(1, 6)));
        assert!(!window.has(id(3, 0)), "another producer");
        let read = Window::parse(&window.text(MAX_TEXT));
        assert!(read.has(id(1, 5)) && !read.has(id(1, 6)) && read.has(id(2, 7)));
        for nonsense in ["", ",", "x-1", "1-", "-", "1-2-3", "ffffffffffffffffff-1"] {
            assert_eq!(Window::parse(nonsense), Window::default(), "{nonsense}");
        }
    }

    #[test]
    fn the_text_is_bounded_and_holds_the_most_recent() {
        let mut window = Window::default();
        for producer in 0..2_000 {
            window.note(id(u64::MAX - producer, u64::MAX));
        }
        assert_eq!(window.highest.len(), MAX_PRODUCERS);
        let text = window.text(MAX_TEXT);
        assert!(text.len() <= MAX_TEXT && text.len() > MAX_TEXT - 40);
        let read = Window::parse(&text);
        assert!(read.has(id(u64::MAX - 1_999, 1)) && !read.has(id(u64::MAX - 1_000, 1)));
        assert_eq!(
            read.text(MAX_TEXT),
            text,
            "the order of the last use is kept"
        );
        assert_eq!(window.text(0), "");
    }

    #[test]
    fn merging_keeps_the_higher() {
        let (mut a, mut b) = (Window::default(), Window::default());
        a.note(id(1, 5));
        a.note(id(2, 1));
        b.note(id(1, 4));
        b.note(id(2, 9));
        a.merge(&b);
        assert!(a.has(id(1, 5)) && a.has(id(2, 9)) && !a.has(id(2, 10)));
    }
}
