//! The fleet's discovery, seen from an operation.

use std::time::Duration;

use standfast_discovery::{
    CasOutcome, Discovery, Epoch, Error, FleetName, FleetRecord, Handoff, Lock, Version, Versioned,
};

use super::{Coordination, CoordinationError, FleetLock};

/// [`Coordination`] on a real backend.
#[derive(Debug, Clone)]
pub(crate) struct DiscoveryCoordination {
    pub(crate) discovery: Discovery,
    pub(crate) fleet: FleetName,
    /// Shown to whoever finds the lock held.
    pub(crate) holder: String,
    pub(crate) lock_ttl: Duration,
}

impl Coordination for DiscoveryCoordination {
    type Lock = Lock;

    async fn lock(&self) -> Result<Lock, CoordinationError> {
        Ok(self
            .discovery
            .lock(&self.fleet, &self.holder, self.lock_ttl)
            .await?)
    }

    async fn read(&self) -> Result<Option<Versioned<FleetRecord>>, CoordinationError> {
        Ok(self.discovery.read(&self.fleet).await?)
    }

    async fn compare_and_set(
        &self,
        expected: &Version,
        record: &FleetRecord,
    ) -> Result<CasOutcome, CoordinationError> {
        Ok(self
            .discovery
            .compare_and_set(&self.fleet, Some(expected), record)
            .await?)
    }

    async fn write_handoff(&self, handoff: &Handoff) -> Result<String, CoordinationError> {
        Ok(self.discovery.write_handoff(handoff).await?)
    }

    async fn read_handoff(&self, epoch: Epoch) -> Result<Option<Handoff>, CoordinationError> {
        Ok(self.discovery.read_handoff(&self.fleet, epoch).await?)
    }
}

impl FleetLock for Lock {
    fn time_left(&self) -> Option<Duration> {
        Lock::remaining(self)
    }

    async fn release(self) {
        if let Err(error) = Lock::release(self).await {
            tracing::warn!(%error, "the failover lock was not released; it expires by itself");
        }
    }
}

impl From<Error> for CoordinationError {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::LockHeld { .. } => Self::Locked(text),
            Error::Unavailable { .. } | Error::Io { .. } => Self::Unreachable(text),
            _ => Self::Refused(text),
        }
    }
}
