//! The part that reads: joins the group, and reads ahead of the application.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;

use super::{ABORT, BATCH, Ended, Generation};
use crate::consumer::{Message, failure, is_link_filler};
use crate::error::Error;
use crate::ffi;
use crate::stats::add;
use crate::transaction::clients::{InputContext, Reader};
use crate::transaction::flow::{Item, Reason};

/// How long the application may leave the queue full before the partitions are paused. Afterwards polling goes on, so that the
/// group sees a live member.
const PAUSE_AFTER: Duration = Duration::from_millis(500);

/// librdkafka's own events, such as its log lines, that are taken per round beside the records: `poll` serves one and says that there
/// was nothing.
const EVENTS: usize = 16;

/// One question to the cluster.
const ASK: Duration = Duration::from_secs(3);

impl Generation {
    /// Joins the group, unless it has no offset on this cluster at all and none may be made up: offsets can only be
    /// synchronised into a group without members.
    pub(super) fn may_join(&self, told: &mut bool) -> Result<bool, Ended> {
        let Some(reader) = &self.clients.reader else {
            return Ok(true);
        };
        let topics: Vec<&str> = self.shared.topics.iter().map(String::as_str).collect();
        let must_wait = self.shared.policy == crate::consumer::MissingOffset::Error;
        if must_wait && !has_any_offset(reader, &topics).unwrap_or(false) {
            if !std::mem::replace(told, true) {
                tracing::warn!(
                    client = self.shared.name.as_str(), cluster = %self.target.cluster, group = self.shared.group,
                    "the group has no committed offset on this cluster; it is joined when its offsets have arrived, or choose \
                     on_missing_offset(Earliest or Latest)"
                );
            }
            return Ok(false);
        }
        reader
            .subscribe(&topics)
            .map_err(|error| Ended::Broken(error.to_string()))?;
        Ok(true)
    }

    /// Reads ahead; whether there was something to read.
    pub(super) fn read(&mut self, full_since: &mut Option<Instant>) -> Result<bool, Ended> {
        let Some(reader) = &self.clients.reader else {
            return Ok(false);
        };
        let (has_room, half_empty) = {
            let flow = self.shared.flow();
            (flow.has_room(), flow.is_half_empty())
        };
        if half_empty && full_since.take().is_some() {
            reader.context().state().set_paused(reader, false);
        }
        if !has_room && full_since.get_or_insert_with(Instant::now).elapsed() < PAUSE_AFTER {
            return Ok(false);
        }
        if !has_room {
            reader.context().state().set_paused(reader, true);
        }
        let (mut any, mut events) = (false, 0);
        let mut version = reader.context().state().version;
        while self.items.len() < BATCH {
            let polled = reader.poll(Duration::ZERO);
            let now = reader.context().state().version;
            if std::mem::replace(&mut version, now) != now {
                // Positions are new: what was read before would leave a gap.
                self.items.clear();
            }
            match polled {
                // Nothing, or one of librdkafka's own events, such as its log lines.
                None if events < EVENTS => events += 1,
                None => break,
                Some(Ok(message)) => {
                    any = true;
                    let context = reader.context();
                    let mut state = context.state();
                    let Some(partition) =
                        state.read(message.topic(), message.partition(), message.offset())
                    else {
                        add(&self.shared.fleet.counters.records_discarded, 1);
                        continue;
                    };
                    self.items.push(if is_link_filler(&message) {
                        Item::Filler {
                            key: (Arc::clone(&partition.topic), partition.number),
                            offset: message.offset(),
                        }
                    } else {
                        Item::Record(Message::copy(&message, partition, &context.source, false))
                    });
                }
                Some(Err(error)) => {
                    let failure = self.read_failed(reader, error)?;
                    self.items.extend(failure.map(Item::Failure));
                }
            }
        }
        if !self.items.is_empty() {
            let items = &mut self.items;
            self.shared
                .change_of(self.number, |flow| (flow.push(items), None));
            items.clear();
        }
        let mut state = reader.context().state();
        state.retry_held(reader);
        match state.broken.take() {
            Some(reason) => Err(Ended::Broken(reason)),
            None => {
                drop(state);
                self.apply_new_login();
                Ok(any)
            }
        }
    }

    fn read_failed(&self, reader: &Reader, error: KafkaError) -> Result<Option<Error>, Ended> {
        use RDKafkaErrorCode as Code;
        if let KafkaError::MessageConsumptionFatal(code) = error {
            return Err(Ended::Broken(code.to_string()));
        }
        match error.rdkafka_error_code() {
            Some(Code::Fatal) => Err(Ended::Broken(error.to_string())),
            Some(Code::AutoOffsetReset | Code::OffsetOutOfRange) => {
                let context: &InputContext = reader.context();
                let mut state = context.state();
                state.abort(context, Reason::Kafka(error.to_string()), ABORT);
                state.check_positions(reader);
                Ok(None)
            }
            _ => Ok(failure(error, &self.shared.group, &self.target.cluster)),
        }
    }

    fn apply_new_login(&self) {
        // A new password is used at the next authentication; the driver makes new clients for all other changes.
        let target = self.shared.fleet.targets.borrow().clone();
        let Some(target) = target.filter(|target| target.same_client(&self.target)) else {
            return;
        };
        self.clients.follow_login(&target);
    }
}

fn has_any_offset(reader: &Reader, topics: &[&str]) -> Result<bool, KafkaError> {
    let mut list = TopicPartitionList::new();
    for topic in topics {
        let metadata = reader.fetch_metadata(Some(topic), ASK)?;
        for partition in metadata
            .topics()
            .iter()
            .flat_map(|found| found.partitions())
        {
            list.add_partition(topic, partition.id());
        }
    }
    if list.count() == 0 {
        return Ok(true);
    }
    let offsets = ffi::committed_offsets(&reader.committed_offsets(list, ASK)?);
    Ok(offsets.iter().any(|entry| entry.offset.is_some()))
}
