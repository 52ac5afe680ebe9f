//! A mock server that says what another one has said.

use std::io;

use super::{Answer, Exchange, MockServer, Recording};

/// Stands for the server in recordings.
const RECORDED_SERVER: &str = "http://tinker.example";

impl MockServer {
    /// Answers as recorded, each recorded answer once: to a request with the same method, path and query, and for
    /// polls and for requests of a number in a run or sampler also the same `request_id`, or number. The ids are
    /// the recorded ones, since servers give them; addresses of the recorded server become this one's. Other
    /// requests are answered as usual.
    ///
    /// # Errors
    ///
    /// A recorded body cannot be read.
    pub fn replay(&self, recording: &Recording) -> io::Result<()> {
        for exchange in &recording.exchanges {
            let answer = self.recorded_answer(exchange)?;
            let request = exchange.request.clone();
            let rule = self.when(request.endpoint()).matching(move |seen| {
                let same_key = |field: &str| {
                    let (recorded, now) = (&request.says()[field], &seen.body[field]);
                    recorded.is_null() || recorded == now
                };
                seen.method == request.method
                    && seen.query == request.query
                    && ["request_id", "model_id", "sampling_session_id", "seq_id"]
                        .into_iter()
                        .all(same_key)
            });
            rule.answer(answer);
        }
        Ok(())
    }

    fn recorded_answer(&self, exchange: &Exchange) -> io::Result<Answer> {
        let response = &exchange.response;
        let Some(status) = response.status else { return Ok(Answer::dropped()) };
        let ours = |text: &str| text.replace(RECORDED_SERVER, &self.url());
        let content_type = match response.headers.get("content-type").map(String::as_str) {
            Some(text) if text.contains("x-protobuf") => "application/x-protobuf",
            Some(text) if text.contains("json") => "application/json",
            Some(_) | None => "text/plain",
        };
        let body = match &response.body {
            None => bytes::Bytes::new(),
            Some(body) if body.json.is_some() || body.text.is_some() => {
                let bytes = body.bytes()?;
                ours(&String::from_utf8_lossy(&bytes)).into()
            }
            Some(body) => body.bytes()?,
        };
        let mut answer = Answer::bytes(status, content_type, body);
        for (name, value) in &response.headers {
            // The transport's own business.
            if !matches!(name.as_str(), "content-type" | "content-length" | "transfer-encoding") {
                answer = answer.header(name, &ours(value));
            }
        }
        Ok(answer)
    }
}
