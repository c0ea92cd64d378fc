//! The only unsafe code of the wrapper: what librdkafka offers and rust-rdkafka does not wrap.
#![allow(unsafe_code)]

mod id_headers;
mod lending;

use std::ffi::{CStr, CString};
use std::mem;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rdkafka::TopicPartitionList;
use rdkafka::client::{Client, ClientContext};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::BorrowedMessage;
use rdkafka_sys as sys;

pub(crate) use self::id_headers::SentHeaders;
#[cfg(test)]
pub(crate) use self::lending::tests::watched_payload;
pub(crate) use self::lending::{Lender, Lent, Loans, Report, Topic};
use crate::record::Header;

/// Destroys a consumer without the close protocol: no final commit, no leave, no wait for a coordinator that may be
/// gone for good. Its member disappears from the group when the session times out.
///
/// `BaseConsumer::drop` runs the close protocol and has no deadline; it has been seen to hang for minutes with the
/// coordinator gone (rust-rdkafka #611, #597), and librdkafka before 2.14.2 can crash in it. librdkafka documents
/// `rd_kafka_destroy_flags(NO_CONSUMER_CLOSE)` for this case (INTRODUCTION.md, "Termination"). It still joins
/// librdkafka's threads, so call it on a thread that may be slow.
///
/// Costs one queue handle of librdkafka (about 200 bytes) per call, because rust-rdkafka keeps it in a private field.
pub(crate) fn destroy_without_close<C: ConsumerContext>(consumer: BaseConsumer<C>) {
    let native = consumer.client().native_ptr();
    let context = Arc::as_ptr(consumer.context());
    // `Drop` would run the close protocol. The group queue's handle leaks; its content is purged by the destroy below.
    mem::forget(consumer);
    // SAFETY: `native` comes from a live consumer that this function owned and has just forgotten, so nobody destroys
    // it twice. Messages borrow the consumer, hence none is alive; the wrapper never splits partition queues. This is
    // no librdkafka thread: with the event API callbacks run only inside `poll`.
    unsafe { sys::rd_kafka_destroy_flags(native, sys::RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE) };
    // SAFETY: the forgotten consumer held one strong count of the context, made by `Arc::new` in rust-rdkafka; librdkafka,
    // which knew its address as the opaque, is gone.
    unsafe { Arc::decrement_strong_count(context) };
}

/// Gives a running client a new SASL user name and password (PLAIN and SCRAM). Used at the next authentication; live
/// connections stay.
pub(crate) fn set_sasl_credentials<C: ClientContext>(
    client: &Client<C>,
    username: &str,
    password: &str,
) -> Result<(), String> {
    let username = CString::new(username).map_err(|_| "the user name has a NUL byte".to_owned())?;
    let password = CString::new(password).map_err(|_| "the password has a NUL byte".to_owned())?;
    // SAFETY: the client is borrowed, hence alive; librdkafka copies both strings under its own lock.
    let error = unsafe {
        sys::rd_kafka_sasl_set_credentials(
            client.native_ptr(),
            username.as_ptr(),
            password.as_ptr(),
        )
    };
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: a non-null error is ours to read and to destroy; its text is a NUL-terminated string that lives as long.
    unsafe {
        let text = CStr::from_ptr(sys::rd_kafka_error_string(error))
            .to_string_lossy()
            .into_owned();
        sys::rd_kafka_error_destroy(error);
        Err(text)
    }
}

/// librdkafka's hashes of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyHash {
    Crc32,
    /// Java's.
    Murmur2,
    Fnv1a,
}

/// The partition of a key, by librdkafka's own function, so that it is the same as without the wrapper. `partitions` must be
/// positive.
pub(crate) fn partition_of_key(hash: KeyHash, key: Option<&[u8]>, partitions: i32) -> i32 {
    let function = match hash {
        KeyHash::Crc32 => sys::rd_kafka_msg_partitioner_consistent,
        KeyHash::Murmur2 => sys::rd_kafka_msg_partitioner_murmur2,
        KeyHash::Fnv1a => sys::rd_kafka_msg_partitioner_fnv1a,
    };
    let (address, len) = key.map_or((std::ptr::null(), 0), |key| (key.as_ptr(), key.len()));
    let (topic, none) = (std::ptr::null(), std::ptr::null_mut());
    // SAFETY: these three only hash the key's bytes, which are borrowed, and take the remainder; topic and opaques are not
    // looked at (rdkafka_msg.c).
    unsafe { function(topic, address.cast(), len, partitions.max(1), none, none) }
}

/// Whether a broker answers a question for the brokers and the topics that the client knows. Makes it connect.
pub(crate) fn is_answered<C: ClientContext>(client: &Client<C>, timeout: Duration) -> bool {
    let timeout = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    let mut metadata = std::ptr::null();
    // SAFETY: the client is borrowed, hence alive; no topic handle is given, and the target is valid for writes.
    let code = unsafe {
        sys::rd_kafka_metadata(
            client.native_ptr(),
            0,
            std::ptr::null_mut(),
            &mut metadata,
            timeout,
        )
    };
    if !metadata.is_null() {
        // SAFETY: set by the call above, hence ours to destroy, once.
        unsafe { sys::rd_kafka_metadata_destroy(metadata) };
    }
    code == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR
}

/// Gives a client addresses to begin at, besides those that it has.
pub(crate) fn add_brokers<C: ClientContext>(client: &Client<C>, bootstrap: &str) {
    let Ok(list) = CString::new(bootstrap) else {
        return;
    };
    // SAFETY: the client is borrowed, hence alive; librdkafka copies the list.
    unsafe { sys::rd_kafka_brokers_add(client.native_ptr(), list.as_ptr()) };
}

/// Waits until every record has been answered for, as long as somebody else polls. rust-rdkafka's own `flush` polls in slices
/// of 100 ms and may take that long for nothing.
pub(crate) fn flush<C: ClientContext>(client: &Client<C>, timeout: Duration) -> bool {
    let timeout = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: the client is borrowed, hence alive.
    let code = unsafe { sys::rd_kafka_flush(client.native_ptr(), timeout) };
    code == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR
}

/// The headers of a message. rust-rdkafka's own accessor panics on a header name that is not UTF-8, which any producer
/// may send; here such bytes are replaced.
pub(crate) fn headers(message: &BorrowedMessage<'_>) -> Vec<Header> {
    let mut list = std::ptr::null_mut();
    // SAFETY: the message is borrowed, hence alive; the header list belongs to it and is only read.
    let found = unsafe { sys::rd_kafka_message_headers(message.ptr(), &mut list) };
    if found != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR || list.is_null() {
        return Vec::new();
    }
    // SAFETY: as above.
    let count = unsafe { sys::rd_kafka_header_cnt(list) };
    let mut headers = Vec::with_capacity(count);
    for index in 0..count {
        let (mut name, mut value, mut size) = (std::ptr::null(), std::ptr::null(), 0_usize);
        // SAFETY: the list is alive and the three targets are valid for writes.
        let got =
            unsafe { sys::rd_kafka_header_get_all(list, index, &mut name, &mut value, &mut size) };
        if got != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR || name.is_null() {
            break;
        }
        // SAFETY: librdkafka terminates header names by NUL.
        let key = unsafe { CStr::from_ptr(name) }
            .to_string_lossy()
            .into_owned();
        let value = (!value.is_null()).then(|| {
            // SAFETY: librdkafka gives the address and length of the value, which lives as long as the message.
            Bytes::copy_from_slice(unsafe { std::slice::from_raw_parts(value.cast::<u8>(), size) })
        });
        headers.push(Header { key, value });
    }
    headers
}

/// Where the answers to a consumer's commits come in.
///
/// rust-rdkafka 0.39 calls `commit_callback` only if librdkafka's own callback is configured, which it never does, so
/// the outcome of an asynchronous commit would stay unknown. A queue of one's own gets it.
#[derive(Debug)]
pub(crate) struct CommitQueue(NonNull<sys::rd_kafka_queue_t>);

// SAFETY: librdkafka's queues are thread safe.
unsafe impl Send for CommitQueue {}

impl CommitQueue {
    /// A queue of this consumer. It must be dropped before the consumer is destroyed.
    pub(crate) fn new<C: ConsumerContext>(consumer: &BaseConsumer<C>) -> Option<Self> {
        // SAFETY: the client is borrowed, hence alive.
        NonNull::new(unsafe { sys::rd_kafka_queue_new(consumer.client().native_ptr()) }).map(Self)
    }

    /// Sends a commit and does not wait. `number` comes back with the answer.
    pub(crate) fn commit<C: ConsumerContext>(
        &self,
        consumer: &BaseConsumer<C>,
        offsets: &TopicPartitionList,
        number: u64,
    ) -> Result<(), RDKafkaErrorCode> {
        let opaque = std::ptr::without_provenance_mut(usize::try_from(number).unwrap_or(0));
        // SAFETY: client, list and queue are alive; librdkafka copies the list. No callback: answers come as events. Nobody
        // takes the opaque for an address.
        let code = unsafe {
            sys::rd_kafka_commit_queue(
                consumer.client().native_ptr(),
                offsets.ptr(),
                self.0.as_ptr(),
                None,
                opaque,
            )
        };
        match code {
            sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
            code => Err(code.into()),
        }
    }

    /// The next answer, if there is one, with the number of its commit.
    pub(crate) fn answer(&self) -> Option<(u64, Result<(), RDKafkaErrorCode>)> {
        // SAFETY: the queue is alive; a non-null event is ours to read and to destroy, its list belongs to it.
        unsafe {
            let event = sys::rd_kafka_queue_poll(self.0.as_ptr(), 0);
            if event.is_null() {
                return None;
            }
            let number = sys::rd_kafka_event_opaque(event).addr() as u64;
            let mut code = sys::rd_kafka_event_error(event);
            let list = sys::rd_kafka_event_topic_partition_list(event);
            if code == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR && !list.is_null() {
                let count = usize::try_from((*list).cnt).unwrap_or(0);
                let failed = (0..count)
                    .map(|index| (*(*list).elems.add(index)).err)
                    .find(|err| *err != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR);
                code = failed.unwrap_or(code);
            }
            sys::rd_kafka_event_destroy(event);
            let answer = match code {
                sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
                code => Err(code.into()),
            };
            Some((number, answer))
        }
    }
}

impl Drop for CommitQueue {
    fn drop(&mut self) {
        // SAFETY: made by `rd_kafka_queue_new` and destroyed only here; answers still to come are dropped by librdkafka.
        unsafe { sys::rd_kafka_queue_destroy(self.0.as_ptr()) };
    }
}

/// One entry of an answer to an offset fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CommittedOffset {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    /// `None`: the group has no offset there.
    pub(crate) offset: Option<i64>,
    pub(crate) metadata: Vec<u8>,
    pub(crate) failed: bool,
}

/// Reads a partition list. rust-rdkafka's accessors panic on commit metadata that is not UTF-8, which any member of the
/// group may have written.
pub(crate) fn committed_offsets(list: &TopicPartitionList) -> Vec<CommittedOffset> {
    let native = list.ptr();
    // SAFETY: the list is borrowed, hence alive; librdkafka keeps `cnt` entries at `elems`.
    let entries = unsafe {
        let (elems, count) = ((*native).elems, (*native).cnt);
        match usize::try_from(count) {
            Ok(count) if count > 0 && !elems.is_null() => std::slice::from_raw_parts(elems, count),
            _ => return Vec::new(),
        }
    };
    entries
        .iter()
        .map(|entry| CommittedOffset {
            // SAFETY: the topic is a NUL-terminated string that belongs to the list.
            topic: unsafe { CStr::from_ptr(entry.topic) }
                .to_string_lossy()
                .into_owned(),
            partition: entry.partition,
            offset: (entry.offset >= 0).then_some(entry.offset),
            metadata: if entry.metadata.is_null() {
                Vec::new()
            } else {
                // SAFETY: librdkafka gives the address and length of the metadata, which belongs to the list.
                unsafe {
                    std::slice::from_raw_parts(entry.metadata.cast::<u8>(), entry.metadata_size)
                }
                .to_vec()
            },
            failed: entry.err != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR,
        })
        .collect()
}
