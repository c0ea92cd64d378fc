//! The task that owns a link.

use std::sync::Arc;
use std::time::Duration;

use standfast_discovery::{ClusterEntry, Epoch, FleetRecord, FleetWatchHandle};
use standfast_link::{Link, LinkDescription, LinkHandle, LinkName, LinkOptions, SharingOptions};
use standfast_secrets::SecretsHandle;
use standfast_wire::{ClusterOptions, SharedLogin};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::rule::{Verdict, as_stopped, link_options, verdict};
use super::sharing::{Colleague, Sharing};
use super::{Command, KeptState, LinkControl, Phase, StopResult};
use crate::api::Applied;
use crate::clusters;
use crate::config::{LinkEntry, LinkSection};

/// Commands waiting for one supervisor; an operation sends one at a time.
const COMMANDS_MAX: usize = 8;
/// How long an ended or stopped link may take to let go of its connections.
const END_LIMIT: Duration = Duration::from_secs(2);
/// Waits before a failed link is started again, doubled each time.
const RESTART_MIN: Duration = Duration::from_millis(500);
const RESTART_MAX: Duration = Duration::from_secs(30);
/// A link that ran this long has recovered.
const RECOVERED_AFTER: Duration = Duration::from_secs(60);

/// Owns one link.
#[derive(Debug)]
pub(crate) struct LinkSupervisor {
    section: Arc<LinkSection>,
    source: ClusterEntry,
    destination: ClusterEntry,
    fleet: FleetWatchHandle,
    secrets: SecretsHandle,
    colleague: Colleague,
    commands: mpsc::Receiver<Command>,
    phase: watch::Sender<Phase>,
    last: watch::Sender<Option<LinkDescription>>,
    running: Option<Running>,
    stopped: Option<StopOrder>,
    restart: Restart,
    state: KeptState,
}

#[derive(Debug)]
struct Running {
    handle: LinkHandle,
    /// With the credentials that the link was last given.
    options: (ClusterOptions, ClusterOptions),
    logins: (SharedLogin, SharedLogin),
    end: CancellationToken,
    task: JoinHandle<Result<(), standfast_link::Error>>,
    started: Instant,
    /// Of a link that other agents share.
    sharing: Option<Sharing>,
}

/// An operation is under way that read the record at `epoch`.
#[derive(Debug)]
struct StopOrder {
    epoch: Epoch,
    result: StopResult,
}

#[derive(Debug, Default)]
struct Restart {
    failures: u32,
    at: Option<Instant>,
}

impl LinkSupervisor {
    pub(crate) fn new(
        entry: Arc<LinkEntry>,
        source: ClusterEntry,
        destination: ClusterEntry,
        fleet: FleetWatchHandle,
        secrets: SecretsHandle,
        colleague: Colleague,
        state: KeptState,
    ) -> (Self, LinkControl) {
        let section = Arc::new(entry.section.clone());
        let (sender, commands) = mpsc::channel(COMMANDS_MAX);
        let (phase, phase_receiver) = watch::channel(Phase::Held {
            reason: "not started yet".to_owned(),
        });
        let (last, last_receiver) = watch::channel(None);
        let control = LinkControl {
            entry,
            commands: sender,
            phase: phase_receiver,
            last: last_receiver,
            state: state.clone(),
        };
        let supervisor = Self {
            section,
            source,
            destination,
            fleet,
            secrets,
            colleague,
            commands,
            phase,
            last,
            running: None,
            stopped: None,
            restart: Restart::default(),
            state,
        };
        (supervisor, control)
    }

    /// The link's name.
    pub(super) fn name(&self) -> &str {
        &self.section.name
    }

    /// Supervises until `shutdown`.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let (mut fleet, mut secrets) = (self.fleet.clone(), self.secrets.clone());
        let mut refused = self.colleague.refused.clone();
        let (mut fleet_end, mut secrets_end, mut refused_end) = (false, false, false);
        loop {
            self.settle().await;
            let restart_at = self.restart.at;
            let next = tokio::select! {
                biased;
                () = shutdown.cancelled() => Event::Shutdown,
                changed = fleet.changed(), if !fleet_end => { fleet_end = changed.is_err(); Event::Look }
                command = self.commands.recv() => command.map_or(Event::Shutdown, Event::Command),
                ended = ended(&mut self.running) => Event::Ended(ended),
                changed = secrets.changed(), if !secrets_end => { secrets_end = changed.is_err(); Event::Look }
                changed = refused.changed(), if !refused_end => { refused_end = changed.is_err(); Event::Look }
                () = sleep_until(restart_at) => { self.restart.at = None; Event::Look }
            };
            match next {
                Event::Shutdown => return self.end().await,
                Event::Look => {}
                Event::Command(command) => self.obey(command).await,
                Event::Ended(result) => self.note_end(result),
            }
        }
    }

    /// Makes what runs agree with what may run.
    async fn settle(&mut self) {
        let view = self.fleet.borrow();
        if let Verdict::Hold(reason) = self.verdict(view.record.as_deref()) {
            let flipped_here = self.stopped.is_some();
            self.stopped = self
                .stopped
                .take()
                .filter(|order| view.epoch() <= Some(order.epoch));
            if self.running.is_some() {
                tracing::warn!(link = self.section.name, reason, "stopping the link");
                self.halt(END_LIMIT, None).await;
                self.fence(flipped_here).await;
                self.end().await;
            }
            self.restart = Restart::default();
            self.show(Phase::Held { reason });
            return;
        }
        if self.stopped.is_some() {
            self.show(Phase::Stopped {
                reason: "stopped by a failover or switchover that is under way".to_owned(),
            });
            return;
        }
        match self.cluster_options() {
            Err(reason) => {
                if self.running.is_none() {
                    self.show(Phase::Held { reason });
                }
            }
            Ok(options) => {
                if let Some(running) = &mut self.running
                    && running.options != options
                {
                    tracing::info!(
                        link = self.section.name,
                        "credentials changed; connections made from now on use the new ones"
                    );
                    running.logins.0.set(clusters::login(&options.0));
                    running.logins.1.set(clusters::login(&options.1));
                    running.options = options.clone();
                }
                if self.running.is_none() && self.restart.at.is_none() {
                    self.start(options);
                }
            }
        }
    }

    fn verdict(&self, record: Option<&FleetRecord>) -> Verdict {
        let refused = self.colleague.refused.borrow();
        match refused.get(&self.section.name) {
            Some(reason) => Verdict::Hold(reason.clone()),
            None => verdict(record, &self.section),
        }
    }

    fn cluster_options(&self) -> Result<(ClusterOptions, ClusterOptions), String> {
        let client_id = format!("standfast-{}", self.section.name);
        let options = |role: &str, entry| {
            clusters::options(entry, &self.secrets, &client_id)
                .map_err(|e| format!("{role} cluster: {e}"))
        };
        Ok((
            options("source", &self.source)?,
            options("destination", &self.destination)?,
        ))
    }

    fn start(&mut self, options: (ClusterOptions, ClusterOptions)) {
        let logins = (
            SharedLogin::new(clusters::login(&options.0)),
            SharedLogin::new(clusters::login(&options.1)),
        );
        let with = |options: &ClusterOptions, login: &SharedLogin| ClusterOptions {
            login: Some(login.clone()),
            ..options.clone()
        };
        let shared = (with(&options.0, &logins.0), with(&options.1, &logins.1));
        let sharing = Sharing::begin(
            &self.section,
            &self.colleague,
            self.state.lifecycle(),
            &self.fleet,
        );
        let link = LinkName::new(self.section.name.clone())
            .map(|name| self.options(&self.section, name, &shared, sharing.as_ref()))
            .and_then(Link::new);
        let (link, handle) = match link {
            Ok(started) => started,
            Err(error) => return self.schedule_restart(error.to_string()),
        };
        tracing::info!(link = self.section.name, source = %self.section.source, destination = %self.section.destination, "the link starts");
        let end = CancellationToken::new();
        let task = tokio::spawn(link.run(end.clone()));
        self.show(Phase::Running {
            handle: handle.clone(),
        });
        self.running = Some(Running {
            handle,
            options,
            logins,
            end,
            task,
            started: Instant::now(),
            sharing,
        });
    }

    fn options(
        &self,
        section: &LinkSection,
        name: LinkName,
        clusters: &(ClusterOptions, ClusterOptions),
        sharing: Option<&Sharing>,
    ) -> LinkOptions {
        let mut options = link_options(section, name, clusters, self.state.lifecycle());
        options.sharing = sharing.map(|sharing| sharing.options(section, &self.colleague));
        options
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Stop {
                epoch,
                limit,
                reply,
            } => {
                let result = match self.stopped.take() {
                    // Stopped before by an operation that did not come to its end.
                    Some(order) if self.running.is_none() => order.result,
                    _ => self.halt(limit, Some(epoch)).await,
                };
                self.stopped = Some(StopOrder {
                    epoch,
                    result: result.clone(),
                });
                self.show(Phase::Stopped {
                    reason: "stopped by a failover or switchover that is under way".to_owned(),
                });
                // The operation need not wait for connections to close.
                let _ = reply.send(result);
                // Whoever joins the link's group meanwhile must hear of the order.
                if !self.section.shared {
                    self.end().await;
                }
            }
            Command::Resume { reply } => {
                if self.stopped.take().is_some() && self.section.shared {
                    self.end().await;
                    self.state.lifecycle().set_stop(None);
                }
                self.settle().await;
                let _ = reply.send(());
            }
            Command::Update {
                section,
                dry_run,
                reply,
            } => {
                let _ = reply.send(self.update(section, dry_run).await);
            }
        }
    }

    /// Other settings: taken over by the running link if it can, else it is started again from its logs.
    async fn update(
        &mut self,
        section: Arc<LinkSection>,
        dry_run: bool,
    ) -> Result<Applied, String> {
        let Some(running) = &self.running else {
            if dry_run {
                return Ok(Applied::NotRunning);
            }
            self.section = section;
            // Whatever kept it from running may be mended.
            self.restart = Restart::default();
            self.settle().await;
            return Ok(match self.running {
                Some(_) => Applied::Restarted,
                None => Applied::NotRunning,
            });
        };
        let name = LinkName::new(section.name.clone()).map_err(|error| error.to_string())?;
        let sharing = running.sharing.as_ref().filter(|_| section.shared);
        let mut options = self.options(&section, name, &running.options, sharing);
        if section.shared && sharing.is_none() {
            options.sharing = Some(SharingOptions::new(self.colleague.agent.clone()));
        }
        let live = if dry_run {
            running.handle.can_update(&options)
        } else {
            running.handle.update(&options)
        };
        let live = live.map_err(|error| error.to_string())?;
        if dry_run {
            return Ok(if live {
                Applied::Live
            } else {
                Applied::Restarted
            });
        }
        let follows = self.section.follow_fleet == section.follow_fleet;
        self.section = section;
        if live && follows {
            return Ok(Applied::Live);
        }
        if !live {
            tracing::info!(
                link = self.section.name,
                "starting the link again with its new settings"
            );
            self.end().await;
            self.restart = Restart::default();
        }
        self.settle().await;
        Ok(match (live, &self.running) {
            (_, None) => Applied::NotRunning,
            (true, _) => Applied::Live,
            (false, _) => Applied::Restarted,
        })
    }

    /// No more appends after this returns: by this agent or, for an operation that read the record at `epoch`, by any that shares the link.
    async fn halt(&mut self, limit: Duration, epoch: Option<Epoch>) -> StopResult {
        let Some(running) = &self.running else {
            return StopResult {
                mirrors: Vec::new(),
                error: Some(self.why_not_running()),
            };
        };
        let handle = running.handle.clone();
        let longest = limit + epoch.map_or(Duration::ZERO, |_| handle.patience());
        let stopping = async {
            match epoch {
                Some(epoch) => handle.stop_everywhere(epoch.0, limit).await,
                None => handle.stop_mirrors(limit).await,
            }
        };
        let result = match tokio::time::timeout(longest, stopping).await {
            Ok(Ok(mirrors)) => StopResult {
                mirrors,
                error: None,
            },
            Ok(Err(error)) => StopResult {
                mirrors: Vec::new(),
                error: Some(error.to_string()),
            },
            Err(_) => StopResult {
                mirrors: Vec::new(),
                error: Some(format!("the mirrors did not stop within {longest:?}")),
            },
        };
        self.last.send_replace(Some(as_stopped(handle.describe())));
        if result.error.is_some() {
            // Whatever state it is in: nothing may be appended any more.
            self.end().await;
        }
        result
    }

    /// The destination belongs to applications now; what an agent that fell silent may still send must not get in between.
    async fn fence(&self, flipped_here: bool) {
        let Some(running) = self.running.as_ref().filter(|_| flipped_here) else {
            return;
        };
        if let Err(error) = running.handle.fence().await {
            tracing::warn!(link = self.section.name, %error, "the link is not fenced");
        }
    }

    fn why_not_running(&self) -> String {
        match &*self.phase.borrow() {
            Phase::Held { reason } | Phase::Stopped { reason } => {
                format!("the link was not running: {reason}")
            }
            Phase::Failed { error } => format!("the link was not running: {error}"),
            Phase::Running { .. } => "the link was not running".to_owned(),
        }
    }

    /// Ends the link's task, if there is one.
    async fn end(&mut self) {
        let Some(mut running) = self.running.take() else {
            return;
        };
        running.end.cancel();
        self.last
            .send_replace(Some(as_stopped(running.handle.describe())));
        if tokio::time::timeout(END_LIMIT, &mut running.task)
            .await
            .is_err()
        {
            tracing::warn!(
                link = self.section.name,
                "the link did not end in time and is aborted"
            );
            running.task.abort();
        }
    }

    fn note_end(&mut self, result: Result<(), String>) {
        let ran = self.running.take().map_or(Duration::ZERO, |running| {
            self.last
                .send_replace(Some(as_stopped(running.handle.describe())));
            running.started.elapsed()
        });
        if ran >= RECOVERED_AFTER {
            self.restart = Restart::default();
        }
        let error = result
            .err()
            .unwrap_or_else(|| "the link ended without an error".to_owned());
        self.schedule_restart(error);
    }

    fn schedule_restart(&mut self, error: String) {
        let wait = RESTART_MIN
            .saturating_mul(1 << self.restart.failures.min(6))
            .min(RESTART_MAX);
        tracing::error!(link = self.section.name, error, retry_in = ?wait, "the link failed");
        self.restart.failures = self.restart.failures.saturating_add(1);
        self.restart.at = Some(Instant::now() + wait);
        self.show(Phase::Failed { error });
    }

    fn show(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }
}

enum Event {
    Shutdown,
    Look,
    Command(Command),
    Ended(Result<(), String>),
}

async fn ended(running: &mut Option<Running>) -> Result<(), String> {
    match running {
        Some(running) => match (&mut running.task).await {
            Ok(result) => result.map_err(|e| e.to_string()),
            Err(panic) => Err(format!("the link broke down: {panic}")),
        },
        None => std::future::pending().await,
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
