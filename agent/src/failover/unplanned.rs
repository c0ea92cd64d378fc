//! Failover: now, and without the source.

use standfast_discovery::{Epoch, FleetRecord, FleetState, Versioned};

use super::flip::{self, Flip};
use super::report::Draft;
use super::{Context, Coordination, CoordinationError, Failure, Mirrors, Request, Route, Steps};
use crate::api::{ErrorCode, Outcome, Report, TopicReport};

/// The state of a mirror whose source does not answer.
const SOURCE_UNAVAILABLE: &str = "SOURCE_UNAVAILABLE";

/// Makes another cluster the active one. See the module documentation for the order.
///
/// # Errors
/// Refusals (nothing was changed), and failures on the way with the report of how far it got.
pub(crate) async fn failover<C, M>(
    context: &Context<C, M>,
    mut steps: Steps,
    request: Request,
) -> Result<Report, Failure>
where
    C: Coordination + Clone + 'static,
    M: Mirrors + Clone + 'static,
{
    let lock = flip::lock(context, &mut steps).await?;
    let result = locked(context, &mut steps, &request, &lock).await;
    flip::release(lock).await;
    result
}

async fn locked<C, M>(
    context: &Context<C, M>,
    steps: &mut Steps,
    request: &Request,
    lock: &C::Lock,
) -> Result<Report, Failure>
where
    C: Coordination + Clone + 'static,
    M: Mirrors + Clone + 'static,
{
    let current = flip::read(context, steps).await?;
    let target = flip::target(context, request, &current.value)?;
    if flip::is_already_there(&current.value, &target) {
        return Ok(flip::already_active(context, steps, &current.value, false).await);
    }
    if current.value.active == target {
        return lift_fence(context, steps, request, lock, &current).await;
    }
    let route = flip::route(context, &current.value, target)?;
    let mut draft = Draft {
        fleet: context.fleet.clone(),
        planned: false,
        epoch: Some(current.value.epoch),
        route: route.clone(),
        handoff: None,
        topics: Vec::new(),
        warnings: Vec::new(),
    };
    if request.dry_run {
        return rehearse(context, steps, draft).await;
    }

    refuse_silent_target(context, steps, &route).await?;
    carry_groups_if_possible(context, steps, &route, &mut draft).await;
    stop_mirrors(context, steps, current.value.epoch, &mut draft).await;
    if let Err(reason) = flip::refuse_dead_target(&route, &draft.topics) {
        return Err(mirror_on(context, steps, draft, reason).await);
    }
    let key = match flip::write_handoff(context, steps, lock, &current.value, &draft).await {
        Ok(key) => key,
        Err(reason) => return Err(mirror_on(context, steps, draft, reason).await),
    };
    draft.handoff = Some(key.clone());
    let mut next = current.value.next(
        route.to.clone(),
        FleetState::Active,
        reason(context, request, &route),
    );
    next.handoff = Some(key);
    match flip::change_record(context, steps, "flip_record", lock, &current.version, &next).await {
        Flip::Done(_) => {}
        Flip::NotDone(reason) => return Err(mirror_on(context, steps, draft, reason).await),
        Flip::Unknown(reason) => return Err(wait_for_discovery(context, steps, draft, reason)),
    }
    draft.epoch = Some(next.epoch);
    let complete = draft.topics.iter().all(TopicReport::is_complete);
    let outcome = if complete {
        Outcome::Flipped
    } else {
        Outcome::FlippedInPart
    };
    Ok(draft.finish(outcome, steps))
}

/// Everything but stopping, writing and flipping: what would be lost right now.
async fn rehearse<C: Coordination, M: Mirrors>(
    context: &Context<C, M>,
    steps: &mut Steps,
    mut draft: Draft,
) -> Result<Report, Failure> {
    let route = draft.route.clone();
    draft.topics = context.mirrors.last_known(&route);
    draft.warn_of_paused();
    match steps
        .run(
            "ask_log_ends",
            context.limits.step,
            context.mirrors.log_ends(&route.to, &route),
        )
        .await
    {
        Ok(Ok(ends)) => {
            for topic in &mut draft.topics {
                for lag in &mut topic.mirror_lags {
                    let end = ends.get(&(topic.mirror_topic_name.clone(), lag.partition));
                    lag.destination_log_end_offset =
                        end.copied().or(lag.destination_log_end_offset);
                }
            }
        }
        // It answers, but not about every topic: one that was never mirrored, say.
        Ok(Err(error)) if context.mirrors.is_healthy(&route.to) => {
            draft
                .warnings
                .push(format!("not all log ends are known: {error}"));
        }
        Ok(Err(error)) => return Err(does_not_answer(&route, &error)),
        Err(late) => return Err(does_not_answer(&route, &late.to_string())),
    }
    Ok(draft.finish(Outcome::DryRun, steps))
}

fn does_not_answer(route: &Route, why: &str) -> Failure {
    Failure::refused(format!("\"{}\" does not answer: {why}", route.to))
}

/// A target that the probe finds well needs no question. One that answers nothing is refused while everything still
/// runs.
async fn refuse_silent_target<C: Coordination, M: Mirrors>(
    context: &Context<C, M>,
    steps: &mut Steps,
    route: &Route,
) -> Result<(), Failure> {
    if context.mirrors.is_healthy(&route.to) {
        return Ok(());
    }
    let ask = context.mirrors.log_ends(&route.to, route);
    let why = match steps.run("ask_target", context.limits.step, ask).await {
        Ok(Ok(_)) => return Ok(()),
        Ok(Err(error)) => error,
        Err(late) => late.to_string(),
    };
    Err(Failure::refused(format!(
        "\"{}\" does not answer, and moving applications there could only do harm; nothing was changed: {why}",
        route.to
    )))
}

/// Only when the source is alive, and never for long. The links see a lost source at once, the probe after some tries.
pub(super) async fn carry_groups_if_possible<C: Coordination, M: Mirrors>(
    context: &Context<C, M>,
    steps: &mut Steps,
    route: &Route,
    draft: &mut Draft,
) {
    let lost = |topic: &TopicReport| topic.mirror_status == SOURCE_UNAVAILABLE;
    if !context.mirrors.is_healthy(&route.from)
        || context.mirrors.last_known(route).iter().any(lost)
    {
        return;
    }
    let problem = match steps
        .run(
            "sync_groups",
            context.limits.group_sync,
            context.mirrors.sync_groups(route),
        )
        .await
    {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error,
        Err(late) => late.to_string(),
    };
    draft.warnings.push(format!(
        "group offsets were not carried over once more, the last known ones stand: {problem}"
    ));
}

pub(super) async fn stop_mirrors<C: Coordination, M: Mirrors>(
    context: &Context<C, M>,
    steps: &mut Steps,
    epoch: Epoch,
    draft: &mut Draft,
) {
    let (route, limit) = (draft.route.clone(), context.limits.step);
    // The links keep the deadline themselves; the outer one is only for a stop that hangs.
    match steps
        .run(
            "stop_mirrors",
            limit * 2 + context.mirrors.patience(&route),
            context.mirrors.stop(&route, epoch, limit),
        )
        .await
    {
        Ok(topics) => {
            draft.topics = topics;
            draft.warn_of_paused();
        }
        Err(late) => {
            draft.topics = context.mirrors.last_known(&route);
            for topic in &mut draft.topics {
                topic.error_code = Some("STOP_TIMED_OUT".to_owned());
                topic.error_message = Some(format!("stopping the mirror: {late}"));
                topic
                    .mirror_lags
                    .iter_mut()
                    .for_each(|lag| lag.destination_log_end_offset = None);
            }
        }
    }
}

/// The flip did not happen: the mirrors go on, and the report says so.
pub(super) async fn mirror_on<C: Coordination, M: Mirrors>(
    context: &Context<C, M>,
    steps: &mut Steps,
    mut draft: Draft,
    reason: String,
) -> Failure {
    let route = draft.route.clone();
    draft.handoff = None;
    let resumed = steps
        .run(
            "resume_mirrors",
            context.limits.step,
            context.mirrors.resume(&route),
        )
        .await;
    let mirrors = if resumed.is_ok() {
        "mirroring goes on"
    } else {
        "the mirrors could not be resumed in time; look at `standfast status`"
    };
    let message = format!(
        "not failed over, \"{}\" is still active: {reason} ({mirrors})",
        route.from
    );
    flip::failed(draft, steps, Outcome::Failed, message)
}

/// Nobody knows whether the flip happened. The mirrors stay stopped, since writing into a cluster that may be active
/// is worse than lag; as soon as discovery answers, they go on if the record allows it.
pub(super) fn wait_for_discovery<C, M>(
    context: &Context<C, M>,
    steps: &Steps,
    draft: Draft,
    reason: String,
) -> Failure
where
    C: Coordination + Clone + 'static,
    M: Mirrors + Clone + 'static,
{
    const PAUSE: std::time::Duration = std::time::Duration::from_secs(1);
    let (coordination, mirrors) = (context.coordination.clone(), context.mirrors.clone());
    let (route, limit) = (draft.route.clone(), context.limits.step);
    tokio::spawn(async move {
        // Under the lock, so that mirrors never go on in the middle of the next attempt.
        let settled = async || -> Result<(), CoordinationError> {
            let lock = coordination.lock().await?;
            let found = coordination.read().await;
            if let Ok(Some(found)) = &found
                && found.value.active == route.from
            {
                mirrors.resume(&route).await;
            }
            flip::release(lock).await;
            found.map(|_| ())
        };
        while !matches!(tokio::time::timeout(limit, settled()).await, Ok(Ok(()))) {
            tokio::time::sleep(PAUSE).await;
        }
    });
    let message = format!(
        "discovery did not say whether the record was changed: {reason}; the mirrors stay stopped until it answers, and then go on \
         if the record was not changed. Run the command again to finish"
    );
    flip::failed(draft, steps, Outcome::Unknown, message)
}

/// A switchover away from the active cluster died after fencing. Asking for that cluster lets the producers go again.
async fn lift_fence<C, M>(
    context: &Context<C, M>,
    steps: &mut Steps,
    request: &Request,
    lock: &C::Lock,
    current: &Versioned<FleetRecord>,
) -> Result<Report, Failure>
where
    C: Coordination,
    M: Mirrors,
{
    let record = &current.value;
    if request.dry_run {
        let mut report = flip::already_active(context, steps, record, false).await;
        report.outcome = Outcome::DryRun;
        report.warnings.push(format!(
            "\"{}\" is active but fenced; without --dry-run the fence is lifted",
            record.active
        ));
        return Ok(report);
    }
    let reason = request
        .reason
        .clone()
        .unwrap_or_else(|| "fence lifted by failover".to_owned());
    let mut next = record.next(record.active.clone(), FleetState::Active, reason);
    next.handoff.clone_from(&record.handoff);
    match flip::change_record(context, steps, "lift_fence", lock, &current.version, &next).await {
        Flip::Done(_) => {
            let mut report = flip::already_active(context, steps, &next, false).await;
            report.warnings.push(format!(
                "\"{}\" was active but fenced; the fence is lifted",
                next.active
            ));
            Ok(report)
        }
        Flip::NotDone(reason) | Flip::Unknown(reason) => Err(Failure {
            code: ErrorCode::OperationFailed,
            message: format!(
                "the fence on \"{}\" was not lifted: {reason}",
                record.active
            ),
            report: None,
        }),
    }
}

fn reason<C, M: Mirrors>(context: &Context<C, M>, request: &Request, route: &Route) -> String {
    if let Some(reason) = &request.reason {
        return reason.clone();
    }
    match context.mirrors.unreachable_for(&route.from) {
        Some(time) => format!(
            "failover: {} unreachable for {}s",
            route.from,
            time.as_secs()
        ),
        None => format!("failover from {} to {}", route.from, route.to),
    }
}
