use super::*;
use serde_json::json;

const FILE: &str = r#"
[agent]
name = "east-1"
data_dir = "/var/lib/standfast"
[fleet]
name = "payments"
[discovery]
backend = "file"
path = "/var/lib/standfast/discovery"
[clusters.west]
bootstrap = "w:9092"
[clusters.east]
bootstrap = "e:9092"
[[links]]
name = "west-to-east"
source = "west"
destination = "east"
topics = ["orders"]
groups = ["billing"]
[[links]]
name = "second"
source = "west"
destination = "east"
topics = ["audit"]
"#;

fn base() -> LinkBase {
    LinkBase::new(&crate::config::parse("agent.toml", FILE).unwrap())
}

fn settings(value: Value) -> Settings {
    value.as_object().cloned().unwrap()
}

fn link(base: &LinkBase, runtime: &RuntimeLinks, name: &str) -> Option<LinkEntry> {
    let links = base.resolve(runtime).unwrap();
    links.into_iter().find(|link| link.section.name == name)
}

#[test]
fn runtime_wins_key_by_key_and_says_so() {
    let (base, runtime) = (base(), RuntimeLinks::default());
    assert!(base.disagreements(&runtime).is_empty());
    let entry = link(&base, &runtime, "west-to-east").unwrap();
    let mut new = entry.settings.clone();
    new.insert("topics".to_owned(), json!(["orders", "more"]));
    new.remove("groups");
    let runtime = runtime.with_settings(&entry, new);
    let text = serde_json::to_vec(&runtime).unwrap();
    let runtime = RuntimeLinks::from_slice(&text).unwrap();
    let entry = link(&base, &runtime, "west-to-east").unwrap();
    assert_eq!(entry.section.topics, ["orders", "more"]);
    assert!(entry.section.groups.is_empty());
    assert_eq!(
        (
            entry.origin,
            entry.origin_of("topics"),
            entry.origin_of("groups"),
            entry.origin_of("source")
        ),
        (Origin::File, Origin::Api, Origin::Api, Origin::File)
    );
    let told = base.disagreements(&runtime);
    assert!(
        told.len() == 1 && told[0].contains("groups, topics"),
        "{told:?}"
    );
    // Back to what the file says: nothing is left of it.
    let runtime = runtime.with_settings(&entry, entry.in_file.clone().unwrap());
    assert_eq!(runtime, RuntimeLinks::default());
}

#[test]
fn links_come_and_go() {
    let (base, runtime) = (base(), RuntimeLinks::default());
    let new = settings(json!({"source": "west", "destination": "east", "topics": ["new"]}));
    let runtime = runtime.with_created("third", new.clone());
    assert_eq!(link(&base, &runtime, "third").unwrap().origin, Origin::Api);
    let second = link(&base, &runtime, "second").unwrap();
    let runtime = runtime.without(&second);
    assert!(link(&base, &runtime, "second").is_none());
    assert!(base.disagreements(&runtime)[0].contains("deleted"));
    // A name of the file may be used again for another link.
    let runtime = runtime.with_created(
        "second",
        settings(json!({"source": "west", "destination": "east", "topics": ["b"]})),
    );
    let again = link(&base, &runtime, "second").unwrap();
    assert_eq!((again.origin, again.section.topics.len()), (Origin::Api, 1));
    assert!(base.disagreements(&runtime)[0].contains("used instead"));
    let third = link(&base, &runtime, "third").unwrap();
    let runtime = runtime.without(&third).without(&again);
    assert!(link(&base, &runtime, "third").is_none());
    assert!(link(&base, &runtime, "second").is_none());
}

#[test]
fn the_rules_are_those_of_the_file_and_name_link_and_key() {
    let base = base();
    for (new, link, key, text) in [
        (
            json!({"source": "west", "destination": "east", "topic": ["a"]}),
            "new",
            "topic",
            "did you mean `topics`?",
        ),
        (
            json!({"source": "west", "destination": "eats", "topics": ["a"]}),
            "new",
            "destination",
            "known clusters: east, west",
        ),
        (
            json!({"source": "west", "destination": "west", "topics": ["a"]}),
            "new",
            "destination",
            "source itself",
        ),
        (
            json!({"source": "west", "destination": "east", "topics": ["orders"]}),
            "new",
            "topics",
            "west-to-east",
        ),
        (
            json!({"source": "west", "destination": "east", "topics": ["__a"]}),
            "new",
            "topics",
            "internal",
        ),
        (
            json!({"source": "west", "destination": "east"}),
            "new",
            "topics",
            "is empty",
        ),
        (
            json!({"source": "west", "destination": "east", "topics": "a"}),
            "new",
            "topics",
            "sequence",
        ),
        (
            json!({"source": "west", "destination": "east", "topics": ["a"], "refresh_interval": "1ms"}),
            "new",
            "refresh_interval",
            "below",
        ),
        (
            json!({"destination": "east", "topics": ["a"]}),
            "new",
            "",
            "source",
        ),
    ] {
        let runtime = RuntimeLinks::default().with_created("new", settings(new.clone()));
        let problems = base.resolve(&runtime).unwrap_err();
        let problem = &problems[0];
        assert_eq!(
            (problem.link.as_str(), problem.key.as_str()),
            (link, key),
            "{new}: {problems:?}"
        );
        assert!(problem.message.contains(text), "{new}: {problems:?}");
    }
    let runtime = RuntimeLinks::default().with_created(
        "Bad Name",
        settings(json!({"source": "west", "destination": "east", "topics": ["a"]})),
    );
    assert_eq!(base.resolve(&runtime).unwrap_err()[0].key, "name");
}

#[test]
fn only_what_is_known_is_read() {
    for bad in [
        "",
        "{}",
        r#"{"version":2}"#,
        r#"{"version":1,"more":{}}"#,
        r#"{"version":1,"created":[]}"#,
    ] {
        assert!(RuntimeLinks::from_slice(bad.as_bytes()).is_err(), "{bad}");
    }
    assert_eq!(
        RuntimeLinks::from_slice(br#"{"version":1}"#).unwrap(),
        RuntimeLinks::default()
    );
}
