//! Before a switchover: has every consumer group read what only the cluster that is left holds?
//!
//! The mirror's log may begin behind records of the source (after a restore in mode fast, say). Groups that have yet to read these would skip them on the other cluster.

use std::time::Duration;

use standfast_link::UnreadRecords;

use super::report::Draft;
use super::{Context, Coordination, Failure, Mirrors, Request, Route, Steps, flip};

/// How long consumer groups are waited for.
pub(crate) const GROUP_READS_MAX: Duration = Duration::from_secs(10);
/// Between two looks at their offsets.
const GROUP_READS_POLL: Duration = Duration::from_millis(250);
/// How many groups' partitions an error names.
const NAMED_MAX: usize = 5;

/// Waits until no group would skip a record by the switchover. Otherwise refused; a dry run, and who allows it, gets a warning instead and does not wait.
pub(super) async fn check_groups<C: Coordination, M: Mirrors>(
    context: &Context<C, M>,
    steps: &mut Steps,
    request: &Request,
    lock: &C::Lock,
    draft: &mut Draft,
) -> Result<(), Failure> {
    let route = draft.route.clone();
    if !context.mirrors.carries_groups(&route) {
        return Ok(());
    }
    let mut watch = Watch::default();
    if request.dry_run || request.allow_skips {
        let look = watch.look(context, &route);
        let limit = context.limits.step * 2;
        if let Err(late) = steps.run("check_groups", limit, look).await {
            watch.last = Err(late.to_string());
        }
        if let Some(what) = watch.in_the_way(&route) {
            tracing::warn!(allow_skips = request.allow_skips, reason = %what, "consumer groups are behind");
            draft
                .warnings
                .push(warning(&what, request, &route, context.limits.group_reads));
        }
        return Ok(());
    }
    let limit = context.limits.group_reads;
    let wait = watch.wait(context, &route, lock);
    // Not in time: what was seen last says why.
    if let Ok(ended) = steps.run("check_groups", limit, wait).await {
        ended.map_err(Failure::refused)?;
    }
    match watch.in_the_way(&route) {
        None => Ok(()),
        Some(what) => Err(Failure::refused(match watch.last {
            Ok(_) => format!(
                "{what}. Wait until they are read (waited {limit:?}), or have the topic mirrored from its beginning (`standfast mirror failover TOPIC`, \
                 then `standfast mirror restore TOPIC --mode full`), or pass --allow-skips to leave them unread"
            ),
            Err(_) => format!("{what}. Pass --allow-skips to switch over without knowing"),
        })),
    }
}

fn warning(what: &str, request: &Request, route: &Route, limit: Duration) -> String {
    if request.allow_skips {
        format!(
            "{what}; allowed by --allow-skips: what they have not read stays on \"{}\" only",
            route.from
        )
    } else {
        format!("{what}; the switchover waits {limit:?} for that, and is refused then")
    }
}

/// What was seen last; outlives a timeout, to say what was in the way.
#[derive(Debug)]
struct Watch {
    last: Result<Vec<UnreadRecords>, String>,
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            last: Err("the clusters did not answer in time".to_owned()),
        }
    }
}

impl Watch {
    async fn look<C: Coordination, M: Mirrors>(&mut self, context: &Context<C, M>, route: &Route) {
        self.last = context.mirrors.unread(route).await;
    }

    /// Returns when nothing is unread; an error is why not to wait any longer.
    async fn wait<C: Coordination, M: Mirrors>(
        &mut self,
        context: &Context<C, M>,
        route: &Route,
        lock: &C::Lock,
    ) -> Result<(), String> {
        loop {
            flip::may_wait(context, lock)?;
            self.look(context, route).await;
            if matches!(&self.last, Ok(unread) if unread.is_empty()) {
                return Ok(());
            }
            tokio::time::sleep(GROUP_READS_POLL).await;
        }
    }

    /// Why not to switch over, in words.
    fn in_the_way(&self, route: &Route) -> Option<String> {
        match &self.last {
            Ok(unread) => in_words(unread, route),
            Err(error) => Some(format!(
                "it is not known whether consumer groups have yet to read records that the mirrors on \"{}\" do not hold: {error}",
                route.to
            )),
        }
    }
}

fn in_words(unread: &[UnreadRecords], route: &Route) -> Option<String> {
    let one = |found: &UnreadRecords| {
        let UnreadRecords {
            group,
            topic,
            partition,
            from_offset: from,
            records,
            mirror_log_start_offset: start,
            ..
        } = found;
        let which = match records {
            1 => format!("1 record of {topic}-{partition} ({from})"),
            _ => format!(
                "{records} records of {topic}-{partition} ({from} to {})",
                from + records - 1
            ),
        };
        format!(
            "group \"{group}\" has yet to read {which} that the mirror on \"{}\" does not hold: its log begins at {start}",
            route.to
        )
    };
    let named: Vec<String> = unread.iter().take(NAMED_MAX).map(one).collect();
    let mut text = named.join("; ");
    if unread.len() > NAMED_MAX {
        text.push_str(&format!("; and {} more", unread.len() - NAMED_MAX));
    }
    (!unread.is_empty()).then_some(text)
}
