//! The headers of a record with its id in front, as librdkafka's list, which is used again.
//!
//! A list of one header takes three allocations. Most records have no headers of their own, so their lists differ in the id only.

use std::ptr::{self, NonNull};

use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::BorrowedMessage;
use rdkafka_sys as sys;

use crate::record::{ID_HEADER, Record, RecordId};

/// A list that no message has.
#[derive(Debug)]
pub(crate) struct SentHeaders {
    list: NonNull<sys::rd_kafka_headers_t>,
    /// Where the id's bytes are in it, if it holds nothing else.
    id: Option<NonNull<u8>>,
}

// SAFETY: the list belongs to this value alone, and is plain memory (rdkafka_header.c).
unsafe impl Send for SentHeaders {}

/// What is remembered of a list while a message has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InUse {
    list: NonNull<sys::rd_kafka_headers_t>,
    id: Option<NonNull<u8>>,
}

// SAFETY: addresses, which are only compared, and used again with the list of which `id` is a part.
unsafe impl Send for InUse {}

impl SentHeaders {
    /// About what a list of one header takes in memory, in bytes.
    pub(crate) const SIZE: usize = 256;

    /// The headers of a record; in `spare`, if there is one and it will do.
    pub(super) fn of(
        record: &Record,
        id: RecordId,
        spare: Option<Self>,
    ) -> Result<Self, RDKafkaErrorCode> {
        let bytes = id.to_bytes(&record.topic);
        let mut own = record.own_headers().peekable();
        let is_plain = own.peek().is_none();
        if let Some(spare) = spare
            && is_plain
            && let Some(place) = spare.id
        {
            // SAFETY: `place` are that many bytes of the list (see below), which is heap memory and belongs to `spare` alone.
            unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), place.as_ptr(), bytes.len()) };
            return Ok(spare);
        }
        let mut list = Self::new(record.headers.len() + 1)?;
        list.add(ID_HEADER, Some(&bytes))?;
        for header in own {
            list.add(&header.key, header.value.as_deref())?;
        }
        if is_plain {
            list.id = list.value_of_first(bytes.len());
        }
        Ok(list)
    }

    fn new(capacity: usize) -> Result<Self, RDKafkaErrorCode> {
        // SAFETY: makes an empty list.
        let list = NonNull::new(unsafe { sys::rd_kafka_headers_new(capacity) });
        let list = list.ok_or(RDKafkaErrorCode::Fail)?;
        Ok(Self { list, id: None })
    }

    /// rust-rdkafka's `OwnedHeaders` allocates each name once more.
    fn add(&mut self, name: &str, value: Option<&[u8]>) -> Result<(), RDKafkaErrorCode> {
        let (value, len) = value.map_or((ptr::null(), 0), |value| (value.as_ptr(), value.len()));
        // SAFETY: the list is alive; name and value are borrowed with their lengths, which no slice has beyond `isize`, and copied.
        let code = unsafe {
            sys::rd_kafka_header_add(
                self.list.as_ptr(),
                name.as_ptr().cast(),
                name.len() as isize,
                value.cast(),
                len as isize,
            )
        };
        match code {
            sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
            code => Err(code.into()),
        }
    }

    /// Where the first header's value is, if it has this length. It stays there: each header is an allocation of its own.
    fn value_of_first(&self, len: usize) -> Option<NonNull<u8>> {
        let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0_usize);
        // SAFETY: the list is alive, and the three targets are valid for writes.
        let code = unsafe {
            sys::rd_kafka_header_get_all(self.list.as_ptr(), 0, &mut name, &mut value, &mut size)
        };
        let found = code == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR && size == len;
        NonNull::new(value.cast_mut().cast()).filter(|_| found)
    }

    pub(super) fn as_ptr(&self) -> *mut sys::rd_kafka_headers_t {
        self.list.as_ptr()
    }

    /// A message has taken the list.
    pub(super) fn into_use(self) -> InUse {
        let in_use = InUse {
            list: self.list,
            id: self.id,
        };
        std::mem::forget(self);
        in_use
    }

    /// Takes them out of the message of a delivery report, which has none afterwards.
    pub(super) fn take(message: &BorrowedMessage<'_>) -> Option<Self> {
        let mut list = ptr::null_mut();
        // SAFETY: the message is borrowed, hence alive, and only the thread with the report uses it; the wrapper does not read a
        // report's headers, so nobody borrows the list. The target is valid for writes.
        unsafe { sys::rd_kafka_message_detach_headers(message.ptr(), &mut list) };
        let list = NonNull::new(list)?;
        Some(Self { list, id: None })
    }

    #[cfg(test)]
    pub(super) fn can_be_used_again(&self) -> bool {
        self.id.is_some()
    }

    /// If this is the list that was lent, it can be used again.
    pub(super) fn know_again(&mut self, in_use: InUse) {
        if in_use.list == self.list {
            self.id = in_use.id;
        }
    }
}

impl Drop for SentHeaders {
    fn drop(&mut self) {
        // SAFETY: made or detached by this module and no message's, hence ours to destroy, once.
        unsafe { sys::rd_kafka_headers_destroy(self.list.as_ptr()) };
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use uuid::Uuid;

    use super::*;

    fn id(sequence: u64) -> RecordId {
        RecordId {
            producer: Uuid::from_u128(7),
            sequence,
        }
    }

    /// Names and values, as librdkafka has them.
    fn read(headers: &SentHeaders) -> Vec<(String, Option<Vec<u8>>)> {
        let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0_usize);
        let mut all = Vec::new();
        // SAFETY: as in `value_of_first`; name and value are read while the list is borrowed.
        unsafe {
            while sys::rd_kafka_header_get_all(
                headers.as_ptr(),
                all.len(),
                &mut name,
                &mut value,
                &mut size,
            ) == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR
            {
                let value = (!value.is_null())
                    .then(|| std::slice::from_raw_parts(value.cast::<u8>(), size).to_vec());
                let name = CStr::from_ptr(name).to_str().expect("UTF-8").to_owned();
                all.push((name, value));
            }
        }
        all
    }

    fn id_header(topic: &str, sequence: u64) -> (String, Option<Vec<u8>>) {
        (
            ID_HEADER.to_owned(),
            Some(id(sequence).to_bytes(topic).to_vec()),
        )
    }

    #[test]
    fn a_list_with_the_id_alone_is_used_again_with_another_id() {
        let first = SentHeaders::of(&Record::to("t"), id(1), None).expect("headers");
        assert_eq!(read(&first), [id_header("t", 1)]);
        let address = first.list;
        let in_use = first.into_use();
        // As a report brings it.
        let mut back = SentHeaders {
            list: in_use.list,
            id: None,
        };
        back.know_again(in_use);
        let second = SentHeaders::of(&Record::to("other"), id(2), Some(back)).expect("headers");
        assert_eq!(
            (second.list, read(&second)),
            (address, vec![id_header("other", 2)])
        );
    }

    #[test]
    fn a_list_with_more_is_not_used_again_and_a_forged_id_is_left_out() {
        let record = Record::to("t")
            .header("a", "1")
            .header(ID_HEADER, "x")
            .header("a", "");
        let first = SentHeaders::of(&record, id(1), None).expect("headers");
        let all = [
            id_header("t", 1),
            ("a".into(), Some(b"1".into())),
            ("a".into(), Some(vec![])),
        ];
        assert_eq!(read(&first), all);
        assert!(!first.can_be_used_again());
        let plain = SentHeaders::of(&Record::to("t"), id(2), Some(first)).expect("headers");
        assert_eq!(read(&plain), [id_header("t", 2)]);
        let second = SentHeaders::of(&record, id(1), Some(plain)).expect("headers");
        assert_eq!(read(&second), all);
        let of_another = InUse {
            list: NonNull::dangling(),
            id: Some(NonNull::dangling()),
        };
        let mut third = SentHeaders::of(&record, id(1), None).expect("headers");
        third.know_again(of_another);
        assert!(!third.can_be_used_again());
    }
}
