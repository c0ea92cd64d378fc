//! A network namespace for one cluster, joined to this one by a pair of virtual interfaces.

use std::fs::File;
use std::net::Ipv4Addr;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns, unshare};

/// Inside; reserved for measurements between networks (RFC 2544).
pub(super) const INSIDE: Ipv4Addr = Ipv4Addr::new(198, 18, 77, 2);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 18, 77, 1);
const PREFIX: u8 = 30;

/// It and its interfaces are gone with this value and the processes in it.
#[derive(Debug)]
pub(super) struct Namespace {
    file: File,
}

impl Namespace {
    /// Needs CAP_SYS_ADMIN and CAP_NET_ADMIN.
    pub(super) fn new() -> Result<Self> {
        let inner = format!("sf{}i", std::process::id());
        let outer = format!("sf{}o", std::process::id());
        let owner = std::process::id().to_string();
        let made = thread::spawn(move || -> Result<(File, String)> {
            unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
            let file = File::open("/proc/thread-self/ns/net").context("open the namespace")?;
            ip(&["link", "set", "lo", "up"])?;
            ip(&[
                "link", "add", &inner, "type", "veth", "peer", "name", &outer, "netns", &owner,
            ])?;
            ip(&[
                "address",
                "add",
                &format!("{INSIDE}/{PREFIX}"),
                "dev",
                &inner,
            ])?;
            ip(&["link", "set", &inner, "up"])?;
            // The rule that finds local addresses comes first by default; packets could not be dropped ahead of it.
            ip(&["rule", "add", "pref", "100", "lookup", "local"])?;
            ip(&["rule", "del", "pref", "0"])?;
            Ok((file, outer))
        });
        let (file, outer) = made.join().ok().context("the thread panicked")??;
        ip(&[
            "address",
            "add",
            &format!("{OUTSIDE}/{PREFIX}"),
            "dev",
            &outer,
        ])?;
        ip(&["link", "set", &outer, "up"])?;
        Ok(Self { file })
    }

    /// Runs `work` on a thread that is in the namespace; what it starts is in it too.
    pub(super) fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let ran = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET).context("enter the namespace")?;
                work()
            });
            match ran.join() {
                Ok(result) => result,
                Err(_) => bail!("the thread in the namespace panicked"),
            }
        })
    }

    /// From now on packets from outside and to it vanish, or no longer do.
    pub(super) fn drop_packets(&self, drop: bool) -> Result<()> {
        let what = if drop { "add" } else { "del" };
        let outside = OUTSIDE.to_string();
        self.inside(|| {
            ip(&["rule", what, "pref", "1", "from", &outside, "blackhole"])?;
            ip(&["rule", what, "pref", "2", "to", &outside, "blackhole"])
        })
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .context("run ip")?;
    ensure!(
        output.status.success(),
        "ip {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
