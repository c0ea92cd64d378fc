//! The short form of the chaos checker; `cargo xtask chaos` runs it for longer.

use std::time::Duration;

use standfast_tests::chaos::{self, Options};

#[test]
fn a_minute_of_chaos_loses_and_repeats_nothing() {
    let seed = std::env::var("STANDFAST_CHAOS_SEED")
        .map_or_else(|_| rand::random(), |seed| seed.parse().expect("a seed"));
    let report = chaos::run(&Options {
        seed,
        duration: Duration::from_secs(45),
        consumers: 1,
        folder: std::env::temp_dir(),
    });
    println!("{report:?}");
    assert!(
        report.verdict.holds(),
        "run again with STANDFAST_CHAOS_SEED={seed}: {report:#?}"
    );
}
