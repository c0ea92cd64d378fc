//! A transactional producer.
#![allow(dead_code, unreachable_pub)]

use standfast_wire::batch::ProducerStamp;
use standfast_wire::{Cluster, Connection, TopicPartition};

use crate::support::*;

/// One committed and one aborted transaction with plain batches around them.
pub async fn write_transactions(cluster: &Cluster, topic: &str) {
    append_some(cluster, topic, 0, 5).await;
    for (name, commit) in [("payer", true), ("doubter", false)] {
        let identity = cluster.init_producer_id(Some(name)).await.expect("an id");
        let stamp = Stamp {
            attributes: 0x10,
            producer_id: identity.producer_id,
            producer_epoch: identity.epoch,
            base_sequence: 0,
        };
        let producer = ProducerStamp {
            producer_id: identity.producer_id,
            producer_epoch: identity.epoch,
            base_sequence: 0,
        };
        let data = batch(&[Record::new(name, "1"), Record::new(name, "2")], stamp)
            .restamp(producer)
            .expect("restamped");
        let partition = TopicPartition::new(topic, 0);
        let leader = leader(cluster, topic, 0).await;
        let raw = cluster.open_raw(leader).await.expect("a connection");
        let connection = Connection::start(raw, cluster.options());
        let at = log_ends(cluster, topic).await[0];
        // The coordinator is busy with the id for a moment after the last marker.
        wait_for("a batch in the transaction", || async {
            let answer = connection
                .produce_one(Some(name), &partition, &data, PATIENCE)
                .await
                .expect("an answer");
            let busy = Some(standfast_wire::ResponseError::ConcurrentTransactions);
            assert!(answer.code.is_none() || answer.code == busy, "{answer:?}");
            answer.code.is_none()
        })
        .await;
        cluster
            .end_transaction(name, identity, commit)
            .await
            .expect("ended");
        // What comes next must not take the marker's offset.
        wait_for("the marker", || async {
            log_ends(cluster, topic).await[0] == at + 3
        })
        .await;
        append_some(cluster, topic, 0, 5).await;
    }
}
