//! Logging in, renewing, and knowing when a token ends.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use vaultrs::api::AuthInfo;
use vaultrs::api::auth::approle::requests::LoginWithApproleRequest;
use vaultrs::api::auth::kubernetes::requests::LoginWithKubernetesRequest;
use vaultrs::api::token::requests::{LookupTokenSelfRequest, RenewTokenSelfRequest};

use super::Vault;
use crate::{Error, SecretString, VaultAuth, VaultFailure};

/// Vault counts in whole seconds: a renewed TTL that much shorter is still the whole one.
const TTL_ROUNDING: Duration = Duration::from_secs(1);
/// Shortest time between two renewals of one token.
const MIN_RENEW_PAUSE: Duration = Duration::from_millis(500);
/// Longest time between two tries of a renewal that failed because Vault was away.
const MAX_RENEW_RETRY: Duration = Duration::from_secs(30);

/// A token and what is known of its end.
#[derive(Debug)]
pub(super) struct Login {
    pub(super) token: SecretString,
    /// TTL that Vault gave at first; `None` for a token without end, or when Vault did not tell.
    granted: Option<Duration>,
    ends: Option<End>,
    renew_at: Option<Instant>,
    /// Whether `lookup-self` ever worked for it, so that a refusal later means that the token is gone.
    looked_up: bool,
    pub(super) warning: Option<String>,
}

#[derive(Debug, Clone, Copy)]
struct End {
    at: Instant,
    wall_clock: Timestamp,
}

/// What became of a renewal.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Renewal {
    /// The token lives on for its whole TTL.
    Extended,
    /// Vault no longer gives the whole TTL (the maximum is near), or cannot renew this token at all.
    Exhausted,
    /// Vault could not be reached; tried again before the token ends.
    Postponed,
}

impl Login {
    fn new(token: SecretString, ttl: Option<Duration>, renewable: bool, looked_up: bool) -> Self {
        let mut login = Self {
            token,
            granted: ttl,
            ends: None,
            renew_at: None,
            looked_up,
            warning: None,
        };
        if let Some(ttl) = ttl {
            login.lives_for(ttl);
            login.renew_at = Some(Instant::now() + half(ttl));
            if !renewable {
                login.warning = Some("the token cannot be renewed".to_owned());
            }
        }
        login
    }

    fn from_auth(auth: AuthInfo) -> Self {
        let ttl = (auth.lease_duration > 0).then(|| Duration::from_secs(auth.lease_duration));
        // Whether it is renewable does not matter: a refused renewal leads to a new login.
        Self::new(auth.client_token.into(), ttl, true, false)
    }

    fn lives_for(&mut self, ttl: Duration) {
        let wall_clock = Timestamp::now().checked_add(ttl).unwrap_or(Timestamp::MAX);
        self.ends = Some(End {
            at: Instant::now() + ttl,
            wall_clock,
        });
    }

    pub(super) fn expires_at(&self) -> Option<Timestamp> {
        self.ends.map(|end| end.wall_clock)
    }

    pub(super) fn is_over(&self) -> bool {
        self.ends.is_some_and(|end| end.at <= Instant::now())
    }

    pub(super) fn renew_at(&self) -> Option<Instant> {
        self.renew_at
    }

    pub(super) fn is_renewal_due(&self) -> bool {
        self.renew_at.is_some_and(|at| at <= Instant::now())
    }

    /// No renewal any more; the token serves until it ends.
    pub(super) fn stop_renewing(&mut self) {
        self.renew_at = None;
    }

    /// Another try when half of the time that is left has passed.
    pub(super) fn postpone_renewal(&mut self) {
        let now = Instant::now();
        let left = self
            .ends
            .map_or(MAX_RENEW_RETRY, |end| end.at.saturating_duration_since(now));
        let pause = half(left).clamp(MIN_RENEW_PAUSE, MAX_RENEW_RETRY);
        self.renew_at = Some(now + pause);
    }

    /// Takes over the TTL of a renewal. `Exhausted` when it stopped growing to the granted one.
    fn renewed(&mut self, ttl: Duration) -> Renewal {
        let granted = self.granted.unwrap_or(ttl);
        self.lives_for(ttl);
        self.renew_at = Some(Instant::now() + half(ttl).max(MIN_RENEW_PAUSE));
        let is_whole = ttl >= granted || (ttl + TTL_ROUNDING >= granted && ttl > granted / 2);
        if is_whole {
            Renewal::Extended
        } else {
            Renewal::Exhausted
        }
    }
}

/// Half of it, give or take a tenth, so that many clients that started together do not renew together.
fn half(ttl: Duration) -> Duration {
    ttl.mul_f64(0.5 * rand::random_range(0.9..1.1))
}

impl Vault {
    /// A login by `proof`: for the token method the token itself, else what is exchanged for one.
    pub(super) async fn log_in(&self, proof: &SecretString) -> Result<Login, Error> {
        let answer = match &self.options.auth {
            VaultAuth::Token { .. } => return self.adopt(proof).await,
            VaultAuth::AppRole { role_id, mount, .. } => {
                let request = LoginWithApproleRequest {
                    mount: mount.clone(),
                    role_id: role_id.clone(),
                    secret_id: proof.expose().to_owned(),
                };
                (mount, self.http.call(None, request).await)
            }
            VaultAuth::Kubernetes { role, mount, .. } => {
                let request = LoginWithKubernetesRequest {
                    mount: mount.clone(),
                    role: role.clone(),
                    jwt: proof.expose().to_owned(),
                };
                (mount, self.http.call(None, request).await)
            }
        };
        let (mount, answer) = answer;
        let action = || format!("login at auth/{mount}/login");
        let answer = answer.map_err(|failure| self.error(action(), self.refused_login(failure)))?;
        let auth = answer.auth.ok_or_else(|| {
            self.error(
                action(),
                VaultFailure::Malformed("no token in it".to_owned()),
            )
        })?;
        let login = Login::from_auth(auth);
        tracing::info!(
            vault = self.address(),
            method = self.method(),
            expires_at = login.expires_at().map(tracing::field::display),
            "logged in to Vault"
        );
        Ok(login)
    }

    fn refused_login(&self, failure: VaultFailure) -> VaultFailure {
        match failure {
            VaultFailure::Status {
                status: 400 | 403 | 404,
                reason,
            } => VaultFailure::LoginRefused {
                reason,
                advice: self.advice(),
            },
            other => other,
        }
    }

    /// Asks Vault how long a token lives that we were handed. One that may not look itself up is used all the same.
    async fn adopt(&self, token: &SecretString) -> Result<Login, Error> {
        let answer = self.http.call(Some(token), LookupTokenSelfRequest {}).await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(VaultFailure::Status {
                status: 403,
                reason,
            }) if !means_invalid(&reason) => {
                let mut login = Login::new(token.clone(), None, false, false);
                login.warning =
                    Some("the token may not look itself up, so its end is not known".to_owned());
                return Ok(login);
            }
            Err(VaultFailure::Status { status: 403, .. }) => {
                return Err(self.error("lookup of the token", self.token_invalid()));
            }
            Err(failure) => return Err(self.error("lookup of the token", failure)),
        };
        let data = answer.data.ok_or_else(|| {
            self.error(
                "lookup of the token",
                VaultFailure::Malformed("no data in it".to_owned()),
            )
        })?;
        let ttl = (data.ttl > 0).then(|| Duration::from_secs(data.ttl));
        Ok(Login::new(
            token.clone(),
            ttl,
            data.renewable.unwrap_or(false),
            true,
        ))
    }

    pub(super) fn token_invalid(&self) -> VaultFailure {
        VaultFailure::TokenInvalid {
            advice: self.advice(),
        }
    }

    /// Renews the token. An error means that the token is gone.
    pub(super) async fn renew(&self, login: &mut Login) -> Result<Renewal, Error> {
        let request = RenewTokenSelfRequest { increment: None };
        match self.http.call(Some(&login.token), request).await {
            Ok(answer) => {
                let ttl = answer.auth.map_or(0, |auth| auth.lease_duration);
                Ok(login.renewed(Duration::from_secs(ttl)))
            }
            Err(VaultFailure::Status {
                status: 403,
                reason,
            }) if login.looked_up || means_invalid(&reason) => {
                if self.is_gone(login).await {
                    return Err(self.error("renewal of the token", self.token_invalid()));
                }
                login.warning = Some(
                    "the token may not renew itself; its policy needs: path \"auth/token/renew-self\" { capabilities \
                     = [\"update\"] }"
                        .to_owned(),
                );
                Ok(Renewal::Exhausted)
            }
            Err(VaultFailure::Status {
                status: 400 | 403, ..
            }) => Ok(Renewal::Exhausted),
            Err(failure) => {
                tracing::debug!(vault = self.address(), %failure, "renewal of the token postponed");
                login.postpone_renewal();
                Ok(Renewal::Postponed)
            }
        }
    }

    /// Whether a 403 is due to the token itself and not to its policies. In doubt, no.
    pub(super) async fn is_gone(&self, login: &mut Login) -> bool {
        match self
            .http
            .call(Some(&login.token), LookupTokenSelfRequest {})
            .await
        {
            Ok(_) => {
                login.looked_up = true;
                false
            }
            Err(VaultFailure::Status {
                status: 403,
                reason,
            }) => login.looked_up || means_invalid(&reason),
            Err(_) => false,
        }
    }
}

/// Vault answers 403 both for an unknown token and for a policy that does not allow; the text tells them apart.
fn means_invalid(reason: &str) -> bool {
    reason.contains("invalid token") || reason.contains("bad token")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(ttl: u64) -> Login {
        Login::new("t".into(), Some(Duration::from_secs(ttl)), true, true)
    }

    #[test]
    fn renewal_is_due_at_half_of_the_ttl() {
        let mut login = login(100);
        let due = login.renew_at().expect("is renewed") - Instant::now();
        assert!((44..=55).contains(&due.as_secs()), "{due:?}");
        assert!(!login.is_renewal_due() && !login.is_over());
        login.renew_at = Some(Instant::now());
        assert!(login.is_renewal_due());
        login.lives_for(Duration::ZERO);
        assert!(login.is_over());
    }

    #[test]
    fn a_ttl_that_stops_growing_is_noticed() {
        for (granted, renewed, expected) in [
            (3600, 3600, Renewal::Extended),
            (3600, 3599, Renewal::Extended),
            (3600, 3000, Renewal::Exhausted),
            (4, 4, Renewal::Extended),
            (4, 2, Renewal::Exhausted),
            (2, 1, Renewal::Exhausted),
            (4, 0, Renewal::Exhausted),
        ] {
            assert_eq!(
                login(granted).renewed(Duration::from_secs(renewed)),
                expected,
                "{renewed} of {granted}"
            );
        }
    }

    #[test]
    fn a_token_without_end_is_left_alone() {
        let login = Login::new("t".into(), None, false, true);
        assert!(login.renew_at().is_none() && !login.is_over() && login.warning.is_none());
    }
}
