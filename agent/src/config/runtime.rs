//! Links as they are: those of the configuration file, with what was created, changed and deleted at runtime on top.
//!
//! What was said at runtime wins over the file, key by key, until it is reset. Both go through the same rules.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use standfast_discovery::{ClusterEntry, ClusterName};

use super::document::Document;
use super::problems::Problems;
use super::{Config, LinkSection, rules};

/// The keys of one `[[links]]`, as they were written.
pub(crate) type Settings = Map<String, Value>;

const VERSION: u32 = 1;
/// In data_dir.
const FILE: &str = "links.json";
/// Some thousand links.
const FILE_MAX_BYTES: u64 = 16 << 20;
/// What makes a link the link that it is.
pub(crate) const FIXED: [&str; 4] = ["name", "source", "destination", "prefix"];

/// What was said about links at runtime; the content of `data_dir/links.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RuntimeLinks {
    version: u32,
    /// Links that the file does not have, or whose name it uses for something else.
    #[serde(default)]
    created: BTreeMap<String, Settings>,
    /// Keys of the file's links that have another value; `null`: as if the file did not have the key.
    #[serde(default)]
    changed: BTreeMap<String, Settings>,
    /// Links of the file that were deleted.
    #[serde(default)]
    deleted: BTreeSet<String>,
}

impl Default for RuntimeLinks {
    fn default() -> Self {
        Self {
            version: VERSION,
            created: BTreeMap::new(),
            changed: BTreeMap::new(),
            deleted: BTreeSet::new(),
        }
    }
}

/// Where a link, or the value of a key, comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum Origin {
    /// The configuration file.
    File,
    /// A command.
    Api,
}

/// A link, checked.
#[derive(Debug, Clone)]
pub(crate) struct LinkEntry {
    pub(crate) section: LinkSection,
    pub(crate) origin: Origin,
    /// As it is now.
    pub(crate) settings: Settings,
    /// As the file has it; `None` for a link that the file does not have.
    pub(crate) in_file: Option<Settings>,
}

impl LinkEntry {
    /// Where the value of a key comes from.
    pub(crate) fn origin_of(&self, key: &str) -> Origin {
        let file = self.in_file.as_ref();
        match self.origin {
            Origin::File if file.and_then(|file| file.get(key)) == self.settings.get(key) => {
                Origin::File
            }
            _ => Origin::Api,
        }
    }

    /// The keys that are set here or in the file.
    pub(crate) fn keys(&self) -> BTreeSet<&str> {
        let file = self.in_file.iter().flat_map(Map::keys);
        self.settings
            .keys()
            .chain(file)
            .map(String::as_str)
            .collect()
    }
}

/// One mistake in the links as they would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LinkProblem {
    pub(crate) link: String,
    pub(crate) key: String,
    pub(crate) message: String,
}

impl std::fmt::Display for LinkProblem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "link \"{}\": ", self.link)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// What the file says; what was said at runtime is laid over it.
#[derive(Debug, Clone)]
pub(crate) struct LinkBase {
    in_file: Vec<Settings>,
    clusters: BTreeMap<ClusterName, ClusterEntry>,
}

impl LinkBase {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            in_file: config.link_settings.clone(),
            clusters: config.clusters.clone(),
        }
    }

    fn in_file(&self, name: &str) -> Option<&Settings> {
        self.in_file.iter().find(|link| name_of(link) == name)
    }

    /// All links as they are with `runtime`.
    ///
    /// # Errors
    /// Every mistake, by the same rules as in the file.
    pub(crate) fn resolve(
        &self,
        runtime: &RuntimeLinks,
    ) -> Result<Vec<LinkEntry>, Vec<LinkProblem>> {
        let mut all: Vec<(Origin, Settings)> = Vec::new();
        for link in &self.in_file {
            let name = name_of(link);
            if runtime.deleted.contains(name) || runtime.created.contains_key(name) {
                continue;
            }
            let mut settings = link.clone();
            for (key, value) in runtime.changed.get(name).into_iter().flatten() {
                match value {
                    Value::Null => settings.remove(key),
                    value => settings.insert(key.clone(), value.clone()),
                };
            }
            all.push((Origin::File, settings));
        }
        let created = runtime.created.iter().map(|(name, settings)| {
            let mut settings = settings.clone();
            settings.insert("name".to_owned(), Value::from(name.as_str()));
            (Origin::Api, settings)
        });
        all.extend(created);
        let sections = self.check(all.iter().map(|(_, settings)| settings))?;
        let entry = |((origin, settings), section): ((Origin, Settings), LinkSection)| LinkEntry {
            in_file: self.in_file(&section.name).cloned(),
            section,
            origin,
            settings,
        };
        Ok(all.into_iter().zip(sections).map(entry).collect())
    }

    /// Reads and checks links with the reader and the rules of the configuration file.
    fn check<'s>(
        &self,
        links: impl Iterator<Item = &'s Settings>,
    ) -> Result<Vec<LinkSection>, Vec<LinkProblem>> {
        let links: Vec<&Settings> = links.collect();
        let names: Vec<&str> = links.iter().map(|link| name_of(link)).collect();
        let unreadable = |message: String| {
            vec![LinkProblem {
                link: names.join(", "),
                key: String::new(),
                message,
            }]
        };
        let document = BTreeMap::from([("links", &links)]);
        let text = toml::to_string(&document)
            .map_err(|error| unreadable(format!("not a value that a setting can have: {error}")))?;
        let mut problems = Problems::new("", &text);
        let sections = match Document::parse(&text, &mut problems) {
            Some(mut document) => document.listed_sections::<LinkSection>("links", &mut problems),
            None => Vec::new(),
        };
        let clusters = rules::Clusters {
            entries: self.clusters.clone(),
            ..rules::Clusters::default()
        };
        rules::check_links(&sections, &clusters, &mut problems);
        if problems.is_empty() {
            return Ok(sections.into_iter().filter_map(|s| s.value).collect());
        }
        let error = problems.into_error();
        let problem = |(_, path, message): (Option<usize>, &str, &str)| {
            let (index, key) = path
                .strip_prefix("links[")
                .and_then(|rest| rest.split_once(']'))
                .unwrap_or(("", path));
            let link = index.parse().ok().and_then(|index: usize| names.get(index));
            LinkProblem {
                link: link.copied().unwrap_or("?").to_owned(),
                key: key.trim_start_matches('.').to_owned(),
                message: message.to_owned(),
            }
        };
        Err(error.problems().map(problem).collect())
    }

    /// Where file and runtime disagree, for the person who edits the file.
    pub(crate) fn disagreements(&self, runtime: &RuntimeLinks) -> Vec<String> {
        let mut found = Vec::new();
        for link in &self.in_file {
            let name = name_of(link);
            if runtime.created.contains_key(name) {
                found.push(format!(
                    "link \"{name}\" is in the file, but one of that name was created by `standfast link create` and is used instead"
                ));
            } else if runtime.deleted.contains(name) {
                found.push(format!(
                    "link \"{name}\" is in the file, but was deleted by `standfast link delete`; remove it from the file"
                ));
            } else if let Some(changed) = runtime.changed.get(name) {
                let differs = |(key, value): &(&String, &Value)| {
                    link.get(*key).unwrap_or(&Value::Null) != *value
                };
                let keys: Vec<&str> = changed
                    .iter()
                    .filter(differs)
                    .map(|(key, _)| key.as_str())
                    .collect();
                if !keys.is_empty() {
                    found.push(format!(
                        "link \"{name}\": {} set by `standfast link update`, the file's value is not used; `standfast link update {name} --reset KEY` goes back to it",
                        keys.join(", ")
                    ));
                }
            }
        }
        found
    }
}

impl RuntimeLinks {
    /// Where they are kept.
    pub(crate) fn path(data_dir: &Path) -> PathBuf {
        data_dir.join(FILE)
    }

    /// Reads the file; without one nothing was said.
    ///
    /// # Errors
    /// What is wrong with the file, and what to do.
    pub(crate) fn load(data_dir: &Path) -> Result<Self, String> {
        let path = Self::path(data_dir);
        let bytes = match File::open(&path) {
            Ok(file) => {
                let mut bytes = Vec::new();
                let read = file.take(FILE_MAX_BYTES).read_to_end(&mut bytes);
                read.map(|_| bytes)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => Err(error),
        };
        bytes
            .map_err(|error| error.to_string())
            .and_then(|bytes| Self::from_slice(&bytes))
            .map_err(|error| {
                format!(
                    "{} says which links were created, changed and deleted by commands, and cannot be used: {error}; mend it, or \
                     delete it to have the links of the configuration file",
                    path.display()
                )
            })
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// What cannot be read, in words.
    pub(crate) fn from_slice(bytes: &[u8]) -> Result<Self, String> {
        let read: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if read.version != VERSION {
            return Err(format!(
                "it has version {}, this agent knows {VERSION}",
                read.version
            ));
        }
        Ok(read)
    }

    /// With one more link.
    pub(crate) fn with_created(&self, name: &str, settings: Settings) -> Self {
        let mut new = self.clone();
        new.changed.remove(name);
        new.deleted.remove(name);
        new.created.insert(name.to_owned(), settings);
        new
    }

    /// With a link that has these settings from now on.
    pub(crate) fn with_settings(&self, entry: &LinkEntry, settings: Settings) -> Self {
        let name = &entry.section.name;
        let mut new = self.clone();
        match (entry.origin, &entry.in_file) {
            (Origin::File, Some(file)) => {
                let changed = difference(file, &settings);
                if changed.is_empty() {
                    new.changed.remove(name);
                } else {
                    new.changed.insert(name.clone(), changed);
                }
            }
            _ => drop(new.created.insert(name.clone(), settings)),
        }
        new
    }

    /// Without a link.
    pub(crate) fn without(&self, entry: &LinkEntry) -> Self {
        let name = &entry.section.name;
        let mut new = self.clone();
        new.created.remove(name);
        new.changed.remove(name);
        if entry.in_file.is_some() {
            new.deleted.insert(name.clone());
        }
        new
    }
}

/// The keys in which `new` differs; `null` for those that it lacks.
fn difference(old: &Settings, new: &Settings) -> Settings {
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    keys.into_iter()
        .filter(|key| old.get(*key) != new.get(*key))
        .map(|key| (key.clone(), new.get(key).cloned().unwrap_or(Value::Null)))
        .collect()
}

fn name_of(link: &Settings) -> &str {
    link.get("name").and_then(Value::as_str).unwrap_or("")
}

/// The `[[links]]` of a file as they were written; none if it is not TOML, which is reported elsewhere.
pub(super) fn settings_in(text: &str) -> Vec<Settings> {
    #[derive(Deserialize)]
    struct Links {
        #[serde(default)]
        links: Vec<Settings>,
    }
    toml::from_str(text).map_or_else(|_| Vec::new(), |found: Links| found.links)
}

#[cfg(test)]
mod tests;
