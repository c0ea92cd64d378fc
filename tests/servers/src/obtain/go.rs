//! Consul and Vault: built from their published Go modules.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{fingerprint, once, suffixed, tool};
use crate::{Error, Progress, Result};

const CONSUL_VERSION: &str = "1.19.2";
const CONSUL_ACCEPTED: [u32; 2] = [1, 19];
const CONSUL_SOURCES: [(&str, &str); 3] = [
    ("go.mod", include_str!("../../obtain/consul/go.mod")),
    ("go.sum", include_str!("../../obtain/consul/go.sum")),
    ("tools.go", include_str!("../../obtain/consul/tools.go")),
];
const VAULT_VERSION: &str = "1.21.4";
const VAULT_ACCEPTED: [u32; 2] = [1, 19];
const VAULT_SOURCES: [(&str, &str); 3] = [
    ("go.mod", include_str!("../../obtain/vault/go.mod")),
    ("go.sum", include_str!("../../obtain/vault/go.sum")),
    ("main.go", include_str!("../../obtain/vault/main.go")),
];

/// A program that runs Vault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VaultInstall {
    /// The program.
    pub program: PathBuf,
    /// How it is to be called.
    pub kind: VaultKind,
}

/// How a Vault program is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VaultKind {
    /// HashiCorp's `vault`, run as `vault server -dev`.
    Official,
    /// The core of Vault behind a small main of ours (`obtain/vault/main.go`); the full program takes far longer to build.
    Core,
}

pub(super) fn obtain_consul(cache: &Path, progress: &dyn Progress) -> Result<PathBuf> {
    if let Some(consul) = installed("consul", &["version"], CONSUL_ACCEPTED) {
        return Ok(consul);
    }
    let what = format!("Consul {CONSUL_VERSION}");
    build(
        cache,
        &what,
        "consul",
        "github.com/hashicorp/consul",
        &CONSUL_SOURCES,
        progress,
    )
}

pub(super) fn obtain_vault(cache: &Path, progress: &dyn Progress) -> Result<VaultInstall> {
    if let Some(program) = installed("vault", &["version"], VAULT_ACCEPTED) {
        return Ok(VaultInstall {
            program,
            kind: VaultKind::Official,
        });
    }
    let what = format!("Vault {VAULT_VERSION}");
    let program = build(cache, &what, "vault", ".", &VAULT_SOURCES, progress)?;
    Ok(VaultInstall {
        program,
        kind: VaultKind::Core,
    })
}

/// The program on PATH if it says that it is of the accepted major version and at least the minor one.
fn installed(program: &str, version_args: &[&str], accepted: [u32; 2]) -> Option<PathBuf> {
    let path = tool::find(program)?;
    let version = tool::version_in(&tool::output(&path, version_args)?)?;
    let recent = version.first() == accepted.first() && version.get(1) >= accepted.get(1);
    recent.then_some(path)
}

fn build(
    cache: &Path,
    what: &str,
    program: &str,
    package: &str,
    sources: &[(&str, &str)],
    progress: &dyn Progress,
) -> Result<PathBuf> {
    let texts: Vec<&str> = sources.iter().map(|(_, text)| *text).collect();
    let version = what.rsplit(' ').next().unwrap_or_default();
    let target = cache.join(format!("{program}-{version}-{}", fingerprint(&texts)));
    once(&target, what, progress, |folder| {
        let go = tool::find("go").or_else(default_go).ok_or(Error::MissingTool {
            tool: "go (1.25 or newer)",
            needed_for: "to build Consul and Vault",
            install: "see https://go.dev/dl (or put recent `consul` and `vault` programs on PATH)",
        })?;
        for (name, text) in sources {
            let file = folder.join(name);
            fs::write(&file, text).map_err(Error::path("write", &file))?;
        }
        let mut command = Command::new(go);
        command
            .args([
                "build",
                "-trimpath",
                "-ldflags",
                "-s -w",
                "-o",
                program,
                package,
            ])
            .current_dir(folder);
        let step = format!("building {what} (about 4 minutes on 2 cores)");
        tool::run(&step, command, &suffixed(&target, "log"), progress)
    })?;
    Ok(target.join(program))
}

/// Go's installer puts it here, and PATH often lacks it in cron and CI.
fn default_go() -> Option<PathBuf> {
    Some(PathBuf::from("/usr/local/go/bin/go")).filter(|go| go.is_file())
}
