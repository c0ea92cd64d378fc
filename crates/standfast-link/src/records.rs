//! A walk over the uncompressed records of a batch. Key, value and headers stay one slice: mirroring never looks into them.
//!
//! Record: length, attributes, timestamp delta, offset delta, then key, value and headers; all numbers but the attributes are zigzag varints.
//! Source: <https://kafka.apache.org/documentation/#record>.

use bytes::BufMut;

/// Longest varint: 64 bits in groups of seven.
const MAX_VARINT_LEN: u32 = 10;

/// One record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub(crate) attributes: u8,
    /// To the batch's base timestamp.
    pub(crate) timestamp_delta: i64,
    /// To the batch's base offset.
    pub(crate) offset_delta: i64,
    /// Key, value and headers, as encoded.
    pub(crate) content: &'a [u8],
}

/// The records in `records`, in order; ends with the first that cannot be read.
pub(crate) fn walk(records: &[u8]) -> Walk<'_> {
    Walk { rest: records }
}

#[derive(Debug, Clone)]
pub(crate) struct Walk<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Walk<'a> {
    type Item = Result<Record<'a>, &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let record = record(&mut self.rest).ok_or("a record is cut off or malformed");
        if record.is_err() {
            self.rest = &[];
        }
        Some(record)
    }
}

fn record<'a>(rest: &mut &'a [u8]) -> Option<Record<'a>> {
    let length = usize::try_from(varint(rest)?).ok()?;
    let (mut body, after) = rest.split_at_checked(length)?;
    *rest = after;
    let (attributes, after) = body.split_first()?;
    body = after;
    Some(Record {
        attributes: *attributes,
        timestamp_delta: varint(&mut body)?,
        offset_delta: varint(&mut body)?,
        content: body,
    })
}

pub(crate) fn varint(rest: &mut &[u8]) -> Option<i64> {
    let mut value = 0u64;
    for group in 0..MAX_VARINT_LEN {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << (7 * group);
        if byte & 0x80 == 0 {
            return Some((value >> 1) as i64 ^ -((value & 1) as i64));
        }
    }
    None
}

/// Appends a record to `out`.
pub(crate) fn put(out: &mut impl BufMut, record: Record<'_>) {
    let numbers = varint_len(record.timestamp_delta) + varint_len(record.offset_delta);
    let length = 1 + numbers + record.content.len();
    put_varint(out, i64::try_from(length).unwrap_or(i64::MAX));
    out.put_u8(record.attributes);
    put_varint(out, record.timestamp_delta);
    put_varint(out, record.offset_delta);
    out.put_slice(record.content);
}

fn varint_len(value: i64) -> usize {
    let significant = 64 - (((value << 1) ^ (value >> 63)) as u64 | 1).leading_zeros();
    significant.div_ceil(7) as usize
}

pub(crate) fn put_varint(out: &mut impl BufMut, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest > 0x7f {
        out.put_u8((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    out.put_u8(rest as u8);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_put_is_walked(records in proptest::collection::vec((any::<i64>(), any::<i64>(), proptest::collection::vec(any::<u8>(), 0..300)), 0..20)) {
            let mut out = Vec::new();
            for (timestamp_delta, offset_delta, content) in &records {
                put(&mut out, Record { attributes: 0, timestamp_delta: *timestamp_delta, offset_delta: *offset_delta, content });
            }
            let walked: Vec<_> = walk(&out).map(|r| r.map(|r| (r.timestamp_delta, r.offset_delta, r.content.to_vec()))).collect::<Result<_, _>>().unwrap();
            prop_assert_eq!(walked, records);
        }

        #[test]
        fn nonsense_ends_the_walk(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(walk(&bytes).count() <= bytes.len());
        }
    }
}
