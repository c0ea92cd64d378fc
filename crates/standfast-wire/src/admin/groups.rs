//! Consumer groups: their offsets and their state.

use std::collections::BTreeMap;
use std::sync::Arc;

use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestGroup;
use kafka_protocol::messages::{
    ConsumerGroupDescribeRequest, DescribeGroupsRequest, GroupId, OffsetCommitRequest,
    OffsetFetchRequest,
};

use super::{PerPartition, by_topic, match_answers, ok_or_code, str_bytes, topic_name};
use crate::cluster::{Cluster, CoordinatorKind};
use crate::error::{Error, ResponseError};
use crate::metadata::TopicPartition;

/// State of a group that does not exist, in Kafka's own word.
const DEAD: &str = "Dead";

/// An offset that a group has committed, or is to commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommittedOffset {
    /// The next offset to read.
    pub offset: i64,
    /// Leader epoch of the last record read; -1 if unknown.
    pub leader_epoch: i32,
    /// The application's text; empty for none.
    pub metadata: String,
}

/// A group as its coordinator describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupDescription {
    /// The group's name.
    pub group: String,
    /// Kafka's word: Stable, Empty, Dead (does not exist), PreparingRebalance, Assigning, …
    pub state: String,
    /// Member ids.
    pub members: Vec<String>,
}

impl Cluster {
    /// All committed offsets of a group. A group that does not exist has none.
    ///
    /// # Errors
    /// [`Error::Server`], or the request failed. An error of one partition is in its result.
    pub async fn offset_fetch(&self, group: &str) -> Result<PerPartition<CommittedOffset>, Error> {
        let mut retry = self.retry();
        loop {
            match self.offset_fetch_once(group).await {
                Ok(offsets) => return Ok(offsets),
                Err(error) => {
                    self.forget_coordinator(CoordinatorKind::Group, group);
                    retry.after(error).await?;
                }
            }
        }
    }

    async fn offset_fetch_once(&self, group: &str) -> Result<PerPartition<CommittedOffset>, Error> {
        let coordinator = self.coordinator(CoordinatorKind::Group, group).await?;
        let connection = self.connection(coordinator).await?;
        let version = connection.version_for::<OffsetFetchRequest>()?;
        // No list of topics means all of them; v1 knows only lists, but v2 is as old as Kafka 0.10.2.
        let group_id = GroupId(str_bytes(group));
        let request = if version >= 8 {
            let all = OffsetFetchRequestGroup::default()
                .with_group_id(group_id)
                .with_topics(None);
            OffsetFetchRequest::default().with_groups(vec![all])
        } else {
            OffsetFetchRequest::default()
                .with_group_id(group_id)
                .with_topics(None)
        };
        let response = connection
            .call_with(request, version, self.options().request_timeout)
            .await?;
        let group_code = response
            .groups
            .first()
            .map_or(response.error_code, |group| group.error_code);
        if let Some(code) = ResponseError::try_from_code(group_code) {
            return Err(Error::server(
                connection.broker(),
                "OffsetFetch",
                Some(group),
                code,
                None,
            ));
        }
        // The two generations of the answer have the same shape in different types.
        let mut listed: Vec<(TopicPartition, i16, CommittedOffset)> = Vec::new();
        for topic in response.topics {
            let name = self.prefix().add(topic.name.0.as_str());
            for found in topic.partitions {
                let committed = committed(
                    found.committed_offset,
                    found.committed_leader_epoch,
                    found.metadata.as_deref(),
                );
                listed.push((
                    TopicPartition::new(Arc::clone(&name), found.partition_index),
                    found.error_code,
                    committed,
                ));
            }
        }
        for topic in response.groups.into_iter().flat_map(|group| group.topics) {
            let name = self.prefix().add(topic.name.0.as_str());
            for found in topic.partitions {
                let committed = committed(
                    found.committed_offset,
                    found.committed_leader_epoch,
                    found.metadata.as_deref(),
                );
                listed.push((
                    TopicPartition::new(Arc::clone(&name), found.partition_index),
                    found.error_code,
                    committed,
                ));
            }
        }
        let results = listed.into_iter().map(|(partition, code, committed)| {
            let subject = format!("group {group}, {partition}");
            let result = ok_or_code(code, committed).map_err(|code| {
                Error::server(
                    connection.broker(),
                    "OffsetFetch",
                    Some(&subject),
                    code,
                    None,
                )
            });
            (partition, result)
        });
        Ok(results.collect())
    }

    /// Commits offsets for a group that has no members ("simple consumer" commit, as `kafka-consumer-groups --reset-offsets` does).
    ///
    /// The coordinator refuses with UNKNOWN_MEMBER_ID while the group has members.
    ///
    /// # Errors
    /// The request failed; what is wrong with one partition is in its result.
    pub async fn offset_commit(
        &self,
        group: &str,
        offsets: &[(TopicPartition, CommittedOffset)],
    ) -> Result<PerPartition<()>, Error> {
        self.writable()?;
        let mut retry = self.retry();
        loop {
            let attempt = self.offset_commit_once(group, offsets).await;
            let error = match attempt {
                Ok(results) => match results.iter().find_map(|(_, result)| moved(result)) {
                    None => return Ok(results),
                    Some(error) => error,
                },
                Err(error) => error,
            };
            self.forget_coordinator(CoordinatorKind::Group, group);
            retry.after(error).await?;
        }
    }

    async fn offset_commit_once(
        &self,
        group: &str,
        offsets: &[(TopicPartition, CommittedOffset)],
    ) -> Result<PerPartition<()>, Error> {
        let coordinator = self.coordinator(CoordinatorKind::Group, group).await?;
        let connection = self.connection(coordinator).await?;
        let version = connection.version_for::<OffsetCommitRequest>()?;
        let topics = by_topic(offsets).into_iter().map(|(topic, partitions)| {
            let partitions = partitions.into_iter().map(|(partition, committed)| {
                OffsetCommitRequestPartition::default()
                    .with_partition_index(partition)
                    .with_committed_offset(committed.offset)
                    .with_committed_leader_epoch(if version >= 6 {
                        committed.leader_epoch
                    } else {
                        -1
                    })
                    .with_committed_metadata(Some(str_bytes(&committed.metadata)))
            });
            OffsetCommitRequestTopic::default()
                .with_name(topic_name(topic))
                .with_partitions(partitions.collect())
        });
        let request = OffsetCommitRequest::default()
            .with_group_id(GroupId(str_bytes(group)))
            .with_generation_id_or_member_epoch(-1)
            .with_topics(topics.collect());
        let response = connection
            .call_with(request, version, self.options().request_timeout)
            .await?;
        let answers = response.topics.into_iter().flat_map(|topic| {
            let name: Arc<str> = topic.name.0.as_str().into();
            topic.partitions.into_iter().map(move |partition| {
                let key = TopicPartition::new(Arc::clone(&name), partition.partition_index);
                (key, ok_or_code(partition.error_code, ()))
            })
        });
        let answers: BTreeMap<_, _> = answers.collect();
        let matched = match_answers(&connection, "OffsetCommit", offsets.to_vec(), answers);
        Ok(matched
            .into_iter()
            .map(|(partition, _, result)| (partition, result))
            .collect())
    }

    /// State and members of a group. One that does not exist is "Dead" and has no members.
    ///
    /// Groups of the newer protocol (KIP-848) are unknown to DescribeGroups; they are asked for in their own way.
    ///
    /// # Errors
    /// [`Error::Server`], or the request failed.
    pub async fn describe_group(&self, group: &str) -> Result<GroupDescription, Error> {
        let request = DescribeGroupsRequest::default().with_groups(vec![GroupId(str_bytes(group))]);
        let response = self
            .call_coordinator(CoordinatorKind::Group, group, request, |response| {
                let code = response.groups.first().map_or(0, |group| group.error_code);
                ResponseError::try_from_code(code)
                    .filter(|code| *code != ResponseError::GroupIdNotFound)
            })
            .await?;
        let classic = response
            .groups
            .into_iter()
            .next()
            .filter(|group| group.error_code == 0);
        match classic {
            Some(found) if found.group_state.as_str() != DEAD => Ok(GroupDescription {
                group: group.to_owned(),
                state: found.group_state.to_string(),
                members: found
                    .members
                    .iter()
                    .map(|member| member.member_id.to_string())
                    .collect(),
            }),
            _ => self.describe_consumer_group(group).await,
        }
    }

    async fn describe_consumer_group(&self, group: &str) -> Result<GroupDescription, Error> {
        let dead = GroupDescription {
            group: group.to_owned(),
            state: DEAD.to_owned(),
            members: Vec::new(),
        };
        let request =
            ConsumerGroupDescribeRequest::default().with_group_ids(vec![GroupId(str_bytes(group))]);
        let described = self
            .call_coordinator(CoordinatorKind::Group, group, request, |response| {
                ResponseError::try_from_code(
                    response.groups.first().map_or(0, |group| group.error_code),
                )
            })
            .await;
        match described {
            Ok(response) => {
                Ok(response
                    .groups
                    .into_iter()
                    .next()
                    .map_or(dead, |found| GroupDescription {
                        group: group.to_owned(),
                        state: found.group_state.to_string(),
                        members: found
                            .members
                            .iter()
                            .map(|member| member.member_id.to_string())
                            .collect(),
                    }))
            }
            // Brokers before 3.7 do not know the newer protocol, so the group cannot exist in it.
            Err(Error::UnsupportedApi { .. }) => Ok(dead),
            Err(error) => match error.code() {
                Some(ResponseError::GroupIdNotFound | ResponseError::UnsupportedVersion) => {
                    Ok(dead)
                }
                _ => Err(error),
            },
        }
    }
}

fn committed(offset: i64, leader_epoch: i32, metadata: Option<&str>) -> CommittedOffset {
    CommittedOffset {
        offset,
        leader_epoch,
        metadata: metadata.unwrap_or_default().to_owned(),
    }
}

/// The error, if it says that the coordinator has moved: then none of the commits counts.
fn moved(result: &Result<(), Error>) -> Option<Error> {
    let error = result.as_ref().err()?;
    let codes = [
        ResponseError::NotCoordinator,
        ResponseError::CoordinatorNotAvailable,
        ResponseError::CoordinatorLoadInProgress,
    ];
    codes
        .iter()
        .any(|code| error.code() == Some(*code))
        .then(|| error.clone())
}
