//! What a consumer's parts share, and which generation may read.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use standfast_discovery::{ClusterName, Epoch};
use tokio_util::sync::CancellationToken;

use super::Key;
use super::mailbox::Mailbox;
use super::partition::Partition;
use super::start::{Carried, MissingOffset, Own};
use crate::client_config::Properties;
use crate::event::ClientName;
use crate::fleet::FleetShared;
use crate::target::Target;

/// What the application's handle, the driver and the workers share.
#[derive(Debug)]
pub(crate) struct ConsumerShared {
    pub(super) fleet: Arc<FleetShared>,
    pub(super) name: ClientName,
    pub(super) group: String,
    pub(super) topics: Vec<String>,
    pub(super) properties: Properties,
    pub(super) policy: MissingOffset,
    pub(super) commit_interval: Duration,
    pub(super) show_id_header: bool,
    pub(super) show_filler: bool,
    pub(super) leave_out_repeated: bool,
    pub(super) mailbox: Mailbox,
    pub(super) table: Mutex<Table>,
    /// The application forgot to acknowledge; see `wait_for_acks`.
    pub(super) blocked: AtomicBool,
    pub(super) closing: AtomicBool,
    pub(super) closed: CancellationToken,
}

/// Which generation reads, and what it took over. Workers of older generations are refused.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) generation: u64,
    /// This one and older ones may not take over any more.
    pub(super) forbidden: u64,
    pub(super) cluster: Option<ClusterName>,
    pub(super) cluster_id: Option<String>,
    pub(super) epoch: Epoch,
    /// Partitions that are read.
    pub(super) owned: HashMap<Key, Arc<Partition>>,
    /// Partitions that were read on the previous cluster and have not been assigned since.
    pub(super) carried: HashMap<Key, Carried>,
}

impl ConsumerShared {
    /// Makes `generation` the one that reads: from here on nothing of an older one reaches the application, and the
    /// positions stand. False if a newer one was faster.
    pub(super) fn take_over(&self, generation: u64, target: &Target, cluster_id: &str) -> bool {
        let mut table = self.table();
        if generation <= table.generation.max(table.forbidden) {
            return false;
        }
        let same_cluster = table.cluster_id.as_deref() == Some(cluster_id);
        let from = table.epoch;
        for carried in table.carried.values_mut() {
            carried.same_cluster &= same_cluster;
            carried.handed_over = false;
        }
        let owned = std::mem::take(&mut table.owned);
        for (key, partition) in owned {
            partition.freeze();
            let carried = Carried {
                partition,
                from,
                same_cluster,
                handed_over: false,
            };
            table.carried.insert(key, carried);
        }
        table.generation = generation;
        table.cluster = Some(target.cluster.clone());
        table.cluster_id = Some(cluster_id.to_owned());
        table.epoch = target.epoch;
        true
    }

    /// Forbids `generation` to take over; false if it already has.
    pub(super) fn forbid(&self, generation: u64) -> bool {
        let mut table = self.table();
        table.forbidden = generation;
        table.generation != generation
    }

    pub(super) fn take_carried(&self, generation: u64, key: &Key) -> Option<Carried> {
        let mut table = self.table();
        if table.generation != generation {
            return None;
        }
        table.carried.remove(key)
    }

    /// What was read on the previous cluster and was not assigned here, once each.
    pub(super) fn left_over(&self, generation: u64) -> Vec<(Key, Carried)> {
        let mut table = self.table();
        if table.generation != generation {
            return Vec::new();
        }
        let left = table.carried.iter_mut();
        left.filter(|(_, carried)| !carried.same_cluster && !carried.handed_over)
            .map(|(key, carried)| {
                carried.handed_over = true;
                (key.clone(), carried.clone())
            })
            .collect()
    }

    pub(super) fn put_back(&self, generation: u64, key: Key, carried: Carried) {
        let mut table = self.table();
        if table.generation == generation {
            table.carried.insert(key, carried);
        }
    }

    pub(super) fn own(&self, generation: u64, key: &Key, partition: &Arc<Partition>) {
        let mut table = self.table();
        if table.generation == generation {
            table.owned.insert(key.clone(), Arc::clone(partition));
        } else {
            partition.end();
        }
    }

    pub(super) fn disown(&self, generation: u64, key: &Key) {
        let mut table = self.table();
        if table.generation == generation {
            table.owned.remove(key);
        }
    }

    pub(super) fn is_current(&self, generation: u64) -> bool {
        self.table().generation == generation
    }

    /// The epoch now; grows with the record also while the cluster stays.
    pub(super) fn epoch(&self) -> Epoch {
        let mut table = self.table();
        let live = self.fleet.targets.borrow();
        // A target on the way to another cluster is not this generation's epoch.
        if let Some(live) = live.as_ref().filter(|live| live.epoch > table.epoch)
            && table.cluster.as_ref() == Some(&live.cluster)
        {
            table.epoch = live.epoch;
        }
        table.epoch
    }

    pub(super) fn target(&self) -> Option<Arc<Target>> {
        self.fleet.targets.borrow().clone()
    }

    /// Whether there is a partition that can go on at its own position.
    pub(super) fn has_usable_position(&self, target: &Target) -> bool {
        self.table()
            .carried
            .iter()
            .any(|((topic, number), carried)| {
                Own::from(carried).is_usable(|from| target.handoffs.bound(topic, *number, from))
            })
    }

    pub(super) fn begin_close(&self) {
        self.closing.store(true, Relaxed);
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Relaxed)
    }

    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
