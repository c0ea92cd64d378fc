//! The Consul backend (arrives with the next change).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::error::Error;
use crate::handoff::Handoff;
use crate::lock::Lock;
use crate::name::{Epoch, FleetName};
use crate::options::ConsulOptions;
use crate::record::FleetRecord;
use crate::watch::Reports;
use crate::{CasOutcome, Version, Versioned};

#[derive(Debug)]
pub(crate) enum Consul {}

#[derive(Debug)]
pub(crate) enum SessionHandle {}

impl SessionHandle {
    pub(crate) async fn release(self) -> Result<(), Error> {
        match self {}
    }
}

impl Consul {
    pub(crate) fn new(options: ConsulOptions) -> Result<Self, Error> {
        options.check()?;
        Err(Error::Options(
            "backend = \"consul\" is not built in yet; use \"file\"".to_owned(),
        ))
    }
    pub(crate) fn addresses(&self) -> Vec<String> {
        match *self {}
    }
    pub(crate) fn cache(&self) -> Option<(PathBuf, bool)> {
        match *self {}
    }
    pub(crate) fn spawn_endpoints(
        self: &Arc<Self>,
        _: &FleetName,
        _: &Reports,
        _: &mut JoinSet<()>,
    ) {
        match **self {}
    }
    pub(crate) async fn read(
        &self,
        _: &FleetName,
    ) -> Result<Option<Versioned<FleetRecord>>, Error> {
        match *self {}
    }
    pub(crate) async fn compare_and_set(
        &self,
        _: &FleetName,
        _: Option<&Version>,
        _: &FleetRecord,
    ) -> Result<CasOutcome, Error> {
        match *self {}
    }
    pub(crate) async fn write_handoff(&self, _: &Handoff) -> Result<String, Error> {
        match *self {}
    }
    pub(crate) async fn read_handoff(
        &self,
        _: &FleetName,
        _: Epoch,
    ) -> Result<Option<Handoff>, Error> {
        match *self {}
    }
    pub(crate) async fn lock(
        self: &Arc<Self>,
        _: &FleetName,
        _: &str,
        _: Duration,
    ) -> Result<Lock, Error> {
        match *self.as_ref() {}
    }
}
