//! Telling a person what a long step is doing.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Without a terminal, a running step is mentioned this often.
const PLAIN_INTERVAL: Duration = Duration::from_secs(30);

/// Receives the steps of [`obtain()`](crate::obtain()). Steps do not overlap.
pub trait Progress: Sync {
    /// A step begins.
    fn begin(&self, step: &str);
    /// The step goes on; `last_line` is the newest output of the tool that runs. Called a few times a second.
    fn tick(&self, last_line: &str);
    /// The step has ended.
    fn end(&self, outcome: &str);
}

/// Says nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _step: &str) {}
    fn tick(&self, _last_line: &str) {}
    fn end(&self, _outcome: &str) {}
}

/// Writes to stderr: a spinner on a terminal, plain lines otherwise.
#[derive(Debug, Default)]
pub struct Terminal {
    current: Mutex<Option<Step>>,
}

#[derive(Debug)]
struct Step {
    name: String,
    began: Instant,
    mentioned: Instant,
    bar: Option<ProgressBar>,
}

impl Terminal {
    /// A progress display on stderr.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn with(&self, act: impl FnOnce(&mut Option<Step>)) {
        act(&mut self
            .current
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner()));
    }
}

impl Progress for Terminal {
    fn begin(&self, step: &str) {
        let now = Instant::now();
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) =
                ProgressStyle::with_template("{spinner} {prefix} ({elapsed}) {wide_msg:.dim}")
            {
                bar.set_style(style);
            }
            bar.set_prefix(step.to_owned());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        if bar.is_none() {
            eprintln!("{step} …");
        }
        self.with(|current| {
            *current = Some(Step {
                name: step.to_owned(),
                began: now,
                mentioned: now,
                bar,
            })
        });
    }

    fn tick(&self, last_line: &str) {
        self.with(|current| {
            let Some(step) = current else { return };
            if let Some(bar) = &step.bar {
                bar.set_message(last_line.to_owned());
            } else if step.mentioned.elapsed() >= PLAIN_INTERVAL {
                step.mentioned = Instant::now();
                eprintln!(
                    "{}: {} s so far: {last_line}",
                    step.name,
                    step.began.elapsed().as_secs()
                );
            }
        });
    }

    fn end(&self, outcome: &str) {
        self.with(|current| {
            let Some(step) = current.take() else { return };
            if let Some(bar) = step.bar {
                bar.finish_and_clear();
            }
            eprintln!(
                "{}: {outcome} ({:.1} s)",
                step.name,
                step.began.elapsed().as_secs_f32()
            );
        });
    }
}
