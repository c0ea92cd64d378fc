//! Two members, and a rebalance in the middle of a flip: one member has everything on the old cluster, a second one comes with
//! the flip and gets half of it on the new one.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use standfast::discovery::DiscoveryOptions;
use standfast::{ConsumerHandle, FailoverConsumer, Fleet, MissingOffset, RebalanceEvent};
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use crate::harness::{EAST, SOON, WEST, World, mirror, produce_plain, until};

const PARTITIONS: i32 = 4;
const RECORDS: usize = 200;
const ALL: usize = PARTITIONS as usize * RECORDS;

/// Longer than a member waits for another one's position (5 s), shorter than a session (10 s).
const SILENT: Duration = Duration::from_secs(7);

/// A member that comes later than this may be too late to hand its position over (5 s).
const IN_TIME: Duration = Duration::from_millis(4_000);

type Told = Arc<Mutex<Vec<(Instant, RebalanceEvent)>>>;

#[tokio::test(flavor = "multi_thread")]
async fn a_second_member_comes_with_the_flip() {
    let world = mirrored().await;
    given_back(&world).await;
    acknowledged_late(&world).await;
    round(&world, "range", EAST, false).await;
    round(&world, "cooperative-sticky", WEST, false).await;
    round(&world, "roundrobin", EAST, true).await;
}

/// Nobody begins to read some partitions between two flips: on east the first member has all of them, and waits for what the second
/// one says, which is not assigned anything yet.
#[tokio::test(flavor = "multi_thread")]
async fn positions_outlast_a_flip_that_came_too_soon_to_be_used() {
    let world = mirrored().await;
    let mut pair = Pair::start(&world).await;
    // So many records were read by then: flips in quick succession, and such that others might have begun to read in between.
    let mut pauses = vec![
        (200, Duration::from_millis(200)),
        (500, Duration::from_millis(1_700)),
    ];
    while pair.counts.len() < ALL {
        pair.read_one().await;
        if pauses
            .first()
            .is_some_and(|(at, _)| pair.counts.len() >= *at)
        {
            let (_, pause) = pauses.remove(0);
            world.flip(EAST, whole_handoff()).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            pair.tell_second(&world);
            tokio::time::sleep(pause).await;
            world.flip(WEST, whole_handoff()).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            pair.tell_second(&world);
        }
    }
    pair.assert_nothing_repeated().await;
}

/// The coordinator falls silent when the first member has been given everything, for longer than positions are waited for. The other one is there
/// when it answers again, and no sooner.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_coordinator_takes_nothing_from_the_time_to_tell() {
    let world = mirrored().await;
    let mut pair = Pair::start(&world).await;
    while pair.counts.len() < 300 {
        pair.read_one().await;
    }
    world.flip(EAST, whole_handoff()).await;
    let handle = pair.first.clone();
    until("the first has everything", || {
        handle.assignment().len() == PARTITIONS as usize
    })
    .await;
    world.east.pause();
    tokio::time::sleep(SILENT).await;
    world.east.resume();
    pair.tell_second(&world);
    while pair.counts.len() < ALL {
        pair.read_one().await;
    }
    pair.assert_nothing_repeated().await;
}

/// Two members with half of the partitions each, on west. The second one hears of flips when it is told.
struct Pair {
    first: ConsumerHandle,
    late: TempDir,
    seen: UnboundedReceiver<(i32, i64)>,
    counts: BTreeMap<(i32, i64), usize>,
    _fleets: [Fleet; 2],
}

impl Pair {
    async fn start(world: &World) -> Self {
        let late = tempfile::tempdir().expect("folder");
        copy(world.dir.path(), late.path());
        let fleets = [world.connect().await, connect_to(late.path()).await];
        let told = Told::default();
        let first = subscribe(&fleets[0], "range", &told).await;
        let second = subscribe(&fleets[1], "range", &told).await;
        let (handle, second_handle) = (first.handle(), second.handle());
        until("each has half", || {
            (handle.assignment().len(), second_handle.assignment().len()) == (2, 2)
        })
        .await;
        let (sender, seen) = tokio::sync::mpsc::unbounded_channel();
        for consumer in [first, second] {
            tokio::spawn(read(consumer, sender.clone()));
        }
        Self {
            first: handle,
            late,
            seen,
            counts: BTreeMap::new(),
            _fleets: fleets,
        }
    }

    fn tell_second(&self, world: &World) {
        copy(world.dir.path(), self.late.path());
    }

    async fn read_one(&mut self) {
        let next = tokio::time::timeout(SOON, self.seen.recv()).await;
        let place = next.expect("in time").expect("open");
        *self.counts.entry(place).or_default() += 1;
    }

    async fn assert_nothing_repeated(mut self) {
        // Longer than anybody waits for a position.
        tokio::time::sleep(Duration::from_secs(8)).await;
        while let Ok(next) = self.seen.try_recv() {
            *self.counts.entry(next).or_default() += 1;
        }
        let repeated = self.counts.values().filter(|count| **count > 1).count();
        assert_eq!(repeated, 0, "repeated");
    }
}

fn whole_handoff() -> Option<Vec<Option<i64>>> {
    Some(vec![Some(RECORDS as i64); PARTITIONS as usize])
}

/// Both clusters have the same records.
async fn mirrored() -> World {
    let world = World::start(PARTITIONS).await;
    for partition in 0..PARTITIONS {
        let records = (0..RECORDS).map(|n| n.to_string());
        produce_plain(&world.west.bootstrap(), "orders", partition, records);
        let (west, east) = (world.west.bootstrap(), world.east.bootstrap());
        mirror(&west, &east, partition, RECORDS as i64);
    }
    world
}

/// Without a flip: what the application asks for while it is told that partitions go is committed before they do.
async fn given_back(world: &World) {
    let fleet = world.connect().await;
    let subscribe = || async {
        let consumer = fleet
            .consumer("given-back")
            .manual_commit()
            .on_missing_offset(MissingOffset::Earliest)
            .on_rebalance(|consumer, event| {
                if let RebalanceEvent::Revoked(_) = event {
                    consumer.ack_all().expect("ack");
                    consumer.request_commit().expect("asked");
                }
            })
            .subscribe(&["orders"]);
        consumer.await.expect("consumer")
    };
    let mut counts = BTreeMap::<(i32, i64), usize>::new();
    let mut first = subscribe().await;
    for _ in 0..300 {
        *counts.entry(next(&mut first).await).or_default() += 1;
    }
    let mut second = subscribe().await;
    let (handle, second_handle) = (first.handle(), second.handle());
    until("each has half", || {
        (handle.assignment().len(), second_handle.assignment().len()) == (2, 2)
    })
    .await;
    while counts.len() < ALL {
        let next = tokio::select! {
            next = next(&mut first) => next,
            next = next(&mut second) => next,
        };
        *counts.entry(next).or_default() += 1;
    }
    let repeated = counts.values().filter(|count| **count > 1).count();
    assert_eq!(repeated, 0, "given back without a commit");
}

/// Without a flip: what the application was working on when partitions go is acknowledged a moment later, and counts.
async fn acknowledged_late(world: &World) {
    let fleet = world.connect().await;
    let (sender, mut told) = tokio::sync::mpsc::unbounded_channel();
    let subscribe = || async {
        let sender = sender.clone();
        let consumer = fleet
            .consumer("acknowledged-late")
            .on_missing_offset(MissingOffset::Earliest)
            .on_rebalance(move |_, event| {
                if let RebalanceEvent::Revoked(_) = event {
                    let _ = sender.send(());
                }
            })
            .subscribe(&["orders"]);
        consumer.await.expect("consumer")
    };
    let mut counts = BTreeMap::<(i32, i64), usize>::new();
    let mut first = subscribe().await;
    let mut in_work = BTreeMap::new();
    while counts.len() < 300 || in_work.len() < PARTITIONS as usize {
        let message = tokio::time::timeout(SOON, first.next()).await;
        let message = message.expect("in time").expect("open").expect("record");
        let place = (message.partition(), message.offset());
        *counts.entry(place).or_default() += 1;
        if let Some(done) = in_work.insert(message.partition(), message) {
            first.ack(&done).expect("ack");
        }
    }
    let mut second = subscribe().await;
    let revoked = tokio::time::timeout(SOON, told.recv()).await;
    revoked.expect("in time").expect("told");
    tokio::time::sleep(Duration::from_millis(100)).await;
    for message in in_work.values() {
        first.ack(message).expect("ack");
    }
    let (handle, second_handle) = (first.handle(), second.handle());
    until("each has half", || {
        (handle.assignment().len(), second_handle.assignment().len()) == (2, 2)
    })
    .await;
    while counts.len() < ALL {
        let next = tokio::select! {
            next = next(&mut first) => next,
            next = next(&mut second) => next,
        };
        *counts.entry(next).or_default() += 1;
    }
    let repeated = counts.values().filter(|count| **count > 1).count();
    assert_eq!(repeated, 0, "acknowledged late");
}

async fn next(consumer: &mut FailoverConsumer) -> (i32, i64) {
    let message = tokio::time::timeout(SOON, consumer.next())
        .await
        .expect("in time");
    let message = message.expect("open").expect("record");
    (message.partition(), message.offset())
}

/// `is_late`: the first member hears of the flip when the second one has been given everything.
async fn round(world: &World, strategy: &str, to: &str, is_late: bool) {
    let heard = tempfile::tempdir().expect("folder");
    copy(world.dir.path(), heard.path());
    let fleet = match is_late {
        true => connect_to(heard.path()).await,
        false => world.connect().await,
    };
    let second_fleet = world.connect().await;
    let (told, second_told) = (Told::default(), Told::default());
    let (sender, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let mut counts = BTreeMap::<(i32, i64), usize>::new();
    let mut first = subscribe(&fleet, strategy, &told).await;
    for n in 0..300 {
        let message = tokio::time::timeout(SOON, first.next())
            .await
            .expect("in time");
        let message = message.expect("open").expect("record");
        first.ack(&message).expect("ack");
        *counts
            .entry((message.partition(), message.offset()))
            .or_default() += 1;
        if n == 100 {
            first.commit().await.expect("commit");
            carry_over(world, to, strategy);
        }
    }
    world.flip(to, whole_handoff()).await;
    let second = subscribe(&second_fleet, strategy, &second_told).await;
    let (handle, second_handle) = (first.handle(), second.handle());
    if is_late {
        until("the second has everything", || {
            second_handle.assignment().len() == PARTITIONS as usize
        })
        .await;
        copy(world.dir.path(), heard.path());
    }
    for consumer in [first, second] {
        tokio::spawn(read(consumer, sender.clone()));
    }
    while counts.len() < ALL {
        let next = tokio::time::timeout(SOON, seen.recv()).await;
        *counts
            .entry(next.expect("in time").expect("open"))
            .or_default() += 1;
    }
    until("each has half", || {
        (handle.assignment().len(), second_handle.assignment().len()) == (2, 2)
    })
    .await;
    let (told, second_told) = (
        told.lock().expect("told"),
        second_told.lock().expect("told"),
    );
    let gone = told.iter().find_map(|(at, event)| match event {
        RebalanceEvent::Lost(partitions) => Some((*at, true, partitions.clone())),
        RebalanceEvent::Revoked(partitions) => Some((*at, false, partitions.clone())),
        _ => None,
    });
    let (at, handed_over, partitions) = gone.expect("the first member is told");
    let (got_at, _) = second_told.first().expect("the second member is told");
    let late = at.saturating_duration_since(*got_at);
    let repeated = counts.values().filter(|count| **count > 1).count();
    println!(
        "{strategy}: {partitions:?} changed hands, handed over: {handed_over}, {late:?} late, {repeated} records came twice"
    );
    // If the second member was there first, it had all of them until the next rebalance.
    assert!(!handed_over || partitions.len() >= 2);
    assert!(
        !handed_over || late > IN_TIME || repeated == 0,
        "{repeated}"
    );
    assert!(
        handed_over || repeated == 0,
        "revoked, hence committed: {repeated}"
    );
    assert!(counts.keys().all(|(_, offset)| *offset < RECORDS as i64));
    // The group is on the new cluster alone.
    drop(fleet);
}

async fn subscribe(fleet: &Fleet, strategy: &str, told: &Told) -> FailoverConsumer {
    let told = Arc::clone(told);
    fleet
        .consumer(format!("members-{strategy}"))
        .property("partition.assignment.strategy", strategy)
        // Nothing but handing over and giving back tells the group a position.
        .commit_interval(Duration::from_secs(600))
        .on_missing_offset(MissingOffset::Earliest)
        .on_rebalance(move |_, event| {
            let mut told = told.lock().expect("told");
            told.push((Instant::now(), event.clone()));
        })
        .subscribe(&["orders"])
        .await
        .expect("consumer")
}

async fn read(mut consumer: FailoverConsumer, sender: UnboundedSender<(i32, i64)>) {
    while let Some(message) = consumer.next().await {
        let message = message.expect("record");
        consumer.ack(&message).expect("ack");
        if sender
            .send((message.partition(), message.offset()))
            .is_err()
        {
            return;
        }
        // So slowly that the members share the work.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn connect_to(discovery: &Path) -> Fleet {
    Fleet::builder("payments")
        .discovery(DiscoveryOptions::file(discovery))
        .build()
        .await
        .expect("fleet")
}

/// What one fleet's discovery says, another one hears later.
fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).expect("folder").flatten() {
        let target = to.join(entry.file_name());
        if entry.file_type().expect("type").is_dir() {
            std::fs::create_dir_all(&target).expect("folder");
            copy(&entry.path(), &target);
        } else {
            // As discovery writes: whole, or not at all.
            let new = target.with_extension("new");
            std::fs::copy(entry.path(), &new).expect("copied");
            std::fs::rename(&new, &target).expect("in place");
        }
    }
}

/// The agent has carried the group's offsets over, a while ago.
fn carry_over(world: &World, to: &str, strategy: &str) {
    let plain = |bootstrap: String| -> BaseConsumer {
        rdkafka::ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("group.id", format!("members-{strategy}"))
            .create()
            .expect("consumer")
    };
    let (west, east) = (world.west.bootstrap(), world.east.bootstrap());
    let (from, to) = if to == EAST {
        (west, east)
    } else {
        (east, west)
    };
    let mut list = TopicPartitionList::new();
    list.add_partition_range("orders", 0, PARTITIONS - 1);
    let offsets = plain(from).committed_offsets(list, SOON).expect("offsets");
    plain(to)
        .commit(&offsets, CommitMode::Sync)
        .expect("commit");
}
