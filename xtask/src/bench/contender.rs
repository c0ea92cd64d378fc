//! The tools that are compared.

use std::fmt;

use anyhow::Result;

use super::mirrormaker::MirrorMaker;
use super::standfast::Standfast;
use super::{Clusters, Usage};

/// A tool that mirrors topics. Made ready by [`Tool::prepare`]; ended by dropping it.
pub(super) trait Contender {
    /// Begins to mirror these topics from the source to the destination cluster.
    fn mirror(&mut self, topics: &[String]) -> Result<()>;
    /// What its process has used so far; nothing if it has not been started.
    fn usage(&self) -> Result<Usage>;
    /// What its process has copied before [`Contender::mirror`], in bytes of record values.
    fn warm_up_bytes(&self) -> f64;
    /// The last lines of its log if its process has ended.
    fn failure(&mut self) -> Option<String>;
}

/// The tools by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Tool {
    Standfast,
    Mirrormaker2,
}

impl Tool {
    /// In the order of running. The second one finds the warmer brokers.
    pub(super) const ALL: [Self; 2] = [Self::Standfast, Self::Mirrormaker2];

    /// Gets the tool to where it only needs to be told the topics.
    pub(super) fn prepare(self, clusters: &Clusters) -> Result<Box<dyn Contender>> {
        Ok(match self {
            Self::Standfast => Box::new(Standfast::prepare(clusters)?),
            Self::Mirrormaker2 => Box::new(MirrorMaker::prepare(clusters)?),
        })
    }
}

impl fmt::Display for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Standfast => "standfast",
            Self::Mirrormaker2 => "mirrormaker2",
        })
    }
}
