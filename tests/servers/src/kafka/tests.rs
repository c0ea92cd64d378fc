use std::io::ErrorKind;
use std::net::TcpStream;

use super::*;

#[test]
fn a_cluster_keeps_its_port_id_and_topics_over_kill_and_restart() {
    let mut kafka = KafkaCluster::start("restart").unwrap();
    let bootstrap = kafka.bootstrap();
    kafka
        .create_topic("orders", 3, &[("retention.ms", "-1")])
        .unwrap();
    assert_eq!(kafka.log_end_offsets("orders").unwrap(), vec![0, 0, 0]);

    kafka.kill();
    assert!(kafka.pids().is_empty());
    let refused = TcpStream::connect(&bootstrap).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    kafka.restart().unwrap();

    assert_eq!(kafka.bootstrap(), bootstrap);
    assert_eq!(kafka.log_end_offsets("orders").unwrap(), vec![0, 0, 0]);
    let described = kafka
        .tool(
            "org.apache.kafka.tools.ClusterTool",
            &["cluster-id", "-b", &bootstrap],
        )
        .unwrap();
    let text = String::from_utf8_lossy(&described.stdout);
    assert!(text.contains(kafka.cluster_id()), "{text}");
    let again = kafka
        .create_topic("orders", 3, &[])
        .unwrap_err()
        .to_string();
    assert!(again.contains("36"), "TOPIC_ALREADY_EXISTS: {again}");

    let folder = kafka.folder().to_owned();
    let pid = kafka.pids()[0];
    drop(kafka);
    assert!(!folder.exists());
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn a_broker_that_cannot_start_says_why() {
    let error = KafkaCluster::builder("broken")
        .property("log.retention.ms", "soon")
        .start()
        .unwrap_err();
    let text = error.to_string();
    assert!(text.contains("log.retention.ms"), "{text}");
}

#[test]
fn three_brokers_survive_the_loss_of_one() {
    let mut kafka = KafkaCluster::builder("three")
        .brokers(3)
        .sasl_plain("app", "secret")
        .start()
        .unwrap();
    assert_eq!(
        kafka.sasl_bootstrap().map(|list| list.split(',').count()),
        Some(3)
    );
    kafka.create_topic("orders", 6, &[]).unwrap();
    kafka.kill_broker(0);
    assert_eq!(kafka.pids().len(), 2);
    let deadline = Instant::now() + TOPIC_DEADLINE;
    while kafka.log_end_offsets("orders").is_err() {
        assert!(Instant::now() < deadline, "no new leaders");
        thread::sleep(POLL);
    }
    kafka.restart_broker(0).unwrap();
    assert_eq!(kafka.pids().len(), 3);
}
