//! The log's order, without a cluster.

use std::time::Instant;

use rdkafka::ClientConfig;
use standfast_discovery::{ClusterName, Epoch};
use tokio::sync::oneshot;

use super::client::{Hand, ProducerClient, ReportContext};
use super::delivery::{Ack, Answer, ClusterNumber};
use super::log::{Gate, Resolved, SendLog};
use super::partitioner::{Choice, Rule};
use super::replay::Limits;
use super::room::Room;
use super::*;
use crate::client_config::Properties;
use crate::client_log::ClientLog;
use crate::event::ClientName;
use crate::ffi::watched_payload;
use crate::target::Bound;

const LIMITS: Limits = Limits {
    bytes: 1 << 20,
    age: Duration::from_secs(60),
    overflow: Overflow::Unprotected,
};

/// A client that never connects: the log only needs something to hand records to.
fn client() -> Arc<ProducerClient> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", "127.0.0.1:1");
    let log = ClientLog::new(
        ClientName::new("producer-1".into()),
        ClusterName::new("west").expect("name"),
    );
    let choice = Choice::new(Rule::of(None, &Properties::new()).expect("rule"));
    let context = ReportContext::new(
        std::sync::Weak::new(),
        choice,
        ClusterNumber::default(),
        log,
    );
    let client = ProducerClient::new(&config, context).expect("client");
    client.adopt(1);
    Arc::new(client)
}

fn push(log: &mut SendLog, room: &Room) -> Answer {
    let (completion, answer) = oneshot::channel();
    assert!(room.try_take(1, || ()).is_ok());
    let taken = Taken {
        bytes: 1,
        replay: None,
    };
    log.push(Record::to("t"), completion, taken);
    answer
}

fn hand_all(log: &mut SendLog) -> (Vec<u64>, usize) {
    let mut seen = Vec::new();
    let (handed, refused) = log.hand_on(100, |_, sequence, _, _, _| {
        seen.push(sequence);
        Ok(Hand::Taken(None))
    });
    assert!(refused.is_empty());
    (seen, handed.resent)
}

fn ack(sequence: u64) -> Ack {
    Ack {
        partition: 0,
        offset: sequence as i64,
        epoch: Epoch(1),
        cluster: ClusterNumber::default(),
    }
}

#[test]
fn a_flip_resends_what_is_unresolved_in_order_and_ahead_of_new_records() {
    let room = Room::new(100, 100);
    let mut log = SendLog::new(LIMITS);
    let mut answers: Vec<_> = (0..5).map(|_| push(&mut log, &room)).collect();
    assert_eq!(hand_all(&mut log).0, [0_u64; 0], "the gate is closed");

    log.install(1);
    log.gate = Gate::Open(client());
    assert_eq!(hand_all(&mut log), (vec![0, 1, 2, 3, 4], 0));
    assert_eq!(log.resolve(0, Ok(ack(0)), None), Resolved::Send);
    assert_eq!(log.resolve(2, Ok(ack(2)), None), Resolved::Send);
    assert!(answers[0].try_recv().expect("answered").is_ok());

    let old = log.cut_off().expect("the old client");
    answers.push(push(&mut log, &room));
    assert_eq!(hand_all(&mut log).0, [0_u64; 0], "between two clusters");
    log.install(2);
    log.gate = Gate::Open(old);
    assert_eq!(hand_all(&mut log), (vec![1, 3, 4, 5], 3));
    let again = log.resolve(0, Ok(ack(0)), None);
    assert_eq!(again, Resolved::Nothing, "resolved long ago");
    for sequence in [5, 4, 3, 1] {
        assert_eq!(
            log.resolve(sequence, Ok(ack(sequence)), None),
            Resolved::Send
        );
    }
    assert_eq!(
        (log.unresolved(), log.first_unresolved(), log.end()),
        (0, 6, 6)
    );
    room.give_back_all(&mut log.vacated);
    assert!(room.try_take(100, || ()).is_ok(), "room is given back");
}

#[test]
fn a_full_client_and_a_fence_hold_records_in_order() {
    let room = Room::new(100, 100);
    let mut log = SendLog::new(LIMITS);
    let _answers: Vec<_> = (0..4).map(|_| push(&mut log, &room)).collect();
    log.install(1);
    log.gate = Gate::Open(client());
    let mut capacity = 2;
    let (handed, _) = log.hand_on(100, |_, _, _, _, _| {
        capacity -= 1;
        Ok(if capacity >= 0 {
            Hand::Taken(None)
        } else {
            Hand::Full
        })
    });
    assert!(!handed.more, "a full client is not asked again at once");
    let Gate::Open(client) = std::mem::replace(&mut log.gate, Gate::Closed) else {
        unreachable!()
    };
    log.gate = Gate::Fenced(Arc::clone(&client));
    assert_eq!(hand_all(&mut log).0, [0_u64; 0]);
    log.gate = Gate::Open(client);
    assert_eq!(hand_all(&mut log), (vec![2, 3], 0));
}

#[test]
fn closing_answers_everybody() {
    let room = Room::new(100, 100);
    let mut log = SendLog::new(LIMITS);
    let mut answer = push(&mut log, &room);
    log.close();
    let answer = answer.try_recv().expect("answered");
    assert!(matches!(*answer.expect_err("no client"), Error::Closed));
    assert_eq!(log.unresolved(), 0);
}

#[test]
fn what_the_new_cluster_lacks_comes_back_at_its_old_place() {
    let room = Room::new(100, 100);
    let mut log = SendLog::new(LIMITS);
    let east = ClusterName::new("east").expect("name");
    log.replay.set_standbys(vec![east.clone()], Instant::now());
    let _answers: Vec<_> = (0..8).map(|_| push(&mut log, &room)).collect();
    log.install(1);
    log.gate = Gate::Open(client());
    hand_all(&mut log);
    // 4 is still unacknowledged, as is all from 6 on.
    for sequence in [0, 1, 2, 3, 5] {
        log.resolve(sequence, Ok(ack(sequence)), None);
    }
    assert_eq!(log.replay.held().0, 5);
    let old = log.cut_off().expect("client");
    log.install(2);
    // East has offsets 0 to 2.
    let again = log.replay.move_to(&east, false, |_, _, _| Bound::Below(3));
    assert_eq!((again, log.unresolved(), log.first_unresolved()), (2, 5, 3));
    log.gate = Gate::Open(old);
    assert_eq!(hand_all(&mut log), (vec![3, 4, 5, 6, 7], 5));
    assert_eq!(log.resolve(3, Ok(ack(3)), None), Resolved::Replay);
    assert_eq!((log.first_unresolved(), log.replay.held().0), (4, 1));
    // A second flip before the rest is answered.
    let old = log.cut_off().expect("client");
    log.install(3);
    log.replay.move_to(&east, true, |_, _, _| Bound::Unknown);
    log.gate = Gate::Open(old);
    assert_eq!(hand_all(&mut log).0, [4, 5, 6, 7]);
    for sequence in 4..8 {
        assert_ne!(
            log.resolve(sequence, Ok(ack(sequence)), None),
            Resolved::Nothing
        );
    }
    assert_eq!((log.unresolved(), log.replay.held().0), (0, 5));
}

#[test]
fn a_client_that_is_cut_off_keeps_what_it_may_still_read_and_no_longer() {
    let mut log = SendLog::new(LIMITS);
    let (payload, watch) = watched_payload();
    let (completion, _answer) = oneshot::channel();
    let taken = Taken {
        bytes: 1,
        replay: None,
    };
    let record = Record::to("t").partition(0).payload(payload);
    log.push(record, completion, taken);
    log.install(1);
    log.gate = Gate::Open(client());
    let (handed, refused) = log.hand_on(1, |client, sequence, lent, wish, spare| {
        let id = crate::record::RecordId {
            producer: Uuid::nil(),
            sequence,
        };
        client.hand(id, lent, wish, spare)
    });
    assert!(refused.is_empty() && !handed.is_asking);

    let old = log.cut_off().expect("the old client");
    log.close();
    assert!(watch.upgrade().is_some(), "the client has it in its queue");
    drop(old);
    // Its poll thread has a share of the client until its round is over.
    let deadline = Instant::now() + Duration::from_secs(30);
    while watch.upgrade().is_some() {
        assert!(Instant::now() < deadline, "leaked");
        std::thread::sleep(Duration::from_millis(10));
    }
}
