//! What an agent does for a link that it shares with others: it tries to hold the link's duties, and takes back orders to stop whose operation is over.
//!
//! The agents find one another through the link's group on the destination cluster, not through discovery: copying goes on without it.

use std::sync::Arc;
use std::time::Duration;

use standfast_discovery::{Discovery, FleetName, FleetRecord, FleetWatchHandle};
use standfast_link::{Lifecycle, SharingOptions};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::circles::Refused;
use super::rule::{Verdict, verdict};
use crate::config::LinkSection;

/// Between two tries to take the lock of the link's duties, and two looks at an order to stop.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Heartbeats in one session.
const BEATS: u32 = 12;

/// How this agent appears to the others, and where the locks are.
#[derive(Debug, Clone)]
pub(crate) struct Colleague {
    pub(crate) agent: String,
    pub(crate) discovery: Discovery,
    pub(crate) fleet: FleetName,
    pub(crate) lock_ttl: Duration,
    /// Links that close a circle with those of other agents.
    pub(crate) refused: watch::Receiver<Refused>,
}

/// Runs beside a shared link; ends when it is dropped, and gives the lock back.
#[derive(Debug)]
pub(super) struct Sharing {
    duties: watch::Receiver<bool>,
    _tasks: [AbortOnDropHandle<()>; 2],
}

impl Sharing {
    /// `None`: the link is not shared.
    pub(super) fn begin(
        section: &Arc<LinkSection>,
        colleague: &Colleague,
        lifecycle: &Lifecycle,
        fleet: &FleetWatchHandle,
    ) -> Option<Self> {
        if !section.shared {
            // An order from when it was.
            lifecycle.set_stop(None);
            return None;
        }
        let (holds, duties) = watch::channel(false);
        let duty = hold_duties(colleague.clone(), section.name.clone(), holds);
        let orders = end_orders(
            colleague.clone(),
            Arc::clone(section),
            lifecycle.clone(),
            fleet.clone(),
        );
        Some(Self {
            duties,
            _tasks: [tokio::spawn(duty), tokio::spawn(orders)].map(AbortOnDropHandle::new),
        })
    }

    pub(super) fn options(&self, section: &LinkSection, colleague: &Colleague) -> SharingOptions {
        let mut options = SharingOptions::new(colleague.agent.clone());
        if let Some(session) = section.session_timeout {
            options.session_timeout = session;
            options.heartbeat_interval = session / BEATS;
        }
        options.duties = Some(self.duties.clone());
        options
    }
}

/// Holds the lock of the link's duties whenever it can be had.
async fn hold_duties(colleague: Colleague, link: String, holds: watch::Sender<bool>) {
    let holder = format!("agent {}", colleague.agent);
    loop {
        let locked =
            colleague
                .discovery
                .lock_link(&colleague.fleet, &link, &holder, colleague.lock_ttl);
        if let Ok(lock) = locked.await {
            tracing::info!(link, "this agent has the link's duties");
            holds.send_replace(true);
            lock.lost().await;
            holds.send_replace(false);
            tracing::warn!(link, "this agent no longer has the link's duties");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Takes back an order to stop that no operation stands behind any more: the agent that gave it died, say.
async fn end_orders(
    colleague: Colleague,
    section: Arc<LinkSection>,
    lifecycle: Lifecycle,
    fleet: FleetWatchHandle,
) {
    let mut orders = lifecycle.subscribe();
    loop {
        let token = match orders.wait_for(|state| state.stop_token().is_some()).await {
            Ok(state) => state.stop_token(),
            Err(_) => return,
        };
        if let Some(token) = token
            && is_over(&colleague, &section, &fleet, token).await
        {
            tracing::warn!(
                link = section.name,
                epoch = token,
                "the operation for which the mirrors were stopped is over, they go on"
            );
            lifecycle.set_stop(None);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Whether the mirrors may go on although they were told to stop at that epoch. Without discovery they may not: another agent may have flipped.
async fn is_over(
    colleague: &Colleague,
    section: &LinkSection,
    fleet: &FleetWatchHandle,
    token: u64,
) -> bool {
    let may_run = |record: &FleetRecord| verdict(Some(record), section) == Verdict::Run;
    let seen = fleet.borrow().record.clone();
    if seen.is_some_and(|record| record.epoch.0 > token && may_run(&record)) {
        return true;
    }
    // Whoever is in the middle of an operation holds the fleet's lock.
    let holder = format!("agent {} (looks for abandoned operations)", colleague.agent);
    let locked = colleague
        .discovery
        .lock(&colleague.fleet, &holder, colleague.lock_ttl);
    let Ok(lock) = locked.await else {
        return false;
    };
    let found = colleague.discovery.read(&colleague.fleet).await;
    let over = matches!(&found, Ok(Some(found)) if may_run(&found.value)) && lock.is_valid();
    if let Err(error) = lock.release().await {
        tracing::debug!(%error, "the fleet's lock was not released; it expires by itself");
    }
    over
}
