//! Kafka producers and consumers that survive the loss of a cluster.
