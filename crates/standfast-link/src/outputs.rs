//! Groups whose offsets are committed in transactions, together with what was written in them.
//!
//! The wrapper's transactional clients name the topics that they write to in the metadata of their commits. Such offsets are
//! carried over only when everything that the source held in these topics at that moment is readable on the destination. Else a
//! failover in between would find records marked as processed, and what was made of them lost with the source.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use standfast_wire::Cluster;
use standfast_wire::admin::OffsetSpec;
use standfast_wire::fetch::Isolation;

use crate::calls::{self, Committed};
use crate::partition::PartitionId;

/// Beginning of the metadata of the wrapper's commits, and of the part that names topics: parted by commas, `*` for all.
/// A wire format shared with the wrapper.
const LABEL: &str = "standfast-1 ";
const TOPICS: &str = "out=";
const ALL: &str = "*";

/// How long the mirrors are waited for in one round. While they are further behind, the group's offsets stand still.
const WAIT: Duration = Duration::from_secs(5);

/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(100);

/// After this time everything that was committed when the offsets were read has its markers: what is open now is another
/// transaction, and need not be waited for.
const DECIDED: Duration = Duration::from_secs(2);

/// The partitions that the offsets wait for, of those that are mirrored.
pub(crate) fn of<'a>(
    offsets: &HashMap<PartitionId, Committed>,
    mirrored: impl Iterator<Item = &'a PartitionId>,
) -> Vec<PartitionId> {
    let topics: BTreeSet<&str> = offsets
        .values()
        .flat_map(|committed| topics(&committed.metadata))
        .collect();
    if topics.is_empty() {
        return Vec::new();
    }
    let wanted = |id: &&PartitionId| topics.contains(ALL) || topics.contains(&*id.topic);
    mirrored.filter(wanted).cloned().collect()
}

/// Waits until the destination's readers see what the source held when this was called. The offsets must have been read before.
pub(crate) async fn wait(
    source: &Cluster,
    destination: &Cluster,
    ids: Vec<PartitionId>,
) -> Result<(), String> {
    if ids.is_empty() {
        return Ok(());
    }
    let began = Instant::now();
    let mut ends = HashMap::new();
    for (id, end) in calls::log_ends(source, &ids).await {
        let end =
            end.map_err(|error| format!("source: the log end of {id} is not known: {error}"))?;
        ends.insert(id, end);
    }
    let mut is_decided = false;
    loop {
        let open: Vec<PartitionId> = ends.keys().cloned().collect();
        for (id, seen) in stable(destination, &open).await {
            if seen.is_ok_and(|seen| ends.get(&id).is_some_and(|end| seen >= *end)) {
                ends.remove(&id);
            }
        }
        if ends.is_empty() {
            return Ok(());
        }
        if began.elapsed() >= WAIT {
            let topics: BTreeSet<String> = ends.keys().map(|id| id.topic.to_string()).collect();
            let topics: Vec<String> = topics.into_iter().collect();
            return Err(format!(
                "what the group's transactions wrote to {} is not mirrored yet; its offsets wait for it",
                topics.join(", ")
            ));
        }
        if !is_decided && began.elapsed() >= DECIDED {
            is_decided = true;
            let open: Vec<PartitionId> = ends.keys().cloned().collect();
            for (id, decided) in stable(source, &open).await {
                if let (Ok(decided), Some(end)) = (decided, ends.get_mut(&id)) {
                    *end = decided.min(*end);
                }
            }
            continue;
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn stable(
    cluster: &Cluster,
    ids: &[PartitionId],
) -> HashMap<PartitionId, Result<i64, String>> {
    calls::log_offsets(cluster, ids, OffsetSpec::Latest, Isolation::ReadCommitted).await
}

fn topics(metadata: &str) -> impl Iterator<Item = &str> {
    let parts = metadata.strip_prefix(LABEL).unwrap_or_default().split(' ');
    let named = parts.filter_map(|part| part.strip_prefix(TOPICS));
    named
        .flat_map(|topics| topics.split(','))
        .filter(|topic| !topic.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topics_of_the_wrappers_commits_are_waited_for() {
        let commit = |metadata: &str| {
            let offset = Committed {
                offset: 1,
                metadata: metadata.to_owned(),
            };
            HashMap::from([(PartitionId::new("in", 0), offset)])
        };
        let mirrored = [
            PartitionId::new("a", 0),
            PartitionId::new("a", 1),
            PartitionId::new("b", 0),
            PartitionId::new("in", 0),
        ];
        let count = |metadata: &str| of(&commit(metadata), mirrored.iter()).len();
        assert_eq!(count("standfast-1 epoch=3 seen=7-1 out=a,gone"), 2);
        assert_eq!(count("standfast-1 epoch=3 out=b"), 1);
        assert_eq!(count("standfast-1 epoch=3 out=*"), 4);
        for none in [
            "",
            "standfast-1 epoch=3 seen=out",
            "out=a",
            "standfast-1 epoch=3 out=",
        ] {
            assert_eq!(count(none), 0, "{none}");
        }
    }
}
