//! What was lost and what came twice, counted from what the applications printed.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use serde_json::{Value, json};

use super::app::Line;
use super::story::StepTime;

/// The figures at the end of the story.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Orders that were handed to the producer and that the consumer never got.
    pub(super) lost: usize,
    /// Deliveries to the consumer beyond the first of an order.
    pub(super) duplicated: usize,
    /// Orders that the producer reported with another offset than the consumer.
    pub(super) misplaced: usize,
    /// Records per partition that came out of order.
    pub(super) disordered: usize,
    /// As the failover reported; `None` when it could not know.
    pub(super) rpo_records: Option<i64>,
    /// From the loss of west to the applications' first order through east.
    pub(super) rto: Duration,
}

impl Outcome {
    pub(super) fn count(
        produced: &[Line],
        consumed: &[Line],
        orders: RangeInclusive<u64>,
        report: &Value,
        rto: Duration,
    ) -> Self {
        let mut times: BTreeMap<u64, usize> = BTreeMap::new();
        for order in consumed.iter().filter_map(|line| line.order) {
            *times.entry(order).or_default() += 1;
        }
        let place = |line: &Line| Some((line.order?, line.partition?, line.offset?));
        let acknowledged: BTreeMap<u64, (i32, i64)> = produced
            .iter()
            .filter_map(place)
            .map(|(order, partition, offset)| (order, (partition, offset)))
            .collect();
        let mut last: BTreeMap<i32, i64> = BTreeMap::new();
        let (mut misplaced, mut disordered) = (0, 0);
        for (order, partition, offset) in consumed.iter().filter_map(place) {
            misplaced += usize::from(acknowledged.get(&order) != Some(&(partition, offset)));
            let before = last.insert(partition, offset);
            disordered += usize::from(before.is_some_and(|before| before >= offset));
        }
        Self {
            lost: orders
                .clone()
                .filter(|order| !times.contains_key(order))
                .count(),
            duplicated: times.values().map(|count| count - 1).sum(),
            misplaced,
            disordered,
            rpo_records: report.get("rpo_records").and_then(Value::as_i64),
            rto,
        }
    }

    /// Whether every order came exactly once, in order, at the offset that the producer was told, and nothing was left behind.
    pub(super) fn is_right(&self) -> bool {
        self.lost + self.duplicated + self.misplaced + self.disordered == 0
            && self.rpo_records == Some(0)
    }

    pub(super) fn to_json(&self, steps: &[StepTime]) -> Value {
        json!({
            "lost": self.lost,
            "duplicated": self.duplicated,
            "rpo_records": self.rpo_records,
            "rto_ms": millis(self.rto),
            "steps": steps.iter().map(|step| json!({"name": step.name, "ms": millis(step.took)})).collect::<Vec<_>>(),
        })
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
