//! Getting the server programs: from PATH when recent enough, else downloaded or built once into a cache.

mod go;
mod kafka;
mod tool;

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use crate::{Error, Progress, Result};

pub use go::{VaultInstall, VaultKind};
pub use kafka::KafkaInstall;

/// A server that this crate can obtain and run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Server {
    /// Apache Kafka (KRaft), its tools and MirrorMaker 2.
    Kafka,
    /// HashiCorp Consul.
    Consul,
    /// HashiCorp Vault.
    Vault,
}

impl Server {
    /// Every server.
    pub const ALL: [Self; 3] = [Self::Kafka, Self::Consul, Self::Vault];
}

/// Where the obtained servers are; `None` for those that were not asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Installed {
    /// Kafka's jars.
    pub kafka: Option<KafkaInstall>,
    /// The `consul` program.
    pub consul: Option<PathBuf>,
    /// A program that runs Vault.
    pub vault: Option<VaultInstall>,
}

/// Makes sure that the servers are there. Cheap when they are; otherwise it downloads or builds, which takes seconds
/// (Kafka) to minutes (Consul, Vault). Processes that need the same server wait for the one that obtains it.
pub fn obtain(which: &[Server], progress: &dyn Progress) -> Result<Installed> {
    let cache = cache_folder()?;
    fs::create_dir_all(&cache).map_err(Error::path("create", &cache))?;
    let mut installed = Installed::default();
    for server in which {
        match server {
            Server::Kafka => installed.kafka = Some(kafka::obtain(&cache, progress)?),
            Server::Consul => installed.consul = Some(go::obtain_consul(&cache, progress)?),
            Server::Vault => installed.vault = Some(go::obtain_vault(&cache, progress)?),
        }
    }
    Ok(installed)
}

/// See [`kafka::tiered_storage`].
pub(crate) fn obtain_tiered_storage(version: &str, progress: &dyn Progress) -> Result<PathBuf> {
    kafka::tiered_storage(&cache_folder()?, version, progress)
}

fn cache_folder() -> Result<PathBuf> {
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(folder) = set("STANDFAST_SERVERS_CACHE") {
        return Ok(folder);
    }
    let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    base.map(|base| base.join("standfast").join("servers"))
        .ok_or_else(|| Error::Io {
            what: "find a cache folder: set STANDFAST_SERVERS_CACHE or HOME".to_owned(),
            source: std::io::ErrorKind::NotFound.into(),
        })
}

/// Runs `fill` on a temporary folder that then becomes `target`, unless `target` is there or another process makes it first.
fn once(
    target: &Path,
    what: &str,
    progress: &dyn Progress,
    fill: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    if target.exists() {
        return Ok(());
    }
    let _lock = lock(&suffixed(target, "lock"), what, progress)?;
    if target.exists() {
        return Ok(());
    }
    let partial = suffixed(target, "partial");
    let _ = fs::remove_dir_all(&partial);
    fs::create_dir_all(&partial).map_err(Error::path("create", &partial))?;
    fill(&partial)?;
    fs::rename(&partial, target).map_err(Error::path("rename to", target))
}

fn lock(path: &Path, what: &str, progress: &dyn Progress) -> Result<File> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(Error::path("open", path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            progress.begin(&format!("waiting for another process that obtains {what}"));
            let locked = file.lock().map_err(Error::path("lock", path));
            progress.end("done");
            locked.map(|()| file)
        }
        Err(TryLockError::Error(source)) => Err(Error::Io {
            what: format!("lock {}", path.display()),
            source,
        }),
    }
}

/// `kafka-4.1.0` + `lock` = `kafka-4.1.0.lock` (`Path::with_extension` would cut off the `.0`).
fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}

/// A short name for the sources of a build, so that changing them makes a new cache entry (FNV-1a).
fn fingerprint(sources: &[&str]) -> String {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in sources.iter().flat_map(|source| source.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("{:08x}", hash >> 32)
}
