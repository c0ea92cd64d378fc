//! Developer commands: demo, test, bench, servers.

fn main() {}
