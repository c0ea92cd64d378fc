//! Ports that stay ours: across a restart of the server, and against other tests on the machine.
//!
//! A port found by binding to 0 lies in the kernel's ephemeral range, where any outgoing connection may take it while
//! the server is down. So ports come from below that range, and each is guarded by a locked file, which the kernel
//! unlocks when the owning process ends, however it ends.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU16, Ordering};

use crate::{Error, Result};

/// Below the usual ephemeral range (32768–60999).
const FIRST: u16 = 15_000;
const LAST: u16 = 31_999;
/// Candidates tried before giving up.
const MAX_TRIES: u16 = LAST - FIRST + 1;

/// A TCP port on 127.0.0.1 that no other user of this crate will be given while this value lives.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _lock: File,
}

impl Port {
    /// Reserves a port on which nobody listens.
    pub fn reserve() -> Result<Self> {
        let folder = lock_folder();
        fs::create_dir_all(&folder).map_err(Error::path("create", &folder))?;
        for _ in 0..MAX_TRIES {
            let number = next_candidate();
            let path = folder.join(number.to_string());
            let lock = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)
                .map_err(Error::path("open", &path))?;
            if lock.try_lock().is_ok() && TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_ok() {
                return Ok(Self {
                    number,
                    _lock: lock,
                });
            }
        }
        Err(Error::Io {
            what: format!("find a free port from {FIRST} to {LAST}"),
            source: std::io::ErrorKind::AddrInUse.into(),
        })
    }

    /// The port's number.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.number
    }

    /// `127.0.0.1:port`.
    #[must_use]
    pub fn address(&self) -> String {
        self.address_on(Ipv4Addr::LOCALHOST)
    }

    /// `host:port`.
    #[must_use]
    pub fn address_on(&self, host: Ipv4Addr) -> String {
        format!("{host}:{}", self.number)
    }
}

fn lock_folder() -> PathBuf {
    std::env::temp_dir().join(format!("standfast-ports-{}", nix::unistd::getuid()))
}

fn next_candidate() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Processes start at different places so that they seldom try one another's ports.
    let step = NEXT.fetch_add(1, Ordering::Relaxed);
    let start = std::process::id().wrapping_mul(97) % u32::from(MAX_TRIES);
    FIRST + ((start + u32::from(step)) % u32::from(MAX_TRIES)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_ports_are_distinct_until_released() {
        let ports: Vec<Port> = (0..20).map(|_| Port::reserve().unwrap()).collect();
        let mut numbers: Vec<u16> = ports.iter().map(Port::number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 20);
        let path = lock_folder().join(numbers[0].to_string());
        assert!(
            File::open(&path).unwrap().try_lock().is_err(),
            "a reserved port is locked"
        );
        drop(ports);
        assert!(
            File::open(&path).unwrap().try_lock().is_ok(),
            "a dropped port is not"
        );
    }
}
