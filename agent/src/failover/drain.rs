//! Draining: waiting until the source stands still and the mirrors hold all of it.

use std::time::Duration;

use tokio::time::Instant;

use super::report::Draft;
use super::{Context, Coordination, LogEnds, Mirrors, Route, flip};

/// Between two looks at the log ends.
const DRAIN_POLL: Duration = Duration::from_millis(100);
/// How many partitions an error names.
const NAMED_PARTITIONS_MAX: usize = 5;

/// Log ends of both clusters; the source is asked first, so that equal means drained.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct BothEnds {
    pub(super) source: LogEnds,
    destination: LogEnds,
}

pub(super) async fn both_ends<C: Coordination, M: Mirrors>(
    context: &Context<C, M>,
    route: &Route,
) -> Result<BothEnds, String> {
    let source = context.mirrors.log_ends(&route.from, route).await?;
    let destination = context.mirrors.log_ends(&route.to, route).await?;
    Ok(BothEnds {
        source,
        destination,
    })
}

impl BothEnds {
    /// The partitions whose mirror does not hold all of the source, in words.
    pub(super) fn differences(&self) -> Option<String> {
        let differing = self
            .source
            .iter()
            .filter(|(key, end)| self.destination.get(key) != Some(end));
        let named: Vec<String> = differing
            .map(|((topic, partition), end)| {
                match self.destination.get(&(topic.clone(), *partition)) {
                    Some(there) => format!(
                        "{topic}-{partition} ends at {end} on the source and {there} on the mirror"
                    ),
                    None => format!("{topic}-{partition} does not exist on the mirror"),
                }
            })
            .collect();
        in_words(&named)
    }

    pub(super) fn write_into(&self, draft: &mut Draft) {
        for topic in &mut draft.topics {
            for lag in &mut topic.mirror_lags {
                let key = (topic.mirror_topic_name.clone(), lag.partition);
                lag.source_log_end_offset = self.source.get(&key).copied();
                lag.destination_log_end_offset = self.destination.get(&key).copied();
                if lag.source_log_end_offset == lag.destination_log_end_offset {
                    lag.lag_seconds = Some(0.0);
                }
            }
        }
    }
}

/// What the drain has seen so far; outlives a timeout, to say what was in the way.
#[derive(Debug)]
pub(super) struct DrainWatch {
    settle: Duration,
    last: BothEnds,
    stood_still_since: Option<Instant>,
    grew: Option<String>,
    error: Option<String>,
}

impl DrainWatch {
    pub(super) fn new(settle: Duration) -> Self {
        Self {
            settle,
            last: BothEnds::default(),
            stood_still_since: None,
            grew: None,
            error: None,
        }
    }

    /// Returns when the source stood still long enough and the mirrors hold all of it.
    pub(super) async fn wait<C: Coordination, M: Mirrors>(
        &mut self,
        context: &Context<C, M>,
        route: &Route,
        lock: &C::Lock,
    ) -> Result<(), String> {
        loop {
            flip::may_wait(context, lock)?;
            match both_ends(context, route).await {
                Ok(ends) => self.note(ends, Instant::now()),
                Err(error) => self.error = Some(error),
            }
            if self.is_drained(Instant::now()) {
                return Ok(());
            }
            tokio::time::sleep(DRAIN_POLL).await;
        }
    }

    fn note(&mut self, ends: BothEnds, now: Instant) {
        self.error = None;
        if ends.source != self.last.source {
            let grown: Vec<String> = ends
                .source
                .iter()
                .filter(|(key, end)| {
                    self.last
                        .source
                        .get(key)
                        .is_some_and(|before| before != *end)
                })
                .map(|((topic, partition), end)| format!("{topic}-{partition} (now at {end})"))
                .collect();
            self.grew = in_words(&grown);
            self.stood_still_since = Some(now);
        }
        self.last = ends;
    }

    fn is_drained(&self, now: Instant) -> bool {
        let still = self
            .stood_still_since
            .is_some_and(|since| now.duration_since(since) >= self.settle);
        still && self.error.is_none() && self.last.differences().is_none()
    }

    /// What was in the way when the time was up.
    pub(super) fn why_not(&self, limit: Duration) -> String {
        let moving = self
            .stood_still_since
            .is_none_or(|since| since.elapsed() < self.settle);
        if let Some(error) = &self.error {
            return format!("the drain did not end within {limit:?}: {error}");
        }
        if let (true, Some(grew)) = (moving, &self.grew) {
            return format!(
                "a producer does not heed the fence: within {limit:?} the source kept growing at {grew}"
            );
        }
        let lag = self
            .last
            .differences()
            .unwrap_or_else(|| "the log ends were not known".to_owned());
        format!("the drain did not end within {limit:?}: {lag}")
    }
}

fn in_words(named: &[String]) -> Option<String> {
    let mut text = named
        .iter()
        .take(NAMED_PARTITIONS_MAX)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    if named.len() > NAMED_PARTITIONS_MAX {
        text.push_str(&format!(" and {} more", named.len() - NAMED_PARTITIONS_MAX));
    }
    (!named.is_empty()).then_some(text)
}
