//! The fleet record: read, watch and compare-and-set, on Consul or a file.
