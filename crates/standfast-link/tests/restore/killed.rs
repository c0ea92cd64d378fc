//! The engine dies by SIGKILL between the export and the deletion: nothing is deleted that the next engine would not know of.

use std::process::{Child, Command};

use standfast_link::{LinkName, RunningState};
use standfast_wire::{ClusterOptions, HostPort};

use super::*;

/// What the process that is killed is told.
#[derive(serde::Serialize, serde::Deserialize)]
struct Orders {
    source: String,
    destination: String,
    topic: String,
    mode: RestoreMode,
    export: RestoreExport,
    /// Where it keeps its running state.
    state: PathBuf,
}

const ORDERS: &str = "STANDFAST_TEST_ORDERS";

fn cluster_options(bootstrap: &str) -> ClusterOptions {
    ClusterOptions::new(HostPort::parse_list(bootstrap).expect("addresses"))
}

/// Not a test: the process that the test below starts and kills. It keeps the running state as an agent does, but never says that this is done, so that its
/// restore stands between export and deletion.
#[test]
#[ignore = "the process that another test kills"]
fn engine() {
    let Ok(orders) = std::env::var(ORDERS) else {
        return;
    };
    let orders: Orders = serde_json::from_str(&orders).expect("orders");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async move {
        let name = LinkName::new("killed").expect("a name");
        let mut options = LinkOptions::new(
            name,
            cluster_options(&orders.source),
            cluster_options(&orders.destination),
            vec![orders.topic.clone()],
        );
        options.lifecycle.note_kept(0);
        let mut changes = options.lifecycle.subscribe();
        let file = orders.state;
        tokio::spawn(async move {
            while changes.changed().await.is_ok() {
                let state = serde_json::to_vec(&*changes.borrow_and_update()).expect("JSON");
                let new = file.with_extension("new");
                std::fs::write(&new, state).expect("written");
                std::fs::rename(&new, &file).expect("renamed");
            }
        });
        options.join_batches = false;
        let running = Running::start(options);
        wait_status(&running, MirrorStatus::Failed).await;
        let how = RestoreOptions {
            mode: orders.mode,
            ..fast(orders.export)
        };
        let done = restore(&running, &orders.topic, &how).await;
        panic!("not killed: {done:?}");
    });
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn topic_id(cluster: &Cluster, topic: &str) -> String {
    let metadata = cluster.topics(&[topic]).await.expect("metadata");
    format!("{:?}", metadata.topics.get(topic).map(|t| t.topic_id))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_between_export_and_deletion_loses_nothing() {
    let (west, east) = clusters();
    let (old, new) = (connect(west).await, connect(east).await);
    for (topic, mode) in [
        ("killed-fast", RestoreMode::Fast),
        ("killed-full", RestoreMode::Full),
    ] {
        mirrored(topic, 1, &[], 5).await;
        append(&old, topic, 0, &plain(["lost".to_owned()]))
            .await
            .unwrap();
        append_some(&new, topic, 0, 20).await;
        let (folder, export, lost) = folder();
        let orders = Orders {
            source: east.bootstrap(),
            destination: west.bootstrap(),
            topic: topic.to_owned(),
            mode,
            export,
            state: folder.path().join("state.json"),
        };
        let before = topic_id(&old, topic).await;
        let program = std::env::current_exe().expect("this program");
        let mut killed = Killed(
            Command::new(program)
                .args(["--exact", "killed::engine", "--ignored", "--nocapture"])
                .env(ORDERS, serde_json::to_string(&orders).expect("JSON"))
                .spawn()
                .expect("a process"),
        );
        let exports = || {
            let entries = std::fs::read_dir(&lost).into_iter().flatten();
            let paths = entries.map(|entry| entry.expect("an entry").path());
            paths
                .filter(|p| p.extension().is_some_and(|e| e == "jsonl"))
                .collect::<Vec<_>>()
        };
        wait_for("the export", || async { !exports().is_empty() }).await;
        // In mode full the state says more just after the export.
        let kept = || std::fs::read_to_string(&orders.state).unwrap_or_default();
        wait_for("the state", || async {
            mode == RestoreMode::Fast || kept().contains("recreate")
        })
        .await;
        assert!(killed.0.try_wait().expect("asked").is_none());
        drop(killed);
        assert_eq!(log_starts(&old, topic).await, [0]);
        assert_eq!(log_ends(&old, topic).await, [51]);
        assert_eq!(topic_id(&old, topic).await, before);

        let state: RunningState = serde_json::from_str(&kept()).expect("a running state");
        let lifecycle = Lifecycle::new(state);
        assert_eq!(
            lifecycle.restore_phase(topic),
            Some(RestorePhase::PendingSetupForRestore)
        );
        let running = Running::start(back(topic, &lifecycle));
        running.wait_caught_up(&new, topic).await;
        running
            .wait("restored", |_| lifecycle.restore_phase(topic).is_none())
            .await;
        assert_same_from_start(topic, 0).await;
        assert_eq!(
            topic_id(&old, topic).await == before,
            mode == RestoreMode::Fast
        );
        // Exported by each of the two, and each export is whole.
        assert_eq!(exports().len(), 2);
        for file in exports() {
            assert_eq!(told(&file), [(50, "lost".to_owned(), None)]);
        }
        running.end().await;
    }
}
