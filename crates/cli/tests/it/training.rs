//! `tinsmith train` and `tinsmith sample` against `tinsmith serve`, each a process of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::{Value, json};

use crate::server::Server;

struct Case {
    server: Server,
    dir: tempfile::TempDir,
}

impl Case {
    fn new() -> Self {
        let case = Self { server: Server::start(), dir: tempfile::tempdir().unwrap() };
        let rows: Vec<String> = (0..12)
            .map(|number| {
                let messages = json!([
                    { "role": "user", "content": format!("What comes after {number}?") },
                    { "role": "assistant", "content": format!("{}.", number + 1) },
                ]);
                json!({ "messages": messages }).to_string()
            })
            .collect();
        fs::write(case.data(), rows.join("\n")).unwrap();
        case
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("counting.jsonl")
    }

    fn tinsmith(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tinsmith"));
        let ours = |name: &str| name.starts_with("TINSMITH_") || name.starts_with("TINKER_");
        for (name, _) in std::env::vars().filter(|(name, _)| ours(name)) {
            command.env_remove(name);
        }
        command.env("TINKER_BASE_URL", self.server.url()).current_dir(self.dir.path());
        command.args(arguments).output().unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.tinsmith(&[arguments, &["--format", "json"]].concat());
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {complaint}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn train(&self, more: &[&str]) -> Value {
        let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nano");
        let nano = nano.display().to_string();
        let arguments = ["train", "counting.jsonl", "--rank", "4", "--batch-size", "4"];
        let fixed = ["--learning-rate", "0.005", "--tokenizer", &nano];
        self.json(&[arguments.as_slice(), &fixed, more].concat())
    }
}

#[test]
fn a_file_is_learnt_from_and_the_adapter_sampled_listed_and_downloaded() {
    let case = Case::new();
    let trained =
        case.train(&["--epochs", "3", "--eval", "counting.jsonl", "--schedule", "linear"]);
    let losses: Vec<f64> =
        trained["losses"].as_array().unwrap().iter().map(|loss| loss.as_f64().unwrap()).collect();
    assert_eq!(losses.len(), 9);
    assert!(losses[8] < losses[0], "{losses:?}");
    assert_eq!(trained["eval"].as_array().unwrap().len(), 3);

    let sampler = trained["sampler"].as_str().unwrap();
    let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nano");
    let nano = nano.display().to_string();
    let sample = ["sample", "--chat", "--prompt", "What comes after 3?", "--temperature", "0"];
    let more = ["--path", sampler, "--tokenizer", &nano, "--max-tokens", "8", "--logprobs"];
    let drawn = case.json(&[sample.as_slice(), &more].concat());
    let sequence = &drawn["sequences"][0];
    let (tokens, logprobs) = (&sequence["tokens"], &sequence["logprobs"]);
    assert_eq!(tokens.as_array().unwrap().len(), logprobs.as_array().unwrap().len());

    let run = trained["training_run_id"].as_str().unwrap();
    let listed = case.json(&["checkpoint", "list", "--run-id", run]);
    assert_eq!(listed["checkpoints"].as_array().unwrap().len(), 4);

    let checkpoint = trained["checkpoint"].as_str().unwrap();
    let fetched = case.json(&["checkpoint", "download", checkpoint, "--output", "adapter"]);
    assert_eq!(fetched["checksums"], 2);
    assert!(case.dir.path().join("adapter/adapter_model.safetensors").is_file());
    assert_eq!(case.server.complaints(), [""; 0]);
}

#[test]
fn a_training_goes_on_as_if_it_had_not_stopped() {
    let case = Case::new();
    let whole = case.train(&["--epochs", "2", "--name", "whole"]);
    let first = case.train(&["--epochs", "1", "--name", "half"]);
    let path = first["checkpoint"].as_str().unwrap();
    let second = case.train(&["--epochs", "2", "--name", "half", "--resume", path]);
    let losses = |trained: &Value| trained["losses"].as_array().unwrap().clone();
    assert_eq!([losses(&first), losses(&second)].concat(), losses(&whole));

    let changed = ["train", "counting.jsonl", "--batch-size", "3", "--resume", path];
    let output = case.tinsmith(&changed);
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(complaint.contains("--batch-size was 4 and is 3 now"), "{complaint}");
}

#[test]
fn bad_rows_are_named_before_anything_starts() {
    let case = Case::new();
    fs::write(case.data(), "{\"text\": \"a\"}\n{\"prompt\": 1}\n").unwrap();
    let output = case.tinsmith(&["train", "counting.jsonl"]);
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert!(complaint.contains("counting.jsonl line 2"), "{complaint}");
    let output = case.tinsmith(&["train", "missing.jsonl"]);
    assert!(String::from_utf8(output.stderr).unwrap().contains("open missing.jsonl"));
    let output = case.tinsmith(&["sample", "--model", "nano"]);
    assert!(String::from_utf8(output.stderr).unwrap().contains("--prompt"));
}
