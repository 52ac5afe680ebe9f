//! The book is complete: what it lists is what there is.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

const CLIENTS: [&str; 6] =
    ["ServiceClient", "TrainingClient", "SamplingClient", "RestClient", "AdminClient", "ApiFuture"];

fn client_crate() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn book() -> PathBuf {
    client_crate().join("../../docs/guide/src")
}

fn page(name: &str) -> String {
    fs::read_to_string(book().join(name)).unwrap()
}

/// Files below a folder with this ending, but those of the test kit.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if !path.ends_with("testing") {
                sources(&path, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The public methods of each client, as its `impl` blocks say.
fn methods() -> BTreeMap<&'static str, BTreeSet<String>> {
    let mut files = Vec::new();
    sources(&client_crate().join("src"), &mut files);
    let mut methods: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    // `blocking.rs` has the twins of the same names.
    for file in files.iter().filter(|file| !file.ends_with("blocking.rs")) {
        let text = fs::read_to_string(file).unwrap();
        let mut client = None;
        for line in text.lines() {
            if let Some(head) = line.strip_prefix("impl") {
                client = CLIENTS.into_iter().find(|client| {
                    let head = head.rsplit(' ').nth(1).unwrap_or_default();
                    !line.contains(" for ") && head.split('<').next() == Some(client)
                });
            } else if line.starts_with('}') {
                client = None;
            }
            let declared = line.strip_prefix("    pub ").unwrap_or_default();
            let declared = declared.strip_prefix("async ").unwrap_or(declared);
            if let (Some(client), Some(rest)) = (client, declared.strip_prefix("fn ")) {
                let end = rest.find(['(', '<']).unwrap();
                methods.entry(client).or_default().insert(rest[..end].to_owned());
            }
        }
    }
    methods
}

/// The first cell of each row of the tables under a heading.
fn listed(page: &str, heading: &str) -> BTreeSet<String> {
    let section = page.split(&format!("\n{heading}\n")).nth(1).unwrap_or_default();
    let section = section.split("\n## ").next().unwrap_or_default();
    let first = |line: &str| line.strip_prefix("| `")?.split('`').next().map(str::to_owned);
    section.lines().filter_map(first).collect()
}

#[test]
fn the_api_reference_lists_every_method() {
    let (text, methods) = (page("api_reference.md"), methods());
    for client in CLIENTS {
        let heading = format!("## {client}");
        let expected = methods.get(client).cloned().unwrap_or_default();
        assert_eq!(listed(&text, &heading), expected, "{client}");
    }
}

/// Rows of a table by their first cell.
fn rows(page: &str) -> BTreeMap<String, String> {
    let row = |line: &str| {
        let (name, rest) = line.strip_prefix("| `")?.split_once("` | ")?;
        Some((name.to_owned(), rest.trim_end_matches(" |").to_owned()))
    };
    page.lines().filter_map(row).collect()
}

/// All code that users of the client may name.
fn source() -> String {
    let mut files = Vec::new();
    sources(&client_crate().join("src"), &mut files);
    sources(&client_crate().join("../tokenizer/src"), &mut files);
    files.iter().map(|file| fs::read_to_string(file).unwrap()).collect()
}

/// Every name of a list has a row, and what a row names exists.
fn check_migration(file: &str, names: &str) {
    let (text, methods, source) = (page(file), methods(), source());
    let section = text.split("\n## Every public").nth(1).unwrap();
    let rows = rows(section);
    for name in names.lines() {
        let ours = rows.get(name).unwrap_or_else(|| panic!("{file} has no row for {name}"));
        assert!(ours.len() > 2, "{file} says nothing of {name}");
        for named in ours.split('`').skip(1).step_by(2) {
            let Some((owner, last)) = named.rsplit_once("::") else { continue };
            let exists = match CLIENTS.iter().find(|client| **client == owner) {
                Some(client) => {
                    let method = last.strip_suffix("_async").unwrap_or(last);
                    methods.get(client).is_some_and(|methods| methods.contains(method))
                }
                None => source.contains(last),
            };
            assert!(exists, "{file} names {named}, which is not there, for {name}");
        }
    }
    assert_eq!(rows.len(), names.lines().count(), "{file} has rows that the list does not know");
}

#[test]
fn every_member_of_the_python_sdk_has_a_row() {
    check_migration("from_python.md", include_str!("guide/python.txt"));
}

#[test]
fn every_public_function_of_tinkex_has_a_row() {
    check_migration("from_tinkex.md", include_str!("guide/tinkex.txt"));
}

#[test]
fn troubleshooting_has_the_text_of_every_error() {
    let text = page("troubleshooting.md");
    let errors = fs::read_to_string(client_crate().join("src/error.rs")).unwrap();
    let messages = errors.lines().filter_map(|line| {
        let message = line.trim().strip_prefix("#[error(\"")?;
        message.strip_suffix("\")]")
    });
    let mut count = 0;
    for message in messages {
        count += 1;
        // What is filled in is left out.
        let fixed = message.split('{').next().unwrap();
        assert!(text.contains(fixed.trim_end()), "troubleshooting.md lacks `{message}`");
        let last = message.rsplit('}').next().unwrap();
        assert!(text.contains(last), "troubleshooting.md lacks `{message}`");
    }
    assert!(count >= 10);
}

#[test]
fn the_servers_texts_in_troubleshooting_are_those_of_its_source() {
    let text = page("troubleshooting.md");
    let section = text.split("\n## Texts of the server\n").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let server = client_crate().join("../server/src");
    let files = ["error.rs", "catalog.rs", "check/sample.rs", "routes/auth.rs"];
    let source = files.map(|name| fs::read_to_string(server.join(name)));
    // Texts are broken over lines there.
    let source = source.map(Result::unwrap).concat().replace("\\\n", " ");
    let source = source.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut count = 0;
    for line in section.lines().filter(|line| line.starts_with("| 4") || line.starts_with("| 5")) {
        let Some(quoted) = line.split(" | `").nth(1) else { continue };
        let quoted = quoted.split('`').next().unwrap();
        for part in quoted.split('…').map(|part| part.trim_matches(['"', ' '])) {
            assert!(source.contains(part), "the server does not say `{part}`");
            count += 1;
        }
    }
    assert!(count > 10);
}

#[test]
fn every_page_is_in_the_summary_and_every_link_leads_somewhere() {
    let summary = page("SUMMARY.md");
    let sources = fs::read_to_string(client_crate().join("src/guide.rs")).unwrap();
    for entry in fs::read_dir(book()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name != "SUMMARY.md" {
            assert!(summary.contains(&format!("({name})")), "SUMMARY.md lacks {name}");
            let stem = name.trim_end_matches(".md");
            let is_word = |word: &str| word == stem;
            assert!(sources.split_whitespace().any(is_word), "guide.rs lacks {name}");
        }
        let text = page(&name);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let file = if file.is_empty() { name.as_str() } else { file };
            assert!(book().join(file).is_file(), "{name} links to {link}");
            let is_heading = |line: &str| line.starts_with('#') && slug(line) == anchor;
            let found = anchor.is_empty() || page(file).lines().any(is_heading);
            assert!(found, "{name} links to {link}, where no such heading is");
        }
    }
}

/// What a heading is linked by.
fn slug(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn every_example_is_on_its_page() {
    let text = page("examples.md");
    for entry in fs::read_dir(client_crate().join("../../examples")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.file_stem().unwrap().to_str().unwrap();
            assert!(text.contains(&format!("| `{name}` |")), "examples.md lacks {name}");
        }
    }
}
