//! Several engines on one link: each partition is mirrored by one of them, and what one of them is told all of them do.
//!
//! The engines are members of a group on the destination (`standfast-<link>`, of a protocol type of its own). Kafka's group coordinator keeps the list of
//! those that live; one of them, its leader, says who mirrors what ([`assignment`]). What an operator wants of the mirrors travels with it ([`message`]), so
//! that nobody can get partitions without it. A member writes only under its [`lease`]. Two engines on one partition, for the moment in
//! which it changes hands, write what one would have written.

pub(crate) mod assignment;
pub(crate) mod enact;
pub(crate) mod lease;
pub(crate) mod message;
pub(crate) mod task;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

use crate::Error;
use crate::partition::PartitionId;
use crate::status::now_ms;
use lease::Lease;
use message::Member;

/// What every Kafka broker accepts, unless its bounds were changed (`group.min.session.timeout.ms`, `group.max.session.timeout.ms`).
const SESSION_RANGE: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(1800));

/// The lease is shorter than the session by this, for a write that was begun at its end and for clocks that run unevenly.
const LEASE_MARGIN: Duration = Duration::from_secs(1);

/// A member that has been gone for longer sends nothing more: brokers close connections that were not used for 10 minutes (`connections.max.idle.ms`).
const STRAGGLERS_FOR: Duration = Duration::from_secs(30 * 60);

/// Between two heartbeats while a caller waits for a confirmation.
const IMPATIENT_INTERVAL: Duration = Duration::from_millis(50);

/// Longest name of a member.
const MEMBER_MAX: usize = 120;

/// Sharing a link with other engines.
#[derive(Debug, Clone)]
pub struct SharingOptions {
    /// What this engine is called among the members, for people. Should be unique.
    pub member: String,
    /// An engine that is silent for so long has lost its partitions to the others; it stops writing a second earlier by itself. 6 s is the
    /// least that brokers accept by default.
    pub session_timeout: Duration,
    /// How often the coordinator is asked. An operator's command reaches the other engines with their next question.
    pub heartbeat_interval: Duration,
    /// Whether this engine has the duties that only one should have (topics are created, group offsets and ACLs are carried over). `None`: the
    /// leader of the group has them.
    pub duties: Option<watch::Receiver<bool>>,
}

impl SharingOptions {
    /// A session of 6 s and a heartbeat every half second.
    pub fn new(member: impl Into<String>) -> Self {
        Self {
            member: member.into(),
            session_timeout: Duration::from_secs(6),
            heartbeat_interval: Duration::from_millis(500),
            duties: None,
        }
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let invalid = |option, reason: &str| {
            let reason = reason.to_owned();
            Err(Error::InvalidOption { option, reason })
        };
        if self.member.is_empty() || self.member.len() > MEMBER_MAX {
            return invalid("sharing.member", "must have 1 to 120 bytes");
        }
        if self.session_timeout < SESSION_RANGE.0 || self.session_timeout > SESSION_RANGE.1 {
            return invalid("sharing.session_timeout", "must be 3s to 30m");
        }
        if self.heartbeat_interval < Duration::from_millis(50)
            || self.heartbeat_interval > self.session_timeout / 3
        {
            return invalid(
                "sharing.heartbeat_interval",
                "must be at least 50ms and at most a third of the session timeout",
            );
        }
        Ok(())
    }

    /// Whether a link with these settings can go on with those.
    pub(crate) fn are_same(one: Option<&Self>, other: Option<&Self>) -> bool {
        let key = |options: &Self| {
            let (session, heartbeat) = (options.session_timeout, options.heartbeat_interval);
            (options.member.clone(), session, heartbeat)
        };
        one.map(key) == other.map(key)
    }

    fn lease_length(&self) -> Duration {
        self.session_timeout - LEASE_MARGIN
    }
}

/// One engine of a shared link.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberDescription {
    /// Its name.
    pub member: String,
    /// It is the one that was asked.
    pub is_self: bool,
    /// It says who mirrors what.
    pub is_leader: bool,
    /// How many partitions it mirrors.
    pub partitions: usize,
    /// Which, by topic: `0-3,7`.
    pub topics: std::collections::BTreeMap<String, String>,
}

/// What a member knows of its group.
#[derive(Debug, Default)]
pub(crate) struct View {
    /// The last generation that it has a place in.
    generation: i32,
    /// The coordinator's name for it; empty if it has none.
    member_id: String,
    is_leader: bool,
    /// Nothing was said to the coordinator since that is not in the assignment yet.
    settled: bool,
    mine: HashSet<PartitionId>,
    elsewhere: HashMap<PartitionId, Arc<str>>,
    /// FAILED at other members.
    failed: HashMap<PartitionId, Arc<str>>,
    members: Vec<Member>,
    /// The last question for a confirmation that the others have got, and in which generation.
    asked: (u64, i32),
    /// Up to which generation this member does what it was told.
    enacted: i32,
    /// The generation that somebody wants confirmed.
    owes: i32,
    /// When a member was last found to be gone, by anybody's clock; 0: never.
    lost_at_ms: i64,
    error: Option<String>,
}

#[derive(Debug)]
struct Shared {
    options: SharingOptions,
    view: watch::Sender<View>,
    /// Questions for a confirmation so far.
    asks: AtomicU64,
    /// Callers that wait for one.
    waiting: AtomicUsize,
    /// There may be something to say to the others.
    speak: Notify,
    /// There may be something to do.
    act: Notify,
}

/// This engine's share of the link. Cheap to clone; clones are the same share.
#[derive(Debug, Clone)]
pub(crate) struct Share {
    pub(crate) lease: Lease,
    shared: Option<Arc<Shared>>,
}

impl Share {
    pub(crate) fn new(options: Option<SharingOptions>) -> Self {
        let Some(options) = options else {
            return Self {
                lease: Lease::for_ever(),
                shared: None,
            };
        };
        let view = View {
            generation: -1,
            enacted: -1,
            owes: -1,
            asked: (0, -1),
            error: Some("not yet a member of the link's group".to_owned()),
            ..View::default()
        };
        let shared = Shared {
            options,
            view: watch::Sender::new(view),
            asks: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            speak: Notify::new(),
            act: Notify::new(),
        };
        Self {
            lease: Lease::not_held(),
            shared: Some(Arc::new(shared)),
        }
    }

    pub(crate) fn is_shared(&self) -> bool {
        self.shared.is_some()
    }

    /// Whether this engine mirrors the partition.
    pub(crate) fn holds(&self, id: &PartitionId) -> bool {
        match &self.shared {
            None => true,
            Some(shared) => self.lease.is_valid() && shared.view.borrow().mine.contains(id),
        }
    }

    /// The member that mirrors the partition, if it is another one.
    pub(crate) fn elsewhere(&self, id: &PartitionId) -> Option<String> {
        let shared = self.shared.as_ref()?;
        let view = shared.view.borrow();
        view.elsewhere.get(id).map(|member| member.to_string())
    }

    /// What another member says of a partition that FAILED there.
    pub(crate) fn failed_elsewhere(&self, id: &PartitionId) -> Option<String> {
        let shared = self.shared.as_ref()?;
        let view = shared.view.borrow();
        let member = view.failed.get(id)?;
        Some(format!(
            "FAILED at {member:?}; `standfast mirror describe` there says why"
        ))
    }

    /// Whether this engine does what only one of them should.
    pub(crate) fn has_duties(&self) -> bool {
        let Some(shared) = &self.shared else {
            return true;
        };
        let chosen = match &shared.options.duties {
            Some(duties) => *duties.borrow(),
            None => shared.view.borrow().is_leader,
        };
        chosen && self.lease.is_valid()
    }

    /// Why this engine mirrors nothing, if its place in the group is the reason.
    pub(crate) fn trouble(&self) -> Option<String> {
        let shared = self.shared.as_ref()?;
        if self.lease.is_valid() {
            return None;
        }
        let error = shared.view.borrow().error.clone();
        Some(
            error.unwrap_or_else(|| {
                "the group's coordinator has not answered for a while".to_owned()
            }),
        )
    }

    /// All members with what they mirror, as the last assignment says; none while this engine may be out of the group, which then may say otherwise.
    pub(crate) fn members(&self) -> Vec<MemberDescription> {
        let Some(shared) = self.shared.as_ref().filter(|_| self.lease.is_valid()) else {
            return Vec::new();
        };
        let view = shared.view.borrow();
        let each = view.members.iter().map(|member| MemberDescription {
            member: member.name.clone(),
            is_self: member.id == view.member_id,
            is_leader: member.leader,
            partitions: member.parts.count(),
            topics: (member.parts.topics().iter())
                .map(|(topic, ranges)| (topic.clone(), in_words(ranges)))
                .collect(),
        });
        each.collect()
    }

    /// Waits until every other member does what the link was told up to now, or is out of the group and cannot write any more. A member that is alone
    /// waits for nobody.
    pub(crate) async fn confirmed(&self, deadline: Duration) -> Result<(), String> {
        let Some(shared) = &self.shared else {
            return Ok(());
        };
        let mut changes = shared.view.subscribe();
        // Whoever joins from now on gets an assignment only after this member has joined again, with what it was told.
        if self.is_alone() {
            return Ok(());
        }
        let _waiting = Waiting::new(shared);
        let ask = shared.asks.fetch_add(1, Ordering::AcqRel) + 1;
        shared.speak.notify_one();
        let done = changes.wait_for(|view| view.asked.0 >= ask && view.unconfirmed().is_empty());
        let waited = tokio::time::timeout(deadline, done).await;
        if matches!(waited, Ok(Ok(_))) {
            return Ok(());
        }
        drop(waited);
        let view = changes.borrow();
        Err(if view.asked.0 < ask {
            let why = view
                .error
                .as_deref()
                .unwrap_or("some member has not joined again");
            format!("the other agents of the link could not be told within {deadline:?}: {why}")
        } else {
            format!(
                "no confirmation within {deadline:?} from {}",
                view.unconfirmed().join(", ")
            )
        })
    }

    /// Whether nobody else can have partitions of the link.
    pub(crate) fn is_alone(&self) -> bool {
        let Some(shared) = &self.shared else {
            return true;
        };
        let view = shared.view.borrow();
        view.settled && view.members.len() == 1 && self.lease.is_valid()
    }

    /// Whether this engine knows what the group says, which a command needs that changes what the others do.
    pub(crate) fn is_member(&self) -> bool {
        self.shared.is_none() || self.lease.is_valid()
    }

    /// The member that restores a topic, if it is another one.
    pub(crate) fn restored_elsewhere(&self, topic: &str) -> Option<String> {
        let view = self.shared.as_ref()?.view.borrow();
        let mut others = view.members.iter().filter(|m| m.id != view.member_id);
        let restoring = others.find(|member| member.restoring.contains(topic));
        restoring.map(|member| member.name.clone())
    }

    /// Waits until this engine has all these partitions, of a topic that it restores, and no other one touches them.
    pub(crate) async fn gathered(&self, ids: &[PartitionId]) -> Result<(), String> {
        let Some(shared) = &self.shared else {
            return Ok(());
        };
        let deadline = self.patience();
        self.confirmed(deadline).await?;
        let mut changes = shared.view.subscribe();
        let all = |view: &View| ids.iter().all(|id| view.mine.contains(id));
        let done = tokio::time::timeout(deadline, changes.wait_for(all)).await;
        if matches!(done, Ok(Ok(_))) {
            return Ok(());
        }
        drop(done);
        let topic = ids.first().map_or("", |id| &*id.topic);
        Err(match self.restored_elsewhere(topic) {
            Some(member) => format!("{member:?} is restoring it"),
            None => format!("its partitions were not given to this agent within {deadline:?}"),
        })
    }

    /// For how long a member has been gone that may only be frozen, and about to send something; `None`: nobody is, or it was so long ago that its
    /// connections are gone.
    pub(crate) fn stragglers(&self) -> Option<Duration> {
        let lost_at_ms = self.shared.as_ref()?.view.borrow().lost_at_ms;
        let silent = u64::try_from(now_ms().saturating_sub(lost_at_ms)).unwrap_or(0);
        Some(Duration::from_millis(silent)).filter(|silent| *silent < STRAGGLERS_FOR)
    }

    /// The longest that [`Share::confirmed`] needs to wait: after it a silent member is out of the group.
    pub(crate) fn patience(&self) -> Duration {
        let session = self
            .shared
            .as_ref()
            .map(|shared| shared.options.session_timeout);
        session.map_or(Duration::ZERO, |session| session * 2 + LEASE_MARGIN)
    }
}

/// One caller of [`Share::confirmed`], also if it goes away.
struct Waiting<'a>(&'a Shared);

impl<'a> Waiting<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.waiting.fetch_add(1, Ordering::AcqRel);
        Self(shared)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Shared {
    fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > 0
    }

    /// Whoever waits for the others hears of them sooner.
    fn beat_interval(&self) -> Duration {
        let interval = self.options.heartbeat_interval;
        if self.is_waiting() {
            interval.min(IMPATIENT_INTERVAL)
        } else {
            interval
        }
    }
}

impl View {
    /// Names of the other members that have not confirmed what they were asked for.
    fn unconfirmed(&self) -> Vec<String> {
        let others = self
            .members
            .iter()
            .filter(|member| member.id != self.member_id);
        let late = others.filter(|member| member.enacted < self.asked.1);
        late.map(|member| format!("{:?}", member.name)).collect()
    }
}

fn in_words(ranges: &[(i32, i32)]) -> String {
    let each = ranges.iter().map(|(first, last)| {
        if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        }
    });
    each.collect::<Vec<_>>().join(",")
}
