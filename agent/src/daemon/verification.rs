//! Comparisons of mirrors with their sources, on connections of their own: they work while a link runs, is held or was stopped.

use std::collections::BTreeMap;
use std::sync::Arc;

use standfast_discovery::{ClusterEntry, ClusterName};
use standfast_link::{VerifyOptions, verify};
use standfast_secrets::SecretsHandle;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::mirrors::LinkSet;
use crate::api::{ErrorBody, ErrorCode, VerifyLine, VerifyRequest};
use crate::clusters;

/// Comparisons at the same time; each reads both clusters as fast as it can.
const VERIFICATIONS_MAX: usize = 2;
/// Lines that wait for a slow reader; the comparison waits with them.
const LINES_MAX: usize = 16;
const CLIENT_ID: &str = "standfast-verify";

/// Starts comparisons. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Verifications {
    links: LinkSet,
    clusters: Arc<BTreeMap<ClusterName, ClusterEntry>>,
    secrets: SecretsHandle,
    permits: Arc<Semaphore>,
    shutdown: CancellationToken,
}

impl Verifications {
    pub(crate) fn new(
        links: LinkSet,
        clusters: BTreeMap<ClusterName, ClusterEntry>,
        secrets: SecretsHandle,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            links,
            clusters: Arc::new(clusters),
            secrets,
            permits: Arc::new(Semaphore::new(VERIFICATIONS_MAX)),
            shutdown,
        }
    }

    /// Starts one. It ends when the receiver is dropped.
    pub(crate) fn start(
        &self,
        topic: &str,
        request: &VerifyRequest,
    ) -> Result<mpsc::Receiver<VerifyLine>, ErrorBody> {
        let options = self.options(topic, request)?;
        let permit = Arc::clone(&self.permits).try_acquire_owned().map_err(|_| {
            refused(
                ErrorCode::OperationInProgress,
                format!("{VERIFICATIONS_MAX} comparisons are running; wait for one of them to end"),
            )
        })?;
        let (sender, receiver) = mpsc::channel(LINES_MAX);
        let shutdown = self.shutdown.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let progress = |step| {
                // A reader that is slow misses steps, not the result.
                let _ = sender.try_send(VerifyLine::Progress(step));
            };
            let line = tokio::select! {
                result = verify(options, progress) => match result {
                    Ok(report) => VerifyLine::Report(report),
                    Err(error) => VerifyLine::Error(refused(ErrorCode::Internal, error.to_string())),
                },
                () = sender.closed() => return,
                () = shutdown.cancelled() => VerifyLine::Error(refused(ErrorCode::Refused, "the agent is shutting down")),
            };
            let _ = sender.send(line).await;
        });
        Ok(receiver)
    }

    fn options(&self, topic: &str, request: &VerifyRequest) -> Result<VerifyOptions, ErrorBody> {
        let mut mirrors = self.links.mirrors(request.link.as_deref());
        mirrors.retain(|mirror| mirror.description.mirror_topic_name == topic);
        let mirror = match mirrors.as_slice() {
            [] => {
                let text = format!(
                    "no link mirrors the topic \"{topic}\"; `standfast mirror list` shows those that are"
                );
                return Err(refused(ErrorCode::NotFound, text));
            }
            [one] => &one.description,
            several => {
                let names: Vec<&str> = several
                    .iter()
                    .map(|mirror| mirror.description.link_name.as_str())
                    .collect();
                let text = format!(
                    "the topic \"{topic}\" is mirrored by several links; say which with --link: {}",
                    names.join(", ")
                );
                return Err(refused(ErrorCode::BadRequest, text));
            }
        };
        let links = self.links.links();
        let link = links
            .iter()
            .find(|link| link.section().name == mirror.link_name)
            .ok_or_else(|| {
                refused(
                    ErrorCode::NotFound,
                    format!("there is no link \"{}\"", mirror.link_name),
                )
            })?;
        let cluster = |name: &ClusterName| {
            let entry = self.clusters.get(name).ok_or_else(|| {
                refused(
                    ErrorCode::Internal,
                    format!("cluster {name} is not configured"),
                )
            })?;
            clusters::options(entry, &self.secrets, CLIENT_ID)
                .map_err(|error| refused(ErrorCode::Refused, format!("cluster {name}: {error}")))
        };
        Ok(VerifyOptions {
            source: cluster(&link.section().source)?,
            destination: cluster(&link.section().destination)?,
            source_topic: mirror.source_topic_name.clone(),
            mirror_topic: mirror.mirror_topic_name.clone(),
            partition: request.partition,
            from: request.from,
            to: request.to,
        })
    }
}

fn refused(error_code: ErrorCode, message: impl Into<String>) -> ErrorBody {
    ErrorBody {
        error_code,
        message: message.into(),
        report: None,
    }
}
