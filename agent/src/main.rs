//! The standfast daemon and command line.

fn main() {}
