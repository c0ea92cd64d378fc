//! A TOML document taken apart section by section, so that one mistake does not hide the others.

use std::ops::Range;

use serde::Deserialize;
use serde::de::IntoDeserializer;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problems::Problems;

/// The sections that were not yet taken.
#[derive(Debug)]
pub(super) struct Document<'t> {
    sections: DeTable<'t>,
}

/// An entry of a list or map section, and where it stands.
#[derive(Debug)]
pub(super) struct Entry<T> {
    /// `clusters.west`, `links[0]`.
    pub(super) key: String,
    /// The last part: `west`, `0`.
    pub(super) name: String,
    pub(super) at: Range<usize>,
    /// `None`: could not be read, and that was reported.
    pub(super) value: Option<T>,
}

/// Upper bound on unknown keys reported per section.
const UNKNOWN_KEYS_MAX: usize = 64;

impl<'t> Document<'t> {
    /// Reports syntax errors and answers `None` if there are any.
    pub(super) fn parse(text: &'t str, problems: &mut Problems<'_>) -> Option<Self> {
        let (document, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            problems.add(
                "",
                error.span(),
                format!("not valid TOML: {}", error.message()),
            );
        }
        errors.is_empty().then(|| Self {
            sections: document.into_inner(),
        })
    }

    /// A section that must be there.
    pub(super) fn section<T: for<'a> Deserialize<'a>>(
        &mut self,
        name: &str,
        problems: &mut Problems<'_>,
    ) -> Option<T> {
        let Some((_, value)) = self.take(name) else {
            problems.add(
                name,
                None,
                format!("the section [{name}] is missing; add it"),
            );
            return None;
        };
        read_section(name, value, problems)
    }

    /// A section that may be left out.
    pub(super) fn optional_section<T: for<'a> Deserialize<'a>>(
        &mut self,
        name: &str,
        problems: &mut Problems<'_>,
        default: impl FnOnce() -> T,
    ) -> Option<T> {
        match self.take(name) {
            Some((_, value)) => read_section(name, value, problems),
            None => Some(default()),
        }
    }

    /// `[name.x]`, `[name.y]`, …
    pub(super) fn named_sections<T: for<'a> Deserialize<'a>>(
        &mut self,
        name: &str,
        problems: &mut Problems<'_>,
    ) -> Vec<Entry<T>> {
        let Some((at, value)) = self.take(name) else {
            return Vec::new();
        };
        let DeValue::Table(table) = value.into_inner() else {
            problems.add(
                name,
                Some(at),
                format!("must be tables: write [{name}.NAME]"),
            );
            return Vec::new();
        };
        table
            .into_iter()
            .map(|(entry, value)| {
                let key = format!("{name}.{}", entry.get_ref());
                let value = read_section(&key, value, problems);
                Entry {
                    key,
                    name: entry.get_ref().to_string(),
                    at: entry.span(),
                    value,
                }
            })
            .collect()
    }

    /// `[[name]]`, once per entry.
    pub(super) fn listed_sections<T: for<'a> Deserialize<'a>>(
        &mut self,
        name: &str,
        problems: &mut Problems<'_>,
    ) -> Vec<Entry<T>> {
        let Some((at, value)) = self.take(name) else {
            return Vec::new();
        };
        let DeValue::Array(array) = value.into_inner() else {
            problems.add(
                name,
                Some(at),
                format!("must be a list: write [[{name}]] (two brackets)"),
            );
            return Vec::new();
        };
        array
            .into_iter()
            .enumerate()
            .map(|(index, value)| {
                let key = format!("{name}[{index}]");
                let at = value.span();
                let value = read_section(&key, value, problems);
                Entry {
                    key,
                    name: index.to_string(),
                    at,
                    value,
                }
            })
            .collect()
    }

    /// Whatever was not taken is unknown.
    pub(super) fn refuse_the_rest(self, problems: &mut Problems<'_>) {
        const KNOWN: &str = "agent, fleet, discovery, secrets, clusters, links, health, failover";
        for (key, _) in self.sections {
            let name = key.get_ref().to_string();
            problems.add(
                name,
                Some(key.span()),
                format!("unknown section or key; known sections: {KNOWN}"),
            );
        }
    }

    fn take(&mut self, name: &str) -> Option<(Range<usize>, Spanned<DeValue<'t>>)> {
        remove(&mut self.sections, name)
    }
}

/// Reads one section. serde stops at the first unknown key, so each one is reported, taken out, and the rest read again.
fn read_section<T: for<'a> Deserialize<'a>>(
    key: &str,
    mut value: Spanned<DeValue<'_>>,
    problems: &mut Problems<'_>,
) -> Option<T> {
    let section_at = value.span();
    let mut clean = true;
    for _ in 0..UNKNOWN_KEYS_MAX {
        let deserializer: toml::de::ValueDeserializer<'_> = value.clone().into_deserializer();
        let error = match T::deserialize(deserializer) {
            Ok(read) => return clean.then_some(read),
            Err(error) => error,
        };
        clean = false;
        let unknown = unknown_field(error.message());
        let removed =
            unknown.and_then(|(field, _)| remove_nested(value.get_mut(), field, error.span()));
        match (unknown, removed) {
            (Some((field, known)), Some((path, at))) => {
                let hint = closest(field, known);
                problems.add(
                    format!("{key}.{path}"),
                    Some(at),
                    format!("unknown key{hint}"),
                );
            }
            _ => {
                let at = error.span().unwrap_or(section_at);
                let path = path_at(value.get_ref(), &at)
                    .map_or_else(|| key.to_owned(), |p| format!("{key}.{p}"));
                problems.add(path, Some(at), error.message());
                return None;
            }
        }
    }
    None
}

/// serde's own wording: "unknown field `x`, expected one of `a`, `b`".
fn unknown_field(message: &str) -> Option<(&str, &str)> {
    let rest = message.strip_prefix("unknown field `")?;
    let (field, rest) = rest.split_once('`')?;
    Some((field, rest.trim_start_matches(", ")))
}

/// The hint after "unknown key": the likely one meant, and all that are known.
fn closest(field: &str, expected: &str) -> String {
    let known: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
    if known.is_empty() {
        return "; remove it".to_owned();
    }
    let near = known
        .iter()
        .map(|k| (distance(field, k), *k))
        .min()
        .filter(|(d, _)| *d <= 2);
    let list = known.join(", ");
    match near {
        Some((_, near)) => format!("; did you mean `{near}`? known keys: {list}"),
        None => format!("; known keys: {list}"),
    }
}

/// Levenshtein distance; keys are short.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, cb) in row.iter_mut().skip(1).zip(b.chars()) {
            let value = (diagonal + usize::from(ca != cb))
                .min(left + 1)
                .min(*cell + 1);
            diagonal = *cell;
            *cell = value;
            left = value;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

fn remove<'t>(table: &mut DeTable<'t>, name: &str) -> Option<(Range<usize>, Spanned<DeValue<'t>>)> {
    let key = table.keys().find(|k| k.get_ref().as_ref() == name)?.clone();
    let at = key.span();
    table.remove(&key).map(|value| (at, value))
}

/// Takes the unknown key out: the one that stands at `at` if serde knew the place. Tagged enums lose it: then the
/// outermost key of that name is meant.
fn remove_nested(
    value: &mut DeValue<'_>,
    name: &str,
    at: Option<Range<usize>>,
) -> Option<(String, Range<usize>)> {
    if let Some(at) = at
        && let Some(found) = remove_where(value, name, &|span| *span == at)
    {
        return Some(found);
    }
    remove_where(value, name, &|_| true)
}

fn remove_where(
    value: &mut DeValue<'_>,
    name: &str,
    wanted: &dyn Fn(&Range<usize>) -> bool,
) -> Option<(String, Range<usize>)> {
    let DeValue::Table(table) = value else {
        return None;
    };
    let here = table
        .keys()
        .any(|k| k.get_ref().as_ref() == name && wanted(&k.span()));
    if here {
        return remove(table, name).map(|(at, _)| (name.to_owned(), at));
    }
    table.iter_mut().find_map(|(key, inner)| {
        let (path, at) = remove_where(inner.get_mut(), name, wanted)?;
        Some((format!("{}.{path}", key.get_ref()), at))
    })
}

/// The key whose value stands at `at`.
fn path_at(value: &DeValue<'_>, at: &Range<usize>) -> Option<String> {
    let DeValue::Table(table) = value else {
        return None;
    };
    table.iter().find_map(|(key, inner)| {
        let span = inner.span();
        if span == *at || key.span() == *at {
            return Some(key.get_ref().to_string());
        }
        path_at(inner.get_ref(), at)
            .map(|path| format!("{}.{path}", key.get_ref()))
            .or_else(|| {
                (span.start <= at.start && at.end <= span.end).then(|| key.get_ref().to_string())
            })
    })
}
