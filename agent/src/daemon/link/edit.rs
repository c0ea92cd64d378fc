//! Changes of a link's settings, and what they come to.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::api::{ConfigOperation, LinkChange, SettingChange, SettingDifference};
use crate::config::{FIXED, LinkEntry, Settings};

/// The settings after the changes. Nothing of it is checked yet but that it makes sense as a change.
///
/// # Errors
/// What does not, in words.
pub(super) fn apply(entry: &LinkEntry, changes: &[SettingChange]) -> Result<Settings, String> {
    if changes.is_empty() {
        return Err(
            "nothing to change; write KEY=VALUE, KEY+=VALUE, KEY-=VALUE or --reset KEY".to_owned(),
        );
    }
    let mut settings = entry.settings.clone();
    for change in changes {
        let key = change.name.as_str();
        if FIXED.contains(&key) {
            return Err(format!(
                "{key} cannot be changed; delete the link and create another"
            ));
        }
        let value = change.value.clone().filter(|value| !value.is_null());
        match (change.operation, value) {
            (ConfigOperation::Set, Some(value)) => {
                settings.insert(key.to_owned(), value);
            }
            (ConfigOperation::Delete, None) => drop(settings.remove(key)),
            (ConfigOperation::Reset, None) => {
                match entry.in_file.as_ref().and_then(|file| file.get(key)) {
                    Some(value) => settings.insert(key.to_owned(), value.clone()),
                    None => settings.remove(key),
                };
            }
            (operation @ (ConfigOperation::Append | ConfigOperation::Subtract), Some(value)) => {
                let list = settings
                    .entry(key.to_owned())
                    .or_insert_with(|| Value::Array(Vec::new()));
                let Value::Array(list) = list else {
                    return Err(format!("{key} is not a list; write {key}=VALUE"));
                };
                add_or_take(list, operation, value);
                if list.is_empty() {
                    settings.remove(key);
                }
            }
            (operation, None) => return Err(format!("{key}: {operation:?} needs a value")),
            (operation, Some(_)) => return Err(format!("{key}: {operation:?} takes no value")),
        }
    }
    Ok(settings)
}

/// What is there already is not added again, and what is not there need not be taken out.
fn add_or_take(list: &mut Vec<Value>, operation: ConfigOperation, value: Value) {
    let values = match value {
        Value::Array(values) => values,
        one => vec![one],
    };
    for value in values {
        match operation {
            ConfigOperation::Append if !list.contains(&value) => list.push(value),
            ConfigOperation::Subtract => list.retain(|known| *known != value),
            _ => {}
        }
    }
}

/// The keys in which two settings differ.
pub(super) fn differences(before: &Settings, after: &Settings) -> Vec<SettingDifference> {
    let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    keys.into_iter()
        .filter(|key| before.get(*key) != after.get(*key))
        .map(|key| SettingDifference {
            name: key.clone(),
            before: before.get(key).cloned(),
            after: after.get(key).cloned(),
        })
        .collect()
}

/// Notes which mirrors come and go.
pub(super) fn mirrors(before: &[String], after: &[String], change: &mut LinkChange) {
    let missing = |these: &[String], those: &[String]| {
        let those: BTreeSet<&String> = those.iter().collect();
        let mut found = these.to_vec();
        found.retain(|name| !those.contains(name));
        found
    };
    change.mirrors_added = missing(after, before);
    change.mirrors_removed = missing(before, after);
    if !change.mirrors_removed.is_empty() {
        change.warnings.push(format!(
            "{} topic(s) are no longer mirrored; they stay on the destination as they are, and nothing keeps them equal to the source",
            change.mirrors_removed.len()
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Origin;
    use serde_json::json;

    fn entry() -> LinkEntry {
        let settings = json!({"name": "w-e", "source": "west", "destination": "east", "topics": ["a"], "memory_mib": 32});
        let settings = settings.as_object().cloned().unwrap();
        let mut file = settings.clone();
        file.insert("topics".to_owned(), json!(["of the file"]));
        LinkEntry {
            section: toml::from_str(
                "name = 'w-e'\nsource = 'west'\ndestination = 'east'\ntopics = ['a']",
            )
            .unwrap(),
            origin: Origin::File,
            settings,
            in_file: Some(file),
        }
    }

    fn change(name: &str, operation: ConfigOperation, value: Value) -> SettingChange {
        SettingChange {
            name: name.to_owned(),
            operation,
            value: Some(value).filter(|value| !value.is_null()),
        }
    }

    #[test]
    fn changes_are_idempotent() {
        use ConfigOperation::{Append, Delete, Reset, Set, Subtract};
        for (operation, name, value, after) in [
            (Set, "topics", json!(["x"]), json!(["x"])),
            (Append, "topics", json!(["b", "a"]), json!(["a", "b"])),
            (Append, "groups", json!("g"), json!(["g"])),
            (Subtract, "topics", json!(["none"]), json!(["a"])),
            (Subtract, "topics", json!(["a"]), Value::Null),
            (Delete, "memory_mib", Value::Null, Value::Null),
            (Delete, "groups", Value::Null, Value::Null),
            (Reset, "topics", Value::Null, json!(["of the file"])),
            (Reset, "groups", Value::Null, Value::Null),
        ] {
            let mut entry = entry();
            for _ in 0..2 {
                let found = apply(&entry, &[change(name, operation, value.clone())]).unwrap();
                assert_eq!(
                    found.get(name).unwrap_or(&Value::Null),
                    &after,
                    "{operation:?} {name}"
                );
                entry.settings = found;
            }
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        use ConfigOperation::{Append, Reset, Set};
        for (operation, name, value, text) in [
            (Set, "source", json!("north"), "cannot be changed"),
            (Append, "memory_mib", json!(1), "not a list"),
            (Set, "topics", Value::Null, "needs a value"),
            (Reset, "topics", json!(1), "takes no value"),
        ] {
            let error = apply(&entry(), &[change(name, operation, value)]).unwrap_err();
            assert!(error.contains(text), "{error}");
        }
        assert!(apply(&entry(), &[]).is_err());
    }
}
