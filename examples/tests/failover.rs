//! The applications, as child processes, through a failover.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::Value;
use standfast::discovery::{
    ClusterEntry, ClusterName, Discovery, DiscoveryOptions, FleetName, FleetRecord, FleetState,
    Handoff, Timestamp,
};
use standfast_servers::KafkaCluster;

const SOON: Duration = Duration::from_secs(60);

/// A child process that prints JSON lines. Killed when dropped.
struct App {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<Value>,
}

impl App {
    fn start(program: &str, discovery: &Path) -> Self {
        let mut child = Command::new(program)
            .args(["--fleet", "payments", "--discovery-dir"])
            .arg(discovery)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start");
        let stdout = BufReader::new(child.stdout.take().expect("stdout"));
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines() {
                let line = line.expect("line");
                if sender
                    .send(serde_json::from_str(&line).expect("JSON"))
                    .is_err()
                {
                    return;
                }
            }
        });
        let stdin = child.stdin.take();
        Self {
            child,
            stdin,
            lines,
        }
    }

    fn command(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("stdin");
        writeln!(stdin, "{line}").expect("write");
    }

    fn line(&self) -> Value {
        self.lines.recv_timeout(SOON).expect("a line in time")
    }
}

impl Drop for App {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes five records to the first five offsets, as the link engine would have.
fn mirror(cluster: &KafkaCluster) {
    use std::io::Write as _;
    let mut tool = cluster.tool_command(
        "org.apache.kafka.tools.ConsoleProducer",
        &[
            "--bootstrap-server",
            &cluster.bootstrap(),
            "--topic",
            "orders",
        ],
    );
    let mut tool = tool
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("console producer");
    tool.stdin
        .take()
        .expect("stdin")
        .write_all(b"1\n2\n3\n4\n5\n")
        .expect("write");
    assert!(tool.wait().expect("exit").success());
    assert_eq!(cluster.log_end_offsets("orders").expect("log ends"), [5]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_applications_run_on_through_a_failover() {
    let start = |name: &'static str| {
        std::thread::spawn(move || {
            let cluster = KafkaCluster::start(name).expect("cluster");
            cluster.create_topic("orders", 1, &[]).expect("topic");
            cluster
        })
    };
    let (west, east) = (start("west"), start("east"));
    let (mut west, east) = (west.join().expect("west"), east.join().expect("east"));
    let dir = tempfile::tempdir().expect("folder");
    let discovery = Discovery::new(DiscoveryOptions::file(dir.path())).expect("discovery");
    let fleet = FleetName::new("payments").expect("name");
    let name = |name: &str| ClusterName::new(name).expect("name");
    let clusters = [
        (name("west"), ClusterEntry::new(west.bootstrap())),
        (name("east"), ClusterEntry::new(east.bootstrap())),
    ];
    let first = FleetRecord::first(name("west"), clusters.into(), "test");
    discovery
        .compare_and_set(&fleet, None, &first)
        .await
        .expect("create");

    let mut producer = App::start(env!("CARGO_BIN_EXE_order-producer"), dir.path());
    let consumer = App::start(env!("CARGO_BIN_EXE_order-consumer"), dir.path());
    let plain = App::start(env!("CARGO_BIN_EXE_plain-consumer"), dir.path());
    producer.command("produce 1 5");
    for order in 1..=5 {
        assert_eq!(producer.line()["order"], order);
        assert_eq!(consumer.line()["order"], order.to_string());
        assert_eq!(plain.line()["order"], order.to_string());
    }

    // The agent's part: mirror the records, write down how far the mirror came, flip.
    mirror(&east);
    west.kill();
    producer.command("produce 6 10");
    let stored = discovery.read(&fleet).await.expect("read").expect("record");
    let mut next = stored
        .value
        .next(name("east"), FleetState::Active, "west was killed");
    let handoff = Handoff {
        fleet: fleet.clone(),
        epoch: next.epoch,
        from: name("west"),
        to: name("east"),
        written_at: Timestamp::now(),
        planned: false,
        topics: [("orders".to_owned(), vec![Some(5)])].into(),
    };
    next.handoff = Some(discovery.write_handoff(&handoff).await.expect("handoff"));
    discovery
        .compare_and_set(&fleet, Some(&stored.version), &next)
        .await
        .expect("flip");
    for order in 6..=10 {
        let acknowledged = producer.line();
        assert_eq!(
            (&acknowledged["order"], &acknowledged["cluster"]),
            (&order.into(), &"east".into())
        );
        let received = consumer.line();
        assert_eq!(
            (&received["order"], &received["cluster"]),
            (&order.to_string().into(), &"east".into())
        );
    }
    // No link has carried its group's offsets here: it begins at the beginning.
    for order in 1..=10 {
        let received = plain.line();
        assert_eq!(received["order"], order.to_string());
        assert_eq!(received["cluster"], "east");
    }
    producer.command("nonsense");
    producer.stdin = None;
    assert!(
        producer.child.wait().expect("exit").success(),
        "it ends with its input"
    );
}
