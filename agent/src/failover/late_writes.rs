//! After a switchover: does anything still write to the cluster that was left?

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use super::planned::Drained;
use super::{Context, Coordination, LogEnds, Mirrors, Steps};
use crate::api::{LateWrite, Report};

/// Between two looks at the old cluster after the flip.
const LATE_WRITE_POLL: Duration = Duration::from_millis(250);

/// Loud if there are records on the old cluster behind the handoff that are there only. What a link back has copied there is none.
pub(super) async fn watch<C: Coordination, M: Mirrors>(
    context: &Context<C, M>,
    steps: &mut Steps,
    drained: &Drained,
    report: &mut Report,
) {
    let limit = context.limits.late_write_watch;
    let mut grown = LogEnds::new();
    // Cut off by its own deadline at the latest; what was seen until then counts.
    let _ = steps
        .run(
            "watch_late_writes",
            limit + LATE_WRITE_POLL,
            growth(context, drained, Instant::now() + limit, &mut grown),
        )
        .await;
    if !grown.is_empty() {
        let mirrored = mirrored_back(context, steps, drained, &grown).await;
        grown.retain(|key, _| !mirrored.contains(key));
    }
    report.late_writes = grown
        .into_iter()
        .map(|((topic, partition), end)| {
            let from_offset = drained.end_of(&(topic.clone(), partition));
            LateWrite {
                topic,
                partition,
                from_offset,
                records: end - from_offset,
            }
        })
        .collect();
    for write in &report.late_writes {
        tracing::error!(
            cluster = %drained.route.from, topic = write.topic, partition = write.partition,
            from_offset = write.from_offset, records = write.records,
            "records were written to the old cluster after the switchover; they are on that cluster only"
        );
        report.warnings.push(format!(
            "LATE WRITES: {} record(s) from offset {} of {}-{} were written to \"{}\" after the flip and are there only; find the producer \
             that does not heed the fence",
            write.records, write.from_offset, write.topic, write.partition, drained.route.from
        ));
    }
    report.steps = steps.done();
    report.total_ms = steps.total_ms();
}

/// Notes the log ends of partitions that are longer on the old cluster than they were when it was left.
async fn growth<C: Coordination, M: Mirrors>(
    context: &Context<C, M>,
    drained: &Drained,
    until: Instant,
    grown: &mut LogEnds,
) {
    let route = &drained.route;
    while Instant::now() < until {
        if let Ok(now) = context.mirrors.log_ends(&route.from, route).await {
            let longer = now
                .into_iter()
                .filter(|(key, end)| *end > drained.end_of(key));
            grown.extend(longer);
        }
        tokio::time::sleep(LATE_WRITE_POLL).await;
    }
}

/// Of the partitions that grew, those that a link back has made longer: they go on as the new cluster's logs do. One that cannot be
/// compared in time is none of them: a false alarm is better than none.
async fn mirrored_back<C: Coordination, M: Mirrors>(
    context: &Context<C, M>,
    steps: &mut Steps,
    drained: &Drained,
    grown: &LogEnds,
) -> BTreeSet<(String, i32)> {
    let left_at = grown
        .keys()
        .map(|key| (key.clone(), drained.end_of(key)))
        .collect();
    steps
        .run(
            "compare_growth",
            context.limits.step,
            context.mirrors.same_at(&drained.route, &left_at),
        )
        .await
        .unwrap_or_default()
}
