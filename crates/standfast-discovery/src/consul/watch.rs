//! Follows one key at one address by blocking queries.

use std::sync::Arc;

use super::Consul;
use super::kv::{Found, Mode};
use super::pace::{Backoff, Pace};
use crate::record::FleetRecord;
use crate::view::Report;
use crate::watch::Reports;

/// Asks until the receiver of the reports is gone.
pub(super) async fn follow(consul: Arc<Consul>, address: usize, key: String, reports: Reports) {
    let mut backoff = Backoff::default();
    let mut pace = Pace::new();
    let mut index = 0;
    loop {
        pace.wait().await;
        let mode = Mode::Blocking {
            index,
            wait: consul.options.wait,
            stale: consul.options.stale,
        };
        let result = consul.get(address, &key, mode).await;
        let failed = result.is_err();
        let report = match result {
            Ok(found) => {
                index = next_index(index, found.index);
                consul.report(address, &key, found)
            }
            Err(failure) => {
                // The next question is answered at once: whether Consul is back shows without a wait.
                index = 0;
                Report::Failed(failure.into_error(&key).to_string())
            }
        };
        if reports.send((address, report)).await.is_err() {
            return;
        }
        if failed {
            backoff.pause().await;
        } else {
            backoff.reset();
        }
    }
}

/// The index for the next blocking query. An index that goes backwards (Consul restored or restarted empty) starts
/// over; 0 would not block at all.
pub(super) fn next_index(asked: u64, answered: u64) -> u64 {
    match answered {
        0 => 1,
        answered if answered < asked => 0,
        answered => answered,
    }
}

impl Consul {
    fn report(&self, address: usize, key: &str, found: Found) -> Report {
        let record = found
            .entry
            .map(|entry| FleetRecord::parse(&entry.value))
            .transpose();
        match record {
            Err(error) => Report::Malformed(self.malformed(address, key, error).to_string()),
            Ok(record) if found.known_leader => Report::Answer(record),
            Ok(record) => {
                let reason = format!(
                    "{} has no leader, its answer may be old",
                    self.address_name(address)
                );
                Report::Unconfirmed(record, reason)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_rules() {
        assert_eq!(next_index(0, 7), 7);
        assert_eq!(next_index(7, 7), 7);
        assert_eq!(next_index(7, 9), 9);
        assert_eq!(next_index(9, 3), 0);
        assert_eq!(next_index(9, 0), 1);
        assert_eq!(next_index(0, 0), 1);
    }
}
