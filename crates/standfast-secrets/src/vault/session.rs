//! One login to Vault and the reads that go through it.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;
use vaultrs::api::kv2::requests::ReadSecretRequest;

use super::login::{Login, Renewal};
use super::{DELETED, Vault};
use crate::watch::{Outcome, Round};
use crate::{Credentials, Error, LoginStatus, SecretPath, SecretString, VaultFailure};

/// First pause after Vault could not be used; doubles with every further failure.
const MIN_BACKOFF: Duration = Duration::from_millis(500);
/// Longest pause while Vault cannot be used.
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// Longest pause while Vault refuses the login: each try counts for its user lockout.
const MAX_LOGIN_BACKOFF: Duration = Duration::from_secs(30);
/// Shortest pause between two rounds.
const MIN_PAUSE: Duration = Duration::from_millis(50);

/// A login to Vault with one owner. Logs in when needed, renews in time, reads secrets.
#[derive(Debug)]
pub(crate) struct Session {
    vault: Vault,
    login: Option<Login>,
    /// What the present login, or the one that was refused, was made with.
    proof: Option<SecretString>,
    blocked: Option<Blocked>,
}

/// A pause after a failure. A changed token or secret id ends it early.
#[derive(Debug)]
struct Blocked {
    until: Instant,
    failures: u32,
}

impl Session {
    pub(super) fn new(vault: Vault) -> Self {
        Self {
            vault,
            login: None,
            proof: None,
            blocked: None,
        }
    }

    pub(crate) fn describe(&self) -> String {
        format!("Vault {}", self.vault.address())
    }

    /// Keeps the login alive and reads every secret once.
    pub(crate) async fn round(&mut self, paths: &BTreeSet<SecretPath>) -> Round {
        let outcome = match self.work(paths).await {
            Ok(outcome) => outcome,
            Err(error) => {
                self.block(&error);
                Outcome::Failed(error)
            }
        };
        Round {
            outcome,
            login: self.login_status(),
            pause: self.pause(),
        }
    }

    async fn work(&mut self, paths: &BTreeSet<SecretPath>) -> Result<Outcome, Error> {
        let changed = self.take_new_proof().await;
        let is_blocked = self
            .blocked
            .as_ref()
            .is_some_and(|blocked| blocked.until > Instant::now());
        if is_blocked && !changed {
            return Ok(Outcome::Unchanged);
        }
        self.keep_login().await?;
        let mut outcomes = Vec::with_capacity(paths.len());
        for path in paths {
            let outcome = match self.read_with_login(path).await {
                Err(error) if is_general(&error) => return Err(error),
                outcome => outcome,
            };
            outcomes.push((path.clone(), outcome));
        }
        self.blocked = None;
        Ok(Outcome::Read(outcomes))
    }

    /// Reads one secret over a login of its own.
    pub(crate) async fn read(mut self, path: &SecretPath) -> Result<Credentials, Error> {
        self.keep_login().await?;
        self.read_with_login(path).await
    }

    /// Notices a token or secret id that was replaced, or is there at last. True when there is a new one.
    async fn take_new_proof(&mut self) -> bool {
        // A file that cannot be read just now is reported when a login needs it; the present token goes on.
        let Ok(proof) = self.vault.proof().await else {
            return false;
        };
        if self.proof.as_ref() == Some(&proof) {
            return false;
        }
        if self.proof.replace(proof).is_some() && !self.vault.can_log_in() {
            tracing::info!(vault = self.vault.address(), "new Vault token found");
            self.login = None;
        }
        true
    }

    async fn keep_login(&mut self) -> Result<(), Error> {
        let can_log_in = self.vault.can_log_in();
        if can_log_in && self.login.as_ref().is_some_and(Login::is_over) {
            self.login = None;
        }
        let Some(login) = &mut self.login else {
            return self.log_in().await;
        };
        if !login.is_renewal_due() {
            return Ok(());
        }
        match self.vault.renew(login).await {
            Ok(Renewal::Extended) => {
                let expires_at = login.expires_at().map(tracing::field::display);
                tracing::debug!(
                    vault = self.vault.address(),
                    expires_at,
                    "Vault token renewed"
                );
                Ok(())
            }
            Ok(Renewal::Postponed) => Ok(()),
            Ok(Renewal::Exhausted) if can_log_in => self.log_in_anew().await,
            Ok(Renewal::Exhausted) => {
                self.warn_of_the_end();
                Ok(())
            }
            Err(error) if can_log_in => {
                tracing::info!(%error, "Vault token is gone, logging in anew");
                self.login = None;
                self.log_in().await
            }
            Err(error) => {
                login.stop_renewing();
                Err(error)
            }
        }
    }

    async fn log_in(&mut self) -> Result<(), Error> {
        let proof = self.vault.proof().await?;
        self.proof = Some(proof.clone());
        let login = self.vault.log_in(&proof).await?;
        let ends_for_good = !self.vault.can_log_in() && login.warning.is_some();
        self.login = Some(login);
        if ends_for_good {
            self.warn_of_the_end();
        }
        Ok(())
    }

    /// A new login while the old token still works: when it fails there is time left to try again.
    async fn log_in_anew(&mut self) -> Result<(), Error> {
        let Err(error) = self.log_in().await else {
            return Ok(());
        };
        if let Some(login) = &mut self.login {
            let warning = format!("the token nears its end and a new login fails: {error}");
            if login.warning.as_ref() != Some(&warning) {
                tracing::warn!(
                    expires_at = login.expires_at().map(tracing::field::display),
                    "{warning}"
                );
            }
            login.warning = Some(warning);
            login.postpone_renewal();
        }
        Ok(())
    }

    /// For a token that was handed to us and will end: nobody but an operator can replace it.
    fn warn_of_the_end(&mut self) {
        let advice = self.vault.advice();
        let Some(login) = &mut self.login else { return };
        login.stop_renewing();
        let expires_at = login.expires_at();
        let cause = login
            .warning
            .take()
            .unwrap_or_else(|| "the token cannot be renewed any further".to_owned());
        let end = expires_at.map_or_else(
            || "at an unknown time".to_owned(),
            |end| format!("at {end}"),
        );
        let warning = format!("{cause}; it ends {end}; {advice}");
        tracing::warn!(vault = self.vault.address(), "{warning}");
        login.warning = Some(warning);
    }

    async fn read_with_login(&mut self, path: &SecretPath) -> Result<Credentials, Error> {
        match self.read_once(path).await {
            Err(VaultFailure::Status { status: 403, .. }) => {}
            outcome => return self.finish_read(path, outcome),
        }
        let Some(login) = &mut self.login else {
            return self.finish_read(path, Err(self.denied(path)));
        };
        if !self.vault.is_gone(login).await {
            return self.finish_read(path, Err(self.denied(path)));
        }
        if !self.vault.can_log_in() {
            return self.finish_read(path, Err(self.vault.token_invalid()));
        }
        tracing::info!(
            vault = self.vault.address(),
            "Vault token is gone, logging in anew"
        );
        self.login = None;
        self.log_in().await?;
        let outcome = match self.read_once(path).await {
            Err(VaultFailure::Status { status: 403, .. }) => Err(self.denied(path)),
            outcome => outcome,
        };
        self.finish_read(path, outcome)
    }

    async fn read_once(&self, path: &SecretPath) -> Result<(Fields, u64), VaultFailure> {
        let token = self.login.as_ref().map(|login| &login.token);
        let request = ReadSecretRequest {
            mount: self.vault.options.mount.clone(),
            path: path.to_string(),
            version: None,
        };
        let answer = self.vault.http.call(token, request).await?;
        match answer.data {
            Some(read) => match read.data {
                serde_json::Value::Object(fields) => Ok((fields, read.metadata.version)),
                _ => Err(VaultFailure::Malformed(
                    "the secret has no fields".to_owned(),
                )),
            },
            None => Err(VaultFailure::Malformed("no data in it".to_owned())),
        }
    }

    fn finish_read(
        &self,
        path: &SecretPath,
        outcome: Result<(Fields, u64), VaultFailure>,
    ) -> Result<Credentials, Error> {
        let mount = &self.vault.options.mount;
        match outcome {
            Ok((fields, version)) => Credentials::from_fields(path, version, fields),
            Err(VaultFailure::Status {
                status: 404,
                reason,
            }) => Err(Error::NotFound {
                path: path.clone(),
                place: format!("Vault {}, mount `{mount}`", self.vault.address()),
                advice: not_found_advice(mount, path, &reason),
            }),
            Err(failure) => Err(self
                .vault
                .error(format!("read of {mount}/data/{path}"), failure)),
        }
    }

    fn denied(&self, path: &SecretPath) -> VaultFailure {
        VaultFailure::PermissionDenied {
            path: format!("{}/data/{path}", self.vault.options.mount),
            capability: "read",
        }
    }

    fn block(&mut self, error: &Error) {
        let failures = self.blocked.as_ref().map_or(0, |blocked| blocked.failures);
        let refused = matches!(
            error,
            Error::Vault {
                failure: VaultFailure::LoginRefused { .. },
                ..
            }
        );
        let longest = if refused {
            MAX_LOGIN_BACKOFF
        } else {
            MAX_BACKOFF
        };
        let pause = MIN_BACKOFF
            .saturating_mul(1 << failures.min(10))
            .min(longest);
        self.blocked = Some(Blocked {
            until: Instant::now() + pause.mul_f64(rand::random_range(0.75..1.0)),
            failures: failures.saturating_add(1),
        });
    }

    fn pause(&self) -> Duration {
        let now = Instant::now();
        let refresh = self
            .vault
            .options
            .refresh
            .mul_f64(rand::random_range(0.85..1.0));
        let left = |at: Instant| at.saturating_duration_since(now);
        let next_try = match (&self.blocked, &self.login) {
            (Some(blocked), _) => left(blocked.until),
            (None, Some(login)) => login.renew_at().map_or(refresh, left),
            (None, None) => refresh,
        };
        next_try.min(refresh).max(MIN_PAUSE)
    }

    fn login_status(&self) -> Option<LoginStatus> {
        let login = self.login.as_ref()?;
        Some(LoginStatus {
            method: self.vault.method().to_owned(),
            expires_at: login.expires_at(),
            warning: login.warning.clone(),
        })
    }
}

fn not_found_advice(mount: &str, path: &SecretPath, reason: &str) -> String {
    if reason == DELETED {
        format!(
            "{DELETED}; write a new one, or `vault kv undelete -mount={mount} -versions=N {path}`"
        )
    } else if reason.contains("no handler for route") {
        "no engine is mounted there; check `mount`".to_owned()
    } else {
        format!("write it with `vault kv put -mount={mount} {path} username=… password=…`")
    }
}

type Fields = serde_json::Map<String, serde_json::Value>;

/// Whether an error makes it pointless to try the other secrets now.
fn is_general(error: &Error) -> bool {
    match error {
        Error::Vault { failure, .. } => failure.is_general(),
        Error::NotFound { .. } | Error::Fields { .. } => false,
        _ => true,
    }
}
