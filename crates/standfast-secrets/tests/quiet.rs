//! Nothing secret is ever shown: not by this crate, not by a crate below it, at any log level.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use standfast_secrets::{SecretPath, Secrets, SecretsOptions, VaultAuth, VaultOptions};
use standfast_servers::Vault;
use tokio_util::sync::CancellationToken;

const SOON: Duration = Duration::from_secs(30);

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("lock").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Alone in its file: it takes over the process's log.
#[tokio::test(flavor = "multi_thread")]
async fn logs_debug_and_errors_show_no_secret() {
    let captured = Captured::default();
    let writer = captured.clone();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_span_events(tracing_subscriber::fmt::format::FmtSpan::FULL)
        .with_writer(move || writer.clone())
        .init();

    let folder = tempfile::tempdir().expect("scratch folder");
    let vault = Vault::start().expect("Vault");
    let rules = r#"path "secret/data/kafka/*" { capabilities = ["read"] }"#;
    let fields = [
        ("username", "app"),
        ("password", "hunter2"),
        ("ssl_key_password", "hunter3"),
        ("note", "hunter4"),
    ];
    vault.put_secret("kafka/east", &fields).expect("put");
    let token = vault.create_token("kafka", rules, "2s").expect("token");
    let (role_id, secret_id) = vault.create_app_role("agent", rules, "2s").expect("role");
    let token_file = folder.path().join("token");
    let secret_id_file = folder.path().join("secret-id");
    std::fs::write(&token_file, &token).expect("write");
    std::fs::write(&secret_id_file, &secret_id).expect("write");

    let mut shown = String::new();
    for auth in [
        VaultAuth::token_file(&token_file),
        VaultAuth::approle(&role_id, &secret_id_file),
    ] {
        let mut options = VaultOptions::new(vault.addr(), auth);
        options.refresh = Duration::from_millis(200);
        let options = SecretsOptions::Vault(options);
        let secrets = Secrets::new(options.clone()).expect("options");
        let paths = ["kafka/east", "kafka/none", "other"]
            .map(|text| SecretPath::new(text).expect("secret path"));
        for path in &paths {
            shown += &format!("{:?} ", secrets.read(path).await);
        }
        let (watch, mut handle) = secrets.watch(paths[..1].to_vec());
        shown += &format!("{options:?} {secrets:?} {watch:?} {handle:?} ");
        let shutdown = CancellationToken::new();
        let run = tokio::spawn(watch.run(shutdown.clone()));
        handle.fetched(SOON).await.expect("fetched");
        handle.set_paths(paths.to_vec());
        // At least one renewal.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        vault.seal().expect("seal");
        while handle.status().last_error.is_none() {
            tokio::time::timeout(SOON, handle.status_changed())
                .await
                .expect("in time")
                .expect("runs");
        }
        shown += &format!("{handle:?} {:?} ", handle.status());
        shown += &serde_json::to_string(&handle.status()).expect("JSON");
        vault.unseal().expect("unseal");
        shutdown.cancel();
        run.await.expect("no panic");
    }

    let logged = String::from_utf8(captured.0.lock().expect("lock").clone()).expect("UTF-8");
    assert!(
        logged.contains("credentials read") && logged.contains("Vault is sealed"),
        "the log was not captured"
    );
    assert!(
        !logged.contains(" ERROR "),
        "an ERROR line calls a person: {logged}"
    );
    for (text, place) in [(&logged, "log"), (&shown, "Debug")] {
        for secret in ["hunter2", "hunter3", "hunter4", &token, &secret_id, "hvs."] {
            let found = text.find(secret);
            let around = found.map(|at| text.get(at.saturating_sub(200)..at).unwrap_or_default());
            assert!(found.is_none(), "{place} shows a secret after: {around:?}");
        }
    }
}
