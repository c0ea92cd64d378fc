//! What consumer groups have yet to read on the source and would never find on the mirror, whose log begins behind it.
//!
//! So it is for a while after a restore in mode fast, whose mirror begins behind the end of its old log, and with a mirror that did not begin at the source's log start. `groups.rs`
//! carries such an offset over as the mirror's log start, and what lies in between is skipped by whoever goes on there.

use std::collections::HashMap;

use futures_util::{StreamExt, TryStreamExt, stream};
use standfast_wire::Cluster;
use standfast_wire::admin::OffsetSpec;
use standfast_wire::fetch::Isolation;

use crate::handle::LinkHandle;
use crate::lifecycle::Wanted;
use crate::partition::PartitionId;
use crate::topics::Topic;
use crate::{Error, calls, groups, refusal};

/// Groups that are asked for at the same time.
const GROUPS_AT_ONCE: usize = 8;

/// So few offsets may be nothing but markers: they are looked at. More are taken for records.
const MARKERS_MAX: i64 = 64;

/// Room for that many markers.
const LOOK_BYTES: i32 = 16 * 1024;

/// Records of one partition that a group has yet to read on the source, and that the mirror does not hold because its log begins behind them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnreadRecords {
    /// Consumer group, as the source calls it.
    pub group: String,
    /// The mirror topic.
    pub topic: String,
    /// Partition number.
    pub partition: i32,
    /// The group's committed offset on the source.
    pub committed_offset: i64,
    /// First offset that it has yet to read: the committed one, or the source's log start if that lies behind it.
    pub from_offset: i64,
    /// How many offsets there are from there on that the mirror does not hold.
    pub records: i64,
    /// Where the mirror's log begins.
    pub mirror_log_start_offset: i64,
}

/// What of a partition only the source holds, in front of the mirror's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct InFront {
    from: i64,
    until: i64,
    mirror_start: i64,
}

impl InFront {
    fn of(source_start: i64, source_end: i64, mirror_start: i64) -> Option<Self> {
        let until = mirror_start.min(source_end);
        (source_start < until).then_some(Self {
            from: source_start,
            until,
            mirror_start,
        })
    }

    /// The first offset of it that a group has yet to read.
    fn unread_from(self, committed: i64) -> Option<i64> {
        let from = committed.max(self.from);
        (from < self.until).then_some(from)
    }
}

impl LinkHandle {
    /// What the groups that the link carries over have yet to read on the source and the mirrors do not hold, by group, topic and partition. While there is any, moving
    /// applications to the destination makes these groups skip it. Asks both clusters, whichever engine of a shared link mirrors a partition; mirrors that were stopped one by one are left out.
    ///
    /// # Errors
    /// A cluster was not reached or did not name a log start, log end or committed offset.
    pub async fn unread_records(&self) -> Result<Vec<UnreadRecords>, Error> {
        let (source, destination) = self.both_clusters()?;
        let live = self.inner.live();
        if live.groups.is_empty() && live.group_filters.is_empty() {
            return Ok(Vec::new());
        }
        let in_front = &self.in_front(source, destination).await?;
        if in_front.is_empty() {
            // As it nearly always is: no group needs to be asked for.
            return Ok(Vec::new());
        }
        let groups = groups::taken(&live, source)
            .await
            .map_err(|e| self.error("source", e))?;
        let found: Vec<Vec<UnreadRecords>> = stream::iter(groups)
            .map(|group| self.unread_by(source, group, in_front))
            .buffer_unordered(GROUPS_AT_ONCE)
            .try_collect()
            .await?;
        let mut found: Vec<UnreadRecords> = found.into_iter().flatten().collect();
        found.sort_unstable_by(|a, b| {
            (&a.group, &a.topic, a.partition).cmp(&(&b.group, &b.topic, b.partition))
        });
        Ok(found)
    }

    async fn in_front(
        &self,
        source: &Cluster,
        destination: &Cluster,
    ) -> Result<HashMap<PartitionId, InFront>, Error> {
        let ids: Vec<PartitionId> = {
            let state = self.inner.options.lifecycle.state();
            let topics = self.inner.topics();
            topics
                .iter()
                .filter(|t| state.wanted(&t.name()) != Wanted::Stopped)
                .flat_map(Topic::ids)
                .collect()
        };
        let (start, end) = (OffsetSpec::Earliest, OffsetSpec::Latest);
        let mut mirror_starts = self
            .offsets("destination", destination, &ids, start)
            .await?;
        // Only where the mirror's log does not begin at 0 is there a question to the source.
        mirror_starts.retain(|_, start| *start > 0);
        let ids: Vec<PartitionId> = mirror_starts.keys().cloned().collect();
        let starts = self.offsets("source", source, &ids, start).await?;
        let ends = self.offsets("source", source, &ids, end).await?;
        let found = mirror_starts.into_iter().filter_map(|(id, mirror_start)| {
            let (start, end) = (*starts.get(&id)?, *ends.get(&id)?);
            Some((id, InFront::of(start, end, mirror_start)?))
        });
        Ok(found.collect())
    }

    /// One offset of each log; all of them, or an error.
    async fn offsets(
        &self,
        name: &'static str,
        cluster: &Cluster,
        ids: &[PartitionId],
        spec: OffsetSpec,
    ) -> Result<HashMap<PartitionId, i64>, Error> {
        let mut answers = calls::log_offsets(cluster, ids, spec, Isolation::ReadUncommitted).await;
        let each = ids.iter().map(|id| {
            let answer = answers
                .remove(id)
                .unwrap_or_else(|| Err("no answer".to_owned()));
            let offset = answer.map_err(|text| Error::LogRange {
                link: self.inner.options.name.to_string(),
                cluster: name,
                reason: format!("{id}: {text}"),
            })?;
            Ok((id.clone(), offset))
        });
        each.collect()
    }

    async fn unread_by(
        &self,
        source: &Cluster,
        group: String,
        in_front: &HashMap<PartitionId, InFront>,
    ) -> Result<Vec<UnreadRecords>, Error> {
        let committed = calls::committed(source, &group)
            .await
            .map_err(|e| Error::Group {
                link: self.inner.options.name.to_string(),
                group: group.clone(),
                cluster: "source",
                reason: refusal::text(&e),
            })?;
        let mut found = Vec::new();
        for (id, in_front) in in_front {
            let Some(committed) = committed.get(id) else {
                continue;
            };
            let Some(from) = in_front.unread_from(committed.offset) else {
                continue;
            };
            if only_markers(source, id, from, in_front.until).await {
                continue;
            }
            found.push(UnreadRecords {
                group: group.clone(),
                topic: id.topic.to_string(),
                partition: id.partition,
                committed_offset: committed.offset,
                from_offset: from,
                records: in_front.until - from,
                mirror_log_start_offset: in_front.mirror_start,
            });
        }
        Ok(found)
    }
}

/// Whether these offsets are known to hold no record. A consumer's position stays in front of a marker that ends the log until there is a record behind it, so such a group would seem
/// to be behind for ever.
async fn only_markers(source: &Cluster, id: &PartitionId, from: i64, until: i64) -> bool {
    if until - from > MARKERS_MAX {
        return false;
    }
    let Ok(batches) = calls::batches_at(source, id, from, LOOK_BYTES).await else {
        return false;
    };
    let headers = batches.iter().map(|batch| &batch.header);
    let mut reached = from;
    for header in headers.filter(|header| header.next_offset() > from) {
        let holds_records = !header.attributes.is_control() && header.record_count > 0;
        if header.base_offset < until && holds_records {
            return false;
        }
        reached = reached.max(header.next_offset());
    }
    reached >= until
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_the_source_holds_is_unread_from_the_committed_offset_on() {
        // A mirror that begins at 110; the source has 40 to 199.
        let in_front = InFront::of(40, 200, 110).unwrap();
        for (committed, from) in [
            (0, Some(40)),
            (40, Some(40)),
            (90, Some(90)),
            (109, Some(109)),
            (110, None),
            (150, None),
        ] {
            assert_eq!(in_front.unread_from(committed), from, "{committed}");
        }
        // Both begin alike, the mirror begins earlier, retention has taken it, the source's log is empty.
        for (start, end, mirror_start) in [(0, 9, 0), (5, 9, 3), (110, 200, 110), (40, 40, 110)] {
            assert_eq!(InFront::of(start, end, mirror_start), None);
        }
        let short = InFront::of(40, 105, 110).unwrap();
        assert_eq!((short.until, short.unread_from(105)), (105, None));
    }
}
