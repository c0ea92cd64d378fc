//! Transactions: how many are mirrored per second.

use anyhow::Result;

use super::contender::Contender;
use super::dataset::Dataset;
use super::standfast::Standfast;
use super::{Clusters, time_copy};

/// Partitions, and records in all; the producer puts some tens of records into a transaction.
const SETS: [(i32, u64); 3] = [(1, 60_000), (4, 60_000), (16, 120_000)];
/// The first round also warms the brokers up and is not counted.
const ROUNDS: usize = 2;

pub(super) fn run(clusters: &Clusters, step: &dyn Fn(String)) -> Result<String> {
    let mut text = String::from(
        "| partitions | transactions (markers) | seconds | transactions/s | CPU-s per thousand |\n|--:|--:|--:|--:|--:|\n",
    );
    for (partitions, records) in SETS {
        let data = Dataset::transactional(partitions, records);
        step(format!("{data}: loading {} records", data.records));
        data.load(&clusters.source)?;
        let stored: i64 = clusters.source.log_end_offsets(&data.topic())?.iter().sum();
        // What is no record is a marker.
        let markers = stored - i64::try_from(data.records)?;
        let mut best = (f64::MAX, f64::MAX);
        for round in 0..ROUNDS {
            let mut link = Standfast::prepare(clusters)?;
            link.mirror(&[data.topic()])?;
            let took = time_copy(clusters, &data.topic(), &mut link)?.as_secs_f64();
            let cpu = link.usage()?.cpu.as_secs_f64();
            step(format!(
                "{data}: {markers} markers in {took:.1} s, {cpu:.2} CPU-s"
            ));
            drop(link);
            clusters.destination.delete_topic(&data.topic())?;
            if round > 0 {
                best = (took, cpu);
            }
        }
        text.push_str(&format!(
            "| {partitions} | {markers} | {:.1} | {:.0} | {:.2} |\n",
            best.0,
            markers as f64 / best.0,
            best.1 / (markers as f64 / 1000.0)
        ));
        clusters.source.delete_topic(&data.topic())?;
    }
    Ok(text)
}
