//! What needs no server: mistakes, exit codes, the API's manners. The clusters of these agents do not exist.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use support::{Agent, file_discovery, standfast, west_to_east};

/// Nothing listens on port 1.
const NOWHERE: &str = "127.0.0.1:1";

fn agent() -> Agent {
    let agent = Agent::prepare("");
    let discovery = file_discovery(agent.folder.path());
    agent.configure(&west_to_east(
        "payments",
        &discovery,
        NOWHERE,
        NOWHERE,
        "\"orders\"",
    ));
    agent
}

fn text(agent: &Agent) -> String {
    std::fs::read_to_string(agent.config()).unwrap()
}

fn request(agent: &Agent, head: &str, body: &str) -> String {
    let address = agent.url().replace("http://", "");
    let mut stream = TcpStream::connect(&address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let host = if head.contains("Host:") {
        String::new()
    } else {
        format!("Host: {address}\r\n")
    };
    write!(
        stream,
        "{head}\r\n{host}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn an_unknown_key_ends_with_2_and_names_the_key() {
    let agent = agent();
    std::fs::write(agent.config(), text(&agent) + "listn = \"x\"\n").unwrap();
    let config = agent.config().display().to_string();
    for arguments in [
        ["agent", "--config", &config].as_slice(),
        &["config", "check", &config],
    ] {
        let ended = standfast(arguments);
        assert_eq!(ended.code, 2, "{ended:?}");
        assert!(
            ended.stderr.contains("health.listn: unknown key"),
            "{ended:?}"
        );
        assert!(ended.stdout.is_empty(), "{ended:?}");
    }
    let json = standfast(&["config", "check", &config, "--output", "json"]);
    let checked: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(
        (
            checked["ok"].as_bool(),
            checked["problems"][0]["key"].as_str()
        ),
        (Some(false), Some("health.listn"))
    );
}

#[test]
fn a_port_in_use_is_a_clear_error() {
    let agent = agent();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let own = agent.url().replace("http://", "");
    std::fs::write(agent.config(), text(&agent).replace(&own, &address)).unwrap();
    let ended = standfast(&["agent", "--config", &agent.config().display().to_string()]);
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(
        ended
            .stderr
            .contains(&format!("cannot listen on {address}")),
        "{ended:?}"
    );
    assert!(ended.stderr.contains("another agent"), "{ended:?}");
}

#[test]
fn a_data_folder_belongs_to_one_agent() {
    let mut agent = agent();
    agent.spawn();
    let second = agent.folder.path().join("second.toml");
    let own = agent.url().replace("http://", "");
    std::fs::write(&second, text(&agent).replace(&own, "127.0.0.1:0")).unwrap();
    let ended = standfast(&["agent", "--config", &second.display().to_string()]);
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(
        ended.stderr.contains("is used by another agent"),
        "{ended:?}"
    );
}

#[test]
fn without_an_agent_commands_end_with_3() {
    let ended = standfast(&["status", "--agent", "http://127.0.0.1:1"]);
    assert_eq!(ended.code, 3, "{ended:?}");
    assert!(
        ended
            .stderr
            .contains("no answer from the agent at http://127.0.0.1:1/"),
        "{ended:?}"
    );
    let ended = standfast(&["failover", "--agent", "http://127.0.0.1:1"]);
    assert_eq!(ended.code, 2, "without a terminal and --yes: {ended:?}");
    assert!(ended.stderr.contains("--yes"), "{ended:?}");
}

#[test]
fn the_record_is_created_once() {
    let agent = agent();
    let wrong = agent.init_fleet("north");
    assert!(
        wrong.code == 2 && wrong.stderr.contains("it has: east, west"),
        "{wrong:?}"
    );
    assert_eq!(agent.init_fleet("west").code, 0);
    let again = agent.init_fleet("east");
    assert_eq!(again.code, 5, "{again:?}");
    assert!(
        again.stderr.contains("epoch 1, west is active"),
        "{again:?}"
    );
    let config = agent.config().display().to_string();
    let shown = standfast(&["fleet", "show", "--config", &config, "--output", "json"]);
    let shown: serde_json::Value = serde_json::from_str(&shown.stdout).unwrap();
    assert_eq!(shown["record"]["active"], "west");
}

#[test]
fn an_agent_without_clusters_or_record_starts_and_says_what_is_missing() {
    let mut agent = agent();
    agent.spawn();
    let status = agent.json(&["status"]);
    assert_eq!(status["links"][0]["link_state"], "STOPPED");
    let reason = status["links"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("standfast fleet init"), "{reason}");
    let answer = request(&agent, "GET /readyz HTTP/1.1", "");
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.contains("no fleet record"),
        "{answer}"
    );

    // Without a record nobody may flip.
    let refused = agent.cli(&["failover", "--yes"]);
    assert_eq!(refused.code, 5, "{refused:?}");
    assert!(
        refused.stderr.contains("has no record in discovery"),
        "{refused:?}"
    );

    // The record appears: the link is no longer held, although its clusters are away.
    assert_eq!(agent.init_fleet("west").code, 0);
    agent.until("the link runs", |agent| {
        agent.json(&["status"])["links"][0]["link_state"] != "STOPPED"
    });
    agent.until("west is unreachable", |agent| {
        agent.json(&["status"])["clusters"]
            .as_array()
            .unwrap()
            .iter()
            .all(|c| c["status"] == "UNREACHABLE")
    });
    // A dead target is refused, and the link goes on.
    let refused = agent.cli(&["failover", "--yes"]);
    assert_eq!(refused.code, 5, "{refused:?}");
    assert!(
        refused.stderr.contains("\"east\" does not answer"),
        "{refused:?}"
    );
    assert_ne!(agent.json(&["status"])["links"][0]["link_state"], "STOPPED");
    assert_eq!(agent.json(&["fleet", "show"])["record"]["epoch"], 1);

    let (code, time) = agent.terminate();
    assert_eq!(code, Some(0), "{}", agent.log());
    assert!(time < Duration::from_secs(10), "{time:?}\n{}", agent.log());
}

#[test]
fn web_pages_cannot_post_and_errors_are_json() {
    let mut agent = agent();
    agent.spawn();
    let form = "POST /v1/failover HTTP/1.1\r\nContent-Type: text/plain";
    let json = "POST /v1/failover HTTP/1.1\r\nContent-Type: application/json";
    for (head, body, expected) in [
        (form.to_owned(), "{}", "Content-Type: application/json"),
        (
            format!("{json}\r\nOrigin: http://evil.example"),
            "{}",
            "web pages are refused",
        ),
        (
            "GET /v1/status HTTP/1.1\r\nHost: evil.example".to_owned(),
            "",
            "not a name of this machine",
        ),
        (
            json.to_owned(),
            "{\"dry_runn\": true}",
            "unknown field `dry_runn`",
        ),
        (json.to_owned(), "{\"to\": \"../x\"}", "cluster name"),
        (
            "DELETE /v1/status HTTP/1.1".to_owned(),
            "",
            "does not take that method",
        ),
    ] {
        let answer = request(&agent, &head, body);
        assert!(answer.starts_with("HTTP/1.1 400"), "{head}: {answer}");
        assert!(
            answer.contains("\"error_code\":\"BAD_REQUEST\"") && answer.contains(expected),
            "{head}: {answer}"
        );
    }
    let missing = request(&agent, "GET /v1/nothing HTTP/1.1", "");
    assert!(
        missing.starts_with("HTTP/1.1 404") && missing.contains("NOT_FOUND"),
        "{missing}"
    );
    let large = request(
        &agent,
        json,
        &format!("{{\"reason\": \"{}\"}}", "x".repeat(70_000)),
    );
    assert!(large.contains("BAD_REQUEST"), "{large}");

    let topic = agent.cli(&["mirror", "describe", "nothing"]);
    assert!(
        topic.code == 1
            && topic
                .stderr
                .contains("no link mirrors the topic \"nothing\""),
        "{topic:?}"
    );
    let link = agent.cli(&["mirror", "list", "--link", "nothing"]);
    assert!(
        link.code == 1 && link.stderr.contains("this agent has: west-to-east"),
        "{link:?}"
    );
    let metrics = request(&agent, "GET /metrics HTTP/1.1", "");
    assert!(
        metrics.contains("standfast_link_running{link=\"west-to-east\""),
        "{metrics}"
    );
    assert!(metrics.contains("standfast_fleet_epoch -1"), "{metrics}");
    assert_eq!(agent.cli(&["failover", "--yes"]).code, 5);
    let metrics = request(&agent, "GET /metrics HTTP/1.1", "");
    let counted = "standfast_operations_total{operation=\"failover\",outcome=\"REFUSED\"} 1";
    assert!(metrics.contains(counted), "{metrics}");
}

#[test]
fn a_certificate_that_ends_soon_is_a_metric_and_a_log_line() {
    use std::os::unix::fs::PermissionsExt;
    let mut agent = agent();
    let mut params = rcgen::CertificateParams::new(vec!["agent".to_owned()]).unwrap();
    params.not_after = (std::time::SystemTime::now() + Duration::from_secs(86_400)).into();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap().pem();
    let file = agent.folder.path().join("secrets.toml");
    let secret = format!(
        "['kafka/east']\nssl_certificate = \"\"\"\n{certificate}\"\"\"\nssl_key = \"\"\"\n{}\"\"\"\n",
        key.serialize_pem()
    );
    std::fs::write(&file, secret).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let east = "[clusters.east]\nsecret = \"kafka/east\"\n";
    let config = text(&agent).replace("[clusters.east]\n", east);
    let config = format!("{config}[secrets]\nbackend = \"file\"\npath = {file:?}\n");
    std::fs::write(agent.config(), config).unwrap();
    agent.spawn();
    let sample = "standfast_credentials_expire_in_seconds{secret=\"kafka/east\",part=\"client_certificate\"} ";
    agent.until("the certificate's end is a metric", |agent| {
        let metrics = request(agent, "GET /metrics HTTP/1.1", "");
        let value = metrics
            .split_once(sample)
            .and_then(|(_, rest)| rest.lines().next());
        value.is_some_and(|value| (86_000..=86_400).contains(&value.parse::<i64>().unwrap()))
    });
    agent.until("a warning", |agent| {
        let log = agent.log();
        log.contains("client certificate ends in 23 hours") && log.contains("kafka/east")
    });
    let told = agent.json(&["status"])["expiring_credentials"].clone();
    assert_eq!(told.as_array().unwrap().len(), 1, "{told}");
    assert_eq!(told[0]["secret"], "kafka/east");
    assert_eq!(
        (&told[0]["part"], &told[0]["expired"]),
        (&"client_certificate".into(), &false.into())
    );
    let shown = agent.cli(&["status"]);
    let line = "client certificate in secret kafka/east (CN=";
    assert!(
        shown.stderr.contains(line) && shown.stderr.contains(" ends at "),
        "{shown:?}"
    );
}

#[test]
fn data_goes_to_stdout_without_colours_when_piped() {
    let mut agent = agent();
    agent.spawn();
    let list = agent.cli(&["mirror", "list"]);
    assert!(
        list.stdout.contains("Max Per Partition Mirror Lag"),
        "{list:?}"
    );
    assert!(!list.stdout.contains('\u{1b}'), "{list:?}");
    assert!(list.stderr.is_empty(), "{list:?}");
    let completions = standfast(&["completions", "bash"]);
    assert!(
        completions.code == 0 && completions.stdout.contains("_standfast"),
        "{}",
        completions.stderr
    );
}

/// However many mirrors a command names, the agent is asked once.
#[test]
fn thousands_of_mirrors_are_one_call() {
    const MIRRORS: usize = 2_000;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let served = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut received = Vec::new();
        let mut chunk = [0; 65_536];
        // The names are in the body, the last of them at its end.
        while !String::from_utf8_lossy(&received).contains(&format!("topic-{:05}", MIRRORS - 1)) {
            let count = stream.read(&mut chunk).unwrap();
            assert!(count > 0, "the request ends early");
            received.extend_from_slice(&chunk[..count]);
        }
        let change = r#"{"link_name":"w-e","mirror_topic_name":"t","source_topic_name":"t","mirror_status":"PAUSED","mirror_lags":[]}"#;
        let text = format!(
            "{{\"dry_run\":false,\"data\":[{}]}}",
            vec![change; MIRRORS].join(",")
        );
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
            text.len()
        )
        .unwrap();
        drop(stream);
        listener.set_nonblocking(true).unwrap();
        listener
    });
    let names: Vec<String> = (0..MIRRORS).map(|n| format!("topic-{n:05}")).collect();
    let mut arguments = vec!["mirror", "pause", "--agent", &url];
    arguments.extend(names.iter().map(String::as_str));
    let ended = standfast(&arguments);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert_eq!(ended.stdout.lines().count(), MIRRORS + 1);
    let listener = served.join().unwrap();
    assert!(listener.accept().is_err(), "a second call was made");
}

/// What one configuration cannot show the agents tell one another.
#[test]
fn a_circle_over_two_agents_is_refused_at_the_later_one_until_it_is_open_again() {
    let shared = tempfile::tempdir().unwrap();
    let discovery = file_discovery(shared.path());
    let start = |name: &str, link: &str, from: &str, to: &str| {
        let mut agent = Agent::prepare("");
        let plain = west_to_east("payments", &discovery, NOWHERE, NOWHERE, "\"orders\"");
        let kept = plain.split("[[links]]").next().unwrap().to_owned();
        agent.configure(&format!(
            "{kept}[[links]]\nname = {link:?}\nsource = {from:?}\ndestination = {to:?}\ntopics = [\"orders\"]\nfollow_fleet = false\n"
        ));
        let named = text(&agent).replacen("name = \"test\"", &format!("name = {name:?}"), 1);
        std::fs::write(agent.config(), named).unwrap();
        agent.spawn();
        agent
    };
    let reason = |agent: &Agent| {
        let status = agent.json(&["status"]);
        status["links"][0]["reason"].as_str().map(str::to_owned)
    };
    let one = start("one", "there", "west", "east");
    one.until("it has announced itself", |_| {
        std::fs::read_to_string(shared.path().join("discovery/payments/agents.json"))
            .is_ok_and(|all| all.contains("\"there\""))
    });
    let two = start("two", "back", "east", "west");
    two.until("the circle is refused", |two| reason(two).is_some());
    let told = reason(&two).unwrap();
    for part in ["\"orders\"", "\"there (agent one)\"", "circle"] {
        assert!(told.contains(part), "{told}");
    }
    assert_eq!(reason(&one), None);
    let changed = one.cli(&["link", "update", "there", "topics=payments"]);
    assert_eq!(changed.code, 0, "{changed:?}");
    two.until("the circle is open", |two| reason(two).is_none());
}
