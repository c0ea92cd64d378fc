//! Standfast's own programs, built by cargo and run as child processes beside the servers.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;

use serde::Deserialize;

use crate::{Error, Result};

/// The cargo profile of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// As in tests: quick to build.
    Dev,
    /// As installed: for measurements.
    Release,
}

#[derive(Deserialize)]
struct BuildMessage {
    executable: Option<PathBuf>,
    target: Option<BuildTarget>,
}

#[derive(Deserialize)]
struct BuildTarget {
    name: String,
    kind: Vec<String>,
}

/// Names and paths.
type Programs = Vec<(String, PathBuf)>;

/// Every program that was built in this process, by profile: cargo is asked once for each.
static BUILT: Mutex<Vec<(Profile, Programs)>> = Mutex::new(Vec::new());

/// Path of the workspace's binary `name` (for example `standfast`), built first if it is out of date.
///
/// For tests, all binaries of the workspace are built together: the features of shared dependencies are then the ones
/// of `cargo test --workspace`, and nothing is compiled twice. In release, where every crate costs minutes, only this one is.
pub fn workspace_program(name: &str, profile: Profile) -> Result<PathBuf> {
    let mut built = BUILT
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    let is_known = |(of, programs): &(Profile, Programs)| {
        *of == profile
            && (profile == Profile::Dev || programs.iter().any(|(program, _)| program == name))
    };
    if !built.iter().any(is_known) {
        let programs = build(name, profile)?;
        built.push((profile, programs));
    }
    let found = built
        .iter()
        .filter(|(of, _)| *of == profile)
        .flat_map(|(_, programs)| programs)
        .find(|(program, _)| program == name);
    found
        .map(|(_, path)| path.clone())
        .ok_or_else(|| Error::Obtain {
            server: name.to_owned(),
            detail: "the workspace has no binary of that name".to_owned(),
        })
}

fn build(name: &str, profile: Profile) -> Result<Programs> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // At run time first: with one build directory for several work trees, the path at build time is that of any of them.
    let package =
        std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let mut command = Command::new(cargo);
    command
        .args([
            "build",
            "--workspace",
            "--message-format=json-render-diagnostics",
        ])
        .current_dir(package)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    if profile == Profile::Release {
        command.args(["--release", "--bin", name]);
    } else {
        command.args(["--quiet", "--bins"]);
    }
    let output = command.output().map_err(Error::io("run cargo build"))?;
    if !output.status.success() {
        return Err(Error::Obtain {
            server: "the workspace's programs".to_owned(),
            detail: "cargo build failed, see above".to_owned(),
        });
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let programs = messages.lines().filter_map(|line| {
        let message: BuildMessage = serde_json::from_str(line).ok()?;
        let target = message.target?;
        let is_program = target.kind.iter().any(|kind| kind == "bin");
        Some((target.name, message.executable.filter(|_| is_program)?))
    });
    Ok(programs.collect())
}
