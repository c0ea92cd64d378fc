//! When the credentials of the fleet's clusters end.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use standfast_discovery::{ClusterName, FleetRecord};
use standfast_secrets::{CredentialPart, Expiry, ExpiryState, SecretsStatus};

use crate::event::FleetEvent;
use crate::fleet::FleetShared;

/// A part of a cluster's credentials that ends at a known time. See [`Fleet::credential_expiries`](crate::Fleet::credential_expiries).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CredentialExpiry {
    /// The cluster that is reached with it; `None` for the token that Vault is read with.
    pub cluster: Option<ClusterName>,
    /// What ends, and when.
    pub expiry: Expiry,
}

/// All ends, of the active cluster's credentials and the standbys'.
pub(crate) fn of_clusters(record: &FleetRecord, status: &SecretsStatus) -> Vec<CredentialExpiry> {
    let mut found = Vec::new();
    for (path, expiry) in status.expiries() {
        let Some(path) = path else {
            found.push(CredentialExpiry {
                cluster: None,
                expiry: expiry.clone(),
            });
            continue;
        };
        let clusters = record.clusters.iter();
        let of_secret =
            clusters.filter(|(_, entry)| entry.secret.as_deref() == Some(path.as_str()));
        found.extend(of_secret.map(|(cluster, _)| CredentialExpiry {
            cluster: Some(cluster.clone()),
            expiry: expiry.clone(),
        }));
    }
    found
}

/// Tells the application of each end twice: when it is near, and when it is there. The log is written by the secrets' watch.
#[derive(Debug, Default)]
pub(crate) struct ExpiryEvents {
    told: BTreeMap<Told, ExpiryState>,
}

type Told = (Option<ClusterName>, CredentialPart, String, Timestamp);

impl ExpiryEvents {
    pub(crate) fn look(
        &mut self,
        fleet: &FleetShared,
        record: &FleetRecord,
        status: &SecretsStatus,
    ) {
        let mut seen = BTreeMap::new();
        for CredentialExpiry { cluster, expiry } in of_clusters(record, status) {
            if expiry.state == ExpiryState::Far {
                continue;
            }
            let key = (
                cluster.clone(),
                expiry.part,
                expiry.subject.clone(),
                expiry.not_after,
            );
            if self.told.get(&key) != Some(&expiry.state) {
                let left = expiry.not_after.duration_since(Timestamp::now());
                fleet.emit(FleetEvent::CredentialsExpire {
                    cluster,
                    what: expiry.part,
                    subject: expiry.subject,
                    not_after: expiry.not_after,
                    left: Duration::try_from(left).unwrap_or_default(),
                });
            }
            seen.insert(key, expiry.state);
        }
        self.told = seen;
    }
}
