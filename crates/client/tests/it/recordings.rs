//! What this client sends is what the official SDK 0.38.0 has sent: its recorded conversations, held one after
//! another against a mock server that gives the recorded answers. Ids need no translation: the mock gives the
//! recorded ones, and what came before a recording (sessions, runs, steps, samples) is done before.

mod cases;
mod compare;
mod data;
mod different;
mod rest;
mod stage;

use std::{collections::BTreeSet, fs, panic, path::PathBuf};

use tinsmith::testing::Recording;

use self::{
    compare::Difference,
    different::{DIFFERENT, Different, NOT_SENT},
    stage::Stage,
};

fn folder() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "../../recordings/0.38.0"].iter().collect()
}

/// The names of all recorded operations.
fn operations() -> BTreeSet<String> {
    let files = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    files.map(|file| file.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
}

fn recording(operation: &str) -> Recording {
    Recording::read(folder().join(format!("{operation}.json"))).unwrap()
}

/// How the requests, and the outcome, differ from the recorded ones; none where the operation has no like here.
fn differences(operation: &str) -> Option<Vec<Difference>> {
    let recording = recording(operation);
    let stage = Stage::before(operation, &recording);
    stage.server.replay(&recording).unwrap();
    let first = stage.server.request_count();
    let acted = cases::act(&stage, operation, &recording)?;
    let requests = stage.server.requests();
    let sent: Vec<_> = requests.into_iter().filter(|seen| seen.number >= first).collect();
    let mut differences = compare::requests(&recording, &sent);
    if acted.is_ok() != succeeded(operation) {
        differences.push(Difference::new("outcome", format!("{acted:?}")));
    }
    Some(differences)
}

/// Whether the official SDK's call succeeded.
fn succeeded(operation: &str) -> bool {
    let text = fs::read_to_string(folder().join(format!("{operation}.json"))).unwrap();
    let recorded: serde_json::Value = serde_json::from_str(&text).unwrap();
    recorded["sdk_result"]["ok"] != false
}

#[test]
fn every_recorded_operation_is_sent_as_recorded() {
    let mut problems = Vec::new();
    let mut used = BTreeSet::new();
    let mut sent = 0;
    for operation in operations() {
        if NOT_SENT.iter().any(|(listed, _)| *listed == operation) {
            continue;
        }
        // One that panics does not hide the others.
        let compared = panic::catch_unwind(|| differences(&operation));
        let Ok(compared) = compared else {
            problems.push(format!("{operation}: panicked"));
            continue;
        };
        match compared {
            None => problems.push(format!("{operation}: is neither sent nor listed as not sent")),
            Some(differences) => {
                sent += 1;
                for difference in differences {
                    let is_like = |listed: &&Different| listed.is_about(&operation, &difference);
                    match DIFFERENT.iter().find(is_like) {
                        Some(listed) => drop(used.insert(listed.at_and_operation())),
                        None => problems.push(format!("{operation}: {difference}")),
                    }
                }
            }
        }
    }
    for listed in DIFFERENT.iter().filter(|listed| !used.contains(&listed.at_and_operation())) {
        problems.push(format!("{listed:?} is listed as different and is not"));
    }
    let all = operations();
    for (listed, _) in NOT_SENT.iter().filter(|(listed, _)| !all.contains(*listed)) {
        problems.push(format!("{listed} is listed as not sent and was never recorded"));
    }
    assert!(
        problems.is_empty(),
        "{sent} sent, {} problems:\n{}",
        problems.len(),
        problems.join("\n")
    );
    assert!(sent > 90, "{sent}");
}
