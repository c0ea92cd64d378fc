//! Prints the bootstrap list of a fleet's active cluster, and again each time it changes: all that a plain rdkafka
//! application needs to follow its fleet.
//!
//! ```text
//! cargo run -p standfast-discovery --example watch -- payments http://127.0.0.1:8500[,http://…]
//! cargo run -p standfast-discovery --example watch -- payments /path/to/folder
//! ```

use std::error::Error;

use standfast_discovery::{Discovery, DiscoveryOptions, FleetName, FleetState, ViewSource};
use tokio_util::sync::CancellationToken;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(fleet), Some(place)) = (arguments.next(), arguments.next()) else {
        return Err("usage: watch FLEET CONSUL_ADDRESS[,…]|FOLDER".into());
    };
    let options = if place.contains("://") {
        DiscoveryOptions::consul(place.split(','))
    } else {
        DiscoveryOptions::file(place)
    };
    let (watch, mut handle) = Discovery::new(options)?.watch(FleetName::new(fleet)?);
    // Cancel it to end the watch; here it runs until the process is stopped.
    let shutdown = CancellationToken::new();
    tokio::spawn(watch.run(shutdown.clone()));

    let mut shown = None;
    loop {
        let view = handle.borrow_and_update();
        if let Some(error) = &view.last_error {
            eprintln!("impaired, the last record stays in use: {error}");
        }
        let record = view.record.filter(|record| shown.as_ref() != Some(record));
        if let Some((record, cluster)) = record
            .as_ref()
            .and_then(|r| r.active_cluster().map(|c| (r, c)))
        {
            let hold = if record.state == FleetState::Fenced {
                " (fenced: hold writes)"
            } else {
                ""
            };
            // Here an application would build its next producer or consumer with this bootstrap.servers.
            println!(
                "epoch {}: {} at {}{hold}",
                record.epoch, record.active, cluster.bootstrap
            );
        } else if shown.is_none() && record.is_none() && view.source == ViewSource::Live {
            println!("the fleet has no record yet");
        }
        shown = record.or(shown);
        handle.changed().await?;
    }
}
