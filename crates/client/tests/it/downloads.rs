//! Checkpoints as files: broken off, changed, harmful, whole.

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};
use tinsmith::{
    DownloadOptions, Downloaded, Error, RestClient,
    testing::{Answer, MockServer, TestClock},
};

const EXPORT: &str = "tinker://run-1/external_weights/final";
const URLS: &str = "training_runs/*/checkpoints/external_weights/*/external_weights_urls";

struct Case {
    server: MockServer,
    rest: RestClient,
    dir: tempfile::TempDir,
}

impl Case {
    fn new() -> Self {
        let server = MockServer::start().unwrap();
        let config =
            server.config().to_builder().clock(Arc::new(TestClock::new())).build().unwrap();
        Self { rest: RestClient::new(config).unwrap(), server, dir: tempfile::tempdir().unwrap() }
    }

    /// An export with these files.
    fn export(&self, files: &[(&str, &[u8])]) {
        let urls: Vec<(String, Value)> = files
            .iter()
            .enumerate()
            .map(|(number, (name, content))| {
                let url = self.server.add_file(&format!("/dl/{number}"), content.to_vec());
                ((*name).to_owned(), json!(url))
            })
            .collect();
        let urls: serde_json::Map<String, Value> = urls.into_iter().collect();
        let answer = json!({ "urls": urls, "expires": "2099-01-01T00:00:00Z" });
        self.server.when(URLS).always().answer(Answer::json(answer));
    }

    fn target(&self) -> std::path::PathBuf {
        self.dir.path().join("out")
    }

    fn download(&self, options: DownloadOptions) -> Result<Downloaded, Error> {
        self.rest.download_checkpoint(EXPORT, self.target(), options).wait()
    }

    fn read(&self, file: &str) -> Vec<u8> {
        fs::read(self.target().join(file)).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// What was asked of the first file: its ranges.
    fn ranges(&self) -> Vec<Option<String>> {
        let requests = self.server.requests();
        let files = requests.iter().filter(|seen| seen.path == "/dl/0");
        files.map(|seen| seen.header("range").map(str::to_owned)).collect()
    }
}

#[test]
fn an_export_comes_file_by_file_with_progress_and_without_the_key() {
    let case = Case::new();
    case.export(&[("adapter_config.json", b"{}"), ("sub/adapter_model.safetensors", &[7; 5000])]);
    let told = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&told);
    let options = DownloadOptions::new().progress(move |progress| {
        heard.lock().unwrap().push(progress.clone());
        assert!(progress.file_number != 1, "a listener that panics is nobody's end");
    });
    let done = case.download(options).unwrap();
    assert_eq!((done.size_bytes, done.resumed_bytes), (5002, 0));
    assert_eq!(
        done.files,
        [Path::new("adapter_config.json"), Path::new("sub/adapter_model.safetensors")]
    );
    assert_eq!(case.read("sub/adapter_model.safetensors"), [7; 5000]);
    assert_eq!(case.names(), ["out"]);
    let told = told.lock().unwrap();
    let last = told.last().unwrap();
    assert_eq!(
        (last.bytes, last.size_bytes, last.file_number, last.files),
        (5000, Some(5000), 2, 2)
    );
    let fetched = case.server.requests().into_iter().filter(|seen| seen.path.starts_with("/dl/"));
    for seen in fetched {
        assert_eq!(seen.header("x-api-key"), None);
    }
}

/// The half of a file, then nothing for as long as anybody tries.
fn break_off(case: &Case) {
    case.server.when("/dl/0").answer(Answer::cut_off().header("etag", "\"v1\""));
    case.server.when("/dl/0").answers((0..6).map(|_| Answer::dropped()));
    let error = case.download(DownloadOptions::new()).unwrap_err();
    assert!(matches!(error, Error::Connection { .. }), "{error}");
    assert_eq!(case.names(), [".out.partial"]);
}

fn content() -> Vec<u8> {
    (0..100_000_u32).map(|number| (number % 251) as u8).collect()
}

#[test]
fn a_file_that_is_broken_off_goes_on_where_it_was() {
    let case = Case::new();
    case.export(&[("a", &content())]);
    case.server.when("/dl/0").answer(Answer::cut_off().header("etag", "\"v1\""));
    let done = case.download(DownloadOptions::new()).unwrap();
    assert_eq!(case.read("a"), content());
    assert_eq!(done.size_bytes, 100_000);
    let ranges = case.ranges();
    let second = ranges[1].clone().unwrap();
    assert!(ranges.len() == 2 && second.starts_with("bytes=") && second != "bytes=0-", "{second}");
}

#[test]
fn another_call_goes_on_with_what_an_earlier_one_left() {
    let case = Case::new();
    case.export(&[("a", &content())]);
    break_off(&case);
    let done = case.download(DownloadOptions::new()).unwrap();
    assert_eq!(case.read("a"), content());
    assert!(done.resumed_bytes > 0 && done.resumed_bytes < 100_000, "{done:?}");
    assert_eq!(case.names(), ["out"]);
}

#[test]
fn a_file_that_has_changed_meanwhile_is_fetched_from_its_beginning() {
    let case = Case::new();
    case.export(&[("a", &content())]);
    break_off(&case);
    case.server.when("/dl/0").answer(Answer::bytes(200, "x/y", "another file"));
    let done = case.download(DownloadOptions::new()).unwrap();
    assert_eq!((case.read("a"), done.resumed_bytes), (b"another file".to_vec(), 0));
}

#[test]
fn a_harmful_name_is_refused_before_anything_is_fetched() {
    for name in ["../evil", "/etc/evil", "a/../../evil"] {
        let case = Case::new();
        case.export(&[("good", b"x"), (name, b"x")]);
        let error = case.download(DownloadOptions::new()).unwrap_err();
        assert!(error.to_string().contains("lies outside"), "{error}");
        assert!(case.server.requests().iter().all(|seen| !seen.path.starts_with("/dl/")));
        assert!(!case.target().exists());
    }
}

#[test]
fn a_wrong_checksum_is_fetched_once_more_and_then_refused() {
    let case = Case::new();
    case.export(&[("a", b"right")]);
    let hash = blake3::hash(b"right").to_hex();
    let wrong = || Answer::bytes(200, "x/y", "wrong").header("x-checksum-blake3", &hash);
    let right = Answer::bytes(200, "x/y", "right").header("x-checksum-blake3", &hash);
    case.server.when("/dl/0").answers([wrong(), right]);
    let done = case.download(DownloadOptions::new()).unwrap();
    assert_eq!((case.read("a"), done.checksums), (b"right".to_vec(), 1));

    let case = Case::new();
    case.export(&[("a", b"right")]);
    case.server.when("/dl/0").answers([wrong(), wrong(), wrong()]);
    let error = case.download(DownloadOptions::new()).unwrap_err();
    assert!(
        matches!(&error, Error::Response { message } if message.contains("checksum")),
        "{error}"
    );
    assert!(!case.target().exists());
}

#[test]
fn a_link_that_has_expired_is_asked_for_anew() {
    let case = Case::new();
    case.export(&[("a", b"content")]);
    case.server.when("/dl/0").answer(Answer::status(403, "expired"));
    case.download(DownloadOptions::new()).unwrap();
    assert_eq!(case.read("a"), b"content");
    assert_eq!(
        case.server.requests().iter().filter(|seen| seen.path.ends_with("_urls")).count(),
        2
    );
}

#[test]
fn what_is_there_is_replaced_only_by_force_and_only_a_download() {
    let case = Case::new();
    case.export(&[("a", b"new")]);
    fs::create_dir(case.target()).unwrap();
    // An empty directory is as good as none.
    case.download(DownloadOptions::new()).unwrap();
    let error = case.download(DownloadOptions::new()).unwrap_err();
    assert!(error.to_string().contains("is there already"), "{error}");
    fs::write(case.target().join("a"), "old").unwrap();
    case.download(DownloadOptions::new().force(true)).unwrap();
    assert_eq!(case.read("a"), b"new");
    fs::write(case.target().join("thesis.tex"), "mine").unwrap();
    let error = case.download(DownloadOptions::new().force(true)).unwrap_err();
    assert!(error.to_string().contains("thesis.tex"), "{error}");
    assert_eq!(case.read("thesis.tex"), b"mine");
}

#[test]
fn a_server_that_is_gone_for_a_while_is_waited_for() {
    let case = Case::new();
    case.export(&[("a", b"content")]);
    case.server.when("/dl/0").answers([
        Answer::status(503, "starting"),
        Answer::dropped(),
        Answer::status(429, "busy"),
    ]);
    case.download(DownloadOptions::new()).unwrap();
    assert_eq!(case.ranges().len(), 4);
}

#[test]
fn a_sampler_checkpoint_comes_as_an_archive() {
    let case = Case::new();
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in [("adapter_config.json", "{}"), ("checkpoint_complete", "")] {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, content.as_bytes()).unwrap();
    }
    let url = case.server.add_file("/dl/checkpoint.tar", builder.into_inner().unwrap());
    let answer = json!({ "url": url, "expires": "2099-01-01T00:00:00Z" });
    let endpoint = "training_runs/run-1/checkpoints/sampler_weights/a/archive";
    case.server.when(endpoint).answer(Answer::json(answer));
    let path = "tinker://run-1/sampler_weights/a";
    let call = case.rest.download_checkpoint(path, case.target(), DownloadOptions::new());
    let done = call.wait().unwrap();
    assert_eq!(done.files, [Path::new("adapter_config.json"), Path::new("checkpoint_complete")]);
    assert_eq!(case.read("adapter_config.json"), b"{}");
    assert_eq!(case.names(), ["out"]);
}

#[test]
fn a_training_checkpoint_is_exported_for_the_download_and_the_export_deleted() {
    let case = Case::new();
    case.export(&[("adapter_config.json", b"{}")]);
    let path = "tinker://run-1/weights/step-1";
    case.server.add_checkpoint(path);
    let call = case.rest.download_checkpoint(path, case.target(), DownloadOptions::new());
    call.wait().unwrap();
    assert_eq!(case.read("adapter_config.json"), b"{}");
    let asked: Vec<_> = case
        .server
        .requests()
        .into_iter()
        .map(|seen| (seen.method.clone(), seen.endpoint().to_owned()))
        .collect();
    let place = |part: &str| {
        asked.iter().position(|(method, endpoint)| format!("{method} {endpoint}").contains(part))
    };
    let order = [
        "POST create_session",
        "POST load_weights",
        "POST save_weights_external",
        "_urls",
        "PUT",
        "DELETE",
        "/finish",
    ];
    let places: Vec<_> = order
        .iter()
        .map(|part| place(part).unwrap_or_else(|| panic!("{part}: {asked:?}")))
        .collect();
    assert!(places.is_sorted(), "{asked:?}");
    assert_eq!(case.server.asked("save_weights_external", "ttl_seconds"), [json!(3600)]);
}

#[test]
fn a_trace_is_fetched_to_a_file() {
    let case = Case::new();
    case.server.add_file("/dl/trace.pftrace", "a trace");
    let file = case.dir.path().join("t.pftrace");
    let size = case.rest.download_session_trace("session-a", &file).wait().unwrap();
    assert_eq!((size, fs::read(&file).unwrap()), (7, b"a trace".to_vec()));
}
