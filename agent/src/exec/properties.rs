//! What a program is told about a cluster: environment variables, and a properties file.

use std::fmt::Write as _;

use anyhow::bail;
use standfast_secrets::{Pem, SecretString};
use zeroize::Zeroizing;

use super::settings::{Format, Render};
use super::sources::Target;

/// Names the rendered file to the program.
const FILE_VARIABLE: &str = "KAFKA_PROPERTIES_FILE";
const OAUTHBEARER: &str = "OAUTHBEARER";

/// A PEM file beside the properties file, for clients that take certificates only as files.
#[derive(Debug)]
pub(super) struct PemFile {
    /// Behind the properties file's name.
    pub(super) suffix: &'static str,
    pub(super) content: Pem,
}

/// The environment variables. Secrets are among them only if no file is rendered.
pub(super) fn variables(
    target: &Target,
    file: Option<&Render>,
) -> Vec<(&'static str, Zeroizing<String>)> {
    let text = |value: &str| Zeroizing::new(value.to_owned());
    let mut found = vec![
        ("STANDFAST_FLEET", text(target.fleet.as_str())),
        ("STANDFAST_CLUSTER", text(target.cluster.as_str())),
        ("STANDFAST_EPOCH", text(&target.epoch.to_string())),
        ("KAFKA_BOOTSTRAP_SERVERS", text(&target.entry.bootstrap)),
        (
            "KAFKA_SECURITY_PROTOCOL",
            text(target.entry.security_protocol.as_str()),
        ),
    ];
    if let Some(mechanism) = target.mechanism() {
        found.push(("KAFKA_SASL_MECHANISM", text(mechanism)));
    }
    let credentials = target.credentials.as_deref();
    if let Some(username) = credentials.and_then(|c| c.username.as_deref()) {
        found.push(("KAFKA_SASL_USERNAME", text(username)));
    }
    if let Some(file) = file {
        found.push((FILE_VARIABLE, text(&file.path.to_string_lossy())));
        return found;
    }
    let Some(credentials) = credentials else {
        return found;
    };
    let secret = |value: &Option<SecretString>| value.as_ref().map(|s| text(s.expose()));
    let pem = |value: &Option<Pem>| value.as_ref().map(|p| text(p.expose()));
    let secrets = [
        ("KAFKA_SASL_PASSWORD", secret(&credentials.password)),
        ("KAFKA_SSL_CA_PEM", pem(&credentials.ssl_ca)),
        (
            "KAFKA_SSL_CERTIFICATE_PEM",
            pem(&credentials.ssl_certificate),
        ),
        ("KAFKA_SSL_KEY_PEM", pem(&credentials.ssl_key)),
        (
            "KAFKA_SSL_KEY_PASSWORD",
            secret(&credentials.ssl_key_password),
        ),
    ];
    found.extend(
        secrets
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    found
}

/// The content of the properties file, and the files beside it.
///
/// # Errors
/// A value that the format cannot hold, or `--set` of a property that the fleet decides.
pub(super) fn render(
    target: &Target,
    file: &Render,
) -> anyhow::Result<(Zeroizing<String>, Vec<PemFile>)> {
    let mut lines = Lines::default();
    lines.put("bootstrap.servers", &target.entry.bootstrap);
    let protocol = target.entry.security_protocol.as_str();
    lines.put("security.protocol", protocol);
    let mut beside = Vec::new();
    match file.format {
        Format::Librdkafka => librdkafka(target, file, &mut lines, &mut beside),
        Format::Java => java(target, &mut lines)?,
    }
    for (name, value) in &file.set {
        if lines.0.iter().any(|(known, _)| known == name) {
            bail!("--set {name}: the fleet record and its secrets decide this property");
        }
        lines.put(name, value);
    }
    let mut text = Zeroizing::new(format!(
        "# written by standfast exec: fleet {}, cluster {}, epoch {}\n",
        target.fleet, target.cluster, target.epoch
    ));
    for (name, value) in &lines.0 {
        match file.format {
            Format::Librdkafka => line(&mut text, name, value)?,
            Format::Java => escaped(&mut text, name, value),
        }
    }
    Ok((text, beside))
}

#[derive(Default)]
struct Lines(Vec<(String, Zeroizing<String>)>);

impl Lines {
    fn put(&mut self, name: &str, value: &str) {
        self.0
            .push((name.to_owned(), Zeroizing::new(value.to_owned())));
    }

    fn put_some(&mut self, name: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.put(name, value);
        }
    }
}

/// Certificates go into files of their own: a line of this format cannot hold a line break.
fn librdkafka(target: &Target, file: &Render, lines: &mut Lines, beside: &mut Vec<PemFile>) {
    let Some(credentials) = target.credentials.as_deref() else {
        return;
    };
    let password = credentials.password.as_ref().map(SecretString::expose);
    let username = credentials.username.as_deref();
    match target.mechanism() {
        None => {}
        Some(OAUTHBEARER) => {
            lines.put("sasl.mechanism", OAUTHBEARER);
            lines.put("sasl.oauthbearer.method", "oidc");
            lines.put_some("sasl.oauthbearer.client.id", username);
            lines.put_some("sasl.oauthbearer.client.secret", password);
            let endpoint = credentials.oauth_token_endpoint.as_deref();
            lines.put_some("sasl.oauthbearer.token.endpoint.url", endpoint);
            lines.put_some("sasl.oauthbearer.scope", credentials.oauth_scope.as_deref());
        }
        Some(mechanism) => {
            lines.put("sasl.mechanism", mechanism);
            lines.put_some("sasl.username", username);
            lines.put_some("sasl.password", password);
        }
    }
    let pems = [
        ("ssl.ca.location", ".ca.pem", &credentials.ssl_ca),
        (
            "ssl.certificate.location",
            ".cert.pem",
            &credentials.ssl_certificate,
        ),
        ("ssl.key.location", ".key.pem", &credentials.ssl_key),
    ];
    for (name, suffix, pem) in pems {
        if let Some(content) = pem.clone() {
            lines.put(name, &format!("{}{suffix}", file.path.display()));
            beside.push(PemFile { suffix, content });
        }
    }
    let key_password = credentials.ssl_key_password.as_ref();
    lines.put_some("ssl.key.password", key_password.map(SecretString::expose));
}

fn java(target: &Target, lines: &mut Lines) -> anyhow::Result<()> {
    let Some(credentials) = target.credentials.as_deref() else {
        return Ok(());
    };
    if let Some(mechanism) = target.mechanism() {
        lines.put("sasl.mechanism", mechanism);
        let username = credentials.username.as_deref().unwrap_or_default();
        let password = credentials
            .password
            .as_ref()
            .map_or("", SecretString::expose);
        const PACKAGE: &str = "org.apache.kafka.common.security";
        let (module, options) = match mechanism {
            "PLAIN" => (
                "plain.PlainLoginModule",
                [("username", username), ("password", password)],
            ),
            OAUTHBEARER => (
                "oauthbearer.OAuthBearerLoginModule",
                [("clientId", username), ("clientSecret", password)],
            ),
            scram if scram.starts_with("SCRAM-") => (
                "scram.ScramLoginModule",
                [("username", username), ("password", password)],
            ),
            other => bail!("sasl.mechanism {other} cannot be written for the Java client"),
        };
        let mut jaas = Zeroizing::new(format!("{PACKAGE}.{module} required"));
        for (name, value) in options {
            let quoted = Zeroizing::new(value.replace('\\', "\\\\").replace('"', "\\\""));
            let _ = write!(jaas, " {name}=\"{}\"", *quoted);
        }
        if let (OAUTHBEARER, Some(scope)) = (mechanism, &credentials.oauth_scope) {
            let _ = write!(jaas, " scope=\"{}\"", scope.replace('"', "\\\""));
        }
        jaas.push(';');
        lines.put("sasl.jaas.config", &jaas);
        if mechanism == OAUTHBEARER {
            lines.put(
                "sasl.login.callback.handler.class",
                &format!("{PACKAGE}.oauthbearer.OAuthBearerLoginCallbackHandler"),
            );
            let endpoint = credentials.oauth_token_endpoint.as_deref();
            lines.put_some("sasl.oauthbearer.token.endpoint.url", endpoint);
        }
    }
    // PEM as values: KIP-651.
    if let Some(ca) = &credentials.ssl_ca {
        lines.put("ssl.truststore.type", "PEM");
        lines.put("ssl.truststore.certificates", ca.expose());
    }
    if let (Some(chain), Some(key)) = (&credentials.ssl_certificate, &credentials.ssl_key) {
        lines.put("ssl.keystore.type", "PEM");
        lines.put("ssl.keystore.certificate.chain", chain.expose());
        lines.put("ssl.keystore.key", key.expose());
        let password = credentials.ssl_key_password.as_ref();
        lines.put_some("ssl.key.password", password.map(SecretString::expose));
    }
    Ok(())
}

/// One line as librdkafka's programs read it: no escapes, blanks around the value are cut off.
fn line(text: &mut String, name: &str, value: &str) -> anyhow::Result<()> {
    if value.contains(['\n', '\r']) || value.trim() != value {
        bail!(
            "{name}: its value begins or ends with a blank or holds a line break, which a librdkafka file cannot express; \
             leave --render out and read it from the environment"
        );
    }
    let _ = writeln!(text, "{name}={value}");
    Ok(())
}

/// One line of `java.util.Properties`.
fn escaped(text: &mut String, name: &str, value: &str) {
    text.push_str(name);
    text.push('=');
    for (place, character) in value.chars().enumerate() {
        match character {
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            ' ' if place == 0 => text.push_str("\\ "),
            ' '..='~' => text.push(character),
            other => {
                let mut units = [0; 2];
                for unit in other.encode_utf16(&mut units) {
                    let _ = write!(text, "\\u{unit:04x}");
                }
            }
        }
    }
    text.push('\n');
}
