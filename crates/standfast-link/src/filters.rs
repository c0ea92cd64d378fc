//! Filters that name topics or consumer groups by name or prefix. EXCLUDE wins over INCLUDE; what no filter includes is left out.

use serde::{Deserialize, Serialize};

/// In a LITERAL filter: every name.
const ANY: &str = "*";

/// How the names of Kafka Streams' own topics end.
const STREAMS: [&str; 2] = ["-changelog", "-repartition"];

/// How a filter's name is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PatternType {
    /// The whole name; `*` stands for every name.
    Literal,
    /// The beginning of the name.
    Prefixed,
}

/// What a filter does with the names that it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum FilterType {
    /// They are taken, unless another filter excludes them.
    Include,
    /// They are left out, whatever other filters say.
    Exclude,
}

/// One filter, with the fields of Confluent's `topicFilters` and `groupFilters`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// Name or prefix.
    pub name: String,
    /// How `name` is compared.
    pub pattern_type: PatternType,
    /// What happens to matching names.
    pub filter_type: FilterType,
}

impl Filter {
    fn matches(&self, name: &str) -> bool {
        match self.pattern_type {
            PatternType::Literal => self.name == ANY || self.name == name,
            PatternType::Prefixed => name.starts_with(&self.name),
        }
    }
}

/// Whether the filters take `name`. Names of Kafka's and Standfast's own (see [`is_internal`]) are never taken.
pub fn admits(filters: &[Filter], name: &str) -> bool {
    let any = |wanted: FilterType| {
        filters
            .iter()
            .any(|filter| filter.filter_type == wanted && filter.matches(name))
    };
    !is_internal(name) && any(FilterType::Include) && !any(FilterType::Exclude)
}

/// As [`admits`], for topics: those that Kafka Streams keeps for itself (`…-changelog`, `…-repartition`) are taken only by a LITERAL INCLUDE filter of their whole name. A Streams
/// application rebuilds them from its input; mirrored, they would be ahead of or behind the group offsets that go with them.
pub fn admits_topic(filters: &[Filter], name: &str) -> bool {
    let of_streams = STREAMS.iter().any(|end| name.ends_with(end));
    admits(filters, name) && (!of_streams || names(filters, name))
}

/// Whether a LITERAL INCLUDE filter says the whole name.
pub(crate) fn names(filters: &[Filter], name: &str) -> bool {
    filters.iter().any(|filter| {
        filter.filter_type == FilterType::Include
            && filter.pattern_type == PatternType::Literal
            && filter.name == name
    })
}

/// Whether an EXCLUDE filter matches `name`.
pub fn excludes(filters: &[Filter], name: &str) -> bool {
    filters
        .iter()
        .any(|filter| filter.filter_type == FilterType::Exclude && filter.matches(name))
}

/// Names that are never mirrored: Kafka's own (`__…`) and Standfast's own (`standfast.…`).
pub fn is_internal(name: &str) -> bool {
    name.starts_with("__") || name.starts_with("standfast.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(name: &str, pattern_type: PatternType, filter_type: FilterType) -> Filter {
        Filter {
            name: name.to_owned(),
            pattern_type,
            filter_type,
        }
    }

    #[test]
    fn exclude_wins_in_any_order_and_unmatched_names_are_left_out() {
        use FilterType::{Exclude, Include};
        use PatternType::{Literal, Prefixed};
        let mut filters = vec![
            filter("orders.", Prefixed, Include),
            filter("payments", Literal, Include),
            filter("orders.secret", Prefixed, Exclude),
            filter("orders.secret.not", Literal, Include),
        ];
        for _ in 0..2 {
            for (name, taken) in [
                ("orders.eu", true),
                ("orders.", true),
                ("orders", false),
                ("payments", true),
                ("payments2", false),
                ("orders.secret", false),
                ("orders.secret.not", false),
                ("other", false),
            ] {
                assert_eq!(admits(&filters, name), taken, "{name}");
            }
            filters.reverse();
        }
    }

    #[test]
    fn topics_of_kafka_streams_are_taken_by_their_whole_name_only() {
        use FilterType::{Exclude, Include};
        use PatternType::{Literal, Prefixed};
        let name = "billing-store-changelog";
        for wide in [
            filter("*", Literal, Include),
            filter("billing", Prefixed, Include),
        ] {
            assert!(admits_topic(std::slice::from_ref(&wide), "billing-orders"));
            assert!(!admits_topic(std::slice::from_ref(&wide), name));
            assert!(!admits_topic(
                std::slice::from_ref(&wide),
                "billing-by-key-repartition"
            ));
            let mut filters = vec![wide, filter(name, Literal, Include)];
            assert!(admits_topic(&filters, name));
            filters.push(filter("billing-store", Prefixed, Exclude));
            assert!(!admits_topic(&filters, name));
        }
    }

    #[test]
    fn a_star_takes_everything_but_internal_names_and_is_no_wildcard_elsewhere() {
        use FilterType::{Exclude, Include};
        use PatternType::{Literal, Prefixed};
        let all = [filter("*", Literal, Include)];
        assert!(admits(&all, "orders"));
        for internal in ["__consumer_offsets", "__x", "standfast.lost.orders"] {
            assert!(!admits(&all, internal), "{internal}");
            let named = [filter(internal, Literal, Include)];
            assert!(!admits(&named, internal), "{internal}");
        }
        assert!(admits(&all, "standfastness"));
        assert!(!admits(&[filter("*", Prefixed, Include)], "orders"));
        assert!(!admits(&[filter("ord*", Literal, Include)], "orders"));
        let none = [all[0].clone(), filter("*", Literal, Exclude)];
        assert!(!admits(&none, "orders"));
        assert!(!admits(&[], "orders"));
        assert!(excludes(&none, "orders") && !excludes(&all, "orders"));
    }
}
