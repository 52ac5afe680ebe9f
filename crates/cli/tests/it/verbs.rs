//! The commands about a server: what they ask is what the official command asks, and what they print.

use std::{
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;
use tinsmith::testing::{Answer, MockServer, Recording};

/// `tinsmith` with these arguments, in an empty directory.
fn tinsmith(url: &str, arguments: &[&str]) -> (tempfile::TempDir, Output) {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tinsmith"));
    let ours = |name: &str| name.starts_with("TINSMITH_") || name.starts_with("TINKER_");
    for (name, _) in std::env::vars().filter(|(name, _)| ours(name)) {
        command.env_remove(name);
    }
    command.env("TINKER_BASE_URL", url).env("TINKER_API_KEY", "tml-test-key");
    let output = command.args(arguments).current_dir(dir.path()).output().unwrap();
    (dir, output)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A server that answers as in a recording of the official command.
fn recorded(operation: &str) -> MockServer {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recordings/0.38.0");
    let recording = Recording::read(folder.join(format!("{operation}.json"))).unwrap();
    let server = MockServer::start().unwrap();
    server.replay(&recording).unwrap();
    server
}

/// What the command prints; it must ask for all that the recording has, and for nothing else.
fn check(operation: &str, arguments: &[&str], expected: &str) {
    let server = recorded(operation);
    let (_dir, output) = tinsmith(&server.url(), arguments);
    let (printed, complaints) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{arguments:?}: {complaints}");
    assert_eq!(printed.trim_end(), expected.trim_end(), "{arguments:?}");
    let unused: Vec<_> =
        server.unused_rules().into_iter().filter(|rule| !rule.contains("client/")).collect();
    assert!(unused.is_empty(), "{arguments:?} did not ask for {unused:?}");
}

fn json(operation: &str, arguments: &[&str]) -> Value {
    let server = recorded(operation);
    let arguments = [arguments, &["--format", "json"]].concat();
    let (_dir, output) = tinsmith(&server.url(), &arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What the command complains about, and its exit code.
fn refused(url: &str, arguments: &[&str]) -> (i32, String) {
    let (_dir, output) = tinsmith(url, arguments);
    assert_eq!(text(&output.stdout), "", "{arguments:?}");
    (output.status.code().unwrap(), text(&output.stderr))
}

#[test]
fn runs_are_listed_and_shown() {
    check(
        "cli.run_list",
        &["run", "list", "--limit", "1"],
        "\
1 training run
RUN    BASE MODEL     LORA     LAST UPDATE              STATUS
run-0  Qwen/Qwen3-8B  rank 32  2026-01-02 03:04:05 UTC  ok",
    );
    check(
        "cli.run_info",
        &["run", "info", "run-1"],
        "\
run                       run-1
base model                Qwen/Qwen3-8B
owner                     tml:organization_user:00000000-0000-0000-0000-000000000001
LoRA                      rank 32
last update               2026-01-02 03:04:05 UTC
status                    ok
last training checkpoint  tinker://run-1/weights/step-1
  made                    2026-01-02 03:04:05 UTC
last sampler checkpoint   tinker://run-1/sampler_weights/step-1
  made                    2026-01-02 03:04:05 UTC
note k                    \"v\"",
    );
    let run = json("cli.run_info", &["run", "info", "run-1"]);
    assert_eq!((&run["training_run_id"], &run["lora_rank"]), (&"run-1".into(), &32.into()));
    let server = MockServer::start().unwrap();
    let (_dir, output) =
        tinsmith(&server.url(), &["run", "list", "--columns", "id,checkpoint_time"]);
    assert!(text(&output.stdout).starts_with("0 training runs"), "{output:?}");
}

#[test]
fn checkpoints_are_listed_and_shown() {
    check(
        "cli.checkpoint_list_table",
        &["checkpoint", "list", "--run-id", "run-1"],
        "\
3 checkpoints of run-1
PATH                                   TYPE      SIZE       PUBLIC  MADE                     EXPIRES
tinker://run-1/weights/step-1          training  120.6 KiB  no      2026-01-02 03:04:05 UTC  never
tinker://run-1/sampler_weights/step-1  sampler   120.6 KiB  no      2026-01-02 03:04:05 UTC  never
tinker://run-1/external_weights/final  external  120.6 KiB  no      2026-01-02 03:04:05 UTC  never",
    );
    check(
        "cli.checkpoint_info",
        &["checkpoint", "info", "tinker://run-1/weights/step-1"],
        "\
checkpoint    tinker://run-1/weights/step-1
type          training
size          120.6 KiB
public        no
made          2026-01-02 03:04:05 UTC
expires       never
training run  run-1
base model    Qwen/Qwen3-8B
LoRA rank     32",
    );
    let listed = json("cli.checkpoint_list", &["checkpoint", "list"]);
    assert_eq!(listed["checkpoints"][0]["user_metadata"]["k"], "v");
}

#[test]
fn checkpoints_are_published_kept_and_deleted() {
    let path = "tinker://run-1/weights/step-1";
    check(
        "cli.checkpoint_publish",
        &["checkpoint", "publish", path],
        &format!("{path} can be read by anybody"),
    );
    check(
        "cli.checkpoint_unpublish",
        &["checkpoint", "unpublish", path],
        &format!("{path} can be read by its owner only"),
    );
    check(
        "cli.checkpoint_set_ttl",
        &["checkpoint", "set-ttl", path, "--ttl", "7200"],
        &format!("{path} goes away in 7200 s"),
    );
    check(
        "cli.checkpoint_set_ttl_remove",
        &["checkpoint", "set-ttl", path, "--remove"],
        &format!("{path} is kept"),
    );
    check(
        "cli.checkpoint_delete",
        &["checkpoint", "delete", "--yes", path],
        &format!("deleted {path}"),
    );
    check(
        "cli.checkpoint_delete_run",
        &["checkpoint", "delete", "-y", "--run-id", "run-1", "--type", "sampler_weights"],
        "deleted tinker://run-1/sampler_weights/step-1",
    );
}

#[test]
fn nothing_is_deleted_that_was_not_meant() {
    let server = MockServer::start().unwrap();
    server.add_checkpoint("tinker://run-1/weights/a");
    let url = server.url();
    let (code, complaint) = refused(&url, &["checkpoint", "delete", "tinker://run-1/weights/a"]);
    assert_eq!(code, 1);
    assert!(complaint.contains("give --yes"), "{complaint}");
    let (code, complaint) = refused(&url, &["checkpoint", "delete"]);
    assert!(code == 2 && complaint.contains("--run-id"), "{complaint}");
    let only_old = ["checkpoint", "delete", "-y", "--run-id", "run-1", "--before", "2020-01-01"];
    let (_dir, output) = tinsmith(&url, &only_old);
    assert!(text(&output.stdout).contains("nothing was deleted"), "{output:?}");
    assert!(server.requests().iter().all(|seen| seen.method != "DELETE"));
}

#[test]
fn a_checkpoint_is_downloaded_and_never_over_something_else() {
    let server = recorded("cli.checkpoint_download_external");
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        server.add_file(&format!("/dl/{name}"), format!("file:/dl/{name}"));
    }
    let path = "tinker://run-1/external_weights/final";
    let (dir, output) = tinsmith(&server.url(), &["checkpoint", "download", path]);
    assert!(output.status.success(), "{output:?}");
    let made = dir.path().join("run-1_external_weights_final");
    let content = std::fs::read_to_string(made.join("adapter_config.json")).unwrap();
    assert_eq!(content, "file:/dl/adapter_config.json");
    assert!(text(&output.stdout).contains("saved to    run-1_external_weights_final"));

    let output = made.display().to_string();
    let (code, complaint) =
        refused(&server.url(), &["checkpoint", "download", path, "-o", &output]);
    assert_eq!(code, 1);
    assert!(complaint.contains("is there already"), "{complaint}");
}

#[test]
fn models_sessions_usage_and_keys_are_shown() {
    check(
        "cli.model_list",
        &["model", "list"],
        "\
MODEL                    CONTEXT  TRAINABLE  SAMPLEABLE
Qwen/Qwen3-8B            32768    yes        yes
meta-llama/Llama-3.2-1B  32768    yes        no",
    );
    check(
        "rest.get_session",
        &["session", "info", "session-a"],
        "\
session       session-a
name          nightly
training run  run-1
sampler       session-a:sample:0
note k        \"v\"",
    );
    check(
        "cli.billing_usage",
        &["usage", "2026-01-02", "2026-01-03"],
        "\
5 rows
HOUR                     BASE MODEL     WHAT             AMOUNT      SESSION    COST
2026-01-02 03:00:00 UTC  Qwen/Qwen3-8B  training         10 tokens   session-a  $0.1000
2026-01-02 03:00:00 UTC  Qwen/Qwen3-8B  prompts, cached  10 tokens   session-a  $0.1000
2026-01-02 03:00:00 UTC  Qwen/Qwen3-8B  samples          10 tokens   session-a  $0.1000
2026-01-02 03:00:00 UTC  Qwen/Qwen3-8B  checkpoints      1           session-a  $0.1000
2026-01-02 03:00:00 UTC  Qwen/Qwen3-8B  storage          1.500 GB h  session-a  $0.1000",
    );
    check(
        "cli.billing_checkpoint_storage",
        &["usage", "--checkpoints", "--project-id", "proj-1"],
        "\
PROJECT  OWNER  CHECKPOINTS  SIZE     COST A MONTH
proj-1   User   2            1.9 GiB  $0.20",
    );
    let status = json("cli.auth_status", &["auth", "status"]);
    assert_eq!((&status["accepted"], &status["models"]), (&true.into(), &2.into()));
    let listed = json("rest.list_sessions", &["session", "list", "--limit", "5", "--offset", "1"]);
    assert_eq!(listed["sessions"][0], "session-a");
}

#[test]
fn errors_say_what_and_how_to_mend_it() {
    let server = MockServer::start().unwrap();
    server.when("get_server_capabilities").answer(Answer::status(401, "no such key"));
    let (code, complaint) = refused(&server.url(), &["model", "list"]);
    assert_eq!(code, 1);
    assert!(
        complaint.contains("no such key") && complaint.contains("TINKER_API_KEY"),
        "{complaint}"
    );
    let (_, complaint) = refused(&server.url(), &["run", "info", "invalid-run"]);
    assert!(
        complaint.contains("show the training run") && complaint.contains("404"),
        "{complaint}"
    );
    let (code, complaint) = refused(&server.url(), &["checkpoint", "info", "run-1/weights/a"]);
    assert_eq!(code, 2);
    assert!(complaint.contains("does not begin with `tinker://`"), "{complaint}");
    // Nobody listens there; it says so after seconds.
    let (code, complaint) = refused("http://127.0.0.1:1", &["model", "list"]);
    assert!(code == 1 && complaint.contains("`tinsmith serve` starts one"), "{complaint}");
    let (code, complaint) = refused(&server.url(), &["model", "list", "gpt"]);
    assert!(code == 1 && complaint.contains("\"gpt\""), "{complaint}");
}

#[test]
fn shells_complete_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let (_dir, output) = tinsmith("http://127.0.0.1:1", &["completions", shell]);
        assert!(text(&output.stdout).contains("export-trace"), "{shell}");
    }
}
