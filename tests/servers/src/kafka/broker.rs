//! One broker process: its ports, folder and configuration.

use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{KafkaBuilder, KafkaCluster};
use crate::ports::Port;
use crate::process::ServerProcess;
use crate::{Error, Result};

/// More controllers than this make a cluster slower, not safer, in a test.
const MAX_CONTROLLERS: usize = 3;
const LOG4J: &str = "rootLogger.level=info
rootLogger.appenderRef.stdout.ref=stdout
appender.stdout.type=Console
appender.stdout.name=stdout
appender.stdout.layout.type=PatternLayout
appender.stdout.layout.pattern=%d{HH:mm:ss.SSS} %p %c{1}: %m%n
";

#[derive(Debug)]
pub(super) struct Broker {
    pub(super) id: i32,
    pub(super) process: Option<ServerProcess>,
    plaintext: Port,
    controller: Port,
    sasl: Option<Port>,
    secure: Option<Port>,
    folder: PathBuf,
    host: Ipv4Addr,
}

impl Broker {
    pub(super) fn reserve(index: usize, scratch: &Path, settings: &KafkaBuilder) -> Result<Self> {
        let id = index as i32 + 1;
        Ok(Self {
            id,
            process: None,
            plaintext: Port::reserve()?,
            controller: Port::reserve()?,
            sasl: (!settings.sasl_users.is_empty())
                .then(Port::reserve)
                .transpose()?,
            secure: settings
                .secure
                .has_listener()
                .then(Port::reserve)
                .transpose()?,
            folder: scratch.join(format!("broker-{id}")),
            host: settings.host(),
        })
    }

    pub(super) fn address(&self) -> String {
        self.plaintext.address_on(self.host)
    }

    pub(super) fn sasl_address(&self) -> Option<String> {
        self.sasl.as_ref().map(|port| port.address_on(self.host))
    }

    pub(super) fn secure_address(&self) -> Option<String> {
        self.secure.as_ref().map(|port| port.address_on(self.host))
    }

    pub(super) fn socket(&self) -> SocketAddr {
        (self.host, self.plaintext.number()).into()
    }

    /// Writes what Kafka's StorageTool would write, and the configuration.
    pub(super) fn format(&self, cluster: &KafkaCluster) -> Result<()> {
        let data = self.folder.join("data");
        for folder in [&data, &self.folder.join("tmp")] {
            fs::create_dir_all(folder).map_err(Error::path("create", folder))?;
        }
        self.write("log4j2.properties", LOG4J)?;
        let secure = &cluster.settings.secure;
        let properties = self.properties(cluster) + &secure.prepare(&self.folder)?;
        self.write("server.properties", &properties)?;
        if !secure.scram_users.is_empty() {
            return secure.format(cluster, &self.folder.join("server.properties"));
        }
        let checkpoint = data.join("bootstrap.checkpoint");
        fs::copy(&cluster.install.checkpoint, &checkpoint)
            .map_err(Error::path("write", &checkpoint))?;
        let meta = format!(
            "version=1\nnode.id={}\ncluster.id={}\ndirectory.id={}\n",
            self.id,
            cluster.cluster_id,
            random_id()?
        );
        self.write("data/meta.properties", &meta)
    }

    pub(super) fn spawn(&self, cluster: &KafkaCluster) -> Result<ServerProcess> {
        let settings = &cluster.settings;
        let folder = self.folder.display();
        let mut command = Command::new(&cluster.install.java);
        command
            .arg(format!("-Xmx{}m", settings.heap_mb))
            .args(["-XX:-UsePerfData", "-XX:+ExitOnOutOfMemoryError"]);
        if !settings.full_jit {
            command.args(["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]);
        }
        if let Some(archive) = &settings.archive_to {
            command.arg(format!("-XX:ArchiveClassesAtExit={}", archive.display()));
        } else if let Some(archive) = &cluster.install.archive {
            command.arg(format!("-XX:SharedArchiveFile={}", archive.display()));
        }
        command
            .arg(format!("-Djava.io.tmpdir={folder}/tmp"))
            .arg(format!(
                "-Dlog4j2.configurationFile={folder}/log4j2.properties"
            ))
            .args(["-cp", &cluster.install.class_path, "kafka.Kafka"])
            .arg(self.folder.join("server.properties"))
            .current_dir(&self.folder);
        ServerProcess::spawn(
            command,
            &self.folder.join("log"),
            cluster.scratch.disposable(),
        )
    }

    /// Why the broker will not become ready, if so.
    pub(super) fn failure(&mut self, too_late: bool, seen: &str) -> Option<Error> {
        let process = self.process.as_mut()?;
        let detail = match process.exited() {
            Some(status) => format!("it ended with {status}"),
            None if too_late => format!("it is not ready in time ({seen})"),
            None => return None,
        };
        let log = process.log_tail();
        self.process = None;
        Some(Error::Start {
            server: format!("Kafka broker {} on {}", self.id, self.address()),
            detail,
            log,
        })
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.folder.join(name);
        fs::write(&path, text).map_err(Error::path("write", &path))
    }

    fn properties(&self, cluster: &KafkaCluster) -> String {
        let settings = &cluster.settings;
        let controllers = if cluster.brokers.len() < MAX_CONTROLLERS {
            1
        } else {
            MAX_CONTROLLERS
        };
        let voters: Vec<String> = cluster
            .brokers
            .iter()
            .take(controllers)
            .map(|broker| {
                format!(
                    "{}@{}",
                    broker.id,
                    broker.controller.address_on(broker.host)
                )
            })
            .collect();
        let is_controller = self.id as usize <= controllers;
        let plaintext = self.address();
        let mut listeners = vec![format!("PLAINTEXT://{plaintext}")];
        listeners.extend(
            self.sasl_address()
                .map(|address| format!("SASL://{address}")),
        );
        listeners.extend(
            self.secure_address()
                .map(|address| format!("SECURE://{address}")),
        );
        let advertised = listeners.join(",");
        if is_controller {
            listeners.push(format!(
                "CONTROLLER://{}",
                self.controller.address_on(self.host)
            ));
        }
        let replicas = cluster.brokers.len().min(3);
        let in_sync = if replicas > 2 { 2 } else { 1 };
        let mut text = format!(
            "process.roles={roles}
node.id={id}
controller.quorum.voters={voters}
controller.listener.names=CONTROLLER
listeners={listeners}
advertised.listeners={advertised}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL:SASL_PLAINTEXT,SECURE:{secure}
inter.broker.listener.name=PLAINTEXT
log.dirs={data}
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
offsets.topic.num.partitions=4
offsets.topic.replication.factor={replicas}
transaction.state.log.num.partitions=4
transaction.state.log.replication.factor={replicas}
transaction.state.log.min.isr={in_sync}
share.coordinator.state.topic.replication.factor={replicas}
share.coordinator.state.topic.min.isr={in_sync}
log.cleaner.dedupe.buffer.size=16777216
",
            roles = if is_controller {
                "broker,controller"
            } else {
                "broker"
            },
            id = self.id,
            secure = settings.secure.protocol(),
            voters = voters.join(","),
            listeners = listeners.join(","),
            data = self.folder.join("data").display(),
        );
        if !settings.sasl_users.is_empty() {
            text.push_str(&sasl_properties(&settings.sasl_users));
        }
        for (key, value) in &settings.properties {
            text.push_str(&format!("{key}={value}\n"));
        }
        text
    }
}

fn sasl_properties(users: &[(String, String)]) -> String {
    let mut module = "org.apache.kafka.common.security.plain.PlainLoginModule required".to_owned();
    for (user, password) in users {
        let quoted = password.replace('\\', "\\\\").replace('"', "\\\"");
        module.push_str(&format!(" user_{user}=\"{quoted}\""));
    }
    // As `java.util.Properties` reads it: Latin-1 with escapes.
    let module: String = module
        .chars()
        .map(|letter| match letter {
            '\\' => "\\\\".to_owned(),
            ' '..='~' => letter.to_string(),
            other => format!("\\u{:04x}", u32::from(other)),
        })
        .collect();
    format!(
        "listener.name.sasl.sasl.enabled.mechanisms=PLAIN\nlistener.name.sasl.plain.sasl.jaas.config={module};\n"
    )
}

/// A random id as Kafka writes its UUIDs: 16 bytes in URL-safe base64 without padding, not starting with `-`.
pub(super) fn random_id() -> Result<String> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(Error::io("read /dev/urandom"))?;
    bytes[0] &= 0x7f; // keeps the first character off `-`
    let number = u128::from_be_bytes(bytes);
    let digit = |shift: i32| {
        let six = if shift >= 0 {
            number >> shift
        } else {
            number << -shift
        };
        char::from(ALPHABET[(six & 63) as usize])
    };
    Ok((0..22).map(|index| digit(122 - 6 * index)).collect())
}

#[cfg(test)]
mod tests {
    use super::random_id;

    #[test]
    fn random_ids_are_distinct_and_well_formed() {
        let ids: Vec<String> = (0..200).map(|_| random_id().unwrap()).collect();
        for id in &ids {
            assert_eq!(id.len(), 22);
            assert!(!id.starts_with('-'));
            assert!(
                "AQgw".contains(&id[21..]),
                "the last 4 bits are padding: {id}"
            );
        }
        let mut distinct = ids.clone();
        distinct.sort();
        distinct.dedup();
        assert_eq!(distinct.len(), ids.len());
    }
}
