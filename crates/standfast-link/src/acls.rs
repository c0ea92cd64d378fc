//! Carries ACLs from the source to the destination, but for those that would let a producer write into a mirror.
//!
//! What lets a principal write is *withheld* while it covers a topic that is mirrored: an authorizer then refuses producers on the mirror. Instead of the ACL
//! a mark stands on the destination: the same ACL on the name `standfast:LINK:NAME`, which no topic can have. So the destination itself knows what is
//! withheld: it can be released without the source, by any engine of the link, and after a restart. The mark stays when the ACL is released, and says that
//! the ACL is ours to withhold again. An ACL without a mark that was there before is the destination's own and is never touched.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use standfast_wire::admin::{AclBinding, AclOperation, AclPattern, AclPermission, AclResource};
use standfast_wire::{Cluster, Error as WireError};
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, error, info, warn};

use crate::filters::PatternType;
use crate::lifecycle::Wanted;
use crate::link::Inner;
use crate::names::AclNames;
use crate::refusal;
use crate::shard::Context;
use crate::status::now_ms;

/// Shortest `interval`.
pub(crate) const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// A failover does not wait longer than this for the release of ACLs.
pub(crate) const RELEASE_MAX: Duration = Duration::from_secs(3);
/// Runs that were asked for and have not begun.
const RUNS_ASKED_MAX: usize = 16;
/// A topic name has no colon.
const MARK: &str = "standfast:";
const ANY_NAME: &str = "*";

/// A run that was asked for; it is told how it went.
pub(crate) type AclRun = oneshot::Sender<Result<(), String>>;

/// Which ACLs are carried over.
#[derive(Debug, Clone, PartialEq)]
pub struct AclSyncOptions {
    /// How often both clusters are asked.
    pub interval: Duration,
    /// An ACL is carried over if one of these matches it.
    pub filters: Vec<AclFilter>,
}

/// What an ACL filter is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum AclResourceType {
    /// ACLs on topics.
    Topic,
    /// ACLs on consumer groups.
    Group,
    /// ACLs on transactional ids.
    TransactionalId,
}

/// Matches ACLs of the source. What is left out matches any.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AclFilter {
    /// Kind of resource. ACLs on the cluster, on tokens and on users are never carried over.
    #[serde(default)]
    pub resource_type: Option<AclResourceType>,
    /// Name of the resource as the ACL states it.
    #[serde(default)]
    pub name: Option<String>,
    /// Whether `name` is the whole name (the default) or its beginning.
    #[serde(default)]
    pub pattern_type: Option<PatternType>,
    /// Such as `User:app`.
    #[serde(default)]
    pub principal: Option<String>,
    /// The filter owns what it matches on the destination: an ACL there that the source does not have is deleted. Needs `principal`.
    #[serde(default)]
    pub owns: bool,
}

impl AclFilter {
    fn matches(&self, acl: &AclBinding) -> bool {
        let kind = match acl.resource {
            AclResource::Topic => AclResourceType::Topic,
            AclResource::Group => AclResourceType::Group,
            AclResource::TransactionalId => AclResourceType::TransactionalId,
            _ => return false,
        };
        let prefixed = self.pattern_type == Some(PatternType::Prefixed);
        self.resource_type.is_none_or(|wanted| wanted == kind)
            && self
                .principal
                .as_ref()
                .is_none_or(|principal| *principal == acl.principal)
            && self.name.as_ref().is_none_or(|name| {
                acl.name == *name || (prefixed && acl.name.starts_with(name.as_str()))
            })
    }
}

/// What became of the ACLs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AclSyncDescription {
    /// ACLs of the source that stand on the destination.
    pub synced_acls: usize,
    /// ACLs that are withheld because they would let a producer write into a mirror.
    pub withheld_acls: usize,
    /// Milliseconds since 1970 of the last run without an error.
    pub last_success_ms: Option<i64>,
    /// Why the last run did not carry the ACLs over.
    pub error: Option<String>,
}

/// Carries ACLs over at every interval, and at once when a mirror is stopped or started.
pub(crate) async fn keep(inner: Arc<Inner>, context: Context) {
    let mut lifecycle = inner.options.lifecycle.subscribe();
    let mut settings = inner.live.subscribe();
    let (runs, mut asked) = mpsc::channel(RUNS_ASKED_MAX);
    inner.acl_runs.get_or_init(|| runs);
    let mut created = BTreeSet::new();
    let mut first = true;
    loop {
        let mut answer: Option<AclRun> = None;
        let Some(options) = inner.live().acl_sync.clone() else {
            tokio::select! {
                changed = settings.changed() => if changed.is_err() { return },
                // Nothing is carried over, so nothing is missing.
                Some(run) = asked.recv() => drop(run.send(Ok(()))),
            }
            first = true;
            continue;
        };
        if !std::mem::take(&mut first) {
            tokio::select! {
                () = tokio::time::sleep(options.interval) => {}
                changed = lifecycle.changed() => if changed.is_err() { return },
                run = asked.recv() => answer = run,
                changed = settings.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    first = true;
                    continue;
                }
            }
        }
        if !inner.share.has_duties() {
            continue;
        }
        let mut description = inner.acls().clone();
        let outcome = sync(&inner, &options, &context, &mut created).await;
        if let Some(answer) = answer {
            let _ = answer.send(outcome.as_ref().map(|_| ()).map_err(String::clone));
        }
        match outcome {
            Ok(counts) => {
                description = AclSyncDescription {
                    last_success_ms: Some(now_ms()),
                    ..counts
                };
            }
            Err(text) => {
                if description.error.as_ref() != Some(&text) {
                    warn!(link = %inner.options.name, reason = %text, "ACLs not carried over");
                }
                description.error = Some(text);
            }
        }
        *inner.acls() = description;
    }
}

/// Carries the ACLs over now, instead of at the next interval.
///
/// # Errors
/// Why they were not, in words.
pub(crate) async fn run_now(inner: &Inner) -> Result<(), String> {
    let Some(runs) = inner.acl_runs.get() else {
        return match inner.live().acl_sync {
            Some(_) => Err("the link has not connected yet".to_owned()),
            None => Ok(()),
        };
    };
    let ended = || "the link is stopping".to_owned();
    let (answer, outcome) = oneshot::channel();
    runs.send(answer).await.map_err(|_| ended())?;
    outcome.await.map_err(|_| ended())?
}

async fn sync(
    inner: &Inner,
    options: &AclSyncOptions,
    context: &Context,
    created: &mut BTreeSet<AclBinding>,
) -> Result<AclSyncDescription, String> {
    let side =
        |name: &'static str| move |error: WireError| format!("{name}: {}", refusal::text(&error));
    let destination = &context.destination;
    // Without the source, what stands on the destination says what is to be released.
    let theirs = context.source.describe_acls().await.map_err(side("source"));
    let ours: BTreeSet<AclBinding> = destination
        .describe_acls()
        .await
        .map_err(side("destination"))?
        .into_iter()
        .collect();
    let plan = Plan::new(&Look {
        link: inner.options.name.as_str(),
        names: &AclNames {
            prefix: inner.options.prefix.clone(),
            prefix_groups: inner.options.prefix_groups,
        },
        filters: &options.filters,
        mirrors: &active_mirrors(inner),
        source: theirs.as_deref().ok(),
        destination: &ours,
        created,
    });
    let counts = AclSyncDescription {
        synced_acls: plan.synced,
        withheld_acls: plan.withheld,
        ..AclSyncDescription::default()
    };
    plan.carry_out(destination, created)
        .await
        .map_err(side("destination"))?;
    theirs.map(|_| counts)
}

/// The whole link was stopped by a failover: what is withheld is released, from what stands on the destination alone.
pub(crate) async fn release(inner: &Inner, destination: &Cluster) {
    if inner.live().acl_sync.is_none() {
        return;
    }
    let link = inner.options.name.as_str();
    let released = async {
        let ours = destination.describe_acls().await?.into_iter().collect();
        let plan = Plan::new(&Look {
            link,
            names: &AclNames::default(),
            filters: &[],
            mirrors: &[],
            source: None,
            destination: &ours,
            created: &BTreeSet::new(),
        });
        let count = plan.create.len();
        plan.carry_out(destination, &mut BTreeSet::new()).await?;
        Ok::<usize, WireError>(count)
    };
    match tokio::time::timeout(RELEASE_MAX, released).await {
        Ok(Ok(count)) => info!(link, count, "ACLs that let producers write are released"),
        Ok(Err(error)) => {
            error!(link, %error, "ACLs that let producers write could not be released; create them on the destination, see `kafka-acls --list` for names with {MARK}{link}:");
        }
        Err(_) => {
            error!(link, after = ?RELEASE_MAX, "ACLs that let producers write were not released in time; create them on the destination, see `kafka-acls --list` for names with {MARK}{link}:");
        }
    }
}

fn active_mirrors(inner: &Inner) -> Vec<Arc<str>> {
    let mut names = inner.topic_names();
    names.retain(|name| inner.options.lifecycle.wanted(name) != Wanted::Stopped);
    names
}

/// What is known when a plan is made.
struct Look<'a> {
    link: &'a str,
    /// Filters and `source` have the source's names, all else the destination's.
    names: &'a AclNames,
    filters: &'a [AclFilter],
    /// Topics that are mirrored.
    mirrors: &'a [Arc<str>],
    /// `None`: the source did not answer.
    source: Option<&'a [AclBinding]>,
    destination: &'a BTreeSet<AclBinding>,
    /// Created by this run of the link.
    created: &'a BTreeSet<AclBinding>,
}

/// What is to be done on the destination.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    marks: Vec<AclBinding>,
    delete: Vec<AclBinding>,
    create: Vec<AclBinding>,
    synced: usize,
    withheld: usize,
}

impl Plan {
    fn new(look: &Look<'_>) -> Self {
        let marked: BTreeSet<&AclBinding> = look
            .destination
            .iter()
            .filter(|acl| unmarked(look.link, acl).is_some())
            .collect();
        let (mut wanted, mut marks) = (BTreeSet::new(), BTreeSet::new());
        let mut withheld = 0;
        let from_marks = marked.iter().filter_map(|acl| unmarked(look.link, acl));
        let candidates: Vec<AclBinding> = match look.source {
            Some(acls) => acls
                .iter()
                .filter(|acl| !acl.name.starts_with(MARK))
                .filter(|acl| look.filters.iter().any(|filter| filter.matches(acl)))
                .map(|acl| look.names.mirrored(acl))
                .collect(),
            None => from_marks.collect(),
        };
        for acl in candidates {
            if !lets_write(&acl) {
                wanted.insert(acl);
                continue;
            }
            let mark = marking(look.link, &acl);
            if look.destination.contains(&acl) && !look.destination.contains(&mark) {
                // The destination's own.
                continue;
            }
            marks.insert(mark);
            if look.mirrors.iter().any(|topic| covers(&acl, topic)) {
                withheld += 1;
                if acl.operation == AclOperation::All {
                    wanted.extend(readable(&acl));
                }
            } else {
                wanted.insert(acl);
            }
        }
        let mut plan = Self {
            synced: wanted.len(),
            withheld,
            ..Self::default()
        };
        plan.delete = Self::to_delete(look, &marked, &wanted, &marks);
        plan.marks = marks.difference(look.destination).cloned().collect();
        plan.create = wanted.difference(look.destination).cloned().collect();
        plan
    }

    fn to_delete(
        look: &Look<'_>,
        marked: &BTreeSet<&AclBinding>,
        wanted: &BTreeSet<AclBinding>,
        marks: &BTreeSet<AclBinding>,
    ) -> Vec<AclBinding> {
        let mut delete = BTreeSet::new();
        for mark in marked {
            let Some(acl) = unmarked(look.link, mark) else {
                continue;
            };
            // Withheld again, or gone from the source.
            if look.destination.contains(&acl) && !wanted.contains(&acl) {
                delete.insert(acl);
            }
            if look.source.is_some() && !marks.contains(*mark) {
                delete.insert((*mark).clone());
            }
        }
        if let Some(source) = look.source {
            let source: BTreeSet<AclBinding> =
                source.iter().map(|acl| look.names.mirrored(acl)).collect();
            let gone =
                |acl: &&AclBinding| look.destination.contains(*acl) && !wanted.contains(*acl);
            delete.extend(look.created.iter().filter(gone).cloned());
            let owned = |acl: &&AclBinding| {
                let original = look.names.original(acl);
                let owns = |filter: &AclFilter| {
                    filter.owns
                        && filter.principal.is_some()
                        && original.as_ref().is_some_and(|acl| filter.matches(acl))
                };
                !acl.name.starts_with(MARK)
                    && !source.contains(acl)
                    && !wanted.contains(*acl)
                    && look.filters.iter().any(owns)
            };
            delete.extend(look.destination.iter().filter(owned).cloned());
        }
        delete.into_iter().collect()
    }

    /// Marks first: what is ours must be known to be ours whatever happens next.
    async fn carry_out(
        self,
        destination: &Cluster,
        created: &mut BTreeSet<AclBinding>,
    ) -> Result<(), WireError> {
        let all =
            |results: Vec<Result<(), WireError>>| results.into_iter().collect::<Result<(), _>>();
        if !self.marks.is_empty() {
            all(destination.create_acls(&self.marks).await?)?;
        }
        if !self.delete.is_empty() {
            all(destination.delete_acls(&self.delete).await?)?;
            for acl in &self.delete {
                info!(acl = ?acl, "ACL deleted on the destination");
                created.remove(acl);
            }
        }
        if !self.create.is_empty() {
            created.extend(self.create.iter().cloned());
            all(destination.create_acls(&self.create).await?)?;
            debug!(count = self.create.len(), "ACLs created on the destination");
        }
        Ok(())
    }
}

/// Whether the ACL lets its principal change what a mirror topic holds.
fn lets_write(acl: &AclBinding) -> bool {
    use AclOperation::{All, Alter, AlterConfigs, Delete, Write};
    acl.permission == AclPermission::Allow
        && acl.resource == AclResource::Topic
        && matches!(acl.operation, All | Write | Alter | AlterConfigs | Delete)
}

/// What is given in place of a withheld ALL, so that consumers can read.
fn readable(acl: &AclBinding) -> impl Iterator<Item = AclBinding> {
    [AclOperation::Read, AclOperation::DescribeConfigs]
        .into_iter()
        .map(|operation| AclBinding {
            operation,
            ..acl.clone()
        })
}

fn covers(acl: &AclBinding, topic: &str) -> bool {
    match acl.pattern {
        AclPattern::Literal => acl.name == ANY_NAME || acl.name == topic,
        AclPattern::Prefixed => topic.starts_with(&acl.name),
    }
}

fn marking(link: &str, acl: &AclBinding) -> AclBinding {
    AclBinding {
        name: format!("{MARK}{link}:{}", acl.name),
        ..acl.clone()
    }
}

/// The ACL that a mark of this link stands for.
fn unmarked(link: &str, mark: &AclBinding) -> Option<AclBinding> {
    let name = mark
        .name
        .strip_prefix(MARK)?
        .strip_prefix(link)?
        .strip_prefix(':')?;
    Some(AclBinding {
        name: name.to_owned(),
        ..mark.clone()
    })
}

#[cfg(test)]
mod tests;
