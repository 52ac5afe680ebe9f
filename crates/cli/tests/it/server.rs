//! `tinsmith serve` with the model that ships, as a process of its own, and a client that adds nothing to
//! what is sent.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use reqwest::{Client, Method, Url, header::HeaderMap};
use serde_json::{Value, json};

/// Nothing here takes this long; what does is a hang.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// The model that ships, under the names that recordings use.
const NAMES: [&str; 2] = ["Qwen/Qwen3-8B", "Qwen/Qwen3-8B:long"];

/// What it logs, in its folder.
const LOG: &str = "log";

pub(crate) struct Server {
    process: Child,
    url: Url,
    client: Client,
    data: tempfile::TempDir,
    /// It would not bear to speak to nobody.
    _output: BufReader<ChildStdout>,
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    /// The body, where it is JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap_or_default())
    }
}

impl Server {
    pub(crate) fn start() -> Self {
        // Another test may have been first.
        drop(rustls::crypto::ring::default_provider().install_default());
        let data = tempfile::tempdir().unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut command = Command::new(env!("CARGO_BIN_EXE_tinsmith"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TINSMITH_")) {
            command.env_remove(name);
        }
        command.current_dir(data.path()).arg("serve");
        for name in NAMES {
            command.arg(format!("{name}={}", root.join("models/nano").display()));
        }
        command.args(["--port", "0", "--memory", "3GiB", "--threads", "1", "--data-dir"]);
        let log = fs::File::create(data.path().join(LOG)).unwrap();
        command.arg(data.path().join("data")).stdout(Stdio::piped()).stderr(log);
        let mut process = command.spawn().unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        let mut said = output.by_ref().lines().map_while(Result::ok);
        let url = said.find(|line| line.starts_with("http")).unwrap_or_else(|| {
            panic!("it does not start: {:?}", fs::read_to_string(data.path().join(LOG)))
        });
        let url = url.split(' ').next().unwrap().parse().unwrap();
        let client = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .timeout(ANSWER_TIMEOUT)
            .build()
            .unwrap();
        Self { process, url, client, data, _output: output }
    }

    /// Where it listens.
    pub(crate) fn url(&self) -> &str {
        self.url.as_str()
    }

    /// Sends this, and nothing else.
    ///
    /// # Errors
    ///
    /// No answer: the connection broke, or it took longer than [`ANSWER_TIMEOUT`].
    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: HeaderMap,
        body: Vec<u8>,
    ) -> Result<Reply, reqwest::Error> {
        let url = self.url.join(path).unwrap();
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let mut request = self.client.request(method, url).headers(headers);
        if !body.is_empty() {
            request = request.body(body);
        }
        let response = request.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Ok(Reply { status, headers, body: response.bytes().await?.to_vec() })
    }

    /// Posts JSON, which has to be answered.
    pub(crate) async fn post(&self, endpoint: &str, body: &Value) -> Reply {
        let mut headers = HeaderMap::new();
        headers.insert("content-type", "application/json".parse().unwrap());
        let path = format!("/api/v1/{endpoint}");
        self.send("POST", &path, headers, body.to_string().into_bytes()).await.unwrap()
    }

    /// Polls until there is a result.
    pub(crate) async fn result(&self, request_id: &str) -> Value {
        self.result_within(request_id, usize::MAX).await.unwrap()
    }

    /// Polls so many times, each for half a minute.
    pub(crate) async fn result_within(&self, request_id: &str, polls: usize) -> Option<Value> {
        for _ in 0..polls {
            let reply = self.post("retrieve_future", &json!({"request_id": request_id})).await;
            if reply.status != 408 {
                assert_eq!(reply.status, 200, "{reply:?}");
                return Some(reply.json());
            }
        }
        None
    }

    /// Submits it and waits for its result; returns the refusal if it is refused.
    pub(crate) async fn done(&self, endpoint: &str, body: &Value) -> Value {
        let submitted = self.post(endpoint, body).await.json();
        match submitted["request_id"].as_str() {
            Some(id) => self.result(id).await,
            None => submitted,
        }
    }

    /// Lines of the log that no request may cause.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let log = fs::read_to_string(self.data.path().join(LOG)).unwrap();
        let is_bad = |line: &&str| line.contains("panicked") || line.contains("ERROR");
        log.lines().filter(is_bad).map(str::to_owned).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}
