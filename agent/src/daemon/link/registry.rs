//! The task that owns which links there are: it starts those of the configuration, and creates, changes and deletes links when it is told to.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use serde_json::Value;
use standfast_discovery::{ClusterEntry, ClusterName, FleetWatchHandle};
use standfast_link::{MirrorDescription, MirrorStatus, Transition};
use standfast_secrets::SecretsHandle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::supervisor::LinkSupervisor;
use super::{Colleague, Keeper, LinkControl, edit, kept};
use crate::api::{
    Applied, ErrorBody, ErrorCode, LinkAction, LinkChange, LinkCreateRequest, LinkDeleteRequest,
    LinkUpdateRequest,
};
use crate::config::{Config, LinkBase, LinkEntry, LinkProblem, RuntimeLinks, Settings};
use crate::daemon::transitions;

/// Orders waiting; people and their scripts send them one by one.
const ORDERS_MAX: usize = 8;
/// Most links of one agent; each has threads and connections of its own.
const LINKS_MAX: usize = 100;

/// What every link rests upon.
#[derive(Debug)]
pub(crate) struct RegistryParts {
    pub(crate) data_dir: PathBuf,
    pub(crate) clusters: BTreeMap<ClusterName, ClusterEntry>,
    pub(crate) fleet: FleetWatchHandle,
    pub(crate) secrets: SecretsHandle,
    pub(crate) colleague: Colleague,
}

/// Owns the links.
#[derive(Debug)]
pub(crate) struct Registry {
    parts: RegistryParts,
    base: LinkBase,
    runtime: RuntimeLinks,
    links: watch::Sender<Arc<Vec<LinkControl>>>,
    orders: mpsc::Receiver<(Order, oneshot::Sender<Answer>)>,
    /// Built, not started yet.
    waiting: Vec<(LinkSupervisor, Keeper)>,
    running: BTreeMap<String, Running>,
}

#[derive(Debug)]
struct Running {
    end: CancellationToken,
    tasks: JoinSet<()>,
}

#[derive(Debug)]
enum Order {
    Create(LinkCreateRequest),
    Update(LinkUpdateRequest),
    Delete(LinkDeleteRequest),
}

/// What was changed, and the link as it is (or would be) afterwards.
type Answer = Result<(LinkChange, Option<LinkEntry>), ErrorBody>;

/// The links there are, and orders to change that. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Links {
    links: watch::Receiver<Arc<Vec<LinkControl>>>,
    orders: mpsc::Sender<(Order, oneshot::Sender<Answer>)>,
}

impl Links {
    /// As they are now.
    pub(crate) fn get(&self) -> Arc<Vec<LinkControl>> {
        Arc::clone(&self.links.borrow())
    }

    pub(crate) async fn create(&self, request: LinkCreateRequest) -> Answer {
        self.order(Order::Create(request)).await
    }

    pub(crate) async fn update(&self, request: LinkUpdateRequest) -> Answer {
        self.order(Order::Update(request)).await
    }

    pub(crate) async fn delete(&self, request: LinkDeleteRequest) -> Answer {
        self.order(Order::Delete(request)).await
    }

    /// Once it is sent, an order is carried out, also for a caller that hangs up.
    async fn order(&self, order: Order) -> Answer {
        let gone = || refuse(ErrorCode::Refused, "the agent is shutting down");
        let (reply, answer) = oneshot::channel();
        self.orders.send((order, reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

impl Registry {
    /// Reads what was said at runtime, and builds every link. Nothing runs before [`run`](Self::run).
    ///
    /// # Errors
    /// The stored links or a link's running state cannot be used.
    pub(crate) fn new(config: &Config, parts: RegistryParts) -> anyhow::Result<(Self, Links)> {
        let runtime = RuntimeLinks::load(&parts.data_dir).map_err(anyhow::Error::msg)?;
        let base = LinkBase::new(config);
        for text in base.disagreements(&runtime) {
            tracing::warn!("{text}");
        }
        let file = RuntimeLinks::path(&parts.data_dir);
        let entries = base
            .resolve(&runtime)
            .map_err(|problems| anyhow::Error::msg(in_words(&problems)))
            .with_context(|| {
                format!(
                    "{} does not fit the configuration file; mend one of the two",
                    file.display()
                )
            })?;
        let (orders, queue) = mpsc::channel(ORDERS_MAX);
        let mut registry = Self {
            parts,
            base,
            runtime,
            links: watch::Sender::default(),
            orders: queue,
            waiting: Vec::new(),
            running: BTreeMap::new(),
        };
        let mut controls = Vec::new();
        for entry in entries {
            let (supervisor, keeper, control) = registry.build(entry)?;
            registry.waiting.push((supervisor, keeper));
            controls.push(control);
        }
        registry.links.send_replace(Arc::new(controls));
        let links = registry.links.subscribe();
        Ok((registry, Links { links, orders }))
    }

    /// Runs all links, and carries out orders, until `shutdown`; ends when all links have.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        for (supervisor, keeper) in std::mem::take(&mut self.waiting) {
            self.start(supervisor, keeper);
        }
        loop {
            let (order, reply) = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Some(order) = self.orders.recv() => order,
            };
            let answer = match order {
                Order::Create(request) => self.create(request).await,
                Order::Update(request) => self.update(request).await,
                Order::Delete(request) => self.delete(request).await,
            };
            let _ = reply.send(answer);
        }
        for running in self.running.values() {
            running.end.cancel();
        }
        for running in self.running.values_mut() {
            while running.tasks.join_next().await.is_some() {}
        }
    }

    fn build(&self, entry: LinkEntry) -> anyhow::Result<(LinkSupervisor, Keeper, LinkControl)> {
        let cluster = |name: &ClusterName| {
            let found = self.parts.clusters.get(name).cloned();
            found.with_context(|| format!("no cluster {name}"))
        };
        let (source, destination) = (
            cluster(&entry.section.source)?,
            cluster(&entry.section.destination)?,
        );
        let (keeper, state) = Keeper::open(&self.parts.data_dir, &entry.section.name)?;
        let (supervisor, control) = LinkSupervisor::new(
            Arc::new(entry),
            source,
            destination,
            self.parts.fleet.clone(),
            self.parts.secrets.clone(),
            self.parts.colleague.clone(),
            state,
        );
        Ok((supervisor, keeper, control))
    }

    fn start(&mut self, supervisor: LinkSupervisor, keeper: Keeper) {
        let (end, mut tasks) = (CancellationToken::new(), JoinSet::new());
        let name = supervisor.name().to_owned();
        tasks.spawn(supervisor.run(end.clone()));
        tasks.spawn(keeper.run(end.clone()));
        self.running.insert(name, Running { end, tasks });
    }

    fn find(&self, name: &str) -> Option<LinkControl> {
        let links = self.links.borrow();
        links.iter().find(|l| l.section().name == name).cloned()
    }

    fn known(&self, name: &str) -> Result<LinkControl, ErrorBody> {
        self.find(name).ok_or_else(|| {
            let links = self.links.borrow();
            let names: Vec<&str> = links.iter().map(|l| l.section().name.as_str()).collect();
            let known = match names.as_slice() {
                [] => "this agent has no links".to_owned(),
                names => format!("this agent has: {}", names.join(", ")),
            };
            refuse(
                ErrorCode::NotFound,
                format!("there is no link \"{name}\"; {known}"),
            )
        })
    }

    async fn create(&mut self, request: LinkCreateRequest) -> Answer {
        let LinkCreateRequest {
            link_name: name,
            dry_run,
            mut settings,
        } = request;
        settings.remove("name");
        if let Some(existing) = self.find(&name) {
            return the_same(&name, existing.entry(), settings, dry_run);
        }
        if self.links.borrow().len() >= LINKS_MAX {
            let text = format!("an agent runs at most {LINKS_MAX} links; start another agent");
            return Err(refuse(ErrorCode::Refused, text));
        }
        let runtime = self.runtime.with_created(&name, settings);
        let entry = self.resolved(&runtime, &name)?;
        self.no_other_mirrors(&entry)?;
        let mut change = LinkChange::new(&name, LinkAction::Created, dry_run);
        change.warnings.extend(self.writes_into_the_active(&entry));
        change.configs = edit::differences(&Settings::new(), &entry.settings);
        change.mirrors_added = entry.section.named_mirrors();
        if dry_run {
            return Ok((change, Some(entry)));
        }
        let (supervisor, keeper, control) = self
            .build(entry.clone())
            .map_err(|error| refuse(ErrorCode::OperationFailed, format!("{error:#}")))?;
        self.save(runtime).await?;
        self.start(supervisor, keeper);
        self.publish(|links| links.push(control));
        tracing::info!(link = name, "the link was created by a command");
        change.applied = Some(Applied::Started);
        Ok((change, Some(entry)))
    }

    async fn update(&mut self, request: LinkUpdateRequest) -> Answer {
        let LinkUpdateRequest {
            link: name,
            dry_run,
            changes,
        } = request;
        let control = self.known(&name)?;
        let before = control.entry();
        let settings = edit::apply(before, &changes)
            .map_err(|text| refuse(ErrorCode::BadRequest, format!("link \"{name}\": {text}")))?;
        let runtime = self.runtime.with_settings(before, settings);
        let entry = self.resolved(&runtime, &name)?;
        self.no_other_mirrors(&entry)?;
        let mut change = LinkChange::new(&name, LinkAction::Updated, dry_run);
        if control.section().follow_fleet {
            change.warnings.extend(self.writes_into_the_active(&entry));
        }
        change.configs = edit::differences(&before.settings, &entry.settings);
        let after = control.with_entry(Arc::new(entry.clone()));
        edit::mirrors(&control.mirror_names(), &after.mirror_names(), &mut change);
        if change.configs.is_empty() && runtime == self.runtime {
            change.action = LinkAction::Unchanged;
            return Ok((change, Some(entry)));
        }
        let how = control.update(&entry, true).await;
        if how != Ok(Applied::Live) {
            not_while_restoring(&control)?;
        }
        let answer = if dry_run {
            how
        } else {
            let old = self.runtime.clone();
            self.save(runtime).await?;
            let answer = control.update(&entry, false).await;
            match &answer {
                Ok(applied) => {
                    tracing::info!(link = name, ?applied, "the link was changed by a command");
                    self.publish(|links| {
                        for link in links.iter_mut().filter(|l| l.section().name == name) {
                            *link = after.clone();
                        }
                    });
                }
                Err(_) => self.save(old).await?,
            }
            answer
        };
        change.applied =
            Some(answer.map_err(|text| {
                refuse(ErrorCode::BadRequest, format!("link \"{name}\": {text}"))
            })?);
        Ok((change, Some(entry)))
    }

    async fn delete(&mut self, request: LinkDeleteRequest) -> Answer {
        let LinkDeleteRequest {
            link: name,
            dry_run,
            force,
            timeout_ms,
        } = request;
        let control = self.known(&name)?;
        not_while_restoring(&control)?;
        let alive = self.not_stopped(&control);
        let mut change = LinkChange::new(&name, LinkAction::Deleted, dry_run);
        change.mirrors_removed = control.mirror_names();
        if !alive.is_empty() && !force {
            let shown: Vec<&str> = alive.iter().take(5).map(String::as_str).collect();
            let more = if alive.len() > shown.len() {
                ", …"
            } else {
                ""
            };
            return Err(refuse(
                ErrorCode::Refused,
                format!(
                    "link \"{name}\" has {} mirror topic(s) that are not stopped: {}{more}; stop them with `standfast mirror promote` \
                     (planned) or `standfast mirror failover`, or give --force, which does the latter first",
                    alive.len(),
                    shown.join(", ")
                ),
            ));
        }
        let topics: Vec<&str> = alive.iter().map(String::as_str).collect();
        if !topics.is_empty() {
            let failover = Transition::Failover;
            change.mirrors = match dry_run {
                true => transitions::rehearse(&control, &topics, failover),
                false => {
                    let timeout = transitions::timeout(timeout_ms, failover);
                    transitions::perform(&control, &topics, failover, timeout).await
                }
            };
        }
        if dry_run {
            return Ok((change, None));
        }
        self.save(self.runtime.without(control.entry())).await?;
        self.publish(|links| links.retain(|l| l.section().name != name));
        if let Some(mut running) = self.running.remove(&name) {
            running.end.cancel();
            while running.tasks.join_next().await.is_some() {}
        }
        if let Err(error) = kept::forget(&self.parts.data_dir, &name) {
            tracing::warn!(link = name, %error, "the running state of a deleted link could not be removed");
        }
        tracing::info!(link = name, "the link was deleted by a command");
        change.applied = Some(Applied::Stopped);
        Ok((change, None))
    }

    /// The mirrors that would end with the link. A link that the fleet record holds writes nothing, so nothing ends with it.
    fn not_stopped(&self, control: &LinkControl) -> Vec<String> {
        let section = control.section();
        let record = self.parts.fleet.borrow().record;
        let held = record.is_some_and(|record| record.active == section.destination);
        if held && section.follow_fleet {
            return Vec::new();
        }
        control.topics_in_operation()
    }

    /// What the rules do not see: mirrors that another link to the same destination was told to create.
    fn no_other_mirrors(&self, entry: &LinkEntry) -> Result<(), ErrorBody> {
        let section = &entry.section;
        let links = self.links.borrow();
        let others = links.iter().filter(|other| {
            let theirs = other.section();
            theirs.name != section.name && theirs.destination == section.destination
        });
        for other in others {
            let taken = |topic: &String| section.takes(topic);
            if let Some(topic) = other.topics_in_operation().into_iter().find(taken) {
                let text = format!(
                    "link \"{}\": topics: \"{topic}\" is already written to \"{}\" by link \"{}\"; exclude it, or stop that mirror first",
                    section.name,
                    section.destination,
                    other.section().name
                );
                return Err(refuse(ErrorCode::BadRequest, text));
            }
        }
        Ok(())
    }

    fn writes_into_the_active(&self, entry: &LinkEntry) -> Option<String> {
        let section = &entry.section;
        let record = self.parts.fleet.borrow().record?;
        let active = !section.follow_fleet && record.active == section.destination;
        active.then(|| {
            format!(
                "{} is the active cluster, and this link writes to it all the same; no application may write to its topics there",
                section.destination
            )
        })
    }

    /// The link as it would be, if all links together pass the rules.
    fn resolved(&self, runtime: &RuntimeLinks, name: &str) -> Result<LinkEntry, ErrorBody> {
        let entries = self
            .base
            .resolve(runtime)
            .map_err(|problems| refuse(ErrorCode::BadRequest, in_words(&problems)))?;
        entries
            .into_iter()
            .find(|entry| entry.section.name == name)
            .ok_or_else(|| refuse(ErrorCode::Internal, format!("link \"{name}\" got lost")))
    }

    async fn save(&mut self, runtime: RuntimeLinks) -> Result<(), ErrorBody> {
        let path = RuntimeLinks::path(&self.parts.data_dir);
        let document = runtime.clone();
        let written = tokio::task::spawn_blocking(move || {
            kept::replace(&path, &document).map_err(|error| format!("{}: {error}", path.display()))
        });
        let failed = |error: String| {
            tracing::error!(error, "which links there are could not be saved");
            refuse(
                ErrorCode::OperationFailed,
                format!("nothing was changed, because it could not be saved: {error}"),
            )
        };
        written
            .await
            .map_err(|broken| failed(broken.to_string()))?
            .map_err(failed)?;
        self.runtime = runtime;
        Ok(())
    }

    fn publish(&self, change: impl FnOnce(&mut Vec<LinkControl>)) {
        self.links.send_modify(|links| change(Arc::make_mut(links)));
    }
}

/// A restore deletes and creates topics; two engines must not be at it.
fn not_while_restoring(control: &LinkControl) -> Result<(), ErrorBody> {
    let mirrors = control.describe().unwrap_or_default().mirrors;
    let restoring =
        |m: &&MirrorDescription| m.mirror_status == MirrorStatus::PendingSetupForRestore;
    match mirrors.iter().find(restoring) {
        None => Ok(()),
        Some(mirror) => Err(refuse(
            ErrorCode::Refused,
            format!(
                "\"{}\" is being restored; try again when `standfast mirror list` shows it otherwise",
                mirror.mirror_topic_name
            ),
        )),
    }
}

/// Creating what is there already changes nothing, if it is the same.
fn the_same(name: &str, existing: &LinkEntry, mut settings: Settings, dry_run: bool) -> Answer {
    settings.insert("name".to_owned(), Value::from(name));
    let differences = edit::differences(&existing.settings, &settings);
    if differences.is_empty() {
        let change = LinkChange::new(name, LinkAction::Unchanged, dry_run);
        return Ok((change, Some(existing.clone())));
    }
    let keys: Vec<&str> = differences.iter().map(|d| d.name.as_str()).collect();
    Err(refuse(
        ErrorCode::BadRequest,
        format!(
            "there is a link \"{name}\" already, and it differs in: {}; choose another name, or use `standfast link update`",
            keys.join(", ")
        ),
    ))
}

fn in_words(problems: &[LinkProblem]) -> String {
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

fn refuse(error_code: ErrorCode, message: impl Into<String>) -> ErrorBody {
    ErrorBody {
        error_code,
        message: message.into(),
        report: None,
    }
}
