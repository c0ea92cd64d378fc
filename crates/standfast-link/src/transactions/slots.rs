//! The link's own transactional ids on the destination, and how their state is found again.
//!
//! Each partition has numbered slots, one open transaction each. Which slot a source transaction gets follows from the log alone (the marker in front of it and the
//! transactions open at its first offset), so that two engines of a link choose the same one: their batches are then repeats of each other's and not new ones.
//! For the same reason epochs and sequence numbers are only taken over from a moment at which the destination's log ended exactly at the position and did not move.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use standfast_wire::admin::{ActiveProducer, ProducerIdentity};
use standfast_wire::{Cluster, Connection, Error, ResponseError};

use super::{TimeoutFound, diverged, later, outcome, transactional_id};
use crate::calls;
use crate::classify::unsupported;
use crate::numbering::Numbering;
use crate::options::LinkName;
use crate::partition::PartitionId;
use crate::startup::{Refusal, Request, destination, source};

/// Slots that successive transactions take in turn: a coordinator is still busy with one for a moment after its marker is in the log.
pub(super) const ROTATION: usize = 3;

/// Source transactions that may be open on one partition at a time.
const SLOTS_MAX: usize = 64;

/// More slots are taken in such steps.
const SLOTS_STEP: usize = 4;

/// New ids rest for so long before the first use, so that another engine that was about to allocate the same ones has done so.
const ALLOCATION_SETTLES: Duration = Duration::from_millis(250);

/// Looks at a destination that is still writing a marker, and the wait between them.
const LOOKS_MAX: u32 = 50;
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// How long markers of aborts may take.
const ABORT_MARKERS: u32 = 100;

/// What one transactional id is at.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    pub(super) transactional_id: Arc<str>,
    pub(super) identity: ProducerIdentity,
    pub(super) next_sequence: i32,
    /// The source producer whose transaction is open in it.
    pub(super) open_for: Option<i64>,
}

/// The slots of one partition, true at its position, and a connection to write through.
pub(crate) struct Writers {
    pub(super) connection: Connection,
    pub(super) slots: Vec<Slot>,
    /// The slot whose marker is the last batch of the log, and the offset behind it.
    last_marker: Option<(usize, i64)>,
}

impl Writers {
    /// Finds at least `count` slots in the state that they have at `position`.
    pub(crate) async fn find(
        request: &Request,
        position: i64,
        count: usize,
    ) -> Result<Self, Refusal> {
        let cluster = &request.context.destination;
        let leader = cluster
            .leader(&request.id.topic, request.id.partition)
            .await
            .map_err(destination)?;
        let raw = cluster.open_raw(leader).await.map_err(destination)?;
        let connection = Connection::start(raw, cluster.options());
        let snapshot = snapshot(request, position, count).await?;
        let mut slots = Vec::with_capacity(snapshot.slots.len());
        for (name, identity) in snapshot.slots {
            let known = snapshot
                .producers
                .iter()
                .find(|p| p.producer_id == identity.producer_id);
            let at_epoch = known.filter(|p| p.epoch == i32::from(identity.epoch));
            let next_sequence = at_epoch.map_or(0, |p| p.last_sequence.wrapping_add(1) & i32::MAX);
            let open_for = match at_epoch.filter(|p| p.transaction_start_offset >= 0) {
                Some(open) => Some(source_producer(request, open.transaction_start_offset).await?),
                None => None,
            };
            slots.push(Slot {
                transactional_id: name,
                identity,
                next_sequence,
                open_for,
            });
        }
        let last_marker = last_marker(request, position, &slots).await?;
        Ok(Self {
            connection,
            slots,
            last_marker,
        })
    }

    /// Whether a transaction is open on the destination.
    pub(crate) fn any_open(&self) -> bool {
        self.slots.iter().any(|slot| slot.open_for.is_some())
    }

    /// The slot of a source producer: the one that its transaction is open in, else the one that a transaction that begins here gets.
    pub(super) async fn of_producer(
        &mut self,
        request: &Request,
        position: i64,
        producer_id: i64,
    ) -> Result<usize, Refusal> {
        let open = |slot: &Slot| slot.open_for == Some(producer_id);
        if let Some(index) = self.slots.iter().position(open) {
            return Ok(index);
        }
        loop {
            if let Some(index) = self.free(position) {
                return Ok(index);
            }
            let count = self.slots.len() + SLOTS_STEP;
            if count > SLOTS_MAX {
                return Err(unsupported(format!(
                    "source offset {position}: more than {} transactions are open at a time",
                    self.slots.len()
                ))
                .into());
            }
            *self = Self::find(request, position, count).await?;
        }
    }

    /// The first free slot, from the one behind that of the marker in front of `position`.
    fn free(&self, position: i64) -> Option<usize> {
        let first = match self.last_marker {
            Some((slot, at)) if at == position => (slot + 1) % ROTATION,
            _ => 0,
        };
        let turn = (first..ROTATION).chain(0..first);
        turn.chain(ROTATION..self.slots.len())
            .find(|index| self.slots.get(*index).is_some_and(|s| s.open_for.is_none()))
    }

    /// The transaction in slot `index` is over; the next one has this identity.
    pub(super) fn ended(&mut self, index: usize, identity: ProducerIdentity, position: i64) {
        let Some(slot) = self.slots.get_mut(index) else {
            return;
        };
        // A coordinator that runs out of epochs gives the slot another producer id, which the marker does not carry: then no engine can tell whose it was.
        let same_producer = slot.identity.producer_id == identity.producer_id;
        self.last_marker = same_producer.then_some((index, position));
        slot.identity = identity;
        slot.next_sequence = 0;
        slot.open_for = None;
    }
}

/// The destination at one moment, at which its log ended at the position.
struct Snapshot {
    producers: Vec<ActiveProducer>,
    slots: Vec<(Arc<str>, ProducerIdentity)>,
}

enum Look {
    Stable(Snapshot),
    /// A marker is still being written, or slots were only just allocated.
    Busy(&'static str),
}

async fn snapshot(request: &Request, position: i64, count: usize) -> Result<Snapshot, Refusal> {
    let mut last = "";
    for _ in 0..LOOKS_MAX {
        match look(request, position, count).await? {
            Look::Stable(snapshot) => return Ok(snapshot),
            Look::Busy(why) => last = why,
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
    Err(later(format!(
        "the transactions of offset {position} do not come to rest: {last}"
    )))
}

async fn look(request: &Request, position: i64, count: usize) -> Result<Look, Refusal> {
    let (cluster, id) = (&request.context.destination, &request.id);
    at_rest(cluster, id, position).await?;
    let producers = producers(cluster, id).await.map_err(destination)?;
    let mut slots: Vec<Option<Described>> = Vec::new();
    let is_open = |p: &&ActiveProducer| p.transaction_start_offset >= 0;
    while slots.len() < count || !all_found(&producers, &slots) {
        if slots.len() >= SLOTS_MAX {
            let open = producers
                .iter()
                .filter(is_open)
                .find(|p| !is_slot(&slots, p.producer_id));
            return Err(diverged(format!(
                "producer id {} has a transaction open on the destination that is not this link's",
                open.map_or(-1, |p| p.producer_id)
            )));
        }
        let next = slots.len()..(slots.len() + SLOTS_STEP).max(count).min(SLOTS_MAX);
        slots.extend(describe(request, next).await?);
    }
    at_rest(cluster, id, position).await?;
    let mut found = Vec::with_capacity(slots.len());
    let mut missing = Vec::new();
    for (number, slot) in slots.into_iter().enumerate() {
        let name = slot_name(request, number);
        match slot {
            None if number < count => missing.push(name),
            // The slots behind it were never used either.
            None => break,
            Some(slot) if slot.busy => return Ok(Look::Busy("a marker is being written")),
            Some(slot) => found.push((name, slot.identity)),
        }
    }
    if !missing.is_empty() {
        for name in missing {
            let timeout = &request.context.transaction_timeout;
            timeout
                .allocate(cluster, &name)
                .await
                .map_err(destination)?;
        }
        tokio::time::sleep(ALLOCATION_SETTLES).await;
        return Ok(Look::Busy("transactional ids were allocated"));
    }
    let hanging = producers.iter().filter(is_open).any(|p| {
        found.iter().all(|(_, identity)| {
            identity.producer_id != p.producer_id || i32::from(identity.epoch) != p.epoch
        })
    });
    if hanging {
        return Ok(Look::Busy("a transaction is ending"));
    }
    Ok(Look::Stable(Snapshot {
        producers,
        slots: found,
    }))
}

/// One transactional id as its coordinator knows it.
struct Described {
    identity: ProducerIdentity,
    busy: bool,
}

fn is_slot(slots: &[Option<Described>], producer_id: i64) -> bool {
    slots
        .iter()
        .flatten()
        .any(|s| s.identity.producer_id == producer_id)
}

fn all_found(producers: &[ActiveProducer], slots: &[Option<Described>]) -> bool {
    let mut open = producers.iter().filter(|p| p.transaction_start_offset >= 0);
    open.all(|p| is_slot(slots, p.producer_id))
}

async fn describe(
    request: &Request,
    slots: std::ops::Range<usize>,
) -> Result<Vec<Option<Described>>, Refusal> {
    let names = slots.map(|number| slot_name(request, number));
    let cluster = &request.context.destination;
    let asked = names.map(|name| async move { cluster.describe_transaction(&name).await });
    let described = try_join_all(asked).await.map_err(destination)?;
    let each = described.into_iter().map(|found| {
        found
            .filter(|f| f.producer_id >= 0 && f.state != "Dead")
            .map(|f| Described {
                identity: ProducerIdentity {
                    producer_id: f.producer_id,
                    epoch: f.epoch,
                },
                busy: f.state.starts_with("Prepare"),
            })
    });
    Ok(each.collect())
}

fn slot_name(request: &Request, number: usize) -> Arc<str> {
    transactional_id(&request.context.options.name, &request.id, number)
}

/// The leader's log must end at the position, with nothing above it that is not replicated yet.
async fn at_rest(cluster: &Cluster, id: &PartitionId, position: i64) -> Result<(), Refusal> {
    let end = cluster.leader_log_end(id).await.map_err(destination)?;
    if end == position {
        return Ok(());
    }
    Err(later(format!(
        "the destination ends at offset {end}, the mirror at {position}: another engine of this link is at work"
    )))
}

async fn producers(cluster: &Cluster, id: &PartitionId) -> Result<Vec<ActiveProducer>, Error> {
    let answers = cluster.describe_producers(std::slice::from_ref(id)).await;
    let mut found = Vec::new();
    for (_, answer) in answers {
        found.extend(answer?);
    }
    Ok(found)
}

/// Who wrote the source's batch at `offset`, where a transaction began.
async fn source_producer(request: &Request, offset: i64) -> Result<i64, Refusal> {
    let batch = calls::batch_at(&request.context.source, &request.id, offset)
        .await
        .map_err(source)?;
    let began = batch.filter(|b| {
        b.header.base_offset == offset
            && b.header.attributes.is_transactional()
            && !b.header.attributes.is_control()
    });
    began.map(|b| b.header.producer_id).ok_or_else(|| {
        diverged(format!(
            "a transaction is open on the destination from offset {offset} on, but the source has none that begins there (any more)"
        ))
    })
}

async fn last_marker(
    request: &Request,
    position: i64,
    slots: &[Slot],
) -> Result<Option<(usize, i64)>, Refusal> {
    if position == 0 {
        return Ok(None);
    }
    let last = calls::batch_at(&request.context.destination, &request.id, position - 1).await;
    let last = match last {
        // All of it was deleted.
        Err(error) if error.code() == Some(ResponseError::OffsetOutOfRange) => None,
        last => last.map_err(destination)?,
    };
    let Some(marker) = last.filter(|batch| outcome(batch).is_some()) else {
        return Ok(None);
    };
    let written_by = |slot: &Slot| slot.identity.producer_id == marker.header.producer_id;
    Ok(slots
        .iter()
        .position(written_by)
        .map(|index| (index, position)))
}

/// How the plain producer's numbers go on at `position`. Without state of it any first sequence is accepted, and the offset is taken again; behind a fence
/// (a marker, which clears the sequence) the broker takes nothing but 0.
pub(crate) async fn plain_numbering(
    request: &Request,
    position: i64,
    producer_id: i64,
) -> Result<Numbering, Refusal> {
    let (cluster, id) = (&request.context.destination, &request.id);
    at_rest(cluster, id, position).await?;
    let producers = match producers(cluster, id).await {
        Ok(producers) => producers,
        // Before Kafka 2.8 nobody can be asked, and there are no transactions of this link either.
        Err(Error::UnsupportedApi { .. }) => return Ok(Numbering::default()),
        Err(error) => return Err(destination(error)),
    };
    at_rest(cluster, id, position).await?;
    let plain = producers.iter().find(|p| p.producer_id == producer_id);
    Ok(plain.map_or_else(Numbering::default, |p| {
        let next = p.last_sequence.wrapping_add(1) & i32::MAX;
        Numbering::of(position, next, i16::try_from(p.epoch).unwrap_or(0))
    }))
}

/// Raises the epoch of every transactional id that the link has for a partition: what is still under way under the old one is refused. Aborts what is open.
pub(crate) async fn renew(
    timeout: &TimeoutFound,
    cluster: &Cluster,
    link: &LinkName,
    id: &PartitionId,
) -> Result<(), Error> {
    for number in 0..SLOTS_MAX {
        let name = transactional_id(link, id, number);
        let found = cluster.describe_transaction(&name).await?;
        if found.is_none_or(|f| f.producer_id < 0 || f.state == "Dead") {
            break;
        }
        timeout.allocate(cluster, &name).await?;
    }
    Ok(())
}

/// Whether a producer id belongs to one of the link's slots on this partition.
pub(crate) async fn is_own(request: &Request, producer_id: i64) -> Result<bool, Refusal> {
    for first in (0..SLOTS_MAX).step_by(SLOTS_STEP) {
        let slots = describe(request, first..first + SLOTS_STEP).await?;
        if is_slot(&slots, producer_id) {
            return Ok(true);
        }
        if slots.iter().any(Option::is_none) {
            break;
        }
    }
    Ok(false)
}

/// Aborts what is open in the link's slots on one partition and waits for the markers; answers how many there were.
pub(super) async fn abort(
    cluster: &Cluster,
    link: &LinkName,
    id: &PartitionId,
) -> Result<usize, Error> {
    let mut aborted = 0;
    let mut open: Vec<i64> = producers(cluster, id)
        .await?
        .iter()
        .filter(|p| p.transaction_start_offset >= 0)
        .map(|p| p.producer_id)
        .collect();
    for number in 0..SLOTS_MAX {
        if open.is_empty() {
            break;
        }
        let name = transactional_id(link, id, number);
        let Some(found) = cluster.describe_transaction(&name).await? else {
            break;
        };
        if !open.contains(&found.producer_id) {
            continue;
        }
        open.retain(|producer_id| *producer_id != found.producer_id);
        if found.state == "Ongoing" {
            let identity = ProducerIdentity {
                producer_id: found.producer_id,
                epoch: found.epoch,
            };
            cluster.end_transaction(&name, identity, false).await?;
            aborted += 1;
        }
    }
    for _ in 0..ABORT_MARKERS {
        if calls::undecided(cluster, std::slice::from_ref(id))
            .await
            .is_empty()
        {
            break;
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
    Ok(aborted)
}
