//! The consumer groups of a cluster.

use kafka_protocol::messages::ListGroupsRequest;

use crate::cluster::Cluster;
use crate::error::{Error, ResponseError};

/// Protocol type of groups that subscribe; those that only commit offsets have an empty one.
const CONSUMER: &str = "consumer";

impl Cluster {
    /// Names of all groups that can hold consumer offsets, sorted. Each broker lists the groups that it coordinates, so all are asked.
    ///
    /// # Errors
    /// A broker did not answer, or refused: the list would have holes.
    pub async fn list_groups(&self) -> Result<Vec<String>, Error> {
        let brokers: Vec<_> = self
            .refresh_metadata()
            .await?
            .brokers
            .keys()
            .copied()
            .collect();
        let mut names = Vec::new();
        for broker in brokers {
            let mut retry = self.retry();
            let response = loop {
                let attempt = async {
                    let connection = self.connection(broker).await?;
                    let response = connection.call(ListGroupsRequest::default()).await?;
                    match ResponseError::try_from_code(response.error_code) {
                        None => Ok(response),
                        Some(code) => Err(Error::server(
                            connection.broker(),
                            "ListGroups",
                            None,
                            code,
                            None,
                        )),
                    }
                };
                match attempt.await {
                    Ok(response) => break response,
                    Err(error) => retry.after(error).await?,
                }
            };
            names.extend(response.groups.into_iter().filter_map(|group| {
                let kind = group.protocol_type.as_str();
                (kind.is_empty() || kind == CONSUMER).then(|| group.group_id.0.to_string())
            }));
        }
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }
}
