//! Consul gone, Vault sealed, its token expired, nonsense in the record: the application works on with what it knows.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use standfast::FleetEvent;
use standfast_tests::agent::Agent;
use standfast_tests::application::Application;
use standfast_tests::site::{RECORD, Site, TOKEN_TTL};
use standfast_tests::wait;

const TOPIC: &str = "outages";
const PARTITIONS: i32 = 2;
const SOON: Duration = Duration::from_secs(60);
/// Records in each direction that show that work goes on.
const SOME: usize = 500;

/// Records on east; none while there is no mirror topic yet.
fn east_end(site: &Site) -> i64 {
    let ends = site.pair.east.log_end_offsets(TOPIC);
    ends.map_or(0, |ends| ends.iter().sum())
}

#[test]
fn applications_outlive_consul_vault_and_nonsense() {
    let mut site = Site::start(TOPIC, PARTITIONS);
    let agent = Agent::start(&site.pair, &site.agent_config());
    let mut application = Application::start(site.fleet(), TOPIC);
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
    let before = east_end(site);
    wait::until_true(&format!("mirroring goes on {when}"), SOON, || {
        east_end(site) > before + SOME as i64
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
        site.put_password("kafka/west", password);
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
