//! What can stop a link or a call on its handle.

/// Errors of the link engine. Troubles of single partitions are no errors of the link: they are in its description.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An option does not make sense.
    #[error("link option {option}: {reason}")]
    InvalidOption {
        /// Name of the option.
        option: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A cluster refused something for good (wrong cluster id, credentials); retrying does not help.
    #[error("link {link}: {cluster} cluster: {source}")]
    Cluster {
        /// Name of the link.
        link: String,
        /// `source` or `destination`.
        cluster: &'static str,
        /// What happened.
        source: standfast_wire::Error,
    },
    /// The link is not connected to that cluster.
    #[error("link {link}: the {cluster} cluster has not been reached yet")]
    NotConnected {
        /// Name of the link.
        link: String,
        /// `source` or `destination`.
        cluster: &'static str,
    },
    /// A cluster did not name the log end of a partition.
    #[error("link {link}: log end on the {cluster} cluster: {reason}")]
    LogEnd {
        /// Name of the link.
        link: String,
        /// `source` or `destination`.
        cluster: &'static str,
        /// The partition and what happened.
        reason: String,
    },
    /// A cluster did not name where the log of a partition starts or ends.
    #[error("link {link}: log start and end on the {cluster} cluster: {reason}")]
    LogRange {
        /// Name of the link.
        link: String,
        /// `source` or `destination`.
        cluster: &'static str,
        /// The partition and what happened.
        reason: String,
    },
    /// A cluster did not name the committed offsets of a consumer group.
    #[error("link {link}: offsets of group {group:?} on the {cluster} cluster: {reason}")]
    Group {
        /// Name of the link.
        link: String,
        /// The group.
        group: String,
        /// `source` or `destination`.
        cluster: &'static str,
        /// What happened.
        reason: String,
    },
    /// The link is not running (not started, or shut down).
    #[error("link {link} is not running")]
    NotRunning {
        /// Name of the link.
        link: String,
    },
    /// The operating system refused a thread.
    #[error("link {link}: cannot start a data thread: {source}")]
    Thread {
        /// Name of the link.
        link: String,
        /// What happened.
        source: std::io::Error,
    },
    /// A thread that copies data ended by a fault of this program; the log says which. Nothing is lost: a new start goes on from the logs.
    #[error(
        "link {link}: a data thread ended unexpectedly, start the link again and report the log"
    )]
    DataThread {
        /// Name of the link.
        link: String,
    },
}
