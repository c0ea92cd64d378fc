//! Obtains and runs real Kafka, Consul and Vault servers for tests and the demo.
