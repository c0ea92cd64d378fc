//! The topics that a group's transactions write to, named with every commit.
//!
//! A link carries the group's offsets over only when what was written to these topics is mirrored. So the names are kept for
//! good: an offset also stands for transactions of earlier clients of the group.

use std::collections::BTreeSet;

/// Beginning of the part of a commit's metadata that names topics, parted by commas. A wire format shared with the link engine.
const TOPICS: &str = " out=";

/// Stands for all topics, where naming them would take more than [`MAX_TEXT`].
const ALL: &str = "*";

/// Longest text in the metadata of a commit, of which brokers take 4,096 bytes by default.
const MAX_TEXT: usize = 500;

#[derive(Debug, Default)]
pub(super) struct Outputs {
    topics: BTreeSet<String>,
    last: String,
    text: String,
}

impl Outputs {
    pub(super) fn note(&mut self, topic: &str) {
        if topic == self.last {
            return;
        }
        self.last.clear();
        self.last.push_str(topic);
        self.add(topic);
    }

    /// Takes in what earlier commits have named.
    pub(super) fn note_commit(&mut self, metadata: &[u8]) {
        let text = std::str::from_utf8(metadata).unwrap_or_default();
        let named = text
            .split_once(TOPICS)
            .map(|(_, rest)| rest.split(' ').next().unwrap_or_default());
        for topic in named.into_iter().flat_map(|named| named.split(',')) {
            self.add(topic);
        }
    }

    fn add(&mut self, topic: &str) {
        if topic.is_empty() || self.topics.contains(ALL) || !self.topics.insert(topic.to_owned()) {
            return;
        }
        let names: Vec<&str> = self.topics.iter().map(String::as_str).collect();
        let text = format!("{TOPICS}{}", names.join(","));
        if topic == ALL || text.len() > MAX_TEXT {
            self.topics = BTreeSet::from([ALL.to_owned()]);
            self.text = format!("{TOPICS}{ALL}");
        } else {
            self.text = text;
        }
    }

    /// What to append to the metadata of a commit.
    pub(super) fn text(&self) -> &str {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_stay_named() {
        let mut outputs = Outputs::default();
        assert_eq!(outputs.text(), "");
        outputs.note_commit(b"standfast-1 epoch=3 seen=1-2 out=b,a");
        outputs.note_commit(b"by hand");
        outputs.note_commit(b"\xff");
        for topic in ["c", "c", "a"] {
            outputs.note(topic);
        }
        assert_eq!(outputs.text(), " out=a,b,c");
        for n in 0..100 {
            outputs.note(&format!("topic-{n}"));
        }
        assert_eq!(outputs.text(), " out=*");
        let mut next = Outputs::default();
        next.note_commit(format!("standfast-1 epoch=3{}", outputs.text()).as_bytes());
        next.note("a");
        assert_eq!(next.text(), " out=*");
    }
}
