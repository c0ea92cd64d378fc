//! Pause, resume, promote, failover and create of mirrors, as the API asks for them: thousands of topics in one call.

use std::collections::BTreeSet;
use std::time::Duration;

use standfast_link::{LinkHandle, MirrorChange, Transition, TransitionErrorCode, Wanted};

use super::link::{LinkControl, Phase};
use super::mirrors::{LinkSet, mirrors_of};
use crate::api::{ErrorBody, ErrorCode, Link, LinkRequest, MirrorChanges, MirrorsRequest};

/// How long a promote or create takes at most when the caller does not say.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);
/// How long a failover waits for what is in flight when the caller does not say.
const FAILOVER_DEFAULT: Duration = Duration::from_secs(5);
/// The longest that may be asked for.
const TIMEOUT_MAX: Duration = Duration::from_secs(3600);
/// In a pattern: every name that begins so.
const WILDCARD: char = '*';

impl LinkSet {
    /// Tells mirrors what to do. Partial success is normal: each topic has its own result.
    ///
    /// # Errors
    /// The request itself does not make sense; nothing was changed.
    pub(crate) async fn transition(
        &self,
        transition: Transition,
        request: MirrorsRequest,
    ) -> Result<MirrorChanges, ErrorBody> {
        let control = self.the_link(request.link.as_deref())?;
        let names = select(&control, transition, &request)?;
        if transition == Transition::Create {
            self.no_other_link(&control, &names)?;
        }
        let timeout = timeout(request.timeout_ms, transition);
        let dry_run = request.dry_run;
        // A task of its own: the caller may hang up, the change goes on to its end.
        let task = tokio::spawn(async move {
            let topics: Vec<&str> = names.iter().map(String::as_str).collect();
            if dry_run {
                rehearse(&control, &topics, transition)
            } else {
                perform(&control, &topics, transition, timeout).await
            }
        });
        let data = task
            .await
            .map_err(|broken| error(ErrorCode::Internal, format!("it broke down: {broken}")))?;
        Ok(MirrorChanges { dry_run, data })
    }

    /// Pauses a link as a whole, or ends that.
    ///
    /// # Errors
    /// There is no such link, or the change could not be saved.
    pub(crate) async fn pause_link(
        &self,
        request: LinkRequest,
        paused: bool,
    ) -> Result<Link, ErrorBody> {
        let control = self.the_link(request.link.as_deref())?;
        if !request.dry_run {
            match control.handle() {
                Some(handle) if paused => {
                    if !handle.pause_link().await && control.section().shared {
                        let text = "paused here, but not all agents that share the link have confirmed it; `standfast link describe` shows them";
                        return Err(error(ErrorCode::OperationFailed, text));
                    }
                }
                Some(handle) => handle.resume_link().await,
                None => control.lifecycle().set_paused(paused),
            }
            control.on_disk().await.map_err(|text| {
                error(
                    ErrorCode::OperationFailed,
                    format!("done, but it could not be saved, so a restart of the agent would undo it: {text}"),
                )
            })?;
        }
        Ok(super::mirrors::link_of(&control))
    }

    /// Two links that write the same topic would spoil it.
    fn no_other_link(&self, control: &LinkControl, names: &[String]) -> Result<(), ErrorBody> {
        let section = control.section();
        for other in self.links().iter() {
            let theirs = other.section();
            if theirs.name == section.name || theirs.destination != section.destination {
                continue;
            }
            let taken = |topic: &&String| theirs.takes(topic);
            let mirrored = other.topics_in_operation();
            // A name without the link's prefix is refused by the link, which says what it should be.
            let mut ours = names.iter().filter(|n| section.prefix.strip(n).is_some());
            let found = ours.find(|n| taken(n) || mirrored.contains(n));
            if let Some(topic) = found {
                let text = format!(
                    "\"{topic}\" is already written to {} by link \"{}\"",
                    section.destination, theirs.name
                );
                return Err(error(ErrorCode::BadRequest, text));
            }
        }
        Ok(())
    }

    pub(super) fn the_link(&self, name: Option<&str>) -> Result<LinkControl, ErrorBody> {
        let links = self.links();
        let names: Vec<&str> = (links.iter())
            .map(|link| link.section().name.as_str())
            .collect();
        match (name, links.as_slice()) {
            (None, [only]) => Ok(only.clone()),
            (None, []) => Err(error(ErrorCode::NotFound, "this agent has no links")),
            (None, _) => Err(error(
                ErrorCode::BadRequest,
                format!(
                    "this agent has several links, say which one: {}",
                    names.join(", ")
                ),
            )),
            (Some(name), links) => links
                .iter()
                .find(|link| link.section().name == name)
                .cloned()
                .ok_or_else(|| {
                    error(
                        ErrorCode::NotFound,
                        format!(
                            "there is no link \"{name}\"; this agent has: {}",
                            names.join(", ")
                        ),
                    )
                }),
        }
    }
}

/// How long a change may take.
pub(super) fn timeout(asked_ms: Option<u64>, transition: Transition) -> Duration {
    match (asked_ms, transition) {
        (Some(ms), _) => Duration::from_millis(ms).min(TIMEOUT_MAX),
        (None, Transition::Failover) => FAILOVER_DEFAULT,
        (None, _) => TIMEOUT_DEFAULT,
    }
}

pub(super) fn select(
    control: &LinkControl,
    transition: Transition,
    request: &MirrorsRequest,
) -> Result<Vec<String>, ErrorBody> {
    let bad = |text: &str| error(ErrorCode::BadRequest, text);
    let ways = [
        !request.mirror_topic_names.is_empty(),
        request.mirror_topic_name_pattern.is_some(),
        request.all,
    ];
    if ways.iter().filter(|way| **way).count() != 1 {
        return Err(bad(
            "say which mirrors: topic names, or a pattern, or all of them",
        ));
    }
    if !request.mirror_topic_names.is_empty() {
        let mut seen = BTreeSet::new();
        let names = request.mirror_topic_names.iter();
        return Ok(names.filter(|n| seen.insert(*n)).cloned().collect());
    }
    if transition == Transition::Create {
        return Err(bad("name the topics to create mirrors for"));
    }
    let prefix = match &request.mirror_topic_name_pattern {
        None => String::new(),
        Some(pattern) => match pattern.strip_suffix(WILDCARD) {
            Some(prefix) if !prefix.contains(WILDCARD) => prefix.to_owned(),
            _ => {
                return Err(bad(
                    "a pattern is a prefix followed by `*`, for example `orders.*`",
                ));
            }
        },
    };
    let state = control.lifecycle().state();
    // Stopped mirrors are not the link's any more; only who names them means them.
    let wanted = |name: &String| {
        name.starts_with(&prefix)
            && (state.wanted(name) != Wanted::Stopped
                || matches!(transition, Transition::Failover | Transition::Promote))
    };
    let names: Vec<String> = control.mirror_names().into_iter().filter(wanted).collect();
    if names.is_empty() {
        return Err(error(
            ErrorCode::NotFound,
            format!(
                "no mirror of link \"{}\" matches; `standfast mirror list` shows them",
                control.section().name
            ),
        ));
    }
    Ok(names)
}

pub(super) fn rehearse(
    control: &LinkControl,
    topics: &[&str],
    transition: Transition,
) -> Vec<MirrorChange> {
    match control.handle() {
        Some(handle) => handle.rehearse(topics, transition),
        None => without_link(control, topics, transition, true),
    }
}

pub(super) async fn perform(
    control: &LinkControl,
    topics: &[&str],
    transition: Transition,
    timeout: Duration,
) -> Vec<MirrorChange> {
    let mut changes = match control.handle() {
        Some(handle) => with_link(&handle, topics, transition, timeout).await,
        None => without_link(control, topics, transition, false),
    };
    if let Err(text) = control.on_disk().await {
        for change in changes.iter_mut().filter(|c| c.error_code.is_none()) {
            change.error_code = Some(TransitionErrorCode::NotSaved);
            change.error_message = Some(format!(
                "done, but it could not be saved, so a restart of the agent would undo it: {text}"
            ));
        }
    }
    changes
}

async fn with_link(
    handle: &LinkHandle,
    topics: &[&str],
    transition: Transition,
    timeout: Duration,
) -> Vec<MirrorChange> {
    match transition {
        Transition::Pause => handle.pause(topics).await,
        Transition::Resume => handle.resume(topics).await,
        Transition::Promote => handle.promote(topics, timeout).await,
        Transition::Failover => handle.failover(topics, timeout).await,
        Transition::Create => handle.create(topics, timeout).await,
    }
}

/// The link does not run (the record holds it, say), so nothing is fetched or written; what is wanted of its mirrors can be changed all the same.
fn without_link(
    control: &LinkControl,
    topics: &[&str],
    transition: Transition,
    dry_run: bool,
) -> Vec<MirrorChange> {
    let known: BTreeSet<String> = control.mirror_names().into_iter().collect();
    let why = match control.phase() {
        Phase::Held { reason } | Phase::Stopped { reason } => reason,
        Phase::Failed { error } => error,
        Phase::Running { .. } => "it is starting".to_owned(),
    };
    let wanted = match transition {
        Transition::Pause => Some(Wanted::Paused),
        Transition::Resume => Some(Wanted::Active),
        Transition::Failover => Some(Wanted::Stopped),
        Transition::Promote | Transition::Create => None,
    };
    let refusal = |topic: &str| {
        let stopped = control.lifecycle().wanted(topic) == Wanted::Stopped;
        match (known.contains(topic), wanted) {
            (_, None) => Some((
                TransitionErrorCode::LinkNotRunning,
                format!("the link does not run: {why}"),
            )),
            (false, _) => Some((
                TransitionErrorCode::UnknownMirror,
                "the link does not mirror this topic".to_owned(),
            )),
            (true, Some(Wanted::Paused | Wanted::Active)) if stopped => Some((
                TransitionErrorCode::MirrorStopped,
                "the mirror was stopped by promote or failover; `standfast mirror create` begins it again".to_owned(),
            )),
            _ => None,
        }
    };
    let refusals: Vec<_> = topics.iter().map(|topic| refusal(topic)).collect();
    if let (false, Some(wanted)) = (dry_run, wanted) {
        let go = topics.iter().zip(&refusals).filter(|(_, r)| r.is_none());
        control.lifecycle().set(go.map(|(topic, _)| *topic), wanted);
    }
    let mirrors = mirrors_of(control);
    let described = |topic: &str| {
        let found = mirrors
            .iter()
            .find(|m| m.description.mirror_topic_name == topic);
        found.map(|m| m.description.clone()).unwrap_or_default()
    };
    topics
        .iter()
        .zip(refusals)
        .map(|(topic, refusal)| {
            let mirror = described(topic);
            MirrorChange {
                link_name: control.section().name.clone(),
                mirror_topic_name: (*topic).to_owned(),
                source_topic_name: control.section().prefix.own_name(topic).to_owned(),
                mirror_status: mirror.mirror_status,
                error_code: refusal.as_ref().map(|(code, _)| *code),
                error_message: refusal.map(|(_, text)| text),
                warnings: Vec::new(),
                mirror_lags: mirror.mirror_lags,
            }
        })
        .collect()
}

pub(super) fn error(error_code: ErrorCode, message: impl Into<String>) -> ErrorBody {
    ErrorBody {
        error_code,
        message: message.into(),
        report: None,
    }
}
