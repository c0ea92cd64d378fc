//! Back to a cluster whose brokers librdkafka has forgotten.
//!
//! A cluster that wakes up may answer a question for metadata without naming one broker. librdkafka (2.12.1) then drops those it
//! knew, and the same answer may cancel its own return to the bootstrap list for good (confluentinc/librdkafka#5301): it says that
//! all brokers are down and never connects again. So when it says that, the list is given to it once more until somebody answers.

use std::time::{Duration, Instant};

use rdkafka::client::{Client, ClientContext};

use crate::client_log::ClientLog;
use crate::ffi;

/// What librdkafka gets to find back by itself.
const FIRST: Duration = Duration::from_secs(2);

/// Longest pause between two attempts. librdkafka keeps each list it is given, about 100 bytes.
const LONGEST: Duration = Duration::from_secs(60);

/// One question. It may hold up a thread that serves a client.
const ASK: Duration = Duration::from_millis(100);

/// Watches over one client, on the thread that serves it.
#[derive(Debug, Default)]
pub(crate) struct WayBack {
    lost: Option<Lost>,
}

#[derive(Debug)]
struct Lost {
    next: Instant,
    pause: Duration,
}

impl WayBack {
    /// Costs nothing while the client has a broker.
    pub(crate) fn look<C: ClientContext>(
        &mut self,
        client: &Client<C>,
        log: &ClientLog,
        bootstrap: &str,
    ) {
        let Some(lost) = &mut self.lost else {
            if log.take_all_down() {
                self.lost = Some(Lost {
                    next: Instant::now() + FIRST,
                    pause: FIRST,
                });
            }
            return;
        };
        if Instant::now() < lost.next {
            return;
        }
        if ffi::is_answered(client, ASK) {
            self.lost = None;
            return;
        }
        tracing::info!(
            client = log.client.as_str(),
            cluster = %log.cluster,
            "no broker answers: begins again at the bootstrap list"
        );
        ffi::add_brokers(client, bootstrap);
        // A question makes it connect at once.
        ffi::is_answered(client, ASK);
        lost.pause = (lost.pause * 2).min(LONGEST);
        lost.next = Instant::now() + lost.pause;
    }
}
