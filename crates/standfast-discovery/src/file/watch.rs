//! Watches the record by polling: a `stat` every 20 ms, the content when it differs and at least once a second.
//!
//! Polling is used because it works on every file system and costs about 0.3 % of a core; inotify would
//! save that and bring its own failure modes (queue overflow, a replaced folder).

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::FileStore;
use crate::atomic_file;
use crate::name::FleetName;
use crate::view::Report;
use crate::watch::Reports;

/// How often the file is looked at; a change is seen within this and the time to read it.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// How often the content is read although the metadata is the same: two edits in place within one tick of the file
/// system's clock look alike.
const READ_INTERVAL: Duration = Duration::from_secs(1);
/// A file system that takes longer is reported as gone, until it answers.
const HANG_TIMEOUT: Duration = Duration::from_secs(3);
/// Pause after a failure.
const FAILURE_PAUSE: Duration = Duration::from_millis(100);

/// What tells one state of a file from another: device, inode, size, and times of content and inode change.
type Signature = Option<(u64, u64, u64, (i64, i64), (i64, i64))>;

#[derive(Debug, Default)]
struct Seen {
    signature: Signature,
    read_at: Option<Instant>,
}

/// Polls until the receiver of the reports is gone.
pub(crate) async fn follow(store: Arc<FileStore>, fleet: FleetName, reports: Reports) {
    let stop = StopOnDrop::default();
    let mut seen = Seen::default();
    loop {
        let (store, fleet, before, stop) =
            (Arc::clone(&store), fleet.clone(), seen, Arc::clone(&stop.0));
        // On a thread of its own: a network file system may hang for minutes, and a thread that sleeps between its
        // looks costs a tenth of waking one up for each.
        let mut poll =
            tokio::task::spawn_blocking(move || look_until_new(&store, &fleet, before, &stop));
        let polled = loop {
            match timeout(READ_INTERVAL + HANG_TIMEOUT, &mut poll).await {
                Ok(polled) => break polled,
                Err(_) => {
                    let hangs = format!("the file system has not answered for {HANG_TIMEOUT:?}");
                    if reports.send((0, Report::Failed(hangs))).await.is_err() {
                        return;
                    }
                }
            }
        };
        // Only a runtime that shuts down cancels the poll.
        let Ok((now, report)) = polled else { return };
        seen = now;
        let failed = matches!(report, Report::Failed(_));
        if reports.send((0, report)).await.is_err() {
            return;
        }
        if failed {
            tokio::time::sleep(FAILURE_PAUSE).await;
        }
    }
}

/// Ends the polling thread, which a runtime that shuts down would wait for.
#[derive(Default)]
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Returns when the file has changed, and after [`READ_INTERVAL`] anyway.
fn look_until_new(
    store: &FileStore,
    fleet: &FleetName,
    mut seen: Seen,
    stop: &AtomicBool,
) -> (Seen, Report) {
    let path = store.record_path(fleet);
    let failed = |error: std::io::Error| {
        Report::Failed(format!("{} cannot be read: {error}", path.display()))
    };
    loop {
        let signature = match signature(&path) {
            Ok(signature) => signature,
            Err(error) => return (Seen::default(), failed(error)),
        };
        let fresh = seen.read_at.is_some_and(|at| at.elapsed() < READ_INTERVAL);
        if !fresh || signature != seen.signature || stop.load(Ordering::Relaxed) {
            // The signature is older than the content: a change in between is seen again, never missed.
            seen = Seen {
                signature,
                read_at: Some(Instant::now()),
            };
            break;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    let report = match atomic_file::read(&path) {
        Ok(None) => Report::Answer(None),
        Ok(Some(content)) => match store.parse(&path, &content) {
            Ok(record) => Report::Answer(Some(record)),
            Err(error) => Report::Malformed(error.to_string()),
        },
        Err(error) => failed(error),
    };
    (seen, report)
}

fn signature(path: &Path) -> std::io::Result<Signature> {
    match std::fs::metadata(path) {
        Ok(m) => Ok(Some((
            m.dev(),
            m.ino(),
            m.size(),
            (m.mtime(), m.mtime_nsec()),
            (m.ctime(), m.ctime_nsec()),
        ))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
