//! What a process has used, from `/proc`.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// CPU time and memory of one process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// User and system time, with that of children that have ended.
    pub(super) cpu: Duration,
    /// Highest resident set so far (VmHWM).
    pub(super) peak_resident_bytes: u64,
}

impl Usage {
    pub(super) fn of(pid: u32) -> Result<Self> {
        let read = |name: &str| {
            let path = format!("/proc/{pid}/{name}");
            fs::read_to_string(&path).with_context(|| format!("read {path}"))
        };
        let (stat, status) = (read("stat")?, read("status")?);
        let ticks = cpu_ticks(&stat).with_context(|| format!("unexpected /proc/{pid}/stat"))?;
        let kib = peak_kib(&status).with_context(|| format!("no VmHWM in /proc/{pid}/status"))?;
        Ok(Self {
            cpu: Duration::from_secs_f64(ticks as f64 / ticks_per_second()?),
            peak_resident_bytes: kib * 1024,
        })
    }
}

/// utime, stime, cutime, cstime: fields 14 to 17 of proc_pid_stat(5). The second field may hold spaces.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = after_name.split(' ').collect();
    fields
        .get(11..15)?
        .iter()
        .map(|field| field.parse::<u64>().ok())
        .sum()
}

fn peak_kib(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

fn ticks_per_second() -> Result<f64> {
    let ticks =
        nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).context("ask for CLK_TCK")?;
    Ok(ticks.context("CLK_TCK is not defined")? as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_stat_and_status() {
        let stat = "7 (a (b) c) S 1 7 7 0 -1 4194304 100 0 0 0 11 22 33 44 20 0 1 0 5 1 2";
        assert_eq!(cpu_ticks(stat), Some(110));
        assert_eq!(
            peak_kib("Name:\tx\nVmPeak:\t  9 kB\nVmHWM:\t   1234 kB\n"),
            Some(1234)
        );
    }

    #[test]
    fn this_process_uses_memory() {
        assert!(Usage::of(std::process::id()).unwrap().peak_resident_bytes > 0);
    }
}
