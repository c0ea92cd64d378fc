//! Finding a broker that answers.

use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{MetadataRequest, MetadataResponse, TopicName};
use kafka_protocol::protocol::StrBytes;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::Cluster;
use crate::connection::Connection;
use crate::error::{Error, ResponseError};
use crate::metadata::BrokerId;
use crate::options::{ClusterOptions, HostPort};

/// How long one broker is waited for before the next one is asked as well. A dead broker costs this much, not a timeout.
const HEDGE_AFTER: Duration = Duration::from_millis(500);
/// Lowest Metadata version used: the first that can ask without creating the topic (Kafka 0.11).
const METADATA_VERSION_MIN: i16 = 4;

/// Whom to ask for metadata.
pub(super) enum Candidate {
    Known(Cluster, BrokerId),
    Address(HostPort),
}

/// Asks the candidates in order for metadata of `topics` (`None`: all). The next one is asked when one fails or is slow;
/// the first answer wins.
pub(super) async fn first_answer(
    candidates: Vec<Candidate>,
    options: &ClusterOptions,
    bootstrap: &Arc<str>,
    topics: Option<&[Arc<str>]>,
) -> Result<MetadataResponse, Error> {
    let request = metadata_request(topics);
    let mut waiting = candidates.into_iter();
    let mut attempts: JoinSet<Result<MetadataResponse, Error>> = JoinSet::new();
    let mut last: Option<Error> = None;
    loop {
        let next = waiting.next();
        let exhausted = next.is_none();
        if let Some(candidate) = next {
            attempts.spawn(ask(candidate, options.clone(), request.clone()));
        }
        let hedge = sleep(HEDGE_AFTER);
        tokio::pin!(hedge);
        let joined = tokio::select! {
            joined = attempts.join_next() => joined,
            () = &mut hedge, if !exhausted => continue,
        };
        match joined {
            Some(Ok(Ok(response))) => return Ok(response),
            Some(Ok(Err(error))) => {
                tracing::debug!(%error, "no metadata from this broker");
                last = Some(most_telling(last, error));
            }
            Some(Err(_)) => {}
            None => return Err(unreachable(bootstrap, last)),
        }
    }
}

async fn ask(
    candidate: Candidate,
    options: ClusterOptions,
    request: MetadataRequest,
) -> Result<MetadataResponse, Error> {
    let connection = match candidate {
        Candidate::Known(cluster, id) => cluster.connection(id).await?,
        Candidate::Address(address) => Connection::connect(&address, &options).await?,
    };
    let version = connection
        .versions()
        .negotiate_within::<MetadataRequest>(METADATA_VERSION_MIN, i16::MAX)?;
    let response = connection
        .call_with(request, version, options.request_timeout)
        .await?;
    if let Some(code) = ResponseError::try_from_code(response.error_code) {
        return Err(Error::server(
            connection.broker(),
            "Metadata",
            None,
            code,
            None,
        ));
    }
    let found = response.cluster_id.as_deref().unwrap_or_default();
    match &options.expected_cluster_id {
        Some(expected) if expected != found => Err(Error::WrongClusterId {
            expected: expected.clone(),
            found: found.to_owned(),
            bootstrap: connection.broker().to_string(),
        }),
        _ => Ok(response),
    }
}

fn metadata_request(topics: Option<&[Arc<str>]>) -> MetadataRequest {
    let topics = topics.map(|names| {
        let named = |name: &Arc<str>| {
            let name = TopicName(StrBytes::from_string(name.to_string()));
            MetadataRequestTopic::default().with_name(Some(name))
        };
        names.iter().map(named).collect()
    });
    MetadataRequest::default()
        .with_topics(topics)
        .with_allow_auto_topic_creation(false)
}

/// Of two failures the one that an operator can act on: "wrong password" says more than "connection refused".
fn most_telling(earlier: Option<Error>, later: Error) -> Error {
    match earlier {
        Some(earlier) if !earlier.is_retriable() => earlier,
        _ => later,
    }
}

/// What to report when no candidate has answered.
pub(super) fn unreachable(bootstrap: &Arc<str>, last: Option<Error>) -> Error {
    match last {
        Some(error) if !error.is_retriable() => error,
        Some(error) => Error::Unreachable {
            bootstrap: bootstrap.to_string(),
            last: Box::new(error),
        },
        None => Error::Closed {
            broker: Arc::clone(bootstrap),
            detail: ": no broker is known",
        },
    }
}
