//! Against a hub of one thread that speaks as much of the protocol as a download needs.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::{
    config::{Settings, Values},
    models,
};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const ID: &str = "tin/nano";

type Files = BTreeMap<String, Vec<u8>>;

/// Serves `ID`, and to those who have a token `locked/nano`. Answers until the process ends.
struct Hub {
    endpoint: String,
    files: Files,
    /// Paths in the order in which they were asked for.
    asked: Mutex<Vec<String>>,
}

impl Hub {
    fn start(files: Files) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let hub = Arc::new(Self { endpoint, files, asked: Mutex::default() });
        let answering = Arc::clone(&hub);
        let answer =
            move || listener.incoming().for_each(|stream| answering.answer(stream.unwrap()));
        std::thread::Builder::new().name("hub".to_owned()).spawn(answer).unwrap();
        hub
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    fn answer(&self, mut stream: TcpStream) {
        let mut head = Vec::new();
        for line in BufReader::new(stream.try_clone().unwrap()).lines() {
            let line = line.unwrap();
            if line.is_empty() {
                break;
            }
            head.push(line);
        }
        let path = head[0].split(' ').nth(1).unwrap().to_owned();
        let header = |name: &str| {
            head.iter().find_map(|line| {
                let (key, value) = line.split_once(": ")?;
                key.eq_ignore_ascii_case(name).then(|| value.to_owned())
            })
        };
        let (status, headers, body) =
            self.reply(&path, header("range").as_deref(), header("authorization").as_deref());
        self.asked.lock().unwrap().push(path);
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&body).unwrap();
    }

    /// Status, further header lines, body.
    fn reply(
        &self,
        path: &str,
        range: Option<&str>,
        login: Option<&str>,
    ) -> (&'static str, String, Vec<u8>) {
        if path.contains("/locked/") && login != Some("Bearer secret") {
            return ("401 Unauthorized", String::new(), Vec::new());
        }
        if path.ends_with("/nano/revision/main") {
            let names = self.files.keys().map(|name| json!({ "rfilename": name }));
            let info = json!({ "sha": COMMIT, "siblings": names.collect::<Vec<_>>() });
            return ("200 OK", String::new(), info.to_string().into_bytes());
        }
        let name = path.rsplit('/').next().unwrap();
        let known =
            path.contains(&format!("/nano/resolve/{COMMIT}/")) || path.starts_with("/large/");
        let Some(content) = self.files.get(name).filter(|_| known) else {
            return ("404 Not Found", String::new(), Vec::new());
        };
        let etag = format!("{}-{}", name.len(), content.len());
        // Weights are elsewhere.
        if name.ends_with(".safetensors") && !path.starts_with("/large/") {
            let headers = format!(
                "Location: {}/large/{name}\r\nX-Linked-Etag: \"{etag}\"\r\nX-Repo-Commit: {COMMIT}\r\n",
                self.endpoint
            );
            return ("302 Found", headers, Vec::new());
        }
        let (start, end) = range.unwrap().strip_prefix("bytes=").unwrap().split_once('-').unwrap();
        let start: usize = start.parse().unwrap();
        let end = end.parse().map_or(content.len(), |last: usize| last + 1);
        let headers = format!(
            "ETag: \"{etag}\"\r\nX-Repo-Commit: {COMMIT}\r\nContent-Range: bytes {start}-{}/{}\r\n",
            end - 1,
            content.len()
        );
        ("206 Partial Content", headers, content[start..end].to_vec())
    }
}

fn access(home: &TempDir, endpoint: &str, token: Option<&str>) -> Access {
    Access {
        home: Some(home.path().to_owned()),
        token: token.map(str::to_owned),
        endpoint: endpoint.to_owned(),
    }
}

/// An address where nobody answers.
fn closed() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

fn nano() -> Files {
    let dir = models::shipped().unwrap();
    let names = REQUIRED.iter().chain(OPTIONAL).chain(&[SINGLE, "README.md"]);
    names.filter_map(|name| Some(((*name).to_owned(), fs::read(dir.join(name)).ok()?))).collect()
}

fn sharded() -> Files {
    let (one, two) = ("one.safetensors", "two.safetensors");
    let index = json!({ "weight_map": { "a": one, "b": two, "c": one } });
    let file = |name: &str, content: &str| (name.to_owned(), content.as_bytes().to_vec());
    Files::from([
        file("config.json", "{}"),
        file("tokenizer.json", "{ }"),
        file(INDEX, &index.to_string()),
        file(one, "first"),
        file(two, "the second"),
        file("other.bin", "not wanted"),
    ])
}

fn message(result: Result<PathBuf>) -> String {
    let message = format!("{:#}", result.unwrap_err());
    assert!(!message.contains('\n'), "{message}");
    message
}

#[test]
fn ids_have_an_organisation_and_a_name() {
    for id in ["Qwen/Qwen3-0.6B", "a/b", "_x/y_z.1", "0/1"] {
        assert!(is_id(id), "{id}");
    }
    let long = format!("a/{}", "b".repeat(ID_MAX));
    for text in [
        "", "nano", "a/b/c", "/a", "a/", "./a", "../a", "~/a", "a//b", ".a/b", "a/.b", "a/b.",
        "-a/b", "a/b-", "a/b--c", "a/b..c", "a b/c", "a/b\\c", "a/ü", "a/b?c", &long,
    ] {
        assert!(!is_id(text), "{text}");
    }
}

#[test]
fn a_model_is_downloaded_once_and_then_needs_no_network() {
    let home = tempfile::tempdir().unwrap();
    let hub = Hub::start(nano());
    let mut settings =
        Settings::new(&Values::load(&vec![("models", Some(ID.to_owned()))], None).unwrap())
            .unwrap();
    settings.hub = access(&home, &hub.endpoint, None);
    let offers = models::offers(&settings).unwrap();
    assert_eq!(offers.len(), 1);
    assert_eq!(offers[0].names, [ID, "base"]);
    assert_eq!(offers[0].tokenizer, ID);
    for (name, content) in nano().iter().filter(|(name, _)| *name != "README.md") {
        assert_eq!(&fs::read(offers[0].dir.join(name)).unwrap(), content, "{name}");
    }
    assert!(!offers[0].dir.join("README.md").exists());
    tinsmith_engine::ModelDir::open(&offers[0].dir).unwrap();
    tinsmith_tokenizer::Tokenizer::open(&offers[0].dir).unwrap();

    settings.hub = access(&home, &closed(), None);
    settings.models = vec![format!("mine={ID}")];
    let again = models::offers(&settings).unwrap();
    assert_eq!(again[0].dir, offers[0].dir);
    assert_eq!(again[0].names, ["mine", "base"]);
}

#[test]
fn shards_are_downloaded_and_what_is_there_is_kept() {
    let home = tempfile::tempdir().unwrap();
    let hub = Hub::start(sharded());
    let dir = fetch(ID, &access(&home, &hub.endpoint, None)).unwrap();
    assert_eq!(fs::read(dir.join("two.safetensors")).unwrap(), b"the second");
    assert!(!dir.join("other.bin").exists());
    let before = hub.asked();
    assert_eq!(fetch(ID, &access(&home, &hub.endpoint, None)).unwrap(), dir);
    assert_eq!(hub.asked(), before, "a whole snapshot asks nothing");

    fs::remove_file(dir.join("one.safetensors")).unwrap();
    fetch(ID, &access(&home, &hub.endpoint, None)).unwrap();
    assert_eq!(fs::read(dir.join("one.safetensors")).unwrap(), b"first");
    let asked = hub.asked.lock().unwrap()[before..].join(" ");
    assert!(asked.contains("one.safetensors") && !asked.contains("config.json"), "{asked}");
}

#[test]
fn an_interrupted_download_goes_on_where_it_stopped() {
    let home = tempfile::tempdir().unwrap();
    let blobs = home.path().join("hub/models--tin--nano/blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join("15-10.part"), "the s").unwrap();
    let hub = Hub::start(sharded());
    let dir = fetch(ID, &access(&home, &hub.endpoint, None)).unwrap();
    assert_eq!(fs::read(dir.join("two.safetensors")).unwrap(), b"the second");
}

#[test]
fn a_token_opens_what_is_locked() {
    let home = tempfile::tempdir().unwrap();
    let hub = Hub::start(sharded());
    let refused = message(fetch("locked/nano", &access(&home, &hub.endpoint, None)));
    assert!(refused.contains("set HF_TOKEN") && refused.contains("licence"), "{refused}");
    let let_in = access(&home, &hub.endpoint, Some("secret"));
    fetch("locked/nano", &let_in).unwrap();
    assert!(!format!("{let_in:?}").contains("secret"));
}

#[test]
fn errors_say_what_to_do() {
    let home = tempfile::tempdir().unwrap();
    let offline = message(fetch(ID, &access(&home, &closed(), None)));
    assert!(offline.contains("cannot reach the hub") && offline.contains("give DIR"), "{offline}");
    let hub = Hub::start(nano());
    let unknown = message(fetch("tin/none", &access(&home, &hub.endpoint, None)));
    assert!(unknown.contains("the hub says 404"), "{unknown}");
    let homeless = Access { home: None, ..access(&home, &hub.endpoint, None) };
    assert!(message(fetch(ID, &homeless)).contains("set HF_HOME"));

    for (lacking, hint) in [("tokenizer.json", "tokenizer.json"), (SINGLE, "weights")] {
        let mut files = nano();
        files.remove(lacking);
        let hub = Hub::start(files);
        let found = message(fetch(ID, &access(&home, &hub.endpoint, None)));
        assert!(found.contains(hint), "{found}");
        assert!(cached(ID, &Cache::new(home.path().join("hub"))).is_none());
    }
    let mut files = sharded();
    files.insert(INDEX.to_owned(), br#"{"weight_map": {"a": "../../x"}}"#.to_vec());
    let hub = Hub::start(files);
    let elsewhere = tempfile::tempdir().unwrap();
    let found = message(fetch(ID, &access(&elsewhere, &hub.endpoint, None)));
    assert!(found.contains("file name"), "{found}");
}
