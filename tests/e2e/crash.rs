//! The log is the state: engines that are killed, or that run twice, leave the same log as one that ran through.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rdkafka::producer::{BaseRecord, Producer};
use standfast_tests::agent::{Agent, AgentConfig};
use standfast_tests::compare::assert_same_batches;
use standfast_tests::load;
use standfast_tests::pair::Pair;
use standfast_tests::wait;

use crate::shared_pair;

const PARTITIONS: i32 = 4;
const KILLS: usize = 20;
const MIRRORED: Duration = Duration::from_secs(90);

/// Ends the load when the test ends, also by a panic: the scope would wait for it for ever.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Writes to all partitions at a steady pace until told to stop; returns the number of records.
fn steady_load(bootstrap: &str, topic: &str, stop: &AtomicBool, written: &AtomicUsize) {
    const PAUSE: Duration = Duration::from_millis(2);
    let producer = load::producer(bootstrap, "lz4");
    let value = vec![b'x'; 500];
    while !stop.load(Ordering::Relaxed) {
        for partition in 0..PARTITIONS {
            let count = written.fetch_add(1, Ordering::Relaxed);
            let key = count.to_string();
            let record = BaseRecord::to(topic)
                .partition(partition)
                .key(&key)
                .payload(&value);
            producer
                .send(record)
                .map_err(|(error, _)| error)
                .expect("produce");
        }
        thread::sleep(PAUSE);
    }
    producer.flush(MIRRORED).expect("all acknowledged");
}

fn wait_until_mirrored(pair: &Pair, topic: &str, agent: &Agent) {
    let ends = pair.west.log_end_offsets(topic).expect("log ends");
    wait::until(&format!("{topic} is mirrored"), MIRRORED, || {
        match pair.east.log_end_offsets(topic) {
            Ok(east) if east == ends => Ok(()),
            other => Err(format!(
                "west {ends:?}, east {other:?}\n{}",
                agent.mirror(topic)
            )),
        }
    });
}

#[test]
fn an_engine_killed_twenty_times_leaves_an_identical_log() {
    let pair = shared_pair();
    let topic = "crash-killed";
    pair.west
        .create_topic(topic, PARTITIONS, &[])
        .expect("topic");
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut config = AgentConfig::of(pair, &[topic]);
    config.name = "killed".to_owned();
    let mut agent = Agent::start(pair, &config);
    let (stop, written) = (AtomicBool::new(false), AtomicUsize::new(0));
    let bootstrap = pair.west.bootstrap();
    thread::scope(|scope| {
        scope.spawn(|| steady_load(&bootstrap, topic, &stop, &written));
        let load = StopOnDrop(&stop);
        for kill in 0..KILLS {
            // The moment of the kill is measured from progress, so that it falls into a copy and not into a start.
            let before: i64 = pair
                .east
                .log_end_offsets(topic)
                .map_or(0, |ends| ends.iter().sum());
            wait::until_true(
                &format!("the copy goes on before kill {kill}"),
                MIRRORED,
                || {
                    pair.east
                        .log_end_offsets(topic)
                        .is_ok_and(|ends| ends.iter().sum::<i64>() > before)
                },
            );
            let moment = Instant::now() + Duration::from_micros(random.random_range(0..200_000));
            wait::until_true("the random moment", MIRRORED, || Instant::now() >= moment);
            agent.kill();
            agent.spawn();
        }
        agent.wait_ready();
        drop(load);
    });
    wait_until_mirrored(pair, topic, &agent);
    let compared = assert_same_batches(
        &pair.west.bootstrap(),
        &pair.east.bootstrap(),
        topic,
        PARTITIONS,
    );
    assert_eq!(compared.records, written.load(Ordering::Relaxed) as i64);
}

#[test]
fn two_engines_at_once_write_what_one_would() {
    let pair = shared_pair();
    let topic = "crash-two-engines";
    pair.west
        .create_topic(topic, PARTITIONS, &[])
        .expect("topic");
    let (stop, written) = (AtomicBool::new(false), AtomicUsize::new(0));
    let bootstrap = pair.west.bootstrap();
    thread::scope(|scope| {
        scope.spawn(|| steady_load(&bootstrap, topic, &stop, &written));
        let load = StopOnDrop(&stop);
        // Both begin on an empty mirror, while the source already has records.
        wait::until_true("load", MIRRORED, || written.load(Ordering::Relaxed) > 100);
        let start = |name: &str| {
            let mut config = AgentConfig::of(pair, &[topic]);
            config.name = name.to_owned();
            Agent::start(pair, &config)
        };
        let (first, second) = thread::scope(|scope| {
            let (first, second) = (
                scope.spawn(|| start("twin-1")),
                scope.spawn(|| start("twin-2")),
            );
            (
                first.join().expect("twin-1"),
                second.join().expect("twin-2"),
            )
        });
        wait::until_true("ten thousand records while both run", MIRRORED, || {
            pair.east
                .log_end_offsets(topic)
                .is_ok_and(|ends| ends.iter().sum::<i64>() > 10_000)
        });
        drop(load);
        wait_until_mirrored(pair, topic, &first);
        for agent in [&first, &second] {
            wait::until("both engines agree that they are done", MIRRORED, || {
                let mirror = agent.mirror(topic);
                let lags = mirror["mirror_lags"]
                    .as_array()
                    .cloned()
                    .unwrap_or_default();
                let done =
                    mirror["mirror_status"] == "ACTIVE" && lags.iter().all(|lag| lag["lag"] == 0);
                if done && lags.len() == PARTITIONS as usize {
                    Ok(())
                } else {
                    Err(mirror)
                }
            });
        }
    });
    wait::until_true("the load has ended", MIRRORED, || {
        pair.west.log_end_offsets(topic).ok() == pair.east.log_end_offsets(topic).ok()
    });
    let compared = assert_same_batches(
        &pair.west.bootstrap(),
        &pair.east.bootstrap(),
        topic,
        PARTITIONS,
    );
    assert_eq!(compared.records, written.load(Ordering::Relaxed) as i64);
}
