//! A link's settings as they are written on the command line.

use std::path::Path;

use clap::Args;
use serde_json::{Map, Value, json};

use crate::api::{ConfigOperation, SettingChange};
use crate::exit::Failed;

/// Longest settings file.
const FILE_MAX_BYTES: u64 = 1 << 20;

/// What a new link is made of.
#[derive(Debug, Args)]
pub(crate) struct LinkSettings {
    /// The cluster to read from, as the agent's configuration names it.
    #[arg(long, value_name = "CLUSTER")]
    pub(crate) source: Option<String>,
    /// The cluster to write to.
    #[arg(long, value_name = "CLUSTER")]
    pub(crate) destination: Option<String>,
    /// A topic to mirror; may be given several times.
    #[arg(long, value_name = "TOPIC")]
    pub(crate) topic: Vec<String>,
    /// Further topics: a name, a prefix followed by `*`, or '*'; with `!` in front: leave out.
    #[arg(long, value_name = "FILTER")]
    pub(crate) filter: Vec<String>,
    /// Stands in front of the names of all mirrors ('eu.': the topic orders becomes eu.orders). Needs --set follow_fleet=false. It cannot be changed later.
    #[arg(long, value_name = "PREFIX")]
    pub(crate) prefix: Option<String>,
    /// A consumer group whose offsets are carried over: a name, or a filter like those of topics.
    #[arg(long, value_name = "GROUP")]
    pub(crate) group: Vec<String>,
    /// Any other key of [[links]], for example rate_limit=50MB.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// A TOML file with keys of [[links]]; what is given as an option wins.
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<std::path::PathBuf>,
}

/// The keys of `[[links]]` that the options and the file come to.
pub(super) fn settings(name: &str, args: &LinkSettings) -> Result<Map<String, Value>, Failed> {
    let mut settings = match &args.file {
        Some(file) => from_file(file, name)?,
        None => Map::new(),
    };
    let mut set = |key: &str, value: Value| drop(settings.insert(key.to_owned(), value));
    for (key, cluster) in [("source", &args.source), ("destination", &args.destination)] {
        if let Some(cluster) = cluster {
            set(key, json!(cluster));
        }
    }
    if let Some(prefix) = &args.prefix {
        set("prefix", json!(prefix));
    }
    if !args.topic.is_empty() {
        set("topics", json!(args.topic));
    }
    if !args.filter.is_empty() {
        set(
            "topic_filters",
            args.filter.iter().map(|f| filter(f)).collect(),
        );
    }
    let (filters, groups): (Vec<&String>, Vec<&String>) =
        args.group.iter().partition(|group| is_filter(group));
    if !groups.is_empty() {
        set("groups", json!(groups));
    }
    if !filters.is_empty() {
        set(
            "group_filters",
            filters.into_iter().map(|f| filter(f)).collect(),
        );
    }
    for text in &args.set {
        let change = change(text)?;
        match (change.operation, change.value) {
            (ConfigOperation::Set, Some(value)) => set(&change.name, value),
            _ => return Err(Failed::usage(format!("--set {text:?}: write KEY=VALUE"))),
        }
    }
    Ok(settings)
}

/// `KEY=VALUE`, `KEY+=VALUE`, `KEY-=VALUE`, or `KEY=` for the default.
pub(super) fn change(text: &str) -> Result<SettingChange, Failed> {
    let usage = || {
        Failed::usage(format!(
            "{text:?} is not a change; write KEY=VALUE, KEY+=VALUE, KEY-=VALUE, or KEY= for the default"
        ))
    };
    let (key, value) = text.split_once('=').ok_or_else(usage)?;
    let (key, operation) = match (key.strip_suffix('+'), key.strip_suffix('-')) {
        (Some(key), _) => (key, ConfigOperation::Append),
        (_, Some(key)) => (key, ConfigOperation::Subtract),
        _ if value.is_empty() => (key, ConfigOperation::Delete),
        _ => (key, ConfigOperation::Set),
    };
    let name = key.trim();
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || !name.chars().all(word) {
        return Err(usage());
    }
    let value = match operation {
        ConfigOperation::Delete => None,
        _ if value.is_empty() => return Err(usage()),
        _ => Some(parse(name, value.trim())),
    };
    Ok(SettingChange {
        name: name.to_owned(),
        operation,
        value,
    })
}

/// Names and filters as words with commas between; everything else as TOML, and what is not TOML as text.
fn parse(key: &str, value: &str) -> Value {
    let toml = |text: &str| {
        let table: toml::Table = toml::from_str(&format!("v = {text}")).ok()?;
        serde_json::to_value(table.get("v")?).ok()
    };
    let words = || value.split(',').map(str::trim).filter(|w| !w.is_empty());
    match key {
        _ if value.starts_with(['[', '{']) => toml(value).unwrap_or_else(|| json!(value)),
        "prefix" => json!(value),
        "topics" | "groups" | "config_exclude" => words().collect(),
        "topic_filters" | "group_filters" => words().map(filter).collect(),
        _ => toml(value).unwrap_or_else(|| json!(value)),
    }
}

fn is_filter(text: &str) -> bool {
    text.starts_with('!') || text.ends_with('*')
}

/// `orders`, `orders.*`, `*`, `!orders.secret`.
fn filter(text: &str) -> Value {
    let (text, kind) = match text.strip_prefix('!') {
        Some(text) => (text, "EXCLUDE"),
        None => (text, "INCLUDE"),
    };
    let (name, pattern) = match text.strip_suffix('*') {
        Some(prefix) if !prefix.is_empty() => (prefix, "PREFIXED"),
        _ => (text, "LITERAL"),
    };
    json!({"name": name, "pattern_type": pattern, "filter_type": kind})
}

/// A filter as [`filter`] reads it, where a value is one.
pub(super) fn short(value: &Value) -> String {
    let text = |key: &str| value.get(key).and_then(Value::as_str);
    match (
        value,
        text("name"),
        text("pattern_type"),
        text("filter_type"),
    ) {
        (_, Some(name), Some(pattern), Some(kind)) => {
            let not = if kind == "EXCLUDE" { "!" } else { "" };
            let star = if pattern == "PREFIXED" { "*" } else { "" };
            format!("{not}{name}{star}")
        }
        (Value::String(text), ..) => text.clone(),
        (Value::Array(values), ..) => values.iter().map(short).collect::<Vec<_>>().join(","),
        (Value::Null, ..) => "-".to_owned(),
        (other, ..) => other.to_string(),
    }
}

/// The keys of a link, alone in a file or as its only `[[links]]`.
fn from_file(file: &Path, name: &str) -> Result<Map<String, Value>, Failed> {
    let wrong = |text: String| Failed::usage(format!("{}: {text}", file.display()));
    let length = std::fs::metadata(file).map_err(|error| wrong(error.to_string()))?;
    if length.len() > FILE_MAX_BYTES {
        return Err(wrong(format!("is larger than {FILE_MAX_BYTES} bytes")));
    }
    let text = std::fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
    let mut table: Map<String, Value> =
        toml::from_str(&text).map_err(|error| wrong(format!("not valid TOML: {error}")))?;
    if let Some(links) = table.remove("links") {
        let only = links.as_array().map(Vec::as_slice);
        let (true, Some([Value::Object(link)])) = (table.is_empty(), only) else {
            let text = "write the keys of one link, or one [[links]] and nothing else";
            return Err(wrong(text.to_owned()));
        };
        table = link.clone();
    }
    match table.remove("name") {
        Some(other) if other != name => Err(wrong(format!(
            "is about link {other}, not about \"{name}\""
        ))),
        _ => Ok(table),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_as_they_are_typed() {
        use ConfigOperation::{Append, Delete, Set, Subtract};
        for (text, name, operation, value) in [
            ("rate_limit=50MB", "rate_limit", Set, json!("50MB")),
            ("rate_limit=50000000", "rate_limit", Set, json!(50_000_000)),
            ("memory_mib=64", "memory_mib", Set, json!(64)),
            ("refresh_interval=5s", "refresh_interval", Set, json!("5s")),
            ("topics=a, b", "topics", Set, json!(["a", "b"])),
            ("topics+=a", "topics", Append, json!(["a"])),
            ("groups-=[\"a,b\"]", "groups", Subtract, json!(["a,b"])),
            (
                "acl_sync={filters=[{principal=\"User:a\"}]}",
                "acl_sync",
                Set,
                json!({"filters": [{"principal": "User:a"}]}),
            ),
            ("rate_limit=", "rate_limit", Delete, Value::Null),
        ] {
            let change = change(text).unwrap();
            assert_eq!(
                (change.name.as_str(), change.operation),
                (name, operation),
                "{text}"
            );
            assert_eq!(change.value.unwrap_or(Value::Null), value, "{text}");
        }
        for text in ["", "topics", "=x", "a b=c", "topics+=", "topics-="] {
            assert!(change(text).is_err(), "{text}");
        }
    }

    #[test]
    fn filters_are_words() {
        for (text, name, pattern, kind) in [
            ("orders", "orders", "LITERAL", "INCLUDE"),
            ("orders.*", "orders.", "PREFIXED", "INCLUDE"),
            ("*", "*", "LITERAL", "INCLUDE"),
            ("!orders.secret", "orders.secret", "LITERAL", "EXCLUDE"),
            ("!shop.*", "shop.", "PREFIXED", "EXCLUDE"),
        ] {
            let value = filter(text);
            assert_eq!(
                value,
                json!({"name": name, "pattern_type": pattern, "filter_type": kind})
            );
            assert_eq!(short(&value), text);
        }
    }
}
