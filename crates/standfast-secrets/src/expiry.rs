//! When credentials end: certificates by their `notAfter`, a Vault token by its lease.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Serialize;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{Credentials, Pem, SecretPath, SecretsStatus};

/// How long before its end a certificate or token is warned about, unless the options say otherwise: 30 days.
pub const DEFAULT_EXPIRY_WARNING: Duration = Duration::from_secs(30 * 24 * 3600);

/// Ends that are kept of one secret, the nearest first. More are only in bundles of public authorities.
pub const MAX_EXPIRIES: usize = 16;

/// Certificates that are looked at in one field.
const MAX_CERTIFICATES: usize = 512;
/// Longest certificate that is looked at, in bytes; real ones have 1 to 4 kB.
const MAX_CERTIFICATE_LEN: usize = 64 * 1024;
/// Longest subject that is kept, in characters.
const MAX_SUBJECT_LEN: usize = 200;
/// [`LoginStatus::method`](crate::LoginStatus::method) of a token that somebody else made.
const TOKEN_METHOD: &str = "token";
/// After how long a warning that nobody has seen to is written again.
const REMIND: SignedDuration = SignedDuration::from_hours(24);

/// Which part of the credentials ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum CredentialPart {
    /// A certificate of the client's own chain (`ssl_certificate`). Behind its end the cluster lets nobody in.
    ClientCertificate,
    /// An authority's certificate (`ssl_ca`). Behind its end no broker is trusted whose certificate it has signed.
    Authority,
    /// The token that secrets are read with, where nobody renews it. Behind its end new versions are not noticed.
    VaultToken,
}

impl CredentialPart {
    /// As in metrics and JSON: `client_certificate`, `authority`, `vault_token`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClientCertificate => "client_certificate",
            Self::Authority => "authority",
            Self::VaultToken => "vault_token",
        }
    }

    fn advice(self) -> &'static str {
        match self {
            Self::ClientCertificate => {
                "put a new certificate and key into the secret, they are taken up without a restart"
            }
            Self::Authority => {
                "add the authority's new certificate to `ssl_ca`, or remove the old one if no broker needs it"
            }
            Self::VaultToken => "replace the token, see the warning of the login",
        }
    }
}

impl fmt::Display for CredentialPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ClientCertificate => "client certificate",
            Self::Authority => "certificate of an authority",
            Self::VaultToken => "Vault token",
        })
    }
}

/// How near an end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ExpiryState {
    /// Further away than the warning.
    #[default]
    Far,
    /// Within the time of the warning.
    Near,
    /// It is over.
    Expired,
}

/// A part of the credentials that ends at a known time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Expiry {
    /// What ends.
    pub part: CredentialPart,
    /// Subject of the certificate, for example `CN=payments`; for a token, Vault's address.
    pub subject: String,
    /// When.
    pub not_after: Timestamp,
    /// How near that is, as of the last look.
    pub state: ExpiryState,
}

impl Expiry {
    pub(crate) fn new(part: CredentialPart, subject: String, not_after: Timestamp) -> Self {
        Self {
            part,
            subject,
            not_after,
            state: ExpiryState::Far,
        }
    }

    /// Whole seconds from `now` to the end; negative behind it.
    pub fn seconds_left(&self, now: Timestamp) -> i64 {
        self.not_after.duration_since(now).as_secs()
    }
}

impl Credentials {
    /// The certificates among the credentials, the one that ends first in front, at most [`MAX_EXPIRIES`].
    ///
    /// Of several with the same subject in one field the one that lasts longest counts: a renewed authority may stand
    /// next to its old certificate. What is no certificate is left out: the login will say so.
    pub fn expiries(&self) -> Vec<Expiry> {
        let parts = [
            (CredentialPart::ClientCertificate, &self.ssl_certificate),
            (CredentialPart::Authority, &self.ssl_ca),
        ];
        let mut latest = BTreeMap::new();
        for (part, pem) in parts {
            for (subject, not_after) in pem.iter().flat_map(certificates) {
                let end = latest.entry((part, subject)).or_insert(not_after);
                *end = not_after.max(*end);
            }
        }
        let mut expiries: Vec<_> = latest
            .into_iter()
            .map(|((part, subject), not_after)| Expiry::new(part, subject, not_after))
            .collect();
        expiries.sort_by_key(|expiry| expiry.not_after);
        expiries.truncate(MAX_EXPIRIES);
        expiries
    }
}

/// Subject and end of each certificate.
fn certificates(pem: &Pem) -> Vec<(String, Timestamp)> {
    let ders = CertificateDer::pem_slice_iter(pem.expose().as_bytes());
    // A broken block ends the reading: nothing behind it would be used by a client either.
    ders.map_while(Result::ok)
        .take(MAX_CERTIFICATES)
        .filter_map(|der| certificate(&der))
        .collect()
}

fn certificate(der: &[u8]) -> Option<(String, Timestamp)> {
    if der.len() > MAX_CERTIFICATE_LEN {
        return None;
    }
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let not_after = Timestamp::from_second(certificate.validity().not_after.timestamp()).ok()?;
    let subject = certificate.subject().to_string();
    let printable = subject.chars().filter(|c| !c.is_control());
    Some((printable.take(MAX_SUBJECT_LEN).collect(), not_after))
}

impl SecretsStatus {
    /// All that ends, of every secret and (with `None`) of the login, in no particular order.
    pub fn expiries(&self) -> impl Iterator<Item = (Option<&SecretPath>, &Expiry)> {
        let of_secrets = self.secrets.iter();
        let of_secrets = of_secrets
            .flat_map(|(path, secret)| secret.expiries.iter().map(move |end| (Some(path), end)));
        of_secrets.chain(self.login_expiry.iter().map(|end| (None, end)))
    }
}

impl SecretsStatus {
    /// Only a token that was handed to us ends for good: who logs in gets a new one.
    fn note_login_expiry(&mut self) -> bool {
        let login = self.login.as_ref();
        let ends_at = login
            .filter(|login| login.method == TOKEN_METHOD && login.warning.is_some())
            .and_then(|login| login.expires_at);
        if ends_at == self.login_expiry.as_ref().map(|end| end.not_after) {
            return false;
        }
        let new = |at| Expiry::new(CredentialPart::VaultToken, self.backend.clone(), at);
        self.login_expiry = ends_at.map(new);
        true
    }
}

/// Decides how near each end is and writes the log lines, each once a day.
#[derive(Debug)]
pub(crate) struct ExpiryWatch {
    warning: Duration,
    told: BTreeMap<Told, (ExpiryState, Timestamp)>,
}

type Told = (Option<SecretPath>, CredentialPart, String, Timestamp);

impl ExpiryWatch {
    pub(crate) fn new(warning: Duration) -> Self {
        Self {
            warning,
            told: BTreeMap::new(),
        }
    }

    /// Brings every state up to date; true if one is not what it was.
    pub(crate) fn look(&mut self, status: &mut SecretsStatus, now: Timestamp) -> bool {
        let mut changed = status.note_login_expiry();
        let mut seen = BTreeMap::new();
        let of_secrets = status.secrets.iter_mut().flat_map(|(path, secret)| {
            let ends = secret.expiries.iter_mut();
            ends.map(move |end| (Some(path), end))
        });
        let of_login = status.login_expiry.iter_mut().map(|end| (None, end));
        for (path, end) in of_secrets.chain(of_login) {
            let state = self.state(end, now);
            changed |= std::mem::replace(&mut end.state, state) != state;
            if state == ExpiryState::Far {
                continue;
            }
            let key = (path.cloned(), end.part, end.subject.clone(), end.not_after);
            let due = |(told, at): &(ExpiryState, Timestamp)| {
                *told != state || now.duration_since(*at) >= REMIND
            };
            let told = match self.told.get(&key) {
                Some(told) if !due(told) => *told,
                _ => {
                    tell(path, end, now);
                    (state, now)
                }
            };
            seen.insert(key, told);
        }
        self.told = seen;
        changed
    }

    fn state(&self, end: &Expiry, now: Timestamp) -> ExpiryState {
        let left = end.not_after.duration_since(now);
        if left <= SignedDuration::ZERO {
            ExpiryState::Expired
        } else if left.unsigned_abs() <= self.warning {
            ExpiryState::Near
        } else {
            ExpiryState::Far
        }
    }
}

fn tell(path: Option<&SecretPath>, end: &Expiry, now: Timestamp) {
    let Expiry {
        part,
        subject,
        not_after,
        ..
    } = end;
    let path = path.map(tracing::field::display);
    let advice = part.advice();
    if end.state == ExpiryState::Expired {
        tracing::error!(path, subject, %not_after, "the {part} has ended; {advice}");
    } else {
        let hours = end.seconds_left(now) / 3600;
        let left = if hours < 48 {
            format!("{hours} hours")
        } else {
            format!("{} days", hours / 24)
        };
        tracing::warn!(path, subject, %not_after, "the {part} ends in {left}; {advice}");
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    const START: Timestamp = Timestamp::constant(1_800_000_000, 0);

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(START.as_second() + seconds).expect("time")
    }

    /// A self-signed certificate that ends `seconds` after `START`.
    pub(crate) fn pem(name: &str, seconds: i64) -> String {
        let mut params = CertificateParams::new(Vec::new()).expect("params");
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_after = std::time::UNIX_EPOCH.into();
        params.not_after += Duration::from_secs(at(seconds).as_second().unsigned_abs());
        let key = KeyPair::generate().expect("key");
        params.self_signed(&key).expect("certificate").pem()
    }

    pub(crate) fn credentials(certificate: &str, authorities: &str) -> Credentials {
        let path = SecretPath::new("kafka/east").expect("path");
        let key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        let fields = serde_json::json!({"ssl_certificate": certificate, "ssl_key": key, "ssl_ca": authorities});
        let serde_json::Value::Object(fields) = fields else {
            panic!("an object")
        };
        Credentials::from_fields(&path, 1, fields).expect("credentials")
    }

    fn found(credentials: &Credentials) -> Vec<(CredentialPart, String, i64)> {
        let ends = credentials.expiries().into_iter();
        ends.map(|end| (end.part, end.subject.clone(), end.seconds_left(START)))
            .collect()
    }

    #[test]
    fn every_certificate_counts_and_a_renewed_one_once() {
        use CredentialPart::{Authority, ClientCertificate};
        let chain = pem("payments", 500) + &pem("issuing", 900);
        let bundle = pem("root", 100) + "a comment\n" + &pem("root", 700) + &pem("other root", -5);
        assert_eq!(
            found(&credentials(&chain, &bundle)),
            [
                (Authority, "CN=other root".to_owned(), -5),
                (ClientCertificate, "CN=payments".to_owned(), 500),
                (Authority, "CN=root".to_owned(), 700),
                (ClientCertificate, "CN=issuing".to_owned(), 900),
            ]
        );
    }

    #[test]
    fn what_is_no_certificate_is_left_out_and_bundles_are_bounded() {
        let block = |body: &str| {
            format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
        };
        for junk in [
            block("AAAA"),
            block("MIIB////"),
            block("not base64!"),
            block(""),
        ] {
            assert_eq!(found(&credentials(&junk, &junk)), [], "{junk}");
        }
        let junk_in_front = block("AAAA") + &pem("a\u{7}b", 10);
        let ends = found(&credentials(&junk_in_front, &block("AAAA")));
        assert_eq!(ends.len(), 1);
        assert!(
            ends.iter()
                .all(|(_, subject, _)| !subject.contains('\u{7}')),
            "{ends:?}"
        );
        let bundle: String = (0..40).map(|n| pem(&format!("root {n}"), n)).collect();
        let ends = found(&credentials(&bundle, &bundle));
        assert_eq!(ends.len(), MAX_EXPIRIES);
        assert_eq!(
            ends.last().map(|(_, _, left)| *left),
            Some(7),
            "the nearest ones"
        );
    }

    #[test]
    fn states_change_at_their_times_and_lines_come_once_a_day() {
        let path = SecretPath::new("kafka/east").expect("path");
        let mut status = SecretsStatus::default();
        let ends = Expiry::new(CredentialPart::Authority, "CN=root".to_owned(), at(1000));
        status.secrets.entry(path).or_default().expiries = vec![ends];
        let mut watch = ExpiryWatch::new(Duration::from_secs(300));
        let mut look = |seconds| {
            let changed = watch.look(&mut status, at(seconds));
            let state = status.expiries().next().map(|(_, end)| end.state);
            let told = watch
                .told
                .values()
                .next()
                .map(|(_, told)| told.as_second() - START.as_second());
            (changed, state.expect("an end"), told)
        };
        assert_eq!(look(0), (false, ExpiryState::Far, None));
        assert_eq!(look(699), (false, ExpiryState::Far, None));
        assert_eq!(look(700), (true, ExpiryState::Near, Some(700)));
        assert_eq!(look(999), (false, ExpiryState::Near, Some(700)));
        assert_eq!(look(1000), (true, ExpiryState::Expired, Some(1000)));
        assert_eq!(look(80_000), (false, ExpiryState::Expired, Some(1000)));
        assert_eq!(look(90_000), (false, ExpiryState::Expired, Some(90_000)));
    }

    #[test]
    fn only_a_token_that_nobody_renews_ends() {
        let mut status = SecretsStatus {
            backend: "Vault http://v".to_owned(),
            ..SecretsStatus::default()
        };
        let mut watch = ExpiryWatch::new(Duration::from_secs(300));
        let login = |method: &str, warning: Option<&str>| crate::LoginStatus {
            method: method.to_owned(),
            expires_at: Some(at(200)),
            warning: warning.map(str::to_owned),
        };
        for (login, expected) in [
            (login("token", None), 0),
            (login("approle", Some("cannot log in")), 0),
            (login("token", Some("cannot be renewed")), 1),
        ] {
            status.login = Some(login);
            watch.look(&mut status, at(0));
            assert_eq!(status.expiries().count(), expected, "{:?}", status.login);
        }
        let (path, end) = status.expiries().next().expect("an end");
        assert_eq!((path, end.state), (None, ExpiryState::Near));
        assert!(!watch.look(&mut status, at(1)), "nothing has changed");
    }
}
