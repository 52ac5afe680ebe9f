use serde_json::Value;

use crate::harness::{Server, datum, forward_backward};

#[tokio::test]
async fn a_trace_is_fetched_by_its_link() {
    let server = Server::start();
    let (session, model) = server.run().await;
    server.done("forward_backward", forward_backward(&model, 1, &[datum()])).await;
    let export = async |id: &str| {
        let request = axum::http::Request::get(format!("/api/v1/sessions/{id}/trace_export"));
        let request = request.header("host", "localhost:8000");
        server.send(request.body(axum::body::Body::empty()).unwrap()).await
    };
    let reply = export(&session).await;
    assert_eq!(reply.text("status"), "ready");
    let url = reply.text("url");
    let path = url.strip_prefix("http://localhost:8000").unwrap();
    let fetched = server.get(path).await;
    assert_eq!(fetched.headers["content-length"], fetched.body.len().to_string());
    let trace: Value = fetched.json();
    let events = trace["traceEvents"].as_array().unwrap();
    let begun: Vec<&str> = events
        .iter()
        .filter(|event| event["ph"] == "b" && event["name"] != "queued")
        .map(|event| event["name"].as_str().unwrap())
        .collect();
    // The made-up worker does not say when it begins.
    assert_eq!(begun, ["create_model 0", "forward_backward 1"]);
    assert_eq!(server.get(&path.replace(&session, "another")).await.status, 403);
    assert_eq!(export("another").await.status, 404);
}
