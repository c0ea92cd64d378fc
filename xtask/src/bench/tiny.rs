//! Batches of one record each: what joining them gains.

use anyhow::Result;

use super::contender::Contender;
use super::dataset::Dataset;
use super::standfast::Standfast;
use super::{Clusters, time_copy};

const RECORDS: u64 = 100_000;
/// Each setting copies each set this often; the first round also warms the brokers up and is not counted.
const ROUNDS: usize = 2;

const SETTINGS: [(&str, &str); 2] = [
    ("one by one", "join_batches = false"),
    ("joined", "join_batches = true"),
];

pub(super) fn run(clusters: &Clusters, step: &dyn Fn(String)) -> Result<String> {
    let mut text = String::from(
        "| partitions | batches | records/s | MB/s | CPU-s per million records |\n|--:|---|--:|--:|--:|\n",
    );
    for partitions in [1, 4] {
        let data = Dataset::tiny(partitions, RECORDS);
        step(format!("{data}: loading {RECORDS} records, one per batch"));
        data.load(&clusters.source)?;
        for (name, setting) in SETTINGS {
            let (mut best, mut cpu) = (f64::MAX, f64::MAX);
            for round in 0..ROUNDS {
                let mut link = Standfast::with(clusters, setting)?;
                link.mirror(&[data.topic()])?;
                let took = time_copy(clusters, &data.topic(), &mut link)?;
                let used = link.usage()?.cpu.as_secs_f64();
                step(format!("{data}, {name}: {took:.2?}, {used:.2} CPU-s"));
                drop(link);
                clusters.destination.delete_topic(&data.topic())?;
                if round > 0 {
                    best = best.min(took.as_secs_f64());
                    cpu = cpu.min(used);
                }
            }
            text.push_str(&format!(
                "| {partitions} | {name} | {:.0} | {:.1} | {:.2} |\n",
                RECORDS as f64 / best,
                data.value_bytes() / 1e6 / best,
                cpu / (RECORDS as f64 / 1e6)
            ));
        }
        clusters.source.delete_topic(&data.topic())?;
    }
    Ok(text)
}
