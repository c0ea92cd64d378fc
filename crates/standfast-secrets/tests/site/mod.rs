//! A real Vault with secrets in it, and a running watch over it.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses a part of it"
)]

use std::path::PathBuf;
use std::time::Duration;

use standfast_secrets::{
    Credentials, SecretPath, Secrets, SecretsHandle, SecretsOptions, VaultAuth, VaultOptions,
};
use standfast_servers::Vault;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Long enough for a busy machine and the longest pause between two tries.
pub const SOON: Duration = Duration::from_secs(40);
pub const REFRESH: Duration = Duration::from_millis(300);

pub const READ_KAFKA: &str = r#"path "secret/data/kafka/*" { capabilities = ["read"] }"#;

/// A Vault with `kafka/east` and `kafka/west` in it, and a folder for token files.
pub struct Site {
    pub vault: Vault,
    pub folder: tempfile::TempDir,
}

impl Site {
    pub fn start() -> Self {
        let site = Self {
            vault: Vault::start().expect("Vault"),
            folder: tempfile::tempdir().expect("scratch folder"),
        };
        site.put("kafka/east", "one");
        site.put("kafka/west", "one");
        site
    }

    pub fn put(&self, secret: &str, password: &str) -> u64 {
        let fields = [("username", "app"), ("password", password)];
        self.vault.put_secret(secret, &fields).expect("put")
    }

    pub fn token(&self, rules: &str, ttl: &str) -> String {
        self.vault.create_token("kafka", rules, ttl).expect("token")
    }

    pub fn write(&self, name: &str, content: &str) -> PathBuf {
        let file = self.folder.path().join(name);
        let new = self.folder.path().join("new");
        std::fs::write(&new, format!("{content}\n")).expect("write");
        std::fs::rename(&new, &file).expect("rename");
        file
    }

    pub fn options(&self, auth: VaultAuth) -> VaultOptions {
        VaultOptions {
            refresh: REFRESH,
            request_timeout: Duration::from_secs(2),
            ..VaultOptions::new(self.vault.addr(), auth)
        }
    }

    pub fn secrets(&self, auth: VaultAuth) -> Secrets {
        Secrets::new(SecretsOptions::Vault(self.options(auth))).expect("options")
    }

    pub fn with_token(&self, rules: &str, ttl: &str) -> Secrets {
        let file = self.write("token", &self.token(rules, ttl));
        self.secrets(VaultAuth::token_file(file))
    }

    pub fn accessors(&self) -> usize {
        let listed = self
            .vault
            .api("LIST", "/v1/auth/token/accessors", None)
            .expect("accessors");
        listed["data"]["keys"].as_array().map_or(0, Vec::len)
    }
}

/// A running watch.
pub struct Running {
    pub handle: SecretsHandle,
    pub shutdown: CancellationToken,
    pub run: JoinHandle<()>,
}

impl Running {
    pub async fn start(secrets: &Secrets, paths: &[&str]) -> Self {
        let (watch, handle) = secrets.watch(paths.iter().map(|text| path(text)).collect());
        let shutdown = CancellationToken::new();
        let run = tokio::spawn(watch.run(shutdown.clone()));
        Self {
            handle,
            shutdown,
            run,
        }
    }

    pub fn password(&self, secret: &str) -> Option<String> {
        self.handle.get(&path(secret)).as_deref().and_then(password)
    }

    pub fn error_of(&self, secret: &str) -> Option<String> {
        self.handle
            .status()
            .secrets
            .get(&path(secret))?
            .last_error
            .clone()
    }

    pub async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let waited = async {
            while !condition(self) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(SOON, waited).await.is_err() {
            panic!("never: {what}; {:#?}", self.handle.status());
        }
    }

    pub async fn until_error(&self, text: &str) {
        self.until(text, |running| {
            running
                .handle
                .status()
                .last_error
                .is_some_and(|error| error.contains(text))
        })
        .await;
    }

    pub async fn stop(self) {
        self.shutdown.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(1), self.run).await;
        ended.expect("stops at once").expect("no panic");
    }
}

pub fn path(text: &str) -> SecretPath {
    SecretPath::new(text).expect("secret path")
}

pub fn password(credentials: &Credentials) -> Option<String> {
    Some(credentials.password.as_ref()?.expose().to_owned())
}
