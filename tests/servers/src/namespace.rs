//! A network namespace for a cluster, joined to this one by a pair of virtual interfaces: packets between them can be dropped.

use std::fs::File;
use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};

use crate::{Error, Result};

/// 198.18.0.0/15, reserved for measurements between networks (RFC 2544), has so many networks of four addresses.
const NETWORKS: u32 = 1 << 15;
const FIRST: u32 = u32::from_be_bytes([198, 18, 0, 0]);
const PREFIX: u8 = 30;
/// Namespaces of one process before their numbers meet those of the next process.
const PER_PROCESS: u32 = 8;

/// It and its interfaces are gone with this value and the processes in it.
#[derive(Debug)]
pub struct Namespace {
    file: File,
    inside: Ipv4Addr,
    outside: Ipv4Addr,
}

impl Namespace {
    /// Needs Linux, the program `ip`, CAP_SYS_ADMIN and CAP_NET_ADMIN.
    pub fn new() -> Result<Self> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let (process, number) = (std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let network = FIRST + (process * PER_PROCESS + number) % NETWORKS * 4;
        let (outside, inside) = (Ipv4Addr::from(network + 1), Ipv4Addr::from(network + 2));
        let [inner, outer] = ["i", "o"].map(|end| format!("sf{process}{end}{number}"));
        let (owner, near) = (process.to_string(), outer.clone());
        let made = thread::spawn(move || -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET)
                .map_err(|errno| Error::io("make a network namespace")(errno.into()))?;
            let file = File::open("/proc/thread-self/ns/net")
                .map_err(Error::io("open the network namespace"))?;
            ip(&["link", "set", "lo", "up"])?;
            ip(&[
                "link", "add", &inner, "type", "veth", "peer", "name", &near, "netns", &owner,
            ])?;
            let address = format!("{inside}/{PREFIX}");
            ip(&["address", "add", &address, "dev", &inner])?;
            ip(&["link", "set", &inner, "up"])?;
            // The rule that finds local addresses comes first by default; packets could not be dropped ahead of it.
            ip(&["rule", "add", "pref", "100", "lookup", "local"])?;
            ip(&["rule", "del", "pref", "0"])?;
            Ok(file)
        });
        let file = made.join().unwrap_or_else(|_| Err(panicked()))?;
        let address = format!("{outside}/{PREFIX}");
        ip(&["address", "add", &address, "dev", &outer])?;
        ip(&["link", "set", &outer, "up"])?;
        Ok(Self {
            file,
            inside,
            outside,
        })
    }

    /// The address in it that can be reached from here.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.inside
    }

    /// Runs `work` on a thread that is in the namespace; what it starts is in it too.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let ran = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET)
                    .map_err(|errno| Error::io("enter the network namespace")(errno.into()))?;
                work()
            });
            ran.join().unwrap_or_else(|_| Err(panicked()))
        })
    }

    /// From now on packets from outside and to it vanish, or no longer do.
    pub fn drop_packets(&self, drop: bool) -> Result<()> {
        let what = if drop { "add" } else { "del" };
        let outside = self.outside.to_string();
        self.inside(|| {
            ip(&["rule", what, "pref", "1", "from", &outside, "blackhole"])?;
            ip(&["rule", what, "pref", "2", "to", &outside, "blackhole"])
        })
    }
}

fn panicked() -> Error {
    Error::io("work in a network namespace")(std::io::Error::other("the thread panicked"))
}

fn ip(arguments: &[&str]) -> Result<()> {
    let what = || format!("ip {}", arguments.join(" "));
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .map_err(Error::io(what()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::io(what())(std::io::Error::other(said)))
}
