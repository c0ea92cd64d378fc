//! Which configs a mirror topic should have, given the source's.
//!
//! Three classes. *Always*: what decides which records the log keeps as keys and tombstones, and how large a batch may be. *Never*: what names brokers or services
//! of the source, and what byte identity fixes on every mirror. Everything else is carried over unless the link excludes it. Of most configs only those set on the
//! source topic itself are carried over; a few ([`BY_EFFECT`]) also where the source's brokers merely have another default than the destination's.

use std::collections::BTreeMap;

use standfast_wire::TopicPrefix;
use standfast_wire::admin::ConfigChange;

use crate::calls::ConfigValue;

/// Set on every mirror topic, whatever the source has: byte identity needs them.
/// A broker must not compress again, must keep the producer's timestamps, and must take records however old or (by a wrong clock) new they are.
pub(crate) const FORCED: [(&str, &str); 4] = [
    ("compression.type", "producer"),
    ("message.timestamp.type", "CreateTime"),
    ("message.timestamp.before.max.ms", NO_LIMIT),
    (OURS, NO_LIMIT),
];

const NO_LIMIT: &str = "9223372036854775807";

/// In place of [`NO_LIMIT`] on the mirrors of links with a prefix, and on mirrors of those. It is as good as no limit, and tells other links where they come from.
const NO_LIMIT_PREFIXED: &str = "9223372036854775806";

/// [`FORCED`], for the mirror of one topic.
fn forced(source: &Configs, prefix: &TopicPrefix) -> [(&'static str, &'static str); 4] {
    let renamed = !prefix.is_empty() || is_prefixed_mirror(source);
    FORCED.map(|(name, value)| match name {
        OURS if renamed => (name, NO_LIMIT_PREFIXED),
        _ => (name, value),
    })
}

/// Whether the topic is the mirror of a link with a prefix, or a mirror of such a mirror; also after it was stopped. It must not come back to where it is from
/// under yet another name.
pub(crate) fn is_prefixed_mirror(configs: &Configs) -> bool {
    let mark = configs.get(OURS);
    mark.is_some_and(|c| c.is_topic_level && c.value.as_deref() == Some(NO_LIMIT_PREFIXED))
}

/// Never carried over: they name brokers or services of the source, or mean nothing to current brokers. One that ends with a dot stands for all that begin so.
const NEVER: [&str; 7] = [
    "leader.replication.throttled.replicas",
    "follower.replication.throttled.replicas",
    "message.format.version",
    "message.timestamp.difference.max.ms",
    "remote.",
    "local.retention.",
    "confluent.",
];

/// Carried over in any case.
const ALWAYS: [&str; 5] = [
    "cleanup.policy",
    "delete.retention.ms",
    "max.compaction.lag.ms",
    MAX_MESSAGE_BYTES,
    "min.compaction.lag.ms",
];

/// Carried over by their effect, also if the source's is only its brokers' default: they decide what the log keeps.
const BY_EFFECT: [&str; 7] = [
    "cleanup.policy",
    "delete.retention.ms",
    "max.compaction.lag.ms",
    MAX_MESSAGE_BYTES,
    "min.compaction.lag.ms",
    "retention.bytes",
    "retention.ms",
];

/// The mirror's is only ever raised: its log may hold batches that the source would not take any more.
pub(crate) const MAX_MESSAGE_BYTES: &str = "max.message.bytes";
const MIN_INSYNC: &str = "min.insync.replicas";

/// Configuration that shows that this link (or another Standfast link) created the topic.
pub(crate) const OURS: &str = "message.timestamp.after.max.ms";

pub(crate) type Configs = BTreeMap<String, ConfigValue>;

/// Whether a config can be left to the destination ([`LinkOptions::config_exclude`](crate::LinkOptions::config_exclude)).
pub fn can_be_excluded(name: &str) -> bool {
    !ALWAYS.contains(&name) && !FORCED.iter().any(|(forced, _)| *forced == name)
}

fn is_never(name: &str) -> bool {
    NEVER
        .iter()
        .any(|never| name == *never || (never.ends_with('.') && name.starts_with(never)))
}

fn left_alone(name: &str, excluded: &[String]) -> bool {
    is_never(name) || (can_be_excluded(name) && excluded.iter().any(|e| e == name))
}

/// The source's value as the mirror takes it: with fewer replicas, fewer can be in sync.
fn fitting(name: &str, value: &str, replicas: i16) -> String {
    match value.parse::<i16>() {
        Ok(min) if name == MIN_INSYNC && min > replicas => replicas.to_string(),
        _ => value.to_owned(),
    }
}

/// The configs that a mirror topic is created with.
pub(crate) fn at_creation(
    source: &Configs,
    excluded: &[String],
    replicas: i16,
    prefix: &TopicPrefix,
) -> BTreeMap<String, String> {
    let mut configs: BTreeMap<String, String> = source
        .iter()
        .filter(|(name, config)| config.is_topic_level || *name == MAX_MESSAGE_BYTES)
        .filter(|(name, _)| !left_alone(name, excluded))
        .filter_map(|(name, config)| {
            let value = config.value.as_deref()?;
            Some((name.clone(), fitting(name, value, replicas)))
        })
        .collect();
    configs.extend(forced(source, prefix).map(|(name, value)| (name.to_owned(), value.to_owned())));
    configs
}

/// A topic that existed before must not change what is written to it.
pub(crate) fn unfit(topic: &str, configs: &Configs) -> Option<String> {
    FORCED.iter().take(2).find_map(|(config, needed)| {
        let found = configs.get(*config)?.value.as_deref()?;
        (found != *needed).then(|| {
            format!("topic {topic:?} on the destination has {config}={found}; a mirror needs {config}={needed}: set it, then resume the mirror (`mirror restore` sets it)")
        })
    })
}

/// Whether a Standfast link created the topic.
pub(crate) fn is_ours(configs: &Configs) -> bool {
    configs
        .get(OURS)
        .filter(|c| c.is_topic_level)
        .and_then(|c| c.value.as_deref())
        .is_some_and(|value| value == NO_LIMIT || value == NO_LIMIT_PREFIXED)
}

/// What each config of the mirror should be; `None`: the destination's default.
pub(super) type Desired = BTreeMap<String, Option<String>>;

/// What is to be changed on the mirror, and how each of its configs should be. A config that the destination does not know is left out.
pub(super) fn plan(
    source: &Configs,
    mirror: &Configs,
    excluded: &[String],
    replicas: i16,
    prefix: &TopicPrefix,
) -> (Vec<(String, ConfigChange)>, Desired) {
    let (mut changes, mut desired) = (Vec::new(), Desired::new());
    let forced = forced(source, prefix);
    for (name, ours) in mirror
        .iter()
        .filter(|(name, _)| !left_alone(name, excluded))
    {
        let theirs = source.get(name);
        let forced = forced.iter().find(|(forced, _)| forced == name);
        let wanted = if let Some((_, value)) = forced {
            Some((*value).to_owned())
        } else if BY_EFFECT.contains(&name.as_str()) {
            let Some(value) = theirs.and_then(|c| c.value.clone()) else {
                continue;
            };
            Some(value)
        } else {
            match theirs.filter(|c| c.is_topic_level) {
                Some(config) => match &config.value {
                    Some(value) => Some(fitting(name, value, replicas)),
                    None => continue,
                },
                None => None,
            }
        };
        let in_line = match &wanted {
            Some(value) if name == MAX_MESSAGE_BYTES => {
                let number = |text: Option<&String>| text.and_then(|t| t.parse::<i64>().ok());
                number(ours.value.as_ref()) >= number(Some(value))
            }
            Some(value) => ours.value.as_ref() == Some(value),
            None => !ours.is_topic_level,
        };
        if !in_line {
            let change = match &wanted {
                Some(value) => ConfigChange::Set(value.clone()),
                None => ConfigChange::Delete,
            };
            changes.push((name.clone(), change));
        }
        desired.insert(name.clone(), wanted);
    }
    (changes, desired)
}

/// Manual changes that were taken back.
pub(super) type Reverted = Vec<String>;

/// Those of the wrong configs that the last look found, or left, as they should be still.
pub(super) fn by_hand(
    wrong: &[(String, ConfigChange)],
    ours: &Configs,
    desired: &Desired,
    before: Option<&Desired>,
) -> Reverted {
    let Some(before) = before else {
        return Vec::new();
    };
    let edited = wrong
        .iter()
        .filter(|(name, _)| before.contains_key(name) && before.get(name) == desired.get(name));
    let told = edited.map(|(name, _)| {
        let value = ours.get(name).and_then(|c| c.value.as_deref());
        format!("{name}={}", value.unwrap_or_default())
    });
    told.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configs(of: &[(&str, &str, bool)]) -> Configs {
        of.iter()
            .map(|(name, value, is_topic_level)| {
                let value = ConfigValue {
                    value: Some((*value).to_owned()),
                    is_topic_level: *is_topic_level,
                };
                ((*name).to_owned(), value)
            })
            .collect()
    }

    #[test]
    fn each_class_is_treated_as_its_own() {
        let source = configs(&[
            ("cleanup.policy", "compact", false),
            ("retention.ms", "1000", false),
            ("segment.bytes", "77", true),
            ("segment.ms", "5", false),
            ("flush.ms", "9", true),
            ("min.insync.replicas", "3", true),
            ("max.message.bytes", "100", true),
            ("message.timestamp.type", "LogAppendTime", true),
            ("leader.replication.throttled.replicas", "*", true),
            ("unknown.to.the.destination", "1", true),
        ]);
        let mirror = configs(&[
            ("cleanup.policy", "delete", false),
            ("retention.ms", "2000", false),
            ("segment.bytes", "88", true),
            ("segment.ms", "6", true),
            ("flush.ms", "8", true),
            ("min.insync.replicas", "1", false),
            ("max.message.bytes", "200", true),
            ("message.timestamp.type", "LogAppendTime", true),
            ("leader.replication.throttled.replicas", "", false),
        ]);
        let excluded = ["flush.ms".to_owned(), "cleanup.policy".to_owned()];
        // What came by a prefix is known by it, also behind a link without one.
        let none = TopicPrefix::default();
        let with = TopicPrefix::new("eu.").expect("a prefix");
        let mark = |source: &Configs, prefix: &TopicPrefix| {
            let made = at_creation(source, &[], 1, prefix);
            let made = made.into_iter().map(|(name, value)| {
                let value = ConfigValue {
                    value: Some(value),
                    is_topic_level: true,
                };
                (name, value)
            });
            made.collect::<Configs>()
        };
        let renamed = mark(&source, &with);
        assert!(is_prefixed_mirror(&renamed) && is_ours(&renamed));
        assert!(is_prefixed_mirror(&mark(&renamed, &none)));
        let plain = mark(&source, &none);
        assert!(!is_prefixed_mirror(&plain) && is_ours(&plain));

        let (changes, desired) = plan(&source, &mirror, &excluded, 2, &TopicPrefix::default());
        let set = |value: &str| ConfigChange::Set(value.to_owned());
        let expected = [
            ("cleanup.policy", set("compact")),
            ("message.timestamp.type", set("CreateTime")),
            ("min.insync.replicas", set("2")),
            ("retention.ms", set("1000")),
            ("segment.bytes", set("77")),
            ("segment.ms", ConfigChange::Delete),
        ];
        let expected: Vec<_> = expected.map(|(n, c)| (n.to_owned(), c)).into();
        assert_eq!(changes, expected);

        // Wrong without the source having changed: by hand.
        let edited = by_hand(&changes, &mirror, &desired, Some(&desired));
        assert_eq!(edited.len(), 6);
        assert_eq!(
            by_hand(&changes, &mirror, &desired, None),
            Vec::<String>::new()
        );
        let mut older = desired.clone();
        older.insert("segment.bytes".to_owned(), Some("88".to_owned()));
        let edited = by_hand(&changes, &mirror, &desired, Some(&older));
        assert!(
            !edited.iter().any(|e| e.starts_with("segment.bytes")),
            "{edited:?}"
        );
    }
}
