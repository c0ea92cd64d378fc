//! MirrorMaker 2: its source connector in a Kafka Connect worker, with the JVM options of Kafka's own start scripts.
//!
//! A worker of its own (rather than the `MirrorMaker` program, which runs the same connector and two more) can be told what to mirror while it
//! runs. So the JVM is up, and has compiled its code on a warm-up topic, before anything is measured.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use standfast_servers::{Api, Port, ServerProcess};
use tempfile::TempDir;

use super::contender::Contender;
use super::dataset::Dataset;
use super::{Clusters, POLL, Usage, time_copy};

const READY_DEADLINE: Duration = Duration::from_secs(90);
/// kafka-run-class.sh and connect-mirror-maker.sh of Kafka 4.1.
const JVM_OPTIONS: [&str; 7] = [
    "-Xms256M",
    "-Xmx2G",
    "-server",
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
    "-XX:+ExplicitGCInvokesConcurrent",
];
/// As many tasks as the machine that BENCHMARKS.md speaks of has cores.
const TASKS: u32 = 2;

#[derive(Debug)]
pub(super) struct MirrorMaker {
    // Before the folder: the process must be gone when it is removed.
    process: ServerProcess,
    port: Port,
    source: String,
    destination: String,
    _folder: TempDir,
}

impl MirrorMaker {
    pub(super) fn prepare(clusters: &Clusters) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("standfast-mirrormaker-")
            .tempdir()
            .context("create a folder")?;
        let port = Port::reserve()?;
        let worker = folder.path().join("worker.properties");
        let text = format!(
            "bootstrap.servers={}\nlisteners=http://{}\noffset.storage.file.filename={}\n\
             key.converter=org.apache.kafka.connect.converters.ByteArrayConverter\n\
             value.converter=org.apache.kafka.connect.converters.ByteArrayConverter\n",
            clusters.destination.bootstrap(),
            port.address(),
            folder.path().join("offsets").display(),
        );
        fs::write(&worker, text).with_context(|| format!("write {}", worker.display()))?;
        let mut command = Command::new(&clusters.install.java);
        command
            .args(JVM_OPTIONS)
            .arg(format!("-Djava.io.tmpdir={}", folder.path().display()))
            .args([
                "-cp",
                &clusters.install.class_path,
                "org.apache.kafka.connect.cli.ConnectStandalone",
            ])
            .arg(&worker);
        let process =
            ServerProcess::spawn(command, &folder.path().join("log"), Some(folder.path()))?;
        let mut mirror_maker = Self {
            process,
            port,
            source: clusters.source.bootstrap(),
            destination: clusters.destination.bootstrap(),
            _folder: folder,
        };
        mirror_maker.wait_until_ready()?;
        mirror_maker.warm_up(clusters)?;
        Ok(mirror_maker)
    }

    fn warm_up(&mut self, clusters: &Clusters) -> Result<()> {
        let topic = Dataset::tool_warm_up().topic();
        self.configure("warm-up", std::slice::from_ref(&topic))?;
        time_copy(clusters, &topic, self).context("warm up")?;
        self.rest("DELETE", "/connectors/warm-up", None)?;
        clusters.destination.delete_topic(&topic)?;
        Ok(())
    }

    fn configure(&self, name: &str, topics: &[String]) -> Result<()> {
        let config = json!({
            "connector.class": "org.apache.kafka.connect.mirror.MirrorSourceConnector",
            "source.cluster.alias": "west",
            "target.cluster.alias": "east",
            "source.cluster.bootstrap.servers": self.source,
            "target.cluster.bootstrap.servers": self.destination,
            "replication.policy.class": "org.apache.kafka.connect.mirror.IdentityReplicationPolicy",
            "topics": topics.join(","),
            "tasks.max": TASKS.to_string(),
            "replication.factor": "1",
            "offset-syncs.topic.replication.factor": "1",
        });
        self.rest("PUT", &format!("/connectors/{name}/config"), Some(&config))
            .map(drop)
    }

    fn rest(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let api = Api {
            server: "Kafka Connect",
            port: self.port.number(),
            token: None,
        };
        Ok(api.json(method, path, body)?)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + READY_DEADLINE;
        while let Err(error) = self.rest("GET", "/connectors", None) {
            if let Some(log) = self.failure() {
                bail!("Kafka Connect did not start; last lines of its log:\n{log}");
            }
            if Instant::now() > deadline {
                return Err(error.context(format!(
                    "Kafka Connect is not ready after {READY_DEADLINE:?}"
                )));
            }
            thread::sleep(POLL);
        }
        Ok(())
    }
}

impl Contender for MirrorMaker {
    fn mirror(&mut self, topics: &[String]) -> Result<()> {
        self.configure("bench", topics)
    }

    fn usage(&self) -> Result<Usage> {
        Usage::of(self.process.pid())
    }

    fn warm_up_bytes(&self) -> f64 {
        Dataset::tool_warm_up().value_bytes()
    }

    fn failure(&mut self) -> Option<String> {
        self.process.exited().map(|_| self.process.log_tail())
    }
}
