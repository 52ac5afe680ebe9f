use insta::assert_snapshot;
use serde_json::json;

use crate::harness::Server;

#[tokio::test]
async fn create_is_idempotent_by_key() {
    let server = Server::without_worker();
    let create = async |key: &str, tag: &str| {
        let headers = [("content-type", "application/json"), ("x-idempotency-key", key)];
        let body = json!({"tags": [tag], "user_metadata": {}, "sdk_version": "0.38.0"}).to_string();
        server.post_bytes("create_session", &headers, body).await
    };
    let first = create("k1", "a").await.text("session_id");
    assert_eq!(create("k1", "a").await.text("session_id"), first);
    assert_ne!(create("k2", "a").await.text("session_id"), first);
    assert_snapshot!(create("k1", "b").await.status, @"422 Unprocessable Entity");
}

#[tokio::test]
async fn large_metadata_is_refused() {
    let server = Server::without_worker();
    let body = json!({"tags": [], "user_metadata": {"a": "x".repeat(2000)}, "sdk_version": "1"});
    assert_snapshot!(server.post("create_session", body).await.line(), @r#"400 {"code":"metadata_too_large","detail":"user_metadata has more than 1000 bytes as JSON"}"#);
}

#[tokio::test]
async fn heartbeat_ends_with_the_session() {
    let server = Server::without_worker();
    let session = server.session().await;
    let beat =
        async |id: &str| server.post("session_heartbeat", json!({"session_id": id})).await.line();
    assert_snapshot!(beat(&session).await, @r#"200 {"type":"session_heartbeat"}"#);
    assert_snapshot!(beat("unknown").await, @r#"404 {"code":"not_found","detail":"session unknown not found"}"#);
    let finish = async |reason: &str| {
        let body = json!({"reason": {"type": reason}, "detail": null});
        server.post(&format!("sessions/{session}/finish"), body).await.line()
    };
    assert_snapshot!(finish("bored").await, @r#"400 {"code":"malformed_body","detail":"failed to read the JSON body: `reason.type`: unknown variant `bored`, expected one of `success`, `errored`, `interrupted` at line 1 column 39"}"#);
    assert_snapshot!(finish("success").await, @"200 null");
    assert_snapshot!(finish("errored").await, @"200 null");
    assert_snapshot!(beat(&session).await, @r#"410 {"code":"session_finished","detail":"the session has finished or expired; open a new one"}"#);
    let body = json!({"session_id": session, "model_seq_id": 0, "base_model": "nano"});
    assert_snapshot!(server.post("create_model", body).await.line(), @r#"410 {"code":"session_finished","detail":"the session has finished or expired; open a new one"}"#);
}

#[tokio::test]
async fn list_and_get() {
    let server = Server::start();
    let (session, model) = server.run().await;
    let body = json!({"session_id": session, "sampling_session_seq_id": 0, "base_model": "nano"});
    let sampler = server.post("create_sampling_session", body).await.text("sampling_session_id");
    let newer = server.session().await;
    let list = async |query: &str| server.get(&format!("/api/v1/sessions{query}")).await.json();
    assert_eq!(list("").await, json!({"sessions": [newer, session]}));
    assert_eq!(list("?limit=1&offset=1&access_scope=owned").await, json!({"sessions": [session]}));
    assert_snapshot!(server.get("/api/v1/sessions?limit=x").await.line(), @r#"400 {"code":"invalid_query","detail":"Failed to deserialize query string: limit: invalid digit found in string"}"#);
    let got = server.get(&format!("/api/v1/sessions/{session}")).await.json();
    assert_eq!(
        got,
        json!({"training_run_ids": [model], "sampler_ids": [sampler], "user_metadata": {}})
    );
    assert_snapshot!(server.get("/api/v1/sessions/unknown").await.line(), @r#"404 {"code":"not_found","detail":"session unknown not found"}"#);
}
