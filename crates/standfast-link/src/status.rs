//! What the data threads publish about each partition: plain atomics, written on every answer and read by anyone without waiting.

use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::description::{MirrorTopicError, PartitionLag, PartitionState, StoppedMirror};

/// The source counts as silent when it has not answered for this long; it answers a waiting fetch after `fetch.max_wait` at the latest.
const SOURCE_SILENT_AFTER: Duration = Duration::from_secs(3);

const UNKNOWN: i64 = -1;

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

/// The published side of one partition.
#[derive(Debug)]
pub(crate) struct PartitionStatus {
    state: AtomicU8,
    state_before_stop: AtomicU8,
    state_time_ms: AtomicI64,
    position: AtomicI64,
    next_fetch: AtomicI64,
    source_end: AtomicI64,
    seed_target: AtomicI64,
    contact_ms: AtomicI64,
    caught_up_ms: AtomicI64,
    newest_timestamp: AtomicI64,
    pub(crate) bytes: AtomicU64,
    pub(crate) records: AtomicU64,
    trouble: Mutex<Option<(MirrorTopicError, String)>>,
}

impl PartitionStatus {
    pub(crate) fn new() -> Self {
        let unknown = || AtomicI64::new(UNKNOWN);
        Self {
            state: AtomicU8::new(PartitionState::Starting as u8),
            state_before_stop: AtomicU8::new(PartitionState::Starting as u8),
            state_time_ms: AtomicI64::new(now_ms()),
            position: unknown(),
            next_fetch: unknown(),
            source_end: unknown(),
            seed_target: unknown(),
            contact_ms: unknown(),
            caught_up_ms: unknown(),
            newest_timestamp: unknown(),
            bytes: AtomicU64::new(0),
            records: AtomicU64::new(0),
            trouble: Mutex::new(None),
        }
    }

    pub(crate) fn state(&self) -> PartitionState {
        state_of(self.state.load(Relaxed))
    }

    pub(crate) fn state_time_ms(&self) -> i64 {
        self.state_time_ms.load(Relaxed)
    }

    /// Enters a state; the error of the state before is kept only if one is given.
    pub(crate) fn enter(&self, state: PartitionState, trouble: Option<(MirrorTopicError, String)>) {
        let before = self.state.swap(state as u8, Relaxed);
        if before != state as u8 {
            self.state_time_ms.store(now_ms(), Relaxed);
            if state == PartitionState::Stopped {
                self.state_before_stop.store(before, Relaxed);
            }
        }
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    pub(crate) fn trouble(&self) -> Option<(MirrorTopicError, String)> {
        self.trouble
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The destination holds the mirror up to `position`.
    pub(crate) fn set_position(&self, position: i64) {
        self.position.store(position, Relaxed);
        self.note_caught_up();
    }

    /// Up to where the destination is being filled.
    pub(crate) fn set_seed_target(&self, offset: i64) {
        self.seed_target.store(offset, Relaxed);
    }

    pub(crate) fn set_next_fetch(&self, offset: i64) {
        self.next_fetch.store(offset, Relaxed);
    }

    /// The source answered and its high watermark is `end`.
    pub(crate) fn source_answered(&self, end: i64) {
        self.source_end.store(end, Relaxed);
        self.contact_ms.store(now_ms(), Relaxed);
        self.note_caught_up();
    }

    pub(crate) fn mirrored(&self, bytes: u64, records: u64, newest_timestamp: i64) {
        self.bytes.fetch_add(bytes, Relaxed);
        self.records.fetch_add(records, Relaxed);
        self.newest_timestamp.store(newest_timestamp, Relaxed);
    }

    fn note_caught_up(&self) {
        let end = self.source_end.load(Relaxed);
        if end != UNKNOWN && self.position.load(Relaxed) >= end {
            self.caught_up_ms
                .store(self.contact_ms.load(Relaxed), Relaxed);
        }
    }

    pub(crate) fn position(&self) -> Option<i64> {
        known(&self.position)
    }

    /// Timestamp of what was mirrored last.
    pub(crate) fn newest_timestamp(&self) -> Option<i64> {
        known(&self.newest_timestamp)
    }

    pub(crate) fn source_end(&self) -> Option<i64> {
        known(&self.source_end)
    }

    /// The position, if nothing is queued or in flight behind it.
    pub(crate) fn idle_position(&self) -> Option<i64> {
        let position = self.position()?;
        (self.state() == PartitionState::Active && self.next_fetch.load(Relaxed) == position)
            .then_some(position)
    }

    pub(crate) fn lag(&self) -> Option<i64> {
        Some((self.source_end()? - self.position()?).max(0))
    }

    /// See [`PartitionLag::lag_seconds`].
    pub(crate) fn lag_seconds(&self) -> Option<f64> {
        let now = now_ms();
        let contact = known(&self.contact_ms);
        let fresh = contact.is_some_and(|at| {
            now - at <= i64::try_from(SOURCE_SILENT_AFTER.as_millis()).unwrap_or(i64::MAX)
        });
        if fresh && self.lag() == Some(0) {
            return Some(0.0);
        }
        let since = known(&self.caught_up_ms).or_else(|| known(&self.newest_timestamp))?;
        Some(((now - since).max(0)) as f64 / 1000.0)
    }

    fn lag_bytes(&self) -> Option<i64> {
        let lag = self.lag()?;
        let (bytes, records) = (self.bytes.load(Relaxed), self.records.load(Relaxed));
        if lag == 0 {
            return Some(0);
        }
        (records > 0).then(|| (lag as f64 * bytes as f64 / records as f64) as i64)
    }

    pub(crate) fn describe(&self, partition: i32) -> PartitionLag {
        PartitionLag {
            partition,
            lag: self.lag(),
            lag_bytes: self.lag_bytes(),
            lag_seconds: self.lag_seconds(),
            last_source_fetch_offset: self.next_fetch.load(Relaxed).max(0),
            source_log_end_offset: self.source_end(),
            destination_log_end_offset: self.position(),
            seed_target_offset: known(&self.seed_target)
                .filter(|_| self.state() == PartitionState::Seeding),
            state: self.state(),
            error: self.trouble().map(|(_, text)| text),
            last_source_contact_ms: known(&self.contact_ms),
            member: None,
        }
    }

    /// As [`describe`](Self::describe), with the destination's log end as asked from it after a stop.
    pub(crate) fn describe_after_stop(
        &self,
        partition: i32,
        destination_end: Result<i64, String>,
        aborted: Result<usize, String>,
    ) -> PartitionLag {
        let stopped = self.describe_stopped("", partition, true, destination_end, aborted);
        PartitionLag {
            lag: stopped.rpo_records,
            lag_seconds: stopped.rpo_seconds,
            destination_log_end_offset: stopped.destination_log_end_offset,
            error: stopped.error,
            ..self.describe(partition)
        }
    }

    /// The answer of a stop, with the destination's log end as asked from it.
    pub(crate) fn describe_stopped(
        &self,
        topic: &str,
        partition: i32,
        drained: bool,
        destination_end: Result<i64, String>,
        aborted: Result<usize, String>,
    ) -> StoppedMirror {
        let state_before = match self.state() {
            PartitionState::Stopped => state_of(self.state_before_stop.load(Relaxed)),
            other => other,
        };
        let trouble = self.trouble().map(|(_, text)| text);
        let failed = match state_before {
            PartitionState::Failed => true,
            // So says the agent that had it.
            PartitionState::Elsewhere => trouble.is_some(),
            _ => false,
        };
        let (end, error) = match destination_end {
            Ok(end) => ((!failed).then_some(end), trouble),
            Err(text) => (
                None,
                Some(trouble.map_or_else(|| text.clone(), |t| format!("{t}; {text}"))),
            ),
        };
        let aborted_transactions = *aborted.as_ref().unwrap_or(&0);
        let note = match aborted {
            Ok(0) => None,
            Ok(count) => Some(format!(
                "{count} transactions of the source were mirrored in part and are aborted on the destination"
            )),
            Err(text) => Some(format!(
                "a transaction that was mirrored in part may still be open on the destination: {text}"
            )),
        };
        let error = match (error, note) {
            (Some(error), Some(note)) => Some(format!("{error}; {note}")),
            (error, note) => error.or(note),
        };
        StoppedMirror {
            aborted_transactions,
            topic: topic.to_owned(),
            partition,
            destination_log_end_offset: end,
            source_log_end_offset: self.source_end(),
            rpo_records: self
                .source_end()
                .zip(end)
                .map(|(source, destination)| (source - destination).max(0)),
            rpo_seconds: self.lag_seconds(),
            last_source_contact_ms: known(&self.contact_ms),
            drained,
            state_before,
            error,
        }
    }
}

fn known(value: &AtomicI64) -> Option<i64> {
    Some(value.load(Relaxed)).filter(|v| *v != UNKNOWN)
}

fn state_of(value: u8) -> PartitionState {
    use PartitionState::{
        Active, Elsewhere, Failed, Paused, Retrying, Seeding, SourceUnavailable, Starting, Stopped,
    };
    [
        Starting,
        Seeding,
        Active,
        Retrying,
        SourceUnavailable,
        Failed,
        Stopped,
        Paused,
        Elsewhere,
    ]
    .into_iter()
    .find(|s| *s as u8 == value)
    .unwrap_or(Starting)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_is_unknown_until_both_ends_are_known() {
        let status = PartitionStatus::new();
        assert_eq!(
            (status.lag(), status.lag_seconds(), status.lag_bytes()),
            (None, None, None)
        );
        status.set_position(10);
        status.source_answered(15);
        assert_eq!((status.lag(), status.lag_bytes()), (Some(5), None));
        status.mirrored(1000, 10, now_ms() - 60_000);
        assert_eq!(status.lag_bytes(), Some(500));
        assert!(status.lag_seconds().is_some_and(|s| s >= 59.0));
        status.set_position(15);
        assert_eq!((status.lag(), status.lag_seconds()), (Some(0), Some(0.0)));
    }
}
