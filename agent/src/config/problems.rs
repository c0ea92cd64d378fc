//! What is wrong with a configuration file, said so that it can be mended.

use std::fmt;
use std::ops::Range;
use std::path::Path;

/// Every problem of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConfigError {
    file: String,
    problems: Vec<Problem>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Problem {
    line: Option<usize>,
    key: String,
    message: String,
}

impl ConfigError {
    pub(crate) fn unreadable(path: &Path, error: &std::io::Error) -> Self {
        let message = format!("cannot be read: {error}; give an existing file");
        Self {
            file: path.display().to_string(),
            problems: vec![Problem {
                line: None,
                key: String::new(),
                message,
            }],
        }
    }

    /// The problems as `(line, key, message)`.
    pub(crate) fn problems(&self) -> impl Iterator<Item = (Option<usize>, &str, &str)> {
        self.problems
            .iter()
            .map(|p| (p.line, p.key.as_str(), p.message.as_str()))
    }

    pub(crate) fn file(&self) -> &str {
        &self.file
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{}", self.file)?;
            if let Some(line) = problem.line {
                write!(f, ":{line}")?;
            }
            if !problem.key.is_empty() {
                write!(f, ": {}", problem.key)?;
            }
            write!(f, ": {}", problem.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// Collects problems while the file is read.
#[derive(Debug)]
pub(super) struct Problems<'t> {
    file: String,
    text: &'t str,
    found: Vec<Problem>,
}

impl<'t> Problems<'t> {
    pub(super) fn new(file: &str, text: &'t str) -> Self {
        Self {
            file: file.to_owned(),
            text,
            found: Vec::new(),
        }
    }

    pub(super) fn add(
        &mut self,
        key: impl Into<String>,
        at: Option<Range<usize>>,
        message: impl Into<String>,
    ) {
        let line = at.map(|span| self.line_of(span.start));
        self.found.push(Problem {
            line,
            key: key.into(),
            message: message.into(),
        });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    pub(super) fn into_error(mut self) -> ConfigError {
        self.found.sort_by_key(|p| p.line.unwrap_or(usize::MAX));
        ConfigError {
            file: self.file,
            problems: self.found,
        }
    }

    fn line_of(&self, byte: usize) -> usize {
        let before = self
            .text
            .as_bytes()
            .get(..byte)
            .unwrap_or(self.text.as_bytes());
        before.iter().filter(|&&b| b == b'\n').count() + 1
    }
}
