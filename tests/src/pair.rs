//! Two clusters, west and east, and a fleet record in a folder.

use std::path::{Path, PathBuf};
use std::thread;

use standfast_servers::{KafkaBuilder, KafkaCluster};
use tempfile::TempDir;

/// Which cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The source.
    West,
    /// The destination.
    East,
}

/// Two running clusters and a scratch folder for the discovery files and the agents' data.
#[derive(Debug)]
pub struct Pair {
    /// The cluster that is active at first: the source.
    pub west: KafkaCluster,
    /// The destination.
    pub east: KafkaCluster,
    folder: TempDir,
}

impl Pair {
    /// Starts two clusters of one broker each.
    pub fn start() -> Self {
        Self::start_with(KafkaCluster::builder("west"), KafkaCluster::builder("east"))
    }

    /// Starts two clusters as described, side by side. They keep records for ever: those of some tests are dated years back, and
    /// the brokers would delete them half a minute after their start.
    pub fn start_with(west: KafkaBuilder, east: KafkaBuilder) -> Self {
        let [west, east] = [west, east].map(|cluster| cluster.property("log.retention.ms", "-1"));
        let (west, east) = thread::scope(|scope| {
            let west = scope.spawn(|| west.start().expect("west starts"));
            let east = scope.spawn(|| east.start().expect("east starts"));
            (west.join().expect("west"), east.join().expect("east"))
        });
        let folder = tempfile::tempdir().expect("scratch folder");
        Self { west, east, folder }
    }

    /// One of the clusters.
    pub fn side(&mut self, side: Side) -> &mut KafkaCluster {
        match side {
            Side::West => &mut self.west,
            Side::East => &mut self.east,
        }
    }

    /// The scratch folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The folder of the file discovery backend.
    pub fn discovery_folder(&self) -> PathBuf {
        self.folder.path().join("discovery")
    }
}
