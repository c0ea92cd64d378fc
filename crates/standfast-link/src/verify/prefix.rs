//! Up to where two logs are provably the same: where a tail begins that only one of them holds.

use std::collections::BTreeSet;

use standfast_wire::Cluster;
use standfast_wire::batch::RawBatch;

use super::compare::{Compared, Reason, Side, Span, judge};
use super::records::{self, Judged, Kept};
use super::{Cursor, DESTINATION, Log, OVERTAKEN_MAX, SOURCE, VerifyError};
use crate::calls::{self, LogRange};
use crate::partition::PartitionId;

/// Both logs of one partition.
pub(crate) struct Logs<'c> {
    pub(crate) source: &'c Cluster,
    pub(crate) mirror: &'c Cluster,
    pub(crate) id: &'c PartitionId,
    /// The mirror topic's cleanup policy includes compaction.
    pub(crate) compacts: bool,
}

/// What was compared.
struct Walked {
    /// Everything from the beginning of the walk up to here is the same.
    same_to: i64,
    different: bool,
}

/// A stretch of one log, as it is compared.
struct Piece {
    side: Side,
    kept: Kept,
}

impl Piece {
    fn at(offset: i64) -> Self {
        Self {
            side: Side::at(offset),
            kept: Kept::default(),
        }
    }

    fn is_empty(&self) -> bool {
        self.side.is_empty()
    }

    fn end(&self) -> i64 {
        self.side.end()
    }

    fn push(&mut self, span: Span) {
        self.kept.push(&span);
        self.side.push(span);
    }
}

impl Logs<'_> {
    /// The offset at which the mirror's log leaves the source's; `mirror.end` if it does not.
    ///
    /// Only what is proven to be the same counts as such: what cannot be compared in front of a difference belongs to the tail, and so does all of the mirror if the
    /// source no longer holds what could prove anything. `hint` is an offset up to which the logs were the same once (of a handoff). It saves reading both logs
    /// from their beginnings if they are still the same in front of it, and is trusted alone only where there is nothing left to compare.
    pub(crate) async fn divergence(
        &self,
        mirror: LogRange,
        hint: Option<i64>,
    ) -> Result<i64, VerifyError> {
        if mirror.start >= mirror.end {
            return Ok(mirror.end);
        }
        for _ in 0..OVERTAKEN_MAX {
            let source = self.range(SOURCE, self.source).await?;
            if let Some(found) = self.look(source, mirror, hint).await? {
                return Ok(found);
            }
        }
        Err(VerifyError::Moved {
            cluster: SOURCE,
            partition: self.id.to_string(),
            reason: "retention removes records faster than they are compared".to_owned(),
        })
    }

    /// `None`: a log no longer begins where it did.
    async fn look(
        &self,
        source: LogRange,
        mirror: LogRange,
        hint: Option<i64>,
    ) -> Result<Option<i64>, VerifyError> {
        let base = source.start.max(mirror.start);
        let to = source.end.min(mirror.end);
        let unknown_to = hint.filter(|h| (mirror.start..=base.min(mirror.end)).contains(h));
        if base >= to {
            // Nothing that both hold.
            let from = unknown_to.or_else(|| hint.filter(|h| *h == mirror.end));
            return Ok(Some(from.unwrap_or(mirror.start)));
        }
        let from = match hint.filter(|h| *h > base && *h <= to) {
            Some(hint) => self.proven_in_front_of(hint, base).await?.unwrap_or(base),
            None => base,
        };
        let Some(walked) = self.walk(from, to, (source.end, mirror.end)).await? else {
            return Ok(None);
        };
        if !walked.different && mirror.end <= source.end {
            return Ok(Some(mirror.end));
        }
        if walked.same_to == base && base > mirror.start {
            // The source no longer holds what stands in front of the difference on the mirror.
            return Ok(Some(unknown_to.unwrap_or(mirror.start)));
        }
        Ok(Some(walked.same_to))
    }

    /// Where to begin: the batch in front of `hint`, if it is the same on both sides.
    async fn proven_in_front_of(&self, hint: i64, base: i64) -> Result<Option<i64>, VerifyError> {
        let (theirs, ours) = tokio::join!(
            calls::batch_at(self.source, self.id, hint - 1),
            calls::batch_at(self.mirror, self.id, hint - 1)
        );
        let theirs = theirs.map_err(|error| failed(SOURCE, error))?;
        let ours = ours.map_err(|error| failed(DESTINATION, error))?;
        let (Some(theirs), Some(ours)) = (theirs, ours) else {
            return Ok(None);
        };
        let at = theirs.header.base_offset;
        if at < base || theirs.header.next_offset() != ours.header.next_offset() {
            return Ok(None);
        }
        let piece = |batch: RawBatch| {
            let mut piece = Piece::at(batch.header.base_offset);
            piece.push(Span::Batch(batch));
            piece
        };
        let judged = self.judge(piece(theirs), piece(ours)).await;
        Ok((judged == Judged::Same).then_some(at))
    }

    /// By bytes, and where they cannot tell, by records.
    async fn judge(&self, theirs: Piece, ours: Piece) -> Judged {
        let judged = match judge(theirs.side, ours.side, self.compacts) {
            Compared::Equal | Compared::Joined => return Judged::Same,
            Compared::Nothing | Compared::NotComparable(Reason::Marker) => return Judged::NoRecord,
            Compared::NotComparable(_) => Judged::Unproven,
            Compared::Different(_) => Judged::Different,
        };
        let by_records = records::judge(theirs.kept, ours.kept).await;
        by_records.unwrap_or(judged)
    }

    /// Walks both logs from `from` up to the first difference. `None`: a log no longer begins there.
    async fn walk(
        &self,
        from: i64,
        to: i64,
        ends: (i64, i64),
    ) -> Result<Option<Walked>, VerifyError> {
        let source = self.log(SOURCE, self.source);
        let mirror = self.log(DESTINATION, self.mirror);
        let mut theirs = Cursor::new(&source, self.id.partition, from, ends.0);
        let mut ours = Cursor::new(&mirror, self.id.partition, from, ends.1);
        let (mut at, mut same_to) = (from, from);
        while at < to {
            let (mut a, mut b) = (Piece::at(at), Piece::at(at));
            while a.is_empty() || b.is_empty() || a.end() != b.end() {
                let filled = tokio::join!(theirs.fill(), ours.fill());
                if !(filled.0? && filled.1?) {
                    return Ok(None);
                }
                let behind = a.is_empty() || (!b.is_empty() && a.end() < b.end());
                let (side, cursor) = if behind {
                    (&mut a, &mut theirs)
                } else {
                    (&mut b, &mut ours)
                };
                match cursor.next() {
                    Some(span) => side.push(span),
                    // One log ends inside a batch of the other.
                    None => {
                        return Ok(Some(Walked {
                            same_to,
                            different: true,
                        }));
                    }
                }
            }
            let end = a.end();
            match self.judge(a, b).await {
                Judged::Same => same_to = end,
                Judged::NoRecord if same_to == at => same_to = end,
                Judged::NoRecord | Judged::Unproven => {}
                Judged::Different => {
                    return Ok(Some(Walked {
                        same_to,
                        different: true,
                    }));
                }
            }
            at = end;
        }
        Ok(Some(Walked {
            same_to,
            different: false,
        }))
    }

    fn log(&self, role: &'static str, cluster: &Cluster) -> Log {
        Log {
            role,
            cluster: cluster.clone(),
            topic: self.id.topic.to_string(),
            partitions: BTreeSet::from([self.id.partition]),
        }
    }

    async fn range(&self, role: &'static str, cluster: &Cluster) -> Result<LogRange, VerifyError> {
        calls::log_range(cluster, self.id)
            .await
            .map_err(|error| failed(role, error))
    }
}

fn failed(cluster: &'static str, error: standfast_wire::Error) -> VerifyError {
    VerifyError::Cluster { cluster, error }
}
