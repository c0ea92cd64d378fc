//! Bounds that the destination sets to transactions: the size of a batch, and how long one may stay open.

use standfast_link::{RestoreExport, RestoreMode, RestoreOptions};
use standfast_wire::admin::ConfigResource;

use super::*;

async fn limit(cluster: &Cluster, topic: &str) -> i64 {
    let asked = [ConfigResource::Topic(topic.to_owned())];
    let described = cluster.describe_configs(&asked).await.expect("an answer");
    let configs = described.into_iter().next().expect("one").1.expect("known");
    let found = configs.into_iter().find(|c| c.name == "max.message.bytes");
    let value = found.and_then(|c| c.value).expect("a value");
    value.parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_above_the_limit_raises_it_inside_a_transaction() {
    let (source, destination) = clusters();
    let topic = "wide";
    source.create_topic(topic, 1, &[]).unwrap();
    let small = [("max.message.bytes", "10000")];
    destination.create_topic(topic, 1, &small).unwrap();
    let (from, to) = (connect(source).await, connect(destination).await);
    let mut apps = Vec::new();
    for name in ["wide-a", "wide-b"] {
        apps.push(App::new(&from, name, topic).await);
    }
    // Two are open, the large batch stands behind a small one.
    apps[0].write(2).await;
    apps[1].write(2).await;
    apps[0].padding = 50_000;
    apps[0].write(2).await;
    apps[1].write(1).await;
    apps[1].end(false).await;
    apps[0].end(true).await;
    // The source itself would not take it any more, so that only the batch asks for a larger limit.
    alter(&from, topic, &[("max.message.bytes", Some("20000"))]).await;
    let running = Running::start(link_options("wide", source, destination, &[topic]));
    running.wait_caught_up(&from, topic).await;
    assert_identical(&from, &to, topic).await;
    assert!(limit(&to, topic).await > 100_000);
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_was_aborted_meanwhile_is_named_and_restored() {
    let (source, destination) = clusters();
    let (from, to) = (connect(source).await, connect(destination).await);
    for (topic, mode) in [
        ("late-fast", RestoreMode::Fast),
        ("late-full", RestoreMode::Full),
    ] {
        source.create_topic(topic, 1, &[]).unwrap();
        append_some(&from, topic, 0, 2).await;
        let mut app = App::new(&from, topic, topic).await;
        app.padding = 2000;
        // Slow enough that an engine that is told to end does not finish what is open.
        let options = |limit| {
            let mut options = link_options(topic, source, destination, &[topic]);
            options.rate_limit = limit;
            options
        };
        // Until an engine has ended inside a transaction.
        loop {
            for _ in 0..300 {
                app.write(2).await;
            }
            app.end(true).await;
            let mirrored = log_ends(&to, topic).await.first().copied().unwrap_or(0);
            let running = Running::start(options(Some(300_000)));
            running
                .wait("begun", |link| {
                    let lag = link.mirrors[0].mirror_lags.first();
                    lag.is_some_and(|p| p.destination_log_end_offset > Some(mirrored + 30))
                })
                .await;
            running.end().await;
            if stable_end(&to, topic).await < log_ends(&to, topic).await[0] {
                break;
            }
        }
        // What the coordinator does when the time is over; it takes an hour here, as much as the destination allows.
        let mut aborted = 0;
        for slot in 0..3 {
            let name = format!("standfast-{topic}/{topic}/0/{slot}");
            let described = to.describe_transaction(&name).await.unwrap().unwrap();
            assert_eq!(described.timeout, Duration::from_secs(3600));
            if described.state == "Ongoing" {
                let at = log_ends(&to, topic).await[0];
                let _ = to.init_producer_id(Some(&name)).await;
                wait_for("the abort marker", || async {
                    stable_end(&to, topic).await == at + 1
                })
                .await;
                aborted += 1;
            }
        }
        assert_eq!(aborted, 1);
        let running = Running::start(options(None));
        running
            .wait("FAILED", |link| {
                link.mirrors[0].mirror_status == MirrorStatus::Failed
            })
            .await;
        let error = running.partition(0).and_then(|p| p.error).expect("why");
        for part in [
            "DIVERGED",
            "aborted",
            "transaction.max.timeout.ms",
            "standfast mirror restore",
        ] {
            assert!(error.contains(part), "{error}");
        }
        let folder = tempfile::tempdir().unwrap();
        let how = RestoreOptions {
            mode,
            export: RestoreExport::File(folder.path().join("lost.jsonl")),
            hints: Default::default(),
            dry_run: false,
        };
        let done = running.handle.restore(&[topic], &how).await.remove(0);
        assert_eq!(done.change.error_code, None, "{done:?}");
        // Nothing but a marker.
        assert_eq!(done.messages_truncated, 0, "{done:?}");
        running.wait_caught_up(&from, topic).await;
        app.write(3).await;
        app.end(true).await;
        append_some(&from, topic, 0, 2).await;
        running.wait_caught_up(&from, topic).await;
        let start = log_starts(&to, topic).await[0];
        assert_eq!(start == 0, mode == RestoreMode::Full);
        let of = |batches: Vec<standfast_wire::batch::RawBatch>| -> Vec<_> {
            let each = batches.into_iter();
            let each = each.filter(|b| b.header.base_offset >= start);
            each.map(|b| {
                let body = b.bytes[standfast_wire::batch::HEADER_LEN..].to_vec();
                let body = b.control_type().is_none().then_some(body);
                (b.header.base_offset, b.control_type(), body)
            })
            .collect()
        };
        let (theirs, ours) = (
            of(read_all(&from, topic, 0).await),
            of(read_all(&to, topic, 0).await),
        );
        assert!(ours.len() > 4 && theirs == ours, "{topic}");
        running.end().await;
    }
}
