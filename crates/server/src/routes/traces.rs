//! A session's operations as a trace in the JSON format that Perfetto reads.
//!
//! Each run and each sampler is a process of one thread. An operation is an async span of its own in it, from
//! submission to end, with `queued` and `running` inside.

use std::collections::BTreeMap;

use axum::{Json, extract::State, http::HeaderMap, response::Response};
use jiff::Timestamp;
use serde_json::{Value, json};
use tinsmith_store::Span;
use tinsmith_types::{
    ids::{SessionId, TenantId},
    search::TraceExportResponse,
};

use crate::{
    body::off_thread,
    download::{self, Piece},
    error::{Error, Result},
    links::{Base, Signed, sign},
    segments::Path,
    state::{Shared, Tenant},
};

/// `GET sessions/{session_id}/trace_export`. There is nothing to wait for: the trace is made when it is fetched.
pub(crate) async fn export(
    State(app): State<Shared>,
    Tenant(tenant): Tenant,
    base: Base,
    Path(id): Path<SessionId>,
) -> Result<Json<TraceExportResponse>> {
    app.store.session(&tenant, &id).await?;
    let link = sign(&app, &base, &format!("/api/v1/traces/{tenant}/{id}"));
    Ok(Json(TraceExportResponse::Ready { url: link.url }))
}

/// `GET traces/{tenant}/{session_id}`: the trace up to now.
pub(crate) async fn trace(
    _: Signed,
    State(app): State<Shared>,
    headers: HeaderMap,
    Path((tenant, id)): Path<(TenantId, SessionId)>,
) -> Result<Response> {
    // It takes memory, as a download does.
    let waiting = tokio::time::timeout(app.config.poll_wait_max, app.downloads.acquire());
    let Ok(Ok(place)) = waiting.await else {
        return Err(Error::Full { what: "the number of downloads at one time" });
    };
    let spans_max = app.config.trace_spans_max;
    let (spans, cut) = app.store.session_spans(&tenant, &id, spans_max).await?;
    let now = app.clock.now();
    let title = id.clone();
    let bytes = off_thread(usize::MAX, move || render(&title, &spans, cut, now)).await?;
    drop(place);
    let etag = blake3::hash(&bytes).to_hex();
    download::send(&app, &headers, vec![Piece::Bytes(bytes.into())], &etag).await
}

fn render(session: &SessionId, spans: &[Span], cut: bool, now: Timestamp) -> Vec<u8> {
    let mut tracks: BTreeMap<&str, usize> = BTreeMap::new();
    let mut events: Vec<Value> = Vec::with_capacity(spans.len() * 6);
    for span in spans {
        let next = tracks.len() + 1;
        tracks.entry(&span.target).or_insert_with(|| {
            for name in ["process_name", "thread_name"] {
                let args = json!({"name": span.target});
                events
                    .push(json!({"ph": "M", "pid": next, "tid": next, "name": name, "args": args}));
            }
            next
        });
    }
    // A run works on its requests one after the other, though some wait inside the engine.
    let mut free: BTreeMap<&str, Timestamp> = BTreeMap::new();
    for span in spans {
        let ended = span.finished_at.unwrap_or(now).max(span.created_at);
        let mut started = span.started_at.map(|at| at.clamp(span.created_at, ended));
        if span.seq_id.is_some() {
            let before = free.entry(&span.target).or_insert(span.created_at);
            started = started.map(|at| at.max(*before).min(ended));
            *before = ended.max(*before);
        }
        push(&mut events, tracks[span.target.as_str()], span, (started, ended));
    }
    let trace = json!({
        "displayTimeUnit": "ms",
        "otherData": {"session_id": session, "truncated": cut},
        "traceEvents": events,
    });
    trace.to_string().into_bytes()
}

/// The events of one operation, from outside to inside and back.
fn push(
    events: &mut Vec<Value>,
    track: usize,
    span: &Span,
    (started, ended): (Option<Timestamp>, Timestamp),
) {
    let category = span.kind.name();
    let name = match span.seq_id {
        Some(seq_id) => format!("{category} {seq_id}"),
        None => category.to_owned(),
    };
    let args = json!({
        "request_id": span.request_id,
        "failed": span.failed,
        "open": span.finished_at.is_none(),
    });
    let mut event = |phase: &str, name: &str, at: Timestamp, args: &Value| {
        events.push(json!({
            "ph": phase, "cat": category, "id": span.request_id, "pid": track, "tid": track,
            "ts": at.as_microsecond(), "name": name, "args": args,
        }));
    };
    let none = json!({});
    event("b", &name, span.created_at, &args);
    event("b", "queued", span.created_at, &none);
    event("e", "queued", started.unwrap_or(ended), &none);
    if let Some(started) = started {
        event("b", "running", started, &none);
        event("e", "running", ended, &none);
    }
    event("e", &name, ended, &none);
}

#[cfg(test)]
mod tests {
    use tinsmith_store::RequestKind;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn span(target: &str, seq_id: Option<i64>, times: (i64, i64, Option<i64>)) -> Span {
        let (created, started, finished) = times;
        let kind = if seq_id.is_some() { RequestKind::OptimStep } else { RequestKind::Sample };
        Span {
            target: target.to_owned(),
            request_id: format!("r{created}").into(),
            kind,
            seq_id,
            created_at: at(created),
            started_at: Some(at(started)),
            finished_at: finished.map(at),
            failed: false,
        }
    }

    #[test]
    fn a_track_has_its_operations() {
        let spans = [
            span("run", Some(1), (0, 1, Some(5))),
            span("run", Some(2), (1, 2, Some(7))),
            span("sampler", None, (3, 4, None)),
        ];
        let trace = render(&"s".into(), &spans, true, at(9));
        let trace: Value = serde_json::from_slice(&trace).unwrap();
        assert_eq!(trace["otherData"], json!({"session_id": "s", "truncated": true}));
        let seconds = |event: &Value| event["ts"].as_i64().unwrap_or_default() / 1_000_000;
        let lines: Vec<String> = trace["traceEvents"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|event| event["name"] != "thread_name")
            .map(|event| {
                let (phase, name) =
                    (event["ph"].as_str().unwrap(), event["name"].as_str().unwrap());
                format!("{} {phase} {name} {}", event["pid"], seconds(event))
            })
            .collect();
        let expected = [
            "1 M process_name 0",
            "2 M process_name 0",
            "1 b optim_step 1 0",
            "1 b queued 0",
            "1 e queued 1",
            "1 b running 1",
            "1 e running 5",
            "1 e optim_step 1 5",
            // The engine had it, but came to it when the one before was done.
            "1 b optim_step 2 1",
            "1 b queued 1",
            "1 e queued 5",
            "1 b running 5",
            "1 e running 7",
            "1 e optim_step 2 7",
            "2 b sample 3",
            "2 b queued 3",
            "2 e queued 4",
            "2 b running 4",
            "2 e running 9",
            "2 e sample 9",
        ];
        assert_eq!(lines, expected);
    }
}
