//! How things are printed: data on stdout, everything else on stderr, colours for terminals only.

use std::fmt::Display;
use std::io::{IsTerminal, Write};

use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table, presets};
use serde::Serialize;

use super::OutputFormat;
use crate::exit::Failed;

#[derive(Debug)]
pub(super) struct Printer {
    format: OutputFormat,
    quiet: bool,
    colours: bool,
}

/// What a word means to the reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Good,
    Bad,
    Warn,
    Plain,
}

impl Printer {
    pub(super) fn new(format: OutputFormat, quiet: bool) -> Self {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|v| v == "dumb");
        let colours = std::io::stdout().is_terminal() && !no_color && !dumb;
        Self {
            format,
            quiet,
            colours,
        }
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.quiet
    }

    pub(super) fn is_json(&self) -> bool {
        self.format == OutputFormat::Json
    }

    /// Data for programs.
    pub(super) fn json<T: Serialize>(&self, value: &T) -> Result<(), Failed> {
        let text = serde_json::to_string_pretty(value)
            .map_err(|error| Failed::failure(format!("cannot write JSON: {error}")))?;
        self.line(text)
    }

    /// A line of data.
    pub(super) fn line(&self, text: impl Display) -> Result<(), Failed> {
        // A reader that went away (`| head`) is not worth a panic.
        writeln!(std::io::stdout(), "{text}")
            .map_err(|error| Failed::failure(format!("cannot write to stdout: {error}")))
    }

    /// For the person at the terminal; not data.
    pub(super) fn note(&self, text: impl Display) {
        if !self.quiet {
            let _ = writeln!(std::io::stderr(), "{text}");
        }
    }

    /// Must be seen, even with --quiet.
    pub(super) fn warn(&self, text: impl Display) {
        let _ = writeln!(std::io::stderr(), "warning: {text}");
    }

    pub(super) fn table(&self, headers: &[&str]) -> TablePrinter<'_> {
        let mut table = Table::new();
        table
            .load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(headers.iter().map(|header| {
            let cell = Cell::new(header);
            if self.colours {
                cell.add_attribute(Attribute::Bold)
            } else {
                cell
            }
        }));
        TablePrinter {
            printer: self,
            table,
        }
    }
}

/// A table that is being filled.
#[derive(Debug)]
pub(super) struct TablePrinter<'p> {
    printer: &'p Printer,
    table: Table,
}

impl TablePrinter<'_> {
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = (String, Tone)>) {
        let colours = self.printer.colours;
        self.table.add_row(cells.into_iter().map(|(text, tone)| {
            let cell = Cell::new(text);
            match tone {
                Tone::Good if colours => cell.fg(Color::Green),
                Tone::Bad if colours => cell.fg(Color::Red),
                Tone::Warn if colours => cell.fg(Color::Yellow),
                _ => cell,
            }
        }));
    }

    pub(super) fn print(self) -> Result<(), Failed> {
        let text = self.table.to_string();
        let trimmed: Vec<String> = text.lines().map(trimmed).collect();
        self.printer.line(trimmed.join("\n"))
    }
}

/// A line without the padding of its last cell, which may stand inside of the colour's end.
fn trimmed(line: &str) -> String {
    const END: &str = "\u{1b}[0m";
    let line = line.trim_end();
    match line.strip_suffix(END) {
        Some(coloured) => format!("{}{END}", coloured.trim_end()),
        None => line.to_owned(),
    }
}

/// A plain cell.
pub(super) fn cell(text: impl Display) -> (String, Tone) {
    (text.to_string(), Tone::Plain)
}

/// A number that may be unknown.
pub(super) fn number(value: Option<impl Display>) -> (String, Tone) {
    value.map_or_else(
        || ("unknown".to_owned(), Tone::Warn),
        |value| (value.to_string(), Tone::Plain),
    )
}

pub(super) fn seconds(value: Option<f64>) -> (String, Tone) {
    number(value.map(|seconds| format!("{seconds:.1}")))
}

/// A state, in the colour that its meaning has.
pub(super) fn state(name: &str) -> (String, Tone) {
    let tone = match name {
        "ACTIVE" | "HEALTHY" | "LIVE" | "active" => Tone::Good,
        "FAILED" | "LINK_FAILED" | "UNREACHABLE" | "IN_ERROR" => Tone::Bad,
        "STOPPED" | "LINK_STOPPED" | "UNKNOWN" | "NEVER" | "NOT_CONFIGURED" => Tone::Plain,
        _ => Tone::Warn,
    };
    (name.to_owned(), tone)
}
