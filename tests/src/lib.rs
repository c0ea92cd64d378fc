//! What the end-to-end tests share: a pair of clusters, the agent as a child process, load, and the comparison of two logs.
//!
//! The tests themselves are in `e2e/`, one file per theme. Every server is real; see `standfast-servers`.
#![forbid(unsafe_code)]

pub mod agent;
pub mod application;
pub mod cable;
pub mod chaos;
pub mod compare;
pub mod faulty;
pub mod load;
pub mod pair;
pub mod site;
pub mod transactions;
pub mod wait;
