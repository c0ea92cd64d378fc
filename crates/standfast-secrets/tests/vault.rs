//! The Vault backend on a real Vault.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;
use standfast_secrets::{
    Credentials, Error, SecretPath, Secrets, SecretsHandle, SecretsOptions, VaultAuth,
    VaultFailure, VaultOptions,
};
use standfast_servers::Vault;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Long enough for a busy machine and the longest pause between two tries.
const SOON: Duration = Duration::from_secs(40);
const REFRESH: Duration = Duration::from_millis(300);

const READ_KAFKA: &str = r#"path "secret/data/kafka/*" { capabilities = ["read"] }"#;

const LEAST_POLICY: &str = r#"
path "secret/data/kafka/east" { capabilities = ["read"] }
path "auth/token/lookup-self" { capabilities = ["read"] }
path "auth/token/renew-self"  { capabilities = ["update"] }
"#;

/// A Vault with `kafka/east` and `kafka/west` in it, and a folder for token files.
struct Site {
    vault: Vault,
    folder: tempfile::TempDir,
}

impl Site {
    fn start() -> Self {
        let site = Self {
            vault: Vault::start().expect("Vault"),
            folder: tempfile::tempdir().expect("scratch folder"),
        };
        site.put("kafka/east", "one");
        site.put("kafka/west", "one");
        site
    }

    fn put(&self, secret: &str, password: &str) -> u64 {
        let fields = [("username", "app"), ("password", password)];
        self.vault.put_secret(secret, &fields).expect("put")
    }

    fn token(&self, rules: &str, ttl: &str) -> String {
        self.vault.create_token("kafka", rules, ttl).expect("token")
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let file = self.folder.path().join(name);
        let new = self.folder.path().join("new");
        std::fs::write(&new, format!("{content}\n")).expect("write");
        std::fs::rename(&new, &file).expect("rename");
        file
    }

    fn options(&self, auth: VaultAuth) -> VaultOptions {
        VaultOptions {
            refresh: REFRESH,
            request_timeout: Duration::from_secs(2),
            ..VaultOptions::new(self.vault.addr(), auth)
        }
    }

    fn secrets(&self, auth: VaultAuth) -> Secrets {
        Secrets::new(SecretsOptions::Vault(self.options(auth))).expect("options")
    }

    fn with_token(&self, rules: &str, ttl: &str) -> Secrets {
        let file = self.write("token", &self.token(rules, ttl));
        self.secrets(VaultAuth::token_file(file))
    }

    fn accessors(&self) -> usize {
        let listed = self
            .vault
            .api("LIST", "/v1/auth/token/accessors", None)
            .expect("accessors");
        listed["data"]["keys"].as_array().map_or(0, Vec::len)
    }
}

/// A running watch.
struct Running {
    handle: SecretsHandle,
    shutdown: CancellationToken,
    run: JoinHandle<()>,
}

impl Running {
    async fn start(secrets: &Secrets, paths: &[&str]) -> Self {
        let (watch, handle) = secrets.watch(paths.iter().map(|text| path(text)).collect());
        let shutdown = CancellationToken::new();
        let run = tokio::spawn(watch.run(shutdown.clone()));
        Self {
            handle,
            shutdown,
            run,
        }
    }

    fn password(&self, secret: &str) -> Option<String> {
        self.handle.get(&path(secret)).as_deref().and_then(password)
    }

    fn error_of(&self, secret: &str) -> Option<String> {
        self.handle
            .status()
            .secrets
            .get(&path(secret))?
            .last_error
            .clone()
    }

    async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let waited = async {
            while !condition(self) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(SOON, waited).await.is_err() {
            panic!("never: {what}; {:#?}", self.handle.status());
        }
    }

    async fn until_error(&self, text: &str) {
        self.until(text, |running| {
            running
                .handle
                .status()
                .last_error
                .is_some_and(|error| error.contains(text))
        })
        .await;
    }

    async fn stop(self) {
        self.shutdown.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(1), self.run).await;
        ended.expect("stops at once").expect("no panic");
    }
}

fn path(text: &str) -> SecretPath {
    SecretPath::new(text).expect("secret path")
}

fn password(credentials: &Credentials) -> Option<String> {
    Some(credentials.password.as_ref()?.expose().to_owned())
}

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
