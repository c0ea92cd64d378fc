//! Changing what mirrors do: pause, resume, promote, failover, create. Many topics in one call, one result per topic.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use standfast_wire::TopicPrefix;
use tokio::sync::oneshot;
use tracing::{info, warn};

use crate::calls;
use crate::description::{MirrorStatus, PartitionState};
use crate::filters;
use crate::handle::{LOG_ENDS_MAX, LinkHandle, UNANSWERED_SETTLES};
use crate::lifecycle::{Lifecycle, MirrorChange, TransitionErrorCode, Wanted};
use crate::names;
use crate::partition::PartitionId;
use crate::rest::RestOrder;
use crate::restore::RestorePhase;
use crate::shard::Command;
use crate::topics::{self, Topic};
use crate::transactions;

/// How long what is in flight may take to be answered when a mirror is paused.
const PAUSE_DRAIN: Duration = Duration::from_secs(5);

/// How often a mirror that is to start is looked at.
const START_POLL: Duration = Duration::from_millis(20);

/// What mirrors can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    /// Neither fetch nor write until resumed.
    Pause,
    /// Mirror again, from the logs; FAILED mirrors too.
    Resume,
    /// Stop for good as soon as the mirror holds all of the source's log.
    Promote,
    /// Stop for good, now.
    Failover,
    /// Begin to mirror a topic, or begin again after it was stopped.
    Create,
}

/// Error of one topic.
pub(crate) type Refusal = (TransitionErrorCode, String);

impl LinkHandle {
    /// The running state that this link works on.
    pub fn lifecycle(&self) -> &Lifecycle {
        &self.inner.options.lifecycle
    }

    /// What a transition would be refused for, and how the mirrors are now. Changes nothing.
    pub fn rehearse(&self, topics: &[&str], transition: Transition) -> Vec<MirrorChange> {
        let (_, refused) = self.sort_out(topics, transition);
        self.changes(topics, refused)
    }

    /// Pauses mirrors: they fetch nothing and hold no memory. Returns when nothing more is written.
    pub async fn pause(&self, topics: &[&str]) -> Vec<MirrorChange> {
        let (go, mut refused) = self.sort_out(topics, Transition::Pause);
        self.lifecycle()
            .set(go.iter().map(|t| &**t), Wanted::Paused);
        self.inner.end_promotion(&go);
        let until = Instant::now() + PAUSE_DRAIN;
        if !self.rest(&go, PartitionState::Paused, until).await {
            refused.extend(not_drained(&go));
        }
        self.tell(&go, &mut refused).await;
        info!(link = %self.inner.options.name, topics = go.len(), "mirrors paused");
        self.inner.look_again.notify_one();
        self.changes(topics, refused)
    }

    /// Lets paused mirrors go on, and starts FAILED ones again from their logs. Does not wait until they run.
    pub async fn resume(&self, topics: &[&str]) -> Vec<MirrorChange> {
        let (go, refused) = self.sort_out(topics, Transition::Resume);
        for topic in self.inner.topics().iter_mut() {
            if go.contains(&topic.name()) && topic.has_failed() {
                topic.begin_again();
            }
        }
        self.lifecycle()
            .set(go.iter().map(|t| &**t), Wanted::Active);
        if self.inner.share.is_shared() {
            // Whichever agent has those that FAILED.
            self.lifecycle().repeat(go.iter().map(|t| &**t));
        }
        info!(link = %self.inner.options.name, topics = go.len(), "mirrors resumed");
        self.inner.look_again.notify_one();
        self.changes(topics, refused)
    }

    /// Pauses the link as a whole: no mirror fetches or writes, no group offsets are carried over, no new topics are looked for.
    pub async fn pause_link(&self) -> bool {
        self.lifecycle().set_paused(true);
        let all: HashSet<Arc<str>> = self.inner.topic_names().into_iter().collect();
        let running: HashSet<Arc<str>> = all
            .into_iter()
            .filter(|t| self.lifecycle().wanted(t) != Wanted::Stopped)
            .collect();
        self.inner.end_promotion(&running);
        info!(link = %self.inner.options.name, "link paused");
        let until = Instant::now() + PAUSE_DRAIN;
        let drained = self.rest(&running, PartitionState::Paused, until).await;
        drained && self.tell(&running, &mut HashMap::new()).await
    }

    /// Ends a pause of the link as a whole. Mirrors that were paused one by one stay paused.
    pub async fn resume_link(&self) {
        self.lifecycle().set_paused(false);
        info!(link = %self.inner.options.name, "link resumed");
        self.inner.look_again.notify_one();
    }

    /// Stops mirrors for good, now, whether or not the source answers; their topics belong to the destination from then on. What is in flight is waited
    /// for at most `deadline`. May be called again: a stopped mirror stays so, and its log ends are told once more.
    pub async fn failover(&self, topics: &[&str], deadline: Duration) -> Vec<MirrorChange> {
        let (go, mut refused) = self.sort_out(topics, Transition::Failover);
        self.lifecycle()
            .set(go.iter().map(|t| &**t), Wanted::Stopped);
        self.inner.end_promotion(&go);
        if !self
            .rest(&go, PartitionState::Stopped, Instant::now() + deadline)
            .await
        {
            refused.extend(not_drained(&go));
            tokio::time::sleep(UNANSWERED_SETTLES).await;
        }
        self.tell(&go, &mut refused).await;
        info!(link = %self.inner.options.name, topics = go.len(), "mirrors failed over");
        self.stopped(topics, &go, refused).await
    }

    /// Begins to mirror topics: new ones, and (again) stopped ones. Waits until they mirror or FAILED, at most `deadline`. Start-up compares the logs, so a
    /// topic that is no longer a prefix of the source's is FAILED with DIVERGED, and nothing is written to it.
    pub async fn create(&self, topics: &[&str], deadline: Duration) -> Vec<MirrorChange> {
        let (go, mut refused) = self.sort_out(topics, Transition::Create);
        let options = self.inner.live();
        let unlisted = go.iter().map(|t| &**t).filter(|t| {
            let own = options.prefix.own_name(t);
            !options.topics.iter().any(|n| n == own)
                && !filters::admits_topic(&options.topic_filters, own)
        });
        self.lifecycle().note(unlisted, true);
        self.lifecycle()
            .set(go.iter().map(|t| &**t), Wanted::Active);
        {
            let mut known = self.inner.topics();
            let names: HashSet<Arc<str>> = known.iter().map(Topic::name).collect();
            for topic in known.iter_mut().filter(|t| go.contains(&t.name())) {
                topic.begin_again();
            }
            known.extend(
                go.iter()
                    .filter(|t| !names.contains(*t))
                    .map(|t| Topic::new(t, &options.prefix)),
            );
        }
        self.inner.look_again.notify_one();
        self.wait_started(&go, Instant::now() + deadline, &mut refused)
            .await;
        self.changes(topics, refused)
    }

    async fn wait_started(
        &self,
        topics: &HashSet<Arc<str>>,
        until: Instant,
        refused: &mut HashMap<Arc<str>, Refusal>,
    ) {
        loop {
            let link = self.describe();
            let mut open = Vec::new();
            for mirror in link.mirrors {
                let Some(name) = topics.get(&*mirror.mirror_topic_name) else {
                    continue;
                };
                let why = mirror
                    .error
                    .or_else(|| mirror.mirror_lags.into_iter().find_map(|l| l.error))
                    .or_else(|| link.link_error.clone());
                match mirror.mirror_status {
                    MirrorStatus::Active | MirrorStatus::LinkPaused | MirrorStatus::Paused => {}
                    MirrorStatus::Failed => {
                        let text = why.unwrap_or_default();
                        refused.insert(Arc::clone(name), (TransitionErrorCode::MirrorFailed, text));
                    }
                    _ => open.push((Arc::clone(name), why)),
                }
            }
            if open.is_empty() {
                return;
            }
            if Instant::now() >= until || self.inner.stop.is_cancelled() {
                for (name, why) in open {
                    let why = why.map_or_else(String::new, |text| format!(": {text}"));
                    let text = format!("the mirror has not started yet, it goes on trying{why}");
                    refused.insert(name, (TransitionErrorCode::NotStarted, text));
                }
                return;
            }
            tokio::time::sleep(START_POLL).await;
        }
    }

    /// Sorts out what a transition cannot be done to; the rest may go.
    pub(crate) fn sort_out(
        &self,
        topics: &[&str],
        transition: Transition,
    ) -> (HashSet<Arc<str>>, HashMap<Arc<str>, Refusal>) {
        let (mut go, mut refused) = (HashSet::new(), HashMap::new());
        let state = self.lifecycle().state();
        let prefix = &self.inner.options.prefix;
        let known = self.inner.topics();
        let known: HashMap<Arc<str>, &Topic> = known.iter().map(|t| (t.name(), t)).collect();
        for name in topics {
            let topic = known.get(*name).copied();
            let refusal = if self.inner.stop.is_cancelled() {
                Some((
                    TransitionErrorCode::LinkNotRunning,
                    "the link was stopped by a failover or switchover".to_owned(),
                ))
            } else if state.restore_phase(name) == Some(RestorePhase::PendingSetupForRestore) {
                Some((
                    TransitionErrorCode::RestoreInProgress,
                    "the mirror is being restored; wait for its end".to_owned(),
                ))
            } else {
                let paused = state.paused;
                refusal(prefix, name, topic, state.wanted(name), paused, transition)
            };
            match refusal {
                None => drop(go.insert(Arc::from(*name))),
                Some(refusal) => drop(refused.insert(Arc::from(*name), refusal)),
            }
        }
        (go, refused)
    }

    /// Waits until the other agents that share the link do what it was told. `false`: some may not, and the topics' results say so.
    pub(crate) async fn tell(
        &self,
        topics: &HashSet<Arc<str>>,
        refused: &mut HashMap<Arc<str>, Refusal>,
    ) -> bool {
        let share = &self.inner.share;
        let Err(text) = share.confirmed(share.patience()).await else {
            return true;
        };
        warn!(link = %self.inner.options.name, reason = text, "other agents of the link may still write into mirrors that were told to rest");
        for topic in topics {
            let refusal = (TransitionErrorCode::NotConfirmed, text.clone());
            refused.entry(Arc::clone(topic)).or_insert(refusal);
        }
        false
    }

    /// Fetches and writes nothing more for these topics. `false`: something was still unanswered at `until`, and its connections were closed.
    pub(crate) async fn rest(
        &self,
        topics: &HashSet<Arc<str>>,
        state: PartitionState,
        until: Instant,
    ) -> bool {
        self.rest_some(topics, None, state, until).await
    }

    /// As [`LinkHandle::rest`], of the topics only the partitions in `only`.
    pub(crate) async fn rest_some(
        &self,
        topics: &HashSet<Arc<str>>,
        only: Option<HashSet<PartitionId>>,
        state: PartitionState,
        until: Instant,
    ) -> bool {
        let topics = Arc::new(topics.clone());
        let only = only.map(Arc::new);
        let mut answers = Vec::new();
        for shard in self.inner.all_shards() {
            let (done, answer) = oneshot::channel();
            let order = RestOrder {
                topics: Arc::clone(&topics),
                only: only.clone(),
                state,
                deadline: until,
                done,
            };
            if shard.send(Command::Rest(order)).await.is_ok() {
                answers.push(answer);
            }
        }
        let mut drained = true;
        for answer in answers {
            // No answer: the data thread has ended, and its sockets with it.
            drained &= answer.await.unwrap_or(true);
        }
        drained
    }

    /// The results of a stop, with the log ends that the destination names.
    pub(crate) async fn stopped(
        &self,
        topics: &[&str],
        stopped: &HashSet<Arc<str>>,
        mut refused: HashMap<Arc<str>, Refusal>,
    ) -> Vec<MirrorChange> {
        let unknown = |text: String| {
            move |name: &Arc<str>| {
                let text = format!("stopped, but its log ends are not known: {text}");
                (
                    Arc::clone(name),
                    (TransitionErrorCode::DestinationUnavailable, text),
                )
            }
        };
        let ends = async {
            let Some(destination) = self.inner.destination.get() else {
                return Err("the destination has not been reached yet".to_owned());
            };
            let ids = self
                .partitions(destination, Some(stopped))
                .await
                .map_err(|e| e.to_string())?;
            let ends = calls::log_ends(destination, &ids).await;
            // After the log ends were noted: an abort marker is no part of the source's log.
            let aborted =
                transactions::abort_open(destination, &self.inner.options.name, &ids).await;
            self.fence_some(destination, &ids).await;
            Ok((ends, ids, aborted))
        };
        let late = || Err(format!("no answer within {LOG_ENDS_MAX:?}"));
        let (ends, ids, mut aborted) = match tokio::time::timeout(LOG_ENDS_MAX, ends)
            .await
            .unwrap_or_else(|_| late())
        {
            Ok(asked) => asked,
            Err(text) => {
                for (name, refusal) in stopped.iter().map(unknown(text)) {
                    refused.entry(name).or_insert(refusal);
                }
                (HashMap::new(), Vec::new(), HashMap::new())
            }
        };
        let mut changes = self.changes(topics, refused);
        let statuses: HashMap<PartitionId, _> = {
            let known = self.inner.topics();
            let index: HashMap<Arc<str>, &Topic> = known.iter().map(|t| (t.name(), t)).collect();
            ids.into_iter()
                .map(|id| {
                    let status = index
                        .get(&id.topic)
                        .map(|topic| topics::status_of(topic, id.partition));
                    (id, status)
                })
                .collect()
        };
        for change in changes
            .iter_mut()
            .filter(|c| stopped.contains(&*c.mirror_topic_name))
        {
            let mut lags = Vec::new();
            for (id, status) in statuses
                .iter()
                .filter(|(id, _)| *id.topic == *change.mirror_topic_name)
            {
                let end = ends
                    .get(id)
                    .cloned()
                    .unwrap_or_else(|| Err("the destination named no log end".to_owned()));
                let Some(status) = status else { continue };
                let open = aborted.remove(id).unwrap_or(Ok(0));
                lags.push(status.describe_after_stop(id.partition, end, open));
            }
            if !lags.is_empty() {
                lags.sort_by_key(|lag| lag.partition);
                change.mirror_lags = lags;
            }
        }
        changes
    }

    /// One result per topic, in their order, with the mirrors as they are now.
    pub(crate) fn changes(
        &self,
        topics: &[&str],
        mut refused: HashMap<Arc<str>, Refusal>,
    ) -> Vec<MirrorChange> {
        let link = self.describe();
        let mut mirrors: HashMap<String, _> = link
            .mirrors
            .into_iter()
            .map(|m| (m.mirror_topic_name.clone(), m))
            .collect();
        topics
            .iter()
            .map(|name| {
                let mirror = mirrors.remove(*name).unwrap_or_default();
                let refusal = refused.remove(*name);
                MirrorChange {
                    link_name: link.link_name.clone(),
                    mirror_topic_name: (*name).to_owned(),
                    source_topic_name: self.inner.options.prefix.own_name(name).to_owned(),
                    mirror_status: mirror.mirror_status,
                    error_code: refusal.as_ref().map(|(code, _)| *code),
                    error_message: refusal.map(|(_, text)| text),
                    warnings: Vec::new(),
                    mirror_lags: mirror.mirror_lags,
                }
            })
            .collect()
    }
}

fn refusal(
    prefix: &TopicPrefix,
    name: &str,
    topic: Option<&Topic>,
    wanted: Wanted,
    link_paused: bool,
    transition: Transition,
) -> Option<Refusal> {
    use TransitionErrorCode as Code;
    let refuse = |code, text: &str| Some((code, text.to_owned()));
    let Some(topic) = topic else {
        return match transition {
            Transition::Create => {
                names::not_a_mirror(prefix, name).map(|text| (Code::InvalidTopic, text))
            }
            _ => refuse(
                Code::UnknownMirror,
                "the link does not mirror this topic; `standfast mirror list` shows those that it does",
            ),
        };
    };
    match transition {
        Transition::Pause | Transition::Resume if wanted == Wanted::Stopped => refuse(
            Code::MirrorStopped,
            "the mirror was stopped by promote or failover, the topic belongs to the destination; `standfast mirror create` begins it again",
        ),
        Transition::Create if wanted != Wanted::Stopped => {
            refuse(Code::MirrorExists, "the link mirrors this topic already")
        }
        Transition::Promote
            if wanted == Wanted::Paused || (link_paused && wanted == Wanted::Active) =>
        {
            refuse(
                Code::MirrorPaused,
                "the mirror is paused and cannot catch up; resume it first, or fail it over",
            )
        }
        Transition::Promote if wanted == Wanted::Active && topic.has_failed() => refuse(
            Code::MirrorFailed,
            "the mirror is FAILED and cannot catch up; `standfast mirror describe` says why. Resume it, or fail it over",
        ),
        _ => None,
    }
}

fn not_drained(topics: &HashSet<Arc<str>>) -> impl Iterator<Item = (Arc<str>, Refusal)> {
    warn!(
        topics = topics.len(),
        "requests were still unanswered when mirrors were told to rest; their connections were closed"
    );
    let text = "the destination had not answered all requests when the time was up; the connections were closed, look at the log ends again";
    topics.iter().map(move |topic| {
        (
            Arc::clone(topic),
            (TransitionErrorCode::NotDrained, text.to_owned()),
        )
    })
}
