//! The task that keeps this engine's place in the group: joins, assigns if it is the leader, beats.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use standfast_wire::{
    Cluster, Error, GroupAssignment, GroupOptions, GroupSession, JoinedGroup, ResponseError,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::assignment::{self, Claim, Part, Parts};
use super::lease::boot_ms;
use super::message::{self, Given, MAX_GENERATION_BYTES, Member, Says, VERSION};
use super::{Shared, View};
use crate::description::PartitionState;
use crate::link::Inner;
use crate::partition::PartitionId;
use crate::refusal;
use crate::status::now_ms;
use crate::topics::Topic;

/// Kind of the group: not `consumer`, so that no tool takes it for one with offsets.
const PROTOCOL_TYPE: &str = "standfast";
const PROTOCOL: &str = "sticky-1";

/// Waits between tries to reach the coordinator.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// How long a shutdown waits for the coordinator to take the leave.
const LEAVE_MAX: Duration = Duration::from_millis(500);

/// Partitions that a member can claim; more than any link has.
const CLAIM_MAX: usize = 1 << 20;

/// Why the beating ended.
enum Next {
    /// The group changes, or there is something to say.
    JoinAgain,
    /// The group has gone on without this member.
    Lost,
    Leave,
}

struct Task {
    inner: Arc<Inner>,
    shared: Arc<Shared>,
    member_id: String,
    /// What was said in the last join.
    said: Said,
    leave: CancellationToken,
}

#[derive(Default)]
struct Said {
    ask: u64,
    enacted: i32,
    /// Of the link's running state.
    newest: u64,
    failed: Parts,
    restoring: BTreeSet<String>,
    /// Of the topics that were assigned, by the leader.
    topics: Option<u64>,
}

/// Keeps the place until `leave`; then gives it up, so that the others need not wait for the end of the session.
pub(crate) async fn run(inner: Arc<Inner>, destination: Cluster, leave: CancellationToken) {
    let Some(shared) = inner.share.shared.clone() else {
        return;
    };
    let mut task = Task {
        inner,
        shared,
        member_id: String::new(),
        said: Said::default(),
        leave: leave.clone(),
    };
    let mut wait = RETRY_MIN;
    while !leave.is_cancelled() {
        match task.stay(&destination, &mut wait).await {
            Ok(()) => return,
            Err(error) => task.note(&error),
        }
        tokio::select! {
            () = tokio::time::sleep(wait.mul_f64(rand::random_range(0.5..1.0))) => {}
            () = leave.cancelled() => {}
        }
        wait = (wait * 2).min(RETRY_MAX);
    }
}

impl Task {
    /// Until `leave`, or the coordinator cannot be asked any more.
    async fn stay(&mut self, destination: &Cluster, wait: &mut Duration) -> Result<(), Error> {
        let options = &self.shared.options;
        let session = destination
            .open_group(GroupOptions {
                group: self.inner.options.name.transactional_id(),
                protocol_type: PROTOCOL_TYPE,
                protocol: PROTOCOL,
                session_timeout: options.session_timeout,
                rebalance_timeout: options.session_timeout,
            })
            .await?;
        loop {
            let leave = self.leave.clone();
            let outcome = tokio::select! {
                // A join that is held back is given up with the session, not waited for.
                () = leave.cancelled() => Ok(Next::Leave),
                outcome = self.join(&session) => outcome,
            };
            let next = match outcome {
                Ok(Next::JoinAgain) => continue,
                Ok(Next::Lost) => Next::Lost,
                Ok(Next::Leave) => Next::Leave,
                Err(error) => return Err(error),
            };
            *wait = RETRY_MIN;
            match next {
                Next::JoinAgain => {}
                Next::Lost => self.lose(),
                Next::Leave => {
                    self.inner.share.lease.revoke();
                    if !self.member_id.is_empty() {
                        let left = session.leave(&self.member_id);
                        let _ = tokio::time::timeout(LEAVE_MAX, left).await;
                    }
                    return Ok(());
                }
            }
        }
    }

    /// One generation: join, assign or be assigned, then beat until there is another.
    async fn join(&mut self, session: &GroupSession) -> Result<Next, Error> {
        let says = self.says();
        let metadata = message::pack(&says).map_err(unusable)?;
        self.shared.view.send_modify(|view| view.settled = false);
        let joined = match session.join(&self.member_id, metadata).await {
            Ok(joined) => joined,
            Err(error) if error.code() == Some(ResponseError::UnknownMemberId) => {
                return Ok(Next::Lost);
            }
            Err(error) => return Err(error),
        };
        self.member_id.clone_from(&joined.member_id);
        let assignments = if joined.is_leader {
            self.assign(&joined)
        } else {
            Vec::new()
        };
        let sent_at = boot_ms();
        let synced = session
            .sync(&joined.member_id, joined.generation, assignments)
            .await;
        let given = match synced {
            Ok(given) => given,
            Err(error) => return self.after(error),
        };
        self.take(&joined, &given);
        let share = &self.inner.share;
        share
            .lease
            .renew(sent_at, self.shared.options.lease_length());
        self.shared.act.notify_one();
        self.beat(session, joined.generation).await
    }

    async fn beat(&mut self, session: &GroupSession, generation: i32) -> Result<Next, Error> {
        let mut next = Instant::now();
        loop {
            next += self.shared.beat_interval();
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                () = self.shared.speak.notified() => {
                    if self.has_something_to_say() {
                        return Ok(Next::JoinAgain);
                    }
                }
            }
            next = Instant::now();
            let sent_at = boot_ms();
            match session.heartbeat(&self.member_id, generation).await {
                Ok(()) => {
                    let length = self.shared.options.lease_length();
                    self.inner.share.lease.renew(sent_at, length);
                }
                Err(error) => return self.after(error),
            }
            if self.has_something_to_say() {
                return Ok(Next::JoinAgain);
            }
        }
    }

    /// What follows from an error of the coordinator. A lease that was won stays until its end, but for a group that has gone on.
    fn after(&mut self, error: Error) -> Result<Next, Error> {
        match error.code() {
            Some(ResponseError::RebalanceInProgress) => Ok(Next::JoinAgain),
            Some(ResponseError::UnknownMemberId | ResponseError::IllegalGeneration) => {
                Ok(Next::Lost)
            }
            _ => Err(error),
        }
    }

    fn lose(&mut self) {
        warn!(link = %self.inner.options.name, member = self.shared.options.member, "the link's group has gone on without this agent; its partitions rest until it has joined again");
        self.member_id.clear();
        self.inner.share.lease.revoke();
        self.shared.view.send_modify(|view| {
            view.settled = false;
            view.error =
                Some("the link's group has gone on without this agent; it joins again".to_owned());
        });
        self.shared.act.notify_one();
    }

    fn note(&self, error: &Error) {
        let text = format!(
            "the link's group on the destination: {}",
            refusal::text(error)
        );
        let known = self.shared.view.borrow().error.as_deref() == Some(text.as_str());
        if !known && !error.is_retriable() {
            error!(link = %self.inner.options.name, reason = text, "not a member of the link's group, trying again");
        } else if !known {
            warn!(link = %self.inner.options.name, reason = text, "the link's group is not reached, trying again");
        }
        self.shared.view.send_modify(|view| {
            view.settled = false;
            view.error = Some(text);
        });
    }

    fn says(&mut self) -> Says {
        let state = self.inner.options.lifecycle.state().commanded();
        self.said.ask = self.shared.asks.load(Ordering::Acquire);
        let (had, generation, enacted, asks, lost_at_ms) = {
            let view = self.shared.view.borrow();
            let asks = if self.said.ask > view.asked.0 {
                Some(message::THIS_GENERATION)
            } else {
                self.shared.is_waiting().then_some(view.asked.1)
            };
            let mine = view
                .mine
                .iter()
                .map(|id| (id.topic.to_string(), id.partition));
            let lost_at_ms = view.lost_at_ms;
            (
                mine.collect(),
                view.generation,
                view.enacted,
                asks,
                lost_at_ms,
            )
        };
        self.said.newest = state.newest();
        self.said.enacted = enacted;
        self.said.failed = failed(&self.inner);
        self.said.restoring = self.inner.options.lifecycle.restoring();
        Says {
            version: VERSION,
            name: self.shared.options.member.clone(),
            had,
            generation,
            failed: self.said.failed.clone(),
            state,
            asks,
            enacted,
            lost_at_ms,
            restoring: self.said.restoring.clone(),
        }
    }

    /// Whether the others should hear of something.
    fn has_something_to_say(&self) -> bool {
        let asks = self.shared.asks.load(Ordering::Acquire) > self.said.ask;
        let (confirms, leads) = {
            let view = self.shared.view.borrow();
            let confirms = view.owes > self.said.enacted && view.enacted >= view.owes;
            (confirms, view.is_leader)
        };
        // Never while the view is borrowed: the topics are locked first everywhere.
        let grown = leads
            && self
                .said
                .topics
                .is_some_and(|said| said != fingerprint(&self.inner));
        let told = self.inner.options.lifecycle.state().newest() > self.said.newest;
        let restores = self.inner.options.lifecycle.restoring() != self.said.restoring;
        asks || confirms || grown || told || restores || failed(&self.inner) != self.said.failed
    }

    /// As the leader: who mirrors what from now on.
    fn assign(&mut self, joined: &JoinedGroup) -> Vec<GroupAssignment> {
        let heard: Vec<(String, Says)> = joined
            .members
            .iter()
            .map(|member| {
                (
                    member.member_id.clone(),
                    hear(&self.inner, &member.member_id, &member.metadata),
                )
            })
            .collect();
        self.said.topics = Some(fingerprint(&self.inner));
        let parts: BTreeSet<Part> = {
            let topics = self.inner.topics();
            let ids = topics.iter().flat_map(Topic::ids);
            ids.map(|id| (id.topic.to_string(), id.partition)).collect()
        };
        let claims: Vec<Claim> = heard
            .iter()
            .map(|(id, says)| Claim {
                member: id.clone(),
                generation: says.generation,
                had: says.had.list(CLAIM_MAX).collect(),
            })
            .collect();
        let mut wholes: BTreeMap<&str, &str> = BTreeMap::new();
        for (id, says) in &heard {
            for topic in &says.restoring {
                wholes.entry(topic).or_insert(id);
            }
        }
        let mut given = assignment::assign_wholes(&parts, &claims, &wholes);
        let mut state = self.inner.options.lifecycle.state().commanded();
        for (_, says) in &heard {
            state.merge(&says.state, &mut Vec::new());
        }
        let message = Given {
            version: VERSION,
            confirm: (heard.iter().filter_map(|(_, says)| says.asks))
                .map(|asks| if asks < 0 { joined.generation } else { asks })
                .max(),
            state,
            lost_at_ms: heard
                .iter()
                .map(|(_, says)| says.lost_at_ms)
                .max()
                .unwrap_or(0),
            members: (heard.into_iter())
                .map(|(id, says)| Member {
                    parts: given.remove(&id).unwrap_or_default().into_iter().collect(),
                    leader: id == joined.member_id,
                    name: says.name,
                    failed: says.failed,
                    enacted: says.enacted,
                    restoring: says.restoring,
                    id,
                })
                .collect(),
        };
        info!(link = %self.inner.options.name, generation = joined.generation, members = message.members.len(), partitions = parts.len(), "partitions assigned to the agents of the link");
        let said: usize = joined
            .members
            .iter()
            .map(|member| member.metadata.len())
            .sum();
        let packed = message::pack(&message).unwrap_or_else(|error| {
            error!(link = %self.inner.options.name, error, "the assignment cannot be written");
            Bytes::new()
        });
        if said + packed.len() * joined.members.len() > MAX_GENERATION_BYTES {
            error!(link = %self.inner.options.name, bytes = packed.len(), "the link has more partitions than its group can carry (offset.metadata and segment limits of __consumer_offsets); share it among fewer agents, or split the link");
        }
        let each = joined.members.iter().map(|member| GroupAssignment {
            member_id: member.member_id.clone(),
            assignment: packed.clone(),
        });
        each.collect()
    }

    /// Takes over what the leader has given.
    fn take(&mut self, joined: &JoinedGroup, given: &[u8]) {
        let given: Given = match message::unpack(given) {
            Ok(given) => given,
            Err(reason) => {
                error!(link = %self.inner.options.name, reason, "the assignment of the link's leader cannot be read; do all agents of the link run the same version?");
                Given {
                    version: VERSION,
                    members: Vec::new(),
                    state: Default::default(),
                    confirm: None,
                    lost_at_ms: 0,
                }
            }
        };
        let changed = self.inner.options.lifecycle.adopt(&given.state);
        self.said.newest = self.said.newest.max(given.state.newest());
        super::enact::note(&self.inner, &changed);
        // The one that restores deletes nothing before all have confirmed that they have taken this over.
        let others = given.members.iter().filter(|m| m.id != joined.member_id);
        self.inner
            .options
            .lifecycle
            .forget_starts(others.flat_map(|member| &member.restoring));
        let (mut mine, mut elsewhere, mut broken) =
            (HashSet::new(), HashMap::new(), HashMap::new());
        for member in &given.members {
            let name: Arc<str> = member.name.as_str().into();
            let own = member.id == joined.member_id;
            let mut topics: BTreeMap<String, Arc<str>> = BTreeMap::new();
            for (topic, partition) in member.parts.list(CLAIM_MAX) {
                let topic = topics
                    .entry(topic)
                    .or_insert_with_key(|name| name.as_str().into());
                let id = PartitionId::new(Arc::clone(topic), partition);
                if own {
                    mine.insert(id);
                } else {
                    elsewhere.insert(id, Arc::clone(&name));
                }
            }
            if !own {
                let ids = member
                    .failed
                    .list(CLAIM_MAX)
                    .map(|(topic, p)| PartitionId::new(topic.as_str(), p));
                broken.extend(ids.map(|id| (id, Arc::clone(&name))));
            }
        }
        // What FAILED at a member and has moved since is started anew by whoever has it.
        broken.retain(|id, name| elsewhere.get(id) == Some(name));
        info!(link = %self.inner.options.name, generation = joined.generation, members = given.members.len(), partitions = mine.len(), "this agent's share of the link");
        let ask = self.said.ask;
        self.shared.view.send_modify(|view: &mut View| {
            // One that was given up itself is among the old ones under another id, and is no reason.
            let stays = |id: &str| id == view.member_id || given.members.iter().any(|m| m.id == id);
            let gone = view.members.iter().any(|before| !stays(&before.id));
            *view = View {
                generation: joined.generation,
                member_id: joined.member_id.clone(),
                is_leader: joined.is_leader,
                settled: true,
                mine,
                elsewhere,
                failed: broken,
                members: given.members,
                asked: if ask > view.asked.0 {
                    (ask, joined.generation)
                } else {
                    view.asked
                },
                enacted: view.enacted,
                owes: given.confirm.unwrap_or(view.owes),
                lost_at_ms: if gone {
                    now_ms()
                } else {
                    given.lost_at_ms.max(view.lost_at_ms)
                },
                error: None,
            };
        });
        debug!(link = %self.inner.options.name, confirm = ?given.confirm, changed = changed.len(), "taken over");
    }
}

/// What a member said; one that cannot be understood has nothing.
fn hear(inner: &Inner, member_id: &str, metadata: &[u8]) -> Says {
    match message::unpack::<Says>(metadata) {
        Ok(says) => says,
        Err(reason) => {
            error!(link = %inner.options.name, member_id, reason, "a member of the link's group cannot be understood; do all agents of the link run the same version?");
            Says {
                version: 0,
                name: member_id.to_owned(),
                had: Parts::default(),
                generation: -1,
                failed: Parts::default(),
                state: Default::default(),
                asks: None,
                enacted: -1,
                lost_at_ms: 0,
                restoring: BTreeSet::new(),
            }
        }
    }
}

/// What FAILED in this engine.
fn failed(inner: &Inner) -> Parts {
    let topics = inner.topics();
    let all = topics
        .iter()
        .flat_map(|topic| topic.ids().zip(topic.partitions()));
    let failed = all.filter(|(_, status)| status.state() == PartitionState::Failed);
    failed
        .map(|(id, _)| (id.topic.to_string(), id.partition))
        .collect()
}

/// Changes when topics or partitions come.
fn fingerprint(inner: &Inner) -> u64 {
    let mut hasher = DefaultHasher::new();
    for topic in inner.topics().iter() {
        (topic.name(), topic.partitions().len()).hash(&mut hasher);
    }
    hasher.finish()
}

fn unusable(reason: String) -> Error {
    Error::Options {
        setting: "sharing",
        reason,
    }
}
