//! How far a training is: a bar on a terminal, lines elsewhere.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::{
    table::Output,
    terminal::{is_terminal, problem, say},
};

/// Lines of a training where nobody watches a bar.
const LINES: usize = 20;

pub(super) struct Progress {
    bar: Option<ProgressBar>,
    is_json: bool,
    done: usize,
    steps: usize,
}

impl Progress {
    pub(super) fn new(output: Output, from: usize, steps: usize) -> Self {
        let is_json = output.is_json();
        let bar = (is_terminal() && !is_json).then(|| {
            let bar = ProgressBar::new(steps as u64);
            let template = "  {bar:40} {pos}/{len}  {eta} left  loss {msg}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_position(from as u64);
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self { bar, is_json, done: from, steps }
    }

    pub(super) fn step(&mut self, loss: f64) {
        self.done += 1;
        let every = (self.steps / LINES).max(1);
        match &self.bar {
            Some(bar) => {
                bar.set_message(format!("{loss:.4}"));
                bar.inc(1);
            }
            None if self.done == 1
                || self.done == self.steps
                || self.done.is_multiple_of(every) =>
            {
                self.note(&format!("  step {}/{}  loss {loss:.4}", self.done, self.steps));
            }
            None => {}
        }
    }

    /// A line beside the bar; where the answer is JSON, beside that.
    pub(super) fn note(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None if self.is_json => problem(line),
            None => say(line),
        }
    }

    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}
