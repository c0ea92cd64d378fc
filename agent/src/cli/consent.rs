//! Asking before something that cannot be taken back.

use std::io::{BufRead, IsTerminal, Write};

use super::output::Printer;
use crate::exit::Failed;

/// Whether there is somebody to ask.
///
/// # Errors
/// There is nobody; `what` would happen.
pub(super) fn possible(what: &str) -> Result<(), Failed> {
    if std::io::stdin().is_terminal() && std::io::stderr().is_terminal() {
        return Ok(());
    }
    Err(Failed::usage(format!(
        "{what}; without a terminal to ask at, say --yes (or --dry-run)"
    )))
}

/// Asks at the terminal.
///
/// # Errors
/// There is nobody to ask.
pub(super) fn given(printer: &Printer, what: &str) -> Result<bool, Failed> {
    possible(what)?;
    printer.warn(what);
    let _ = write!(std::io::stderr(), "Go on? Type yes: ");
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    let yes = read.is_ok() && answer.trim() == "yes";
    if !yes {
        printer.note("nothing was changed");
    }
    Ok(yes)
}
