//! What clients aim at: the active cluster, how to reach it, and what is known about the flip that led there.

use std::sync::Arc;
use std::time::Instant;

use standfast_discovery::{
    ClusterEntry, ClusterName, Epoch, FleetState, Handoff, SecurityProtocol,
};
use standfast_secrets::Credentials;

/// Mechanism when neither the record nor the secret names one.
const DEFAULT_MECHANISM: &str = "PLAIN";

/// The state that every producer and consumer of a fleet moves to.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) epoch: Epoch,
    pub(crate) state: FleetState,
    pub(crate) cluster: ClusterName,
    pub(crate) entry: ClusterEntry,
    pub(crate) credentials: Option<Arc<Credentials>>,
    pub(crate) handoffs: Handoffs,
    /// When discovery first named this cluster.
    pub(crate) since: Instant,
    /// The fleet's other clusters.
    pub(crate) standbys: Arc<Vec<Standby>>,
}

/// A cluster of the fleet that is not the active one: as a target that has no flips.
#[derive(Debug, Clone)]
pub(crate) struct Standby(pub(crate) Arc<Target>);

impl Target {
    pub(crate) fn standby_names(&self) -> Vec<ClusterName> {
        self.standbys
            .iter()
            .map(|standby| standby.0.cluster.clone())
            .collect()
    }

    pub(crate) fn sasl_mechanism(&self) -> &str {
        let of_secret = self
            .credentials
            .as_ref()
            .and_then(|c| c.sasl_mechanism.as_deref());
        // The secret first, as the agent does: a new version of it can change the mechanism together with the password.
        of_secret
            .or(self.entry.sasl_mechanism.as_deref())
            .unwrap_or(DEFAULT_MECHANISM)
    }

    /// Whether two targets can be served by the same client.
    pub(crate) fn same_client(&self, other: &Self) -> bool {
        self.cluster == other.cluster
            && self.entry.bootstrap == other.entry.bootstrap
            && self.entry.cluster_id == other.entry.cluster_id
            && self.entry.security_protocol == other.entry.security_protocol
            && self.sasl_mechanism() == other.sasl_mechanism()
            && self.same_tls(other)
    }

    /// The SASL login, if `other` has a different one for the same client.
    pub(crate) fn new_login<'a>(&'a self, other: &Self) -> Option<(&'a str, &'a str, u64)> {
        if !self.uses_sasl() {
            return None;
        }
        let login = |target: &'a Self| {
            let credentials = target.credentials.as_deref()?;
            Some((
                credentials.username.as_deref()?,
                credentials.password.as_ref()?.expose(),
                credentials.version,
            ))
        };
        let (username, password, version) = login(self)?;
        let old = other.credentials.as_deref();
        let same = old.is_some_and(|old| {
            old.username.as_deref() == Some(username)
                && old
                    .password
                    .as_ref()
                    .is_some_and(|old| old.expose() == password)
        });
        (!same).then_some((username, password, version))
    }

    /// Whether what it takes to log in is known.
    pub(crate) fn has_credentials(&self) -> bool {
        self.entry.secret.is_none()
            || self.credentials.is_some()
            || self.entry.security_protocol == SecurityProtocol::Plaintext
    }

    pub(crate) fn uses_sasl(&self) -> bool {
        matches!(
            self.entry.security_protocol,
            SecurityProtocol::SaslPlaintext | SecurityProtocol::SaslSsl
        )
    }

    pub(crate) fn uses_tls(&self) -> bool {
        matches!(
            self.entry.security_protocol,
            SecurityProtocol::Ssl | SecurityProtocol::SaslSsl
        )
    }

    fn same_tls(&self, other: &Self) -> bool {
        if !self.uses_tls() {
            return true;
        }
        match (self.credentials.as_deref(), other.credentials.as_deref()) {
            (None, None) => true,
            (Some(a), Some(b)) => {
                a.ssl_ca == b.ssl_ca
                    && a.ssl_certificate == b.ssl_certificate
                    && a.ssl_key == b.ssl_key
                    && a.ssl_key_password == b.ssl_key_password
            }
            _ => false,
        }
    }
}

/// The handoffs of the last flips.
#[derive(Debug, Clone, Default)]
pub(crate) struct Handoffs {
    /// A handoff is named by the record but has not been read yet.
    pub(crate) pending: bool,
    /// Newest last.
    pub(crate) known: Arc<Vec<Arc<Handoff>>>,
}

/// Up to which offset the new cluster holds the old one's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bound {
    /// Both logs are equal below this offset.
    Below(i64),
    /// Nobody knows.
    Unknown,
    /// It is being read.
    Pending,
}

impl Handoffs {
    /// The bound for a client that comes from `from`: every flip since then limits it.
    pub(crate) fn bound(&self, topic: &str, partition: i32, from: Epoch) -> Bound {
        if self.pending {
            return Bound::Pending;
        }
        let mut bound = Bound::Unknown;
        for handoff in self.known.iter().filter(|h| h.epoch > from) {
            match (bound, handoff.offset(topic, partition)) {
                (_, None) => return Bound::Unknown,
                (Bound::Below(old), Some(offset)) => bound = Bound::Below(old.min(offset)),
                (_, Some(offset)) => bound = Bound::Below(offset),
            }
        }
        bound
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use standfast_discovery::{FleetName, Timestamp};

    use super::*;

    fn handoff(epoch: u64, offsets: Vec<Option<i64>>) -> Arc<Handoff> {
        Arc::new(Handoff {
            fleet: FleetName::new("f").expect("name"),
            epoch: Epoch(epoch),
            from: ClusterName::new("a").expect("name"),
            to: ClusterName::new("b").expect("name"),
            written_at: Timestamp::UNIX_EPOCH,
            planned: false,
            topics: BTreeMap::from([("t".to_owned(), offsets)]),
        })
    }

    #[test]
    fn every_flip_since_then_limits_the_bound() {
        let handoffs = Handoffs {
            pending: false,
            known: Arc::new(vec![
                handoff(3, vec![Some(50), None]),
                handoff(5, vec![Some(70), Some(9)]),
            ]),
        };
        assert_eq!(handoffs.bound("t", 0, Epoch(2)), Bound::Below(50));
        assert_eq!(handoffs.bound("t", 0, Epoch(3)), Bound::Below(70));
        assert_eq!(handoffs.bound("t", 1, Epoch(2)), Bound::Unknown);
        assert_eq!(handoffs.bound("t", 1, Epoch(4)), Bound::Below(9));
        assert_eq!(handoffs.bound("t", 0, Epoch(5)), Bound::Unknown);
        assert_eq!(handoffs.bound("other", 0, Epoch(2)), Bound::Unknown);
        let pending = Handoffs {
            pending: true,
            ..handoffs
        };
        assert_eq!(pending.bound("t", 0, Epoch(2)), Bound::Pending);
    }
}
