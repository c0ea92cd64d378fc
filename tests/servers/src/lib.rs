//! Obtains and runs real Kafka, Consul and Vault servers for tests and the demo.
//!
//! Nothing here is a mock: every server is the stock program, started on loopback, on free ports, with its data in a
//! scratch folder. The value that represents a server owns its processes. Dropping it kills them and removes the
//! folder, and so does the death of the owning process, even by SIGKILL.
//!
//! The first use obtains what is missing (Kafka by Maven, Consul and Vault by Go) into a cache outside the source
//! tree; see [`obtain()`].
//!
//! | Variable | Effect |
//! |---|---|
//! | `STANDFAST_SERVERS_CACHE` | Where programs are cached; default `$XDG_CACHE_HOME/standfast/servers` or `~/.cache/…` |
//! | `STANDFAST_KEEP_SCRATCH` | Set to anything: the scratch folders (data, logs) are left behind for a look |
#![forbid(unsafe_code)]

mod consul;
mod error;
mod http;
mod kafka;
mod namespace;
mod obtain;
mod ports;
mod process;
mod programs;
mod progress;
mod scratch;
mod vault;

pub use consul::{Consul, ConsulBuilder};
pub use error::Error;
pub use http::Api;
pub use kafka::{KafkaBuilder, KafkaCluster};
pub use namespace::Namespace;
pub use obtain::{Installed, KafkaInstall, Server, VaultInstall, VaultKind, obtain};
pub use ports::Port;
pub use process::ServerProcess;
pub use programs::{Profile, workspace_program};
pub use progress::{Progress, Silent, Terminal};
pub use vault::Vault;

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
