//! The log of what was sent, acknowledged and handed out, and the proof over it.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io::Write;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use standfast::Delivery;

/// Most faults that a report lists.
const MAX_LISTED: usize = 20;
/// Keys of one producer.
pub(super) const KEYS: u64 = 16;

/// Names one record: its producer and its place among that one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Name {
    pub(super) producer: usize,
    pub(super) number: u64,
}

impl Name {
    pub(super) fn key(self) -> String {
        format!("{}-{}", self.producer, self.number % KEYS)
    }

    /// As it stands in the payload.
    pub(super) fn parse(payload: &[u8]) -> Option<Self> {
        let (producer, number) = std::str::from_utf8(payload).ok()?.split_once('/')?;
        Some(Self {
            producer: producer.parse().ok()?,
            number: number.parse().ok()?,
        })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.producer, self.number)
    }
}

/// Where a record stood, when it was acknowledged or handed out.
#[derive(Debug, Clone)]
struct Place {
    at: Duration,
    cluster: String,
    partition: i32,
    offset: i64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            at,
            cluster,
            partition,
            offset,
        } = self;
        write!(
            f,
            "{cluster} partition {partition} offset {offset} at {:.3} s",
            at.as_secs_f64()
        )
    }
}

#[derive(Debug, Default)]
struct Log {
    sent: Vec<u64>,
    acknowledged: HashMap<Name, Place>,
    /// In the order in which they were handed out.
    handed: Vec<(Name, Place)>,
}

/// Records that are to be handed out.
#[derive(Debug)]
pub(super) struct Unread {
    names: HashSet<Name>,
    looked_at: usize,
}

/// What is noted while the applications run.
#[derive(Debug)]
pub(super) struct Journal {
    began: Instant,
    log: Mutex<Log>,
}

impl Journal {
    pub(super) fn new(producers: usize) -> Self {
        let log = Log {
            sent: vec![0; producers],
            ..Log::default()
        };
        Self {
            began: Instant::now(),
            log: Mutex::new(log),
        }
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// The next record of a producer.
    pub(super) fn send(&self, producer: usize) -> Name {
        let mut log = self.log.lock().expect("journal");
        let number = log.sent[producer];
        log.sent[producer] += 1;
        Name { producer, number }
    }

    pub(super) fn acknowledged(&self, name: Name, delivery: &Delivery) {
        let place = self.place(
            delivery.cluster.as_str(),
            delivery.partition,
            delivery.offset,
        );
        self.log
            .lock()
            .expect("journal")
            .acknowledged
            .insert(name, place);
    }

    pub(super) fn handed_out(&self, name: Name, cluster: &str, partition: i32, offset: i64) {
        let place = self.place(cluster, partition, offset);
        self.log.lock().expect("journal").handed.push((name, place));
    }

    fn place(&self, cluster: &str, partition: i32, offset: i64) -> Place {
        Place {
            at: self.elapsed(),
            cluster: cluster.to_owned(),
            partition,
            offset,
        }
    }

    /// Acknowledged, handed out.
    pub(super) fn counts(&self) -> (usize, usize) {
        let log = self.log.lock().expect("journal");
        (log.acknowledged.len(), log.handed.len())
    }

    /// What is acknowledged and not handed out yet.
    pub(super) fn unread(&self) -> Unread {
        let log = self.log.lock().expect("journal");
        let mut names: HashSet<Name> = log.acknowledged.keys().copied().collect();
        for (name, _) in &log.handed {
            names.remove(name);
        }
        let looked_at = log.handed.len();
        Unread { names, looked_at }
    }

    /// Takes out of `unread` what was handed out since; how many are left.
    pub(super) fn still(&self, unread: &mut Unread) -> usize {
        let log = self.log.lock().expect("journal");
        for (name, _) in &log.handed[unread.looked_at..] {
            unread.names.remove(name);
        }
        unread.looked_at = log.handed.len();
        unread.names.len()
    }

    /// Whether every acknowledged record was handed out.
    pub(super) fn all_handed_out(&self) -> bool {
        self.unread().names.is_empty()
    }

    /// The proof: each acknowledged record was handed out once, nothing else was, and each key in order.
    pub(super) fn verdict(&self) -> Verdict {
        let log = self.log.lock().expect("journal");
        let mut verdict = Verdict {
            sent: log.sent.iter().sum(),
            acknowledged: log.acknowledged.len(),
            handed_out: log.handed.len(),
            ..Verdict::default()
        };
        let mut first: HashMap<Name, &Place> = HashMap::with_capacity(log.handed.len());
        let mut last: HashMap<(usize, u64), (u64, &Place)> = HashMap::new();
        for (name, place) in &log.handed {
            let known = log
                .sent
                .get(name.producer)
                .is_some_and(|sent| name.number < *sent);
            if !known {
                verdict.note(
                    |v| &mut v.unknown,
                    || format!("{name} was never sent, but handed out from {place}"),
                );
                continue;
            }
            if let Some(before) = first.insert(*name, place) {
                let acknowledged = told(log.acknowledged.get(name));
                verdict.note(
                    |v| &mut v.duplicated,
                    || format!("{name} was handed out from {before} and again from {place}; {acknowledged}"),
                );
                continue;
            }
            let key = (name.producer, name.number % KEYS);
            if let Some((number, before)) = last.insert(key, (name.number, place))
                && number > name.number
            {
                verdict.note(
                    |v| &mut v.out_of_order,
                    || format!("{name} was handed out from {place} after {}/{number} of the same key from {before}", name.producer),
                );
            }
        }
        let mut lost: Vec<_> = log
            .acknowledged
            .iter()
            .filter(|(name, _)| !first.contains_key(name))
            .collect();
        lost.sort_by_key(|(name, place)| (place.at, name.producer, name.number));
        for (name, place) in lost {
            verdict.note(
                |v| &mut v.lost,
                || {
                    format!(
                        "{name} (key {}) was acknowledged by {place} and never handed out",
                        name.key()
                    )
                },
            );
        }
        verdict
    }

    /// All of it as JSON lines, for a look at what went wrong.
    pub(super) fn write(&self, mut to: impl Write) -> std::io::Result<()> {
        let log = self.log.lock().expect("journal");
        let acknowledged = log
            .acknowledged
            .iter()
            .map(|(name, place)| ("acknowledged", name, place));
        let handed = log
            .handed
            .iter()
            .map(|(name, place)| ("handed_out", name, place));
        for (what, name, place) in acknowledged.chain(handed) {
            let line = serde_json::json!({
                "what": what, "record": name.to_string(), "key": name.key(), "seconds": place.at.as_secs_f64(),
                "cluster": place.cluster, "partition": place.partition, "offset": place.offset,
            });
            writeln!(to, "{line}")?;
        }
        to.flush()
    }
}

fn told(place: Option<&Place>) -> String {
    place.map_or("not acknowledged".to_owned(), |place| {
        format!("acknowledged by {place}")
    })
}

/// What the log proves.
#[derive(Debug, Default, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Verdict {
    /// Records given to producers.
    pub sent: u64,
    /// Records that were acknowledged.
    pub acknowledged: usize,
    /// Records that consumers were given, repetitions included.
    pub handed_out: usize,
    /// Acknowledged and never handed out.
    pub lost: u64,
    /// Handed out again.
    pub duplicated: u64,
    /// Handed out after a later one of the same key.
    pub out_of_order: u64,
    /// Handed out and never sent.
    pub unknown: u64,
    /// The first of them, by name.
    pub named: Vec<String>,
}

impl Verdict {
    /// Whether all promises held.
    pub fn holds(&self) -> bool {
        self.lost + self.duplicated + self.out_of_order + self.unknown == 0
    }

    fn note(&mut self, count: impl Fn(&mut Self) -> &mut u64, name: impl Fn() -> String) {
        *count(self) += 1;
        if self.named.len() < MAX_LISTED {
            self.named.push(name());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal(records: u64) -> Journal {
        let journal = Journal::new(1);
        for number in 0..records {
            let name = journal.send(0);
            let place = journal.place("west", 0, number.cast_signed());
            journal
                .log
                .lock()
                .expect("journal")
                .acknowledged
                .insert(name, place);
        }
        journal
    }

    fn hand(journal: &Journal, numbers: impl IntoIterator<Item = u64>) {
        for number in numbers {
            let name = Name {
                producer: 0,
                number,
            };
            journal.handed_out(name, "west", 0, number.cast_signed());
        }
    }

    #[test]
    fn each_fault_is_named() {
        let good = journal(100);
        hand(&good, 0..100);
        assert!(good.verdict().holds());

        let bad = journal(100);
        hand(
            &bad,
            (0..40).chain(41..80).chain([79 - KEYS, 80 + KEYS, 80, 500]),
        );
        let verdict = bad.verdict();
        assert_eq!(
            (verdict.duplicated, verdict.out_of_order, verdict.unknown),
            (1, 1, 1)
        );
        assert_eq!(verdict.lost, 1 + 18);
        assert!(
            verdict
                .named
                .iter()
                .any(|named| named.contains("0/40 (key 0-8) was acknowledged by west"))
        );
    }
}
