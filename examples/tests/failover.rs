//! The applications, as child processes, through a failover.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

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
        Self::start_with(program, discovery, &[])
    }

    fn start_with(program: &str, discovery: &Path, arguments: &[&str]) -> Self {
        let mut child = Command::new(program)
            .args(["--fleet", "payments", "--discovery-dir"])
            .arg(discovery)
            .args(arguments)
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

/// Waits until `/metrics` has a line.
fn scraped(address: &str, line: &str) {
    use std::io::Read as _;
    let deadline = Instant::now() + SOON;
    loop {
        let mut stream = TcpStream::connect(address).expect("connect");
        write!(
            stream,
            "GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
        )
        .expect("write");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("read");
        if answer.lines().any(|found| found == line) {
            return;
        }
        assert!(Instant::now() < deadline, "no line {line}: {answer}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_applications_run_on_through_a_failover() {
    let start = |name: &'static str| {
        std::thread::spawn(move || {
            let cluster = KafkaCluster::start(name).expect("cluster");
            cluster.create_topic("orders", 1, &[]).expect("topic");
            cluster.create_topic("invoices", 1, &[]).expect("topic");
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
    let listen = ["--listen", "127.0.0.1:0"];
    let service = App::start_with(env!("CARGO_BIN_EXE_order-service"), dir.path(), &listen);
    let (mut address, mut rehearsed) = (None, None);
    while address.is_none() || rehearsed.is_none() {
        let line = service.line();
        address = address.or(line["listening"].as_str().map(str::to_owned));
        rehearsed = rehearsed.or(line["standby"].as_str().map(|_| line.clone()));
    }
    let (address, rehearsed) = (address.unwrap(), rehearsed.unwrap());
    assert_eq!(
        rehearsed,
        serde_json::json!({ "standby": "east", "usable": true })
    );
    producer.command("produce 1 5");
    for order in 1..=5 {
        assert_eq!(producer.line()["order"], order);
        assert_eq!(consumer.line()["order"], order.to_string());
        assert_eq!(plain.line()["order"], order.to_string());
    }

    // The agent's part: mirror the records, write down how far the mirror came, flip.
    mirror(&east);
    scraped(
        &address,
        "standfast_client_records_acknowledged_total{fleet=\"payments\"} 5",
    );
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
    // An invoice for each order: the first five were acknowledged by west alone, and were sent again.
    scraped(
        &address,
        "standfast_client_records_acknowledged_total{fleet=\"payments\"} 10",
    );
    for line in [
        "standfast_client_flips_total{fleet=\"payments\"} 1",
        "standfast_client_records_replayed_total{fleet=\"payments\"} 5",
        "standfast_client_rehearsals_passed_total{fleet=\"payments\"} 1",
        "standfast_client_cluster_active{fleet=\"payments\",cluster=\"east\"} 1",
    ] {
        scraped(&address, line);
    }
    assert_eq!(east.log_end_offsets("invoices").expect("log ends"), [10]);
    producer.command("nonsense");
    producer.stdin = None;
    assert!(
        producer.child.wait().expect("exit").success(),
        "it ends with its input"
    );
}
