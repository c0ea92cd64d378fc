//! The Consul backend: KV with check-and-set, blocking queries, sessions.
//!
//! An own small client, because no maintained crate blocks on absent keys and renews sessions. Consul's rules that it
//! keeps are in developer.hashicorp.com/consul/api-docs/features/blocking and …/api-docs/session.

mod address;
mod kv;
mod pace;
mod session;
mod tls;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::announce::{self, Announcements};
use crate::error::Error;
use crate::handoff::Handoff;
use crate::name::{Epoch, FleetName};
use crate::options::ConsulOptions;
use crate::record::{FleetRecord, RecordError};
use crate::watch::Reports;
use crate::{CasOutcome, StoredVersion, Version, Versioned};
use address::{Address, Failure, Token};
use kv::{Entry, Mode, Put};
pub(crate) use session::SessionHandle;

/// An index that no key ever has: the version of a record that could not be read back.
const NEVER_MATCHES: u64 = u64::MAX;

#[derive(Debug)]
pub(crate) struct Consul {
    addresses: Vec<Address>,
    token: Token,
    options: ConsulOptions,
}

impl Consul {
    pub(crate) fn new(options: ConsulOptions) -> Result<Self, Error> {
        options.check()?;
        let tls = tls::client_config(&options)?;
        let addresses: Result<Vec<Address>, Error> = options
            .addresses
            .iter()
            .map(|text| Address::new(text, &options, &tls))
            .collect();
        Ok(Self {
            addresses: addresses?,
            token: Token::new(&options),
            options,
        })
    }

    pub(crate) fn addresses(&self) -> Vec<String> {
        self.addresses
            .iter()
            .map(|address| address.name().to_owned())
            .collect()
    }

    pub(crate) fn cache(&self) -> Option<(PathBuf, bool)> {
        self.options
            .cache_dir
            .clone()
            .map(|dir| (dir, self.options.start_from_cache))
    }

    pub(crate) fn spawn_endpoints(
        self: &Arc<Self>,
        fleet: &FleetName,
        reports: &Reports,
        tasks: &mut JoinSet<()>,
    ) {
        for address in 0..self.addresses.len() {
            tasks.spawn(watch::follow(
                Arc::clone(self),
                address,
                self.key(fleet, "active"),
                reports.clone(),
            ));
        }
    }

    fn key(&self, fleet: &FleetName, last: &str) -> String {
        format!("{}/{fleet}/{last}", self.options.prefix)
    }

    fn handoff_key(&self, fleet: &FleetName, epoch: Epoch) -> String {
        self.key(fleet, &format!("handoff/{epoch}"))
    }

    pub(crate) async fn read(
        &self,
        fleet: &FleetName,
    ) -> Result<Option<Versioned<FleetRecord>>, Error> {
        let key = self.key(fleet, "active");
        let (address, entry) = self.get_from_first(&key).await?;
        let Some(entry) = entry else { return Ok(None) };
        let value =
            FleetRecord::parse(&entry.value).map_err(|e| self.malformed(address, &key, e))?;
        let stored = StoredVersion::Index {
            address,
            modify_index: entry.modify_index,
        };
        Ok(Some(Versioned {
            version: Version {
                epoch: value.epoch,
                stored,
            },
            value,
        }))
    }

    pub(crate) async fn compare_and_set(
        &self,
        fleet: &FleetName,
        expected: Option<&Version>,
        record: &FleetRecord,
    ) -> Result<CasOutcome, Error> {
        let key = self.key(fleet, "active");
        let json = record.to_json().map_err(|reason| Error::Invalid {
            key: key.clone(),
            reason,
        })?;
        let (home, cas) = match expected.map(|version| &version.stored) {
            None => (None, 0),
            Some(StoredVersion::Index {
                address,
                modify_index,
            }) => (Some(*address), *modify_index),
            // A version of another backend never matches.
            Some(StoredVersion::Bytes(_)) => return Ok(CasOutcome::Conflict),
        };
        let mut unclear = false;
        let mut failures = Failures::default();
        for address in self.order(home) {
            match self.put(address, &key, Put::CheckAndSet(cas), &json).await {
                Ok(true) => {
                    return Ok(CasOutcome::Set(
                        self.version_of(address, &key, &json, record.epoch).await,
                    ));
                }
                // An earlier attempt may have been applied although its answer was lost.
                Ok(false) if unclear => {
                    return self.settle(address, &key, &json, record.epoch).await;
                }
                Ok(false) => return Ok(CasOutcome::Conflict),
                Err(failure) => {
                    unclear |= failure.may_have_been_applied();
                    failures.push(failure, &key)?;
                }
            }
        }
        let mut error = failures.into_error(&key);
        if unclear && let Error::Unavailable { reason, .. } = &mut error {
            reason.push_str(
                "; the write may have happened, read the record again before repeating it",
            );
        }
        Err(error)
    }

    /// Whether an attempt whose answer was lost had been applied: is our very record stored?
    async fn settle(
        &self,
        address: usize,
        key: &str,
        json: &[u8],
        epoch: Epoch,
    ) -> Result<CasOutcome, Error> {
        let entry = self
            .get(address, key, Mode::Consistent)
            .await
            .map_err(|f| f.into_error(key))?
            .entry;
        Ok(match entry {
            Some(entry) if entry.value == json => {
                let stored = StoredVersion::Index {
                    address,
                    modify_index: entry.modify_index,
                };
                CasOutcome::Set(Version { epoch, stored })
            }
            _ => CasOutcome::Conflict,
        })
    }

    /// The version of what was just written. Consul answers a write with `true` only, so it is read back; if somebody
    /// has changed it already, the version is one that conflicts, as it must.
    async fn version_of(&self, address: usize, key: &str, json: &[u8], epoch: Epoch) -> Version {
        let read = self.get(address, key, Mode::Consistent).await;
        let entry = read
            .ok()
            .and_then(|found| found.entry)
            .filter(|entry| entry.value == json);
        let modify_index = entry.map_or(NEVER_MATCHES, |entry| entry.modify_index);
        Version {
            epoch,
            stored: StoredVersion::Index {
                address,
                modify_index,
            },
        }
    }

    pub(crate) async fn write_handoff(&self, handoff: &Handoff) -> Result<String, Error> {
        let key = self.handoff_key(&handoff.fleet, handoff.epoch);
        let json = handoff.to_json().map_err(|reason| Error::Invalid {
            key: key.clone(),
            reason,
        })?;
        let mut failures = Failures::default();
        for address in self.order(None) {
            match self.put(address, &key, Put::Replace, &json).await {
                Ok(true) => return Ok(key),
                Ok(false) => failures.push(self.refused(address), &key)?,
                Err(failure) => failures.push(failure, &key)?,
            }
        }
        Err(failures.into_error(&key))
    }

    pub(crate) async fn read_handoff(
        &self,
        fleet: &FleetName,
        epoch: Epoch,
    ) -> Result<Option<Handoff>, Error> {
        let key = self.handoff_key(fleet, epoch);
        let (address, entry) = self.get_from_first(&key).await?;
        let handoff = entry.map(|entry| Handoff::parse(&entry.value)).transpose();
        handoff.map_err(|e| self.malformed(address, &key, e))
    }

    pub(crate) async fn announce(
        &self,
        fleet: &FleetName,
        agent: &str,
        content: &serde_json::Value,
    ) -> Result<Announcements, Error> {
        let key = self.key(fleet, announce::KEY);
        let mut failures = Failures::default();
        for tries in 1..=announce::TRIES {
            let (address, entry) = self.get_from_first(&key).await?;
            let cas = entry.as_ref().map_or(0, |entry| entry.modify_index);
            let stored = entry.as_ref().map(|entry| entry.value.as_slice());
            let (all, json) =
                announce::with(stored, agent, content).map_err(|reason| Error::Invalid {
                    key: key.clone(),
                    reason,
                })?;
            match self.put(address, &key, Put::CheckAndSet(cas), &json).await {
                Ok(true) => return Ok(all),
                // Another agent was faster.
                Ok(false) if tries < announce::TRIES => {}
                Ok(false) => failures.push(self.refused(address), &key)?,
                Err(failure) => failures.push(failure, &key)?,
            }
        }
        Err(failures.into_error(&key))
    }

    /// A consistent read from the first address that answers.
    async fn get_from_first(&self, key: &str) -> Result<(usize, Option<Entry>), Error> {
        let mut failures = Failures::default();
        for address in self.order(None) {
            match self.get(address, key, Mode::Consistent).await {
                Ok(found) => return Ok((address, found.entry)),
                Err(failure) => failures.push(failure, key)?,
            }
        }
        Err(failures.into_error(key))
    }

    /// The order in which addresses are tried: `home` first, those that have just failed last.
    fn order(&self, home: Option<usize>) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.addresses.len()).collect();
        order.sort_by_key(|&i| {
            let failed = self.addresses.get(i).is_some_and(Address::has_just_failed);
            (home != Some(i), failed)
        });
        order
    }

    fn address_name(&self, address: usize) -> String {
        self.addresses
            .get(address)
            .map_or_else(String::new, |a| a.name().to_owned())
    }

    fn malformed(&self, address: usize, key: &str, reason: RecordError) -> Error {
        Error::Malformed {
            address: self.address_name(address),
            key: key.to_owned(),
            reason,
        }
    }

    fn refused(&self, address: usize) -> Failure {
        Failure::Answer {
            address: self.address_name(address),
            reason: "the write was refused".to_owned(),
        }
    }

    /// Timeout of a blocking query: Consul adds up to a sixteenth of `wait` as jitter.
    fn blocking_timeout(&self, wait: Duration) -> Duration {
        wait + wait / 16 + self.options.request_timeout
    }
}

/// The failures of all addresses that were tried.
#[derive(Debug, Default)]
struct Failures(Vec<Failure>);

impl Failures {
    /// Keeps the failure and goes on, unless another address would fail in the same way.
    fn push(&mut self, failure: Failure, key: &str) -> Result<(), Error> {
        if let Failure::Denied { .. } = failure {
            return Err(failure.into_error(key));
        }
        self.0.push(failure);
        Ok(())
    }

    fn into_error(self, key: &str) -> Error {
        let (addresses, reasons): (Vec<String>, Vec<String>) =
            self.0.into_iter().map(Failure::into_parts).unzip();
        Error::Unavailable {
            address: addresses.join(", "),
            key: key.to_owned(),
            reason: reasons.join(" | "),
        }
    }
}
