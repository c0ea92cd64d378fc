//! Secrets read from a real Vault: versions, outages, faults.

mod site;

use std::time::{Duration, Instant};

use site::{READ_KAFKA, REFRESH, Running, SOON, Site, password, path};
use standfast_secrets::{Error, Secrets, SecretsOptions, VaultAuth, VaultFailure, VaultOptions};

#[tokio::test(flavor = "multi_thread")]
async fn a_new_version_is_noticed_within_the_refresh() {
    let site = Site::start();
    let secrets = site.with_token(READ_KAFKA, "10m");
    let found = secrets.read(&path("kafka/east")).await.expect("read");
    assert_eq!(
        (
            found.username.as_deref(),
            password(&found).as_deref(),
            found.version
        ),
        (Some("app"), Some("one"), 1)
    );

    let mut running = Running::start(&secrets, &["kafka/east", "kafka/west"]).await;
    running.handle.fetched(SOON).await.expect("fetched");
    let status = running.handle.status();
    assert!(status.is_fresh(), "{status:?}");
    assert!(
        status
            .login
            .is_some_and(|login| login.expires_at.is_some() && login.warning.is_none())
    );

    let written = Instant::now();
    assert_eq!(site.put("kafka/east", "two"), 2);
    tokio::time::timeout(SOON, running.handle.changed())
        .await
        .expect("in time")
        .expect("runs");
    // The read itself takes time on a busy machine.
    let late = written.elapsed();
    assert!(late < REFRESH + Duration::from_secs(1), "{late:?}");
    assert_eq!(running.password("kafka/east").as_deref(), Some("two"));
    assert_eq!(
        running
            .handle
            .get(&path("kafka/east"))
            .map(|found| found.version),
        Some(2)
    );
    assert_eq!(running.password("kafka/west").as_deref(), Some("one"));

    site.put("kafka/north", "three");
    running
        .handle
        .set_paths(vec![path("kafka/east"), path("kafka/north")]);
    running
        .until("the new path", |running| {
            running.password("kafka/north").is_some()
        })
        .await;
    assert_eq!(running.password("kafka/west"), None);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sealed_frozen_killed_and_restarted() {
    let mut site = Site::start();
    let running = Running::start(
        &site.with_token(READ_KAFKA, "10m"),
        &["kafka/east", "kafka/west"],
    )
    .await;
    running
        .until("first credentials", |running| {
            running.handle.status().is_fresh()
        })
        .await;

    site.vault.seal().expect("seal");
    running.until_error("Vault is sealed").await;
    assert!(
        running
            .error_of("kafka/west")
            .is_some_and(|error| error.contains("unseal"))
    );
    assert_eq!(running.password("kafka/east").as_deref(), Some("one"));
    site.vault.unseal().expect("unseal");
    running
        .until("recovery from the seal", |running| {
            running.handle.status().is_fresh()
        })
        .await;

    site.vault.pause();
    running.until_error("no answer within").await;
    assert_eq!(running.password("kafka/east").as_deref(), Some("one"));
    site.vault.resume();
    running
        .until("recovery from the freeze", |running| {
            running.handle.status().is_fresh()
        })
        .await;

    site.vault.kill();
    running.until_error("Connection refused").await;
    assert_eq!(running.password("kafka/east").as_deref(), Some("one"));
    site.vault.restart().expect("restart");
    running.until_error("expired, revoked or unknown").await;
    assert_eq!(running.password("kafka/east").as_deref(), Some("one"));
    site.put("kafka/east", "two");
    site.put("kafka/west", "two");
    site.write("token", &site.token(READ_KAFKA, "10m"));
    running
        .until("recovery from the loss", |running| {
            running.handle.status().is_fresh()
        })
        .await;
    // The version went from 1 to 1, the content did not stay.
    assert_eq!(running.password("kafka/east").as_deref(), Some("two"));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_one_secret_name_it_and_leave_the_others_alone() {
    let site = Site::start();
    site.put("other/secret", "hunter2");
    site.vault
        .put_secret("kafka/empty", &[("note", "hunter2")])
        .expect("put");
    site.put("kafka/gone", "hunter2");
    site.vault
        .api("DELETE", "/v1/secret/data/kafka/gone", None)
        .expect("delete");
    let secrets = site.with_token(READ_KAFKA, "10m");
    let faults = [
        (
            "other/secret",
            "permission denied; the token's policy needs: path \"secret/data/other/secret\" { capabilities = [\"read\"] }",
        ),
        (
            "kafka/empty",
            "no usable field; expected `username` and `password`",
        ),
        ("kafka/gone", "its latest version is deleted"),
        ("kafka/nowhere", "vault kv put -mount=secret kafka/nowhere"),
    ];
    let paths: Vec<_> = faults
        .iter()
        .map(|(secret, _)| *secret)
        .chain(["kafka/east"])
        .collect();
    let running = Running::start(&secrets, &paths).await;
    running
        .until("the good one", |running| {
            running.password("kafka/east").is_some()
        })
        .await;
    for (secret, expected) in faults {
        let error = running.error_of(secret).expect("error");
        assert!(
            error.contains(secret) && error.contains(expected),
            "{error}"
        );
        assert!(!error.contains("hunter2"), "{error}");
        let single = secrets
            .read(&path(secret))
            .await
            .expect_err("fault")
            .to_string();
        assert_eq!(single, error);
    }
    assert_eq!(running.error_of("kafka/east"), None);
    assert_eq!(running.handle.status().last_error, None);

    // Deleted while it is in use: the last known one goes on.
    site.vault
        .api("DELETE", "/v1/secret/data/kafka/east", None)
        .expect("delete");
    running
        .until("the deletion", |running| {
            running.error_of("kafka/east").is_some()
        })
        .await;
    assert_eq!(running.password("kafka/east").as_deref(), Some("one"));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_settings_are_explained() {
    let site = Site::start();
    let east = path("kafka/east");
    let read = async |options: VaultOptions| {
        let secrets = Secrets::new(SecretsOptions::Vault(options)).expect("options");
        secrets.read(&east).await.expect_err("must fail")
    };
    let good = site.options(VaultAuth::token_file(
        site.write("token", &site.token(READ_KAFKA, "10m")),
    ));

    let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("port");
    let address = format!("http://{}", closed.local_addr().expect("address"));
    drop(closed);
    let error = read(VaultOptions {
        address: address.clone(),
        ..good.clone()
    })
    .await
    .to_string();
    assert!(
        error.contains(&address) && error.contains("Connection refused"),
        "{error}"
    );

    let error = read(VaultOptions {
        address: good.address.replace("http:", "https:"),
        ..good.clone()
    })
    .await;
    assert!(
        matches!(
            error,
            Error::Vault {
                failure: VaultFailure::Unreachable(_),
                ..
            }
        ),
        "{error}"
    );

    let root = VaultAuth::token_file(site.write("root", site.vault.root_token()));
    let error = read(VaultOptions {
        mount: "kv".to_owned(),
        auth: root,
        ..good.clone()
    })
    .await
    .to_string();
    assert!(
        error.contains("mount `kv`") && error.contains("check `mount`"),
        "{error}"
    );

    let unknown = VaultAuth::token_file(site.write("unknown", "hvs.unknown"));
    let error = read(VaultOptions {
        auth: unknown,
        ..good.clone()
    })
    .await;
    assert!(
        matches!(
            error,
            Error::Vault {
                failure: VaultFailure::TokenInvalid { .. },
                ..
            }
        ),
        "{error}"
    );

    for (content, expected) in [
        ("", "is empty"),
        ("two words", "more than one word"),
        ("a\u{e9}b", "no token has"),
    ] {
        let file = VaultAuth::token_file(site.write("odd", content));
        let error = read(VaultOptions {
            auth: file,
            ..good.clone()
        })
        .await
        .to_string();
        assert!(error.contains("odd") && error.contains(expected), "{error}");
    }
    let absent = VaultAuth::token_file(site.folder.path().join("absent"));
    let error = read(VaultOptions {
        auth: absent,
        ..good.clone()
    })
    .await
    .to_string();
    assert!(
        error.contains("Vault token file") && error.contains("absent"),
        "{error}"
    );
    let unset = VaultAuth::Token {
        token_file: None,
        env: Some("STANDFAST_TEST_UNSET".to_owned()),
    };
    let error = read(VaultOptions {
        auth: unset,
        ..good.clone()
    })
    .await
    .to_string();
    assert!(error.contains("STANDFAST_TEST_UNSET"), "{error}");

    let wrong_role = VaultAuth::approle("no-such-role", site.write("secret-id", "hunter2"));
    let error = read(VaultOptions {
        auth: wrong_role,
        ..good.clone()
    })
    .await
    .to_string();
    assert!(
        error.contains("login refused") && error.contains("role_id") && !error.contains("hunter2"),
        "{error}"
    );
}
