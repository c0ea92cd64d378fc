//! Counters as a plain snapshot.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::cache_line::OwnLine;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// Counters of one fleet over all its producers and consumers, since [`Fleet`](crate::Fleet) was made.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)+
            /// Records that wait for an acknowledgement now.
            pub records_unresolved: u64,
            /// Old clients that are being taken down in the background, in the whole process.
            pub clients_retiring: u64,
            /// Old clients that could not be taken down because the list of them was full; their threads stay.
            pub clients_abandoned: u64,
            /// Seconds until the first part of any cluster's credentials ends, the standbys' included; negative behind it,
            /// `None` while nothing is known to end. See [`Fleet::credential_expiries`](crate::Fleet::credential_expiries).
            pub credentials_expire_in_seconds: Option<i64>,
        }

        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Counter,)+
            /// Acknowledged records that began to wait once more, in a flip.
            pub(crate) waits_begun_again: Counter,
            /// Waits that ended otherwise than in the answer to a send: those, and what a closed producer gave up.
            pub(crate) waits_ended: Counter,
        }

        impl Counters {
            pub(crate) fn snapshot(&self) -> Stats {
                Stats {
                    $($name: self.$name.load(Relaxed),)+
                    records_unresolved: self.unresolved(),
                    clients_retiring: crate::reaper::retiring(),
                    clients_abandoned: crate::reaper::abandoned(),
                    credentials_expire_in_seconds: None,
                }
            }

            /// Made of what is counted anyway: one number that sends and answers both change would cost each record more.
            fn unresolved(&self) -> u64 {
                let sum = |counters: &[&Counter]| counters.iter().map(|c| c.load(Relaxed)).sum::<u64>();
                let (acknowledged, refused) = (&self.records_acknowledged, &self.records_refused);
                let ended = sum(&[acknowledged, refused, &self.waits_ended]);
                sum(&[&self.records_sent, &self.waits_begun_again]).saturating_sub(ended)
            }
        }
    };
}

counters! {
    /// Times that discovery named another active cluster.
    flips,
    /// Records given to producers.
    records_sent,
    /// Records acknowledged by the active cluster.
    records_acknowledged,
    /// Records refused for good.
    records_refused,
    /// Records handed to librdkafka again after a flip or a rebuilt client.
    records_resent,
    /// Of those, records that the old cluster had acknowledged and that the new one did not hold.
    records_replayed,
    /// Records that the new cluster refused although the old one had acknowledged them.
    replays_refused,
    /// Acknowledged records that are kept now, because no standby is known to hold them yet.
    records_kept,
    /// Bytes of them.
    bytes_kept,
    /// Acknowledged records that were let go before a standby was known to hold them.
    records_unprotected,
    /// Acknowledgements that came from a cluster after it had ceased to be the active one; they do not count.
    late_acknowledgements,
    /// Transactions committed.
    transactions_committed,
    /// Transactions aborted that had something in them, also by the application.
    transactions_aborted,
    /// Records handed over in transactions; those of aborted ones count too.
    transaction_records,
    /// Records handed to the application.
    records_consumed,
    /// Filler records of the link that were not shown to the application.
    filler_hidden,
    /// Records that came again, after a failover, and were not handed out a second time.
    records_repeated,
    /// Positions told to the group because another member reads on after a failover.
    positions_handed_over,
    /// Records read ahead and thrown away because the partition had moved to another cluster or member.
    records_discarded,
    /// Acks that did not count, because the record does not exist on the present cluster or the partition has gone.
    acks_ignored,
    /// Offset commits that were answered without error.
    commits,
    /// Offset commits that failed; the next one covers them.
    commits_failed,
    /// Clients built anew because of a fatal error.
    clients_rebuilt,
    /// Flips that found a connected client of the new cluster, per producer.
    warm_starts,
    /// Clients of standbys that are connected now, with the credentials that a flip would use.
    standbys_ready,
    /// Standbys that a rehearsal found in order.
    rehearsals_passed,
    /// Standbys that a rehearsal found unusable.
    rehearsals_failed,
    /// Times that producers began to hold because discovery was silent for longer than the lease.
    leases_lost,
    /// Clients refused because their brokers belong to another cluster.
    wrong_cluster,
}

/// Threads that count different things do not wait for each other.
type Counter = OwnLine<AtomicU64>;

pub(crate) fn add(counter: &AtomicU64, n: usize) {
    // Adding nothing would take the line away from who counts there.
    if n > 0 {
        counter.fetch_add(n as u64, Relaxed);
    }
}
