//! Two thousand topics of one partition: how long they take to start, and a call about all of them.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::json;

use super::Clusters;
use super::contender::Contender;
use super::standfast::Standfast;

const TOPICS: usize = 2_000;
const LONGEST: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(100);
/// How long the idle link is watched.
const IDLE: Duration = Duration::from_secs(20);

/// All topics but Kafka's own.
const FILTER: &str = "[[links.topic_filters]]\nname = \"many.\"\npattern_type = \"PREFIXED\"\nfilter_type = \"INCLUDE\"";

pub(super) fn run(mut clusters: Clusters, step: &dyn Fn(String)) -> Result<String> {
    step(format!("creating {TOPICS} topics"));
    for n in 0..TOPICS {
        clusters
            .source
            .create_topic(&format!("many.{n:04}"), 1, &[])?;
    }
    let mut text = String::from("| what | took |\n|---|--:|\n");
    let mut row = |what: &str, took: String| {
        step(format!("{what}: {took}"));
        text.push_str(&format!("| {what} | {took} |\n"));
    };
    let seconds = |took: Duration| format!("{:.2} s", took.as_secs_f64());
    let mut link = Standfast::with(&clusters, FILTER)?;
    link.mirror(&[])?;
    row(
        "mirror topics created and mirroring",
        seconds(wait(&link, "ACTIVE")?),
    );
    let before = link.usage()?.cpu;
    thread::sleep(IDLE);
    let share = (link.usage()?.cpu - before).as_secs_f64() / IDLE.as_secs_f64();
    row(
        "CPU of the idle link",
        format!("{:.1} % of a core", share * 100.0),
    );
    row(
        "`mirror pause --all`, one call",
        seconds(call(&link, &["mirror", "pause", "--all"])?),
    );
    row(
        "`mirror resume --all`, one call",
        seconds(call(&link, &["mirror", "resume", "--all"])?),
    );
    row(
        "until all are mirroring again",
        seconds(wait(&link, "ACTIVE")?),
    );
    link.end();
    link.mirror(&[])?;
    row(
        "agent restarted, until all are mirroring",
        seconds(wait(&link, "ACTIVE")?),
    );
    clusters.source.kill();
    let failover = ["mirror", "failover", "--all", "--yes"];
    row(
        "`mirror failover --all`, one call, source dead",
        seconds(call(&link, &failover)?),
    );
    wait(&link, "NOT_APPLICABLE")?;
    let peak = link.usage()?.peak_resident_bytes as f64 / 1e6;
    row("peak resident memory of the agent", format!("{peak:.0} MB"));
    Ok(text)
}

/// Until every mirror is in this kind of state.
fn wait(link: &Standfast, category: &str) -> Result<Duration> {
    let began = Instant::now();
    let expected = json!([{"state_category": category, "count": TOPICS}]);
    loop {
        // The agent's API is not there at once.
        let found = link
            .call(&["link", "list"])
            .map(|(links, _)| links["data"][0]["category_counts"].clone());
        if found.as_ref().is_ok_and(|found| *found == expected) {
            return Ok(began.elapsed());
        }
        if began.elapsed() > LONGEST {
            bail!("not all {category} within {LONGEST:?}: {found:?}");
        }
        thread::sleep(POLL);
    }
}

/// One call about all mirrors; how long it took, the command line's process with it.
fn call(link: &Standfast, words: &[&str]) -> Result<Duration> {
    let (changes, took) = link.call(words)?;
    match changes["data"].as_array().map(Vec::len) {
        Some(TOPICS) => Ok(took),
        other => bail!("{words:?}: {other:?} results"),
    }
}
