//! Produce v8, made by hand: the request is scattered over small heads and the untouched record bytes, so nothing is copied.
//!
//! v8 is the last version with fixed-size fields (no compact arrays, no tags) and is spoken by every broker since Kafka 2.4
//! (4.x included; KIP-896 removed only v0–v2). Source: <https://kafka.apache.org/protocol.html#The_Messages_Produce>.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use crate::batch::{HEADER_LEN, RestampedBatch};
use crate::decode::{Malformed, Reader, Text};
use crate::error::Error;

/// API key of Produce.
pub const API_KEY: i16 = 0;
/// The version of the requests made here.
pub const VERSION: i16 = 8;
const NAME: &str = "Produce";
/// Bytes of one partition in the answer, without record errors: index, code, three offsets and times, array and null message.
const PARTITION_RESULT_LEN: usize = 4 + 2 + 8 + 8 + 8 + 4 + 2;

/// Encodes one Produce request as the parts of a frame, for [`FrameWriter::write`](crate::FrameWriter::write).
///
/// `acks` is -1 for all in-sync replicas. Each part is `(topic, partition, batch)`; parts of one topic must stand next to
/// each other. A broker accepts one batch per partition and request (two give INVALID_RECORD, 87).
///
/// The heads of the request share one allocation; the bodies are slices of the frames they were fetched in.
pub fn encode(
    correlation_id: i32,
    client_id: &str,
    acks: i16,
    timeout_ms: i32,
    transactional_id: Option<&str>,
    parts: &[(&str, i32, RestampedBatch)],
) -> Vec<Bytes> {
    let names: usize = parts.iter().map(|(topic, _, _)| topic.len() + 6).sum();
    let fixed = 32 + client_id.len() + transactional_id.map_or(0, str::len);
    let mut head = BytesMut::with_capacity(fixed + names + parts.len() * (HEADER_LEN + 12));
    let mut frame = Vec::with_capacity(2 * parts.len() + 1);

    head.put_i16(API_KEY);
    head.put_i16(VERSION);
    head.put_i32(correlation_id);
    put_string(&mut head, Some(client_id));
    put_string(&mut head, transactional_id);
    head.put_i16(acks);
    head.put_i32(timeout_ms);

    let topics = || parts.chunk_by(|a, b| a.0 == b.0);
    head.put_i32(length(topics().count()));
    for topic in topics() {
        put_string(&mut head, topic.first().map(|part| part.0));
        head.put_i32(length(topic.len()));
        for (_, partition, batch) in topic {
            head.put_i32(*partition);
            head.put_i32(length(batch.total_len()));
            head.put_slice(&batch.header);
            frame.push(head.split().freeze());
            frame.push(batch.body.clone());
        }
    }
    if !head.is_empty() {
        frame.push(head.freeze());
    }
    frame
}

/// The answer to one Produce request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProduceResults {
    /// Correlation id of the request that this answers.
    pub correlation_id: i32,
    /// One result per partition of the request.
    pub partitions: Vec<ProduceResult>,
    /// How long the broker throttled this client, in milliseconds.
    pub throttle_ms: i32,
}

/// The outcome of one batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProduceResult {
    /// Topic name.
    pub topic: Text,
    /// Partition.
    pub partition: i32,
    /// Kafka's error code, 0 if the batch is in the log.
    pub error_code: i16,
    /// Offset that the first record has got; -1 on error.
    pub base_offset: i64,
    /// Time of append in milliseconds since 1970 if the topic uses it, else -1.
    pub log_append_time: i64,
    /// First offset of the partition; -1 if unknown.
    pub log_start_offset: i64,
    /// The broker's words on an error.
    pub error_message: Text,
}

/// Decodes a whole answer frame, correlation id included.
///
/// # Errors
/// [`Error::Decode`] if the frame is not a Produce v8 answer. `broker` in the error is empty: the caller knows it.
pub fn decode(frame: Bytes) -> Result<ProduceResults, Error> {
    results(frame).map_err(|malformed| Error::Decode {
        broker: Arc::from(""),
        api: NAME,
        version: VERSION,
        reason: malformed.0.to_owned(),
    })
}

fn results(frame: Bytes) -> Result<ProduceResults, Malformed> {
    let mut frame = Reader::new(frame);
    let correlation_id = frame.i32()?;
    let mut partitions = Vec::new();
    for _ in 0..frame.array(false, 6)? {
        let topic = frame.string(false)?;
        let count = frame.array(false, PARTITION_RESULT_LEN)?;
        partitions.reserve(count);
        for _ in 0..count {
            partitions.push(result(&mut frame, topic.clone())?);
        }
    }
    let throttle_ms = frame.i32()?;
    if frame.remaining() != 0 {
        return Err(Malformed("bytes are left over"));
    }
    Ok(ProduceResults {
        correlation_id,
        partitions,
        throttle_ms,
    })
}

fn result(frame: &mut Reader, topic: Text) -> Result<ProduceResult, Malformed> {
    let mut result = ProduceResult {
        topic,
        partition: frame.i32()?,
        error_code: frame.i16()?,
        base_offset: frame.i64()?,
        log_append_time: frame.i64()?,
        log_start_offset: frame.i64()?,
        error_message: Text::default(),
    };
    for _ in 0..frame.array(false, 6)? {
        frame.i32()?; // index of the record in the batch
        let message = frame.string(false)?;
        if result.error_message.is_empty() {
            result.error_message = message;
        }
    }
    let message = frame.string(false)?;
    if !message.is_empty() {
        result.error_message = message;
    }
    Ok(result)
}

/// A nullable string. Kafka's own names are far shorter; bytes beyond an i16 length are cut.
pub(crate) fn put_string(head: &mut BytesMut, text: Option<&str>) {
    match text {
        Some(text) => {
            let text = text
                .as_bytes()
                .get(..i16::MAX as usize)
                .unwrap_or(text.as_bytes());
            head.put_i16(text.len() as i16);
            head.put_slice(text);
        }
        None => head.put_i16(-1),
    }
}

/// Lengths here are bounded by the frame, which `FrameWriter` refuses above 2 GiB.
fn length(length: usize) -> i32 {
    i32::try_from(length).unwrap_or(i32::MAX)
}
