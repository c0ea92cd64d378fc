//! librdkafka's log lines and errors, routed to `tracing`, without the flood that a dead cluster makes.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use standfast_discovery::ClusterName;

use crate::event::ClientName;

/// One line per client and kind in this time; a dead cluster makes several per second and broker.
const QUIET: Duration = Duration::from_secs(10);

/// Kinds that are told apart by the limiter; all later ones share one slot.
const MAX_KINDS: usize = 32;

/// Where a client's own messages go.
#[derive(Debug)]
pub(crate) struct ClientLog {
    pub(crate) client: ClientName,
    pub(crate) cluster: ClusterName,
    limiter: Mutex<Vec<Kind>>,
    all_down: AtomicBool,
}

#[derive(Debug)]
struct Kind {
    name: String,
    last: Instant,
    suppressed: u64,
}

impl ClientLog {
    pub(crate) fn new(client: ClientName, cluster: ClusterName) -> Self {
        Self {
            client,
            cluster,
            limiter: Mutex::new(Vec::new()),
            all_down: AtomicBool::new(false),
        }
    }

    /// A log line of librdkafka. Its own "error" means a lost connection more often than not, so nothing here is
    /// above WARN.
    pub(crate) fn line(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        use RDKafkaLogLevel::{Alert, Critical, Debug, Emerg, Error, Info, Notice, Warning};
        let (client, cluster) = (self.client.as_str(), self.cluster.as_str());
        match level {
            Emerg | Alert | Critical | Error | Warning => {
                if let Some(suppressed) = self.admit(facility) {
                    tracing::warn!(target: "librdkafka", client, cluster, facility, suppressed, "{message}");
                }
            }
            Notice | Info => {
                tracing::info!(target: "librdkafka", client, cluster, facility, "{message}")
            }
            Debug => tracing::debug!(target: "librdkafka", client, cluster, facility, "{message}"),
        }
    }

    /// A global error of a client, raised once per broker and failure.
    pub(crate) fn error(&self, error: &KafkaError, reason: &str) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            self.all_down.store(true, Relaxed);
        }
        let kind = error
            .rdkafka_error_code()
            .map_or_else(|| "error".to_owned(), |code| format!("{code:?}"));
        if let Some(suppressed) = self.admit(&kind) {
            tracing::warn!(
                target: "librdkafka",
                client = self.client.as_str(),
                cluster = self.cluster.as_str(),
                error = %error,
                suppressed,
                "{reason}"
            );
        }
    }

    /// Whether the client has said since the last call that it is connected to no broker.
    pub(crate) fn take_all_down(&self) -> bool {
        self.all_down.load(Relaxed) && self.all_down.swap(false, Relaxed)
    }

    /// Whether a line of this kind may be written now, and how many were left out before it.
    fn admit(&self, kind: &str) -> Option<u64> {
        let now = Instant::now();
        let mut kinds = self
            .limiter
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let full = kinds.len() >= MAX_KINDS;
        if let Some(known) = kinds
            .iter_mut()
            .find(|k| k.name == kind || (full && k.name == "other"))
        {
            if now.duration_since(known.last) < QUIET {
                known.suppressed += 1;
                return None;
            }
            known.last = now;
            return Some(std::mem::take(&mut known.suppressed));
        }
        let name = if kinds.len() + 1 >= MAX_KINDS {
            "other"
        } else {
            kind
        };
        if !full {
            kinds.push(Kind {
                name: name.to_owned(),
                last: now,
                suppressed: 0,
            });
        }
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_not_written() {
        let log = ClientLog::new(
            ClientName::new("producer-1".into()),
            ClusterName::new("west").expect("name"),
        );
        assert_eq!(log.admit("FAIL"), Some(0));
        assert_eq!(log.admit("FAIL"), None);
        assert_eq!(log.admit("OTHER"), Some(0));
        for n in 0..100 {
            log.admit(&format!("kind-{n}"));
        }
        assert!(log.limiter.lock().expect("lock").len() <= MAX_KINDS);
    }
}
