//! The file backend on real files.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use standfast_secrets::{Error, SecretPath, Secrets, SecretsHandle, SecretsOptions};
use tokio_util::sync::CancellationToken;

const SOON: Duration = Duration::from_secs(10);

fn path(text: &str) -> SecretPath {
    SecretPath::new(text).expect("secret path")
}

fn write(file: &Path, text: &str) {
    std::fs::write(file, text).expect("write");
    set_mode(file, 0o600);
}

fn set_mode(file: &Path, mode: u32) {
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(mode)).expect("chmod");
}

fn scratch(name: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("scratch folder");
    let file = folder.path().join(name);
    (folder, file)
}

fn secrets(file: &Path) -> Secrets {
    Secrets::new(SecretsOptions::file(file)).expect("options")
}

fn password(handle: &SecretsHandle, secret: &SecretPath) -> Option<String> {
    let found = handle.get(secret)?;
    Some(found.password.as_ref()?.expose().to_owned())
}

/// Waits until a condition on the handle holds.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let waited = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(SOON, waited)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test]
async fn toml_and_json_are_read() {
    for (name, text) in [
        (
            "s.toml",
            "['kafka/east']\nusername = 'app'\npassword = 'pw'\n['kafka/west']\n'ssl.ca.pem' = 'x'\n",
        ),
        (
            "s.json",
            r#"{"kafka/east": {"sasl.username": "app", "sasl.password": "pw"}, "kafka/west": {"ssl.ca.pem": "x"}}"#,
        ),
    ] {
        let (_folder, file) = scratch(name);
        write(&file, text);
        let secrets = secrets(&file);
        let found = secrets
            .read(&path("kafka/east"))
            .await
            .expect("credentials");
        assert_eq!(found.username.as_deref(), Some("app"));
        assert!(found.version > 1_700_000_000_000, "{}", found.version);
        let error = secrets
            .read(&path("kafka/west"))
            .await
            .expect_err("no PEM")
            .to_string();
        assert!(
            error.contains("`kafka/west`") && error.contains("`ssl.ca.pem`"),
            "{error}"
        );
        let error = secrets
            .read(&path("kafka/north"))
            .await
            .expect_err("absent")
            .to_string();
        assert!(
            error.contains("`kafka/north`") && error.contains(&file.display().to_string()),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_file_that_others_can_read_is_refused() {
    let (_folder, file) = scratch("s.toml");
    write(&file, "['kafka/east']\nusername = 'app'\npassword = 'pw'\n");
    let secrets = secrets(&file);
    for mode in [0o640, 0o604, 0o620, 0o610, 0o644] {
        set_mode(&file, mode);
        let error = secrets
            .read(&path("kafka/east"))
            .await
            .expect_err("must be refused");
        assert!(matches!(error, Error::FileMode { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains(&format!("`chmod 600 {}`", file.display())),
            "{text}"
        );
        assert!(text.contains(&format!("{mode:04o}")), "{text}");
    }
    for mode in [0o600, 0o400] {
        set_mode(&file, mode);
        assert!(secrets.read(&path("kafka/east")).await.is_ok(), "{mode:o}");
    }
}

#[tokio::test]
async fn a_broken_file_is_told_by_its_line_and_not_quoted() {
    for (name, text, place) in [
        (
            "s.toml",
            "['kafka/east']\nusername = 'app'\npassword = 'hunter2\n",
            "line 3",
        ),
        (
            "s.json",
            "{\"kafka/east\": {\n\"password\": \"hunter2\" x}}",
            "line 2",
        ),
        ("s.json", "[\"hunter2\"]", "line 1"),
        ("s.toml", "kafka = 'hunter2'\n", "is not a table"),
    ] {
        let (_folder, file) = scratch(name);
        write(&file, text);
        let secret = path(if text.starts_with("kafka") {
            "kafka"
        } else {
            "kafka/east"
        });
        let error = secrets(&file)
            .read(&secret)
            .await
            .expect_err("must be refused");
        let texts = format!("{error} {error:?}");
        assert!(texts.contains(place) && texts.contains(name), "{texts}");
        assert!(!texts.contains("hunter2"), "{texts}");
    }
    let error = Secrets::new(SecretsOptions::file("secrets.yaml"))
        .expect_err("format")
        .to_string();
    assert!(error.contains("`.toml` or `.json`"), "{error}");
}

#[tokio::test]
async fn changes_are_picked_up_within_a_second_and_faults_keep_what_is_known() {
    let (_folder, file) = scratch("s.toml");
    let (east, west) = (path("kafka/east"), path("kafka/west"));
    write(
        &file,
        "['kafka/east']\nusername = 'app'\npassword = 'one'\n",
    );
    let (watch, mut handle) = secrets(&file).watch(vec![east.clone()]);
    let shutdown = CancellationToken::new();
    let run = tokio::spawn(watch.run(shutdown.clone()));
    handle.fetched(SOON).await.expect("fetched");
    assert!(handle.status().is_fresh());

    // The very next write, within the same clock tick of some file systems, of the same length.
    let written = std::time::Instant::now();
    write(
        &file,
        "['kafka/east']\nusername = 'app'\npassword = 'two'\n",
    );
    tokio::time::timeout(SOON, handle.changed())
        .await
        .expect("in time")
        .expect("runs");
    assert_eq!(password(&handle, &east).as_deref(), Some("two"));
    assert!(
        written.elapsed() < Duration::from_secs(1),
        "{:?}",
        written.elapsed()
    );

    set_mode(&file, 0o644);
    until("refused mode in the status", || {
        handle.status().last_error.is_some()
    })
    .await;
    let status = handle.status();
    assert!(
        status
            .last_error
            .as_ref()
            .is_some_and(|error| error.contains("chmod 600")),
        "{status:?}"
    );
    assert!(
        status.failing_since.is_some() && status.secrets[&east].stale_since.is_some(),
        "{status:?}"
    );
    assert_eq!(password(&handle, &east).as_deref(), Some("two"));

    std::fs::remove_file(&file).expect("remove");
    until("absent file in the status", || {
        handle
            .status()
            .last_error
            .is_some_and(|error| error.contains("No such file"))
    })
    .await;
    assert_eq!(password(&handle, &east).as_deref(), Some("two"));

    write(
        &file,
        "['kafka/east']\nusername = 'app'\npassword = 'three'\n['kafka/west']\nusername = 'w'\npassword = 'x'\n",
    );
    until("recovery", || handle.status().is_fresh()).await;
    assert_eq!(password(&handle, &east).as_deref(), Some("three"));
    assert!(handle.get(&west).is_none());

    handle.set_paths(vec![west.clone()]);
    until("the new path", || handle.get(&west).is_some()).await;
    assert!(handle.get(&east).is_none());

    // Also long after a change, when the file is only looked at and not read.
    tokio::time::sleep(Duration::from_millis(2600)).await;
    let before = handle.status().secrets[&west].confirmed_at;
    until("confirmation without a change", || {
        handle.status().secrets[&west].confirmed_at > before
    })
    .await;
    write(&file, "['kafka/west']\nusername = 'w'\npassword = 'y'\n");
    until("late change", || {
        password(&handle, &west).as_deref() == Some("y")
    })
    .await;

    shutdown.cancel();
    tokio::time::timeout(SOON, run)
        .await
        .expect("in time")
        .expect("no panic");
    assert!(matches!(
        handle.changed().await,
        Ok(()) | Err(Error::WatchEnded)
    ));
    assert!(matches!(handle.changed().await, Err(Error::WatchEnded)));
    assert_eq!(password(&handle, &west).as_deref(), Some("y"));
}

#[tokio::test]
async fn no_backend_says_what_to_configure() {
    let secrets = Secrets::new(SecretsOptions::None).expect("options");
    let east = path("kafka/east");
    let error = secrets
        .read(&east)
        .await
        .expect_err("no backend")
        .to_string();
    assert!(
        error.contains("kafka/east") && error.contains("backend"),
        "{error}"
    );
    let (watch, mut handle) = secrets.watch(vec![east]);
    let shutdown = CancellationToken::new();
    let run = tokio::spawn(watch.run(shutdown.clone()));
    let error = handle
        .fetched(Duration::from_millis(300))
        .await
        .expect_err("no backend");
    assert!(
        error
            .to_string()
            .contains("no secrets backend is configured"),
        "{error}"
    );
    handle.set_paths(vec![]);
    handle.fetched(SOON).await.expect("nothing is wanted");
    shutdown.cancel();
    run.await.expect("no panic");
}
