//! The `standfast` program as a child process, and a few records in a real Kafka cluster.
#![allow(dead_code, reason = "every test file uses a part of it")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use serde_json::Value;
use standfast_servers::Port;
use standfast_wire::kafka_protocol::messages::produce_request::{
    PartitionProduceData, TopicProduceData,
};
use standfast_wire::kafka_protocol::messages::{ProduceRequest, TopicName};
use standfast_wire::kafka_protocol::protocol::StrBytes;
use standfast_wire::kafka_protocol::records::{
    Compression, Record, RecordBatchEncoder, RecordEncodeOptions, TimestampType,
};
use standfast_wire::{Cluster, ClusterOptions, HostPort};

/// Longest wait for anything on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// NOT_LEADER_OR_FOLLOWER.
const NOT_LEADER: i16 = 6;

/// A folder with a configuration, and the agent that may run with it. Dropping it kills the agent.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) folder: tempfile::TempDir,
    port: Port,
    child: Option<Child>,
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Agent {
    /// `rest` is everything but `[agent]`; in it, `FOLDER` stands for the agent's folder.
    pub(crate) fn prepare(rest: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let port = Port::reserve().expect("a free port");
        let agent = Self {
            folder,
            port,
            child: None,
        };
        agent.configure(rest);
        agent
    }

    pub(crate) fn configure(&self, rest: &str) {
        let folder = self.folder.path().display().to_string();
        let head = format!(
            "[agent]\nname = \"test\"\nlisten = \"{}\"\ndata_dir = \"{folder}/data\"\n",
            self.port.address()
        );
        fs::write(self.config(), head + &rest.replace("FOLDER", &folder))
            .expect("write agent.toml");
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.folder.path().join("agent.toml")
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.port.address())
    }

    pub(crate) fn spawn(&mut self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_file())
            .expect("agent.log");
        let child = program()
            .args(["agent", "--config"])
            .arg(self.config())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("agent.log"))
            .stderr(log)
            .spawn()
            .expect("start the agent");
        self.child = Some(child);
        self.until("the agent answers", |agent| {
            agent.cli(&["status"]).code == 0
        });
    }

    /// Resident memory of the agent's process, now and at most.
    pub(crate) fn memory(&self) -> String {
        let id = self.child.as_ref().expect("a running agent").id();
        let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
        let wanted = |line: &&str| line.starts_with("VmRSS") || line.starts_with("VmHWM");
        let lines: Vec<&str> = status.lines().filter(wanted).collect();
        lines
            .join(", ")
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("agent.log")
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// SIGTERM; the exit code and how long the end took.
    pub(crate) fn terminate(&mut self) -> (Option<i32>, Duration) {
        let mut child = self.child.take().expect("a running agent");
        let begin = Instant::now();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("SIGTERM");
        let status = child.wait().expect("the agent ends");
        (status.code(), begin.elapsed())
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub(crate) fn cli(&self, arguments: &[&str]) -> Ended {
        run(program().args(arguments).args(["--agent", &self.url()]))
    }

    /// Runs a command with JSON output that must succeed.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let ended = self.cli(&[arguments, &["--output", "json"]].concat());
        assert_eq!(
            ended.code,
            0,
            "{arguments:?}: {ended:?}\nagent:\n{}",
            self.log()
        );
        serde_json::from_str(&ended.stdout).expect("JSON on stdout")
    }

    /// Runs `fleet init` with the agent's own configuration.
    pub(crate) fn init_fleet(&self, active: &str) -> Ended {
        run(program()
            .args(["fleet", "init", "--active", active, "--config"])
            .arg(self.config()))
    }

    pub(crate) fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !condition(self) {
            assert!(
                Instant::now() < end,
                "not within {PATIENCE:?}: {what}\nstatus: {}\nagent:\n{}",
                self.cli(&["status"]).stdout,
                self.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The log end offsets of a topic on the destination, as `mirror describe` tells them.
    pub(crate) fn mirrored(&self, topic: &str) -> Vec<i64> {
        let mirrors = self.json(&["mirror", "describe", topic]);
        let lags = mirrors["data"][0]["mirror_lags"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        lags.iter()
            .map(|lag| lag["destination_log_end_offset"].as_i64().unwrap_or(-1))
            .collect()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.kill();
    }
}

fn program() -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_standfast"));
    program.env_remove("STANDFAST_AGENT").env_remove("NO_COLOR");
    program
}

/// Runs `standfast` without an agent of its own.
pub(crate) fn standfast(arguments: &[&str]) -> Ended {
    run(program().args(arguments))
}

fn run(command: &mut Command) -> Ended {
    let Output {
        status,
        stdout,
        stderr,
    } = command
        .stdin(Stdio::null())
        .output()
        .expect("run standfast");
    Ended {
        code: status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
    }
}

/// The configuration of a link west → east with file discovery in `discovery`.
pub(crate) fn west_to_east(
    fleet: &str,
    discovery: &str,
    west: &str,
    east: &str,
    topics: &str,
) -> String {
    format!(
        "[fleet]\nname = \"{fleet}\"\n[discovery]\n{discovery}\n\
         [clusters.west]\nbootstrap = \"{west}\"\n[clusters.east]\nbootstrap = \"{east}\"\n\
         [[links]]\nname = \"west-to-east\"\nsource = \"west\"\ndestination = \"east\"\ntopics = [{topics}]\n\
         [health]\ninterval = \"200ms\"\ntimeout = \"1s\"\n"
    )
}

pub(crate) fn file_discovery(folder: &Path) -> String {
    format!("backend = \"file\"\npath = {:?}", folder.join("discovery"))
}

/// Appends `count` records to one partition, one batch.
pub(crate) fn produce(bootstrap: &str, topic: &str, partition: i32, count: i64) {
    block_on(async {
        let cluster = connect(bootstrap).await;
        cluster.topics(&[topic]).await.expect("metadata");
        let data = PartitionProduceData::default()
            .with_index(partition)
            .with_records(Some(batch(count)));
        let name = TopicName(StrBytes::from_string(topic.to_owned()));
        let topic_data = TopicProduceData::default()
            .with_name(name)
            .with_partition_data(vec![data]);
        let request = ProduceRequest::default()
            .with_acks(-1)
            .with_timeout_ms(10_000)
            .with_topic_data(vec![topic_data]);
        let begin = Instant::now();
        loop {
            let leader = cluster.leader(topic, partition).await.expect("leader");
            let connection = cluster.connection(leader).await.expect("connection");
            let response = connection
                .call_with(request.clone(), 8, Duration::from_secs(20))
                .await
                .expect("produce");
            let answered = response.responses.iter();
            let mut codes = answered
                .flat_map(|topic| &topic.partition_responses)
                .map(|partition| partition.error_code);
            match codes.find(|code| *code != 0) {
                None => return,
                // A broker that has just started does not lead all its partitions yet; it has appended nothing.
                Some(NOT_LEADER) if begin.elapsed() < PATIENCE => {
                    cluster.topics(&[topic]).await.expect("metadata");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Some(code) => panic!("produce to {topic}: error {code}"),
            }
        }
    });
}

fn batch(count: i64) -> bytes::Bytes {
    let now = jiff::Timestamp::now().as_millisecond();
    let records: Vec<Record> = (0..count)
        .map(|offset| Record {
            transactional: false,
            control: false,
            delete_horizon: false,
            partition_leader_epoch: -1,
            producer_id: -1,
            producer_epoch: -1,
            timestamp_type: TimestampType::Creation,
            offset,
            sequence: i32::try_from(offset).expect("few records"),
            timestamp: now,
            key: Some(bytes::Bytes::from(format!("k{offset}"))),
            value: Some(bytes::Bytes::from(format!("v{offset}"))),
            headers: Default::default(),
        })
        .collect();
    let options = RecordEncodeOptions {
        version: 2,
        compression: Compression::None,
    };
    let mut buffer = BytesMut::new();
    RecordBatchEncoder::encode(&mut buffer, &records, &options).expect("encode");
    buffer.freeze()
}

/// Asks a cluster something that must succeed.
pub(crate) fn with_cluster<T>(
    bootstrap: &str,
    ask: impl AsyncFnOnce(Cluster) -> Result<T, standfast_wire::Error>,
) -> T {
    block_on(async { ask(connect(bootstrap).await).await.expect("Kafka answers") })
}

async fn connect(bootstrap: &str) -> Cluster {
    let options = ClusterOptions::new(HostPort::parse_list(bootstrap).expect("bootstrap"));
    Cluster::connect(options).await.expect("connect")
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime")
        .block_on(future)
}
