//! Which partition a record goes to that names none.
//!
//! librdkafka asks for it inside `produce()`, where it knows the topic. The choice is noted then, so that a record that is
//! sent again goes where it went first: consumers know a repetition only within a partition.

use std::cell::Cell;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::producer::Partitioner as NativePartitioner;

use crate::client_config::{Properties, property};
use crate::error::{Error, Result};
use crate::ffi::{self, KeyHash};

/// How long records without a key go to one partition before another is drawn, as in librdkafka: so that they fill batches.
const STICKY: Duration = Duration::from_millis(10);

/// Topics of which the present partition for records without a key is remembered; beyond, each record draws its own.
const MAX_STICKY_TOPICS: usize = 1_024;

/// librdkafka's "no partition"; as an answer it refuses the record.
const NONE: i32 = -1;

/// Chooses the partition of a record that names none. A closure will do:
///
/// ```
/// # use standfast::Partitioner;
/// let by_length = |_topic: &str, key: Option<&[u8]>, partitions: i32| key.map_or(0, |key| key.len() as i32 % partitions);
/// assert_eq!(by_length.partition("orders", Some(b"abc"), 2), 1);
/// ```
pub trait Partitioner: Send + Sync + 'static {
    /// A partition of `topic` from 0 to `partitions` - 1. Any other answer, or a panic, has the record refused.
    ///
    /// It is called on the thread that sends while the producer is locked, and on librdkafka's own: it must be quick and must
    /// not use the producer.
    fn partition(&self, topic: &str, key: Option<&[u8]>, partitions: i32) -> i32;
}

impl<F> Partitioner for F
where
    F: Fn(&str, Option<&[u8]>, i32) -> i32 + Send + Sync + 'static,
{
    fn partition(&self, topic: &str, key: Option<&[u8]>, partitions: i32) -> i32 {
        self(topic, key, partitions)
    }
}

/// How a producer chooses, for all its clients.
#[derive(Clone)]
pub(crate) enum Rule {
    /// As librdkafka's property `partitioner` says.
    Named(Named),
    /// The application's own.
    Own(Arc<dyn Partitioner>),
}

/// One of librdkafka's partitioners.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Named {
    /// Of the key; `None`: keys do not count.
    hash: Option<KeyHash>,
    /// Which records have no partition of their own.
    free: Free,
    /// How long those stay with one partition.
    sticky: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Free {
    None,
    WithoutKey,
    WithEmptyKey,
}

impl std::fmt::Debug for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Named(named) => named.fmt(f),
            Self::Own(_) => f.write_str("Own"),
        }
    }
}

impl Rule {
    /// The rule that the properties ask for; librdkafka has checked their values.
    pub(crate) fn of(own: Option<Arc<dyn Partitioner>>, properties: &Properties) -> Result<Self> {
        let name = property(properties, "partitioner");
        if let Some(own) = own {
            return match name {
                None => Ok(Self::Own(own)),
                Some(_) => Err(Error::RefusedProperty {
                    name: "partitioner".to_owned(),
                    reason: "a partitioner of your own is given with partitioner()",
                }),
            };
        }
        let sticky =
            property(properties, "sticky.partitioning.linger.ms").and_then(|ms| ms.parse().ok());
        let (hash, free) = match name.unwrap_or("murmur2_random") {
            "random" => (None, Free::WithoutKey),
            "consistent" => (Some(KeyHash::Crc32), Free::None),
            "consistent_random" => (Some(KeyHash::Crc32), Free::WithEmptyKey),
            "murmur2" => (Some(KeyHash::Murmur2), Free::None),
            "fnv1a" => (Some(KeyHash::Fnv1a), Free::None),
            "fnv1a_random" => (Some(KeyHash::Fnv1a), Free::WithoutKey),
            _ => (Some(KeyHash::Murmur2), Free::WithoutKey),
        };
        let sticky = sticky.map_or(STICKY, Duration::from_millis);
        Ok(Self::Named(Named { hash, free, sticky }))
    }

    /// Whether a record's partition depends on more than its key and the number of partitions, so that it must be noted.
    pub(super) fn is_free(&self, key: Option<&[u8]>) -> bool {
        match self {
            Self::Own(_) => true,
            Self::Named(named) => named.is_free(key),
        }
    }
}

impl Named {
    fn is_free(self, key: Option<&[u8]>) -> bool {
        match self.free {
            _ if self.hash.is_none() => true,
            Free::None => false,
            Free::WithoutKey => key.is_none(),
            Free::WithEmptyKey => key.is_none_or(<[u8]>::is_empty),
        }
    }
}

thread_local! {
    /// The record that this thread is handing to librdkafka.
    static HANDING: Cell<Handing> = const { Cell::new(Handing::Nothing) };
}

#[derive(Debug, Clone, Copy)]
enum Handing {
    Nothing,
    /// It should go to this partition, if there is one of that number.
    Record(Option<i32>),
    /// librdkafka asked, and this was the answer.
    Chosen(i32),
}

/// Runs `send`, in which librdkafka may ask for a partition; `wish` is taken if there is such a one. The answer, if it
/// asked: it does not while it does not know the topic.
pub(super) fn choosing<T>(wish: Option<i32>, send: impl FnOnce() -> T) -> (T, Option<i32>) {
    HANDING.set(Handing::Record(wish));
    let sent = send();
    match HANDING.replace(Handing::Nothing) {
        Handing::Chosen(partition) => (sent, Some(partition)),
        Handing::Nothing | Handing::Record(_) => (sent, None),
    }
}

/// One client's partitioner.
#[derive(Debug)]
pub(crate) struct Choice {
    rule: Rule,
    random: Mutex<Random>,
}

impl Choice {
    pub(crate) fn new(rule: Rule) -> Self {
        Self {
            rule,
            random: Mutex::new(Random::new()),
        }
    }

    pub(super) fn rule(&self) -> &Rule {
        &self.rule
    }

    fn choose(
        &self,
        topic: &str,
        key: Option<&[u8]>,
        partitions: i32,
        is_available: impl Fn(i32) -> bool,
    ) -> i32 {
        let named = match &self.rule {
            Rule::Own(own) => {
                // A panic must not unwind into C.
                let answer =
                    catch_unwind(AssertUnwindSafe(|| own.partition(topic, key, partitions)));
                let valid = answer
                    .ok()
                    .filter(|answer| (0..partitions).contains(answer));
                // One more than there are is refused by librdkafka as unknown.
                return valid.unwrap_or(partitions);
            }
            Rule::Named(named) => named,
        };
        match named.hash.filter(|_| !named.is_free(key)) {
            Some(hash) => ffi::partition_of_key(hash, key, partitions),
            None => {
                let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
                let sticky = key.is_none_or(<[u8]>::is_empty) && !named.sticky.is_zero();
                match sticky {
                    true => random.sticky(topic, partitions, named.sticky, is_available),
                    false => random.draw(partitions, is_available),
                }
            }
        }
    }
}

impl NativePartitioner for Choice {
    fn partition(
        &self,
        topic: &str,
        key: Option<&[u8]>,
        partitions: i32,
        is_available: impl Fn(i32) -> bool,
    ) -> i32 {
        if partitions < 1 {
            return NONE;
        }
        let Handing::Record(wish) = HANDING.get() else {
            // librdkafka's own thread: the topic was not known when the record was handed on.
            return self.choose(topic, key, partitions, is_available);
        };
        let wish = wish.filter(|wish| *wish < partitions);
        let chosen = wish.unwrap_or_else(|| self.choose(topic, key, partitions, is_available));
        HANDING.set(Handing::Chosen(chosen));
        chosen
    }
}

/// Draws partitions.
#[derive(Debug)]
struct Random {
    /// xorshift64*: good enough to spread records, never 0.
    state: u64,
    sticky: HashMap<String, (i32, Instant)>,
}

impl Random {
    fn new() -> Self {
        Self {
            state: RandomState::new().hash_one(0) | 1,
            sticky: HashMap::new(),
        }
    }

    /// As librdkafka does it: a second draw, whatever comes, if the first one has no leader.
    fn draw(&mut self, partitions: i32, is_available: impl Fn(i32) -> bool) -> i32 {
        let first = self.below(partitions);
        match is_available(first) {
            true => first,
            false => self.below(partitions),
        }
    }

    fn below(&mut self, partitions: i32) -> i32 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        let bits = self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        // The product's upper half is below `partitions`, which is positive.
        ((bits * partitions.unsigned_abs() as u64) >> 32) as i32
    }

    fn sticky(
        &mut self,
        topic: &str,
        partitions: i32,
        linger: Duration,
        is_available: impl Fn(i32) -> bool,
    ) -> i32 {
        let now = Instant::now();
        let present = self.sticky.get(topic).copied();
        let stays = |(partition, since): &(i32, Instant)| {
            *partition < partitions
                && now.duration_since(*since) < linger
                && is_available(*partition)
        };
        if let Some((partition, _)) = present.filter(stays) {
            return partition;
        }
        let drawn = self.draw(partitions, is_available);
        if let Some(entry) = self.sticky.get_mut(topic) {
            *entry = (drawn, now);
        } else if self.sticky.len() < MAX_STICKY_TOPICS {
            self.sticky.insert(topic.to_owned(), (drawn, now));
        }
        drawn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(pairs: &[(&str, &str)]) -> Rule {
        let pairs = pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Rule::of(None, &pairs.collect()).expect("rule")
    }

    fn choose(choice: &Choice, key: Option<&[u8]>, partitions: i32) -> i32 {
        NativePartitioner::partition(choice, "t", key, partitions, |_| true)
    }

    /// The values are those of Kafka's own `UtilsTest.testMurmur2`.
    #[test]
    fn keys_have_the_partition_that_java_gives_them() {
        let choice = Choice::new(rule(&[]));
        let vectors: [(&str, i32); 6] = [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            (
                "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8",
                -58_897_971,
            ),
            ("abc", 479_470_107),
        ];
        for (key, hash) in vectors {
            for partitions in [1, 2, 7, 100] {
                let expected = (hash & 0x7fff_ffff) % partitions;
                assert_eq!(
                    choose(&choice, Some(key.as_bytes()), partitions),
                    expected,
                    "{key}"
                );
            }
        }
        assert!(!choice.rule().is_free(Some(b"")), "an empty key is a key");
    }

    #[test]
    fn records_without_a_key_stay_together_for_a_while_and_spread() {
        let choice = Choice::new(rule(&[("sticky.partitioning.linger.ms", "1000000")]));
        let first = choose(&choice, None, 1_000);
        assert!((0..100).all(|_| choose(&choice, None, 1_000) == first));
        let choice = Choice::new(rule(&[("sticky.partitioning.linger.ms", "0")]));
        let mut hits = [0; 8];
        for _ in 0..8_000 {
            hits[usize::try_from(choose(&choice, None, 8)).expect("partition")] += 1;
        }
        assert!(
            hits.iter().all(|hits| (800..1_200).contains(hits)),
            "{hits:?}"
        );
    }

    #[test]
    fn a_wish_is_granted_where_there_is_such_a_partition_and_the_choice_is_told() {
        let choice = Choice::new(rule(&[]));
        let ask = |wish, partitions| choosing(wish, || choose(&choice, None, partitions));
        assert_eq!(ask(Some(6), 7), (6, Some(6)));
        assert_eq!(ask(Some(7), 1), (0, Some(0)));
        let (sent, told) = ask(None, 50);
        assert_eq!(told, Some(sent));
        assert_eq!(choosing(None, || ()), ((), None), "it did not ask");
    }

    #[test]
    fn an_own_partitioner_may_panic_and_be_wrong() {
        let own = |_: &str, key: Option<&[u8]>, _: i32| match key {
            None => panic!("no key"),
            Some(key) => key.len() as i32,
        };
        let rule = Rule::of(Some(Arc::new(own)), &Properties::new()).expect("rule");
        let choice = Choice::new(rule);
        assert_eq!(choose(&choice, Some(b"ab"), 3), 2);
        assert_eq!(choose(&choice, Some(b"abcd"), 3), 3, "refused");
        assert_eq!(choose(&choice, None, 3), 3, "refused");
        let named = [("partitioner".to_owned(), "random".to_owned())];
        assert!(Rule::of(Some(Arc::new(own)), &named.into()).is_err());
    }

    #[test]
    fn every_partitioner_of_librdkafka_is_followed() {
        let free = |name, key: Option<&[u8]>| rule(&[("partitioner", name)]).is_free(key);
        assert!(free("random", Some(b"k")) && free("random", None));
        assert!(!free("consistent", None) && !free("murmur2", None) && !free("fnv1a", None));
        assert!(free("consistent_random", Some(b"")) && !free("consistent_random", Some(b"k")));
        assert!(free("fnv1a_random", None) && !free("fnv1a_random", Some(b"")));
    }
}
