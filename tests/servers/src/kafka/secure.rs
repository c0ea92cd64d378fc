//! A listener with TLS by Kafka itself, SASL on it, and the authorizer.

use std::path::Path;

use super::KafkaCluster;
use crate::{Error, Result};

const AUTHORIZER: &str = "org.apache.kafka.metadata.authorizer.StandardAuthorizer";
const SCRAM: &str = "SCRAM-SHA-512";

/// What the secure listener is to be like.
#[derive(Debug, Clone, Default)]
pub(super) struct Secure {
    /// Private key (PKCS #8) and certificate chain of the brokers, PEM.
    pub(super) identity: Option<String>,
    /// Authority of the client certificates that are demanded, PEM.
    pub(super) client_authority: Option<String>,
    pub(super) scram_users: Vec<(String, String)>,
    pub(super) oauth: bool,
    pub(super) authorizer: bool,
}

impl Secure {
    pub(super) fn has_listener(&self) -> bool {
        self.identity.is_some()
    }

    fn mechanisms(&self) -> Vec<&'static str> {
        let scram = (!self.scram_users.is_empty()).then_some(SCRAM);
        scram
            .into_iter()
            .chain(self.oauth.then_some("OAUTHBEARER"))
            .collect()
    }

    /// The value in `listener.security.protocol.map`.
    pub(super) fn protocol(&self) -> &'static str {
        if self.mechanisms().is_empty() {
            "SSL"
        } else {
            "SASL_SSL"
        }
    }

    /// Writes the PEM files into `folder`; gives the properties that name them.
    pub(super) fn prepare(&self, folder: &Path) -> Result<String> {
        let mut text = String::new();
        let write = |name: &str, pem: &str| {
            let path = folder.join(name);
            std::fs::write(&path, pem).map_err(Error::path("write", &path))?;
            Ok::<String, Error>(path.display().to_string())
        };
        if let Some(identity) = &self.identity {
            let path = write("identity.pem", identity)?;
            text.push_str(&format!(
                "listener.name.secure.ssl.keystore.type=PEM\nlistener.name.secure.ssl.keystore.location={path}\n"
            ));
        }
        if let Some(authority) = &self.client_authority {
            let path = write("client-authority.pem", authority)?;
            text.push_str(&format!(
                "listener.name.secure.ssl.client.auth=required\nlistener.name.secure.ssl.truststore.type=PEM\n\
                 listener.name.secure.ssl.truststore.location={path}\n"
            ));
        }
        let mechanisms = self.mechanisms();
        if !mechanisms.is_empty() {
            text.push_str(&format!(
                "listener.name.secure.sasl.enabled.mechanisms={}\n",
                mechanisms.join(",")
            ));
        }
        if !self.scram_users.is_empty() {
            text.push_str(
                "listener.name.secure.scram-sha-512.sasl.jaas.config=\
                 org.apache.kafka.common.security.scram.ScramLoginModule required;\n",
            );
        }
        if self.oauth {
            text.push_str(
                "listener.name.secure.oauthbearer.sasl.jaas.config=\
                 org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required;\n",
            );
        }
        if self.authorizer {
            // Brokers and the set-up of a test come over the plaintext listener, where everybody is ANONYMOUS.
            text.push_str(&format!(
                "authorizer.class.name={AUTHORIZER}\nsuper.users=User:ANONYMOUS\n"
            ));
        }
        Ok(text)
    }

    /// Formats the storage of a broker with the SCRAM users in it, as an administrator does before the first start.
    pub(super) fn format(&self, cluster: &KafkaCluster, properties: &Path) -> Result<()> {
        let config = properties.display().to_string();
        let mut args = vec![
            "format".to_owned(),
            "-t".to_owned(),
            cluster.cluster_id.clone(),
            "-c".to_owned(),
            config,
        ];
        for (user, password) in &self.scram_users {
            args.push("--add-scram".to_owned());
            args.push(format!("{SCRAM}=[name={user},password={password}]"));
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let output = cluster.tool("kafka.tools.StorageTool", &args)?;
        if output.status.success() {
            return Ok(());
        }
        Err(Error::Start {
            server: format!("Kafka {}", cluster.name()),
            detail: "its storage cannot be formatted".to_owned(),
            log: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}
