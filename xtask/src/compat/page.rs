//! docs/compatibility.md: written from rows, read back to compare.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::Path,
};

use anyhow::{Context as _, Result, bail};

/// What came of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It did what it is for.
    Works,
    /// It was refused with a message that says why.
    Refused,
    /// It did not do what it is for.
    Fails,
    /// This version has it not.
    Absent,
    /// A public method that no case drives.
    Uncovered,
    /// Named, not driven.
    Listed,
}

/// One line of the driver.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// A client's class, `tinker` for commands, or `features`.
    pub(super) group: String,
    pub(super) name: String,
    pub(super) state: State,
    pub(super) message: String,
}

impl Row {
    pub(super) fn parse(line: &str) -> Result<Self> {
        let cells: Vec<&str> = line.split('\t').collect();
        let [group, name, state, message] = cells[..] else { bail!("read four cells in `{line}`") };
        let state = match state {
            "works" => State::Works,
            "refused" => State::Refused,
            "fails" => State::Fails,
            "absent" => State::Absent,
            "uncovered" => State::Uncovered,
            "listed" => State::Listed,
            other => bail!("know the state `{other}`"),
        };
        Ok(Self {
            group: group.to_owned(),
            name: name.to_owned(),
            state,
            message: message.to_owned(),
        })
    }

    /// `Client.method`, or the name alone of what belongs to no client.
    pub(super) fn title(&self) -> String {
        let of_client = self.group.ends_with("Client");
        if of_client { format!("{}.{}", self.group, self.name) } else { self.name.clone() }
    }
}

const GROUPS: [(&str, &str); 7] = [
    ("ServiceClient", "ServiceClient"),
    ("TrainingClient", "TrainingClient"),
    ("SamplingClient", "SamplingClient"),
    ("RestClient", "RestClient"),
    ("AdminClient", "AdminClient"),
    ("tinker", "Commands"),
    ("features", "What they can be asked for"),
];

const HEAD: &str = "\
# Compatibility

What each version of the official Python SDK (`tinker` on PyPI) meets at this server, over one set of its dependencies
(those of 0.38.0). This page is made by running them: `cargo xtask compat` drives every public method of every client,
in its sync and its async face, and every `tinker` command, checks what comes back, and writes what happened.
`cargo xtask test` drives three versions again and compares.

* **works**: it did what it is for, and the case in `e2e/compat` checked that.
  `whoami` is asked of a server with the setting `jwt_auth`, all else of one with the defaults.
* **refused**: the server, or the SDK itself, refuses it with the message that the number names.
* **fails**: it should work and does not; the number names the error.
* **–**: the version does not have it.

## Figures
";

const FIGURES: &str = "| SDK | works | refused | fails | which fails |\n|---|---|---|---|---|\n";
const NOTES: &str = "## In words\n\n";

/// The page's contents.
#[derive(Debug)]
pub(super) struct Page {
    versions: Vec<String>,
    /// (group, name) to the cell of each version.
    cells: BTreeMap<(String, String), Vec<String>>,
    /// The messages that `[1]`, `[2]`, … stand for.
    notes: Vec<String>,
    /// A version's line in the table of figures.
    pub(super) figures: BTreeMap<String, String>,
}

impl Page {
    /// Columns for the `pinned` versions, and a line of figures for every version, `kept` for those not driven.
    pub(super) fn new(
        results: &BTreeMap<String, Vec<Row>>,
        pinned: &[&str],
        kept: BTreeMap<String, String>,
    ) -> Self {
        let mut page = Self {
            versions: pinned.iter().map(|&version| version.to_owned()).collect(),
            cells: BTreeMap::new(),
            notes: Vec::new(),
            figures: kept,
        };
        for (column, version) in pinned.iter().enumerate() {
            for row in results.get(*version).into_iter().flatten() {
                let cell = page.cell(row);
                let key = (row.group.clone(), row.name.clone());
                let cells =
                    page.cells.entry(key).or_insert_with(|| vec!["–".to_owned(); pinned.len()]);
                cells[column] = cell;
            }
        }
        for (version, rows) in results {
            page.figures.insert(version.clone(), format!("| {version} | {} |", figure_cells(rows)));
        }
        page
    }

    fn cell(&mut self, row: &Row) -> String {
        let word = match row.state {
            State::Works | State::Listed => return "works".to_owned(),
            State::Absent => return "–".to_owned(),
            State::Refused => "refused",
            State::Fails => "fails",
            State::Uncovered => "no case",
        };
        let note = row.message.clone();
        let index = self.notes.iter().position(|known| *known == note).unwrap_or_else(|| {
            self.notes.push(note);
            self.notes.len() - 1
        });
        format!("{word} [{}]", index + 1)
    }

    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let mut text = format!("{HEAD}\n{FIGURES}");
        let mut lines: Vec<_> = self.figures.iter().collect();
        lines.sort_by_key(|(version, _)| numbers(version));
        for (_, line) in lines {
            writeln!(text, "{line}").context("write to memory")?;
        }
        for (group, title) in GROUPS {
            let header = self.versions.join(" | ");
            let rule = "---|".repeat(self.versions.len() + 1);
            write!(text, "\n## {title}\n\n| | {header} |\n|{rule}\n").context("write to memory")?;
            for ((_, name), cells) in self.cells.iter().filter(|((of, _), _)| of == group) {
                let quote = if group == "features" { "" } else { "`" };
                writeln!(text, "| {quote}{name}{quote} | {} |", cells.join(" | "))
                    .context("write to memory")?;
            }
        }
        if !self.notes.is_empty() {
            write!(text, "\n{NOTES}").context("write to memory")?;
        }
        for (index, note) in self.notes.iter().enumerate() {
            writeln!(text, "{}. {note}", index + 1).context("write to memory")?;
        }
        fs::write(path, text).with_context(|| format!("write {}", path.display()))
    }

    /// What `write` wrote.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)
            .with_context(|| format!("read {}: `cargo xtask compat` writes it", path.display()))?;
        let mut page = Self {
            versions: Vec::new(),
            cells: BTreeMap::new(),
            notes: Vec::new(),
            figures: BTreeMap::new(),
        };
        let mut group = None;
        for line in text.lines() {
            if let Some(title) = line.strip_prefix("## ") {
                group = GROUPS.iter().find(|(_, known)| *known == title).map(|(group, _)| *group);
            } else if line.starts_with("| ") {
                page.read_line(line, group);
            } else if let Some((_, note)) = line.split_once(". ")
                && line.starts_with(|first: char| first.is_ascii_digit())
            {
                page.notes.push(note.to_owned());
            }
        }
        Ok(page)
    }

    fn read_line(&mut self, line: &str, group: Option<&str>) {
        let line = line.trim();
        let inner = line.trim_start_matches("| ").trim_end_matches(" |");
        let mut cells = inner.split(" | ").map(str::to_owned);
        let Some(first) = cells.next() else { return };
        match group {
            None if first.starts_with(|first: char| first.is_ascii_digit()) => {
                self.figures.insert(first, line.to_owned());
            }
            None => {}
            Some(_) if line.starts_with("| | ") => {
                self.versions =
                    inner.trim_start_matches("| ").split(" | ").map(str::to_owned).collect();
            }
            Some(group) => {
                let name = if group == "features" { &first } else { first.trim_matches('`') };
                self.cells.insert((group.to_owned(), name.to_owned()), cells.collect());
            }
        }
    }

    /// The version's cells that are others than the rows say; a failure may have another message.
    pub(super) fn differences(&self, version: &str, rows: &[Row]) -> Vec<String> {
        let mut problems = self.missing(version, rows);
        for row in rows {
            let Some((word, note)) = self.find(version, row) else { continue };
            let (found, message) = match row.state {
                State::Works | State::Listed => ("works", ""),
                State::Absent => ("–", ""),
                State::Refused => ("refused", row.message.as_str()),
                State::Fails => ("fails", note),
                State::Uncovered => continue,
            };
            if (word, note) != (found, message) {
                problems.push(format!(
                    "{version} {} {}: the page says `{word} {note}`, it {found}: {}",
                    row.group, row.name, row.message
                ));
            }
        }
        let present: BTreeSet<_> = rows.iter().map(|row| (&row.group, &row.name)).collect();
        let Some(column) = self.column(version) else { return problems };
        for ((group, name), cells) in &self.cells {
            if !present.contains(&(group, name))
                && cells.get(column).is_some_and(|cell| cell != "–")
            {
                problems
                    .push(format!("{version} {group} {name}: is on the page and not in the SDK"));
            }
        }
        problems
    }

    /// The rows that no case drives, or that the page does not have.
    pub(super) fn missing(&self, version: &str, rows: &[Row]) -> Vec<String> {
        let mut problems = Vec::new();
        for row in rows {
            if row.state == State::Uncovered {
                problems.push(format!("{version} {} {}: no case drives it", row.group, row.name));
            } else if self
                .find(version, row)
                .is_none_or(|(word, _)| (word == "–") != (row.state == State::Absent))
            {
                problems.push(format!("{version} {} {}: is not on the page", row.group, row.name));
            }
        }
        problems
    }

    /// A cell's word and its message.
    fn find(&self, version: &str, row: &Row) -> Option<(&str, &str)> {
        let cells = self.cells.get(&(row.group.clone(), row.name.clone()))?;
        let cell = cells.get(self.column(version)?)?;
        let Some((word, number)) = cell.split_once(" [") else { return Some((cell, "")) };
        let number: usize = number.trim_end_matches(']').parse().ok()?;
        Some((word, self.notes.get(number.checked_sub(1)?)?))
    }

    fn column(&self, version: &str) -> Option<usize> {
        self.versions.iter().position(|known| known == version)
    }
}

/// How many rows of each state, in words.
pub(super) fn figures(rows: &[Row]) -> String {
    let count = |state| rows.iter().filter(|row| row.state == state).count();
    format!(
        "{} work, {} are refused, {} fail",
        count(State::Works),
        count(State::Refused),
        count(State::Fails)
    )
}

fn figure_cells(rows: &[Row]) -> String {
    let count = |state| rows.iter().filter(|row| row.state == state).count();
    let failing = rows.iter().filter(|row| row.state == State::Fails);
    let names: Vec<String> = failing.map(Row::title).collect();
    let counts = [State::Works, State::Refused, State::Fails].map(|state| count(state).to_string());
    format!("{} | {}", counts.join(" | "), names.join(", "))
}

/// A version as numbers, for its place in the table.
fn numbers(version: &str) -> Vec<u32> {
    version.split('.').map(|part| part.parse().unwrap_or_default()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(line: &str) -> Row {
        Row::parse(&line.replace(' ', "\t").replace('_', " ")).unwrap()
    }

    #[test]
    fn a_page_is_read_as_it_was_written() {
        let rows = vec![
            row("ServiceClient close works "),
            row("RestClient whoami refused not_here|there"),
            row("features loss_`ppo` fails a_number"),
            row("features loss_`gspo` absent "),
        ];
        let results = BTreeMap::from([("0.3.0".to_owned(), rows.clone())]);
        let kept = BTreeMap::from([("0.4.1".to_owned(), "| 0.4.1 | 9 | 0 | 0 |  |".to_owned())]);
        let folder = std::env::temp_dir().join(format!("tinsmith-page-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("page.md");
        Page::new(&results, &["0.3.0", "0.6.3"], kept).write(&path).unwrap();
        let page = Page::read(&path).unwrap();
        assert_eq!(page.figures.len(), 2);
        assert_eq!(page.differences("0.3.0", &rows), Vec::<String>::new());
        assert_eq!(page.missing("0.6.3", &[]), Vec::<String>::new());
        let other = [
            row("ServiceClient close fails it_does"),
            row("RestClient whoami refused not_there"),
            row("RestClient new works "),
            row("features loss_`ppo` fails another_number"),
            row("features loss_`gspo` works "),
        ];
        assert_eq!(
            page.differences("0.3.0", &other).len(),
            5,
            "{:?}",
            page.differences("0.3.0", &other)
        );
        fs::remove_dir_all(&folder).unwrap();
    }
}
