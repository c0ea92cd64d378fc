//! What is mirrored.

use std::fmt;

use anyhow::{Result, bail};
use standfast_servers::KafkaCluster;

/// Bytes of each record's value.
const RECORD_BYTES: u64 = 1000;

/// A topic's worth of records of 1 kB (random letters, which lz4 hardly shrinks).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Dataset {
    compression: &'static str,
    pub(super) partitions: i32,
    pub(super) records: u64,
    prefix: &'static str,
}

impl Dataset {
    /// The headline set alone.
    pub(super) fn quick(records: u64) -> Vec<Self> {
        vec![Self::new("lz4", 4, records)]
    }

    /// lz4 and none; 1, 4 and 50 partitions.
    pub(super) fn all(records: u64) -> Vec<Self> {
        let of =
            |compression| [1, 4, 50].map(|partitions| Self::new(compression, partitions, records));
        [of("lz4"), of("none")].concat()
    }

    /// Copied before anything is measured, so that JVMs have compiled what they run.
    pub(super) fn warm_up(records: u64) -> Self {
        Self {
            prefix: "warm-up",
            ..Self::new("lz4", 4, records)
        }
    }

    fn new(compression: &'static str, partitions: i32, records: u64) -> Self {
        Self {
            compression,
            partitions,
            records,
            prefix: "bench",
        }
    }

    pub(super) fn topic(&self) -> String {
        format!("{}-{self}", self.prefix)
    }

    pub(super) fn value_bytes(&self) -> f64 {
        (self.records * RECORD_BYTES) as f64
    }

    /// Creates the topic and fills it by Kafka's own load generator with its default settings.
    pub(super) fn load(&self, cluster: &KafkaCluster) -> Result<()> {
        let topic = self.topic();
        cluster.create_topic(&topic, self.partitions, &[])?;
        let (records, size) = (self.records.to_string(), RECORD_BYTES.to_string());
        let bootstrap = format!("bootstrap.servers={}", cluster.bootstrap());
        let compression = format!("compression.type={}", self.compression);
        let output = cluster.tool(
            "org.apache.kafka.tools.ProducerPerformance",
            &[
                "--topic",
                &topic,
                "--num-records",
                &records,
                "--record-size",
                &size,
                "--throughput",
                "-1",
                "--producer-props",
                &bootstrap,
                &compression,
            ],
        )?;
        let stored: i64 = cluster.log_end_offsets(&topic)?.iter().sum();
        if !output.status.success() || u64::try_from(stored).ok() != Some(self.records) {
            bail!(
                "loading {topic}: {stored} records stored; {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    }
}

impl fmt::Display for Dataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "1kB-{}-{}p", self.compression, self.partitions)
    }
}
