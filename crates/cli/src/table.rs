//! What commands answer: aligned columns for people, JSON for programs.

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::terminal::say;

/// Cells of a column that are wider make room for no others.
const GAP: &str = "  ";

#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Output {
    /// How the answer is printed.
    #[arg(long, short, value_enum, default_value = "table")]
    pub(crate) format: Format,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
}

/// An answer for people.
#[derive(Debug, Default)]
pub(crate) struct Table {
    title: Option<String>,
    columns: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(columns: &[&'static str]) -> Self {
        Self { title: None, columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Names and values, without a head.
    pub(crate) fn properties() -> Self {
        Self::default()
    }

    pub(crate) fn title(mut self, title: impl Into<String>) -> Self {
        self.title = Some(title.into());
        self
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// A name and its value; nothing where there is none.
    pub(crate) fn property(&mut self, name: &str, value: Option<impl ToString>) {
        if let Some(value) = value {
            self.rows.push(vec![name.to_owned(), value.to_string()]);
        }
    }

    /// Its lines, without spaces at their ends.
    fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.title.iter().cloned().collect();
        let head = self.columns.iter().map(|name| name.to_uppercase()).collect::<Vec<_>>();
        let shown: Vec<&Vec<String>> = match (head.is_empty(), self.rows.is_empty()) {
            (_, true) => Vec::new(),
            (true, false) => self.rows.iter().collect(),
            (false, false) => std::iter::once(&head).chain(&self.rows).collect(),
        };
        let count = shown.iter().map(|row| row.len()).max().unwrap_or(0);
        let width = |column: usize| {
            shown.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
        };
        let widths: Vec<usize> = (0..count).map(|column| width(column).unwrap_or(0)).collect();
        for row in shown {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            lines.push(cells.collect::<Vec<_>>().join(GAP).trim_end().to_owned());
        }
        lines
    }
}

impl Output {
    /// Prints an answer in the form that was asked for.
    pub(crate) fn show(self, json: &impl Serialize, table: &Table) -> Result<()> {
        match self.format {
            Format::Json => {
                say(&serde_json::to_string_pretty(json).context("write the answer as JSON")?);
            }
            Format::Table => table.lines().iter().for_each(|line| say(line)),
        }
        Ok(())
    }

    pub(crate) fn is_json(self) -> bool {
        self.format == Format::Json
    }
}

/// Bytes as people read them.
#[expect(clippy::cast_precision_loss, reason = "one digit after the point is shown")]
pub(crate) fn size(bytes: u64) -> String {
    let mut size = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
        if size < 1024.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{size:.1} {unit}") };
        }
        size /= 1024.0;
    }
    format!("{size:.1} PiB")
}

/// A time of RFC 3339, to the second; what is in another form stays as it is.
pub(crate) fn time(text: &str) -> String {
    let is_utc = text.ends_with('Z') || text.ends_with("+00:00");
    match (text.get(..10), text.get(10..11), text.get(11..19)) {
        (Some(day), Some("T"), Some(hour)) if is_utc => format!("{day} {hour} UTC"),
        _ => text.to_owned(),
    }
}

pub(crate) fn yes(is: bool) -> String {
    if is { "yes" } else { "no" }.to_owned()
}

/// What stands in a cell of which nothing is known.
pub(crate) fn or_dash(cell: Option<impl ToString>) -> String {
    cell.map_or_else(|| "-".to_owned(), |cell| cell.to_string())
}

/// When something goes away.
pub(crate) fn expiry(time_of: Option<&str>) -> String {
    time_of.map_or_else(|| "never".to_owned(), time)
}

/// `3 runs`, `1 run`.
pub(crate) fn count(count: usize, one: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["id", "type"]).title("2 things");
        table.row(vec!["a-long-id".to_owned(), "x".to_owned()]);
        table.row(vec!["b".to_owned(), String::new()]);
        assert_eq!(table.lines(), ["2 things", "ID         TYPE", "a-long-id  x", "b"]);
        assert_eq!(Table::new(&["id"]).title("no things").lines(), ["no things"]);
    }

    #[test]
    fn numbers_and_times_are_for_people() {
        assert_eq!(
            [size(0), size(1023), size(1536), size(3 << 30)].join(" "),
            "0 B 1023 B 1.5 KiB 3.0 GiB"
        );
        assert_eq!(time("2026-01-02T03:04:05.678901Z"), "2026-01-02 03:04:05 UTC");
        assert_eq!(time("2026-01-02T03:04:05+02:00"), "2026-01-02T03:04:05+02:00");
        assert_eq!([count(0, "run"), count(1, "run")].join(" "), "0 runs 1 run");
    }
}
