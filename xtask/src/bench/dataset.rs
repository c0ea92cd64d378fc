//! What is mirrored.

use std::fmt;

use anyhow::{Result, bail};
use standfast_servers::KafkaCluster;

/// Bytes of each record's value.
const RECORD_BYTES: u64 = 1000;
/// The producer's `batch.size` for the main sets: that of producers which are set up for throughput.
const BATCH_BYTES: u32 = 128 * 1024;
/// Kafka's default `batch.size`.
const DEFAULT_BATCH_BYTES: u32 = 16 * 1024;

/// A transaction is committed after this time.
const TRANSACTION_MS: &str = "1";

/// A topic's worth of records of 1 kB (random letters, which lz4 hardly shrinks).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Dataset {
    compression: &'static str,
    pub(super) partitions: i32,
    pub(super) records: u64,
    batch_bytes: u32,
    record_bytes: u64,
    transactions: bool,
    prefix: &'static str,
}

impl Dataset {
    /// The headline set alone.
    pub(super) fn quick(records: u64) -> Vec<Self> {
        vec![Self::new("lz4", 4, records)]
    }

    /// lz4 and none; 1, 4 and 50 partitions; and the headline set in batches of Kafka's default size.
    pub(super) fn all(records: u64) -> Vec<Self> {
        let of =
            |compression| [1, 4, 50].map(|partitions| Self::new(compression, partitions, records));
        let mut all = [of("lz4"), of("none")].concat();
        all.push(Self {
            batch_bytes: DEFAULT_BATCH_BYTES,
            ..Self::new("lz4", 4, records)
        });
        all
    }

    /// What the brokers take in and give out before anything is measured, so that their JVMs have compiled what they run.
    pub(super) fn broker_warm_up() -> Self {
        Self {
            prefix: "broker-warm-up",
            ..Self::new("lz4", 4, 1_500_000)
        }
    }

    /// What a tool on a JVM copies before it is measured.
    pub(super) fn tool_warm_up() -> Self {
        let records = 200_000;
        Self {
            prefix: "warm-up",
            ..Self::new("lz4", 4, records)
        }
    }

    /// Every record of 100 bytes a batch of its own.
    pub(super) fn tiny(partitions: i32, records: u64) -> Self {
        Self {
            batch_bytes: 0,
            record_bytes: 100,
            prefix: "tiny",
            ..Self::new("none", partitions, records)
        }
    }

    /// Small transactions, one after the other.
    pub(super) fn transactional(partitions: i32, records: u64) -> Self {
        Self {
            batch_bytes: DEFAULT_BATCH_BYTES,
            record_bytes: 100,
            transactions: true,
            prefix: "transactions",
            ..Self::new("none", partitions, records)
        }
    }

    /// What is copied while a client of the destination is watched.
    pub(super) fn backlog(records: u64) -> Self {
        Self {
            prefix: "backlog",
            ..Self::new("lz4", 4, records)
        }
    }

    fn new(compression: &'static str, partitions: i32, records: u64) -> Self {
        Self {
            compression,
            partitions,
            records,
            batch_bytes: BATCH_BYTES,
            record_bytes: RECORD_BYTES,
            transactions: false,
            prefix: "bench",
        }
    }

    pub(super) fn topic(&self) -> String {
        format!("{}-{self}", self.prefix)
    }

    pub(super) fn value_bytes(&self) -> f64 {
        (self.records * self.record_bytes) as f64
    }

    /// Creates the topic and fills it by Kafka's own load generator; its settings are the defaults but for `compression.type` and `batch.size`.
    pub(super) fn load(&self, cluster: &KafkaCluster) -> Result<()> {
        let topic = self.topic();
        cluster.create_topic(&topic, self.partitions, &[])?;
        let (records, size) = (self.records.to_string(), self.record_bytes.to_string());
        let bootstrap = format!("bootstrap.servers={}", cluster.bootstrap());
        let compression = format!("compression.type={}", self.compression);
        let batch = format!("batch.size={}", self.batch_bytes);
        let mut arguments = vec![
            "--topic",
            &topic,
            "--num-records",
            &records,
            "--record-size",
            &size,
            "--throughput",
            "-1",
        ];
        if self.transactions {
            arguments.extend([
                "--transactional-id",
                &topic,
                "--transaction-duration-ms",
                TRANSACTION_MS,
            ]);
        }
        arguments.extend(["--producer-props", &bootstrap, &compression, &batch]);
        let output = cluster.tool("org.apache.kafka.tools.ProducerPerformance", &arguments)?;
        let stored: i64 = cluster.log_end_offsets(&topic)?.iter().sum();
        let stored_all = u64::try_from(stored).is_ok_and(|stored| {
            stored == self.records || (self.transactions && stored > self.records)
        });
        if !output.status.success() || !stored_all {
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
        match self.record_bytes {
            RECORD_BYTES => f.write_str("1kB")?,
            other => write!(f, "{other}B")?,
        }
        write!(f, "-{}-{}p", self.compression, self.partitions)?;
        match self.batch_bytes {
            BATCH_BYTES | 0 => Ok(()),
            other => write!(f, "-{}kB-batches", other / 1024),
        }
    }
}
