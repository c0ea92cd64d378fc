//! Takes old clients down in the background.
//!
//! Destroying a Kafka client joins its threads and may wait for a cluster that is gone. Nobody awaits that: old clients
//! go to one named thread, which the process does not join when it ends.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
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

/// How long an old client goes on after it has asked to leave its group, so that the request gets out.
const LEAVE: Duration = Duration::from_millis(500);

/// Between two looks at the clients that stay for a while.
const LOOK: Duration = Duration::from_millis(50);

static RETIRING: AtomicU64 = AtomicU64::new(0);
static ABANDONED: AtomicU64 = AtomicU64::new(0);

/// A client's last act. It may block.
pub(crate) type Retirement = Box<dyn FnOnce() + Send>;

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

/// Leaves the group if the coordinator is alive, so that the others need not wait for the session to time out, and
/// destroys the client without the close protocol, which has no deadline. May block; `member`: see [`asked_about`], none if it never was
/// in a group.
///
/// Leaving is only tried right after the coordinator has answered: librdkafka 2.12.1 can crash when a leave meets a
/// coordinator that is gone (fixed in 2.14.2).
pub(crate) fn take_down<C: ConsumerContext>(consumer: BaseConsumer<C>, member: TopicPartitionList) {
    let is_member = member.count() > 0;
    if is_member && consumer.committed_offsets(member, COORDINATOR).is_ok() {
        consumer.unsubscribe();
        let until = Instant::now() + LEAVE;
        while Instant::now() < until {
            drop(consumer.poll(Duration::from_millis(50)));
        }
    }
    ffi::destroy_without_close(consumer);
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
    let mut staying = Vec::new();
    let mut is_open = true;
    while is_open || !staying.is_empty() {
        let next = match staying.is_empty() {
            true => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
            false => jobs.recv_timeout(LOOK),
        };
        match next {
            Ok(job) => staying.push(job),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => is_open = false,
        }
        let is_full = staying.len() >= MAX_RETIRING;
        let due = staying.extract_if(.., |job| is_full || job.is_due());
        due.for_each(take_down_one);
    }
}

fn take_down_one(job: Job) {
    let Job {
        client, retirement, ..
    } = job;
    let started = Instant::now();
    // A panic in one client's destructor must not keep the later ones alive.
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(retirement));
    RETIRING.fetch_sub(1, Relaxed);
    let took = started.elapsed();
    if outcome.is_err() {
        tracing::error!(client, "taking an old Kafka client down panicked");
    } else if took > SLOW {
        tracing::warn!(client, ?took, "taking an old Kafka client down was slow");
    } else {
        tracing::debug!(client, ?took, "old Kafka client is gone");
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
            retirement: Box::new(|| {}),
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
}
