//! Hands records to librdkafka without a copy of their payloads.
//!
//! rust-rdkafka has librdkafka copy each payload (`RD_KAFKA_MSG_F_COPY`); the wrapper keeps the record anyway until it is
//! acknowledged, so it lends the payload's memory instead. librdkafka may read it until it has reported on the record or is
//! destroyed ("rd_kafka_produce()" in rdkafka.h). That the memory stays for so long does not hang on the rest of the crate:
//! a [`Lent`] gives its record back against the report on it, or once the client's own [`Loans`] share the memory; whoever drops
//! it before leaks it.

use std::ffi::CString;
use std::mem::ManuallyDrop;
use std::num::NonZeroUsize;
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::producer::{BaseProducer, Partitioner, Producer, ProducerContext};
use rdkafka_sys as sys;
use rdkafka_sys::rd_kafka_vtype_t::{
    RD_KAFKA_VTYPE_END, RD_KAFKA_VTYPE_HEADERS, RD_KAFKA_VTYPE_KEY, RD_KAFKA_VTYPE_MSGFLAGS,
    RD_KAFKA_VTYPE_OPAQUE, RD_KAFKA_VTYPE_PARTITION, RD_KAFKA_VTYPE_RKT, RD_KAFKA_VTYPE_TIMESTAMP,
    RD_KAFKA_VTYPE_VALUE,
};

use super::SentHeaders;
use super::id_headers::InUse;
use crate::record::{Record, RecordId};

/// librdkafka's `RD_KAFKA_PARTITION_UA`: the partitioner is asked.
const UNASSIGNED: i32 = -1;

/// Payloads that one client may still read although their records have gone on without it. Lives in the client's context, which
/// rust-rdkafka drops after it has destroyed the client (`Client`'s fields, in their order).
#[derive(Debug, Default)]
pub(crate) struct Loans(Mutex<Vec<Bytes>>);

impl Loans {
    /// Tells the loans of different clients apart; none moves while something is lent, its client's context is on the heap.
    fn address(&self) -> NonZeroUsize {
        NonNull::from(self).addr()
    }
}

/// The context of a client that is lent payloads.
pub(crate) trait Lender {
    /// The client's.
    fn loans(&self) -> &Loans;
}

/// A record of which a client may be reading the payload.
#[derive(Debug)]
pub(crate) struct Lent {
    record: ManuallyDrop<Record>,
    loan: Option<Loan>,
    headers: Option<InUse>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Loan {
    to: NonZeroUsize,
    mark: Mark,
}

/// What a record that is lent and the report on it have in common. No other has both: no other memory has the payload's address
/// meanwhile, and records that share a payload have numbers of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    payload: usize,
    number: usize,
}

/// A client's report on a record: it is done with it.
#[derive(Debug)]
pub(crate) struct Report {
    mark: Mark,
    headers: Option<SentHeaders>,
}

impl Report {
    /// Of a delivery report; the message has no headers afterwards.
    pub(crate) fn of(message: &BorrowedMessage<'_>, number: usize) -> Self {
        let payload = message.payload();
        let payload = payload.map_or(0, |payload| payload.as_ptr().addr());
        Self {
            mark: Mark { payload, number },
            headers: SentHeaders::take(message),
        }
    }
}

impl Lent {
    /// A record that no client has yet.
    pub(crate) fn new(record: Record) -> Self {
        Self {
            record: ManuallyDrop::new(record),
            loan: None,
            headers: None,
        }
    }

    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    /// The record, if no client has it any more, and its headers; `report`: what has just been reported on it. Otherwise it is leaked.
    pub(crate) fn end(mut self, report: Option<Report>) -> (Option<Record>, Option<SentHeaders>) {
        let (mark, mut headers) = report.map(|report| (report.mark, report.headers)).unzip();
        if self.loan.map(|loan| loan.mark) == mark {
            self.loan = None;
        }
        if let (Some(Some(headers)), Some(in_use)) = (&mut headers, self.headers) {
            headers.know_again(in_use);
        }
        if self.loan.is_some() {
            return (None, headers.flatten());
        }
        // SAFETY: taken out once: the value is forgotten right behind it, so `drop` does not look at the record again.
        let record = unsafe { ManuallyDrop::take(&mut self.record) };
        std::mem::forget(self);
        (Some(record), headers.flatten())
    }

    /// Lets the record go on without the client that it is lent to, if that is the one with these loans: they keep the payload's
    /// memory until the client is destroyed.
    pub(crate) fn leave_behind(&mut self, loans: &Loans) {
        let Some(payload) = self.record.payload.as_ref() else {
            return;
        };
        if self.loan.is_some_and(|loan| loan.to == loans.address()) {
            let mut kept = loans.0.lock().unwrap_or_else(PoisonError::into_inner);
            kept.push(payload.clone());
            self.loan = None;
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if self.loan.is_none() {
            // SAFETY: `end` forgets the value when it has taken the record out, so it is here, and dropped once.
            unsafe { ManuallyDrop::drop(&mut self.record) };
            return;
        }
        tracing::error!(
            topic = &*self.record.topic,
            "a record's memory is leaked: librdkafka may still be reading it"
        );
    }
}

/// A topic of one client, to send to without having librdkafka look it up by its name each time.
pub(crate) struct Topic<C, Part>
where
    C: ProducerContext<Part> + Lender,
    Part: Partitioner,
{
    native: NonNull<sys::rd_kafka_topic_t>,
    // Destroyed later than the topic.
    producer: Arc<BaseProducer<C, Part>>,
}

// SAFETY: librdkafka's topic handles are thread safe and counted.
unsafe impl<C: ProducerContext<Part> + Lender, Part: Partitioner> Send for Topic<C, Part> where
    BaseProducer<C, Part>: Send + Sync
{
}
// SAFETY: as above.
unsafe impl<C: ProducerContext<Part> + Lender, Part: Partitioner> Sync for Topic<C, Part> where
    BaseProducer<C, Part>: Send + Sync
{
}

impl<C, Part> Topic<C, Part>
where
    C: ProducerContext<Part, DeliveryOpaque = usize> + Lender,
    Part: Partitioner,
{
    /// The topic of this name, known to the cluster or not.
    pub(crate) fn new(
        producer: &Arc<BaseProducer<C, Part>>,
        name: &str,
    ) -> Result<Self, RDKafkaErrorCode> {
        let name = CString::new(name).map_err(|_| RDKafkaErrorCode::InvalidTopic)?;
        let client = producer.client().native_ptr();
        // SAFETY: the client is borrowed, hence alive; librdkafka copies the name. No configuration: the client's own default.
        let native = unsafe { sys::rd_kafka_topic_new(client, name.as_ptr(), ptr::null_mut()) };
        match NonNull::new(native) {
            Some(native) => Ok(Self {
                native,
                producer: Arc::clone(producer),
            }),
            // SAFETY: reads the last error of this thread.
            None => Err(unsafe { sys::rd_kafka_last_error() }.into()),
        }
    }

    /// Hands a record to librdkafka, with its id in front of its headers, and lends it the payload. Never blocks. The
    /// number comes back with the report. `spare`: headers of another one, to be used again.
    pub(crate) fn send(
        &self,
        lent: &mut Lent,
        id: RecordId,
        number: usize,
        spare: Option<SentHeaders>,
    ) -> Result<(), RDKafkaErrorCode> {
        let record = lent.record();
        let headers = SentHeaders::of(record, id, spare)?;
        let bytes = |bytes: &Option<Bytes>| {
            let bytes = bytes.as_ref();
            bytes.map_or((ptr::null(), 0), |bytes| (bytes.as_ptr(), bytes.len()))
        };
        let (payload, payload_len) = bytes(&record.payload);
        let (key, key_len) = bytes(&record.key);
        // Lent elsewhere: two reports would be to come, and only one is known.
        let flags = match lent.loan {
            None => 0,
            Some(_) => sys::RD_KAFKA_MSG_F_COPY,
        };
        // SAFETY: topic and client are alive. The types are those that `rd_kafka_producev` reads for each tag (rdkafka.h). Key and
        // headers' values are copied; the payload's memory does not move with the record, is never written to (`Bytes`), and stays
        // as this module's documentation says. The partitioner that may be called takes nothing of these.
        let code = unsafe {
            sys::rd_kafka_producev(
                self.producer.client().native_ptr(),
                RD_KAFKA_VTYPE_RKT,
                self.native.as_ptr(),
                RD_KAFKA_VTYPE_PARTITION,
                record.partition.unwrap_or(UNASSIGNED),
                RD_KAFKA_VTYPE_MSGFLAGS,
                flags,
                RD_KAFKA_VTYPE_VALUE,
                payload.cast_mut(),
                payload_len,
                RD_KAFKA_VTYPE_KEY,
                key,
                key_len,
                RD_KAFKA_VTYPE_OPAQUE,
                ptr::without_provenance_mut::<std::ffi::c_void>(number),
                RD_KAFKA_VTYPE_TIMESTAMP,
                record.timestamp_ms.unwrap_or(0),
                RD_KAFKA_VTYPE_HEADERS,
                headers.as_ptr(),
                RD_KAFKA_VTYPE_END,
            )
        };
        if code != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(code.into());
        }
        lent.headers = Some(headers.into_use());
        if flags == 0 && !payload.is_null() {
            let (to, payload) = (self.producer.context().loans().address(), payload.addr());
            lent.loan = Some(Loan {
                to,
                mark: Mark { payload, number },
            });
        }
        Ok(())
    }
}

impl<C: ProducerContext<Part> + Lender, Part: Partitioner> Drop for Topic<C, Part> {
    fn drop(&mut self) {
        // SAFETY: made by `rd_kafka_topic_new`, destroyed only here, and before its client.
        unsafe { sys::rd_kafka_topic_destroy(self.native.as_ptr()) };
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Weak;
    use std::time::Duration;

    use rdkafka::ClientConfig;
    use rdkafka::client::ClientContext;
    use rdkafka::config::FromClientConfigAndContext;
    use rdkafka::message::DeliveryResult;
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::NoCustomPartitioner;
    use uuid::Uuid;

    use super::*;

    #[derive(Default)]
    struct Reports {
        loans: Loans,
        came: Mutex<Vec<Report>>,
    }

    impl Lender for Reports {
        fn loans(&self) -> &Loans {
            &self.loans
        }
    }

    impl ClientContext for Reports {}

    impl ProducerContext for Reports {
        type DeliveryOpaque = usize;

        fn delivery(&self, report: &DeliveryResult<'_>, number: usize) {
            let (Ok(message) | Err((_, message))) = report;
            self.came
                .lock()
                .expect("lock")
                .push(Report::of(message, number));
        }
    }

    type Client = Arc<BaseProducer<Reports, NoCustomPartitioner>>;

    fn client(bootstrap: &str) -> Client {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", bootstrap)
            .set("linger.ms", "0");
        Arc::new(
            BaseProducer::from_config_and_context(&config, Reports::default()).expect("client"),
        )
    }

    struct Memory(#[allow(dead_code)] Arc<()>);

    impl AsRef<[u8]> for Memory {
        fn as_ref(&self) -> &[u8] {
            b"abc"
        }
    }

    /// A payload, and what tells whether its memory is still there.
    pub(crate) fn watched_payload() -> (Bytes, Weak<()>) {
        let alive = Arc::new(());
        let watch = Arc::downgrade(&alive);
        (Bytes::from_owner(Memory(alive)), watch)
    }

    fn record() -> (Lent, Weak<()>) {
        let (payload, watch) = watched_payload();
        (Lent::new(Record::to("t").key("k").payload(payload)), watch)
    }

    fn id(number: usize) -> RecordId {
        RecordId {
            producer: Uuid::nil(),
            sequence: number as u64,
        }
    }

    fn send(client: &Client, lent: &mut Lent, number: usize) {
        Topic::new(client, "t")
            .expect("topic")
            .send(lent, id(number), number, None)
            .expect("sent");
    }

    #[test]
    fn only_the_report_on_a_record_gives_it_back() {
        let cluster = MockCluster::new(1).expect("mock cluster");
        cluster.create_topic("t", 1, 1).expect("topic");
        let client = client(&cluster.bootstrap_servers());
        let (mut first, watch) = record();
        let shared = first.record().payload.clone().expect("payload");
        let mut second = Lent::new(Record::to("t").payload(shared));
        send(&client, &mut first, 7);
        send(&client, &mut second, 8);
        let came = || client.context().came.lock().expect("lock");
        while came().len() < 2 {
            client.poll(Duration::from_millis(10));
        }
        let of_second = came().pop();
        let of_first = came().pop();
        let number = |report: &Option<Report>| report.as_ref().map(|report| report.mark.number);
        assert_eq!((number(&of_first), number(&of_second)), (Some(7), Some(8)));
        let mark = of_first
            .as_ref()
            .map(|report| report.mark)
            .expect("a report");
        let forged = Report {
            mark,
            headers: None,
        };
        assert!(
            second.end(Some(forged)).0.is_none(),
            "of another with the same payload"
        );
        let (first, headers) = first.end(of_first);
        let first = first.expect("given back");
        assert_eq!(first.payload.as_deref(), Some(&b"abc"[..]));
        assert!(headers.is_some_and(|headers| headers.can_be_used_again()));
        drop(first);
        assert!(watch.upgrade().is_some(), "the second one was leaked");
    }

    #[test]
    fn an_empty_payload_and_none_are_given_back_too() {
        let cluster = MockCluster::new(1).expect("mock cluster");
        cluster.create_topic("t", 1, 1).expect("topic");
        let client = client(&cluster.bootstrap_servers());
        for (number, record) in [Record::to("t").payload(""), Record::to("t")]
            .into_iter()
            .enumerate()
        {
            let mut lent = Lent::new(record.clone());
            send(&client, &mut lent, number);
            let came = || client.context().came.lock().expect("lock").pop();
            let report = loop {
                client.poll(Duration::from_millis(10));
                if let Some(report) = came() {
                    break report;
                }
            };
            assert_eq!(lent.end(Some(report)).0, Some(record));
        }
    }

    #[test]
    fn what_a_client_may_still_read_goes_with_the_client() {
        let (old, other) = (client("127.0.0.1:1"), client("127.0.0.1:1"));
        let (mut lent, watch) = record();
        send(&old, &mut lent, 1);
        lent.leave_behind(other.context().loans());
        assert!(lent.loan.is_some(), "another client has not got it");
        lent.leave_behind(old.context().loans());
        // A second client copies nothing either.
        send(&other, &mut lent, 1);
        lent.leave_behind(other.context().loans());
        drop(lent.end(None).0.expect("nobody has it any more"));
        drop(old);
        assert!(watch.upgrade().is_some(), "the other one is there");
        drop(other);
        assert!(watch.upgrade().is_none(), "nobody is left to read it");
    }

    #[test]
    fn a_record_that_is_dropped_too_early_is_leaked() {
        let client = client("127.0.0.1:1");
        let (mut lent, watch) = record();
        send(&client, &mut lent, 1);
        drop(lent);
        drop(client);
        assert!(watch.upgrade().is_some());
    }

    #[test]
    fn what_is_lent_already_is_copied() {
        let client = client("127.0.0.1:1");
        let (mut lent, watch) = record();
        send(&client, &mut lent, 1);
        let loan = lent.loan;
        send(&client, &mut lent, 2);
        assert_eq!(lent.loan, loan, "the first one counts");
        lent.leave_behind(client.context().loans());
        drop(lent);
        drop(client);
        assert!(watch.upgrade().is_none());
    }
}
