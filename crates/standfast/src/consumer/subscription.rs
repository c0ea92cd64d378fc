//! Which topics a consumer reads: names, and patterns as in librdkafka.

use crate::client_config::Properties;
use crate::error::{Error, Result};

/// Beginnings of the names of topics that patterns do not take: Kafka's own, and the wrapper's and the agent's.
const INTERNAL: [(&str, &str); 2] = [("__", "^__"), ("standfast.", "^standfast[.]")];

/// How often patterns are compared with the cluster's topics, unless `topic.metadata.refresh.interval.ms` is set; librdkafka's own
/// default is 5 minutes.
const REFRESH_MS: &str = "30000";

const REFRESH: &str = "topic.metadata.refresh.interval.ms";

/// librdkafka's property for topics that are as if they were not there.
const LEFT_OUT: &str = "topic.blacklist";

/// What was asked for; at least one topic or pattern.
#[derive(Debug)]
pub(super) struct Subscription {
    all: Vec<String>,
    names: Vec<String>,
    patterns: Vec<Pattern>,
}

#[derive(Debug)]
struct Pattern {
    text: String,
    /// Every topic that the pattern takes begins with this.
    prefix: String,
}

impl Subscription {
    /// Takes topics and patterns apart, and sets what librdkafka needs to know for the patterns.
    pub(super) fn parse(topics: &[&str], properties: &mut Properties) -> Result<Self> {
        let (patterns, names): (Vec<&str>, Vec<&str>) =
            topics.iter().partition(|topic| topic.starts_with('^'));
        let subscription = Self {
            all: topics.iter().map(|topic| (*topic).to_owned()).collect(),
            names: names.into_iter().map(str::to_owned).collect(),
            patterns: patterns.into_iter().map(Pattern::new).collect(),
        };
        if subscription.all.iter().any(String::is_empty) {
            return Err(configuration("a topic without a name".to_owned()));
        }
        if subscription.has_patterns() {
            subscription.leave_internal_out(properties)?;
            properties
                .entry(REFRESH.to_owned())
                .or_insert_with(|| REFRESH_MS.to_owned());
        }
        Ok(subscription)
    }

    /// Patterns, to be checked by librdkafka. One with a comma cannot be: the property that compiles them is a list.
    pub(super) fn checks(&self) -> Vec<(&'static str, &str)> {
        let patterns = self.patterns.iter().map(|pattern| pattern.text.as_str());
        patterns
            .filter(|text| !text.contains(','))
            .map(|text| (LEFT_OUT, text))
            .collect()
    }

    /// Names and patterns, for librdkafka's subscribe.
    pub(super) fn all(&self) -> Vec<&str> {
        self.all.iter().map(String::as_str).collect()
    }

    /// Topics that are named.
    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    pub(super) fn has_patterns(&self) -> bool {
        !self.patterns.is_empty()
    }

    /// Whether a pattern may take the topic; true too often rather than too rarely.
    pub(super) fn may_match(&self, topic: &str) -> bool {
        let patterns = self.patterns.iter();
        patterns
            .map(|pattern| &pattern.prefix)
            .any(|p| topic.starts_with(p))
    }

    fn leave_internal_out(&self, properties: &mut Properties) -> Result<()> {
        let mut left_out: Vec<String> = properties.get(LEFT_OUT).cloned().into_iter().collect();
        for (family, pattern) in INTERNAL {
            let is_named = self.names.iter().find(|name| name.starts_with(family));
            let mut patterns = self.patterns.iter();
            let named_by = patterns.find(|pattern| pattern.prefix.starts_with(family));
            let named = is_named.or(named_by.map(|pattern| &pattern.text));
            let wide = self.patterns.iter().find(|pattern| {
                family.starts_with(&pattern.prefix) && !pattern.prefix.starts_with(family)
            });
            match (named, wide) {
                (Some(named), Some(wide)) => {
                    return Err(configuration(format!(
                        "{named:?} names internal topics, and the pattern {:?} would take others of that kind along: use a \
                         consumer for each",
                        wide.text
                    )));
                }
                (None, Some(_)) => left_out.push(pattern.to_owned()),
                (_, None) => {}
            }
        }
        if !left_out.is_empty() {
            properties.insert(LEFT_OUT.to_owned(), left_out.join(","));
        }
        Ok(())
    }
}

impl Pattern {
    fn new(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            prefix: literal_prefix(text),
        }
    }
}

/// The characters behind `^` that stand for themselves, up to the first one that may not. With an alternative anywhere: none.
fn literal_prefix(pattern: &str) -> String {
    let mut prefix = String::new();
    if pattern.contains('|') {
        return prefix;
    }
    let mut rest = pattern.strip_prefix('^').unwrap_or(pattern).chars();
    while let Some(next) = rest.next() {
        match next {
            // The one before may be there zero times.
            '*' | '?' | '{' => {
                prefix.pop();
                return prefix;
            }
            '\\' => match rest.next() {
                Some(escaped) if !escaped.is_alphanumeric() => prefix.push(escaped),
                _ => return prefix,
            },
            '_' | '-' => prefix.push(next),
            c if c.is_alphanumeric() => prefix.push(c),
            _ => return prefix,
        }
    }
    prefix
}

fn configuration(reason: String) -> Error {
    Error::Configuration { reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_literal_prefix_of_a_pattern() {
        for (pattern, prefix) in [
            ("^orders", "orders"),
            ("^orders[.].*", "orders"),
            (r"^orders\.eu\.", "orders.eu."),
            ("^orders*", "order"),
            ("^or?d", "o"),
            ("^a{2}", ""),
            ("^(orders|bills)", ""),
            ("^orders|^bills", ""),
            ("^.*", ""),
            (r"^\w+", ""),
            ("^", ""),
        ] {
            assert_eq!(literal_prefix(pattern), prefix, "{pattern}");
        }
    }

    #[test]
    fn internal_topics_are_left_out_unless_named() {
        let left_out = |topics: &[&str]| {
            let mut properties = Properties::new();
            Subscription::parse(topics, &mut properties)
                .map(|_| properties.get(LEFT_OUT).cloned().unwrap_or_default())
        };
        assert_eq!(
            left_out(&["orders", "__consumer_offsets"]).expect("names"),
            ""
        );
        assert_eq!(left_out(&["^.*"]).expect("all"), "^__,^standfast[.]");
        assert_eq!(left_out(&["^orders"]).expect("none can match"), "");
        assert_eq!(left_out(&["^s.*"]).expect("one may"), "^standfast[.]");
        assert_eq!(left_out(&[r"^standfast\.lost\..*"]).expect("named"), "");
        let error = left_out(&["^.*", "standfast.lost.orders"]).expect_err("both");
        assert!(
            error.to_string().contains("standfast.lost.orders"),
            "{error}"
        );
        assert!(left_out(&[""]).is_err());
    }

    #[test]
    fn the_applications_own_list_is_kept() {
        let mut properties = Properties::new();
        properties.insert(LEFT_OUT.to_owned(), "^tmp".to_owned());
        properties.insert(REFRESH.to_owned(), "500".to_owned());
        let subscription = Subscription::parse(&["^.*"], &mut properties).expect("parsed");
        assert_eq!(properties[LEFT_OUT], "^tmp,^__,^standfast[.]");
        assert_eq!(properties[REFRESH], "500");
        assert!(subscription.may_match("orders"));
    }
}
