//! Switchover: producers held, mirrors drained to lag 0, then the flip. Nothing is lost.

use std::time::Duration;

use standfast_discovery::{FleetRecord, FleetState, Versioned};

use super::drain::{DrainWatch, both_ends};
use super::flip::{self, Flip};
use super::report::Draft;
use super::unplanned::{carry_groups_if_possible, stop_mirrors, wait_for_discovery};
use super::unread::check_groups;
use super::{Context, Coordination, Failure, LogEnds, Mirrors, Request, Route, Steps, late_writes};
use crate::api::{Outcome, Report};

/// The time limits that the operator chooses.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Drain {
    /// How long the drain may take.
    pub(crate) timeout: Duration,
    /// How long the source must stand still.
    pub(crate) settle: Duration,
}

/// Makes another cluster the active one without losing a record.
///
/// # Errors
/// Refusals (nothing was changed), and failures on the way: then the fence was lifted and the mirrors go on.
pub(crate) async fn switchover<C, M>(
    context: &Context<C, M>,
    mut steps: Steps,
    request: Request,
    drain: Drain,
) -> Result<Report, Failure>
where
    C: Coordination + Clone + 'static,
    M: Mirrors + Clone + 'static,
{
    let lock = flip::lock(context, &mut steps).await?;
    let result = locked(context, &mut steps, &request, drain, &lock).await;
    flip::release(lock).await;
    let (mut report, drained) = result?;
    if let Some(drained) = drained {
        late_writes::watch(context, &mut steps, &drained, &mut report).await;
    }
    Ok(report)
}

/// The direction that was given up, and where the old logs ended.
pub(super) struct Drained {
    pub(super) route: Route,
    pub(super) ends: LogEnds,
}

impl Drained {
    /// Where the old cluster's log ended; 0 for a partition that was added since.
    pub(super) fn end_of(&self, partition: &(String, i32)) -> i64 {
        self.ends.get(partition).copied().unwrap_or(0)
    }
}

async fn locked<C, M>(
    context: &Context<C, M>,
    steps: &mut Steps,
    request: &Request,
    drain: Drain,
    lock: &C::Lock,
) -> Result<(Report, Option<Drained>), Failure>
where
    C: Coordination + Clone + 'static,
    M: Mirrors + Clone + 'static,
{
    let current = flip::read(context, steps).await?;
    let target = flip::target(context, request, &current.value)?;
    if flip::is_already_there(&current.value, &target) {
        return Ok((
            flip::already_active(context, steps, &current.value, true).await,
            None,
        ));
    }
    let route = flip::route(context, &current.value, target)?;
    check_mirrors(context, &route)?;
    let mut draft = Draft {
        fleet: context.fleet.clone(),
        planned: true,
        epoch: Some(current.value.epoch),
        route: route.clone(),
        handoff: None,
        topics: context.mirrors.last_known(&route),
        warnings: Vec::new(),
    };
    check_groups(context, steps, request, lock, &mut draft)
        .await
        .map_err(|refused| still_fenced(refused, &current.value))?;
    if request.dry_run {
        let ends = steps
            .run(
                "ask_log_ends",
                context.limits.step * 2,
                both_ends(context, &route),
            )
            .await;
        let ends = ends
            .map_err(|late| Failure::refused(late.to_string()))?
            .map_err(Failure::refused)?;
        ends.write_into(&mut draft);
        return Ok((draft.finish(Outcome::DryRun, steps), None));
    }

    let fenced = fence(context, steps, request, lock, current, &draft).await?;
    let mut planned = Planned {
        context,
        steps,
        lock,
        fenced,
        draft,
    };
    let ends = match planned.drain(drain).await {
        Ok(ends) => ends,
        Err(reason) => return Err(planned.give_up(reason).await),
    };
    let report = planned.flip(request, &ends).await?;
    Ok((report, Some(Drained { route, ends })))
}

/// A switchover is for clusters that are well; anything else is a failover.
fn check_mirrors<C, M: Mirrors>(context: &Context<C, M>, route: &Route) -> Result<(), Failure> {
    for cluster in [&route.from, &route.to] {
        if !context.mirrors.is_healthy(cluster) {
            return Err(Failure::refused(format!(
                "\"{cluster}\" does not answer the health probe; a switchover needs both clusters. If it is lost, use `standfast failover`"
            )));
        }
    }
    let topics = context.mirrors.last_known(route);
    if let Some(bad) = topics.iter().find(|topic| topic.mirror_status != "ACTIVE") {
        let why = bad
            .error_message
            .as_deref()
            .unwrap_or("see `standfast mirror describe`");
        return Err(Failure::refused(format!(
            "mirror topic \"{}\" is {}, so it cannot be drained: {why}",
            bad.mirror_topic_name, bad.mirror_status
        )));
    }
    Ok(())
}

/// A refusal changes nothing, so an interrupted switchover's fence stays too.
fn still_fenced(mut refused: Failure, record: &FleetRecord) -> Failure {
    if record.state == FleetState::Fenced {
        refused.message.push_str(&format!(
            ". The fence of an interrupted switchover stays meanwhile: `standfast failover --to {}` lifts it",
            record.active
        ));
    }
    refused
}

/// Tells the producers to hold. A fence that an interrupted switchover left behind is taken over.
async fn fence<C, M>(
    context: &Context<C, M>,
    steps: &mut Steps,
    request: &Request,
    lock: &C::Lock,
    current: Versioned<FleetRecord>,
    draft: &Draft,
) -> Result<Versioned<FleetRecord>, Failure>
where
    C: Coordination,
    M: Mirrors,
{
    if current.value.state == FleetState::Fenced {
        return Ok(current);
    }
    let route = &draft.route;
    let reason = reason(request, route);
    let mut next = current
        .value
        .next(current.value.active.clone(), FleetState::Fenced, reason);
    next.handoff.clone_from(&current.value.handoff);
    match flip::change_record(context, steps, "fence", lock, &current.version, &next).await {
        Flip::Done(version) => Ok(Versioned {
            version,
            value: next,
        }),
        Flip::NotDone(why) => Err(Failure::refused(format!(
            "the producers were not fenced: {why}"
        ))),
        Flip::Unknown(why) => Err(flip::failed(
            draft.clone(),
            steps,
            Outcome::Unknown,
            format!(
                "discovery did not say whether the producers were fenced: {why}; mirroring goes on. Run the command again, or \
                 `standfast failover --to {}` to lift the fence",
                route.from
            ),
        )),
    }
}

/// A switchover whose producers are fenced.
struct Planned<'a, C: Coordination, M> {
    context: &'a Context<C, M>,
    steps: &'a mut Steps,
    lock: &'a C::Lock,
    fenced: Versioned<FleetRecord>,
    draft: Draft,
}

impl<C, M> Planned<'_, C, M>
where
    C: Coordination + Clone + 'static,
    M: Mirrors + Clone + 'static,
{
    /// Waits until the source stands still and the mirrors hold all of it, stops them, and looks once more.
    async fn drain(&mut self, drain: Drain) -> Result<LogEnds, String> {
        let (context, route) = (self.context, self.draft.route.clone());
        let mut watch = DrainWatch::new(drain.settle);
        let wait = watch.wait(context, &route, self.lock);
        match self.steps.run("drain", drain.timeout, wait).await {
            Ok(done) => done?,
            Err(late) => return Err(watch.why_not(late.limit)),
        }
        carry_groups_if_possible(context, self.steps, &route, &mut self.draft).await;
        stop_mirrors(
            context,
            self.steps,
            self.fenced.value.epoch,
            &mut self.draft,
        )
        .await;
        let ends = self
            .steps
            .run(
                "verify",
                context.limits.step * 2,
                both_ends(context, &route),
            )
            .await;
        let ends = ends.map_err(|late| late.to_string())??;
        ends.write_into(&mut self.draft);
        if let Some(text) = ends.differences() {
            return Err(format!(
                "a producer that does not heed the fence wrote to \"{}\" after the drain: {text}",
                route.from
            ));
        }
        match self.draft.topics.iter().find(|topic| !topic.is_complete()) {
            None => Ok(ends.source),
            Some(bad) => Err(format!(
                "mirror topic \"{}\" was not stopped cleanly: {}",
                bad.mirror_topic_name,
                bad.error_message
                    .as_deref()
                    .unwrap_or("its log ends are not known")
            )),
        }
    }

    /// Handoff and flip.
    async fn flip(mut self, request: &Request, ends: &LogEnds) -> Result<Report, Failure> {
        debug_assert!(!ends.is_empty(), "drained mirrors have log ends");
        let route = self.draft.route.clone();
        let handoff = flip::write_handoff(
            self.context,
            self.steps,
            self.lock,
            &self.fenced.value,
            &self.draft,
        )
        .await;
        let key = match handoff {
            Ok(key) => key,
            Err(why) => return Err(self.give_up(why).await),
        };
        self.draft.handoff = Some(key.clone());
        let record = &self.fenced.value;
        let mut next = record.next(
            route.to.clone(),
            FleetState::Active,
            reason(request, &route),
        );
        next.handoff = Some(key);
        let version = &self.fenced.version;
        match flip::change_record(
            self.context,
            self.steps,
            "flip_record",
            self.lock,
            version,
            &next,
        )
        .await
        {
            Flip::Done(_) => {}
            Flip::NotDone(why) => return Err(self.give_up(why).await),
            Flip::Unknown(why) => {
                return Err(wait_for_discovery(
                    self.context,
                    self.steps,
                    self.draft,
                    why,
                ));
            }
        }
        self.draft.epoch = Some(next.epoch);
        Ok(self.draft.finish(Outcome::Flipped, self.steps))
    }

    /// Lets the mirrors and the producers go on where they were.
    async fn give_up(&mut self, reason: String) -> Failure {
        let route = self.draft.route.clone();
        let (context, limit) = (self.context, self.context.limits.step);
        let resumed = self
            .steps
            .run("resume_mirrors", limit, context.mirrors.resume(&route))
            .await;
        if resumed.is_err() {
            self.draft.warnings.push(
                "the mirrors could not be resumed in time; look at `standfast status`".to_owned(),
            );
        }
        let record = &self.fenced.value;
        let mut next = record.next(
            route.from.clone(),
            FleetState::Active,
            format!("switchover given up: {reason}"),
        );
        next.handoff.clone_from(&record.handoff);
        // The version guards this change even if the lock is gone, and a fence that stays is an outage.
        let change = context
            .coordination
            .compare_and_set(&self.fenced.version, &next);
        let lifted = match self.steps.run("lift_fence", limit, change).await {
            Ok(Ok(standfast_discovery::CasOutcome::Set(_))) => {
                self.draft.epoch = Some(next.epoch);
                Ok(())
            }
            Ok(Ok(_)) => Err("somebody else changed the record".to_owned()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(late) => Err(late.to_string()),
        };
        self.draft.handoff = None;
        let message = match lifted {
            Ok(()) => format!(
                "not switched over, \"{}\" is still active: {reason} (the fence is lifted, mirroring goes on)",
                route.from
            ),
            Err(why) => format!(
                "not switched over: {reason}. THE FENCE WAS NOT LIFTED ({why}): producers may still hold. Run `standfast failover --to {}` \
                 to lift it, or the switchover again",
                route.from
            ),
        };
        flip::failed(self.draft.clone(), self.steps, Outcome::Failed, message)
    }
}

fn reason(request: &Request, route: &Route) -> String {
    request
        .reason
        .clone()
        .unwrap_or_else(|| format!("switchover from {} to {}", route.from, route.to))
}
