//! The RecordBatch header (magic 2) and what the link changes in it. No record is parsed, no payload is copied.
//!
//! Source: <https://kafka.apache.org/documentation/#recordbatch>. The CRC-32C covers bytes 21 to the end of the batch;
//! base offset, length, leader epoch and magic lie before it.

use std::fmt;

use bytes::Bytes;

use crate::crc::{crc32c, replace_front};

/// Length of a record batch header in bytes.
pub const HEADER_LEN: usize = 61;

/// Bytes of a batch that its length field does not count: base offset and the length itself.
const LENGTH_OVERHEAD: usize = 12;
/// First byte that the CRC covers.
const CRC_START: usize = 21;
/// Where the magic byte lies; the same in every format since Kafka 0.8.
const MAGIC_AT: usize = 16;

/// The header of one record batch, decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHeader {
    /// Offset of the first record.
    pub base_offset: i64,
    /// Bytes that follow the length field.
    pub batch_length: i32,
    /// Leader epoch of the broker that appended the batch; -1 from a producer.
    pub partition_leader_epoch: i32,
    /// Format version; always 2 here.
    pub magic: i8,
    /// CRC-32C of bytes 21 to the end, as the header states it. [`RawBatch::verify_crc`] checks it.
    pub crc: u32,
    /// Compression, timestamp type and flags.
    pub attributes: Attributes,
    /// Offset of the last record minus `base_offset`. Compaction keeps it.
    pub last_offset_delta: i32,
    /// Timestamp of the first record, in milliseconds since 1970. With the delete-horizon flag it is the horizon instead.
    pub base_timestamp: i64,
    /// Highest timestamp in the batch, in milliseconds since 1970.
    pub max_timestamp: i64,
    /// Producer id, -1 if the producer is not idempotent.
    pub producer_id: i64,
    /// Producer epoch, -1 if the producer is not idempotent.
    pub producer_epoch: i16,
    /// Sequence number of the first record, -1 if the producer is not idempotent.
    pub base_sequence: i32,
    /// Number of records in the batch. Compaction lowers it, down to 0.
    pub record_count: i32,
}

impl BatchHeader {
    /// Decodes the header at the start of `bytes`. Does not check the CRC, nor that the whole batch is there.
    ///
    /// # Errors
    /// The header is cut off, of an older format, or holds a length, count or offset that no broker writes.
    pub fn parse(bytes: &[u8]) -> Result<Self, BatchError> {
        let Some(header) = bytes.first_chunk::<HEADER_LEN>() else {
            return Err(BatchError::HeaderTruncated {
                available: bytes.len(),
            });
        };
        let header = Self {
            base_offset: i64::from_be_bytes(at(header, 0)),
            batch_length: i32::from_be_bytes(at(header, 8)),
            partition_leader_epoch: i32::from_be_bytes(at(header, 12)),
            magic: i8::from_be_bytes(at(header, MAGIC_AT)),
            crc: u32::from_be_bytes(at(header, 17)),
            attributes: Attributes(u16::from_be_bytes(at(header, CRC_START))),
            last_offset_delta: i32::from_be_bytes(at(header, 23)),
            base_timestamp: i64::from_be_bytes(at(header, 27)),
            max_timestamp: i64::from_be_bytes(at(header, 35)),
            producer_id: i64::from_be_bytes(at(header, 43)),
            producer_epoch: i16::from_be_bytes(at(header, 51)),
            base_sequence: i32::from_be_bytes(at(header, 53)),
            record_count: i32::from_be_bytes(at(header, 57)),
        };
        header.check()
    }

    /// Offset that follows the batch: base offset + last offset delta + 1. The next fetch starts here, whatever compaction removed.
    pub fn next_offset(&self) -> i64 {
        // `check` has made sure that this cannot overflow for a parsed header.
        self.base_offset
            .saturating_add(i64::from(self.last_offset_delta))
            .saturating_add(1)
    }

    /// Length of the whole batch in bytes, header included.
    pub fn total_len(&self) -> usize {
        LENGTH_OVERHEAD + usize::try_from(self.batch_length).unwrap_or(0)
    }

    /// Whether every offset of the batch holds a record. A broker refuses to append any other batch (INVALID_RECORD, 87).
    pub fn is_dense(&self) -> bool {
        i64::from(self.last_offset_delta) + 1 == i64::from(self.record_count)
    }

    fn check(self) -> Result<Self, BatchError> {
        let base_offset = self.base_offset;
        if self.magic != 2 {
            return Err(BatchError::Format {
                base_offset,
                magic: self.magic,
            });
        }
        if usize::try_from(self.batch_length)
            .map_or(true, |length| length < HEADER_LEN - LENGTH_OVERHEAD)
        {
            return Err(BatchError::Length {
                base_offset,
                batch_length: self.batch_length,
            });
        }
        let fits = base_offset
            .checked_add(i64::from(self.last_offset_delta))
            .is_some_and(|last| last < i64::MAX);
        if base_offset < 0 || self.last_offset_delta < 0 || self.record_count < 0 || !fits {
            return Err(BatchError::Offsets {
                base_offset,
                last_offset_delta: self.last_offset_delta,
                record_count: self.record_count,
            });
        }
        Ok(self)
    }
}

/// The attribute bits of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Attributes(pub u16);

impl Attributes {
    /// Codec of the records (bits 0–2).
    pub fn compression(self) -> Compression {
        match self.0 & 0b111 {
            0 => Compression::None,
            1 => Compression::Gzip,
            2 => Compression::Snappy,
            3 => Compression::Lz4,
            4 => Compression::Zstd,
            other => Compression::Unknown(other as u8),
        }
    }

    /// Whether the timestamps were set by the producer or by the broker on append (bit 3).
    pub fn timestamp_type(self) -> TimestampType {
        if self.0 & (1 << 3) == 0 {
            TimestampType::CreateTime
        } else {
            TimestampType::LogAppendTime
        }
    }

    /// Whether the batch belongs to a transaction (bit 4).
    pub fn is_transactional(self) -> bool {
        self.0 & (1 << 4) != 0
    }

    /// Whether the batch holds a commit or abort marker instead of records (bit 5).
    pub fn is_control(self) -> bool {
        self.0 & (1 << 5) != 0
    }

    /// Whether the base timestamp is the time from which tombstones may be removed (bit 6, KIP-534).
    pub fn has_delete_horizon(self) -> bool {
        self.0 & (1 << 6) != 0
    }
}

impl fmt::Debug for Attributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Attributes({:#06x} {:?}", self.0, self.compression())?;
        for (set, name) in [
            (
                self.timestamp_type() == TimestampType::LogAppendTime,
                "log append time",
            ),
            (self.is_transactional(), "transactional"),
            (self.is_control(), "control"),
            (self.has_delete_horizon(), "delete horizon"),
        ] {
            if set {
                write!(f, ", {name}")?;
            }
        }
        f.write_str(")")
    }
}

/// Codec of a batch's records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not compressed.
    None,
    /// gzip.
    Gzip,
    /// snappy (with the xerial framing of Java clients, or without).
    Snappy,
    /// lz4 frame format.
    Lz4,
    /// zstd (KIP-110; needs Produce v7 and Fetch v10).
    Zstd,
    /// A codec that this version of Kafka does not define.
    Unknown(u8),
}

/// Who set the timestamps of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TimestampType {
    /// The producer.
    CreateTime,
    /// The broker, on append: every record has the batch's `max_timestamp`.
    LogAppendTime,
}

/// Walks the batches of `records`, the record bytes of one partition in a Fetch answer, without copying.
pub fn batches(records: Bytes) -> Batches {
    Batches {
        records,
        yielded: false,
    }
}

/// Iterator over the batches of a Fetch answer; made by [`batches`].
///
/// A broker cuts the answer at a byte limit, so the last batch may be cut off: it ends the iteration and is not an error.
/// The *first* batch is always whole (KIP-74), so a cut-off first batch is an error, else a reader would ask for it for ever.
/// After an error the iteration ends.
#[derive(Debug, Clone)]
pub struct Batches {
    records: Bytes,
    yielded: bool,
}

impl Iterator for Batches {
    type Item = Result<RawBatch, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.records.is_empty() {
            return None;
        }
        let taken = self.take();
        if !matches!(taken, Ok(Some(_))) {
            self.records = Bytes::new();
        }
        let first = !std::mem::replace(&mut self.yielded, true);
        match taken {
            Ok(Some(batch)) => Some(Ok(batch)),
            Err(error) if first || !error.is_truncation() => Some(Err(error)),
            Ok(None) | Err(_) => None,
        }
    }
}

impl Batches {
    fn take(&mut self) -> Result<Option<RawBatch>, BatchError> {
        // Older formats can be shorter than a v2 header: look at the magic byte first, it tells more than "cut off".
        if let Some(&magic) = self.records.get(MAGIC_AT)
            && magic != 2
        {
            return Err(BatchError::Format {
                base_offset: self
                    .records
                    .first_chunk()
                    .map_or(-1, |b| i64::from_be_bytes(*b)),
                magic: magic as i8,
            });
        }
        let header = BatchHeader::parse(&self.records)?;
        if header.total_len() > self.records.len() {
            return Err(BatchError::Truncated {
                base_offset: header.base_offset,
                batch_length: header.batch_length,
                available: self.records.len(),
            });
        }
        let bytes = self.records.split_to(header.total_len());
        Ok(Some(RawBatch { header, bytes }))
    }
}

/// One whole batch as it came from a broker.
#[derive(Clone, PartialEq, Eq)]
pub struct RawBatch {
    /// The decoded header.
    pub header: BatchHeader,
    /// The whole batch, header included: a slice of the frame it came in.
    pub bytes: Bytes,
}

impl RawBatch {
    /// Takes `bytes`, which must be exactly one batch.
    ///
    /// # Errors
    /// As [`BatchHeader::parse`], or `bytes` is shorter or longer than the header says.
    pub fn new(bytes: Bytes) -> Result<Self, BatchError> {
        let header = BatchHeader::parse(&bytes)?;
        if header.total_len() != bytes.len() {
            return Err(BatchError::Truncated {
                base_offset: header.base_offset,
                batch_length: header.batch_length,
                available: bytes.len(),
            });
        }
        Ok(Self { header, bytes })
    }

    /// Type of a control record (0 an abort marker, 1 a commit marker): the second number of its key. `None` if the batch is no control batch, or none that a broker writes.
    ///
    /// Source: <https://kafka.apache.org/documentation/#controlbatch>. A control batch holds one record and is never compressed.
    pub fn control_type(&self) -> Option<i16> {
        if !self.header.attributes.is_control() || self.header.record_count != 1 {
            return None;
        }
        let mut rest = self.bytes.get(HEADER_LEN..)?;
        skip_varint(&mut rest)?; // length
        rest = rest.get(1..)?; // attributes
        skip_varint(&mut rest)?; // timestamp delta
        skip_varint(&mut rest)?; // offset delta
        skip_varint(&mut rest)?; // key length
        let key = rest.first_chunk::<4>()?;
        Some(i16::from_be_bytes([key[2], key[3]]))
    }

    /// Checks the CRC over the whole batch: one pass over the bytes.
    ///
    /// # Errors
    /// [`BatchError::Crc`] if they differ.
    pub fn verify_crc(&self) -> Result<(), BatchError> {
        let computed = crc32c(self.bytes.get(CRC_START..).unwrap_or_default());
        if computed == self.header.crc {
            return Ok(());
        }
        Err(BatchError::Crc {
            base_offset: self.header.base_offset,
            stated: self.header.crc,
            computed,
        })
    }

    /// Checks the CRC (one pass) and makes the batch to produce on the destination: base offset 0, leader epoch -1 (a
    /// broker refuses a compressed batch with any other base offset), the given producer stamp, and a CRC that is
    /// derived from the checked one, without a second pass. Attributes, timestamps and records stay as they are.
    ///
    /// # Errors
    /// [`BatchError::Crc`] if the batch is damaged; it must then not be forwarded.
    pub fn restamp(&self, stamp: ProducerStamp) -> Result<RestampedBatch, BatchError> {
        self.verify_crc()?;
        let Some(old) = self.bytes.first_chunk::<HEADER_LEN>() else {
            return Err(BatchError::HeaderTruncated {
                available: self.bytes.len(),
            });
        };
        let body = self.bytes.slice(HEADER_LEN..);
        let mut header = *old;
        put(&mut header, 0, 0i64.to_be_bytes());
        put(&mut header, 12, (-1i32).to_be_bytes());
        put(&mut header, 43, stamp.producer_id.to_be_bytes());
        put(&mut header, 51, stamp.producer_epoch.to_be_bytes());
        put(&mut header, 53, stamp.base_sequence.to_be_bytes());
        let crc = replace_front(
            self.header.crc,
            &old[CRC_START..],
            &header[CRC_START..],
            body.len(),
        );
        put(&mut header, 17, crc.to_be_bytes());
        Ok(RestampedBatch { header, body })
    }
}

impl fmt::Debug for RawBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Payloads do not belong in logs.
        f.debug_struct("RawBatch")
            .field("header", &self.header)
            .field("len", &self.bytes.len())
            .finish()
    }
}

/// The producer fields to write into a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProducerStamp {
    /// Producer id, allocated by the cluster that the batch goes to.
    pub producer_id: i64,
    /// Epoch of that producer id.
    pub producer_epoch: i16,
    /// Sequence number of the first record; see [`sequence_of`].
    pub base_sequence: i32,
}

/// A batch ready to be produced: a new header and the untouched rest.
#[derive(Clone, PartialEq, Eq)]
pub struct RestampedBatch {
    /// The rewritten header.
    pub header: [u8; HEADER_LEN],
    /// Everything behind the header: a slice of the frame the batch came in.
    pub body: Bytes,
}

impl RestampedBatch {
    /// Length of the whole batch in bytes.
    pub fn total_len(&self) -> usize {
        HEADER_LEN + self.body.len()
    }
}

impl fmt::Debug for RestampedBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RestampedBatch")
            .field("header", &BatchHeader::parse(&self.header))
            .field("body_len", &self.body.len())
            .finish()
    }
}

/// The sequence number that stands for `offset`: `offset mod 2^31`. Kafka's sequences wrap from 2^31 - 1 to 0 in the same way.
pub fn sequence_of(offset: i64) -> i32 {
    (offset & 0x7FFF_FFFF) as i32
}

/// Why bytes are not a batch that can be forwarded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BatchError {
    /// Fewer bytes than a header has.
    #[error("record batch header is cut off: {available} of {HEADER_LEN} bytes")]
    HeaderTruncated {
        /// Bytes there are.
        available: usize,
    },
    /// The batch is shorter, or longer, than its header says.
    #[error(
        "record batch at offset {base_offset} states {batch_length} bytes after its length field, but {available} bytes are there in all"
    )]
    Truncated {
        /// Base offset of the batch.
        base_offset: i64,
        /// The length field.
        batch_length: i32,
        /// Bytes there are, header included.
        available: usize,
    },
    /// A message format older than Kafka 0.11 (or newer than this crate knows).
    #[error(
        "record batch at offset {base_offset} has message format {magic}, only format 2 (Kafka 0.11 and later) is supported"
    )]
    Format {
        /// Base offset of the batch.
        base_offset: i64,
        /// The magic byte.
        magic: i8,
    },
    /// A length that cannot even hold the header.
    #[error(
        "record batch at offset {base_offset} states an impossible length of {batch_length} bytes"
    )]
    Length {
        /// Base offset of the batch.
        base_offset: i64,
        /// The length field.
        batch_length: i32,
    },
    /// Offsets or counts that no broker writes.
    #[error(
        "record batch at offset {base_offset} states impossible offsets (last offset delta {last_offset_delta}, {record_count} records)"
    )]
    Offsets {
        /// Base offset of the batch.
        base_offset: i64,
        /// The last offset delta field.
        last_offset_delta: i32,
        /// The record count field.
        record_count: i32,
    },
    /// The batch is damaged.
    #[error(
        "record batch at offset {base_offset} is damaged: its CRC-32C is {computed:#010x}, its header states {stated:#010x}"
    )]
    Crc {
        /// Base offset of the batch.
        base_offset: i64,
        /// CRC in the header.
        stated: u32,
        /// CRC of the bytes.
        computed: u32,
    },
}

impl BatchError {
    fn is_truncation(&self) -> bool {
        matches!(self, Self::HeaderTruncated { .. } | Self::Truncated { .. })
    }
}

fn skip_varint(bytes: &mut &[u8]) -> Option<()> {
    let end = bytes.iter().take(10).position(|byte| byte & 0x80 == 0)?;
    *bytes = bytes.get(end + 1..)?;
    Some(())
}

/// `N` bytes of the header from `start`. Every caller passes constants that lie inside the header.
fn at<const N: usize>(header: &[u8; HEADER_LEN], start: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&header[start..start + N]);
    field
}

fn put<const N: usize>(header: &mut [u8; HEADER_LEN], start: usize, value: [u8; N]) {
    header[start..start + N].copy_from_slice(&value);
}
