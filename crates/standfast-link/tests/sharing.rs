//! Several engines share a link: one log comes of it, whoever comes and goes, and all of them do what one is told.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use standfast_link::{
    LinkDescription, LinkHandle, LinkOptions, LinkState, MirrorStatus, PartitionState,
    SharingOptions,
};
use standfast_servers::KafkaCluster;
use standfast_wire::Cluster;
use support::*;

const TOPIC: &str = "shared";
const PARTITIONS: i32 = 8;
/// The figure of the issue.
const MOVED_OVER_MAX: Duration = Duration::from_secs(10);

/// An engine in a runtime of its own, as in a process of its own.
struct Engine {
    runtime: Option<tokio::runtime::Runtime>,
    running: Option<Running>,
}

impl Engine {
    fn start(name: &str, source: &KafkaCluster, destination: &KafkaCluster) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let options = LinkOptions {
            sharing: Some(SharingOptions::new(name)),
            ..link_options("shared", source, destination, &[TOPIC])
        };
        let running = {
            let _inside = runtime.enter();
            Running::start(options)
        };
        Self {
            runtime: Some(runtime),
            running: Some(running),
        }
    }

    fn handle(&self) -> &LinkHandle {
        &self.running().handle
    }

    fn running(&self) -> &Running {
        self.running.as_ref().expect("it runs")
    }

    /// As a SIGKILL: it does not leave the group, and what it has in flight is left.
    fn kill(self) {}

    async fn end(mut self) {
        let running = self.running.take().expect("it runs");
        let runtime = self.runtime.as_ref().expect("it runs");
        runtime.spawn(running.end()).await.expect("an end");
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn lags(link: &LinkDescription) -> &[standfast_link::PartitionLag] {
    link.mirrors
        .first()
        .map_or(&[], |mirror| &mirror.mirror_lags)
}

fn count(link: &LinkDescription, state: PartitionState) -> usize {
    lags(link).iter().filter(|lag| lag.state == state).count()
}

/// Waits until the engines have these shares, and every partition has exactly one.
async fn wait_shares(engines: &[(&Engine, usize)]) {
    for (engine, share) in engines {
        let what = format!("{share} partitions here, {} members", engines.len());
        engine
            .running()
            .wait(&what, |link| {
                link.members.len() == engines.len()
                    && count(link, PartitionState::Active) == *share
                    && count(link, PartitionState::Elsewhere) == PARTITIONS as usize - share
            })
            .await;
    }
}

/// Appends to all partitions until it is told to end.
struct Load {
    over: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Load {
    fn start(cluster: &Cluster) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (cluster, ends) = (cluster.clone(), Arc::clone(&over));
        let task = tokio::spawn(async move {
            while !ends.load(Ordering::Relaxed) {
                for partition in 0..PARTITIONS {
                    append_some(&cluster, TOPIC, partition, 3).await;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        Self { over, task }
    }

    async fn finish(self) {
        self.over.store(true, Ordering::Relaxed);
        self.task.await.expect("the load");
    }
}

async fn wait_equal(from: &Cluster, to: &Cluster) {
    wait_for("the logs are equal", async || {
        log_ends(from, TOPIC).await == log_ends(to, TOPIC).await
    })
    .await;
}

/// How long it takes until each of these partitions gets records again.
async fn wait_moved(to: &Cluster, partitions: &[usize], since: Instant) -> Duration {
    let before = log_ends(to, TOPIC).await;
    wait_for("the partitions go on elsewhere", async || {
        let now = log_ends(to, TOPIC).await;
        partitions.iter().all(|p| now[*p] > before[*p])
    })
    .await;
    since.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn engines_that_come_and_go_leave_one_log() {
    let (source, destination) = (kafka("source"), kafka("destination"));
    source.create_topic(TOPIC, PARTITIONS, &[]).unwrap();
    let (from, to) = (connect(&source).await, connect(&destination).await);
    let load = Load::start(&from);

    let first = Engine::start("first", &source, &destination);
    wait_shares(&[(&first, 8)]).await;
    let second = Engine::start("second", &source, &destination);
    wait_shares(&[(&first, 4), (&second, 4)]).await;

    // The lag of partitions that another one runs is known too, and who runs them.
    first
        .running()
        .wait("lags of all partitions", |link| {
            lags(link).iter().all(|lag| {
                let elsewhere = lag.state == PartitionState::Elsewhere;
                lag.lag.is_some() && lag.member.as_deref() == elsewhere.then_some("second")
            })
        })
        .await;
    let described = first.handle().describe();
    assert_eq!(described.mirrors[0].mirror_status, MirrorStatus::Active);
    assert_eq!(
        described
            .members
            .iter()
            .map(|m| m.partitions)
            .sum::<usize>(),
        8
    );

    // Killed: the other one takes over all of its partitions. What was in flight is in the log or not; nobody asks.
    let of_second: Vec<usize> = (0..8)
        .filter(|p| lags(&described)[*p].state == PartitionState::Elsewhere)
        .collect();
    let killed_at = Instant::now();
    second.kill();
    wait_shares(&[(&first, 8)]).await;
    let moved = wait_moved(&to, &of_second, killed_at).await;
    println!("a killed engine's partitions went on after {moved:?}");
    assert!(moved < MOVED_OVER_MAX, "{moved:?}");

    // One that leaves in order is replaced at once.
    let third = Engine::start("third", &source, &destination);
    wait_shares(&[(&first, 4), (&third, 4)]).await;
    let left_at = Instant::now();
    first.end().await;
    wait_shares(&[(&third, 8)]).await;
    println!(
        "after a leave all was taken over within {:?}",
        left_at.elapsed()
    );

    load.finish().await;
    wait_equal(&from, &to).await;
    assert_identical(&from, &to, TOPIC).await;
    what_one_is_told_all_do(&source, &destination, &from, &to, third).await;
}

async fn what_one_is_told_all_do(
    source: &KafkaCluster,
    destination: &KafkaCluster,
    from: &Cluster,
    to: &Cluster,
    one: Engine,
) {
    let load = Load::start(from);
    let other = Engine::start("other", source, destination);
    wait_shares(&[(&one, 4), (&other, 4)]).await;

    // A pause that has returned holds everywhere.
    let began = Instant::now();
    let changes = one.handle().pause(&[TOPIC]).await;
    println!("paused at both within {:?}", began.elapsed());
    assert_eq!(changes[0].error_code, None, "{changes:?}");
    let stood = log_ends(to, TOPIC).await;
    let there = other.handle().describe();
    assert_eq!(
        there.mirrors[0].mirror_status,
        MirrorStatus::Paused,
        "{there:#?}"
    );
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(log_ends(to, TOPIC).await, stood);
    // Resumed at the other one.
    other.handle().resume(&[TOPIC]).await;
    wait_shares(&[(&one, 4), (&other, 4)]).await;
    other.handle().pause_link().await;
    one.running()
        .wait("the link is paused", |link| {
            link.link_state == LinkState::Paused
        })
        .await;
    other.handle().resume_link().await;
    wait_shares(&[(&one, 4), (&other, 4)]).await;

    // An engine that starts in the middle of an operation on the fleet writes nothing.
    let began = Instant::now();
    let stopped = one
        .handle()
        .stop_everywhere(7, Duration::from_secs(5))
        .await
        .expect("a stop");
    println!("stopped at both within {:?}", began.elapsed());
    let stood = log_ends(to, TOPIC).await;
    let mut named = vec![None; 8];
    for mirror in &stopped {
        assert_eq!(mirror.error, None, "{mirror:?}");
        named[mirror.partition as usize] = mirror.destination_log_end_offset;
    }
    assert_eq!(
        named,
        stood.iter().map(|end| Some(*end)).collect::<Vec<_>>()
    );
    let late = Engine::start("late", source, destination);
    late.running()
        .wait("the order reaches one that starts later", |link| {
            link.link_state == LinkState::Stopped && link.members.len() == 3
        })
        .await;
    assert_eq!(other.handle().describe().link_state, LinkState::Stopped);
    load.finish().await;
    assert_eq!(log_ends(to, TOPIC).await, stood);
    // The one that gave the order goes away; the order stands until it is taken back.
    one.end().await;
    other
        .running()
        .wait("two members are left", |link| link.members.len() == 2)
        .await;
    assert_eq!(log_ends(to, TOPIC).await, stood);
    late.handle().lifecycle().set_stop(None);
    wait_shares(&[(&other, 4), (&late, 4)]).await;
    wait_equal(from, to).await;

    assert_identical(from, to, TOPIC).await;
    // A promote at one of them needs both.
    let promoted = other
        .handle()
        .promote(&[TOPIC], Duration::from_secs(20))
        .await;
    assert_eq!(promoted[0].error_code, None, "{promoted:?}");
    late.running()
        .wait("promoted there too", |link| {
            link.mirrors[0].mirror_status == MirrorStatus::Stopped
        })
        .await;
    let mirrored = log_ends(from, TOPIC).await;
    what_wakes_late_is_refused(to, &other, &mirrored).await;
    mirrors_again_behind_the_fence(source, destination, from, to, &other).await;
    other.end().await;
    late.end().await;
}

/// An engine has been lost meanwhile. It may only be frozen, and send its next batch once the topic is the applications' own.
async fn what_wakes_late_is_refused(to: &Cluster, other: &Engine, mirrored: &[i64]) {
    const INVALID_PRODUCER_EPOCH: i16 = 47;
    let fenced: Vec<i64> = mirrored.iter().map(|end| end + 1).collect();
    assert_eq!(log_ends(to, TOPIC).await, fenced, "one marker each");
    let producer_id = other
        .handle()
        .describe()
        .producer_id
        .expect("a producer id");
    for (partition, end) in (0..PARTITIONS).zip(mirrored) {
        let stamp = Stamp {
            attributes: 0,
            producer_id,
            producer_epoch: 0,
            base_sequence: i32::try_from(*end).expect("a short log"),
        };
        let straggler = batch(&[Record::new("late", "late")], stamp);
        let answer = append(to, TOPIC, partition, &straggler).await;
        assert_eq!(answer, Err(INVALID_PRODUCER_EPOCH), "partition {partition}");
    }
    assert_eq!(log_ends(to, TOPIC).await, fenced);
}

/// There and back: the marker is mirrored like any other, and the link's producer id goes on behind it.
async fn mirrors_again_behind_the_fence(
    source: &KafkaCluster,
    destination: &KafkaCluster,
    from: &Cluster,
    to: &Cluster,
    other: &Engine,
) {
    append_some(to, TOPIC, 0, 2).await;
    let back = Running::start(link_options("back", destination, source, &[TOPIC]));
    back.wait_caught_up(to, TOPIC).await;
    assert_identical(from, to, TOPIC).await;
    back.end().await;
    let created = other.handle().create(&[TOPIC], PATIENCE).await;
    assert_eq!(created[0].error_code, None, "{created:?}");
    for partition in 0..PARTITIONS {
        append_some(from, TOPIC, partition, 3).await;
    }
    wait_equal(from, to).await;
    assert_identical(from, to, TOPIC).await;
}
