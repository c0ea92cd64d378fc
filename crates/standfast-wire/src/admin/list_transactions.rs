//! The transactions that a cluster's coordinators know.

use kafka_protocol::messages::ListTransactionsRequest;

use super::str_bytes;
use crate::cluster::Cluster;
use crate::error::Error;

/// One transactional id, as its coordinator lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedTransaction {
    /// The transactional id.
    pub transactional_id: String,
    /// Its producer id.
    pub producer_id: i64,
    /// Kafka's word: Ongoing, PrepareCommit, PrepareAbort, …
    pub state: String,
}

/// States in which a transaction holds the last stable offset back.
const UNDECIDED: [&str; 3] = ["Ongoing", "PrepareCommit", "PrepareAbort"];

impl Cluster {
    /// The undecided transactions of these producer ids (KIP-664, Kafka 3.0). Each broker lists those that it coordinates, so all are asked; what the user may not
    /// describe is left out.
    ///
    /// # Errors
    /// A broker did not answer, or refused: the list would have holes.
    pub async fn list_undecided_transactions(
        &self,
        producer_ids: &[i64],
    ) -> Result<Vec<ListedTransaction>, Error> {
        let request = ListTransactionsRequest::default()
            .with_state_filters(UNDECIDED.iter().map(|state| str_bytes(state)).collect())
            .with_producer_id_filters(producer_ids.iter().map(|id| (*id).into()).collect());
        let answers = self
            .ask_every_broker("ListTransactions", request, |answer| answer.error_code)
            .await?;
        let states = answers
            .into_iter()
            .flat_map(|answer| answer.transaction_states);
        let listed = states.map(|state| ListedTransaction {
            transactional_id: state.transactional_id.0.to_string(),
            producer_id: state.producer_id.0,
            state: state.transaction_state.to_string(),
        });
        Ok(listed.collect())
    }
}
