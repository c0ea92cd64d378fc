//! What the application may want to know while it runs.

use std::time::Duration;

use jiff::Timestamp;
use standfast_discovery::{ClusterName, Epoch, FleetState};
use standfast_secrets::CredentialPart;

use crate::consumer::RebalanceEvent;

/// Events that wait for a slow subscriber; older ones are dropped (the subscriber sees `Lagged`).
pub const EVENT_BUFFER: usize = 1024;

/// Something that happened in a fleet or in one of its clients. Subscribe with [`Fleet::events`](crate::Fleet::events).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum FleetEvent {
    /// Discovery names another active cluster: clients begin to move.
    FlipBegun {
        /// The new epoch.
        epoch: Epoch,
        /// The cluster that was active, `None` at the start.
        from: Option<ClusterName>,
        /// The cluster that is active now.
        to: ClusterName,
    },
    /// Producers hold their records (`Fenced`) or may send (`Active`).
    StateChanged {
        /// The epoch.
        epoch: Epoch,
        /// The new state.
        state: FleetState,
    },
    /// A producer or consumer works on a checked client of the cluster.
    ClientReady {
        /// Which producer or consumer.
        client: ClientName,
        /// The epoch.
        epoch: Epoch,
        /// The cluster.
        cluster: ClusterName,
        /// Kafka's id of the cluster.
        cluster_id: String,
        /// Time since discovery named the cluster.
        after: Duration,
    },
    /// The active cluster does not answer, or the client cannot be made. It is tried again.
    ClientFailed {
        /// Which producer or consumer.
        client: ClientName,
        /// The cluster.
        cluster: ClusterName,
        /// What failed.
        reason: String,
        /// How often it has been tried.
        attempt: u32,
    },
    /// The brokers behind the bootstrap addresses belong to another cluster than the record says. The client is not used.
    WrongCluster {
        /// Which producer or consumer.
        client: ClientName,
        /// The cluster as named by the record.
        cluster: ClusterName,
        /// The cluster id in the record.
        expected: String,
        /// The cluster id that the brokers gave.
        found: String,
    },
    /// Records were handed to the new client again, in order and ahead of new ones: those that the old cluster had not
    /// acknowledged, and those that it had and that the new one does not hold.
    Resent {
        /// The producer.
        client: ClientName,
        /// The epoch.
        epoch: Epoch,
        /// How many.
        records: usize,
        /// How many of them the old cluster had acknowledged.
        acknowledged: usize,
    },
    /// Acknowledged records had to be let go before any standby was known to hold them: the producer's replay buffer is
    /// full, or they were too old. If the active cluster is lost before its mirror has them, they are lost with it.
    Unprotected {
        /// The producer.
        client: ClientName,
        /// How many since the last such event.
        records: u64,
    },
    /// A transaction was aborted, not by the application itself: by a flip, a fence, a rebalance or an error. The next one reads its records again.
    TransactionAborted {
        /// The transactional client.
        client: ClientName,
        /// The epoch under which it was open.
        epoch: Epoch,
        /// The cluster on which it was open.
        cluster: ClusterName,
        /// Why.
        reason: String,
        /// It was being committed, and nobody knows how that ended.
        outcome_unknown: bool,
    },
    /// It cannot be seen whether a standby holds what was acknowledged: it does not answer, the topic may not be read
    /// there, or its log is not a mirror of the active cluster's. Acknowledged records are kept meanwhile, within the bound.
    StandbyUnproven {
        /// The standby.
        cluster: ClusterName,
        /// What was found, and what to do.
        reason: String,
    },
    /// A standby is seen to hold what is acknowledged again.
    StandbyProven {
        /// The standby.
        cluster: ClusterName,
    },
    /// A client of a standby is connected and checked, and waits for a flip.
    StandbyReady {
        /// Whose client.
        client: ClientName,
        /// The standby.
        cluster: ClusterName,
        /// Kafka's id of it.
        cluster_id: String,
    },
    /// A standby cannot be used, or not any more. It is tried again; until then a flip to it would not help this client.
    StandbyFailed {
        /// Whose client.
        client: ClientName,
        /// The standby.
        cluster: ClusterName,
        /// What failed.
        reason: String,
    },
    /// A consumer starts reading a partition.
    PartitionStarted {
        /// The consumer.
        client: ClientName,
        /// The topic.
        topic: String,
        /// The partition.
        partition: i32,
        /// The first offset that will be delivered.
        offset: i64,
        /// How the offset was found.
        reason: StartReason,
    },
    /// The partitions of a consumer have changed. With [`on_rebalance`](crate::ConsumerBuilder::on_rebalance) it can be acted on
    /// before the rebalance goes on.
    Rebalanced {
        /// The consumer.
        client: ClientName,
        /// What has changed.
        event: RebalanceEvent,
    },
    /// A partition was assigned but is not read, because it is not known where to start. It is tried again.
    PartitionHeld {
        /// The consumer.
        client: ClientName,
        /// The topic.
        topic: String,
        /// The partition.
        partition: i32,
        /// Why, and what ends it.
        reason: String,
    },
    /// The client had a fatal error and is built anew.
    ClientRebuilt {
        /// Which producer or consumer.
        client: ClientName,
        /// librdkafka's error.
        reason: String,
    },
    /// An old client is gone: its threads have ended.
    ClientRetired {
        /// Which producer or consumer.
        client: ClientName,
        /// The cluster it worked on.
        cluster: ClusterName,
        /// How long that took in the background.
        took: Duration,
    },
    /// A new version of the credentials is in use.
    CredentialsApplied {
        /// Which producer or consumer.
        client: ClientName,
        /// The cluster.
        cluster: ClusterName,
        /// Version of the secret.
        version: u64,
    },
    /// The credentials of a cluster are not known; a move to it would have to wait for them.
    CredentialsMissing {
        /// The cluster.
        cluster: ClusterName,
        /// The secret's path.
        secret: String,
    },
    /// A part of a cluster's credentials ends soon, or has ended; the standbys' count as well. Told once when it comes near
    /// (`expiry_warning` of the secrets' options, 30 days ahead by default) and once at its end. What was near before the
    /// application subscribed is in [`Fleet::credential_expiries`](crate::Fleet::credential_expiries).
    CredentialsExpire {
        /// The cluster; `None`: the token that Vault is read with.
        cluster: Option<ClusterName>,
        /// What ends.
        what: CredentialPart,
        /// Subject of the certificate, for example `CN=payments`.
        subject: String,
        /// When.
        not_after: Timestamp,
        /// Time until then; zero: it is over.
        left: Duration,
    },
    /// Discovery has been silent for longer than the lease: producers hold their records until it answers.
    LeaseLost {
        /// How long it has been silent; `None`: it has not answered since the start.
        silent_for: Option<Duration>,
    },
    /// Discovery does not answer. The application works on with what is known.
    DiscoveryLost {
        /// The last error.
        reason: String,
    },
    /// Discovery answers again.
    DiscoveryBack,
}

/// Names a producer or consumer in events and logs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClientName(pub(crate) std::sync::Arc<str>);

impl ClientName {
    pub(crate) fn new(name: String) -> Self {
        Self(name.into())
    }

    /// The name, for example `producer-1` or `billing-2`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for ClientName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// How a consumer found the offset to start at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StartReason {
    /// Its own position on the previous cluster: mirrored logs have the same offsets.
    OwnPosition,
    /// The handoff: the new cluster holds the old one's log up to here, and the consumer had read further.
    Handoff,
    /// The offset that the group has committed on this cluster.
    Committed,
    /// The application has sought.
    Seek,
    /// The group has no offset, or one that is out of range; [`MissingOffset`](crate::MissingOffset) chose.
    Policy,
}
