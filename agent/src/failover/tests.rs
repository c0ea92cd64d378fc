//! The state machine against a real file discovery, with the faults in between that a real server does not produce on
//! demand.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use standfast_discovery::{ClusterEntry, Discovery, DiscoveryOptions, FleetState, Lock};
use tokio::sync::watch;

use super::*;
use crate::api::{MirrorLag, Outcome};

type Shared<T> = Arc<Mutex<T>>;

#[derive(Debug, Default)]
struct Faults {
    /// Events in the order in which they happened.
    log: Vec<String>,
    discovery_gone: bool,
    handoff_fails: bool,
    /// The answer to the change is lost: before or after it was applied.
    change_unanswered: Option<Applied>,
    gone_after_change: bool,
    lock_expires_at_stop: bool,
    lock_expired: bool,
    /// The operation is killed when this event happens.
    die_at: Option<&'static str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Applied {
    Yes,
    No,
}

#[derive(Debug, Clone)]
struct FaultyCoordination {
    inner: DiscoveryCoordination,
    faults: Shared<Faults>,
}

#[derive(Debug)]
struct FaultyLock {
    inner: Lock,
    faults: Shared<Faults>,
}

impl FaultyCoordination {
    async fn note(&self, event: &'static str) -> Result<(), CoordinationError> {
        happen(&self.faults, event).await;
        if self.faults.lock().unwrap().discovery_gone {
            return Err(CoordinationError::Unreachable(
                "connection refused".to_owned(),
            ));
        }
        Ok(())
    }
}

/// Notes the event; hangs for ever if the operation is to die here.
async fn happen(faults: &Shared<Faults>, event: &str) {
    let dies = {
        let mut faults = faults.lock().unwrap();
        faults.log.push(event.to_owned());
        faults.die_at == Some(event)
    };
    if dies {
        std::future::pending::<()>().await;
    }
}

impl Coordination for FaultyCoordination {
    type Lock = FaultyLock;

    async fn lock(&self) -> Result<FaultyLock, CoordinationError> {
        self.note("lock").await?;
        Ok(FaultyLock {
            inner: self.inner.lock().await?,
            faults: Arc::clone(&self.faults),
        })
    }

    async fn read(&self) -> Result<Option<Versioned<FleetRecord>>, CoordinationError> {
        self.note("read").await?;
        self.inner.read().await
    }

    async fn compare_and_set(
        &self,
        expected: &Version,
        record: &FleetRecord,
    ) -> Result<CasOutcome, CoordinationError> {
        self.note(if record.state == FleetState::Fenced {
            "fence"
        } else {
            "change"
        })
        .await?;
        let unanswered = self.faults.lock().unwrap().change_unanswered;
        if unanswered == Some(Applied::No) {
            let mut faults = self.faults.lock().unwrap();
            faults.discovery_gone = faults.gone_after_change;
            return Err(CoordinationError::Unreachable("timed out".to_owned()));
        }
        let outcome = self.inner.compare_and_set(expected, record).await?;
        let mut faults = self.faults.lock().unwrap();
        faults.discovery_gone = faults.gone_after_change;
        match unanswered {
            Some(_) => Err(CoordinationError::Unreachable("timed out".to_owned())),
            None => Ok(outcome),
        }
    }

    async fn write_handoff(&self, handoff: &Handoff) -> Result<String, CoordinationError> {
        self.note("handoff").await?;
        if self.faults.lock().unwrap().handoff_fails {
            return Err(CoordinationError::Unreachable(
                "connection reset".to_owned(),
            ));
        }
        self.inner.write_handoff(handoff).await
    }

    async fn read_handoff(&self, epoch: Epoch) -> Result<Option<Handoff>, CoordinationError> {
        self.inner.read_handoff(epoch).await
    }
}

impl FleetLock for FaultyLock {
    fn time_left(&self) -> Option<Duration> {
        self.faults
            .lock()
            .unwrap()
            .lock_expired
            .then_some(Duration::ZERO)
    }

    async fn release(self) {
        happen(&self.faults, "release").await;
        self.inner.release().await.unwrap();
    }
}

/// Two clusters and one mirrored topic with two partitions.
#[derive(Debug, Default)]
struct Clusters {
    source: Vec<i64>,
    destination: Vec<i64>,
    running: bool,
    source_alive: bool,
    destination_alive: bool,
    /// Records that a producer adds to partition 1 at every look, from then on.
    growing: i64,
    grow_after: Option<&'static str>,
}

#[derive(Debug, Clone)]
struct FakeMirrors {
    clusters: Shared<Clusters>,
    faults: Shared<Faults>,
    extra_route: Option<Route>,
}

impl FakeMirrors {
    fn report(&self, status: &str) -> Vec<TopicReport> {
        let clusters = self.clusters.lock().unwrap();
        let mut topic = TopicReport::unknown("west-to-east", "orders", status);
        topic.mirror_lags = (0..2)
            .map(|index| MirrorLag {
                partition: i32::try_from(index).unwrap(),
                lag_seconds: Some(0.5),
                source_log_end_offset: Some(clusters.source[index]),
                destination_log_end_offset: clusters
                    .destination_alive
                    .then(|| clusters.destination[index]),
                ..MirrorLag::default()
            })
            .collect();
        vec![topic]
    }

    fn start_growing_after(&self, event: &str) {
        let mut clusters = self.clusters.lock().unwrap();
        if clusters.grow_after == Some(event) {
            clusters.growing = 1;
        }
    }
}

impl Mirrors for FakeMirrors {
    fn routes(&self) -> BTreeSet<Route> {
        std::iter::once(west_to_east())
            .chain(self.extra_route.clone())
            .collect()
    }

    fn last_known(&self, _: &Route) -> Vec<TopicReport> {
        self.report("ACTIVE")
    }

    async fn stop(&self, _: &Route, _: Epoch, _: Duration) -> Vec<TopicReport> {
        happen(&self.faults, "stop").await;
        self.clusters.lock().unwrap().running = false;
        let mut faults = self.faults.lock().unwrap();
        faults.lock_expired = faults.lock_expires_at_stop;
        drop(faults);
        self.start_growing_after("stop");
        self.report("STOPPED")
    }

    async fn resume(&self, _: &Route) {
        happen(&self.faults, "resume").await;
        self.clusters.lock().unwrap().running = true;
    }

    async fn sync_groups(&self, _: &Route) -> Result<(), String> {
        happen(&self.faults, "sync_groups").await;
        Ok(())
    }

    async fn log_ends(&self, cluster: &ClusterName, _: &Route) -> Result<LogEnds, String> {
        let is_source = *cluster == name("west");
        let mut clusters = self.clusters.lock().unwrap();
        if is_source {
            assert!(clusters.source_alive, "a dead source was asked");
            let growth = clusters.growing;
            clusters.source[1] += growth;
        } else if clusters.running {
            // The mirror catches up a little at every look.
            let source = clusters.source.clone();
            for (end, source) in clusters.destination.iter_mut().zip(source) {
                *end = source.min(*end + 4);
            }
        }
        let ends = if is_source {
            &clusters.source
        } else {
            &clusters.destination
        };
        let partition = |index: usize| ("orders".to_owned(), i32::try_from(index).unwrap());
        Ok(ends
            .iter()
            .enumerate()
            .map(|(index, end)| (partition(index), *end))
            .collect())
    }

    fn unreachable_for(&self, cluster: &ClusterName) -> Option<Duration> {
        (!self.is_healthy(cluster)).then_some(Duration::from_secs(12))
    }

    fn is_healthy(&self, cluster: &ClusterName) -> bool {
        let clusters = self.clusters.lock().unwrap();
        if *cluster == name("west") {
            clusters.source_alive
        } else {
            clusters.destination_alive
        }
    }
}

struct World {
    context: Context<FaultyCoordination, FakeMirrors>,
    faults: Shared<Faults>,
    clusters: Shared<Clusters>,
    _folder: tempfile::TempDir,
}

fn name(name: &str) -> ClusterName {
    ClusterName::new(name).unwrap()
}

fn west_to_east() -> Route {
    Route {
        from: name("west"),
        to: name("east"),
    }
}

async fn world() -> World {
    let folder = tempfile::tempdir().unwrap();
    let discovery = Discovery::new(DiscoveryOptions::file(folder.path())).unwrap();
    let fleet = FleetName::new("payments").unwrap();
    let entries = BTreeMap::from([
        (name("west"), ClusterEntry::new("w:9092")),
        (name("east"), ClusterEntry::new("e:9092")),
    ]);
    let record = FleetRecord::first(name("west"), entries, "test");
    discovery
        .compare_and_set(&fleet, None, &record)
        .await
        .unwrap();
    let faults: Shared<Faults> = Arc::default();
    let clusters = Arc::new(Mutex::new(Clusters {
        source: vec![10, 20],
        destination: vec![10, 15],
        running: true,
        destination_alive: true,
        ..Clusters::default()
    }));
    let inner = DiscoveryCoordination {
        discovery,
        fleet: fleet.clone(),
        holder: "test".to_owned(),
        lock_ttl: Duration::from_secs(15),
    };
    let context = Context {
        fleet,
        coordination: FaultyCoordination {
            inner,
            faults: Arc::clone(&faults),
        },
        mirrors: FakeMirrors {
            clusters: Arc::clone(&clusters),
            faults: Arc::clone(&faults),
            extra_route: None,
        },
        limits: Limits {
            step: Duration::from_secs(1),
            group_sync: Duration::from_secs(1),
            late_write_watch: Duration::from_millis(600),
        },
        shutdown: CancellationToken::new(),
    };
    World {
        context,
        faults,
        clusters,
        _folder: folder,
    }
}

impl World {
    async fn failover(&self, request: Request) -> Result<Report, Failure> {
        failover(&self.context, steps(), request).await
    }

    async fn switchover(&self) -> Result<Report, Failure> {
        let drain = Drain {
            timeout: Duration::from_secs(2),
            settle: Duration::from_millis(250),
        };
        switchover(&self.context, steps(), Request::default(), drain).await
    }

    fn faults(&self) -> std::sync::MutexGuard<'_, Faults> {
        self.faults.lock().unwrap()
    }

    fn clusters(&self) -> std::sync::MutexGuard<'_, Clusters> {
        self.clusters.lock().unwrap()
    }

    fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.faults().log)
    }

    async fn record(&self) -> FleetRecord {
        self.context
            .coordination
            .inner
            .read()
            .await
            .unwrap()
            .unwrap()
            .value
    }

    async fn handoff(&self, epoch: u64) -> Option<Handoff> {
        self.context
            .coordination
            .inner
            .read_handoff(Epoch(epoch))
            .await
            .unwrap()
    }
}

fn steps() -> Steps {
    Steps::begin("test", watch::Sender::new(None))
}

#[tokio::test]
async fn the_handoff_is_written_before_the_flip_and_the_source_is_never_asked() {
    let world = world().await;
    let report = world
        .failover(Request {
            reason: Some("flood".to_owned()),
            ..Request::default()
        })
        .await
        .unwrap();

    assert_eq!(
        world.log(),
        ["lock", "read", "stop", "handoff", "change", "release"]
    );
    assert_eq!(report.outcome, Outcome::Flipped);
    assert_eq!(
        (report.epoch, report.rpo_records, report.rpo_seconds),
        (Some(Epoch(2)), Some(5), Some(0.5))
    );
    let names: Vec<&str> = report.steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "lock",
            "read_record",
            "stop_mirrors",
            "write_handoff",
            "flip_record"
        ]
    );
    let record = world.record().await;
    assert_eq!(
        (record.active.as_str(), record.epoch, record.reason.as_str()),
        ("east", Epoch(2), "flood")
    );
    let handoff = world.handoff(2).await.unwrap();
    assert_eq!(handoff.topics["orders"], [Some(10), Some(15)]);
    assert!(!handoff.planned && handoff.from == name("west") && record.handoff == report.handoff);
}

#[tokio::test]
async fn asking_twice_is_safe_and_gives_the_stored_handoff() {
    let world = world().await;
    let first = world.failover(Request::default()).await.unwrap();
    assert_eq!(
        world.record().await.reason,
        "failover: west unreachable for 12s"
    );
    world.log();
    let second = world.failover(Request::default()).await.unwrap();
    assert_eq!(second.outcome, Outcome::AlreadyActive);
    assert_eq!(second.handoff_offsets, first.handoff_offsets);
    assert_eq!(
        (second.from, second.epoch),
        (Some(name("west")), Some(Epoch(2)))
    );
    assert_eq!(world.log(), ["lock", "read", "release"]);
    assert_eq!(world.record().await.epoch, Epoch(2));
}

#[tokio::test]
async fn a_crash_at_any_step_is_mended_by_running_it_again() {
    for event in ["lock", "read", "stop", "handoff", "change", "release"] {
        let world = world().await;
        world.faults().die_at = Some(event);
        let died = tokio::time::timeout(
            Duration::from_millis(300),
            world.failover(Request::default()),
        )
        .await;
        assert!(died.is_err(), "did not die at {event}");
        world.faults().die_at = None;
        let report = world.failover(Request::default()).await.unwrap();
        let expected = if event == "release" {
            Outcome::AlreadyActive
        } else {
            Outcome::Flipped
        };
        assert_eq!(report.outcome, expected, "after dying at {event}");
        let record = world.record().await;
        assert_eq!(
            (record.active.as_str(), record.epoch),
            ("east", Epoch(2)),
            "after dying at {event}"
        );
        assert_eq!(
            world.handoff(2).await.unwrap().topics["orders"],
            [Some(10), Some(15)]
        );
    }
}

#[tokio::test]
async fn an_agent_cut_off_from_discovery_refuses_and_mirrors_on() {
    let world = world().await;
    world.faults().discovery_gone = true;
    let failure = world.failover(Request::default()).await.unwrap_err();
    assert_eq!(failure.code, ErrorCode::DiscoveryUnreachable);
    assert!(
        failure.message.contains("nothing was changed"),
        "{}",
        failure.message
    );
    assert_eq!(world.log(), ["lock"]);
    assert!(world.clusters().running);
}

#[tokio::test]
async fn nothing_is_written_after_the_lock_expired() {
    let world = world().await;
    world.faults().lock_expires_at_stop = true;
    let failure = world.failover(Request::default()).await.unwrap_err();
    assert_eq!(failure.code, ErrorCode::OperationFailed);
    assert!(
        failure.message.contains("the lock expired")
            && failure.message.contains("mirroring goes on"),
        "{}",
        failure.message
    );
    assert_eq!(failure.report.unwrap().outcome, Outcome::Failed);
    assert_eq!(world.log(), ["lock", "read", "stop", "resume", "release"]);
    assert_eq!(world.record().await.epoch, Epoch(1));
    assert!(world.clusters().running);
}

#[tokio::test]
async fn without_a_handoff_there_is_no_flip() {
    let world = world().await;
    world.faults().handoff_fails = true;
    let failure = world.failover(Request::default()).await.unwrap_err();
    assert!(
        failure.message.contains("the handoff was not written"),
        "{}",
        failure.message
    );
    assert_eq!(
        world.log(),
        ["lock", "read", "stop", "handoff", "resume", "release"]
    );
    assert_eq!(world.record().await.epoch, Epoch(1));
    assert!(world.clusters().running);
}

#[tokio::test]
async fn a_change_whose_answer_was_lost_is_looked_up() {
    let world = world().await;
    world.faults().change_unanswered = Some(Applied::Yes);
    let report = world.failover(Request::default()).await.unwrap();
    assert_eq!(report.outcome, Outcome::Flipped);
    assert!(
        !world.clusters().running,
        "mirrors must not write into the new active cluster"
    );
}

#[tokio::test]
async fn a_change_that_did_not_happen_lets_the_mirrors_go_on() {
    let world = world().await;
    world.faults().change_unanswered = Some(Applied::No);
    let failure = world.failover(Request::default()).await.unwrap_err();
    assert_eq!(failure.report.unwrap().outcome, Outcome::Failed);
    assert_eq!(
        world.log(),
        [
            "lock", "read", "stop", "handoff", "change", "read", "resume", "release"
        ]
    );
    assert!(world.clusters().running);
}

#[tokio::test]
async fn mirrors_wait_while_nobody_knows_whether_the_flip_happened() {
    for applied in [Applied::No, Applied::Yes] {
        let world = world().await;
        world.faults().change_unanswered = Some(applied);
        world.faults().gone_after_change = true;
        let failure = world.failover(Request::default()).await.unwrap_err();
        assert_eq!(failure.report.unwrap().outcome, Outcome::Unknown);
        assert!(
            !world.clusters().running,
            "the new active cluster may not be written into"
        );
        *world.faults() = Faults::default();
        let goes_on = applied == Applied::No;
        let waited = tokio::time::timeout(Duration::from_secs(3), async {
            while !world.clusters().running {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        assert_eq!(waited.await.is_ok(), goes_on, "{applied:?}");
    }
}

#[tokio::test]
async fn a_dead_target_is_refused_and_mirroring_goes_on() {
    let world = world().await;
    world.clusters().destination_alive = false;
    let failure = world.failover(Request::default()).await.unwrap_err();
    assert!(
        failure.message.contains("\"east\" gave no log end"),
        "{}",
        failure.message
    );
    assert!(world.clusters().running);
    assert_eq!(world.record().await.epoch, Epoch(1));
}

#[tokio::test]
async fn a_dry_run_changes_nothing_and_tells_the_loss() {
    let world = world().await;
    let report = world
        .failover(Request {
            dry_run: true,
            ..Request::default()
        })
        .await
        .unwrap();
    assert_eq!(
        (report.outcome, report.epoch),
        (Outcome::DryRun, Some(Epoch(1)))
    );
    assert_eq!(world.log(), ["lock", "read", "release"]);
    assert!(world.clusters().running && report.rpo_records.is_some());
    assert_eq!(
        (world.record().await.epoch, world.handoff(2).await),
        (Epoch(1), None)
    );
}

#[tokio::test]
async fn with_links_both_ways_the_target_must_be_named() {
    let mut world = world().await;
    world.context.mirrors.extra_route = Some(Route {
        from: name("east"),
        to: name("west"),
    });
    let failure = world.failover(Request::default()).await.unwrap_err();
    assert_eq!(failure.code, ErrorCode::Refused);
    assert!(
        failure.message.contains("--to east or --to west"),
        "{}",
        failure.message
    );
    let named = Request {
        to: Some(name("east")),
        ..Request::default()
    };
    assert_eq!(
        world.failover(named.clone()).await.unwrap().outcome,
        Outcome::Flipped
    );
    assert_eq!(
        world.failover(named).await.unwrap().outcome,
        Outcome::AlreadyActive
    );
}

#[tokio::test]
async fn unknown_targets_are_refused() {
    let world = world().await;
    let to = |cluster| Request {
        to: Some(name(cluster)),
        ..Request::default()
    };
    let failure = world.failover(to("north")).await.unwrap_err();
    assert!(
        failure
            .message
            .contains("no cluster \"north\"; it has: east, west"),
        "{}",
        failure.message
    );
    assert_eq!(
        (failure.code, world.clusters().running),
        (ErrorCode::Refused, true)
    );
}

#[tokio::test]
async fn the_lock_of_another_is_respected() {
    let world = world().await;
    let held = world.context.coordination.inner.lock().await.unwrap();
    let failure = world.failover(Request::default()).await.unwrap_err();
    assert_eq!(failure.code, ErrorCode::OperationInProgress);
    assert_eq!(world.log(), ["lock"]);
    drop(held);
}

#[tokio::test]
async fn a_switchover_drains_and_loses_nothing() {
    let world = world().await;
    world.clusters().source_alive = true;
    let report = world.switchover().await.unwrap();
    assert_eq!(
        world.log(),
        [
            "lock",
            "read",
            "fence",
            "sync_groups",
            "stop",
            "handoff",
            "change",
            "release"
        ]
    );
    assert_eq!(
        (report.outcome, report.epoch),
        (Outcome::Flipped, Some(Epoch(3)))
    );
    assert_eq!((report.rpo_records, report.planned), (Some(0), true));
    assert!(
        report.late_writes.is_empty() && report.warnings.is_empty(),
        "{report:?}"
    );
    let handoff = world.handoff(3).await.unwrap();
    assert!(handoff.planned);
    assert_eq!(handoff.topics["orders"], [Some(10), Some(20)]);
    let record = world.record().await;
    assert_eq!(
        (record.active, record.state),
        (name("east"), FleetState::Active)
    );
}

#[tokio::test]
async fn a_producer_that_does_not_heed_the_fence_is_named_and_the_fence_lifted() {
    let world = world().await;
    world.clusters().source_alive = true;
    world.clusters().growing = 1;
    let failure = world.switchover().await.unwrap_err();
    assert!(
        failure.message.contains("does not heed the fence") && failure.message.contains("orders-1"),
        "{}",
        failure.message
    );
    assert_eq!(
        world.log(),
        ["lock", "read", "fence", "resume", "change", "release"]
    );
    let record = world.record().await;
    assert_eq!(
        (record.active, record.state, record.epoch),
        (name("west"), FleetState::Active, Epoch(3))
    );
}

#[tokio::test]
async fn an_agent_that_shuts_down_leaves_no_fence_behind() {
    let world = world().await;
    world.clusters().source_alive = true;
    world.clusters().growing = 1;
    let token = world.context.shutdown.clone();
    let shutdown = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        token.cancel();
    };
    let (result, ()) = tokio::join!(world.switchover(), shutdown);
    assert!(
        result
            .unwrap_err()
            .message
            .contains("the agent is shutting down")
    );
    let record = world.record().await;
    assert_eq!(
        (record.active, record.state),
        (name("west"), FleetState::Active)
    );
}

#[tokio::test]
async fn a_write_between_drain_and_stop_is_caught() {
    let world = world().await;
    world.clusters().source_alive = true;
    world.clusters().grow_after = Some("stop");
    let failure = world.switchover().await.unwrap_err();
    assert!(
        failure.message.contains("after the drain: orders-1"),
        "{}",
        failure.message
    );
    assert!(world.clusters().running);
    assert_eq!(world.record().await.active, name("west"));
}

#[tokio::test]
async fn late_writes_are_reported_loudly() {
    let world = world().await;
    world.clusters().source_alive = true;
    let growth = {
        let (faults, clusters) = (Arc::clone(&world.faults), Arc::clone(&world.clusters));
        tokio::spawn(async move {
            while !faults
                .lock()
                .unwrap()
                .log
                .iter()
                .any(|event| event == "release")
            {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            clusters.lock().unwrap().growing = 1;
        })
    };
    let report = world.switchover().await.unwrap();
    growth.await.unwrap();
    assert_eq!(report.outcome, Outcome::Flipped);
    assert_eq!(
        (
            report.late_writes[0].partition,
            report.late_writes[0].from_offset
        ),
        (1, 20)
    );
    assert!(
        report.late_writes[0].records > 0 && report.warnings[0].starts_with("LATE WRITES"),
        "{report:?}"
    );
}

#[tokio::test]
async fn a_switchover_needs_both_clusters() {
    let world = world().await;
    let failure = world.switchover().await.unwrap_err();
    assert_eq!(failure.code, ErrorCode::Refused);
    assert!(
        failure.message.contains("use `standfast failover`"),
        "{}",
        failure.message
    );
    assert_eq!(world.record().await.epoch, Epoch(1));
}

#[tokio::test]
async fn a_fence_left_behind_is_taken_over_or_lifted() {
    for again in [true, false] {
        let world = world().await;
        world.clusters().source_alive = true;
        world.faults().die_at = Some("stop");
        let died = tokio::time::timeout(Duration::from_millis(900), world.switchover()).await;
        assert!(died.is_err());
        assert_eq!(world.record().await.state, FleetState::Fenced);
        world.faults().die_at = None;
        if again {
            assert_eq!(world.switchover().await.unwrap().epoch, Some(Epoch(3)));
        } else {
            let back = Request {
                to: Some(name("west")),
                ..Request::default()
            };
            assert_eq!(
                world.failover(back).await.unwrap().outcome,
                Outcome::AlreadyActive
            );
            let record = world.record().await;
            assert_eq!((record.state, record.epoch), (FleetState::Active, Epoch(3)));
        }
    }
}
