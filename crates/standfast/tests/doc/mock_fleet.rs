// Included by examples in the documentation, so that they run.

/// A fleet of one of librdkafka's mock clusters, with the topic `orders`; and what must be kept meanwhile.
async fn mock_fleet() -> Result<(standfast::Fleet, impl Sized), Box<dyn std::error::Error>> {
    use standfast::discovery::{
        ClusterEntry, ClusterName, Discovery, DiscoveryOptions, FleetName, FleetRecord,
    };
    let cluster = rdkafka::mocking::MockCluster::new(1)?;
    cluster.create_topic("orders", 1, 1)?;
    let folder = tempfile::tempdir()?;
    let options = DiscoveryOptions::file(folder.path());
    let west = ClusterName::new("west")?;
    let clusters = [(west.clone(), ClusterEntry::new(cluster.bootstrap_servers()))];
    let record = FleetRecord::first(west, clusters.into(), "an example");
    let discovery = Discovery::new(options.clone())?;
    discovery
        .compare_and_set(&FleetName::new("payments")?, None, &record)
        .await?;
    let fleet = standfast::Fleet::builder("payments")
        .discovery(options)
        .build()
        .await?;
    Ok((fleet, (cluster, folder)))
}
