//! Finding and running the tools that obtain servers.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::process::tail;
use crate::{Error, Progress, Result};

const POLL: Duration = Duration::from_millis(200);

/// The program's place on PATH.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    nix::unistd::access(file, nix::unistd::AccessFlags::X_OK).is_ok() && file.is_file()
}

/// Runs a build tool to its end. Its output goes to a log file; the last line of it is shown as progress.
pub(crate) fn run(
    step: &str,
    mut command: Command,
    log: &Path,
    progress: &dyn Progress,
) -> Result<()> {
    let failed = |detail: String| Error::Obtain {
        server: step.to_owned(),
        detail,
    };
    let out = File::create(log).map_err(Error::path("create", log))?;
    let err = out.try_clone().map_err(Error::path("open", log))?;
    progress.begin(step);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .spawn()
        .map_err(Error::io(format!(
            "start {}",
            command.get_program().to_string_lossy()
        )))?;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) => progress.tick(&last_line(log)),
            Err(error) => return Err(failed(error.to_string())),
        }
        thread::sleep(POLL);
    };
    progress.end(if status.success() { "done" } else { "failed" });
    if status.success() {
        return Ok(());
    }
    let program = command.get_program().to_string_lossy().into_owned();
    Err(failed(format!(
        "{program} ended with {status}; its last lines:\n{}",
        tail(log)
    )))
}

/// What a program prints to stdout and stderr, if it can be run and succeeds.
pub(crate) fn output(program: impl AsRef<OsStr>, args: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    output.status.success().then_some(text)
}

/// The first thing in `text` that looks like a version number: `v1.19.2` → [1, 19, 2].
pub(crate) fn version_in(text: &str) -> Option<Vec<u32>> {
    text.split(|c: char| !c.is_ascii_digit() && c != '.')
        .filter(|word| word.contains('.'))
        .find_map(|word| {
            word.trim_matches('.')
                .split('.')
                .map(|part| part.parse().ok())
                .collect()
        })
}

fn last_line(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    String::from_utf8_lossy(&text)
        .lines()
        .last()
        .unwrap_or_default()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::version_in;

    #[test]
    fn versions_are_found_in_what_programs_print() {
        assert_eq!(
            version_in("Consul v1.19.2\nRevision 048f1936\n"),
            Some(vec![1, 19, 2])
        );
        assert_eq!(
            version_in("openjdk version \"17.0.15\" 2025-04-15"),
            Some(vec![17, 0, 15])
        );
        assert_eq!(version_in("kafka_2.13-4.1.0.jar"), Some(vec![2, 13]));
        assert_eq!(version_in("no version"), None);
    }
}
