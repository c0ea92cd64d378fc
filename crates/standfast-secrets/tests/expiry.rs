//! What ends is told ahead: in the status and, once, in the log.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DnType, KeyPair};
use standfast_secrets::{
    CredentialPart, ExpiryState, SecretPath, Secrets, SecretsHandle, SecretsOptions,
};
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

impl Captured {
    /// Lines at `level` that have all of `words`.
    fn count(&self, level: &str, words: &[&str]) -> usize {
        let text = String::from_utf8(self.0.lock().expect("lock").clone()).expect("UTF-8");
        let has =
            |line: &&str| line.contains(level) && words.iter().all(|word| line.contains(word));
        text.lines().filter(has).count()
    }
}

/// Replaces the file by one with a client certificate that ends `after`.
fn write(file: &Path, after: Duration) {
    let mut params = CertificateParams::new(Vec::new()).expect("params");
    params
        .distinguished_name
        .push(DnType::CommonName, "payments");
    params.not_after = (SystemTime::now() + after).into();
    let key = KeyPair::generate().expect("key");
    let certificate = params.self_signed(&key).expect("certificate").pem();
    let text = format!(
        "['kafka/east']\nssl_certificate = '''\n{certificate}'''\nssl_key = '''\n{}'''\n",
        key.serialize_pem()
    );
    let new = file.with_extension("new");
    std::fs::write(&new, text).expect("write");
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600)).expect("chmod");
    std::fs::rename(&new, file).expect("rename");
}

async fn until(handle: &mut SecretsHandle, part: CredentialPart, state: ExpiryState) {
    let waited = tokio::time::timeout(SOON, async {
        loop {
            let status = handle.status();
            if status
                .expiries()
                .any(|(_, end)| end.part == part && end.state == state)
            {
                return;
            }
            handle.status_changed().await.expect("runs");
        }
    });
    waited
        .await
        .unwrap_or_else(|_| panic!("{part} is never {state:?}: {:?}", handle.status()));
}

/// Alone in its file: it takes over the process's log.
#[tokio::test(flavor = "multi_thread")]
async fn ends_are_told_ahead_and_once() {
    let captured = Captured::default();
    let writer = captured.clone();
    tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .init();
    certificate_in_a_file(&captured).await;
}

async fn certificate_in_a_file(captured: &Captured) {
    use CredentialPart::ClientCertificate;
    let folder = tempfile::tempdir().expect("scratch folder");
    let file = folder.path().join("secrets.toml");
    write(&file, Duration::from_secs(90 * 24 * 3600));
    let options = format!(
        "backend = 'file'\npath = '{}'\nexpiry_warning = '60d'",
        file.display()
    );
    let options: SecretsOptions = toml::from_str(&options).expect("options");
    let path = SecretPath::new("kafka/east").expect("path");
    let (watch, mut handle) = Secrets::new(options).expect("options").watch(vec![path]);
    let shutdown = CancellationToken::new();
    let run = tokio::spawn(watch.run(shutdown.clone()));
    handle.fetched(SOON).await.expect("fetched");
    until(&mut handle, ClientCertificate, ExpiryState::Far).await;
    assert_eq!(captured.count("WARN", &["certificate"]), 0);

    // Ends while it is watched: nothing is read anew, the clock alone changes its state.
    write(&file, Duration::from_secs(8));
    until(&mut handle, ClientCertificate, ExpiryState::Near).await;
    assert_eq!(captured.count("ERROR", &[]), 0);
    until(&mut handle, ClientCertificate, ExpiryState::Expired).await;
    tokio::time::sleep(Duration::from_millis(1500)).await; // a further look of the watch
    let words = ["client certificate", "kafka/east", "CN=payments"];
    assert_eq!(captured.count("WARN", &words), 1);
    assert_eq!(captured.count("ERROR", &words), 1);
    assert!(handle.status().is_fresh(), "it is served all the same");

    write(&file, Duration::from_secs(90 * 24 * 3600));
    until(&mut handle, ClientCertificate, ExpiryState::Far).await;
    shutdown.cancel();
    run.await.expect("no panic");
}
