//! Bounded decoding of what a broker sends.
//!
//! `kafka-protocol` reserves memory for as many elements as an array *claims* to have; a claim of 2^31 elements aborts the
//! process. [`Bounded`] stands between the bytes and that decoder and refuses such claims. [`Reader`] is what the data
//! path (Produce, Fetch) is decoded with by hand.

use bytes::{Buf, Bytes, TryGetError};
use kafka_protocol::messages::ResponseHeader;
use kafka_protocol::protocol::buf::ByteBuf;
use kafka_protocol::protocol::{Decodable, HeaderVersion, Request};

/// Non-flexible versions mix lengths with other 32-bit integers (node ids, ports, epochs), which cannot be told apart.
/// Those above this bound must fit into the rest of the frame. No broker id, port or epoch of a pre-2.4 broker comes near it.
const NON_FLEXIBLE_I32_MAX: i32 = 1 << 20;

/// Decodes the frame (header included) that answers `R` in `version`. Returns the reason if that is not possible.
pub(crate) fn response<R: Request>(frame: Bytes, version: i16) -> Result<R::Response, String> {
    let header_version = <R::Response as HeaderVersion>::header_version(version);
    let mut bounded = Bounded::new(frame, R::header_version(version) >= 2);
    ResponseHeader::decode(&mut bounded, header_version).map_err(|error| error.to_string())?;
    let response = R::Response::decode(&mut bounded, version).map_err(|error| error.to_string())?;
    match bounded.remaining() {
        0 => Ok(response),
        left => Err(format!("{left} bytes are left over")),
    }
}

/// Bytes whose length claims are checked against what is left.
///
/// In flexible versions every multi-byte sequence read byte by byte is an unsigned varint, and all varints are lengths,
/// counts or tags, none of which can exceed the number of bytes that follow (plus one, for "null" is 0).
struct Bounded {
    bytes: Bytes,
    flexible: bool,
    /// The varint being read: value so far and number of bytes.
    varint: (u64, u32),
}

impl Bounded {
    fn new(bytes: Bytes, flexible: bool) -> Self {
        Self {
            bytes,
            flexible,
            varint: (0, 0),
        }
    }

    fn refuse(&self, claimed: usize) -> TryGetError {
        TryGetError {
            requested: claimed,
            available: self.bytes.len(),
        }
    }
}

impl Buf for Bounded {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, count: usize) {
        self.varint = (0, 0);
        self.bytes.advance(count);
    }

    fn try_get_u8(&mut self) -> Result<u8, TryGetError> {
        let byte = self.bytes.try_get_u8()?;
        let (value, count) = self.varint;
        let value = value | u64::from(byte & 0x7F) << (7 * count);
        self.varint = if byte < 0x80 || count == 4 {
            (0, 0)
        } else {
            (value, count + 1)
        };
        if self.flexible && value > self.bytes.len() as u64 + 1 {
            return Err(self.refuse(usize::try_from(value).unwrap_or(usize::MAX)));
        }
        Ok(byte)
    }

    fn try_get_i32(&mut self) -> Result<i32, TryGetError> {
        self.varint = (0, 0);
        let value = self.bytes.try_get_i32()?;
        match usize::try_from(value) {
            Ok(claimed)
                if !self.flexible && value > NON_FLEXIBLE_I32_MAX && claimed > self.bytes.len() =>
            {
                Err(self.refuse(claimed))
            }
            _ => Ok(value),
        }
    }
}

impl ByteBuf for Bounded {
    fn peek_bytes(&mut self, range: std::ops::Range<usize>) -> Bytes {
        self.bytes.slice(range)
    }

    fn get_bytes(&mut self, size: usize) -> Bytes {
        self.varint = (0, 0);
        self.bytes.split_to(size)
    }
}

/// A cursor over a frame for hand-written decoders: never panics, never allocates more than the frame can hold.
pub(crate) struct Reader {
    bytes: Bytes,
}

/// The frame ended early, or states something impossible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed(pub(crate) &'static str);

macro_rules! integers {
    ($($name:ident -> $type:ty),*) => {
        $(pub(crate) fn $name(&mut self) -> Result<$type, Malformed> {
            let Some(field) = self.bytes.first_chunk::<{ size_of::<$type>() }>() else {
                return Err(CUT_OFF);
            };
            let value = <$type>::from_be_bytes(*field);
            self.bytes.advance(size_of::<$type>());
            Ok(value)
        })*
    };
}

const CUT_OFF: Malformed = Malformed("it is cut off");

impl Reader {
    pub(crate) fn new(bytes: Bytes) -> Self {
        Self { bytes }
    }

    integers!(u8 -> u8, i16 -> i16, i32 -> i32, i64 -> i64, u128 -> u128);

    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn varint(&mut self) -> Result<u32, Malformed> {
        let mut value = 0u64;
        for count in 0..5 {
            let byte = self.u8()?;
            value |= u64::from(byte & 0x7F) << (7 * count);
            if byte < 0x80 {
                return u32::try_from(value).map_err(|_| Malformed("a varint is too long"));
            }
        }
        Err(Malformed("a varint is too long"))
    }

    fn take(&mut self, length: usize) -> Result<Bytes, Malformed> {
        if length > self.bytes.len() {
            return Err(CUT_OFF);
        }
        Ok(self.bytes.split_to(length))
    }

    /// Length of a nullable sequence: an i32 (-1 is null), or a varint of length + 1 in flexible versions.
    fn length(&mut self, flexible: bool) -> Result<Option<usize>, Malformed> {
        if flexible {
            return Ok((self.varint()? as usize).checked_sub(1));
        }
        match self.i32()? {
            -1 => Ok(None),
            length => usize::try_from(length)
                .map(Some)
                .map_err(|_| Malformed("a length is negative")),
        }
    }

    /// Number of elements of an array (null counts as empty), each of which takes at least `element` bytes.
    pub(crate) fn array(&mut self, flexible: bool, element: usize) -> Result<usize, Malformed> {
        let count = self.length(flexible)?.unwrap_or(0);
        if count.saturating_mul(element.max(1)) > self.bytes.len() {
            return Err(Malformed(
                "an array claims more elements than the frame can hold",
            ));
        }
        Ok(count)
    }

    /// Nullable bytes, as a slice of the frame. Null becomes empty.
    pub(crate) fn nullable_bytes(&mut self, flexible: bool) -> Result<Bytes, Malformed> {
        match self.length(flexible)? {
            Some(length) => self.take(length),
            None => Ok(Bytes::new()),
        }
    }

    /// A nullable string, as a slice of the frame. Null becomes empty.
    pub(crate) fn string(&mut self, flexible: bool) -> Result<Text, Malformed> {
        let length = if flexible {
            self.length(true)?
        } else {
            match self.i16()? {
                -1 => None,
                length => {
                    Some(usize::try_from(length).map_err(|_| Malformed("a length is negative"))?)
                }
            }
        };
        Text::new(self.take(length.unwrap_or(0))?).ok_or(Malformed("a string is not UTF-8"))
    }

    /// Calls `field` with each tag and its bytes.
    pub(crate) fn tags(
        &mut self,
        mut field: impl FnMut(u32, &mut Reader) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        let count = self.varint()?;
        for _ in 0..count {
            let tag = self.varint()?;
            let length = self.varint()? as usize;
            let mut value = Reader::new(self.take(length)?);
            field(tag, &mut value)?;
        }
        Ok(())
    }
}

/// A string that is a slice of the frame it came in.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Text(kafka_protocol::protocol::StrBytes);

impl Text {
    fn new(bytes: Bytes) -> Option<Self> {
        kafka_protocol::protocol::StrBytes::from_utf8(bytes)
            .ok()
            .map(Self)
    }
}

impl std::ops::Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        self.0.as_str()
    }
}

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(&**self, f)
    }
}

impl std::fmt::Display for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self)
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(kafka_protocol::protocol::StrBytes::from_string(
            text.to_owned(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafka_protocol::messages::*;
    use proptest::prelude::*;

    /// Decodes `bytes` as an answer to `R` in every version.
    fn every_version<R: Request>(bytes: &Bytes) {
        let versions = <R as kafka_protocol::protocol::Message>::VERSIONS;
        for version in versions.min..=versions.max {
            let _ = response::<R>(bytes.clone(), version);
        }
    }

    fn every_api(bytes: &Bytes) {
        every_version::<ApiVersionsRequest>(bytes);
        every_version::<MetadataRequest>(bytes);
        every_version::<ListOffsetsRequest>(bytes);
        every_version::<FindCoordinatorRequest>(bytes);
        every_version::<CreateTopicsRequest>(bytes);
        every_version::<DeleteTopicsRequest>(bytes);
        every_version::<DescribeConfigsRequest>(bytes);
        every_version::<DeleteRecordsRequest>(bytes);
        every_version::<OffsetFetchRequest>(bytes);
        every_version::<OffsetCommitRequest>(bytes);
        every_version::<DescribeGroupsRequest>(bytes);
        every_version::<DescribeProducersRequest>(bytes);
        every_version::<JoinGroupRequest>(bytes);
        every_version::<SyncGroupRequest>(bytes);
        every_version::<HeartbeatRequest>(bytes);
        every_version::<LeaveGroupRequest>(bytes);
        every_version::<SaslHandshakeRequest>(bytes);
        every_version::<SaslAuthenticateRequest>(bytes);
    }

    #[test]
    fn counts_beyond_the_frame_are_refused_wherever_they_stand() {
        // A claim of 2^31 - 1 elements, as an i32 and as a varint, at each place of an otherwise empty frame.
        for claim in [
            &[0x7F, 0xFF, 0xFF, 0xFF][..],
            &[0xFF, 0xFF, 0xFF, 0xFF, 0x0F],
        ] {
            for at in 0..60 {
                let mut frame = vec![0; 80];
                frame[at..at + claim.len()].copy_from_slice(claim);
                every_api(&frame.into());
            }
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            every_api(&bytes.into());
        }

        #[test]
        fn sparse_garbage_never_panics(
            values in proptest::collection::vec((0usize..150, any::<u8>()), 0..12),
        ) {
            let mut frame = vec![0; 150];
            for (at, value) in values {
                frame[at] = value;
            }
            every_api(&frame.into());
        }
    }
}
