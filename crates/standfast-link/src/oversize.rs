//! Batches that are larger than the destination takes: the mirror topic's `max.message.bytes` is raised, or that one partition stops.

use std::time::Duration;

use standfast_wire::Error;
use standfast_wire::admin::{ConfigChange, ConfigResource};
use tracing::info;

use crate::calls;
use crate::configs::{Configs, MAX_MESSAGE_BYTES};
use crate::description::MirrorTopicError;
use crate::partition::{Doubt, Failure};
use crate::refusal;
use crate::startup::{Refusal, Request, destination};

/// Larger batches go over a connection of their own, on the slow path: a broker closes the connection on a request above its `socket.request.max.bytes`, and no other
/// partition should share that.
pub(crate) const SOLO_BYTES: usize = 8 << 20;

/// So many closed connections in a row for one batch mean that the destination does not take its size.
pub(crate) const CLOSED_MAX: u32 = 3;

/// A raised limit has reached the partition's leader within this time.
pub(crate) const TAKES_EFFECT: Duration = Duration::from_secs(10);

/// Between two tries meanwhile.
pub(crate) const EFFECT_POLL: Duration = Duration::from_millis(50);

fn limit(configs: &Configs) -> Option<i64> {
    configs.get(MAX_MESSAGE_BYTES)?.value.as_ref()?.parse().ok()
}

/// Raises the mirror topic's limit so that a batch of `bytes` fits; nothing is done if it fits already.
pub(crate) async fn raise(request: &Request, position: i64, bytes: usize) -> Result<(), Refusal> {
    let (context, topic) = (&request.context, &request.id.topic);
    let found = calls::topic_configs(&context.destination, topic)
        .await
        .map_err(destination)?;
    let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
    let now = limit(&found).unwrap_or(0);
    if now >= bytes {
        return Ok(());
    }
    // As much as the source takes: then the next one fits as well.
    let theirs = calls::topic_configs(&context.source, topic).await.ok();
    let theirs = theirs.as_ref().and_then(limit).unwrap_or(0);
    let wanted = bytes.max(theirs);
    let change = (
        MAX_MESSAGE_BYTES.to_owned(),
        ConfigChange::Set(wanted.to_string()),
    );
    let asked = [(ConfigResource::Topic(topic.to_string()), vec![change])];
    let answered = context.destination.incremental_alter_configs(&asked).await;
    let changed = answered.and_then(|all| all.into_iter().try_for_each(|(_, result)| result));
    match changed {
        Ok(()) => {
            info!(partition = %request.id, offset = position, bytes, from = now, to = wanted, "max.message.bytes of the mirror topic raised, a batch of the source is larger");
            Ok(())
        }
        Err(error) => Err(not_raised(position, bytes, now, error)),
    }
}

/// The partition waits for a permission, is FAILED if the destination (a policy of its, say) refuses, and tries again after anything else.
fn not_raised(position: i64, bytes: i64, now: i64, error: Error) -> Refusal {
    let what = format!(
        "offset {position}: a batch of {bytes} bytes is larger than the mirror topic's max.message.bytes ({now})"
    );
    match error.code() {
        Some(code) if refusal::is_authorization(code) => {
            let mut doubt = Doubt::destination(format!(
                "{what}, which the link's user may not raise (ALTER_CONFIGS): {}",
                refusal::text(&error)
            ));
            doubt.error = MirrorTopicError::AuthorizationError;
            Refusal::Later(doubt)
        }
        Some(_) if !error.is_retriable() => {
            let text = format!(
                "{what}, and the destination refuses to raise it: {error}; raise it there, then resume the mirror"
            );
            Failure::new(MirrorTopicError::DestinationRefused, text).into()
        }
        _ => destination(error),
    }
}

/// The destination closes the connection on the batch again and again.
pub(crate) fn above_requests(position: i64, bytes: usize) -> Refusal {
    let text = format!(
        "offset {position}: the destination closed the connection {CLOSED_MAX} times on a batch of {bytes} bytes; raise socket.request.max.bytes of its brokers, then resume the mirror"
    );
    Failure::new(MirrorTopicError::DestinationRefused, text).into()
}

/// The batch is larger than a segment of the log.
pub(crate) fn above_segment(position: i64, bytes: usize) -> Refusal {
    let text = format!(
        "offset {position}: a batch of {bytes} bytes is larger than a segment of the mirror topic; raise its segment.bytes, then resume the mirror"
    );
    Failure::new(MirrorTopicError::DestinationRefused, text).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use standfast_wire::ResponseError;

    fn answered(code: ResponseError) -> Refusal {
        let error = Error::Server {
            broker: "b:1".into(),
            api: "IncrementalAlterConfigs",
            subject: None,
            code,
            message: Some("no topic above 1 MB".into()),
        };
        not_raised(7, 50_000, 10_000, error)
    }

    #[test]
    fn a_policy_stops_the_partition_and_a_missing_permission_waits() {
        let Refusal::Fail(failure) = answered(ResponseError::PolicyViolation) else {
            panic!("a policy does not change by itself");
        };
        for part in ["offset 7", "50000 bytes", "no topic above 1 MB", "resume"] {
            assert!(failure.text.contains(part), "{}", failure.text);
        }
        let Refusal::Later(doubt) = answered(ResponseError::TopicAuthorizationFailed) else {
            panic!("it is given the permission some day");
        };
        assert_eq!(doubt.error, MirrorTopicError::AuthorizationError);
        assert!(matches!(
            answered(ResponseError::NotController),
            Refusal::Later(_)
        ));
    }
}
