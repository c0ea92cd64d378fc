//! Circles of links over several agents. What one configuration cannot show (see `config/loops.rs`) the agents of a fleet tell one another through discovery.
//!
//! Only links that do not follow the fleet record can close a circle: of the others the record lets one direction run. Of two agents whose links do not go
//! together the later one waits. While discovery is away nobody learns of new links, and all go on as they are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use standfast_discovery::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Colleague;
use super::Links;
use crate::config::{LinkSection, back_to_the_source};

/// Between two announcements of an agent that has a link which can close a circle, which is also how soon that is noticed.
const ANNOUNCE_OFTEN: Duration = Duration::from_secs(5);
/// Of all others.
const ANNOUNCE_SELDOM: Duration = Duration::from_secs(20);

/// Links that must not run, by name, with the reason.
pub(crate) type Refused = Arc<BTreeMap<String, String>>;

/// One link as another agent announces it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Announced {
    /// Since when it is there.
    since: Timestamp,
    /// What of its section matters, in its own words.
    section: Value,
}

/// Announces the links of this agent, and compares them with those of the others.
#[derive(Debug)]
pub(crate) struct Circles {
    pub(crate) colleague: Colleague,
    pub(crate) links: Links,
    pub(crate) refused: watch::Sender<Refused>,
}

impl Circles {
    /// Until `shutdown`.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        tokio::select! {
            () = keep(self.colleague, self.links, self.refused) => {}
            () = shutdown.cancelled() => {}
        }
    }
}

async fn keep(colleague: Colleague, links: Links, refused: watch::Sender<Refused>) {
    let mut since: BTreeMap<String, Timestamp> = BTreeMap::new();
    let mut wait = Duration::ZERO;
    loop {
        tokio::time::sleep(wait).await;
        let runs_always = (links.get().iter()).any(|link| !link.section().follow_fleet);
        wait = if runs_always {
            ANNOUNCE_OFTEN
        } else {
            ANNOUNCE_SELDOM
        };
        let own = own(&links, &mut since);
        let content = json!({ "links": own });
        let told = colleague
            .discovery
            .announce(&colleague.fleet, &colleague.agent, &content)
            .await;
        let told = match told {
            Ok(told) => told,
            Err(error) => {
                tracing::debug!(%error, "the links of this agent are not announced to the others");
                continue;
            }
        };
        let mut others = Vec::new();
        for (agent, announcement) in told {
            if agent != colleague.agent {
                others.extend(read(&agent, &announcement.content));
            }
        }
        let found = circles(&colleague.agent, &own, &others);
        refused.send_if_modified(|before| {
            let changed = **before != found;
            if changed {
                for (link, reason) in &found {
                    tracing::error!(link, reason, "the link is refused");
                }
                *before = Arc::new(found);
            }
            changed
        });
    }
}

fn own(links: &Links, since: &mut BTreeMap<String, Timestamp>) -> Vec<Announced> {
    let links = links.get();
    since.retain(|name, _| links.iter().any(|link| link.section().name == *name));
    // One with a prefix closes no circle.
    let plain = links.iter().filter(|link| link.section().prefix.is_empty());
    let each = plain.map(|link| {
        let section = link.section();
        let since = since
            .entry(section.name.clone())
            .or_insert_with(Timestamp::now);
        Announced {
            since: *since,
            section: json!({
                "name": section.name,
                "source": section.source,
                "destination": section.destination,
                "topics": section.topics,
                "topic_filters": section.topic_filters,
                "follow_fleet": section.follow_fleet,
            }),
        }
    });
    each.collect()
}

/// Another agent's links, under names that say whose they are; none of an agent that cannot be understood.
fn read(agent: &str, content: &Value) -> Vec<(String, Timestamp, LinkSection)> {
    let links = content.get("links").cloned().unwrap_or_default();
    let links: Vec<Announced> = serde_json::from_value(links).unwrap_or_default();
    let each = links.into_iter().filter_map(|announced| {
        let mut section: LinkSection = serde_json::from_value(announced.section).ok()?;
        section.name = format!("{} (agent {agent})", section.name);
        Some((agent.to_owned(), announced.since, section))
    });
    each.collect()
}

/// The links of this agent that close a circle with those of others that were there before.
fn circles(
    agent: &str,
    own: &[Announced],
    others: &[(String, Timestamp, LinkSection)],
) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for (_, since, mine) in own.iter().flat_map(|link| {
        let section = serde_json::from_value::<LinkSection>(link.section.clone());
        section.ok().map(|section| (agent, link.since, section))
    }) {
        let before = others
            .iter()
            .filter(|(theirs, at, _)| (*at, theirs.as_str()) < (since, agent));
        let before: Vec<&LinkSection> = before.map(|(_, _, section)| section).collect();
        if let Some((other, topic)) = back_to_the_source(before.into_iter(), &mine) {
            let reason = format!(
                "topic \"{topic}\" would be carried round in a circle, because link \"{other}\" leads back to {}; take the topic out of one of the two",
                mine.source
            );
            found.insert(mine.name.clone(), reason);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str, way: [&str; 2], topic: &str, at: i64) -> Announced {
        Announced {
            since: Timestamp::from_second(at).unwrap(),
            section: json!({
                "name": name, "source": way[0], "destination": way[1],
                "topics": [topic], "topic_filters": [], "follow_fleet": false,
            }),
        }
    }

    fn announced(agent: &str, links: &[Announced]) -> Vec<(String, Timestamp, LinkSection)> {
        read(agent, &json!({ "links": links }))
    }

    #[test]
    fn the_later_of_two_links_of_different_agents_is_refused_on_the_same_topic_only() {
        let there = link("there", ["west", "east"], "orders", 1);
        let back = link("back", ["east", "west"], "orders", 2);
        let other = link("other", ["east", "west"], "payments", 2);
        let (one, two) = (
            announced("one", std::slice::from_ref(&there)),
            announced("two", std::slice::from_ref(&back)),
        );
        assert!(circles("one", &[there], &two).is_empty());
        let found = circles("two", &[back, other], &one);
        assert_eq!(found.keys().collect::<Vec<_>>(), ["back"]);
        assert!(found["back"].contains("\"there (agent one)\""), "{found:?}");
    }

    #[test]
    fn a_circle_over_three_clusters_is_found_at_the_last_link() {
        let mut others = announced("one", &[link("a", ["west", "east"], "orders", 1)]);
        others.extend(announced(
            "two",
            &[link("b", ["east", "south"], "orders", 2)],
        ));
        let last = link("c", ["south", "west"], "orders", 3);
        assert_eq!(circles("three", &[last], &others).len(), 1);
        let onward = link("c", ["south", "north"], "orders", 3);
        assert!(circles("three", &[onward], &others).is_empty());
    }

    #[test]
    fn nonsense_of_another_agent_refuses_nothing() {
        for content in [
            json!(null),
            json!({"links": 7}),
            json!({"links": [{"since": 1}]}),
        ] {
            assert!(read("one", &content).is_empty());
        }
    }
}
