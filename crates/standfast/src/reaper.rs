//! Takes old clients down in the background.
//!
//! Destroying a Kafka client joins its threads and may wait for a cluster that is gone. Nobody awaits that: old clients
//! go to one named thread, which the process does not join when it ends. What may take long has a thread of its own there.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};

use crate::ffi;

/// Old clients that may wait to be taken down. One takes well under a second; this is many producers over many flips.
const MAX_RETIRING: usize = 256;

/// A retirement that takes longer than this is worth a line in the log: twice the wrapper's session timeout.
const SLOW: Duration = Duration::from_secs(20);

/// How long an old client may take to find out whether its coordinator is alive.
const COORDINATOR: Duration = Duration::from_millis(500);

/// The same when it is asked again. Short, since the others wait meanwhile.
const COORDINATOR_AGAIN: Duration = Duration::from_millis(100);

/// Between two questions to a coordinator that does not answer.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// For so long an old client tries to leave its group: the wrapper's session timeout and a little. Later the broker has dropped the
/// member by itself.
const TRIES_TO_LEAVE: Duration = Duration::from_secs(12);

/// How long an old client goes on after it has asked to leave its group, so that the request gets out.
const LEAVE: Duration = Duration::from_millis(500);

/// Events that are taken at once from a client that leaves; with what it still reads among them.
const MAX_EVENTS: usize = 100;

/// Between two looks at the clients that wait for something.
const LOOK: Duration = Duration::from_millis(50);

static RETIRING: AtomicU64 = AtomicU64::new(0);
static ABANDONED: AtomicU64 = AtomicU64::new(0);

/// A client's last act, or what is to be done of it now. It may block for a moment.
pub(crate) struct Retirement(Box<dyn FnOnce(Patience) -> Option<Rest> + Send>);

/// Whether there is time for what can be done without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    Some,
    /// Too many clients are waiting.
    None,
}

/// The rest of a retirement.
enum Rest {
    /// To be done after some time.
    Later(Duration, Retirement),
    /// It may take long: nobody is to wait for it.
    Apart(Retirement),
}

impl Retirement {
    /// One that is done at once.
    pub(crate) fn new(act: impl FnOnce() + Send + 'static) -> Self {
        Self(Box::new(move |_| {
            act();
            None
        }))
    }

    /// Takes a consumer down ([`Farewell`]), and does `then` when it is gone.
    pub(crate) fn of_consumer<C: ConsumerContext + 'static>(
        farewell: Farewell<C>,
        then: impl FnOnce() + Send + 'static,
    ) -> Self {
        Self(Box::new(move |patience| farewell.go_on(patience, then)))
    }
}

/// How long an old client is left alone before it is taken down.
pub(crate) struct Stay {
    /// Until then.
    pub(crate) until: Instant,
    /// No longer than this says so. Asked often; must not block.
    pub(crate) while_wanted: Box<dyn Fn() -> bool + Send>,
}

/// Runs `retirement` on the reaper thread. Never blocks. If the list is full, the client is abandoned with its threads.
pub(crate) fn retire(client: &str, retirement: Retirement) {
    retire_after(client, None, retirement);
}

/// The same after `stay`.
pub(crate) fn retire_after(client: &str, stay: Option<Stay>, retirement: Retirement) {
    static REAPER: OnceLock<Option<SyncSender<Job>>> = OnceLock::new();
    RETIRING.fetch_add(1, Relaxed);
    let job = Job {
        client: client.to_owned(),
        stay,
        retirement,
        took: Duration::ZERO,
    };
    let refused = match REAPER.get_or_init(start) {
        Some(reaper) => match reaper.try_send(job) {
            Ok(()) => return,
            Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) => job,
        },
        None => job,
    };
    RETIRING.fetch_sub(1, Relaxed);
    ABANDONED.fetch_add(1, Relaxed);
    tracing::error!(
        client,
        limit = MAX_RETIRING,
        "old Kafka client abandoned: too many are being taken down; its threads and memory stay until the process ends"
    );
    std::mem::forget(refused);
}

/// Clients that are being taken down now.
pub(crate) fn retiring() -> u64 {
    RETIRING.load(Relaxed)
}

/// Clients that had to be abandoned.
pub(crate) fn abandoned() -> u64 {
    ABANDONED.load(Relaxed)
}

/// A consumer on its way out. It leaves its group if the coordinator answers, so that the others need not wait for the session to time out:
/// a member of which the coordinator hears no more would be given partitions that nobody reads. In the end it is destroyed without the
/// close protocol, which has no deadline.
///
/// Leaving is only tried right after the coordinator has answered: librdkafka 2.12.1 can crash when a leave meets a
/// coordinator that is gone (fixed in 2.14.2).
pub(crate) struct Farewell<C: ConsumerContext> {
    consumer: BaseConsumer<C>,
    /// See [`asked_about`]; none if it never was in a group.
    member: TopicPartitionList,
    began: Option<Instant>,
    left: Option<Instant>,
}

impl<C: ConsumerContext + 'static> Farewell<C> {
    /// `member`: see [`asked_about`], none if the consumer never was in a group.
    pub(crate) fn new(consumer: BaseConsumer<C>, member: TopicPartitionList) -> Self {
        Self {
            consumer,
            member,
            began: None,
            left: None,
        }
    }

    fn go_on(mut self, patience: Patience, then: impl FnOnce() + Send + 'static) -> Option<Rest> {
        let after = match patience {
            Patience::Some => self.next_step(),
            Patience::None => None,
        };
        if let Some(after) = after {
            return Some(Rest::Later(after, Retirement::of_consumer(self, then)));
        }
        let has_coordinator = self.member.count() == 0 || self.left.is_some();
        let Self {
            consumer, member, ..
        } = self;
        // The list holds partitions of the client, which would wait for it for ever.
        drop(member);
        let end = Retirement::new(move || {
            ffi::destroy_without_close(consumer);
            then();
        });
        match has_coordinator {
            true => (end.0)(patience),
            // librdkafka keeps commits that wait for a coordinator for the time of a session (2.12.1: `rd_kafka_cgrp_try_terminate`).
            false => Some(Rest::Apart(end)),
        }
    }

    /// After how long the next one is due; `None`: it is over.
    fn next_step(&mut self) -> Option<Duration> {
        if self.member.count() == 0 {
            return None;
        }
        if let Some(left) = self.left {
            for _ in 0..MAX_EVENTS {
                drop(self.consumer.poll(Duration::ZERO));
            }
            return (left.elapsed() < LEAVE).then_some(LOOK);
        }
        let timeout = match self.began {
            None => COORDINATOR,
            Some(_) => COORDINATOR_AGAIN,
        };
        let began = *self.began.get_or_insert_with(Instant::now);
        let asked = self
            .consumer
            .committed_offsets(self.member.clone(), timeout);
        if asked.is_err() {
            return (began.elapsed() < TRIES_TO_LEAVE).then_some(ASK_AGAIN);
        }
        self.consumer.unsubscribe();
        self.left = Some(Instant::now());
        Some(Duration::ZERO)
    }
}

/// Partitions by which the coordinator can be asked whether it is there: a member's own, else one of `topic`, since it may only be joining.
pub(crate) fn asked_about(
    mut own: TopicPartitionList,
    topic: Option<&String>,
) -> TopicPartitionList {
    if let (0, Some(topic)) = (own.count(), topic) {
        own.add_partition(topic, 0);
    }
    own
}

struct Job {
    client: String,
    stay: Option<Stay>,
    retirement: Retirement,
    /// Spent on it until now.
    took: Duration,
}

impl Job {
    fn is_due(&self) -> bool {
        let stays = |stay: &Stay| Instant::now() < stay.until && (stay.while_wanted)();
        !self.stay.as_ref().is_some_and(stays)
    }
}

fn start() -> Option<SyncSender<Job>> {
    let (sender, jobs) = sync_channel(MAX_RETIRING);
    let spawned = thread::Builder::new()
        .name("standfast-reaper".to_owned())
        .spawn(move || run(&jobs));
    match spawned {
        Ok(_detached) => Some(sender),
        Err(error) => {
            tracing::error!(%error, "the thread that takes old Kafka clients down cannot be started");
            None
        }
    }
}

fn run(jobs: &Receiver<Job>) {
    let mut waiting = Vec::new();
    let mut is_open = true;
    while is_open || !waiting.is_empty() {
        let next = match waiting.is_empty() {
            true => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
            false => jobs.recv_timeout(LOOK),
        };
        match next {
            Ok(job) => waiting.push(job),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => is_open = false,
        }
        let patience = match waiting.len() < MAX_RETIRING {
            true => Patience::Some,
            false => Patience::None,
        };
        let is_due = |job: &mut Job| patience == Patience::None || job.is_due();
        let due: Vec<Job> = waiting.extract_if(.., is_due).collect();
        waiting.extend(due.into_iter().filter_map(|job| go_on(job, patience)));
    }
}

/// Does what is due of a retirement; the rest of it.
fn go_on(job: Job, patience: Patience) -> Option<Job> {
    let Job {
        client,
        retirement,
        took,
        ..
    } = job;
    let started = Instant::now();
    // A panic in one client's destructor must not keep the later ones alive.
    let act = std::panic::AssertUnwindSafe(|| (retirement.0)(patience));
    let outcome = std::panic::catch_unwind(act);
    let took = took + started.elapsed();
    let rest = |after, retirement| Job {
        client: client.clone(),
        stay: Some(Stay {
            until: Instant::now() + after,
            while_wanted: Box::new(|| true),
        }),
        retirement,
        took,
    };
    match outcome {
        Ok(Some(Rest::Later(after, retirement))) => return Some(rest(after, retirement)),
        Ok(Some(Rest::Apart(retirement))) => {
            go_on_apart(rest(Duration::ZERO, retirement));
            return None;
        }
        Ok(None) | Err(_) => {}
    }
    RETIRING.fetch_sub(1, Relaxed);
    if outcome.is_err() {
        tracing::error!(client, "taking an old Kafka client down panicked");
    } else if took > SLOW {
        tracing::warn!(client, ?took, "taking an old Kafka client down was slow");
    } else {
        tracing::debug!(client, ?took, "old Kafka client is gone");
    }
    None
}

/// Does the last of a retirement on a thread of its own. No more of them than clients may wait.
fn go_on_apart(job: Job) {
    let job = Arc::new(Mutex::new(Some(job)));
    let taken = Arc::clone(&job);
    let take = |job: &Mutex<Option<Job>>| job.lock().map_or(None, |mut job| job.take());
    let end = move |job: &Mutex<Option<Job>>| {
        if let Some(job) = take(job) {
            // It is the last: there is no rest.
            drop(go_on(job, Patience::None));
        }
    };
    let is_busy = RETIRING.load(Relaxed) > MAX_RETIRING as u64;
    let spawn = || {
        thread::Builder::new()
            .name("standfast-reaper".to_owned())
            .spawn(move || end(&taken))
    };
    if is_busy || spawn().is_err() {
        end(&job);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_without_partitions_asks_about_any_of_its_topics() {
        let topic = "orders".to_owned();
        let asked = asked_about(TopicPartitionList::new(), Some(&topic));
        assert!(asked.find_partition("orders", 0).is_some());
        let mut own = TopicPartitionList::new();
        own.add_partition("orders", 3);
        let asked = asked_about(own, Some(&topic));
        assert_eq!(asked.count(), 1);
        assert!(asked.find_partition("orders", 3).is_some());
        assert_eq!(asked_about(TopicPartitionList::new(), None).count(), 0);
    }

    #[test]
    fn a_client_stays_until_its_time_is_up_or_it_is_not_wanted_any_more() {
        let job = |stay| Job {
            client: "billing-1".to_owned(),
            stay,
            retirement: Retirement::new(|| {}),
            took: Duration::ZERO,
        };
        let stay = |left: Duration, wanted: bool| Stay {
            until: Instant::now() + left,
            while_wanted: Box::new(move || wanted),
        };
        let long = Duration::from_secs(3_600);
        assert!(job(None).is_due());
        assert!(!job(Some(stay(long, true))).is_due());
        assert!(job(Some(stay(long, false))).is_due());
        assert!(job(Some(stay(Duration::ZERO, true))).is_due());
    }

    #[test]
    fn what_hangs_or_waits_does_not_hold_up_the_others() {
        const SOON: Duration = Duration::from_secs(30);
        let (release, released) = std::sync::mpsc::channel::<()>();
        let (sender, done) = std::sync::mpsc::channel();
        let tell = |what| {
            let sender = sender.clone();
            Retirement::new(move || {
                let _ = sender.send(what);
            })
        };
        let then = tell("released");
        let hangs = Retirement::new(move || {
            let _ = released.recv();
            drop((then.0)(Patience::Some));
        });
        retire("hangs", Retirement(Box::new(|_| Some(Rest::Apart(hangs)))));
        let later = Rest::Later(Duration::from_millis(500), tell("later"));
        retire("waits", Retirement(Box::new(|_| Some(later))));
        retire("quick", tell("quick"));
        assert_eq!(done.recv_timeout(SOON), Ok("quick"));
        assert_eq!(done.recv_timeout(SOON), Ok("later"));
        drop(release);
        assert_eq!(done.recv_timeout(SOON), Ok("released"));
    }
}
