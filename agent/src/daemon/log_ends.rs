//! Log end offsets, asked from a cluster.

use standfast_wire::admin::OffsetSpec;
use standfast_wire::fetch::Isolation;
use standfast_wire::{Cluster, Error, TopicPartition};

use crate::failover::LogEnds;

/// What a cluster says about the log ends of some topics.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) ends: LogEnds,
    /// Why the first of the missing partitions is missing.
    pub(super) error: Option<String>,
}

/// Asks for the log ends (high watermarks) of all partitions of these topics.
pub(super) async fn ask(cluster: &Cluster, topics: &[String]) -> Result<Answer, Error> {
    let names: Vec<&str> = topics.iter().map(String::as_str).collect();
    let metadata = cluster.topics(&names).await?;
    let mut answer = Answer::default();
    let mut questions = Vec::new();
    for name in names {
        let topic = metadata.topics.get(name);
        match topic.map(|topic| (topic.error, &topic.partitions)) {
            Some((None, partitions)) if !partitions.is_empty() => questions.extend(
                partitions
                    .keys()
                    .map(|partition| (TopicPartition::new(name, *partition), OffsetSpec::Latest)),
            ),
            Some((Some(code), _)) => answer.note(format!("topic {name}: {code:?}")),
            _ => answer.note(format!("topic {name}: unknown to the cluster")),
        }
    }
    for (partition, result) in cluster
        .list_offsets(&questions, Isolation::ReadUncommitted)
        .await
    {
        match result {
            Ok(listed) => {
                answer.ends.insert(
                    (partition.topic.to_string(), partition.partition),
                    listed.offset,
                );
            }
            Err(error) => answer.note(format!(
                "{}-{}: {error}",
                partition.topic, partition.partition
            )),
        }
    }
    Ok(answer)
}

impl Answer {
    fn note(&mut self, error: String) {
        self.error.get_or_insert(error);
    }
}
