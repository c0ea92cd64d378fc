//! The consumer groups of a cluster.

use kafka_protocol::messages::ListGroupsRequest;

use crate::cluster::Cluster;
use crate::error::Error;

/// Protocol type of groups that subscribe; those that only commit offsets have an empty one.
const CONSUMER: &str = "consumer";

impl Cluster {
    /// Names of all groups that can hold consumer offsets, sorted. Each broker lists the groups that it coordinates, so all are asked.
    ///
    /// # Errors
    /// A broker did not answer, or refused: the list would have holes.
    pub async fn list_groups(&self) -> Result<Vec<String>, Error> {
        let request = ListGroupsRequest::default();
        let answers = self
            .ask_every_broker("ListGroups", request, |answer| answer.error_code)
            .await?;
        let groups = answers.into_iter().flat_map(|answer| answer.groups);
        let mut names: Vec<String> = groups
            .filter(|group| {
                let kind = group.protocol_type.as_str();
                kind.is_empty() || kind == CONSUMER
            })
            .map(|group| group.group_id.0.to_string())
            .collect();
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }
}
