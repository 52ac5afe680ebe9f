//! What was measured, as a table or as JSON.

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::Format;
use crate::terminal::say;

/// One measured number.
#[derive(Debug, Serialize)]
pub(super) struct Figure {
    pub(super) model: String,
    pub(super) what: String,
    pub(super) value: f64,
    pub(super) unit: &'static str,
}

/// The figures and where they were taken.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) cpu: String,
    /// Kernel set, path and threads.
    pub(super) kernels: String,
    pub(super) figures: Vec<Figure>,
}

impl Figure {
    pub(super) fn new(
        model: &str,
        what: impl Into<String>,
        value: f64,
        unit: &'static str,
    ) -> Self {
        Self { model: model.to_owned(), what: what.into(), value, unit }
    }
}

impl Report {
    pub(super) fn print(&self, format: Format) -> Result<()> {
        match format {
            Format::Table => self.print_table(),
            Format::Json => say(&serde_json::to_string_pretty(self).context("write the report")?),
        }
        Ok(())
    }

    fn print_table(&self) {
        say(&self.cpu);
        say(&self.kernels);
        let width = self.figures.iter().map(|figure| figure.what.chars().count()).max();
        let width = width.unwrap_or(0);
        for Figure { model, what, value, unit } in &self.figures {
            let decimals = if *value < 100.0 { 2 } else { 0 };
            say(&format!("{model:<6} {what:<width$} {value:>10.decimals$} {unit}"));
        }
    }
}

/// The value below which `percent` of `values` lie; `values` is not empty.
pub(super) fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}

pub(super) fn median(values: &[f64]) -> f64 {
    percentile(values, 50)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values() {
        let values: Vec<f64> = (0..20).rev().map(f64::from).collect();
        let found = [0, 50, 95, 100].map(|percent| percentile(&values, percent));
        assert_eq!(found, [0.0, 10.0, 19.0, 19.0]);
        assert_eq!(median(&[7.0]), 7.0);
    }
}
