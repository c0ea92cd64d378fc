//! What finished records leave behind.
//!
//! A record's memory comes from the thread that sends. Freed where acknowledgements arrive, it wanders between threads, and the
//! allocator took half of a send's time (measured with glibc's). So it waits here: each send frees one record's, after the
//! log's lock is given back, and takes it up again with the next.

use crate::ffi::SentHeaders;
use crate::record::Record;

/// At most as many headers as there were records in flight, since every send takes one out.
#[derive(Debug, Default)]
pub(super) struct Spent {
    records: Heap<Record>,
    headers: Heap<SentHeaders>,
}

/// Memory to be freed: by the caller, without the log's lock.
#[derive(Debug, Default)]
pub(super) struct Waste {
    _records: Vec<Record>,
    _headers: Vec<SentHeaders>,
}

impl Spent {
    pub(super) fn push(&mut self, record: Record) {
        self.records.push(record);
    }

    pub(super) fn push_headers(&mut self, headers: Option<SentHeaders>) {
        if let Some(headers) = headers {
            self.headers.push(headers);
        }
    }

    pub(super) fn pop(&mut self) -> Option<Record> {
        self.records.pop()
    }

    /// For the next record to be handed on.
    pub(super) fn pop_headers(&mut self) -> Option<SentHeaders> {
        self.headers.pop()
    }

    /// Records beyond this many bytes.
    pub(super) fn take_down_to(&mut self, bytes: usize) -> Waste {
        Waste {
            _records: self.records.take_down_to(bytes),
            _headers: Vec::new(),
        }
    }

    /// What no send has come for since the last call.
    pub(super) fn take_idle(&mut self) -> Waste {
        Waste {
            _records: self.records.take_idle(),
            _headers: self.headers.take_idle(),
        }
    }
}

trait Size {
    /// In bytes.
    fn size(&self) -> usize;
}

impl Size for Record {
    fn size(&self) -> usize {
        self.size()
    }
}

impl Size for SentHeaders {
    fn size(&self) -> usize {
        Self::SIZE
    }
}

#[derive(Debug)]
struct Heap<T> {
    items: Vec<T>,
    bytes: usize,
    /// Fewest bytes since the last look.
    idle: usize,
}

impl<T> Default for Heap<T> {
    fn default() -> Self {
        Self {
            items: Vec::new(),
            bytes: 0,
            idle: 0,
        }
    }
}

impl<T: Size> Heap<T> {
    fn push(&mut self, item: T) {
        self.bytes += item.size();
        self.items.push(item);
    }

    fn pop(&mut self) -> Option<T> {
        let item = self.items.pop();
        self.bytes -= item.as_ref().map_or(0, Size::size);
        self.idle = self.idle.min(self.bytes);
        item
    }

    fn take_down_to(&mut self, bytes: usize) -> Vec<T> {
        let mut taken = Vec::new();
        while self.bytes > bytes
            && let Some(item) = self.pop()
        {
            taken.push(item);
        }
        taken
    }

    fn take_idle(&mut self) -> Vec<T> {
        let taken = self.take_down_to(self.bytes - self.idle);
        self.idle = self.bytes;
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_send_comes_for_does_not_stay() {
        let mut heap = Heap::default();
        for _ in 0..30 {
            heap.push(Record::to("t"));
        }
        assert!(heap.take_idle().is_empty(), "they have only just come");
        for _ in 0..10 {
            assert!(heap.pop().is_some());
        }
        heap.push(Record::to("t"));
        assert_eq!(heap.take_idle().len(), 20);
        assert_eq!((heap.items.len(), heap.take_idle().len()), (1, 1));
        assert!(heap.pop().is_none() && heap.bytes == 0);
    }
}
