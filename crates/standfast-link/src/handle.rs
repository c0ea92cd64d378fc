//! The handle of a link: describes it, asks for lags, and stops its mirrors for a failover.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use standfast_wire::Cluster;
use tokio::sync::oneshot;
use tracing::error;
use tracing::info;

use crate::description::{
    GroupDescription, LagNow, LinkDescription, MirrorDescription, StoppedMirror,
};
use crate::lifecycle::Wanted;
use crate::link::Inner;
use crate::partition::PartitionId;
use crate::shard::Command;
use crate::topics::{self, Topic};
use crate::{Error, acls, calls, groups, metrics, rate, restore, transactions};

/// How long the destination may take to answer for its log ends after the mirrors were stopped.
pub(crate) const LOG_ENDS_MAX: Duration = Duration::from_secs(5);

/// How long the destination may take to abort the transactions that were mirrored in part.
const ABORTS_MAX: Duration = Duration::from_secs(5);

/// How long requests without an answer are given to land before the log ends are asked for.
pub(crate) const UNANSWERED_SETTLES: Duration = Duration::from_millis(500);

/// Asks and steers a running link. Cheap to clone.
#[derive(Debug, Clone)]
pub struct LinkHandle {
    pub(crate) inner: Arc<Inner>,
}

impl LinkHandle {
    /// The link as it is now. Never waits for a cluster.
    pub fn describe(&self) -> LinkDescription {
        let inner = &self.inner;
        let name = inner.options.name.as_str();
        let state = inner.options.lifecycle.state();
        let mirrors: Vec<MirrorDescription> = inner
            .topics()
            .iter()
            .map(|topic| {
                let topic_name = topic.name();
                let mut mirror = topic.describe(name, state.wanted(&topic_name), state.paused);
                let phase = state.restore_phase(&topic_name);
                mirror.mirror_status = restore::shown(mirror.mirror_status, phase);
                self.with_members(mirror)
            })
            .collect();
        let (link_state, link_error) = inner.state(&mirrors);
        let id = inner.producer_id.load(Ordering::Acquire);
        LinkDescription {
            link_name: name.to_owned(),
            link_state,
            link_error,
            source_cluster_id: inner.source.get().map(|c| c.cluster_id().to_owned()),
            destination_cluster_id: inner.destination.get().map(|c| c.cluster_id().to_owned()),
            producer_id: (id >= 0).then_some(id),
            rate_limit: inner.rate.get(),
            throttled_seconds: inner.rate.waited().as_secs_f64(),
            mirrors,
            groups: self.described_groups(),
            members: inner.share.members(),
            acl_sync: inner.live().acl_sync.as_ref().map(|_| inner.acls().clone()),
        }
    }

    /// Failover: stops all mirrors for good. Waits until what is in flight is answered, at most `deadline`; then the connections are closed, and after
    /// this returns nothing is appended. Never waits for the source. May be called again.
    ///
    /// Of a shared link only this engine stops; see [`LinkHandle::stop_everywhere`].
    pub async fn stop_mirrors(&self, deadline: Duration) -> Result<Vec<StoppedMirror>, Error> {
        let drained = self.halt(Instant::now() + deadline).await;
        self.after_stop(drained, None).await
    }

    /// As [`LinkHandle::stop_mirrors`], at all engines that share the link: after it returns nothing of the link is appended by any of them. One that
    /// is silent is waited for until its session is over, as long as `patience` allows; if it is not known whether it has stopped, no log end
    /// is named, and the error says so. `token` names the operation; the order stands, also for engines that start later, until
    /// [`Lifecycle::set_stop`](crate::Lifecycle::set_stop) takes it back.
    pub async fn stop_everywhere(
        &self,
        token: u64,
        deadline: Duration,
    ) -> Result<Vec<StoppedMirror>, Error> {
        let share = &self.inner.share;
        if !share.is_shared() {
            return self.stop_mirrors(deadline).await;
        }
        self.inner.options.lifecycle.set_stop(Some(token));
        let (drained, confirmed) = tokio::join!(
            self.halt(Instant::now() + deadline),
            share.confirmed(deadline.max(share.patience()))
        );
        if let Err(text) = &confirmed {
            error!(link = %self.inner.options.name, reason = text, "other agents of the link may still write");
        }
        self.after_stop(drained, confirmed.err()).await
    }

    /// The longest that [`LinkHandle::stop_everywhere`] takes beyond its deadline.
    pub fn patience(&self) -> Duration {
        self.inner.share.patience()
    }

    /// Nothing more is appended by this engine.
    async fn halt(&self, until: Instant) -> bool {
        let inner = &self.inner;
        inner.stop.cancel();
        let mut answers = Vec::new();
        for shard in inner.all_shards() {
            let (done, answer) = oneshot::channel();
            if shard
                .send(Command::Stop {
                    deadline: until,
                    done,
                })
                .await
                .is_ok()
            {
                answers.push(answer);
            }
        }
        let mut drained = true;
        for answer in answers {
            drained &= answer.await.unwrap_or(false);
        }
        drained
    }

    /// What the destination holds now. `unconfirmed`: why other engines may still write.
    async fn after_stop(
        &self,
        drained: bool,
        unconfirmed: Option<String>,
    ) -> Result<Vec<StoppedMirror>, Error> {
        let inner = &self.inner;
        let Some(destination) = inner.destination.get() else {
            return Err(Error::NotConnected {
                link: inner.options.name.to_string(),
                cluster: "destination",
            });
        };
        if !drained {
            // Requests that were never answered may still wait in the broker's queue.
            tokio::time::sleep(UNANSWERED_SETTLES).await;
        }
        let ids = self.partitions(destination, None).await?;
        let asked = calls::log_ends(destination, &ids);
        let (ends, ()) = tokio::join!(
            tokio::time::timeout(LOG_ENDS_MAX, asked),
            acls::release(inner, destination)
        );
        let ends = ends.unwrap_or_else(|_| {
            ids.iter()
                .map(|id| {
                    (
                        id.clone(),
                        Err(format!(
                            "the destination did not answer for its log end within {LOG_ENDS_MAX:?}"
                        )),
                    )
                })
                .collect()
        });
        // After the log ends were noted: an abort marker is no part of the source's log.
        let aborting = transactions::abort_open(destination, &inner.options.name, &ids);
        let aborted = tokio::time::timeout(ABORTS_MAX, aborting).await;
        let topics = inner.topics();
        Ok(ids
            .iter()
            .map(|id| {
                let open = match &aborted {
                    Ok(aborted) => aborted.get(id).cloned().unwrap_or(Ok(0)),
                    Err(_) => Err(format!("not asked within {ABORTS_MAX:?}")),
                };
                let named = ends.get(id).cloned();
                let end = match &unconfirmed {
                    Some(text) => Err(text.clone()),
                    None => named.unwrap_or_else(|| {
                        Err("the destination did not name a log end".to_owned())
                    }),
                };
                let mut stopped = topics::status(&topics, id).describe_stopped(
                    &id.topic,
                    id.partition,
                    drained,
                    end,
                    open,
                );
                restore::stopped_meanwhile(&inner.options.lifecycle, &mut stopped);
                stopped
            })
            .collect())
    }

    fn described_groups(&self) -> Vec<GroupDescription> {
        let live = self.inner.live();
        let mut groups = self.inner.groups().clone();
        if live.prefix_groups {
            for group in &mut groups {
                group.mirror_group = Some(live.mirror_group(&group.group));
            }
        }
        groups
    }

    /// Names the agents that mirror what this one does not.
    fn with_members(&self, mut mirror: MirrorDescription) -> MirrorDescription {
        if self.inner.share.is_shared() {
            let topic: Arc<str> = mirror.mirror_topic_name.as_str().into();
            for lag in &mut mirror.mirror_lags {
                let id = PartitionId::new(Arc::clone(&topic), lag.partition);
                lag.member = self.inner.share.elsewhere(&id);
            }
        }
        mirror
    }

    /// The partitions known to the link (of all topics, or of some); for topics that it could not start (the source was never reached), those that the
    /// destination knows.
    pub(crate) async fn partitions(
        &self,
        destination: &Cluster,
        only: Option<&HashSet<Arc<str>>>,
    ) -> Result<Vec<PartitionId>, Error> {
        let (unknown, mut ids) = {
            let topics = self.inner.topics();
            let (unknown, known): (Vec<&Topic>, Vec<&Topic>) = topics
                .iter()
                .filter(|t| only.is_none_or(|only| only.contains(&t.name())))
                .partition(|t| t.partitions().is_empty());
            let unknown: Vec<Arc<str>> = unknown.into_iter().map(Topic::name).collect();
            let ids: Vec<PartitionId> = known.into_iter().flat_map(Topic::ids).collect();
            (unknown, ids)
        };
        if !unknown.is_empty() {
            let names: Vec<&str> = unknown.iter().map(|n| &**n).collect();
            let metadata = destination
                .topics(&names)
                .await
                .map_err(|source| self.error("destination", source))?;
            for topic in unknown {
                let count = metadata
                    .topics
                    .get(&topic)
                    .map_or(0, |t| t.partitions.len());
                ids.extend(
                    (0..i32::try_from(count).unwrap_or(0)).map(|partition| PartitionId {
                        topic: Arc::clone(&topic),
                        partition,
                    }),
                );
            }
        }
        Ok(ids)
    }

    /// Both clusters, or which of them was never reached.
    pub(crate) fn both_clusters(&self) -> Result<(&Cluster, &Cluster), Error> {
        let unreached = |cluster| Error::NotConnected {
            link: self.inner.options.name.to_string(),
            cluster,
        };
        let source = self.inner.source.get();
        let destination = self.inner.destination.get();
        Ok((
            source.ok_or_else(|| unreached("source"))?,
            destination.ok_or_else(|| unreached("destination"))?,
        ))
    }

    /// Asks both clusters for their log ends: first the source, then the destination, so that no record is counted as mirrored too early. Mirrors that
    /// were stopped one by one are left out.
    pub async fn lag_now(&self) -> Result<Vec<LagNow>, Error> {
        let link = || self.inner.options.name.to_string();
        let (source, destination) = self.both_clusters()?;
        let state = self.inner.options.lifecycle.state();
        let mut names = self.inner.topic_names();
        names.retain(|name| state.wanted(name) != Wanted::Stopped);
        let asked: Vec<&str> = names.iter().map(|name| &**name).collect();
        let metadata = source
            .topics(&asked)
            .await
            .map_err(|e| self.error("source", e))?;
        let ids: Vec<PartitionId> = names
            .into_iter()
            .flat_map(|name| {
                let count = metadata
                    .topics
                    .get(&name)
                    .map_or(0, |t| i32::try_from(t.partitions.len()).unwrap_or(0));
                (0..count).map(move |partition| PartitionId {
                    topic: Arc::clone(&name),
                    partition,
                })
            })
            .collect();
        let mut source_ends = calls::log_ends(source, &ids).await;
        let mut destination_ends = calls::log_ends(destination, &ids).await;
        let unanswered = |cluster: &'static str, text: String| Error::LogEnd {
            link: link(),
            cluster,
            reason: text,
        };
        let missing = || Err("no answer".to_owned());
        ids.into_iter()
            .map(|id| {
                let source_end = source_ends
                    .remove(&id)
                    .unwrap_or_else(missing)
                    .map_err(|t| unanswered("source", format!("{id}: {t}")))?;
                let destination_end = destination_ends
                    .remove(&id)
                    .unwrap_or_else(missing)
                    .map_err(|t| unanswered("destination", format!("{id}: {t}")))?;
                Ok(LagNow {
                    topic: id.topic.to_string(),
                    partition: id.partition,
                    source_log_end_offset: source_end,
                    destination_log_end_offset: destination_end,
                })
            })
            .collect()
    }

    /// Carries the offsets of all groups over now, instead of at the next interval.
    pub async fn sync_groups_now(&self) -> Result<Vec<GroupDescription>, Error> {
        if self.inner.stop.is_cancelled() {
            return Err(Error::NotRunning {
                link: self.inner.options.name.to_string(),
            });
        }
        let (source, destination) = self.both_clusters()?;
        groups::sync(&self.inner, source, destination).await;
        Ok(self.described_groups())
    }

    /// Sets the most bytes of record data per second that the link reads from its source (`None`: no limit), from now until it is set again or the
    /// link is started again with its options. Takes effect at once.
    ///
    /// # Errors
    /// The limit is below [`MIN_RATE_LIMIT`](crate::MIN_RATE_LIMIT).
    pub fn set_rate_limit(&self, bytes_per_second: Option<u64>) -> Result<(), Error> {
        rate::check(bytes_per_second)?;
        self.inner.rate.set(bytes_per_second);
        info!(link = %self.inner.options.name, ?bytes_per_second, "rate limit set");
        Ok(())
    }

    /// Registers the link's metrics; they are read at each scrape.
    pub fn metrics(&self, registry: &mut prometheus_client::registry::Registry) {
        registry.register_collector(Box::new(metrics::Collector::new(self.clone())));
    }

    pub(crate) fn error(&self, cluster: &'static str, source: standfast_wire::Error) -> Error {
        Error::Cluster {
            link: self.inner.options.name.to_string(),
            cluster,
            source,
        }
    }
}
