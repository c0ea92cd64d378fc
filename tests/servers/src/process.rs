//! One server process that cannot outlive its owner.
//!
//! The server runs in its own process group, so that Ctrl-C in the terminal reaches the owner alone. Next to it runs a
//! watchdog: a shell that reads from a pipe whose other end only the owner holds. When the owner ends, for whatever
//! reason, the kernel closes the pipe and the watchdog kills the group and removes the scratch folder. (The parent death signal
//! would not do: it fires when the *thread* that started the process ends, and tests start servers on threads that come and go.)

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::{Error, Result};

/// How often a process that should end is looked at.
const POLL: Duration = Duration::from_millis(10);
/// Lines of the log that go into an error.
const LOG_TAIL_LINES: usize = 25;
/// A killed server's files may still change for a moment, hence the repeats.
const WATCHDOG: &str = r#"
read -r _
kill -s KILL -- "-$1" 2>/dev/null
[ -n "$2" ] || exit 0
for _ in 1 2 3 4 5 6 7 8 9 10; do
    rm -rf -- "$2" 2>/dev/null && exit 0
    sleep 0.2
done
"#;

/// A running server process with its log file. Killed on drop.
#[derive(Debug)]
pub struct ServerProcess {
    child: Child,
    watchdog: Child,
    log: PathBuf,
}

impl ServerProcess {
    /// Starts `command` with its output appended to `log`. `disposable` is removed if the owner dies first.
    pub fn spawn(mut command: Command, log: &Path, disposable: Option<&Path>) -> Result<Self> {
        let out = File::options()
            .create(true)
            .append(true)
            .open(log)
            .map_err(Error::path("open", log))?;
        let err = out.try_clone().map_err(Error::path("open", log))?;
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .map_err(Error::io(format!("start {program}")))?;
        let watchdog = Command::new("sh")
            .args(["-c", WATCHDOG, "watchdog", &child.id().to_string()])
            .arg(disposable.unwrap_or(Path::new("")))
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        match watchdog {
            Ok(watchdog) => Ok(Self {
                child,
                watchdog,
                log: log.to_owned(),
            }),
            Err(source) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(Error::Io {
                    what: "start sh".to_owned(),
                    source,
                })
            }
        }
    }

    /// The server's process id, which is also its process group.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The exit status if the process has ended.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Sends a signal to the process.
    pub(crate) fn signal(&self, signal: Signal) {
        // Gone already: nothing to signal.
        let _ = kill(self.nix_pid(), signal);
    }

    /// Asks the process to end (SIGTERM) and kills it if it has not within `deadline`.
    pub(crate) fn stop(mut self, deadline: Duration) {
        self.signal(Signal::SIGCONT);
        self.signal(Signal::SIGTERM);
        let until = Instant::now() + deadline;
        while self.exited().is_none() && Instant::now() < until {
            thread::sleep(POLL);
        }
    }

    /// The last lines that the server wrote.
    #[must_use]
    pub fn log_tail(&self) -> String {
        tail(&self.log)
    }

    fn nix_pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _ = killpg(self.nix_pid(), Signal::SIGKILL);
        // The watchdog goes before the child is reaped: until then nobody else can get its process group id.
        let _ = self.watchdog.kill();
        let _ = self.watchdog.wait();
        let _ = self.child.wait();
    }
}

/// The last lines of a log file.
pub(crate) fn tail(log: &Path) -> String {
    let text = match read_lossy(log) {
        Ok(text) => text,
        Err(error) => return format!("(no log: {error})"),
    };
    let lines: Vec<&str> = text.lines().collect();
    lines
        .get(lines.len().saturating_sub(LOG_TAIL_LINES)..)
        .unwrap_or_default()
        .join("\n")
}

fn read_lossy(path: &Path) -> io::Result<String> {
    Ok(String::from_utf8_lossy(&fs::read(path)?).into_owned())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};

    use super::*;

    /// Run as a process of its own by the test below.
    #[test]
    #[ignore = "waits to be killed"]
    fn owner_that_waits_to_be_killed() {
        let folder = tempfile::tempdir().unwrap().keep();
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000 & wait"]);
        let server = ServerProcess::spawn(command, &folder.join("log"), Some(&folder)).unwrap();
        println!("\nserver {} {}", server.pid(), folder.display());
        thread::sleep(Duration::from_secs(60));
    }

    #[test]
    fn a_server_does_not_outlive_an_owner_killed_by_sigkill() {
        let mut owner = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "process::tests::owner_that_waits_to_be_killed",
                "--ignored",
                "--nocapture",
            ])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(owner.stdout.take().unwrap()).lines();
        let line = lines
            .map_while(io::Result::ok)
            .find(|line| line.starts_with("server "))
            .unwrap();
        let fields: Vec<&str> = line.split(' ').collect();
        let (process, folder) = (
            PathBuf::from("/proc").join(fields[1]),
            PathBuf::from(fields[2]),
        );
        assert!(process.exists() && folder.exists());
        owner.kill().unwrap();
        owner.wait().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while is_running(&process) || folder.exists() {
            assert!(
                Instant::now() < deadline,
                "{} or {} is still there",
                process.display(),
                folder.display()
            );
            thread::sleep(POLL);
        }
    }

    /// An orphan that nobody reaps stays as a zombie in a container without an init.
    fn is_running(process: &Path) -> bool {
        let stat = fs::read_to_string(process.join("stat")).unwrap_or_default();
        stat.rsplit(") ")
            .next()
            .is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
    }
}
