//! Links whose filters get into each other's way: two that would write the same topic, and some that would carry a topic round in a circle.
//!
//! Links that follow the fleet record may point both ways: the record lets only one of them run. Those that do not follow it run always.
//! A link with a prefix closes no circle: what it brings back is another topic. That this does not go on without end is seen to by the engine, whose
//! filters leave out topics that are mirrors with a prefix themselves.

use standfast_link::{Filter, FilterType, PatternType, admits_topic, excludes};

use super::LinkSection;
use super::document::Entry;

/// The link that closes a circle with one that runs always, and a topic (or the beginning of its name) that both take.
pub(crate) fn back_to_the_source<'l>(
    links: impl Iterator<Item = &'l LinkSection>,
    link: &'l LinkSection,
) -> Option<(&'l str, &'l str)> {
    if link.follow_fleet || !link.prefix.is_empty() {
        return None;
    }
    let others: Vec<(&LinkSection, &str)> = links
        .filter(|other| other.name != link.name && other.prefix.is_empty())
        .filter_map(|other| Some((other, shared(link, other)?)))
        .collect();
    // From the destination along links that take a topic of this one.
    let mut reached = vec![&link.destination];
    let mut next = 0;
    while let Some(from) = reached.get(next).copied() {
        next += 1;
        for (other, topic) in others.iter().filter(|(other, _)| other.source == *from) {
            if other.destination == link.source {
                return Some((&other.name, topic));
            }
            if !reached.contains(&&other.destination) {
                reached.push(&other.destination);
            }
        }
    }
    None
}

/// Another link to the same destination whose filters take what this one's take too: a topic, or the beginning of its name.
pub(super) fn same_filters<'l>(
    links: &'l [Entry<LinkSection>],
    link: &LinkSection,
) -> Option<(&'l str, String)> {
    let ours = link.mirror_filters();
    links
        .iter()
        .filter_map(|entry| entry.value.as_ref())
        .filter(|other| other.name != link.name && other.destination == link.destination)
        .find_map(|other| {
            let theirs = other.mirror_filters();
            let topic = filters_shared(&ours, &theirs)?.to_owned();
            Some((other.name.as_str(), topic))
        })
}

/// A topic, or the beginning of its name, that both links take.
fn shared<'l>(one: &'l LinkSection, other: &'l LinkSection) -> Option<&'l str> {
    let named_in = |a: &'l LinkSection, b: &LinkSection| {
        let taken = |topic: &&String| {
            b.topics.contains(topic) || admits_topic(&b.topic_filters, topic.as_str())
        };
        a.topics.iter().find(taken).map(String::as_str)
    };
    named_in(one, other)
        .or_else(|| named_in(other, one))
        .or_else(|| filters_shared(&one.topic_filters, &other.topic_filters))
}

fn filters_shared<'f>(one: &'f [Filter], other: &'f [Filter]) -> Option<&'f str> {
    let included = |filters: &'f [Filter]| {
        filters
            .iter()
            .filter(|f| f.filter_type == FilterType::Include)
    };
    included(one)
        .flat_map(|a| included(other).filter_map(move |b| narrower(a, b)))
        .find(|name| !excludes(one, name) && !excludes(other, name))
}

/// What both filters take: the narrower one's name.
fn narrower<'f>(a: &'f Filter, b: &'f Filter) -> Option<&'f str> {
    let any = |f: &Filter| f.pattern_type == PatternType::Literal && f.name == "*";
    let covers = |wide: &Filter, narrow: &Filter| {
        any(wide)
            || (wide.pattern_type == PatternType::Prefixed && narrow.name.starts_with(&wide.name))
            || *wide == *narrow
    };
    match (covers(a, b), covers(b, a)) {
        (true, _) => Some(&b.name),
        (_, true) => Some(&a.name),
        _ => None,
    }
}
