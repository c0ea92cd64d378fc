//! The exit codes of every subcommand, in one place.

/// How the program ends. The numbers are part of the interface: scripts depend on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done.
    Ok = 0,
    /// Something failed; the error says what.
    Failure = 1,
    /// The command line or the configuration is wrong. (Also clap's own code.)
    Usage = 2,
    /// No agent answers at the address.
    AgentUnreachable = 3,
    /// A failover or switchover failed on the way, or something was done in part: read the report.
    FailoverIncomplete = 4,
    /// A precondition does not hold. Nothing was changed.
    Refused = 5,
    /// A comparison found a difference.
    Different = 6,
}

/// The text that `--help` shows.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failure
  2  wrong usage or configuration
  3  no agent answers at the address
  4  failed on the way or done in part (failover, switchover, some of the named mirrors): read the report
  5  refused, a precondition does not hold; nothing was changed
  6  `mirror verify` found a difference";

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        std::process::ExitCode::from(exit as u8)
    }
}

/// An error that knows the exit code it ends the program with.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) exit: Exit,
    pub(crate) message: String,
}

impl Failed {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
        }
    }

    pub(crate) fn failure(message: impl Into<String>) -> Self {
        Self::new(Exit::Failure, message)
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failed {}
