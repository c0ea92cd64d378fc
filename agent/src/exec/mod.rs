//! `standfast exec`: runs any program with the active cluster's bootstrap and credentials, and restarts or signals it on
//! a flip. For applications that cannot link the wrapper.
//!
//! [`Settings`] come from the command line and a file, [`Sources`] watch discovery and secrets and give [`Target`]s,
//! [`Rendered`] is what the program is told of one, and the [`Supervisor`] owns the program.

mod file;
mod program;
mod properties;
mod settings;
mod sources;
mod supervisor;

pub(crate) use settings::ExecArgs;

use std::process::ExitCode;

use tokio_util::sync::CancellationToken;

use crate::logging;
use program::Signals;
use settings::Settings;
use sources::{Sources, Target};
use supervisor::Supervisor;

/// Longest help of a subcommand.
pub(crate) const EXEC_HELP: &str = "\
The program finds in its environment: STANDFAST_FLEET, STANDFAST_CLUSTER, STANDFAST_EPOCH, KAFKA_BOOTSTRAP_SERVERS, \
KAFKA_SECURITY_PROTOCOL, KAFKA_SASL_MECHANISM, KAFKA_SASL_USERNAME. With --render the properties of the connection are in that \
file (mode 0600, removed at the end; its name is in KAFKA_PROPERTIES_FILE); without it the secrets are in the environment too: \
KAFKA_SASL_PASSWORD, KAFKA_SSL_CA_PEM, KAFKA_SSL_CERTIFICATE_PEM, KAFKA_SSL_KEY_PEM, KAFKA_SSL_KEY_PASSWORD.

A flip, or new credentials of the active cluster, restarts the program: SIGTERM, after --kill-timeout SIGKILL, then the next \
one. With --signal it is not restarted: the file is written anew and the signal is sent. While a switchover holds \
the producers (state fenced) the program is stopped, so that it cannot write to the old cluster; --on-fence ignore is for programs \
that only read. Discovery or secrets being down never stops a running program.

Unlike the wrapper this knows no records: what the program had not sent is up to it, a restarted consumer may see records again.

SIGTERM and SIGINT end the program and then this one; SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2 are passed on. When the program \
ends by itself, this ends too.

Exit codes: the program's own (128 + N when signal N killed it); 125 when this command failed itself, 126 when the \
program cannot be run, 127 when it was not found.

Examples:
  standfast exec --fleet payments -- ./worker
  standfast exec --fleet payments --render /run/worker/kafka.conf -- kcat -F /run/worker/kafka.conf -G workers orders
  standfast exec --fleet payments --render kafka.properties --format java --on-fence ignore -- \\
      sh -c 'exec kafka-console-consumer.sh --bootstrap-server \"$KAFKA_BOOTSTRAP_SERVERS\" \\
             --consumer.config kafka.properties --topic orders'
  standfast exec --fleet payments --render nginx-kafka.conf --signal HUP -- ./reloads-on-hup";

/// This command failed itself (as in env, timeout and docker run).
const EXIT_FAILED: u8 = 125;

/// Runs until the program has ended; its exit code.
pub(crate) async fn run(args: ExecArgs) -> ExitCode {
    logging::init(args.log_format);
    match follow(args).await {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}

async fn follow(args: ExecArgs) -> anyhow::Result<u8> {
    let settings = Settings::new(args)?;
    let mut signals = Signals::listen()?;
    let shutdown = CancellationToken::new();
    let _ended = shutdown.clone().drop_guard();
    let mut sources = Sources::start(&settings, shutdown)?;
    let first: Target = tokio::select! {
        first = sources.first(settings.connect_timeout) => first?,
        signal = signals.ending() => return Ok(program::killed_by(signal)),
    };
    Supervisor::new(settings, first).run(sources, signals).await
}
