//! Consul gone, Vault sealed, its token expired, nonsense in the record: the application works on with what it knows.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use standfast::discovery::{ConsulOptions, DiscoveryOptions};
use standfast::secrets::{SecretsOptions, VaultAuth, VaultOptions};
use standfast::{Fleet, FleetEvent};
use standfast_servers::{Consul, KafkaCluster, Vault};
use standfast_tests::agent::{Agent, AgentConfig};
use standfast_tests::application::Application;
use standfast_tests::pair::Pair;
use standfast_tests::wait;

const TOPIC: &str = "outages";
const PARTITIONS: i32 = 2;
const RECORD: &str = "standfast/payments/active";
const SOON: Duration = Duration::from_secs(60);
/// Time to live of the AppRole's tokens: one that cannot be renewed has expired after it.
const TOKEN_TTL: Duration = Duration::from_secs(3);
const READ_KAFKA: &str = r#"path "secret/data/kafka/*" { capabilities = ["read"] }"#;
/// Records in each direction that show that work goes on.
const SOME: usize = 500;

struct Site {
    pair: Pair,
    consul: Consul,
    vault: Vault,
    role_id: String,
    secret_id_file: PathBuf,
}

impl Site {
    fn start() -> Self {
        let cluster = |name: &str| KafkaCluster::builder(name).sasl_plain("app", "right");
        let (pair, consul, vault) = std::thread::scope(|scope| {
            let pair = scope.spawn(|| Pair::start_with(cluster("west"), cluster("east")));
            let consul = scope.spawn(|| Consul::start().expect("Consul"));
            let vault = scope.spawn(|| Vault::start().expect("Vault"));
            (
                pair.join().expect("pair"),
                consul.join().expect("Consul"),
                vault.join().expect("Vault"),
            )
        });
        for name in ["kafka/west", "kafka/east"] {
            put_password(&vault, name, "right");
        }
        let ttl = format!("{}s", TOKEN_TTL.as_secs());
        let (role_id, secret_id) = vault
            .create_app_role("kafka", READ_KAFKA, &ttl)
            .expect("AppRole");
        let secret_id_file = pair.folder().join("secret-id");
        std::fs::write(&secret_id_file, secret_id).expect("secret id");
        pair.west
            .create_topic(TOPIC, PARTITIONS, &[])
            .expect("topic");
        Self {
            pair,
            consul,
            vault,
            role_id,
            secret_id_file,
        }
    }

    fn agent(&self) -> Agent {
        let mut config = AgentConfig::of(&self.pair, &[TOPIC]);
        config.discovery = format!(
            "backend = \"consul\"\naddresses = [{:?}]\nrequest_timeout = \"1s\"",
            self.consul.addr()
        );
        config.secrets = format!(
            "backend = \"vault\"\naddress = {:?}\nrefresh = \"300ms\"\nrequest_timeout = \"2s\"\n\
             auth = {{ method = \"approle\", role_id = {:?}, secret_id_file = {:?} }}",
            self.vault.addr(),
            self.role_id,
            self.secret_id_file
        );
        let sasl = |cluster: &KafkaCluster| cluster.sasl_bootstrap().expect("SASL listener");
        config.bootstrap = [sasl(&self.pair.west), sasl(&self.pair.east)];
        let security = "security_protocol = \"SASL_PLAINTEXT\"\nsasl_mechanism = \"PLAIN\"";
        config.west_lines = format!("secret = \"kafka/west\"\n{security}");
        config.east_lines = format!("secret = \"kafka/east\"\n{security}");
        config.groups = vec!["billing".to_owned()];
        Agent::start(&self.pair, &config)
    }

    fn application(&self) -> Application {
        let consul = ConsulOptions {
            addresses: vec![self.consul.addr()],
            request_timeout: Duration::from_secs(1),
            ..ConsulOptions::default()
        };
        let auth = VaultAuth::approle(self.role_id.clone(), &self.secret_id_file);
        let vault = VaultOptions {
            refresh: Duration::from_millis(300),
            request_timeout: Duration::from_secs(2),
            ..VaultOptions::new(self.vault.addr(), auth)
        };
        let fleet = Fleet::builder("payments")
            .discovery(DiscoveryOptions::Consul(consul))
            .secrets(SecretsOptions::Vault(vault));
        Application::start(fleet, TOPIC)
    }

    /// The record as it is stored.
    fn record(&self) -> Value {
        let text = self.consul.kv_get(RECORD).expect("Consul");
        serde_json::from_str(&text.expect("a record")).expect("JSON")
    }

    fn put_record(&self, record: &Value) {
        self.consul
            .kv_put(RECORD, record.to_string().as_bytes())
            .expect("Consul");
    }

    /// Records on east; none while there is no mirror topic yet.
    fn east_end(&self) -> i64 {
        let ends = self.pair.east.log_end_offsets(TOPIC);
        ends.map_or(0, |ends| ends.iter().sum())
    }
}

fn put_password(vault: &Vault, secret: &str, password: &str) {
    let fields = [("username", "app"), ("password", password)];
    vault.put_secret(secret, &fields).expect("put");
}

#[test]
fn applications_outlive_consul_vault_and_nonsense() {
    let mut site = Site::start();
    let agent = site.agent();
    let mut application = site.application();
    application.wait_progress("the application works", SOME, SOON);
    wait_mirroring(&site, "with credentials from Vault");

    consul_is_killed(&mut site, &application);
    vault_is_sealed(&mut site, &application);
    the_record_is_nonsense(&site, &agent, &application);
    the_record_leads_elsewhere(&site, &agent, &application);

    // After all this, a flip is noticed.
    application.forget_events();
    let flipped = Instant::now();
    let report = agent.json(&["switchover", "--yes"]);
    assert_eq!(report["outcome"], "FLIPPED", "{report}");
    application.wait_event("a client on east", SOON, ready_on("east"));
    println!(
        "outages: ready on east {:?} after the command",
        flipped.elapsed()
    );
    application.wait_progress("the application works on east", SOME, SOON);
    let sent = application.finish_load();
    let ends = site.pair.east.log_end_offsets(TOPIC).expect("log ends");
    application.wait_consumed_to("east", &ends);
    let consumed: std::collections::BTreeSet<usize> = application
        .received()
        .iter()
        .map(|record| record.number)
        .collect();
    let lost: Vec<usize> = (0..sent.len())
        .filter(|number| !consumed.contains(number))
        .collect();
    assert!(lost.is_empty(), "never consumed: {lost:?}");
    assert!(
        !agent.log().contains("right\""),
        "a password is in the log:\n{}",
        agent.log()
    );
}

/// A filter for [`Application::wait_event`].
fn ready_on(cluster: &'static str) -> impl FnMut(&FleetEvent) -> Option<()> {
    move |event| match event {
        FleetEvent::ClientReady { cluster: on, .. } if on.as_str() == cluster => Some(()),
        _ => None,
    }
}

fn wait_mirroring(site: &Site, when: &str) {
    let before = site.east_end();
    wait::until_true(&format!("mirroring goes on {when}"), SOON, || {
        site.east_end() > before + SOME as i64
    });
}

fn consul_is_killed(site: &mut Site, application: &Application) {
    application.forget_events();
    site.consul.kill();
    application.wait_event("discovery lost", SOON, |event| {
        matches!(event, FleetEvent::DiscoveryLost { .. }).then_some(())
    });
    application.wait_progress("work goes on without Consul", SOME, SOON);
    wait_mirroring(site, "without Consul");
    site.consul.restart().expect("Consul comes back");
    application.wait_event("discovery back", SOON, |event| {
        matches!(event, FleetEvent::DiscoveryBack).then_some(())
    });
    let stats = application.fleet().snapshot();
    assert_eq!((stats.flips, stats.clients_rebuilt), (0, 0), "{stats:?}");
}

/// Sealed until the token has expired; meanwhile the brokers restart, so that every client must log in to them again.
fn vault_is_sealed(site: &mut Site, application: &Application) {
    site.vault.seal().expect("seal");
    let expired = Instant::now() + TOKEN_TTL + Duration::from_secs(1);
    while Instant::now() < expired {
        application.wait_progress("work goes on while Vault is sealed", SOME, SOON);
    }
    site.pair.west.kill();
    site.pair.west.restart().expect("west comes back");
    application.wait_progress("new logins with the known credentials", SOME, SOON);
    wait_mirroring(site, "with the known credentials");
    assert_eq!(application.fleet().snapshot().clients_rebuilt, 0);

    // Vault is back: what is new in it is noticed, by a login of its own, for the old token is gone.
    application.forget_events();
    site.vault.unseal().expect("unseal");
    for (password, version) in [("wrong", 2), ("right", 3)] {
        put_password(&site.vault, "kafka/west", password);
        application.wait_event("new credentials", SOON, |event| match event {
            FleetEvent::CredentialsApplied { version: found, .. } => {
                (*found == version).then_some(())
            }
            _ => None,
        });
    }
    application.wait_progress("work goes on with new credentials", SOME, SOON);
}

/// What is no record is refused and reported; the old record is kept.
fn the_record_is_nonsense(site: &Site, agent: &Agent, application: &Application) {
    let good = site.record();
    let edited = |field: &str, value: Value| {
        let mut record = good.clone();
        record["epoch"] = json!(good["epoch"].as_u64().expect("epoch") + 1);
        record[field] = value;
        record.to_string()
    };
    for (nonsense, named) in [
        ("{\"epoch\": 7, \"active\": ".to_owned(), "EOF"),
        (edited("active", json!("north")), "north"),
        (edited("active", json!("../east")), "../east"),
        (edited("epoch", json!(-1)), "-1"),
        (edited("state", json!("asleep")), "asleep"),
    ] {
        site.consul
            .kv_put(RECORD, nonsense.as_bytes())
            .expect("Consul");
        let told = wait::until("the application tells the nonsense", SOON, || {
            let view = application.fleet().view();
            match view.last_error {
                Some(error) if error.contains(named) && error.contains(RECORD) => Ok(error),
                other => Err(other),
            }
        });
        println!("outages: {told}");
        let shown = wait::until("the agent tells the nonsense", SOON, || {
            let shown = agent.json(&["fleet", "show"]);
            let error = shown["last_error"].as_str().unwrap_or_default().to_owned();
            if error.contains(named) {
                Ok(shown)
            } else {
                Err(shown)
            }
        });
        assert_eq!(
            (&shown["record"]["active"], &shown["record"]["epoch"]),
            (&"west".into(), &good["epoch"]),
            "{shown}"
        );
        application.wait_progress("work goes on", SOME, SOON);
    }
    wait_mirroring(site, "with nonsense in the record");
    site.put_record(&good);
    wait::until("the good record is read again", SOON, || {
        let shown = agent.json(&["fleet", "show"]);
        if shown["source"] == "LIVE" && application.fleet().view().last_error.is_none() {
            Ok(())
        } else {
            Err(shown)
        }
    });
    assert_eq!(application.fleet().snapshot().flips, 0);
}

/// The record says east, but with the id of another cluster: not one record gets to the brokers found there.
fn the_record_leads_elsewhere(site: &Site, agent: &Agent, application: &Application) {
    application.forget_events();
    let good = site.record();
    let epoch = good["epoch"].as_u64().expect("epoch");
    let mut wrong = good.clone();
    wrong["epoch"] = json!(epoch + 1);
    wrong["active"] = json!("east");
    wrong["clusters"]["east"]["cluster_id"] = json!("not-this-one");
    site.put_record(&wrong);
    let (expected, found) = application.wait_event("wrong cluster", SOON, |event| match event {
        FleetEvent::WrongCluster {
            expected, found, ..
        } => Some((expected.clone(), found.clone())),
        _ => None,
    });
    assert_eq!(
        (expected.as_str(), found.as_str()),
        ("not-this-one", site.pair.east.cluster_id())
    );
    wait::until("the agent holds its link", SOON, || {
        let status = agent.json(&["status"]);
        if status["links"][0]["reason"] == "east is the active cluster" {
            Ok(())
        } else {
            Err(status)
        }
    });

    // Corrected: west goes on being active, under a higher epoch. East has nothing but the mirror.
    let mut corrected = good;
    corrected["epoch"] = json!(epoch + 2);
    site.put_record(&corrected);
    application.wait_event("a client on west", SOON, ready_on("west"));
    application.wait_progress("the application works on west", SOME, SOON);
    wait_mirroring(site, "after the correction");
    let mirror = agent.mirror(TOPIC);
    assert_eq!(mirror["mirror_status"], "ACTIVE", "{mirror}");
}
