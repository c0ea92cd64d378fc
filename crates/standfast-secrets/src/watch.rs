//! The long-running watch: fetches credentials ahead, notices changes, keeps the last known ones for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::expiry::ExpiryWatch;
use crate::file::{self, SecretsFile, Stamp};
use crate::vault::Session;
use crate::{Credentials, Error, LoginStatus, SecretPath, SecretsStatus};

type Known = BTreeMap<SecretPath, Arc<Credentials>>;

/// Reads the secrets of a set of paths ahead and keeps them up to date. Made by [`Secrets::watch`](crate::Secrets::watch).
#[derive(Debug)]
pub struct SecretsWatch {
    source: Source,
    paths: watch::Receiver<BTreeSet<SecretPath>>,
    publisher: Publisher,
    expiry: Option<ExpiryWatch>,
}

/// What a [`SecretsWatch`] knows. Cheap to clone; every clone notices changes on its own.
#[derive(Debug, Clone)]
pub struct SecretsHandle {
    known: watch::Receiver<Known>,
    status: watch::Receiver<SecretsStatus>,
    paths: watch::Sender<BTreeSet<SecretPath>>,
}

impl SecretsWatch {
    pub(crate) fn new(
        source: Source,
        paths: Vec<SecretPath>,
        expiry_warning: Duration,
    ) -> (Self, SecretsHandle) {
        let (paths_sender, paths) = watch::channel(BTreeSet::from_iter(paths));
        let (known_sender, known) = watch::channel(Known::new());
        let (status_sender, status) = watch::channel(SecretsStatus {
            backend: source.describe(),
            ..SecretsStatus::default()
        });
        let publisher = Publisher {
            known: known_sender,
            status: status_sender,
        };
        let handle = SecretsHandle {
            known,
            status,
            paths: paths_sender,
        };
        publisher.keep_only(&handle.paths.borrow());
        (
            Self {
                source,
                paths,
                publisher,
                expiry: Some(ExpiryWatch::new(expiry_warning)),
            },
            handle,
        )
    }

    /// Writes no lines about what ends: for a copy of secrets that are watched at their source as well.
    #[must_use]
    pub fn without_expiry_warnings(mut self) -> Self {
        self.expiry = None;
        self
    }

    /// Runs until `shutdown`. A backend that is down, sealed or refuses is retried for ever; it never ends the run.
    pub async fn run(mut self, shutdown: CancellationToken) {
        loop {
            let paths = self.paths.borrow_and_update().clone();
            self.publisher.keep_only(&paths);
            let round = tokio::select! {
                () = shutdown.cancelled() => return,
                round = self.source.round(&paths) => round,
            };
            let pause = round.pause;
            self.publisher.apply(round);
            if let Some(expiry) = &mut self.expiry {
                self.publisher.look_at_ends(expiry);
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                changed = self.paths.changed() => if changed.is_err() {
                    // No handle is left that could set paths; those that only read go on being served.
                    tokio::select! {
                        () = shutdown.cancelled() => return,
                        () = tokio::time::sleep(pause) => {}
                    }
                }
            }
        }
    }
}

impl SecretsHandle {
    /// Last known credentials, also when they cannot be confirmed at the moment; `None` when never read.
    pub fn get(&self, path: &SecretPath) -> Option<Arc<Credentials>> {
        self.known.borrow().get(path).cloned()
    }

    /// Waits until credentials of any secret changed since this handle (or the one it was cloned from) last looked by
    /// `changed` or `fetched`. Cancel-safe.
    pub async fn changed(&mut self) -> Result<(), Error> {
        self.known.changed().await.map_err(|_| Error::WatchEnded)
    }

    /// Waits until credentials of every watched secret are known, `within` the given time. Changes up to then count
    /// as seen.
    pub async fn fetched(&mut self, within: Duration) -> Result<(), Error> {
        let paths = self.paths.borrow().clone();
        let all = |known: &Known| paths.iter().all(|path| known.contains_key(path));
        let waited = tokio::time::timeout(within, self.known.wait_for(all))
            .await
            .map(|found| found.is_ok());
        match waited {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::WatchEnded),
            Err(_) => Err(self.not_fetched(&paths, within)),
        }
    }

    fn not_fetched(&self, paths: &BTreeSet<SecretPath>, waited: Duration) -> Error {
        let known = self.known.borrow();
        let missing: Vec<_> = paths
            .iter()
            .filter(|path| !known.contains_key(path))
            .cloned()
            .collect();
        let status = self.status.borrow();
        let of_secret = missing
            .first()
            .and_then(|path| status.secrets.get(path)?.last_error.clone());
        let last_error = of_secret
            .or_else(|| status.last_error.clone())
            .unwrap_or_else(|| format!("{} has not answered yet", status.backend));
        Error::NotFetched {
            missing,
            waited,
            last_error,
        }
    }

    /// Present state: how fresh each secret is, since when and why not.
    pub fn status(&self) -> SecretsStatus {
        self.status.borrow().clone()
    }

    /// Waits until something went from good to bad or back, or an error text or version changed. Cancel-safe.
    pub async fn status_changed(&mut self) -> Result<(), Error> {
        self.status.changed().await.map_err(|_| Error::WatchEnded)
    }

    /// Replaces the set of watched secrets. New ones are read at once; those no longer named are forgotten.
    pub fn set_paths(&self, paths: Vec<SecretPath>) {
        let wanted = BTreeSet::from_iter(paths);
        self.paths.send_if_modified(|paths| {
            let differs = *paths != wanted;
            *paths = wanted;
            differs
        });
    }
}

/// Outcome of one look at the backend.
#[derive(Debug)]
pub(crate) struct Round {
    pub(crate) outcome: Outcome,
    pub(crate) login: Option<LoginStatus>,
    /// How long to wait until the next one.
    pub(crate) pause: Duration,
}

#[derive(Debug)]
pub(crate) enum Outcome {
    /// Looked, and nothing is different from the round before.
    Unchanged,
    /// Each secret was tried.
    Read(Vec<(SecretPath, Result<Credentials, Error>)>),
    /// The backend as a whole cannot be used.
    Failed(Error),
}

/// A backend, owned by the one watch that uses it.
#[derive(Debug)]
pub(crate) enum Source {
    None,
    File {
        file: SecretsFile,
        seen: Option<(Stamp, BTreeSet<SecretPath>)>,
    },
    Vault(Box<Session>),
}

impl Source {
    fn describe(&self) -> String {
        match self {
            Self::None => "none".to_owned(),
            Self::File { file, .. } => format!("file {}", file.path().display()),
            Self::Vault(session) => session.describe(),
        }
    }

    async fn round(&mut self, paths: &BTreeSet<SecretPath>) -> Round {
        match self {
            Self::None => {
                let refuse = |path: &SecretPath| {
                    (path.clone(), Err(Error::NoBackend { path: path.clone() }))
                };
                Round {
                    outcome: Outcome::Read(paths.iter().map(refuse).collect()),
                    login: None,
                    pause: Duration::MAX,
                }
            }
            Self::File { file, seen } => Round {
                outcome: file_round(file, seen, paths).await,
                login: None,
                pause: file::POLL,
            },
            Self::Vault(session) => session.round(paths).await,
        }
    }
}

async fn file_round(
    file: &SecretsFile,
    seen: &mut Option<(Stamp, BTreeSet<SecretPath>)>,
    paths: &BTreeSet<SecretPath>,
) -> Outcome {
    if let Some((stamp, read)) = seen
        && read == paths
        && stamp.is_settled()
        && file.stamp().await.as_ref() == Some(stamp)
    {
        return Outcome::Unchanged;
    }
    *seen = None;
    match file.load().await {
        Ok(content) => {
            *seen = Some((content.stamp(), paths.clone()));
            let read = |path: &SecretPath| (path.clone(), content.credentials(path));
            Outcome::Read(paths.iter().map(read).collect())
        }
        Err(error) => Outcome::Failed(error),
    }
}

/// Hands what was read to the handles, and logs what changed, once.
#[derive(Debug)]
struct Publisher {
    known: watch::Sender<Known>,
    status: watch::Sender<SecretsStatus>,
}

impl Publisher {
    fn keep_only(&self, paths: &BTreeSet<SecretPath>) {
        self.known.send_if_modified(|known| {
            let before = known.len();
            known.retain(|path, _| paths.contains(path));
            known.len() != before
        });
        self.status.send_if_modified(|status| {
            let before = status.secrets.len();
            status.secrets.retain(|path, _| paths.contains(path));
            let kept = status.secrets.len();
            for path in paths {
                status.secrets.entry(path.clone()).or_default();
            }
            kept != before || status.secrets.len() != kept
        });
    }

    fn apply(&self, round: Round) {
        let now = Timestamp::now();
        let mut fresh = Vec::new();
        self.status.send_if_modified(|status| {
            let mut changed = status.login != round.login;
            status.login = round.login;
            changed |= match round.outcome {
                Outcome::Unchanged => {
                    status.confirm_fresh(now);
                    false
                }
                Outcome::Failed(error) => status.fail(&error.to_string(), now),
                Outcome::Read(outcomes) => {
                    let mut changed = status.recover();
                    for (path, outcome) in outcomes {
                        changed |= match outcome {
                            Ok(credentials) => {
                                let changed = status.confirm(&path, credentials.version, now);
                                fresh.push((path, credentials));
                                changed
                            }
                            Err(error) => status.refuse(&path, error.to_string(), now),
                        };
                    }
                    changed
                }
            };
            changed
        });
        fresh.retain(|(path, credentials)| {
            let known = self.known.borrow();
            known.get(path).is_none_or(|old| **old != *credentials)
        });
        if fresh.is_empty() {
            return;
        }
        // The ends first: whoever is woken by the credentials finds them.
        self.status.send_if_modified(|status| {
            let mut changed = false;
            for (path, credentials) in &fresh {
                let ends = credentials.expiries();
                let secret = status.secrets.entry(path.clone()).or_default();
                changed |= secret.expiries != ends;
                secret.expiries = ends;
            }
            changed
        });
        self.known.send_modify(|known| {
            known.extend(fresh.into_iter().map(|(path, new)| (path, Arc::new(new))));
        });
    }

    /// Certificates end without anything being read.
    fn look_at_ends(&self, expiry: &mut ExpiryWatch) {
        let now = Timestamp::now();
        self.status
            .send_if_modified(|status| expiry.look(status, now));
    }
}

impl SecretsStatus {
    fn confirm_fresh(&mut self, now: Timestamp) {
        for secret in self.secrets.values_mut() {
            if secret.version.is_some() && secret.last_error.is_none() {
                secret.confirmed_at = Some(now);
            }
        }
    }

    fn confirm(&mut self, path: &SecretPath, version: u64, now: Timestamp) -> bool {
        let secret = self.secrets.entry(path.clone()).or_default();
        let recovered = secret.last_error.take().is_some();
        secret.stale_since = None;
        secret.confirmed_at = Some(now);
        let is_new = secret.version.replace(version) != Some(version);
        if is_new {
            tracing::info!(%path, version, "credentials read");
        } else if recovered {
            tracing::info!(%path, version, "credentials confirmed again");
        }
        is_new || recovered
    }

    fn refuse(&mut self, path: &SecretPath, error: String, now: Timestamp) -> bool {
        let secret = self.secrets.entry(path.clone()).or_default();
        secret.stale_since.get_or_insert(now);
        if secret.last_error.as_ref() == Some(&error) {
            return false;
        }
        let kept_version = secret.version;
        tracing::warn!(%path, %error, kept_version, "secret cannot be read, the last known credentials are kept");
        secret.last_error = Some(error);
        true
    }

    fn fail(&mut self, error: &str, now: Timestamp) -> bool {
        self.failing_since.get_or_insert(now);
        for secret in self.secrets.values_mut() {
            secret.stale_since.get_or_insert(now);
            if secret.last_error.as_deref() != Some(error) {
                secret.last_error = Some(error.to_owned());
            }
        }
        if self.last_error.as_deref() == Some(error) {
            return false;
        }
        let backend = &self.backend;
        tracing::warn!(%backend, %error, "secrets cannot be read, the last known credentials are kept");
        self.last_error = Some(error.to_owned());
        true
    }

    fn recover(&mut self) -> bool {
        let failing_since = self.failing_since.take();
        let Some(error) = self.last_error.take() else {
            return false;
        };
        for secret in self.secrets.values_mut() {
            if secret.last_error.as_ref() == Some(&error) {
                secret.last_error = None;
            }
        }
        let backend = &self.backend;
        tracing::info!(%backend, failing_since = failing_since.map(tracing::field::display), "secrets can be read again");
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expiry::tests::{credentials, pem};

    /// Whoever looked between the version and the ends would wait for the next change.
    #[test]
    fn who_waits_for_a_change_is_woken_by_new_ends() {
        let path = SecretPath::new("kafka/east").expect("path");
        let (watch, mut handle) =
            SecretsWatch::new(Source::None, vec![path.clone()], Duration::from_secs(60));
        for seconds in [100, 200] {
            // The version stays.
            let read = credentials(&pem("payments", seconds), "");
            watch.publisher.apply(Round {
                outcome: Outcome::Read(vec![(path.clone(), Ok(read))]),
                login: None,
                pause: Duration::ZERO,
            });
            assert!(handle.status.has_changed().expect("open"), "{seconds}");
            handle.status.mark_unchanged();
        }
    }
}
