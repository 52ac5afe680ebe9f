//! `cargo xtask requirements`: what docs/requirements.md says is shown, is.
//!
//! A row is `| S-001 | what | proof |`. A proof is `path` or `path::name`, several of them separated by `, `: the file
//! must exist and, with a name, contain it; in a test file as a function. A page of the book and an example must be
//! among those that the tests execute. `open` says that nothing shows the row yet.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{examples, say};

const ROWS: usize = 314;
const BOOK: &str = "docs/guide/src/";
/// Names the pages whose snippets are documentation tests.
const COMPILED: &str = "crates/client/src/guide.rs";
/// What the stages `tests` and `e2e` write.
pub(crate) const REPORTS: [&str; 2] = ["target/nextest/ci/junit.xml", "target/e2e.xml"];

/// A row that is shown, and one of its proofs.
struct Proof {
    id: String,
    file: String,
    name: Option<String>,
}

/// Checks every row; prints how many are shown.
pub(crate) fn run(root: &Path) -> Result<()> {
    let path = root.join("docs/requirements.md");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let rows = rows(&text)?;
    for number in 1..=ROWS {
        let id = format!("S-{number:03}");
        ensure!(rows.contains_key(&id), "find a row for {id} in docs/requirements.md");
    }
    for proof in rows.values().flatten() {
        check(root, proof).with_context(|| format!("find what {} names as its proof", proof.id))?;
    }
    let shown = rows.values().filter(|proofs| !proofs.is_empty()).count();
    let open = text.lines().filter(|line| line.ends_with(" | open |")).count();
    let elsewhere = ROWS - shown - open;
    say(&format!("{shown} of {ROWS} requirements are shown, {open} open, {elsewhere} not for us"));
    Ok(())
}

/// Checks that the tests which are named as proofs ran and passed, by the reports of this run of the suite.
pub(crate) fn passed(root: &Path) -> Result<()> {
    let mut reports = String::new();
    for report in REPORTS {
        let path = root.join(report);
        reports += &fs::read_to_string(&path).with_context(|| {
            format!("read {}: `cargo xtask test tests e2e` writes it", path.display())
        })?;
    }
    let cases = cases(&reports);
    let text = fs::read_to_string(root.join("docs/requirements.md")).context("read the rows")?;
    let mut count = 0;
    for proof in rows(&text)?.into_values().flatten() {
        let Some(name) = test_name(root, &proof)? else { continue };
        let passed = cases.get(name).with_context(|| format!("find that `{name}` ran"));
        let passed = passed.with_context(|| format!("find the proof of {}", proof.id))?;
        ensure!(*passed, "see `{name}`, which {} names as its proof, pass", proof.id);
        count += 1;
    }
    say(&format!("{count} tests that show requirements passed"));
    Ok(())
}

/// Each row's proofs, none where it is open.
fn rows(text: &str) -> Result<BTreeMap<String, Vec<Proof>>> {
    let mut rows = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("| S-")) {
        let cells: Vec<_> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [id, _, said] = cells[..] else { bail!("read three cells in `{line}`") };
        let proof = |said: &str| {
            let said = said.trim_matches('`');
            let (file, name) = said.split_once("::").unwrap_or((said, ""));
            let name = Some(name.to_owned()).filter(|name| !name.is_empty());
            Proof { id: id.to_owned(), file: file.to_owned(), name }
        };
        // A row that makes no sense here says why, in words.
        let is_shown = said != "open" && !said.starts_with("n/a: ");
        let proofs = if is_shown { said.split(", ").map(proof).collect() } else { Vec::new() };
        ensure!(rows.insert(id.to_owned(), proofs).is_none(), "find {id} only once");
    }
    Ok(rows)
}

fn check(root: &Path, proof: &Proof) -> Result<()> {
    let Proof { file, name, .. } = proof;
    if file.starts_with("n/a") {
        return Ok(());
    }
    let text = fs::read_to_string(root.join(file)).with_context(|| format!("read {file}"))?;
    if let Some(page) = file.strip_prefix(BOOK) {
        let pages = fs::read_to_string(root.join(COMPILED)).context("read the list of pages")?;
        let page = page.trim_end_matches(".md");
        ensure!(
            pages.split_whitespace().any(|known| known == page),
            "find {page} in {COMPILED}: its snippets are not compiled"
        );
    }
    if let Some(example) = file.strip_prefix("examples/").and_then(|file| file.strip_suffix(".rs"))
    {
        let known = examples::names(root)?;
        ensure!(known.iter().any(|known| known == example), "find {file} among the examples");
        let output = format!("examples/{example}.txt");
        ensure!(root.join(&output).is_file(), "find {output}: {file} is not run");
    }
    if let Some(name) = name {
        ensure!(text.contains(name.as_str()), "find `{name}` in {file}");
        let is_tests = file.contains("/tests/") && is_word(name);
        let declared = text.contains(&format!("fn {name}("));
        ensure!(!is_tests || declared, "find a test called `{name}` in {file}");
    }
    Ok(())
}

/// The proof's name where it is that of a test.
fn test_name<'a>(root: &Path, proof: &'a Proof) -> Result<Option<&'a str>> {
    let Some(name) = proof.name.as_deref().filter(|name| is_word(name)) else { return Ok(None) };
    let text = fs::read_to_string(root.join(&proof.file)).context("read a proof")?;
    let is_test = match Path::new(&proof.file).extension().and_then(|end| end.to_str()) {
        Some("rs") => text.split(&format!("fn {name}(")).next().is_some_and(|before| {
            before.len() < text.len()
                && before.lines().rev().take(4).any(|line| line.contains("test]"))
        }),
        Some("py") => name.starts_with("test_"),
        _ => false,
    };
    Ok(is_test.then_some(name))
}

fn is_word(name: &str) -> bool {
    name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
}

/// Whether each test passed, by its name without modules and parameters. One that is run several times passed where
/// all of it did.
fn cases(reports: &str) -> BTreeMap<&str, bool> {
    let mut cases = BTreeMap::new();
    for case in reports.split("<testcase ").skip(1) {
        let later = || case.split(" name=\"").last().unwrap_or(case);
        let name = case.strip_prefix("name=\"").unwrap_or_else(later);
        let name = name.split(['"', '[']).next().unwrap_or_default();
        let name = name.rsplit("::").next().unwrap_or(name);
        let ended = case.split("</testcase>").next().unwrap_or(case);
        let is_passed = !["<failure", "<error", "<skipped"].iter().any(|bad| ended.contains(bad));
        let known = cases.entry(name).or_insert(true);
        *known &= is_passed;
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_of_both_kinds_are_read() {
        let reports = r#"<testsuite><testcase name="polling::pauses_double" classname="tinsmith::it" time="1">
            </testcase><testcase name="a::fails" classname="x"><failure type="t"/></testcase>
            <testcase classname="e2e.test_train" name="test_rank[8]" time="0.1" />
            <testcase classname="e2e.test_train" name="test_rank[9]" time="0.1"><skipped/></testcase>"#;
        let cases = cases(reports);
        assert!(cases["pauses_double"]);
        assert!(!cases["fails"] && !cases["test_rank"]);
        assert_eq!(cases.len(), 3);
    }

    #[test]
    fn rows_are_read() {
        let text =
            "| S-001 | a | open |\n| S-002 | b | `x.rs::y`, `z.md` |\n| S-003 | c | n/a: no |\n";
        let rows = rows(text).unwrap();
        assert!(rows["S-001"].is_empty() && rows["S-003"].is_empty());
        assert_eq!(rows["S-002"][0].name.as_deref(), Some("y"));
        assert_eq!(rows["S-002"][1].file, "z.md");
        assert!(super::rows(&text.replace("S-002", "S-001")).is_err());
    }
}
