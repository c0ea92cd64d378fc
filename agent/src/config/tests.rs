use super::*;

const GOOD: &str = r#"
[agent]
name = "east-1"
data_dir = "/var/lib/standfast"

[fleet]
name = "payments"

[discovery]
backend = "file"
path = "/var/lib/standfast/discovery"

[clusters.west]
bootstrap = "k1.west:9092,k2.west:9092"

[clusters.east]
bootstrap = "k1.east:9092"

[[links]]
name = "west-to-east"
source = "west"
destination = "east"
topics = ["orders"]
groups = ["billing"]
"#;

fn links(config: &Config) -> Vec<LinkSection> {
    let entries = LinkBase::new(config).resolve(&RuntimeLinks::default());
    let entries = entries.unwrap().into_iter();
    entries.map(|entry| entry.section).collect()
}

fn problems(text: &str) -> String {
    parse("agent.toml", text)
        .expect_err("the file has mistakes")
        .to_string()
}

fn changed(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from:?} is not in the good file");
    problems(&GOOD.replace(from, to))
}

#[test]
fn a_good_file_has_the_documented_defaults() {
    let config = parse("agent.toml", GOOD).unwrap();
    assert_eq!(config.agent.listen.to_string(), "127.0.0.1:9370");
    assert_eq!(config.failover.lock_ttl, Duration::from_secs(15));
    assert_eq!(config.health.unreachable_after, 3);
    assert_eq!(links(&config)[0].groups, ["billing"]);
    assert!(matches!(config.secrets, SecretsOptions::None));
}

#[test]
fn an_unknown_key_is_named_with_line_and_the_likely_one() {
    assert_eq!(
        changed(
            "topics = [\"orders\"]",
            "topics = [\"orders\"]\ntopic = [\"x\"]"
        ),
        "agent.toml:24: links[0].topic: unknown key; did you mean `topics`? known keys: name, source, destination, topics, \
         topic_filters, prefix, prefix_groups, groups, group_filters, refresh_interval, memory_mib, rate_limit, join_batches, group_sync_interval, config_exclude, start, topic_starts, acl_sync, replication_factor, shared, session_timeout, follow_fleet"
    );
}

#[test]
fn every_mistake_is_reported_at_once() {
    let text = GOOD
        .replace(
            "name = \"east-1\"",
            "name = \"east-1\"\nlistn = \"127.0.0.1:1\"\nport = 5",
        )
        .replace("destination = \"east\"", "destination = \"eats\"")
        .replace("k1.east:9092", "k1.east")
        + "\n[heath]\ninterval = \"1s\"\n";
    let found = problems(&text);
    for expected in [
        "agent.toml:4: agent.listn: unknown key; did you mean `listen`?",
        "agent.toml:5: agent.port: unknown key; known keys: name, listen, allow_remote, data_dir, shutdown_grace",
        "clusters.east.bootstrap: bootstrap entry \"k1.east\" is not host:port",
        "links[0].destination: there is no cluster \"eats\"; known clusters: east, west",
        "heath: unknown section or key; known sections:",
    ] {
        assert!(
            found.contains(expected),
            "missing: {expected}\nin:\n{found}"
        );
    }
    assert_eq!(found.lines().count(), 5, "{found}");
}

#[test]
fn a_wrong_type_is_named_with_its_key() {
    assert_eq!(
        changed("topics = [\"orders\"]", "topics = \"orders\""),
        "agent.toml:23: links[0].topics: invalid type: string \"orders\", expected a sequence"
    );
}

#[test]
fn missing_sections_and_keys_are_named() {
    let found = problems("[agent]\nname = 'a'\n");
    for expected in [
        "agent.toml:1: agent: missing field `data_dir`",
        "fleet: the section [fleet] is missing; add it",
        "discovery: the section [discovery] is missing; add it",
        "clusters: there are no clusters",
    ] {
        assert!(
            found.contains(expected),
            "missing: {expected}\nin:\n{found}"
        );
    }
}

#[test]
fn unknown_keys_of_other_crates_sections_are_named_too() {
    let found = changed("backend = \"file\"", "backend = \"file\"\nfolder = \"/x\"");
    assert!(
        found.contains("discovery.folder: unknown key") && found.starts_with("agent.toml:11: "),
        "{found}"
    );
    let found = changed(
        "k1.east:9092\"",
        "k1.east:9092\"\nbootstrap_servers = \"x:1\"",
    );
    assert!(
        found.contains("clusters.east.bootstrap_servers: unknown key"),
        "{found}"
    );
    let found = problems(&format!(
        "{GOOD}\n[secrets]\nbackend = \"vault\"\naddress = \"http://v:8200\"\nauth = {{ method = \"token\", tokenfile = \"/t\" }}\n"
    ));
    assert!(
        found.contains("secrets.auth.tokenfile: unknown key"),
        "{found}"
    );
}

#[test]
fn not_toml_is_told_with_the_line() {
    let found = problems("[agent]\nname = \n");
    assert!(
        found.starts_with("agent.toml:2: not valid TOML: "),
        "{found}"
    );
}

#[test]
fn a_remote_listener_needs_a_decision() {
    let remote = "data_dir = \"/var/lib/standfast\"\nlisten = \"0.0.0.0:9370\"";
    let found = changed("data_dir = \"/var/lib/standfast\"", remote);
    assert!(
        found.contains("agent.listen: 0.0.0.0:9370 is not a loopback address"),
        "{found}"
    );
    let allowed = GOOD.replace(
        "data_dir = \"/var/lib/standfast\"",
        &format!("{remote}\nallow_remote = true"),
    );
    assert!(parse("agent.toml", &allowed).is_ok());
}

#[test]
fn filters_stand_in_for_names_and_may_not_take_another_links_topic() {
    let filter = "[[links.topic_filters]]\nname = \"*\"\npattern_type = \"LITERAL\"\nfilter_type = \"INCLUDE\"\n";
    let only_filters = GOOD.replace("topics = [\"orders\"]\n", "") + filter;
    let config = parse("agent.toml", &only_filters).unwrap();
    assert!(links(&config)[0].topics.is_empty());
    assert_eq!(links(&config)[0].topic_filters[0].name, "*");
    let second = "[clusters.north]\nbootstrap = \"n:9092\"\n[[links]]\nname = \"north-to-east\"\nsource = \"north\"\ndestination = \"east\"\n";
    let found = problems(&format!("{GOOD}{second}{filter}"));
    assert!(
        found.contains("also taken by a topic filter of link \"north-to-east\""),
        "{found}"
    );
}

#[test]
fn two_links_may_not_write_the_same_topic() {
    let twice = format!(
        "{GOOD}\n[clusters.north]\nbootstrap = \"n:9092\"\n[[links]]\nname = \"north-to-east\"\nsource = \"north\"\ndestination = \"east\"\ntopics = [\"orders\"]\n"
    );
    let found = problems(&twice);
    assert!(
        found.contains("\"orders\" is already written to \"east\" by link \"west-to-east\""),
        "{found}"
    );
}

#[test]
fn limits_are_checked() {
    for (from, to, expected) in [
        (
            "source = \"west\"",
            "source = \"east\"",
            "is the source itself",
        ),
        ("\"orders\"", "\"__consumer_offsets\"", "internal topic"),
        ("\"orders\"", "\"orders.*\"", "use [[links.topic_filters]]"),
        (
            "name = \"west-to-east\"",
            "name = \"West\"",
            "links[0].name",
        ),
        (
            "topics = [\"orders\"]",
            "topics = []",
            "name at least one topic",
        ),
        (
            "groups = [\"billing\"]",
            "group_sync_interval = \"900ms\"",
            "group offsets cannot be carried over more often",
        ),
        (
            "groups = [\"billing\"]",
            "topic_filters = [{ name = \"ord\", pattern_type = \"PREFIXED\", filter_type = \"EXCLUDE\" }]",
            "excluded by a topic filter",
        ),
        (
            "groups = [\"billing\"]",
            "group_filters = [{ name = \"\", pattern_type = \"LITERAL\", filter_type = \"INCLUDE\" }]",
            "has an empty name",
        ),
        (
            "groups = [\"billing\"]",
            "topic_filters = [{ name = \"ord\", pattern_type = \"REGEX\", filter_type = \"INCLUDE\" }]",
            "links[0].topic_filters",
        ),
        (
            "groups = [\"billing\"]",
            "memory_mib = 1",
            "give the link more memory",
        ),
        (
            "groups = [\"billing\"]",
            "session_timeout = \"6s\"",
            "means nothing without `shared = true`",
        ),
        (
            "groups = [\"billing\"]",
            "shared = true\nsession_timeout = \"1s\"",
            "must be 3s to 30m",
        ),
        (
            "groups = [\"billing\"]",
            "rate_limit = \"1kB\"",
            "is below 16384 bytes per second",
        ),
        (
            "groups = [\"billing\"]",
            "rate_limit = \"50 horses\"",
            "`50 horses` is not a byte rate",
        ),
        (
            "[fleet]",
            "[failover]\nlock_ttl = \"1s\"\n[fleet]",
            "between 10s and 24h",
        ),
        (
            "[fleet]",
            "[health]\nunreachable_after = 0\n[fleet]",
            "use at least 1",
        ),
        (
            "[fleet]",
            "[health]\ninterval = \"fast\"\n[fleet]",
            "`fast` is not a duration",
        ),
        (
            "k1.east:9092\"",
            "k1.east:9092\"\nsecret = \"kafka/east\"",
            "configure [secrets]",
        ),
        (
            "k1.east:9092\"",
            "k1.east:9092\"\nsecurity_protocol = \"SASL_SSL\"",
            "SASL needs credentials",
        ),
        (
            "k1.east:9092\"",
            "k1.east:9092\"\nsasl_mechanism = \"GSSAPI\"",
            "use PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER",
        ),
    ] {
        let found = changed(from, to);
        assert!(
            found.contains(expected),
            "{to:?}: expected {expected:?} in:\n{found}"
        );
    }
}

#[test]
fn the_ready_files_have_no_mistakes() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/config");
    let mut seen = 0;
    for file in std::fs::read_dir(&folder).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|e| e == "toml")
            && path.file_name().is_some_and(|n| n != "secrets.toml")
        {
            load(&path).unwrap_or_else(|error| panic!("{error}"));
            seen += 1;
        }
    }
    assert!(seen >= 3, "only {seen} files in {}", folder.display());
}

#[test]
fn links_that_run_always_may_not_carry_a_topic_in_a_circle() {
    let back = |text: &str| {
        GOOD.to_owned()
            + "[[links]]\nname = \"east-to-west\"\nsource = \"east\"\ndestination = \"west\"\n"
            + text
    };
    let prefix = |name: &str, kind: &str| {
        format!(
            "[[links.topic_filters]]\nname = \"{name}\"\npattern_type = \"PREFIXED\"\nfilter_type = \"{kind}\"\n"
        )
    };
    // The record lets only one of the two run.
    assert!(parse("agent.toml", &back("topics = [\"orders\"]\n")).is_ok());
    assert!(
        parse(
            "agent.toml",
            &back("follow_fleet = false\ntopics = [\"audit\"]\n")
        )
        .is_ok()
    );
    for taken in [
        "topics = [\"orders\"]\n".to_owned(),
        prefix("ord", "INCLUDE"),
    ] {
        let text = problems(&back(&format!("follow_fleet = false\n{taken}")));
        assert!(
            text.contains("\"orders\"") && text.contains("west-to-east"),
            "{text}"
        );
    }
    let spared = prefix("ord", "INCLUDE") + &prefix("orders", "EXCLUDE");
    assert!(
        parse(
            "agent.toml",
            &back(&format!("follow_fleet = false\n{spared}"))
        )
        .is_ok()
    );
    // Round three corners.
    let round = "[clusters.north]\nbootstrap = \"n:9092\"\n\
        [[links]]\nname = \"east-to-north\"\nsource = \"east\"\ndestination = \"north\"\ntopics = [\"orders\"]\n\
        [[links]]\nname = \"north-to-west\"\nsource = \"north\"\ndestination = \"west\"\nfollow_fleet = false\ntopics = [\"orders\"]\n";
    let text = problems(&(GOOD.to_owned() + round));
    assert!(text.contains("links[2].follow_fleet"), "{text}");
}

#[test]
fn a_prefix_is_for_links_that_run_always_and_makes_other_names() {
    let second = |text: &str| {
        GOOD.to_owned()
            + "[clusters.north]\nbootstrap = \"n:9092\"\n[[links]]\nname = \"second\"\nsource = \"north\"\ndestination = \"east\"\n"
            + text
    };
    let always = |text: &str| second(&format!("follow_fleet = false\n{text}"));
    // The same name on the same cluster, and yet another topic.
    let config = parse(
        "agent.toml",
        &always("prefix = \"north.\"\nprefix_groups = true\ntopics = [\"orders\"]\n"),
    );
    let second_link = &links(&config.unwrap())[1];
    assert_eq!(second_link.named_mirrors(), ["north.orders"]);
    assert!(second_link.takes("north.orders") && !second_link.takes("orders"));
    for (text, expected) in [
        (
            second("prefix = \"north.\"\ntopics = [\"audit\"]\n"),
            "links[1].prefix: is \"north.\" on a link that follows the fleet: applications that are moved to \"east\" would look for \"audit\"",
        ),
        (
            always("prefix = \"\"\ntopics = [\"audit\"]\n"),
            "links[1].prefix: \"\" is empty",
        ),
        (
            always("prefix = \"no/rth\"\ntopics = [\"audit\"]\n"),
            "links[1].prefix: \"no/rth\" has characters",
        ),
        (
            always("prefix_groups = true\ntopics = [\"audit\"]\n"),
            "links[1].prefix_groups: is true, but there is no prefix",
        ),
        (
            always(&format!(
                "prefix = \"north.\"\ntopics = [\"{}\"]\n",
                "o".repeat(249)
            )),
            "which has 255 characters and may have 249",
        ),
        (
            always("prefix = \"ord\"\ntopics = [\"ers\"]\n"),
            "\"orders\" is already written to \"east\" by link \"west-to-east\"",
        ),
        (
            always(
                "prefix = \"ord\"\ntopic_filters = [{ name = \"*\", pattern_type = \"LITERAL\", filter_type = \"INCLUDE\" }]\n",
            ),
            "\"orders\" is also taken by a topic filter of link \"second\"",
        ),
    ] {
        let found = problems(&text);
        assert!(found.contains(expected), "{expected}: {found}");
    }
    // Both directions at once.
    let back = "[[links]]\nname = \"east-to-west\"\nsource = \"east\"\ndestination = \"west\"\nfollow_fleet = false\n\
        prefix = \"east.\"\ntopics = [\"orders\"]\n";
    assert!(parse("agent.toml", &(GOOD.to_owned() + back)).is_ok());
}

#[test]
fn filters_of_two_links_may_not_take_the_same_topics() {
    let filter = |name: &str, pattern: &str, kind: &str| {
        format!(
            "[[links.topic_filters]]\nname = \"{name}\"\npattern_type = \"{pattern}\"\nfilter_type = \"{kind}\"\n"
        )
    };
    let two = |first: &str, second: &str| {
        GOOD.to_owned()
            + first
            + "[clusters.north]\nbootstrap = \"n:9092\"\n[[links]]\nname = \"north-to-east\"\nsource = \"north\"\ndestination = \"east\"\n"
            + second
    };
    let shop = filter("shop.", "PREFIXED", "INCLUDE");
    for taken in [
        filter("*", "LITERAL", "INCLUDE"),
        filter("shop.eu.", "PREFIXED", "INCLUDE"),
        filter("shop.eu", "LITERAL", "INCLUDE"),
        filter("sh", "PREFIXED", "INCLUDE"),
    ] {
        // `*` takes the named topic as well, which is told first.
        let text = problems(&two(&shop, &taken));
        assert!(
            text.contains("topic_filters: take") && text.contains("west-to-east"),
            "{text}"
        );
    }
    let spared = filter("sh", "PREFIXED", "INCLUDE") + &filter("shop.", "PREFIXED", "EXCLUDE");
    assert!(parse("agent.toml", &two(&shop, &spared)).is_ok());
    assert!(
        parse(
            "agent.toml",
            &two(&shop, &filter("north.", "PREFIXED", "INCLUDE"))
        )
        .is_ok()
    );
}
