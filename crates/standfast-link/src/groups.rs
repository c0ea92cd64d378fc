//! Carries committed offsets of consumer groups from the source to the destination, where they mean the same records.
//!
//! An offset is carried over only if its topic is mirrored and the group has no members on the destination; it is clamped to the destination's log end
//! and goes backwards only if it went backwards on the source. Offsets that the wrapper commits in transactions wait for what was written in them (`outputs.rs`).

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::{StreamExt, stream};
use standfast_wire::Cluster;
use standfast_wire::admin::OffsetSpec;
use standfast_wire::fetch::Isolation;
use tracing::{debug, warn};

use crate::calls::{self, Committed};
use crate::description::GroupDescription;
use crate::filters;
use crate::lifecycle::Wanted;
use crate::link::Inner;
use crate::live::Live;
use crate::outputs;
use crate::partition::PartitionId;
use crate::refusal;
use crate::shard::Context;
use crate::status::now_ms;

/// Groups that are carried over at the same time.
const GROUPS_AT_ONCE: usize = 8;

/// Carries all groups over at every `group_sync_interval`.
pub(crate) async fn keep(inner: Arc<Inner>, context: Context) {
    let mut settings = inner.live.subscribe();
    loop {
        let live = Arc::clone(&settings.borrow_and_update());
        let none = live.groups.is_empty() && live.group_filters.is_empty();
        let resting = inner.options.lifecycle.is_paused() || !inner.share.has_duties();
        if !none && !resting {
            sync(&inner, &context.source, &context.destination).await;
        }
        tokio::select! {
            () = tokio::time::sleep(live.group_sync_interval), if !none => {}
            changed = settings.changed() => if changed.is_err() { return },
        }
    }
}

/// Carries all groups over once; what goes wrong stands in the description of the group.
pub(crate) async fn sync(inner: &Inner, source: &Cluster, destination: &Cluster) {
    let groups = match wanted(inner, source).await {
        Ok(groups) => groups,
        Err(error) => {
            warn!(link = %inner.options.name, %error, "the source's consumer groups are not known, carrying over those known before");
            inner.groups().iter().map(|g| g.group.clone()).collect()
        }
    };
    stream::iter(groups)
        .map(|group| async move {
            let outcome = carry(inner, &group, source, destination).await;
            note(inner, &group, outcome);
        })
        .buffer_unordered(GROUPS_AT_ONCE)
        .collect::<()>()
        .await;
}

/// The groups that are named, and those of the source that the filters take.
pub(crate) async fn taken(
    options: &Live,
    source: &Cluster,
) -> Result<Vec<String>, standfast_wire::Error> {
    let mut groups = options.groups.clone();
    if !options.group_filters.is_empty() {
        let found = source.list_groups().await?.into_iter();
        groups.extend(found.filter(|g| filters::admits(&options.group_filters, g)));
        groups.sort_unstable();
        groups.dedup();
    }
    Ok(groups)
}

/// The groups to carry over. One that the source no longer has is forgotten, so that it is never created again on the destination.
async fn wanted(inner: &Inner, source: &Cluster) -> Result<Vec<String>, standfast_wire::Error> {
    let groups = taken(&inner.live(), source).await?;
    let mut described = inner.groups();
    described.retain(|d| groups.contains(&d.group));
    for group in &groups {
        if !described.iter().any(|d| d.group == *group) {
            described.push(GroupDescription {
                group: group.clone(),
                ..GroupDescription::default()
            });
        }
    }
    Ok(groups)
}

fn note(inner: &Inner, group: &str, outcome: Result<u64, String>) {
    let mut groups = inner.groups();
    let Some(description) = groups.iter_mut().find(|g| g.group == *group) else {
        return;
    };
    match outcome {
        Ok(committed) => {
            description.committed_offsets += committed;
            description.last_success_ms = Some(now_ms());
            description.error = None;
        }
        Err(text) => {
            if description.error.as_ref() != Some(&text) {
                warn!(group, reason = %text, "group offsets not carried over");
            }
            description.error = Some(text);
        }
    }
}

async fn carry(
    inner: &Inner,
    group: &str,
    source: &Cluster,
    destination: &Cluster,
) -> Result<u64, String> {
    let mirrored: Vec<(PartitionId, Option<i64>)> = {
        let state = inner.options.lifecycle.state();
        let topics = inner.topics();
        topics
            .iter()
            // A stopped mirror's topic belongs to the destination, and so do the offsets in it.
            .filter(|t| state.wanted(&t.name()) != Wanted::Stopped)
            .flat_map(|t| t.ids().zip(t.partitions().iter().map(|p| p.position())))
            .collect()
    };
    let positions: HashMap<PartitionId, i64> = mirrored
        .into_iter()
        .filter_map(|(id, position)| Some((id, position?)))
        .collect();
    // What the group is called on the destination.
    let mirror_group = inner.live().mirror_group(group);
    let mirror_group = mirror_group.as_str();
    let theirs = calls::committed(source, group)
        .await
        .map_err(|e| format!("source: {}", refusal::text(&e)))?;
    let theirs: HashMap<PartitionId, Committed> = theirs
        .into_iter()
        .filter(|(id, _)| positions.contains_key(id))
        .collect();
    if theirs.is_empty() {
        return Ok(0);
    }
    let members = calls::group_members(destination, mirror_group)
        .await
        .map_err(|e| format!("destination: {}", refusal::text(&e)))?;
    if members > 0 {
        return Err(format!(
            "CONSUMER_GROUP_IN_USE_ERROR: group {mirror_group:?} has {members} members on the destination; its offsets there are its own now"
        ));
    }
    let waited_for = outputs::of(&theirs, positions.keys());
    outputs::wait(source, destination, waited_for).await?;
    let ours = calls::committed(destination, mirror_group)
        .await
        .map_err(|e| format!("destination: {}", refusal::text(&e)))?;
    let ids: Vec<PartitionId> = theirs.keys().cloned().collect();
    let ends = calls::log_ends(destination, &ids).await;
    let earliest = OffsetSpec::Earliest;
    let starts = calls::log_offsets(destination, &ids, earliest, Isolation::ReadUncommitted).await;
    let mut changed = HashMap::new();
    for (id, mut committed) in theirs {
        let Some(Ok(end)) = ends.get(&id) else {
            return Err(format!("destination: the log end of {id} is not known"));
        };
        let clamped = committed.offset > *end;
        // Nor below the log start: a mirror may begin later than its source. Who is made to skip records by that is in `unread.rs`.
        let start = starts.get(&id).and_then(|s| s.as_ref().ok()).copied();
        committed.offset = committed.offset.max(start.unwrap_or(0)).min(*end);
        let before = ours.get(&id);
        let same = before
            .is_some_and(|b| b.offset == committed.offset && b.metadata == committed.metadata);
        // A clamped offset below what is there already would only undo an earlier, better one.
        let backwards = clamped && before.is_some_and(|b| b.offset > committed.offset);
        if !same && !backwards {
            changed.insert(id, committed);
        }
    }
    if changed.is_empty() || inner.stop.is_cancelled() {
        return Ok(0);
    }
    let count = changed.len() as u64;
    calls::commit(destination, mirror_group, &changed)
        .await
        .map_err(|e| format!("destination: {}", refusal::text(&e)))?;
    debug!(group, count, "group offsets carried over");
    Ok(count)
}
