//! The link engine: mirrors Kafka topics byte for byte and offset for offset.
