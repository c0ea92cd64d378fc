//! Two clusters and a discovery that fail as they are told to.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use standfast_discovery::{ClusterEntry, Discovery, DiscoveryOptions, FleetState, Lock};
use tokio::sync::watch;

use super::super::*;
use crate::api::MirrorLag;

pub(super) type Shared<T> = Arc<Mutex<T>>;

#[derive(Debug, Default)]
pub(super) struct Faults {
    /// Events in the order in which they happened.
    pub(super) log: Vec<String>,
    pub(super) discovery_gone: bool,
    pub(super) handoff_fails: bool,
    /// The answer to the change is lost: before or after it was applied.
    pub(super) change_unanswered: Option<Applied>,
    pub(super) gone_after_change: bool,
    pub(super) lock_expires_at_stop: bool,
    pub(super) lock_expired: bool,
    /// The operation is killed when this event happens.
    pub(super) die_at: Option<&'static str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Applied {
    Yes,
    No,
}

#[derive(Debug, Clone)]
pub(super) struct FaultyCoordination {
    pub(super) inner: DiscoveryCoordination,
    pub(super) faults: Shared<Faults>,
}

#[derive(Debug)]
pub(super) struct FaultyLock {
    pub(super) inner: Lock,
    pub(super) faults: Shared<Faults>,
}

impl FaultyCoordination {
    pub(super) async fn note(&self, event: &'static str) -> Result<(), CoordinationError> {
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
impl Faults {
    /// Whether the step to die at was reached.
    fn hangs(&self) -> bool {
        self.log.last().map(String::as_str) == self.die_at
    }
}

pub(super) async fn happen(faults: &Shared<Faults>, event: &str) {
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
pub(super) struct Clusters {
    pub(super) source: Vec<i64>,
    pub(super) destination: Vec<i64>,
    pub(super) running: bool,
    pub(super) source_alive: bool,
    /// The link has lost the source; the probe has not noticed yet.
    pub(super) source_just_lost: bool,
    pub(super) destination_alive: bool,
    /// The destination answers, but does not know the topic.
    pub(super) destination_lacks_topic: bool,
    pub(super) destination_dies_at_stop: bool,
    /// Records that a producer adds to partition 1 at every look, from then on.
    pub(super) growing: i64,
    pub(super) grow_after: Option<&'static str>,
    /// The link carries groups over, and this is what they have yet to read and the mirror does not hold.
    pub(super) unread: Option<Result<Vec<UnreadRecords>, String>>,
    /// At which look they have read it.
    pub(super) read_at_look: Option<u32>,
    pub(super) looks: u32,
    /// What grows is written by a link from the other cluster.
    pub(super) linked_back: bool,
}

#[derive(Debug, Clone)]
pub(super) struct FakeMirrors {
    pub(super) clusters: Shared<Clusters>,
    pub(super) faults: Shared<Faults>,
    pub(super) extra_route: Option<Route>,
}

impl FakeMirrors {
    pub(super) fn report(&self, status: &str) -> Vec<TopicReport> {
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

    pub(super) fn start_growing_after(&self, event: &str) {
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
        let lost = self.clusters.lock().unwrap().source_just_lost;
        self.report(if lost { "SOURCE_UNAVAILABLE" } else { "ACTIVE" })
    }

    async fn stop(&self, _: &Route, _: Epoch, _: Duration) -> Vec<TopicReport> {
        happen(&self.faults, "stop").await;
        let mut clusters = self.clusters.lock().unwrap();
        clusters.running = false;
        clusters.destination_alive &= !clusters.destination_dies_at_stop;
        drop(clusters);
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

    fn carries_groups(&self, _: &Route) -> bool {
        self.clusters.lock().unwrap().unread.is_some()
    }

    async fn unread(&self, _: &Route) -> Result<Vec<UnreadRecords>, String> {
        let mut clusters = self.clusters.lock().unwrap();
        clusters.looks += 1;
        if clusters.read_at_look == Some(clusters.looks) {
            clusters.unread = Some(Ok(Vec::new()));
        }
        clusters.unread.clone().unwrap()
    }

    async fn log_ends(&self, cluster: &ClusterName, _: &Route) -> Result<LogEnds, String> {
        let is_source = *cluster == name("west");
        let mut clusters = self.clusters.lock().unwrap();
        if !is_source && !clusters.destination_alive {
            return Err("connection refused".to_owned());
        }
        if !is_source && clusters.destination_lacks_topic {
            return Err("topic orders: UnknownTopicOrPartition".to_owned());
        }
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

    async fn same_at(&self, _: &Route, offsets: &LogEnds) -> BTreeSet<(String, i32)> {
        let linked_back = self.clusters.lock().unwrap().linked_back;
        let keys = offsets.keys().filter(|_| linked_back);
        keys.cloned().collect()
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

pub(super) struct World {
    pub(super) context: Context<FaultyCoordination, FakeMirrors>,
    pub(super) faults: Shared<Faults>,
    pub(super) clusters: Shared<Clusters>,
    _folder: tempfile::TempDir,
}

pub(super) fn name(name: &str) -> ClusterName {
    ClusterName::new(name).unwrap()
}

pub(super) fn west_to_east() -> Route {
    Route {
        from: name("west"),
        to: name("east"),
    }
}

pub(super) async fn world() -> World {
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
            group_reads: Duration::from_millis(600),
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
    pub(super) async fn failover(&self, request: Request) -> Result<Report, Failure> {
        failover(&self.context, steps(), request).await
    }

    pub(super) async fn switchover(&self) -> Result<Report, Failure> {
        self.switchover_as(Request::default()).await
    }

    pub(super) async fn switchover_as(&self, request: Request) -> Result<Report, Failure> {
        let drain = Drain {
            timeout: Duration::from_secs(2),
            settle: Duration::from_millis(250),
        };
        switchover(&self.context, steps(), request, drain).await
    }

    pub(super) fn faults(&self) -> std::sync::MutexGuard<'_, Faults> {
        self.faults.lock().unwrap()
    }

    pub(super) fn clusters(&self) -> std::sync::MutexGuard<'_, Clusters> {
        self.clusters.lock().unwrap()
    }

    /// Drops `operation` once it hangs in the step of [`Faults::die_at`], as a killed agent would leave it.
    pub(super) async fn dies_in<T: std::fmt::Debug>(&self, operation: impl Future<Output = T>) {
        let reached = async {
            while !self.faults().hangs() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            ended = operation => panic!("it was to die on the way: {ended:?}"),
            () = reached => {}
            () = tokio::time::sleep(Duration::from_secs(30)) => panic!("never got to the step"),
        }
    }

    pub(super) fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.faults().log)
    }

    pub(super) async fn record(&self) -> FleetRecord {
        self.context
            .coordination
            .inner
            .read()
            .await
            .unwrap()
            .unwrap()
            .value
    }

    pub(super) async fn handoff(&self, epoch: u64) -> Option<Handoff> {
        self.context
            .coordination
            .inner
            .read_handoff(Epoch(epoch))
            .await
            .unwrap()
    }
}

pub(super) fn steps() -> Steps {
    Steps::begin("test", watch::Sender::new(None))
}
