//! Logins to a real Vault: renewal, new login, expiry, revocation.

mod site;

use std::time::{Duration, Instant};

use serde_json::json;
use site::{READ_KAFKA, Running, Site, path};
use standfast_secrets::{CredentialPart, ExpiryState, VaultAuth};

const LEAST_POLICY: &str = r#"
path "secret/data/kafka/east" { capabilities = ["read"] }
path "auth/token/lookup-self" { capabilities = ["read"] }
path "auth/token/renew-self"  { capabilities = ["update"] }
"#;

#[tokio::test(flavor = "multi_thread")]
async fn approle_outlives_the_maximum_ttl_by_a_new_login() {
    let site = Site::start();
    let (role_id, secret_id) = site
        .vault
        .create_app_role("agent", READ_KAFKA, "4s")
        .expect("role");
    let limits = json!({"token_ttl": "4s", "token_max_ttl": "6s", "token_policies": ["agent"]});
    site.vault
        .api("POST", "/v1/auth/approle/role/agent", Some(&limits))
        .expect("max TTL");
    let file = site.write("secret-id", &secret_id);
    let running = Running::start(
        &site.secrets(VaultAuth::approle(role_id, file)),
        &["kafka/east"],
    )
    .await;
    running
        .until("first credentials", |running| {
            running.password("kafka/east").is_some()
        })
        .await;

    let started = Instant::now();
    let first_end = running
        .handle
        .status()
        .login
        .and_then(|login| login.expires_at)
        .expect("TTL");
    while started.elapsed() < Duration::from_secs(11) {
        let status = running.handle.status();
        assert!(
            status.is_fresh(),
            "after {:?}: {status:?}",
            started.elapsed()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let last_end = running
        .handle
        .status()
        .login
        .and_then(|login| login.expires_at)
        .expect("TTL");
    assert!(
        last_end > first_end + Duration::from_secs(6),
        "{first_end} {last_end}"
    );
    site.put("kafka/east", "two");
    running
        .until("a new version", |running| {
            running.password("kafka/east").as_deref() == Some("two")
        })
        .await;
    // Root, the token in use, the ones just given up: not one token per round.
    assert!(site.accessors() <= 5, "{} tokens", site.accessors());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn approle_logs_in_anew_when_its_token_is_revoked_and_when_vault_was_lost() {
    let mut site = Site::start();
    let (role_id, secret_id) = site
        .vault
        .create_app_role("agent", READ_KAFKA, "10m")
        .expect("role");
    let file = site.write("secret-id", &secret_id);
    let running = Running::start(
        &site.secrets(VaultAuth::approle(role_id.clone(), file)),
        &["kafka/east"],
    )
    .await;
    running
        .until("first credentials", |running| {
            running.password("kafka/east").is_some()
        })
        .await;

    let revoke = json!({});
    site.vault
        .api(
            "POST",
            "/v1/sys/leases/revoke-prefix/auth/approle",
            Some(&revoke),
        )
        .expect("revoke");
    site.put("kafka/east", "two");
    running
        .until("a new version", |running| {
            running.password("kafka/east").as_deref() == Some("two")
        })
        .await;
    assert!(running.handle.status().is_fresh());

    site.vault.kill();
    running.until_error("check that the server runs").await;
    site.vault.restart().expect("restart");
    running.until_error("login refused").await;
    let error = running.handle.status().last_error.expect("error");
    assert!(
        error.contains("auth/approle/login") && error.contains("secret-id"),
        "{error}"
    );
    assert!(!error.contains(&secret_id), "{error}");
    assert_eq!(running.password("kafka/east").as_deref(), Some("two"));

    site.put("kafka/east", "three");
    let (_, secret_id) = site
        .vault
        .create_app_role("agent", READ_KAFKA, "10m")
        .expect("role");
    let same_role = json!({ "role_id": role_id });
    site.vault
        .api(
            "POST",
            "/v1/auth/approle/role/agent/role-id",
            Some(&same_role),
        )
        .expect("role id");
    site.write("secret-id", &secret_id);
    running
        .until("recovery", |running| {
            running.password("kafka/east").as_deref() == Some("three")
        })
        .await;
    assert!(running.handle.status().is_fresh());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_keeps_the_values_and_a_new_one_in_the_file_recovers() {
    let site = Site::start();
    let body =
        json!({"policies": ["kafka"], "ttl": "4s", "explicit_max_ttl": "4s", "renewable": true});
    drop(site.token(READ_KAFKA, "1m"));
    let made = site
        .vault
        .api("POST", "/v1/auth/token/create", Some(&body))
        .expect("token");
    let token = made["auth"]["client_token"]
        .as_str()
        .expect("token")
        .to_owned();
    let file = site.write("token", &token);
    let running =
        Running::start(&site.secrets(VaultAuth::token_file(&file)), &["kafka/east"]).await;
    running
        .until("first credentials", |running| {
            running.password("kafka/east").is_some()
        })
        .await;

    running
        .until("a warning ahead", |running| {
            running
                .handle
                .status()
                .login
                .is_some_and(|login| login.warning.is_some())
        })
        .await;
    let status = running.handle.status();
    assert!(status.is_fresh(), "{status:?}");
    let ends = status.login_expiry.as_ref().expect("an end");
    assert_eq!(ends.part, CredentialPart::VaultToken);
    assert_ne!(ends.state, ExpiryState::Far, "{ends:?}");
    let warning = status
        .login
        .and_then(|login| login.warning)
        .expect("warning");
    assert!(
        warning.contains("ends at") && warning.contains(&file.display().to_string()),
        "{warning}"
    );

    running.until_error("expired, revoked or unknown").await;
    let status = running.handle.status();
    let error = status.last_error.clone().expect("error");
    assert!(
        error.contains(&site.vault.addr()) && error.contains(&file.display().to_string()),
        "{error}"
    );
    assert!(!error.contains(&token), "{error}");
    assert!(
        status.failing_since.is_some() && status.secrets[&path("kafka/east")].stale_since.is_some()
    );
    assert_eq!(running.password("kafka/east").as_deref(), Some("one"));

    site.put("kafka/east", "two");
    // Well into the longest pause between two tries: the new file has to end it.
    tokio::time::sleep(Duration::from_secs(8)).await;
    let ends = running.handle.status().login_expiry.expect("an end");
    assert_eq!(ends.state, ExpiryState::Expired, "{ends:?}");
    site.write("token", &site.token(READ_KAFKA, "1m"));
    let replaced = Instant::now();
    running
        .until("recovery", |running| {
            running.password("kafka/east").as_deref() == Some("two")
        })
        .await;
    assert!(
        replaced.elapsed() < Duration::from_secs(2),
        "{:?}",
        replaced.elapsed()
    );
    let status = running.handle.status();
    assert!(
        status.is_fresh() && status.failing_since.is_none(),
        "{status:?}"
    );
    assert_eq!(status.login_expiry, None, "the new one is renewed");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_renewed_beyond_its_ttl_and_a_revoked_one_reported() {
    let site = Site::start();
    // Exactly what the crate's documentation calls the least, without Vault's default policy.
    drop(site.token(LEAST_POLICY, "1m"));
    let body = json!({"policies": ["kafka"], "ttl": "3s", "no_default_policy": true});
    let made = site
        .vault
        .api("POST", "/v1/auth/token/create", Some(&body))
        .expect("token");
    let token = made["auth"]["client_token"]
        .as_str()
        .expect("token")
        .to_owned();
    let file = site.write("token", &token);
    let running = Running::start(&site.secrets(VaultAuth::token_file(file)), &["kafka/east"]).await;
    running
        .until("first credentials", |running| {
            running.password("kafka/east").is_some()
        })
        .await;
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(7) {
        assert!(
            running.handle.status().is_fresh(),
            "after {:?}",
            started.elapsed()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let revoke = json!({ "token": token });
    site.vault
        .api("POST", "/v1/auth/token/revoke", Some(&revoke))
        .expect("revoke");
    running.until_error("expired, revoked or unknown").await;
    assert_eq!(running.password("kafka/east").as_deref(), Some("one"));
    running.stop().await;
}
