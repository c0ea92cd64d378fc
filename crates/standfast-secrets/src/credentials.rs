//! Credentials of one cluster, parsed from the fields of a secret.

use std::collections::BTreeMap;

use zeroize::Zeroizing;

use crate::secret::wipe;
use crate::{Error, Pem, SecretPath, SecretString};

/// Longest value of one field, in bytes: a certificate chain fits many times over.
const MAX_FIELD_LEN: usize = 256 * 1024;

/// What a client needs to be let in by one cluster. Which of it is used follows from the cluster's
/// `security_protocol`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// SASL user name.
    pub username: Option<String>,
    /// SASL password. Present if and only if `username` is.
    pub password: Option<SecretString>,
    /// SASL mechanism, upper case: `PLAIN`, `SCRAM-SHA-256`, `SCRAM-SHA-512`, `OAUTHBEARER`.
    pub sasl_mechanism: Option<String>,
    /// Where tokens for `OAUTHBEARER` are asked for, with `username` and `password` as client id and secret (RFC 6749, 4.4).
    pub oauth_token_endpoint: Option<String>,
    /// Scope asked for there.
    pub oauth_scope: Option<String>,
    /// Certificates of the authorities that sign the brokers' certificates.
    pub ssl_ca: Option<Pem>,
    /// Client certificate chain. Present if and only if `ssl_key` is.
    pub ssl_certificate: Option<Pem>,
    /// Client private key.
    pub ssl_key: Option<Pem>,
    /// Password of `ssl_key` when it is encrypted.
    pub ssl_key_password: Option<SecretString>,
    /// Version of the secret. Vault: the KV v2 version. File: modification time in milliseconds since 1970. Two
    /// versions may hold the same credentials, see [`Credentials::is_same_login`].
    pub version: u64,
}

impl Credentials {
    /// Whether `other` lets a client in by the same means, whatever its version: clients need no restart.
    pub fn is_same_login(&self, other: &Self) -> bool {
        self.username == other.username
            && self.password == other.password
            && self.sasl_mechanism == other.sasl_mechanism
            && self.oauth_token_endpoint == other.oauth_token_endpoint
            && self.oauth_scope == other.oauth_scope
            && self.ssl_ca == other.ssl_ca
            && self.ssl_certificate == other.ssl_certificate
            && self.ssl_key == other.ssl_key
            && self.ssl_key_password == other.ssl_key_password
    }

    /// Reads the fields of a secret. Names are taken as librdkafka and Java write them, in any case, with `_`, `.` or
    /// `-`: see the table in the crate's documentation. Unknown fields are left alone (named at debug level).
    pub(crate) fn from_fields(
        path: &SecretPath,
        version: u64,
        fields: serde_json::Map<String, serde_json::Value>,
    ) -> Result<Self, Error> {
        let fault = |reason: String| Error::Fields {
            path: path.clone(),
            reason,
        };
        let mut values = Values::collect(path, fields).map_err(fault)?;
        let credentials = Self {
            username: values.take(Field::Username),
            password: values.take(Field::Password).map(SecretString::from),
            sasl_mechanism: values
                .take(Field::Mechanism)
                .map(|name| name.trim().to_ascii_uppercase()),
            oauth_token_endpoint: values.take(Field::TokenEndpoint),
            oauth_scope: values.take(Field::Scope),
            ssl_ca: values.take_pem(Field::Ca, "CERTIFICATE").map_err(fault)?,
            ssl_certificate: values
                .take_pem(Field::Certificate, "CERTIFICATE")
                .map_err(fault)?,
            ssl_key: values.take_pem(Field::Key, "PRIVATE KEY").map_err(fault)?,
            ssl_key_password: values.take(Field::KeyPassword).map(SecretString::from),
            version,
        };
        credentials.check_complete().map_err(fault)?;
        Ok(credentials)
    }

    fn check_complete(&self) -> Result<(), String> {
        let pair = |one: bool, other: bool, names: (&str, &str)| match (one, other) {
            (true, false) => Err(format!("has `{}` but no `{}`", names.0, names.1)),
            (false, true) => Err(format!("has `{}` but no `{}`", names.1, names.0)),
            _ => Ok(()),
        };
        pair(
            self.username.is_some(),
            self.password.is_some(),
            ("username", "password"),
        )?;
        pair(
            self.ssl_certificate.is_some(),
            self.ssl_key.is_some(),
            ("ssl_certificate", "ssl_key"),
        )?;
        if self.username.is_none() && self.ssl_certificate.is_none() && self.ssl_ca.is_none() {
            return Err(format!(
                "no usable field; expected `username` and `password`, or `ssl_certificate` and `ssl_key`, or `ssl_ca` \
                 (all fields: {})",
                Field::ALL.map(|field| field.names()[0]).join(", ")
            ));
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Field {
    Username,
    Password,
    Mechanism,
    TokenEndpoint,
    Scope,
    Ca,
    Certificate,
    Key,
    KeyPassword,
}

impl Field {
    const ALL: [Self; 9] = [
        Self::Username,
        Self::Password,
        Self::Mechanism,
        Self::TokenEndpoint,
        Self::Scope,
        Self::Ca,
        Self::Certificate,
        Self::Key,
        Self::KeyPassword,
    ];

    /// Accepted names, lower case and with `_`. The first is the name used in texts.
    fn names(self) -> &'static [&'static str] {
        match self {
            Self::Username => &["username", "sasl_username", "sasl_oauthbearer_client_id"],
            Self::Password => &[
                "password",
                "sasl_password",
                "sasl_oauthbearer_client_secret",
            ],
            Self::TokenEndpoint => &[
                "oauth_token_endpoint",
                "sasl_oauthbearer_token_endpoint_url",
            ],
            Self::Scope => &["oauth_scope", "sasl_oauthbearer_scope"],
            Self::Mechanism => &["sasl_mechanism", "sasl_mechanisms"],
            Self::Ca => &["ssl_ca", "ssl_ca_pem", "ssl_truststore_certificates"],
            Self::Certificate => &[
                "ssl_certificate",
                "ssl_certificate_pem",
                "ssl_keystore_certificate_chain",
            ],
            Self::Key => &["ssl_key", "ssl_key_pem", "ssl_keystore_key"],
            Self::KeyPassword => &["ssl_key_password"],
        }
    }

    fn by_name(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase().replace(['.', '-'], "_");
        Self::ALL
            .into_iter()
            .find(|field| field.names().contains(&name.as_str()))
    }
}

/// Values of known fields, each under the name it was given by.
#[derive(Default)]
struct Values(BTreeMap<Field, (String, Zeroizing<String>)>);

impl Values {
    fn collect(
        path: &SecretPath,
        fields: serde_json::Map<String, serde_json::Value>,
    ) -> Result<Self, String> {
        let mut values = Self::default();
        let mut unknown = Vec::new();
        for (name, value) in fields {
            let Some(field) = Field::by_name(&name) else {
                unknown.push(name);
                wipe(value);
                continue;
            };
            let serde_json::Value::String(text) = value else {
                wipe(value);
                return Err(format!("field `{name}` is not a string"));
            };
            let text = Zeroizing::new(text);
            if text.len() > MAX_FIELD_LEN {
                return Err(format!(
                    "field `{name}` is longer than {MAX_FIELD_LEN} bytes"
                ));
            }
            if text.contains('\0') {
                return Err(format!("field `{name}` has a NUL byte"));
            }
            if text.trim().is_empty() {
                tracing::debug!(%path, field = %name, "field of secret is empty, taken as absent");
                continue;
            }
            match values.0.get(&field) {
                Some((other, known)) if *known != text => {
                    return Err(format!(
                        "fields `{other}` and `{name}` mean the same and have different values; remove one"
                    ));
                }
                Some(_) => {}
                None => {
                    values.0.insert(field, (name, text));
                }
            }
        }
        if !unknown.is_empty() {
            tracing::debug!(%path, fields = ?unknown, "unknown fields of secret left alone");
        }
        Ok(values)
    }

    fn take(&mut self, field: Field) -> Option<String> {
        self.0
            .remove(&field)
            .map(|(_, mut text)| std::mem::take(&mut *text))
    }

    fn take_pem(&mut self, field: Field, label: &str) -> Result<Option<Pem>, String> {
        let Some((name, mut text)) = self.0.remove(&field) else {
            return Ok(None);
        };
        Pem::parse(std::mem::take(&mut *text), label)
            .map(Some)
            .map_err(|reason| format!("field `{name}` {reason}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    const KEY: &str =
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nBBBB\n-----END ENCRYPTED PRIVATE KEY-----\n";

    fn parse(fields: serde_json::Value) -> Result<Credentials, String> {
        let serde_json::Value::Object(fields) = fields else {
            return Err("not an object".to_owned());
        };
        let path = SecretPath::new("kafka/east").expect("path");
        Credentials::from_fields(&path, 3, fields).map_err(|error| error.to_string())
    }

    #[test]
    fn every_spelling_is_read() {
        for (user, password, mechanism) in [
            ("username", "password", "sasl_mechanism"),
            ("sasl.username", "sasl.password", "sasl.mechanisms"),
            ("sasl_username", "SASL_PASSWORD", "sasl.mechanism"),
        ] {
            let found = parse(
                json!({user: "app", password: "pw", mechanism: "scram-sha-512", "note": "x"}),
            )
            .expect("credentials");
            assert_eq!(found.username.as_deref(), Some("app"));
            assert_eq!(
                found.password.as_ref().map(SecretString::expose),
                Some("pw")
            );
            assert_eq!(found.sasl_mechanism.as_deref(), Some("SCRAM-SHA-512"));
            assert_eq!(found.version, 3);
        }
        for (ca, certificate, key) in [
            ("ssl_ca", "ssl_certificate", "ssl_key"),
            ("ssl.ca.pem", "ssl.certificate.pem", "ssl.key.pem"),
            (
                "ssl.truststore.certificates",
                "ssl.keystore.certificate.chain",
                "ssl.keystore.key",
            ),
        ] {
            let found = parse(json!({ca: CERTIFICATE, certificate: CERTIFICATE, key: KEY, "ssl.key.password": "kp"}))
                .expect("credentials");
            assert_eq!(found.ssl_ca.as_ref().map(Pem::expose), Some(CERTIFICATE));
            assert_eq!(
                found.ssl_certificate.as_ref().map(Pem::expose),
                Some(CERTIFICATE)
            );
            assert_eq!(found.ssl_key.as_ref().map(Pem::expose), Some(KEY));
            assert_eq!(
                found.ssl_key_password.as_ref().map(SecretString::expose),
                Some("kp")
            );
        }
    }

    #[test]
    fn faults_name_path_and_field_and_no_value() {
        for (fields, expected) in [
            (
                json!({"note": "hunter2"}),
                "no usable field; expected `username` and `password`",
            ),
            (
                json!({"username": "app"}),
                "has `username` but no `password`",
            ),
            (
                json!({"password": "hunter2"}),
                "has `password` but no `username`",
            ),
            (
                json!({"username": "app", "password": ""}),
                "has `username` but no `password`",
            ),
            (
                json!({"username": "app", "password": ["hunter2"]}),
                "field `password` is not a string",
            ),
            (
                json!({"username": "a", "sasl.username": "hunter2", "password": "p"}),
                "mean the same",
            ),
            (
                json!({"ssl_certificate": "hunter2", "ssl_key": KEY}),
                "field `ssl_certificate` holds no PEM block",
            ),
            (
                json!({"ssl_certificate": CERTIFICATE, "ssl_key": CERTIFICATE}),
                "field `ssl_key` holds no PEM block",
            ),
            (
                json!({"ssl_certificate": CERTIFICATE}),
                "has `ssl_certificate` but no `ssl_key`",
            ),
        ] {
            let text = parse(fields).expect_err("must be refused");
            assert!(
                text.contains("`kafka/east`") && text.contains(expected),
                "{text}"
            );
            assert!(!text.contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn debug_hides_values() {
        let found = parse(json!({
            "username": "app", "password": "hunter2", "ssl_ca": CERTIFICATE, "ssl_certificate": CERTIFICATE,
            "ssl_key": KEY, "ssl_key_password": "hunter3"
        }))
        .expect("credentials");
        let text = format!("{found:?}");
        assert!(text.contains("password: Some(***)"), "{text}");
        for hidden in ["hunter2", "hunter3", "AAAA", "BBBB", "BEGIN"] {
            assert!(!text.contains(hidden), "{text}");
        }
    }

    #[test]
    fn same_login_ignores_the_version_only() {
        let one = parse(json!({"username": "app", "password": "a"})).expect("credentials");
        let mut two = Credentials {
            version: 9,
            ..one.clone()
        };
        assert!(one.is_same_login(&two));
        two.password = Some("b".into());
        assert!(!one.is_same_login(&two));
    }
}
