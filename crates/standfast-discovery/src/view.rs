//! What a watch knows, and the rules by which it adopts a record.

use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;

use crate::metrics::WatchCounters;
use crate::name::Epoch;
use crate::record::FleetRecord;

/// Where the view comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ViewSource {
    /// At least one backend answered and its current query has not failed.
    Live,
    /// No backend answers; the last view is kept.
    Stale {
        /// When a backend last answered.
        since: Timestamp,
    },
    /// The backend has not answered yet; the record comes from the cache file.
    Cached {
        /// When the cache file was written.
        since: Timestamp,
    },
    /// Nothing is known yet.
    Never,
}

/// A watch's view of its fleet. Cheap to clone.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct FleetView {
    /// The record with the highest epoch that this watch has ever seen; `None` while none has been seen.
    pub record: Option<Arc<FleetRecord>>,
    /// Where it comes from.
    pub source: ViewSource,
    /// What is wrong at present: a backend that does not answer, a malformed record, an older epoch. `None` = nothing.
    pub last_error: Option<String>,
    /// When a backend last answered, on the local monotonic clock. Moves without [`changed`] being signalled.
    ///
    /// [`changed`]: crate::FleetWatchHandle::changed
    pub confirmed_at: Option<Instant>,
}

impl FleetView {
    pub(crate) fn empty() -> Self {
        Self {
            record: None,
            source: ViewSource::Never,
            last_error: None,
            confirmed_at: None,
        }
    }

    /// The highest epoch seen.
    pub fn epoch(&self) -> Option<Epoch> {
        self.record.as_ref().map(|record| record.epoch)
    }
}

/// What one endpoint has to report.
#[derive(Debug)]
pub(crate) enum Report {
    /// The endpoint answered with a good record, or with none.
    Answer(Option<FleetRecord>),
    /// The endpoint answered without a leader: what it holds may be old, so it does not make the view live.
    Unconfirmed(Option<FleetRecord>, String),
    /// The endpoint answered, but its value is not a record.
    Malformed(String),
    /// The endpoint did not answer.
    Failed(String),
}

/// Merges the reports of all endpoints into one view. Not concurrent: the watch task owns it.
#[derive(Debug)]
pub(crate) struct Board {
    view: FleetView,
    endpoints: Vec<Endpoint>,
    answered_at: Option<Timestamp>,
    counters: Arc<WatchCounters>,
}

#[derive(Debug, Default)]
struct Endpoint {
    name: String,
    state: EndpointState,
    error: Option<String>,
    /// The last bare string that it gave: epoch 0 has no order, so only a change counts.
    bare: Option<FleetRecord>,
}

#[derive(Debug, Default, PartialEq)]
enum EndpointState {
    #[default]
    Unknown,
    Answering,
    Failing,
}

impl Board {
    pub(crate) fn new(endpoints: &[String], counters: Arc<WatchCounters>) -> Self {
        let endpoints = endpoints
            .iter()
            .map(|name| Endpoint {
                name: name.clone(),
                ..Endpoint::default()
            })
            .collect();
        Self {
            view: FleetView::empty(),
            endpoints,
            answered_at: None,
            counters,
        }
    }

    pub(crate) fn view(&self) -> &FleetView {
        &self.view
    }

    /// Starts from a cached record, written at `since`.
    pub(crate) fn start_from(&mut self, record: FleetRecord, since: Timestamp) {
        self.view.record = Some(Arc::new(record));
        self.view.source = ViewSource::Cached { since };
    }

    /// Takes in one endpoint's report; true if a new record was adopted.
    pub(crate) fn report(&mut self, index: usize, report: Report) -> bool {
        let Some(endpoint) = self.endpoints.get_mut(index) else {
            return false;
        };
        let adopted = match report {
            Report::Failed(error) => {
                WatchCounters::add(&self.counters.failures);
                endpoint.state = EndpointState::Failing;
                endpoint.error = Some(error);
                None
            }
            Report::Malformed(error) => {
                WatchCounters::add(&self.counters.malformed);
                endpoint.error = Some(error);
                self.answered(index);
                None
            }
            Report::Unconfirmed(offered, reason) => {
                WatchCounters::add(&self.counters.failures);
                let known = self.view.record.as_deref();
                let (adopted, _) = endpoint.judge(offered, known, &self.counters);
                endpoint.state = EndpointState::Failing;
                endpoint.error = Some(reason);
                adopted
            }
            Report::Answer(offered) => {
                let known = self.view.record.as_deref();
                let (adopted, error) = endpoint.judge(offered, known, &self.counters);
                endpoint.error = error;
                self.answered(index);
                adopted
            }
        };
        let changed = adopted.is_some();
        if let Some(record) = adopted {
            WatchCounters::add(&self.counters.changes);
            self.view.record = Some(Arc::new(record));
        }
        self.refresh();
        changed
    }

    fn answered(&mut self, index: usize) {
        WatchCounters::add(&self.counters.answers);
        if let Some(endpoint) = self.endpoints.get_mut(index) {
            endpoint.state = EndpointState::Answering;
        }
        self.answered_at = Some(Timestamp::now());
        self.view.confirmed_at = Some(Instant::now());
    }

    fn refresh(&mut self) {
        let answering = self
            .endpoints
            .iter()
            .any(|e| e.state == EndpointState::Answering);
        self.view.source = match (answering, self.answered_at, self.view.source) {
            (true, ..) => ViewSource::Live,
            // The moment of the last answer, not of the last failure: stays the same while the backend is gone.
            (false, Some(_), ViewSource::Stale { since }) => ViewSource::Stale { since },
            (false, Some(since), _) => ViewSource::Stale { since },
            (false, None, source) => source,
        };
        let errors: Vec<&str> = self
            .endpoints
            .iter()
            .filter_map(|e| e.error.as_deref())
            .collect();
        self.view.last_error = (!errors.is_empty()).then(|| errors.join("; "));
    }
}

impl Endpoint {
    /// Decides on an offered record: the one to adopt, if any, and what is wrong with it, if anything.
    fn judge(
        &mut self,
        offered: Option<FleetRecord>,
        known: Option<&FleetRecord>,
        counters: &WatchCounters,
    ) -> (Option<FleetRecord>, Option<String>) {
        let name = &self.name;
        let Some(offered) = offered else {
            let error = known.map(|known| {
                format!(
                    "{name} holds no record any more; epoch {} stays in use",
                    known.epoch
                )
            });
            return (None, error);
        };
        let Some(known) = known else {
            if offered.epoch == Epoch::BARE {
                self.bare = Some(offered.clone());
            }
            return (Some(offered), None);
        };
        if offered.epoch > known.epoch {
            return (Some(offered), None);
        }
        if offered.epoch < known.epoch {
            WatchCounters::add(&counters.older_epochs);
            let error = format!(
                "{name} holds epoch {}, older than epoch {} which was seen before and stays in use; \
                 was it restored from a backup? Write the record again with epoch {} or above",
                offered.epoch,
                known.epoch,
                known.epoch.next()
            );
            return (None, Some(error));
        }
        if offered == *known {
            if offered.epoch == Epoch::BARE {
                self.bare = Some(offered);
            }
            return (None, None);
        }
        if offered.epoch == Epoch::BARE {
            let changed = self.bare.as_ref() != Some(&offered);
            self.bare = Some(offered.clone());
            return (changed.then_some(offered), None);
        }
        let error = format!(
            "{name} holds another record with the same epoch {}, which is ignored; was it edited by hand? \
             Write it again with epoch {} or above",
            known.epoch,
            known.epoch.next()
        );
        (None, Some(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn board(endpoints: usize) -> Board {
        let names: Vec<String> = (0..endpoints).map(|i| format!("consul-{i}")).collect();
        Board::new(&names, Arc::default())
    }

    fn record(epoch: u64, reason: &str) -> FleetRecord {
        let mut record = FleetRecord::parse(b"k1:9092").unwrap();
        record.epoch = Epoch(epoch);
        record.reason = reason.to_owned();
        record
    }

    fn bare(bootstrap: &str) -> Report {
        Report::Answer(Some(FleetRecord::parse(bootstrap.as_bytes()).unwrap()))
    }

    fn bootstrap(board: &Board) -> String {
        board
            .view()
            .record
            .as_ref()
            .unwrap()
            .active_cluster()
            .unwrap()
            .bootstrap
            .clone()
    }

    #[test]
    fn an_older_epoch_is_ignored_and_told() {
        let mut board = board(2);
        assert!(board.report(0, Report::Answer(Some(record(7, "a")))));
        assert!(!board.report(1, Report::Answer(Some(record(5, "b")))));
        assert_eq!(board.view().epoch(), Some(Epoch(7)));
        let error = board.view().last_error.clone().unwrap();
        assert!(
            error.contains("consul-1") && error.contains("epoch 5"),
            "{error}"
        );
        assert_eq!(board.counters.snapshot().older_epochs, 1);
        // It goes away when the endpoint has caught up.
        board.report(1, Report::Answer(Some(record(7, "a"))));
        assert_eq!(board.view().last_error, None);
    }

    #[test]
    fn a_hand_edit_without_a_new_epoch_is_ignored_and_told() {
        let mut board = board(1);
        board.report(0, Report::Answer(Some(record(7, "a"))));
        assert!(!board.report(0, Report::Answer(Some(record(7, "b")))));
        assert_eq!(board.view().record.as_ref().unwrap().reason, "a");
        assert!(
            board
                .view()
                .last_error
                .as_ref()
                .unwrap()
                .contains("same epoch 7")
        );
    }

    #[test]
    fn a_deleted_or_malformed_record_keeps_the_old_one() {
        let mut board = board(1);
        board.report(0, Report::Answer(Some(record(7, "a"))));
        for report in [
            Report::Answer(None),
            Report::Malformed("key x is malformed".into()),
        ] {
            assert!(!board.report(0, report));
            assert_eq!(board.view().epoch(), Some(Epoch(7)));
            assert_eq!(board.view().source, ViewSource::Live);
            assert!(board.view().last_error.is_some());
        }
    }

    #[test]
    fn live_while_one_endpoint_answers_then_stale_since_the_last_answer() {
        let mut board = board(2);
        assert_eq!(board.view().source, ViewSource::Never);
        board.report(0, Report::Failed("a is gone".into()));
        assert_eq!(board.view().source, ViewSource::Never);
        board.report(1, Report::Answer(None));
        assert_eq!(board.view().source, ViewSource::Live);
        board.report(1, Report::Failed("b is gone".into()));
        let ViewSource::Stale { since } = board.view().source else {
            panic!("{:?}", board.view())
        };
        assert_eq!(
            board.view().last_error.as_deref(),
            Some("a is gone; b is gone")
        );
        board.report(0, Report::Failed("a is gone".into()));
        assert_eq!(board.view().source, ViewSource::Stale { since });
        board.report(0, Report::Answer(Some(record(1, ""))));
        assert_eq!(board.view().source, ViewSource::Live);
    }

    #[test]
    fn an_answer_without_a_leader_counts_only_by_its_epoch() {
        let mut board = board(1);
        board.report(0, Report::Answer(Some(record(7, ""))));
        assert!(board.report(
            0,
            Report::Unconfirmed(Some(record(8, "")), "no leader".into())
        ));
        assert_eq!(board.view().epoch(), Some(Epoch(8)));
        assert!(matches!(board.view().source, ViewSource::Stale { .. }));
        assert_eq!(board.view().last_error.as_deref(), Some("no leader"));
    }

    #[test]
    fn a_cached_record_holds_until_a_higher_epoch_comes() {
        let mut board = board(1);
        let since = Timestamp::from_second(1).unwrap();
        board.start_from(record(7, "cached"), since);
        board.report(0, Report::Failed("gone".into()));
        assert_eq!(board.view().source, ViewSource::Cached { since });
        assert!(!board.report(0, Report::Answer(Some(record(6, "")))));
        assert_eq!(board.view().epoch(), Some(Epoch(7)));
        assert!(board.report(0, Report::Answer(Some(record(8, "")))));
        assert_eq!(board.view().source, ViewSource::Live);
    }

    #[test]
    fn bare_strings_follow_changes_and_do_not_flap_between_endpoints() {
        let mut board = board(2);
        board.report(0, bare("a:1"));
        board.report(1, bare("b:1"));
        assert_eq!(bootstrap(&board), "b:1");
        // A repeat from the other endpoint is not a change.
        board.report(0, bare("a:1"));
        assert_eq!(bootstrap(&board), "b:1");
        board.report(0, bare("c:1"));
        assert_eq!(bootstrap(&board), "c:1");
        // The first real record ends it.
        board.report(0, Report::Answer(Some(record(1, ""))));
        assert!(!board.report(1, bare("d:1")));
        assert_eq!(board.view().epoch(), Some(Epoch(1)));
    }

    proptest! {
        #[test]
        fn the_epoch_is_the_highest_ever_seen(
            updates in proptest::collection::vec((0usize..3, proptest::option::of(0u64..20), 0u8..4), 1..60)
        ) {
            let mut board = board(3);
            let mut highest = None;
            for (endpoint, epoch, kind) in updates {
                let report = match kind {
                    0 => Report::Failed("gone".into()),
                    1 => Report::Malformed("bad".into()),
                    _ => {
                        highest = highest.max(epoch);
                        Report::Answer(epoch.map(|e| record(e, "")))
                    }
                };
                board.report(endpoint, report);
                prop_assert_eq!(board.view().epoch().map(|e| e.0), highest);
            }
        }
    }
}
