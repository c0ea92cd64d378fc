//! What failover and switchover have in common: the lock, the target, and the change of the record.

use std::time::Duration;

use jiff::Timestamp;
use standfast_discovery::{
    CasOutcome, ClusterName, Epoch, FleetRecord, FleetState, Handoff, Version, Versioned,
};

use super::report::{Draft, handoff_offsets};
use super::{
    Context, Coordination, CoordinationError, Failure, FleetLock, Mirrors, Request, Route, Steps,
};
use crate::api::{ErrorCode, Outcome, Report, TopicReport};

/// How long releasing the lock may hold up the report; it expires anyway.
const RELEASE_LIMIT: Duration = Duration::from_secs(1);
/// Between two questions whether an unanswered change of the record happened.
const CONFIRM_PAUSE: Duration = Duration::from_millis(200);

/// How a change of the record ended.
#[derive(Debug)]
pub(super) enum Flip {
    Done(Version),
    /// Surely not changed.
    NotDone(String),
    /// Discovery did not say.
    Unknown(String),
}

/// Takes the lock.
pub(super) async fn lock<C: Coordination, M: Mirrors>(
    context: &Context<C, M>,
    steps: &mut Steps,
) -> Result<C::Lock, Failure> {
    match steps
        .run("lock", context.limits.step, context.coordination.lock())
        .await
    {
        Ok(Ok(lock)) => Ok(lock),
        Ok(Err(error)) => Err(error.into()),
        Err(late) => Err(CoordinationError::Unreachable(format!("lock: {late}")).into()),
    }
}

pub(super) async fn release(lock: impl FleetLock) {
    if tokio::time::timeout(RELEASE_LIMIT, lock.release())
        .await
        .is_err()
    {
        tracing::warn!("the failover lock was not released in time; it expires by itself");
    }
}

/// Reads the record fresh. A fleet without a record cannot be moved.
pub(super) async fn read<C: Coordination, M: Mirrors>(
    context: &Context<C, M>,
    steps: &mut Steps,
) -> Result<Versioned<FleetRecord>, Failure> {
    match steps
        .run(
            "read_record",
            context.limits.step,
            context.coordination.read(),
        )
        .await
    {
        Ok(Ok(Some(record))) => Ok(record),
        Ok(Ok(None)) => Err(Failure::refused(format!(
            "fleet {} has no record in discovery; create it with `standfast fleet init`",
            context.fleet
        ))),
        Ok(Err(error)) => Err(error.into()),
        Err(late) => Err(CoordinationError::Unreachable(format!("fleet record: {late}")).into()),
    }
}

/// The cluster to make active: the one asked for, or the only destination of this agent's links. It does not depend on
/// which cluster is active, so that asking twice can never flip back.
pub(super) fn target<C, M: Mirrors>(
    context: &Context<C, M>,
    request: &Request,
    record: &FleetRecord,
) -> Result<ClusterName, Failure> {
    let known = || {
        record
            .clusters
            .keys()
            .map(ClusterName::as_str)
            .collect::<Vec<_>>()
            .join(", ")
    };
    let target = match &request.to {
        Some(to) => to.clone(),
        None => {
            let mut destinations: Vec<ClusterName> = context
                .mirrors
                .routes()
                .into_iter()
                .map(|route| route.to)
                .collect();
            destinations.sort();
            destinations.dedup();
            match destinations.as_slice() {
                [only] => only.clone(),
                [] => {
                    return Err(Failure::refused(
                        "this agent has no links; configure [[links]]",
                    ));
                }
                several => {
                    let names: Vec<&str> = several.iter().map(ClusterName::as_str).collect();
                    return Err(Failure::refused(format!(
                        "this agent's links write to several clusters; say which one: --to {}",
                        names.join(" or --to ")
                    )));
                }
            }
        }
    };
    if !record.clusters.contains_key(&target) {
        return Err(Failure::refused(format!(
            "the fleet record of {} has no cluster \"{target}\"; it has: {}",
            context.fleet,
            known()
        )));
    }
    Ok(target)
}

/// The direction to give up; refused unless this agent has a link for it.
pub(super) fn route<C, M: Mirrors>(
    context: &Context<C, M>,
    record: &FleetRecord,
    to: ClusterName,
) -> Result<Route, Failure> {
    let route = Route {
        from: record.active.clone(),
        to,
    };
    if context.mirrors.routes().contains(&route) {
        return Ok(route);
    }
    Err(Failure::refused(format!(
        "no link of this agent mirrors the active cluster \"{}\" to \"{}\"; run it at the agent that does, or configure the link",
        route.from, route.to
    )))
}

/// Refuses to move applications to a cluster that answers nothing.
pub(super) fn refuse_dead_target(route: &Route, topics: &[TopicReport]) -> Result<(), String> {
    let any_answer = topics
        .iter()
        .flat_map(|topic| &topic.mirror_lags)
        .any(|lag| lag.destination_log_end_offset.is_some());
    if any_answer {
        return Ok(());
    }
    let why = topics
        .iter()
        .find_map(|t| t.error_message.clone())
        .unwrap_or_default();
    Err(format!(
        "\"{}\" gave no log end of any mirror topic; moving applications there could only do harm. {why}",
        route.to
    ))
}

/// Writes the handoff that belongs to the next epoch.
pub(super) async fn write_handoff<C: Coordination, M: Mirrors>(
    context: &Context<C, M>,
    steps: &mut Steps,
    lock: &C::Lock,
    record: &FleetRecord,
    draft: &Draft,
) -> Result<String, String> {
    let handoff = Handoff {
        fleet: context.fleet.clone(),
        epoch: record.epoch.next(),
        from: draft.route.from.clone(),
        to: draft.route.to.clone(),
        written_at: Timestamp::now(),
        planned: draft.planned,
        topics: handoff_offsets(&draft.topics),
    };
    let limit = time_left(lock, context.limits.step)?;
    match steps
        .run(
            "write_handoff",
            limit,
            context.coordination.write_handoff(&handoff),
        )
        .await
    {
        Ok(Ok(key)) => Ok(key),
        Ok(Err(error)) => Err(format!("the handoff was not written: {error}")),
        Err(late) => Err(format!("the handoff was not written: {late}")),
    }
}

/// Changes the record, only while the lock is still valid.
pub(super) async fn change_record<C: Coordination, M: Mirrors>(
    context: &Context<C, M>,
    steps: &mut Steps,
    name: &'static str,
    lock: &C::Lock,
    expected: &Version,
    next: &FleetRecord,
) -> Flip {
    let limit = match time_left(lock, context.limits.step) {
        Ok(limit) => limit,
        Err(expired) => return Flip::NotDone(expired),
    };
    let outcome = steps
        .run(
            name,
            limit,
            context.coordination.compare_and_set(expected, next),
        )
        .await;
    let unanswered = match outcome {
        Ok(Ok(CasOutcome::Set(version))) => return Flip::Done(version),
        Ok(Err(CoordinationError::Refused(text) | CoordinationError::Locked(text))) => {
            return Flip::NotDone(text);
        }
        // A repeated request may meet its own first success.
        Ok(Ok(CasOutcome::Conflict)) => {
            "somebody else changed the record at the same time".to_owned()
        }
        Ok(Err(CoordinationError::Unreachable(text))) => text,
        Err(late) => late.to_string(),
    };
    confirm(context, steps, next, unanswered).await
}

/// A change without an answer may have happened: the record itself tells.
async fn confirm<C: Coordination, M: Mirrors>(
    context: &Context<C, M>,
    steps: &mut Steps,
    next: &FleetRecord,
    unanswered: String,
) -> Flip {
    let ask = async {
        loop {
            match context.coordination.read().await {
                Ok(found) => return found,
                Err(error) => tracing::warn!(%error, "asking whether the record was changed"),
            }
            tokio::time::sleep(CONFIRM_PAUSE).await;
        }
    };
    match steps.run("confirm_record", context.limits.step, ask).await {
        Ok(Some(found)) if is_same_change(&found.value, next) => Flip::Done(found.version),
        Ok(_) => Flip::NotDone(unanswered),
        Err(_) => Flip::Unknown(unanswered),
    }
}

fn is_same_change(found: &FleetRecord, wanted: &FleetRecord) -> bool {
    found.epoch == wanted.epoch
        && found.active == wanted.active
        && found.state == wanted.state
        && found.changed_at == wanted.changed_at
        && found.handoff == wanted.handoff
}

/// Whether an operation that waits may go on waiting: the lock is still valid, and the agent stays.
pub(super) fn may_wait<C: Coordination, M: Mirrors>(
    context: &Context<C, M>,
    lock: &C::Lock,
) -> Result<(), String> {
    time_left(lock, context.limits.step)?;
    if context.shutdown.is_cancelled() {
        return Err("the agent is shutting down".to_owned());
    }
    Ok(())
}

/// What is left of the lock, at most `limit`.
pub(super) fn time_left(lock: &impl FleetLock, limit: Duration) -> Result<Duration, String> {
    let left = lock.time_left().unwrap_or(limit).min(limit);
    if left.is_zero() {
        return Err("the lock expired on the way (this agent may have been cut off from discovery), so nothing may be \
                    written any more"
            .to_owned());
    }
    Ok(left)
}

/// The report of an operation that has nothing to do: the fleet is where it should be.
pub(super) async fn already_active<C: Coordination, M: Mirrors>(
    context: &Context<C, M>,
    steps: &Steps,
    record: &FleetRecord,
    planned: bool,
) -> Report {
    let read = context.coordination.read_handoff(handoff_epoch(record));
    let (handoff, mut warnings) = match tokio::time::timeout(context.limits.step, read).await {
        Ok(Ok(handoff)) => (handoff, Vec::new()),
        Ok(Err(error)) => (
            None,
            vec![format!("the stored handoff cannot be read: {error}")],
        ),
        Err(_) => (
            None,
            vec!["the stored handoff could not be read in time".to_owned()],
        ),
    };
    if handoff.is_none() && record.handoff.is_some() && warnings.is_empty() {
        warnings.push("the handoff that the record names is gone from discovery".to_owned());
    }
    Report {
        fleet: context.fleet.clone(),
        planned: handoff.as_ref().map_or(planned, |h| h.planned),
        outcome: Outcome::AlreadyActive,
        epoch: Some(record.epoch),
        from: handoff.as_ref().map(|h| h.from.clone()),
        to: record.active.clone(),
        handoff: record.handoff.clone(),
        handoff_offsets: handoff.map(|h| h.topics).unwrap_or_default(),
        rpo_records: None,
        rpo_seconds: None,
        topics: Vec::new(),
        steps: steps.done(),
        total_ms: steps.total_ms(),
        warnings,
        late_writes: Vec::new(),
    }
}

/// Fencing and lifting the fence raise the epoch and keep the key of the last flip's handoff, which ends with its epoch.
pub(crate) fn handoff_epoch(record: &FleetRecord) -> Epoch {
    let last = record
        .handoff
        .as_deref()
        .and_then(|key| key.rsplit('/').next());
    last.and_then(|text| text.trim_end_matches(".json").parse().ok())
        .map_or(record.epoch, Epoch)
}

/// Whether there is nothing to do. A fence that a switchover away from `target` left behind is still to be lifted.
pub(super) fn is_already_there(record: &FleetRecord, target: &ClusterName) -> bool {
    record.active == *target && record.state == FleetState::Active
}

/// The failure of an operation that had begun: with the report, and what became of the mirrors.
pub(super) fn failed(draft: Draft, steps: &Steps, outcome: Outcome, message: String) -> Failure {
    let report = draft.finish(outcome, steps);
    Failure {
        code: ErrorCode::OperationFailed,
        message,
        report: Some(Box::new(report)),
    }
}
