//! librdkafka's configuration: the wrapper's defaults, what it keeps for itself, and how a cluster is reached.

use std::collections::BTreeMap;

use rdkafka::ClientConfig;
use standfast_discovery::SecurityProtocol;

use crate::error::{Error, Result};
use crate::target::Target;

/// Properties given by the application.
pub(crate) type Properties = BTreeMap<String, String>;

/// Where a client begins.
pub(crate) const BOOTSTRAP_SERVERS: &str = "bootstrap.servers";

/// Defaults of every client.
const COMMON: &[(&str, &str)] = &[
    // Fail fast and try again: a dead broker must not cost the default 30 s per attempt.
    ("socket.connection.setup.timeout.ms", "5000"),
    ("reconnect.backoff.max.ms", "1000"),
    // Nagle would add up to 40 ms to the first request on a new cluster.
    ("socket.nagle.disable", "true"),
    // A missing mirror topic must be seen, not made by accident with the wrong partition count.
    ("allow.auto.create.topics", "false"),
    // The final push would make the retirement of an old client wait for its cluster (KIP-714).
    ("enable.metrics.push", "false"),
];

const PRODUCER: &[(&str, &str)] = &[
    // Bounds what librdkafka works on at a time; the rest waits in the wrapper's own log.
    ("queue.buffering.max.kbytes", "65536"),
    // Java's partitioner, so that a key has the same partition whoever writes it, on every cluster.
    ("partitioner", "murmur2_random"),
];

/// What the wrapper sets on producers, whatever the application asked for.
const PRODUCER_FIXED: &[(&str, &str)] = &[
    // No duplicates within a cluster, and no reordering: a producer's sequence never goes down in a partition.
    ("enable.idempotence", "true"),
    // librdkafka never gives a record up: order would be lost when a later one gets through. The wrapper's log
    // decides, and a flip takes every record back.
    ("message.timeout.ms", "0"),
];

/// Of the producer of a transactional client. No `message.timeout.ms`: librdkafka bounds it by `transaction.timeout.ms`.
const TRANSACTIONAL_FIXED: &[(&str, &str)] = &[("enable.idempotence", "true")];

const CONSUMER: &[(&str, &str)] = &[
    // A commit on its way to a frozen cluster holds up the end of the old client for this long; the default is 60 s.
    ("socket.timeout.ms", "10000"),
    // The time until the group notices that this process died.
    ("session.timeout.ms", "10000"),
    ("heartbeat.interval.ms", "3000"),
    ("queued.max.messages.kbytes", "16384"),
    // librdkafka 2.12.1 still has KIP-848 faults that were fixed in 2.15 (#5488).
    ("group.protocol", "classic"),
];

const CONSUMER_FIXED: &[(&str, &str)] = &[
    // Only acknowledged records are committed, by the wrapper.
    ("enable.auto.offset.store", "false"),
    ("enable.auto.commit", "false"),
    // The wrapper looks offsets up itself; librdkafka must never jump silently.
    ("auto.offset.reset", "error"),
];

/// Of the consumer of a transactional client.
const TRANSACTIONAL_INPUT_FIXED: &[(&str, &str)] = &[
    ("enable.auto.offset.store", "false"),
    ("enable.auto.commit", "false"),
    ("auto.offset.reset", "error"),
    // Also decides that the group's offsets are waited for that a transaction is about to commit (KIP-447).
    ("isolation.level", "read_committed"),
    // Eager: a transaction ends with the assignment that it was read under.
    ("partition.assignment.strategy", "range,roundrobin"),
];

/// Of the client that looks at a standby's logs.
const STANDBY: &[(&str, &str)] = &[
    ("socket.timeout.ms", "10000"),
    // Only a few records are ever read, to compare them; a link between regions is not to be filled with more.
    ("queued.max.messages.kbytes", "1024"),
    ("fetch.message.max.bytes", "65536"),
    ("fetch.wait.max.ms", "100"),
];

const STANDBY_FIXED: &[(&str, &str)] = &[
    // The high watermark is asked for, not the last stable offset.
    ("isolation.level", "read_uncommitted"),
    ("enable.auto.offset.store", "false"),
    ("enable.auto.commit", "false"),
    ("auto.offset.reset", "error"),
];

/// How the group is called under which records of a standby are read; it is never joined and commits nothing.
const STANDBY_GROUP: &str = "standfast-standby";

/// Beginnings of the properties that say how to get through to a cluster, whatever for.
const CONNECTION: &[&str] = &[
    "ssl.",
    "enable.ssl",
    "sasl.",
    "enable.sasl",
    "socket.",
    "broker.address",
    "client.dns",
];

const FIXED: &[(&str, &str)] = &[
    // A cluster that wakes up may for a moment name no broker at all; librdkafka 2.10 and later forget those they knew, and with
    // `none` they never connect again. The bootstrap list is the cluster's own, so this leads to no other cluster (KIP-899).
    ("metadata.recovery.strategy", "rebootstrap"),
];

const BY_RECORD: &str = "the fleet record decides how a cluster is reached; change it there";
const BY_SECRETS: &str =
    "credentials come from the fleet's secrets, so that every cluster has its own";
const BY_ACK: &str = "offsets are committed after ack(); see commit_interval()";
const BY_CALLBACK: &str = "the wrapper serves librdkafka's events itself";

/// Properties that the application may not set, with the reason.
const REFUSED: &[(&str, &str)] = &[
    ("bootstrap.servers", BY_RECORD),
    ("metadata.broker.list", BY_RECORD),
    ("security.protocol", BY_RECORD),
    ("sasl.mechanism", BY_RECORD),
    ("sasl.mechanisms", BY_RECORD),
    ("sasl.username", BY_SECRETS),
    ("sasl.password", BY_SECRETS),
    ("ssl.ca.pem", BY_SECRETS),
    ("ssl.certificate.pem", BY_SECRETS),
    ("ssl.key.pem", BY_SECRETS),
    ("ssl.key.password", BY_SECRETS),
    ("ssl.certificate.location", BY_SECRETS),
    ("ssl.key.location", BY_SECRETS),
    ("ssl.keystore.location", BY_SECRETS),
    ("ssl.keystore.password", BY_SECRETS),
    (
        "metadata.recovery.strategy",
        "a client goes back to its own cluster's bootstrap list, and to no other cluster's; the fleet record decides",
    ),
    ("enable.auto.commit", BY_ACK),
    ("auto.commit.enable", BY_ACK),
    ("auto.commit.interval.ms", BY_ACK),
    ("enable.auto.offset.store", BY_ACK),
    ("auto.offset.reset", "choose with on_missing_offset()"),
    ("group.id", "give the group to Fleet::consumer()"),
    (
        "message.timeout.ms",
        "records wait for a live cluster; bound the wait with tokio::time::timeout around send()",
    ),
    (
        "delivery.timeout.ms",
        "records wait for a live cluster; bound the wait with tokio::time::timeout around send()",
    ),
    (
        "message.send.max.retries",
        "librdkafka must not give a record up, order would be lost",
    ),
    (
        "retries",
        "librdkafka must not give a record up, order would be lost",
    ),
    (
        "acks",
        "send() resolves when the active cluster has the record: always all in-sync replicas",
    ),
    (
        "request.required.acks",
        "send() resolves when the active cluster has the record: always all in-sync replicas",
    ),
    (
        "transactional.id",
        "give it to Fleet::transactional(); a FailoverProducer sends without transactions",
    ),
    (
        "delivery.report.only.error",
        "send() needs every delivery report",
    ),
    (
        "enable.partition.eof",
        "the wrapper serves librdkafka's events itself",
    ),
    (
        "enable.idempotence",
        "always on: consumers know a record that comes again by its number, which must never go down in a partition",
    ),
    ("log.queue", BY_CALLBACK),
    ("opaque", BY_CALLBACK),
    ("statistics.interval.ms", "use Fleet::snapshot()"),
    (
        "plugin.library.paths",
        "a plugin gets at every record and callback, and the wrapper could not answer for them any more",
    ),
    (
        "test.mock.num.brokers",
        "the client would talk to a cluster of its own making",
    ),
];

/// What a client is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Role {
    Producer,
    Consumer {
        group: String,
    },
    /// Produces in transactions.
    Transactional {
        id: String,
    },
    /// Reads what is transformed in transactions.
    TransactionalInput {
        group: String,
    },
    /// Asks for log ends.
    StandbyEnds,
    /// Reads single records.
    StandbyRecords,
}

/// A property that the application has set.
pub(crate) fn property<'a>(properties: &'a Properties, name: &str) -> Option<&'a str> {
    properties.get(name).map(String::as_str)
}

/// Refuses a property that the wrapper needs for itself.
pub(crate) fn check_property(name: &str) -> Result<()> {
    let normal = name.strip_prefix("topic.").unwrap_or(name);
    match REFUSED.iter().find(|(refused, _)| *refused == normal) {
        Some((_, reason)) => Err(Error::RefusedProperty {
            name: name.to_owned(),
            reason,
        }),
        None => Ok(()),
    }
}

/// Refuses what a transactional client decides for its consumer.
fn check_input(name: &str) -> Result<()> {
    let reason = match name {
        "isolation.level" => {
            "a transaction reads what is committed only, else it would transform what is aborted later"
        }
        "partition.assignment.strategy" => {
            "a transaction ends with the assignment that it was read under: the eager protocol"
        }
        _ => return Ok(()),
    };
    Err(Error::RefusedProperty {
        name: name.to_owned(),
        reason,
    })
}

/// Checks all properties of the application, their names and values by librdkafka itself.
pub(crate) fn check(role: &Role, properties: &Properties) -> Result<()> {
    properties
        .keys()
        .try_for_each(|name| check_property(name))?;
    if let Role::TransactionalInput { .. } = role {
        properties.keys().try_for_each(|name| check_input(name))?;
    }
    let mut config = base(role, properties);
    config.set("bootstrap.servers", "127.0.0.1:1");
    match config.create_native_config() {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::Configuration {
            reason: error.to_string(),
        }),
    }
}

/// The whole configuration of a client of `target`.
pub(crate) fn for_target(
    role: &Role,
    properties: &Properties,
    target: &Target,
) -> Result<ClientConfig> {
    let mut config = base(role, properties);
    config.set(BOOTSTRAP_SERVERS, &target.entry.bootstrap);
    config.set("security.protocol", target.entry.security_protocol.as_str());
    apply_security(&mut config, target)?;
    Ok(config)
}

fn base(role: &Role, properties: &Properties) -> ClientConfig {
    let (defaults, fixed) = match role {
        Role::Producer => (PRODUCER, PRODUCER_FIXED),
        Role::Consumer { .. } => (CONSUMER, CONSUMER_FIXED),
        Role::Transactional { .. } => (PRODUCER, TRANSACTIONAL_FIXED),
        Role::TransactionalInput { .. } => (CONSUMER, TRANSACTIONAL_INPUT_FIXED),
        Role::StandbyEnds | Role::StandbyRecords => (STANDBY, STANDBY_FIXED),
    };
    let mut config = ClientConfig::new();
    for (name, value) in COMMON.iter().chain(defaults) {
        config.set(*name, *value);
    }
    for (name, value) in properties {
        config.set(name, value);
    }
    for (name, value) in FIXED.iter().chain(fixed) {
        config.set(*name, *value);
    }
    match role {
        Role::Consumer { group } | Role::TransactionalInput { group } => {
            config.set("group.id", group);
        }
        Role::Transactional { id } => {
            config.set("transactional.id", id);
        }
        Role::StandbyRecords => {
            config.set("group.id", STANDBY_GROUP);
        }
        Role::Producer | Role::StandbyEnds => {}
    }
    config
}

/// Those of an application's properties that other clients to the fleet's clusters need too.
pub(crate) fn connection_only(properties: &Properties) -> Properties {
    let concerns = |name: &str| CONNECTION.iter().any(|start| name.starts_with(start));
    properties
        .iter()
        .filter(|(name, _)| concerns(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

fn apply_security(config: &mut ClientConfig, target: &Target) -> Result<()> {
    let protocol = target.entry.security_protocol;
    let uses_sasl = matches!(
        protocol,
        SecurityProtocol::SaslPlaintext | SecurityProtocol::SaslSsl
    );
    let uses_tls = matches!(protocol, SecurityProtocol::Ssl | SecurityProtocol::SaslSsl);
    let credentials = target.credentials.as_deref();
    if uses_sasl {
        let Some((username, password)) =
            credentials.and_then(|c| Some((c.username.as_ref()?, c.password.as_ref()?)))
        else {
            return Err(Error::Configuration {
                reason: format!(
                    "cluster {} uses {protocol} but its secret has no username and password; name one in the fleet \
                     record's \"secret\"",
                    target.cluster
                ),
            });
        };
        config.set("sasl.mechanism", target.sasl_mechanism());
        config.set("sasl.username", username);
        config.set("sasl.password", password.expose());
    }
    if let Some(credentials) = credentials.filter(|_| uses_tls) {
        let pem = [
            ("ssl.ca.pem", &credentials.ssl_ca),
            ("ssl.certificate.pem", &credentials.ssl_certificate),
            ("ssl.key.pem", &credentials.ssl_key),
        ];
        for (name, value) in pem {
            if let Some(value) = value {
                config.set(name, value.expose());
            }
        }
        if let Some(password) = &credentials.ssl_key_password {
            config.set("ssl.key.password", password.expose());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn properties(pairs: &[(&str, &str)]) -> Properties {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn conflicting_properties_are_refused_with_the_reason() {
        for (name, _) in REFUSED {
            let error = check_property(name).expect_err(name).to_string();
            assert!(error.contains(name), "{error}");
        }
        assert!(check_property("topic.acks").is_err());
        assert!(check_property("linger.ms").is_ok());
    }

    #[test]
    fn librdkafka_checks_names_and_values() {
        assert!(
            check(
                &Role::Producer,
                &properties(&[("linger.ms", "20"), ("compression.type", "zstd")])
            )
            .is_ok()
        );
        let error = check(&Role::Producer, &properties(&[("linger.msec", "20")]))
            .expect_err("unknown name");
        assert!(error.to_string().contains("linger.msec"), "{error}");
        let group = Role::Consumer { group: "g".into() };
        assert!(check(&group, &properties(&[("session.timeout.ms", "abc")])).is_err());
    }

    #[test]
    fn every_default_is_known_to_librdkafka() {
        assert!(check(&Role::Producer, &Properties::new()).is_ok());
        assert!(check(&Role::Consumer { group: "g".into() }, &Properties::new()).is_ok());
    }
}
