//! What is done to the fleet, drawn from a seed alone: the same seed gives the same steps, however long each takes.

use std::fmt;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// Shortest and longest outage, in milliseconds.
const OUTAGE_MS: std::ops::Range<u64> = 500..6_000;
/// Of ten steps, how many change the active cluster.
const FLIPS_IN_TEN: u32 = 5;

/// How something is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// SIGKILL: connections are reset, new ones refused.
    Killed,
    /// SIGSTOP: nothing answers; it wakes up believing that nothing happened.
    Frozen,
    /// Clusters only: the network drops its packets, and what was on its way arrives when it returns. Frozen instead where no
    /// network can be made (that takes root).
    CutOff,
}

/// What an outage hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The cluster that applications use; not killed, since its loss is a failover.
    Active,
    /// The other cluster.
    Standby,
    /// The agent at the standby, whose link mirrors.
    StandbyAgent,
    /// The agent at the active cluster.
    ActiveAgent,
    /// The fleet record's server.
    Consul,
    /// The credentials' server. "Killed" is sealed: a development server that is killed comes back empty.
    Vault,
}

/// Something that goes away and comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outage {
    /// What it hits.
    pub target: Target,
    /// How.
    pub how: How,
    /// For how long.
    pub lasts: Duration,
}

/// One step; after each of them the applications must work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// One or two outages at the same time.
    Outages(Vec<Outage>),
    /// Planned.
    Switchover,
    /// The active cluster is lost, the other takes over, the lost one returns and is restored.
    Failover {
        /// How it is lost.
        how: How,
        /// Whether the mirror is behind at that moment, so that records are on the lost cluster alone.
        behind: bool,
        /// Restored by deleting the topic (`full`) instead of the tail (`fast`).
        full: bool,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Switchover => f.write_str("switchover"),
            Self::Failover { how, behind, full } => {
                let behind = if *behind { ", mirror behind" } else { "" };
                let mode = if *full { "full" } else { "fast" };
                write!(
                    f,
                    "failover: active cluster {how:?}{behind}, restore {mode}"
                )
            }
            Self::Outages(outages) => {
                for (place, Outage { target, how, lasts }) in outages.iter().enumerate() {
                    let and = if place > 0 { " and " } else { "" };
                    write!(f, "{and}{target:?} {how:?} for {lasts:?}")?;
                }
                Ok(())
            }
        }
    }
}

/// The steps of a seed, without end.
#[derive(Debug)]
pub struct Schedule(StdRng);

impl Schedule {
    /// The schedule of this seed.
    pub fn of(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    fn how(&mut self) -> How {
        if self.0.random() {
            How::Killed
        } else {
            How::Frozen
        }
    }

    fn how_of_cluster(&mut self) -> How {
        *[How::Killed, How::Frozen, How::CutOff]
            .choose(&mut self.0)
            .expect("three")
    }

    fn outages(&mut self) -> Vec<Outage> {
        const ALL: [Target; 6] = [
            Target::Active,
            Target::Standby,
            Target::StandbyAgent,
            Target::ActiveAgent,
            Target::Consul,
            Target::Vault,
        ];
        let count = self.0.random_range(1..=2);
        let targets: Vec<Target> = ALL.choose_multiple(&mut self.0, count).copied().collect();
        targets
            .into_iter()
            .map(|target| Outage {
                how: match target {
                    Target::Active if self.0.random() => How::Frozen,
                    Target::Active => How::CutOff,
                    Target::Standby => self.how_of_cluster(),
                    _ => self.how(),
                },
                lasts: Duration::from_millis(self.0.random_range(OUTAGE_MS)),
                target,
            })
            .collect()
    }
}

impl Iterator for Schedule {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let flip = self.0.random_ratio(FLIPS_IN_TEN, 10);
        Some(if !flip {
            Step::Outages(self.outages())
        } else if self.0.random_ratio(1, 3) {
            Step::Switchover
        } else {
            Step::Failover {
                how: self.how_of_cluster(),
                behind: self.0.random(),
                full: self.0.random(),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_steps_and_every_kind_of_them() {
        let steps = |seed| Schedule::of(seed).take(200).collect::<Vec<_>>();
        assert_eq!(steps(7), steps(7));
        assert_ne!(steps(7), steps(8));
        for wanted in [
            |step: &Step| *step == Step::Switchover,
            |step: &Step| {
                matches!(
                    step,
                    Step::Failover {
                        how: How::Frozen,
                        behind: true,
                        ..
                    }
                )
            },
            |step: &Step| {
                matches!(
                    step,
                    Step::Failover {
                        how: How::Killed,
                        full: true,
                        ..
                    }
                )
            },
            |step: &Step| {
                matches!(
                    step,
                    Step::Failover {
                        how: How::CutOff,
                        behind: true,
                        ..
                    }
                )
            },
            |step: &Step| matches!(step, Step::Outages(outages) if outages.len() == 2),
        ] {
            assert!(steps(7).iter().any(wanted));
        }
    }
}
