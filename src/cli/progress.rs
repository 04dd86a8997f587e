//! The progress of long commands.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output::note;

/// How often a line of progress is printed if there is no terminal.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

/// The progress of an import or an export: a bar on a terminal, otherwise a line in intervals.
pub(super) struct TransferProgress {
    bar: ProgressBar,
    last_line: Mutex<Instant>,
}

impl TransferProgress {
    /// Starts at zero. `bytes` is the size of the whole input, if it is known.
    pub(super) fn new(bytes: Option<u64>) -> Self {
        let bar = match bytes {
            Some(bytes) => ProgressBar::new(bytes).with_style(
                ProgressStyle::with_template("{bar:30} {percent:>3} %, {msg}, {eta} left")
                    .expect("the template is well formed"),
            ),
            None => ProgressBar::no_length().with_style(
                ProgressStyle::with_template("{spinner} {elapsed}, {msg}")
                    .expect("the template is well formed"),
            ),
        };
        if std::io::stderr().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(5));
        } else {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        Self { bar, last_line: Mutex::new(Instant::now()) }
    }

    /// The input was read up to `bytes`; there are `tasks` in all.
    pub(super) fn advance(&self, bytes: u64, tasks: usize) {
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let rate = tasks as f64 / self.bar.elapsed().as_secs_f64();
        let message = format!("{tasks} tasks, {rate:.0} a second");
        self.bar.set_position(self.bar.position().max(bytes));
        let mut last_line = self.last_line.lock().expect("no code panics with the lock");
        if self.bar.is_hidden() && last_line.elapsed() >= PROGRESS_INTERVAL {
            note(&message);
            *last_line = Instant::now();
        }
        self.bar.set_message(message);
    }

    /// Prints a line beside the bar.
    pub(super) fn note(&self, text: &str) {
        self.bar.suspend(|| note(text));
    }

    /// Removes the bar.
    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
