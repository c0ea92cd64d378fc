//! One link under supervision: it runs while the fleet record allows it, and is started again when it ends.
//!
//! The rule that everything here serves: a link never writes into the cluster that the record calls active.

mod circles;
mod edit;
mod kept;
mod registry;
mod rule;
mod sharing;
mod supervisor;

use std::sync::Arc;
use std::time::Duration;

use standfast_discovery::Epoch;
use standfast_link::{Lifecycle, LinkDescription, LinkHandle, StoppedMirror, Wanted};
use tokio::sync::{mpsc, oneshot, watch};

use crate::api::Applied;
use crate::config::{LinkEntry, LinkSection};

pub(crate) use circles::{Circles, Refused};
use kept::{Keeper, KeptState};
pub(crate) use registry::{Links, Registry, RegistryParts};
pub(crate) use sharing::Colleague;

/// What a link is doing.
#[derive(Debug, Clone)]
pub(crate) enum Phase {
    /// Nothing may be mirrored, or nothing can be yet.
    Held {
        reason: String,
    },
    Running {
        handle: LinkHandle,
    },
    /// Stopped by a failover or switchover that is under way.
    Stopped {
        reason: String,
    },
    /// Ended with an error; it is started again.
    Failed {
        error: String,
    },
}

/// What became of an order to stop.
#[derive(Debug, Clone, Default)]
pub(crate) struct StopResult {
    pub(crate) mirrors: Vec<StoppedMirror>,
    pub(crate) error: Option<String>,
}

#[derive(Debug)]
enum Command {
    Stop {
        epoch: Epoch,
        limit: Duration,
        reply: oneshot::Sender<StopResult>,
    },
    Resume {
        reply: oneshot::Sender<()>,
    },
    /// Other settings for the same link.
    Update {
        section: Arc<LinkSection>,
        /// Only say how it would be taken over.
        dry_run: bool,
        reply: oneshot::Sender<Result<Applied, String>>,
    },
}

/// Talks to a [`LinkSupervisor`]. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct LinkControl {
    entry: Arc<LinkEntry>,
    commands: mpsc::Sender<Command>,
    phase: watch::Receiver<Phase>,
    last: watch::Receiver<Option<LinkDescription>>,
    state: KeptState,
}

impl LinkControl {
    pub(crate) fn section(&self) -> &LinkSection {
        &self.entry.section
    }

    /// The settings, and where they come from.
    pub(crate) fn entry(&self) -> &LinkEntry {
        &self.entry
    }

    /// The same link with other settings.
    fn with_entry(&self, entry: Arc<LinkEntry>) -> Self {
        Self {
            entry,
            ..self.clone()
        }
    }

    /// Gives the link other settings.
    async fn update(&self, entry: &LinkEntry, dry_run: bool) -> Result<Applied, String> {
        let (reply, answer) = oneshot::channel();
        let section = Arc::new(entry.section.clone());
        let gone = || "the agent is shutting down".to_owned();
        self.commands
            .send(Command::Update {
                section,
                dry_run,
                reply,
            })
            .await
            .map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Which mirrors are paused or stopped.
    pub(crate) fn lifecycle(&self) -> &Lifecycle {
        self.state.lifecycle()
    }

    /// See [`KeptState::on_disk`].
    pub(crate) async fn on_disk(&self) -> Result<(), String> {
        self.state.on_disk().await
    }

    /// Every mirror topic of the link, whether or not it runs: named, found by a filter, or created by a command.
    pub(crate) fn mirror_names(&self) -> Vec<String> {
        let section = self.section();
        self.lifecycle()
            .state()
            .mirrors(&section.prefix, &section.topics, &section.topic_filters)
    }

    /// The mirror topics that a failover or switchover of the region is about: not those that were stopped one by one.
    pub(crate) fn topics_in_operation(&self) -> Vec<String> {
        let state = self.lifecycle().state();
        let mut names = self.mirror_names();
        names.retain(|name| state.wanted(name) != Wanted::Stopped);
        names
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase.borrow().clone()
    }

    /// The link's own words: as they are, or as they were when it last ran.
    pub(crate) fn describe(&self) -> Option<LinkDescription> {
        if let Phase::Running { handle } = &*self.phase.borrow() {
            return Some(handle.describe());
        }
        self.last.borrow().clone()
    }

    pub(crate) fn handle(&self) -> Option<LinkHandle> {
        match &*self.phase.borrow() {
            Phase::Running { handle } => Some(handle.clone()),
            _ => None,
        }
    }

    /// Stops the mirrors for an operation that read the record at `epoch`. They stay stopped until [`resume`] or until
    /// the record moves on.
    ///
    /// [`resume`]: Self::resume
    pub(crate) async fn stop(&self, epoch: Epoch, limit: Duration) -> StopResult {
        let (reply, answer) = oneshot::channel();
        if self
            .commands
            .send(Command::Stop {
                epoch,
                limit,
                reply,
            })
            .await
            .is_err()
        {
            return StopResult {
                mirrors: Vec::new(),
                error: Some("the agent is shutting down".to_owned()),
            };
        }
        answer.await.unwrap_or_else(|_| StopResult {
            mirrors: Vec::new(),
            error: Some("the agent is shutting down".to_owned()),
        })
    }

    /// Lets the mirrors run again, as far as the record allows it.
    pub(crate) async fn resume(&self) {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::Resume { reply }).await.is_ok() {
            let _ = answer.await;
        }
    }
}
