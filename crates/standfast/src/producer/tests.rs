//! The log's order, without a cluster.

use rdkafka::ClientConfig;
use standfast_discovery::ClusterName;

use super::client::{ProducerClient, ReportContext};
use super::log::{Gate, SendLog};
use super::*;
use crate::client_log::ClientLog;

/// A client that never connects: the log only needs something to hand records to.
fn client() -> Arc<ProducerClient> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", "127.0.0.1:1");
    let log = ClientLog::new(
        ClientName::new("producer-1".into()),
        ClusterName::new("west").expect("name"),
    );
    let context = ReportContext {
        shared: std::sync::Weak::new(),
        generation: 1,
        log: Arc::new(log),
    };
    Arc::new(ProducerClient::new(&config, context).expect("client"))
}

fn push(log: &mut SendLog, room: &Arc<Semaphore>) -> oneshot::Receiver<Result<Delivery>> {
    let (completion, answer) = oneshot::channel();
    let permit = || Arc::clone(room).try_acquire_owned().expect("room");
    log.push(Record::to("t"), completion, (permit(), permit()));
    answer
}

fn hand_all(log: &mut SendLog) -> (Vec<u64>, usize) {
    let mut seen = Vec::new();
    let (handed, refused) = log.hand_on(100, |_, sequence, _| {
        seen.push(sequence);
        Ok(true)
    });
    assert!(refused.is_empty());
    (seen, handed.resent)
}

fn delivery(sequence: u64) -> Delivery {
    Delivery {
        topic: "t".into(),
        partition: 0,
        offset: 0,
        epoch: Epoch(1),
        cluster: ClusterName::new("west").expect("name"),
        id: RecordId {
            producer: Uuid::nil(),
            sequence,
        },
    }
}

#[test]
fn a_flip_resends_what_is_unresolved_in_order_and_ahead_of_new_records() {
    let room = Arc::new(Semaphore::new(100));
    let mut log = SendLog::new();
    let mut answers: Vec<_> = (0..5).map(|_| push(&mut log, &room)).collect();
    assert_eq!(hand_all(&mut log).0, [0_u64; 0], "the gate is closed");

    log.install(1);
    log.gate = Gate::Open(client());
    assert_eq!(hand_all(&mut log), (vec![0, 1, 2, 3, 4], 0));
    assert!(log.resolve(0, Ok(delivery(0))));
    assert!(log.resolve(2, Ok(delivery(2))));
    assert!(answers[0].try_recv().expect("answered").is_ok());

    let old = log.cut_off().expect("the old client");
    answers.push(push(&mut log, &room));
    assert_eq!(hand_all(&mut log).0, [0_u64; 0], "between two clusters");
    log.install(2);
    log.gate = Gate::Open(old);
    assert_eq!(hand_all(&mut log), (vec![1, 3, 4, 5], 3));
    assert!(!log.resolve(0, Ok(delivery(0))), "resolved long ago");
    for sequence in [5, 4, 3, 1] {
        assert!(log.resolve(sequence, Ok(delivery(sequence))));
    }
    assert_eq!(
        (log.unresolved(), log.first_unresolved(), log.end()),
        (0, 6, 6)
    );
    assert_eq!(room.available_permits(), 100, "room is given back");
}

#[test]
fn a_full_client_and_a_fence_hold_records_in_order() {
    let room = Arc::new(Semaphore::new(100));
    let mut log = SendLog::new();
    let _answers: Vec<_> = (0..4).map(|_| push(&mut log, &room)).collect();
    log.install(1);
    log.gate = Gate::Open(client());
    let mut capacity = 2;
    let (handed, _) = log.hand_on(100, |_, _, _| {
        capacity -= 1;
        Ok(capacity >= 0)
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
    let room = Arc::new(Semaphore::new(100));
    let mut log = SendLog::new();
    let mut answer = push(&mut log, &room);
    log.close();
    assert!(matches!(answer.try_recv(), Ok(Err(Error::Closed))));
    assert_eq!(log.unresolved(), 0);
}
