//! `standfast exec`: any program follows the fleet. The first tests need no servers, the last one has kcat and Kafka's
//! own console consumer follow a flip between two real clusters that ask for a password.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use standfast_discovery::{
    ClusterEntry, ClusterName, Discovery, DiscoveryOptions, FleetName, FleetRecord, FleetState,
    SecurityProtocol,
};
use standfast_servers::KafkaCluster;
use support::{PATIENCE, standfast};

const FLEET: &str = "payments";

/// A fleet in a folder, and programs that follow it.
struct Fleet {
    folder: tempfile::TempDir,
    record: RefCell<FleetRecord>,
}

/// `standfast exec`, ended when dropped, and with it its program.
struct Exec(Child);

impl Fleet {
    /// Clusters west and east; west is active.
    fn new(west: ClusterEntry, east: ClusterEntry) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let clusters = [(name("west"), west), (name("east"), east)];
        let record = RefCell::new(FleetRecord::first(name("west"), clusters.into(), "first"));
        let fleet = Self { folder, record };
        fleet.write();
        fleet
    }

    fn plain() -> Self {
        Self::new(ClusterEntry::new("west:1"), ClusterEntry::new("east:1"))
    }

    fn write(&self) {
        let fleet = FleetName::new(FLEET).unwrap();
        let options = DiscoveryOptions::file(self.path("discovery"));
        let written = async {
            let discovery = Discovery::new(options).unwrap();
            let read = discovery.read(&fleet).await.unwrap();
            let version = read.map(|found| found.version);
            let record = self.record.borrow().clone();
            let set = discovery.compare_and_set(&fleet, version.as_ref(), &record);
            set.await.unwrap();
        };
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(written);
    }

    fn change(&self, active: &str, state: FleetState) {
        let next = self.record.borrow().next(name(active), state, "test");
        self.record.replace(next);
        self.write();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// In `options` and in the command `FOLDER` stands for the folder.
    fn exec(&self, options: &[&str], command: &[&str]) -> Exec {
        let folder = self.folder.path().display().to_string();
        let fill = |text: &&str| text.replace("FOLDER", &folder);
        let mut log = fs::File::options();
        let log = log.create(true).append(true);
        let log = log.open(self.path("exec.log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_standfast"))
            .args(["exec", "--fleet", FLEET, "--discovery-dir"])
            .arg(self.path("discovery"))
            .args(options.iter().map(fill))
            .arg("--")
            .args(command.iter().map(fill))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        Exec(child.expect("start standfast exec"))
    }

    fn until(&self, what: &str, condition: impl Fn() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !condition() {
            assert!(
                Instant::now() < end,
                "not within {PATIENCE:?}: {what}\n{}",
                self.text("exec.log")
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Exec {
    fn signal(&self, signal: Signal) {
        let _ = kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), signal);
    }

    fn code(mut self) -> Option<i32> {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("standfast exec has not ended");
    }
}

impl Drop for Exec {
    fn drop(&mut self) {
        // Killed at once it could not end its program.
        self.signal(Signal::SIGTERM);
        let end = Instant::now() + Duration::from_secs(10);
        while matches!(self.0.try_wait(), Ok(None)) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn name(name: &str) -> ClusterName {
    ClusterName::new(name).unwrap()
}

/// Writes a line when it starts, and one when it is asked to end.
const WORKER: &str = "trap 'echo ended >> FOLDER/out; exit 0' TERM
    echo start $STANDFAST_CLUSTER $STANDFAST_EPOCH $KAFKA_BOOTSTRAP_SERVERS >> FOLDER/out
    while :; do sleep 0.05; done";

#[test]
fn a_program_is_restarted_by_a_flip_and_held_while_fenced() {
    let fleet = Fleet::plain();
    let exec = fleet.exec(&[], &["sh", "-c", WORKER]);
    let mut expected = "start west 1 west:1\n".to_owned();
    fleet.until("the program runs", || fleet.text("out") == expected);

    // A new epoch for the same cluster is nothing that the program needs to know: the next line shows that it went on.
    fleet.change("west", FleetState::Active);
    fleet.change("east", FleetState::Active);
    expected += "ended\nstart east 3 east:1\n";
    fleet.until("restarted", || fleet.text("out") == expected);

    fleet.change("east", FleetState::Fenced);
    expected += "ended\n";
    fleet.until("held", || fleet.text("out") == expected);
    fleet.change("west", FleetState::Active);
    expected += "start west 5 west:1\n";
    fleet.until("started again", || fleet.text("out") == expected);

    // Without discovery all goes on.
    fs::remove_dir_all(fleet.path("discovery")).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(fleet.text("out"), expected);

    exec.signal(Signal::SIGTERM);
    assert_eq!(exec.code(), Some(0), "the program's own code");
    assert_eq!(fleet.text("out"), expected + "ended\n");
}

#[test]
fn exit_codes_are_the_programs_own() {
    let fleet = Fleet::plain();
    let ended = |command: &[&str]| fleet.exec(&[], command).code();
    assert_eq!(ended(&["sh", "-c", "exit 7"]), Some(7));
    assert_eq!(ended(&["sh", "-c", "kill -9 $$"]), Some(137));
    assert_eq!(ended(&["/no/such/program"]), Some(127));
    assert_eq!(ended(&["FOLDER/discovery"]), Some(126));

    let folder = fleet.path("discovery").display().to_string();
    let nobody = ["exec", "--fleet", "nobody", "--discovery-dir", &folder];
    let nobody = standfast(&[&nobody[..], &["--connect-timeout", "300ms", "--", "true"]].concat());
    assert_eq!(nobody.code, 125);
    assert!(
        nobody.stderr.contains("`standfast fleet init`"),
        "{nobody:?}"
    );
    let refused = standfast(&["exec", "--fleet", FLEET]);
    assert_eq!(refused.code, 2, "{refused:?}");
}

#[test]
fn a_program_that_does_not_end_is_killed_with_what_it_started() {
    let fleet = Fleet::plain();
    let stubborn = "trap '' TERM; echo start $$ >> FOLDER/out
        sh -c 'trap \"\" TERM; echo $$ > FOLDER/inner; while :; do sleep 0.05; done'";
    let exec = fleet.exec(&["--kill-timeout", "300ms"], &["sh", "-c", stubborn]);
    fleet.until("the program runs", || !fleet.text("inner").is_empty());
    let inner = fleet.text("inner");
    fleet.change("east", FleetState::Active);
    fleet.until("the next one runs", || {
        fleet.text("out").lines().count() == 2
            && fleet.text("inner") != inner
            && !fleet.text("inner").is_empty()
    });
    fleet.until("the old one is gone", || !alive(&inner));
    let inner = fleet.text("inner");
    exec.signal(Signal::SIGTERM);
    assert_eq!(exec.code(), Some(137));
    fleet.until("nothing is left", || !alive(&inner));
}

/// Nobody may reap a killed process whose parent is gone; it does nothing any more.
fn alive(id: &str) -> bool {
    let stat = Path::new("/proc").join(id.trim()).join("stat");
    fs::read_to_string(stat).is_ok_and(|stat| !stat.contains(") Z "))
}

fn with_password(bootstrap: &str, secret: &str) -> ClusterEntry {
    ClusterEntry {
        security_protocol: SecurityProtocol::SaslPlaintext,
        // Rendered in upper case, as the clients want it.
        sasl_mechanism: Some("plain".to_owned()),
        secret: Some(secret.to_owned()),
        ..ClusterEntry::new(bootstrap)
    }
}

fn write_secrets(fleet: &Fleet, of_west: &str, of_east: &str) {
    let text = format!(
        "[\"kafka/west\"]\nusername = \"app\"\npassword = {of_west:?}\n[\"kafka/east\"]\nusername = \"app\"\npassword = {of_east:?}\n"
    );
    let new = fleet.path("secrets.new");
    fs::write(&new, text).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(new, fleet.path("secrets.toml")).unwrap();
}

#[test]
fn a_program_is_signalled_after_its_file_was_written_anew() {
    let fleet = Fleet::new(
        with_password("west:1", "kafka/west"),
        with_password("east:1", "kafka/east"),
    );
    write_secrets(&fleet, "one", "two");
    let reader = "trap 'cat FOLDER/k.conf >> FOLDER/out' HUP; trap 'exit 3' TERM
        echo $KAFKA_PROPERTIES_FILE ${KAFKA_SASL_PASSWORD-none} >> FOLDER/out; cat FOLDER/k.conf >> FOLDER/out
        while :; do sleep 0.05; done";
    let options = [
        "--secrets-file",
        "FOLDER/secrets.toml",
        "--render",
        "FOLDER/k.conf",
        "--set",
        "group.id=workers",
        "--signal",
        "HUP",
        "--on-fence",
        "ignore",
    ];
    let exec = fleet.exec(&options, &["sh", "-c", reader]);
    let content = |cluster: &str, epoch: u32, password: &str| {
        format!(
            "# written by standfast exec: fleet payments, cluster {cluster}, epoch {epoch}\nbootstrap.servers={cluster}:1\n\
             security.protocol=SASL_PLAINTEXT\nsasl.mechanism=PLAIN\nsasl.username=app\nsasl.password={password}\ngroup.id=workers\n"
        )
    };
    let file = fleet.path("k.conf");
    let mut expected = format!("{} none\n{}", file.display(), content("west", 1, "one"));
    fleet.until("the program runs", || fleet.text("out") == expected);
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    write_secrets(&fleet, "three", "two");
    expected += &content("west", 1, "three");
    fleet.until("the new password", || fleet.text("out") == expected);
    fleet.change("east", FleetState::Active);
    expected += &content("east", 2, "two");
    fleet.until("the other cluster", || fleet.text("out") == expected);

    exec.signal(Signal::SIGTERM);
    assert_eq!(exec.code(), Some(3));
    assert!(!file.exists(), "credentials are not left behind");
    assert!(
        !fleet.text("exec.log").contains("three"),
        "no secret in the log"
    );
}

const PASSWORD: &str = "p \"q\\ =:#ü";

/// A cluster with a topic that holds one record.
fn cluster(name: &str) -> KafkaCluster {
    let cluster = KafkaCluster::builder(name).sasl_plain("app", PASSWORD);
    let cluster = cluster.start().expect(name);
    cluster.create_topic("orders", 1, &[]).expect("a topic");
    support::produce(
        &cluster.bootstrap(),
        "orders",
        0,
        if name == "west" { 3 } else { 5 },
    );
    cluster
}

#[test]
fn kcat_and_the_console_consumer_follow_a_flip() {
    let (west, east) = std::thread::scope(|scope| {
        let west = scope.spawn(|| cluster("west"));
        (cluster("east"), west.join().expect("west"))
    });
    let (east, west) = (west, east);
    let fleet = Fleet::new(
        with_password(&west.sasl_bootstrap().unwrap(), "kafka/west"),
        with_password(&east.sasl_bootstrap().unwrap(), "kafka/east"),
    );
    write_secrets(&fleet, PASSWORD, PASSWORD);
    let secrets = ["--secrets-file", "FOLDER/secrets.toml", "--render"];
    let have_kcat = Command::new("kcat").arg("-V").output().is_ok();
    let kcat = have_kcat.then(|| {
        let kcat = "exec kcat -F FOLDER/kcat.conf -C -t orders -o beginning -u -f '%o ' >> FOLDER/kcat.out";
        fleet.exec(&[&secrets[..], &["FOLDER/kcat.conf"]].concat(), &["sh", "-c", kcat])
    });
    if !have_kcat {
        eprintln!("SKIPPED: kcat is not installed (Debian: apt-get install kcat)");
    }
    let consumer = console_consumer(&west, &fleet);
    let options = [
        "FOLDER/java.conf",
        "--format",
        "java",
        "--set",
        "auto.offset.reset=earliest",
    ];
    let java = fleet.exec(&[&secrets[..], &options].concat(), &["sh", "-c", &consumer]);

    let seen = |west: &str, east: &str| {
        let kcat = fleet.text("kcat.out");
        let kcat: Vec<&str> = kcat.split_whitespace().collect();
        let java = fleet.text("java.out");
        let java: Vec<&str> = java.split_whitespace().collect();
        let expected = [west, east].concat();
        let offsets: Vec<String> = expected.chars().map(String::from).collect();
        let values: Vec<String> = offsets.iter().map(|offset| format!("v{offset}")).collect();
        (!have_kcat || kcat == offsets) && java == values
    };
    fleet.until("both have read the west", || seen("012", ""));
    fleet.change("east", FleetState::Active);
    fleet.until("both have read the east", || seen("012", "01234"));
    drop((kcat, java));
}

/// As a shell line: the file to read is the only thing that tells it of the cluster.
fn console_consumer(cluster: &KafkaCluster, fleet: &Fleet) -> String {
    let tool = cluster.tool_command("org.apache.kafka.tools.consumer.ConsoleConsumer", &[]);
    let words = std::iter::once(tool.get_program()).chain(tool.get_args());
    let words: Vec<String> = words
        .map(|word| format!("'{}'", word.to_string_lossy()))
        .collect();
    let folder = fleet.folder.path().display();
    format!(
        "exec {} --bootstrap-server $KAFKA_BOOTSTRAP_SERVERS --consumer.config {folder}/java.conf --topic orders --from-beginning >> {folder}/java.out",
        words.join(" ")
    )
}
