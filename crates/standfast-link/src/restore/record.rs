//! Records of a lost tail, taken apart: for a line of JSON, or for a record of the topic that keeps them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, BytesMut};
use serde::Serialize;

use crate::records::put_varint;

/// Headers that one record may have; a record that claims more is not believed.
const HEADERS_MAX: i64 = 1 << 20;

/// How the transaction of a record stood when the tail was exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Transaction {
    Committed,
    Aborted,
    /// Undecided; the restore aborts it.
    Open,
}

impl Transaction {
    fn name(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::Aborted => "aborted",
            Self::Open => "open",
        }
    }
}

/// Key, value and headers of a record.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Content<'a> {
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) value: Option<&'a [u8]>,
    /// Names are UTF-8 by the protocol, but nobody checks.
    pub(crate) headers: Vec<(&'a [u8], Option<&'a [u8]>)>,
}

/// Takes the encoded content of a record apart; `None` if it is malformed.
pub(crate) fn parse(mut content: &[u8]) -> Option<Content<'_>> {
    let rest = &mut content;
    let key = field(rest)?;
    let value = field(rest)?;
    let count = crate::records::varint(rest)?;
    if !(0..=HEADERS_MAX).contains(&count) {
        return None;
    }
    let mut headers = Vec::new();
    for _ in 0..count {
        headers.push((field(rest)??, field(rest)?));
    }
    Some(Content {
        key,
        value,
        headers,
    })
}

fn field<'a>(rest: &mut &'a [u8]) -> Option<Option<&'a [u8]>> {
    let length = crate::records::varint(rest)?;
    if length < 0 {
        return Some(None);
    }
    let (field, after) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    *rest = after;
    Some(Some(field))
}

/// Where a record stood, and when it was written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) topic: &'a str,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) timestamp: i64,
    /// `None`: not written in a transaction.
    pub(crate) transaction: Option<Transaction>,
    /// It stands in front of the tail, on the source too, but its transaction was committed here and could only be aborted there.
    pub(crate) aborted_on_source: bool,
}

#[derive(Serialize)]
struct Line<'a> {
    topic: &'a str,
    partition: i32,
    offset: i64,
    timestamp: i64,
    key: Option<String>,
    value: Option<String>,
    headers: Vec<HeaderLine<'a>>,
    transaction: Option<Transaction>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    aborted_on_source: bool,
}

#[derive(Serialize)]
struct HeaderLine<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    /// Instead of `key` if that is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    value: Option<String>,
}

/// Appends one line of JSON.
pub(crate) fn put_line(
    out: &mut Vec<u8>,
    place: Place<'_>,
    content: &Content<'_>,
) -> Result<(), String> {
    let base64 = |bytes: Option<&[u8]>| bytes.map(|b| STANDARD.encode(b));
    let headers = content.headers.iter().map(|(name, value)| {
        let text = std::str::from_utf8(name).ok();
        HeaderLine {
            key: text,
            key_base64: text.is_none().then(|| STANDARD.encode(name)),
            value: base64(*value),
        }
    });
    let line = Line {
        topic: place.topic,
        partition: place.partition,
        offset: place.offset,
        timestamp: place.timestamp,
        key: base64(content.key),
        value: base64(content.value),
        headers: headers.collect(),
        transaction: place.transaction,
        aborted_on_source: place.aborted_on_source,
    };
    serde_json::to_writer(&mut *out, &line).map_err(|e| e.to_string())?;
    out.push(b'\n');
    Ok(())
}

/// Key, value and headers as encoded, with headers that say where the record stood.
pub(crate) fn content_with_origin(place: Place<'_>, content: &Content<'_>) -> Vec<u8> {
    let mut out = BytesMut::new();
    let mut put = |bytes: Option<&[u8]>| {
        put_varint(&mut out, bytes.map_or(-1, |b| b.len() as i64));
        out.put_slice(bytes.unwrap_or_default());
    };
    put(content.key);
    put(content.value);
    let (partition, offset) = (place.partition.to_string(), place.offset.to_string());
    let mut origin: Vec<(&str, &str)> = vec![
        ("standfast.topic", place.topic),
        ("standfast.partition", &partition),
        ("standfast.offset", &offset),
    ];
    if let Some(transaction) = place.transaction {
        origin.push(("standfast.transaction", transaction.name()));
    }
    if place.aborted_on_source {
        origin.push(("standfast.aborted_on_source", "true"));
    }
    put_varint(&mut out, (content.headers.len() + origin.len()) as i64);
    let mut put = |bytes: Option<&[u8]>| {
        put_varint(&mut out, bytes.map_or(-1, |b| b.len() as i64));
        out.put_slice(bytes.unwrap_or_default());
    };
    for (name, value) in &content.headers {
        put(Some(name));
        put(*value);
    }
    for (name, value) in origin {
        put(Some(name.as_bytes()));
        put(Some(value.as_bytes()));
    }
    out.to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded() -> Vec<u8> {
        let place = Place {
            topic: "t",
            partition: 3,
            offset: 7,
            timestamp: 1,
            transaction: Some(Transaction::Open),
            aborted_on_source: false,
        };
        let content = Content {
            key: None,
            value: Some(b"\xff\x00"),
            headers: vec![(b"h", None), (b"\xfe", Some(b"x"))],
        };
        content_with_origin(place, &content)
    }

    #[test]
    fn what_a_record_holds_is_found_again() {
        let encoded = encoded();
        let content = parse(&encoded).unwrap();
        assert_eq!((content.key, content.value), (None, Some(&b"\xff\x00"[..])));
        assert_eq!(content.headers.len(), 6);
        let place = Place {
            topic: "t",
            partition: 0,
            offset: 9,
            timestamp: -1,
            transaction: None,
            aborted_on_source: false,
        };
        let mut out = Vec::new();
        put_line(&mut out, place, &content).unwrap();
        let line: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(
            (&line["key"], &line["value"]),
            (&serde_json::Value::Null, &"/wA=".into())
        );
        assert_eq!(line["headers"][0]["key"], "h");
        assert_eq!(line["headers"][0]["value"], serde_json::Value::Null);
        assert_eq!(line["headers"][1]["key_base64"], "/g==");
        assert_eq!(line["headers"][5]["value"], "b3Blbg==");
        assert_eq!(line["transaction"], serde_json::Value::Null);
    }

    #[test]
    fn a_record_that_is_cut_off_is_none() {
        let encoded = encoded();
        for length in 0..encoded.len() {
            assert_eq!(parse(&encoded[..length]), None, "{length}");
        }
    }
}
