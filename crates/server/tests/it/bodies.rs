//! Bodies that are too large, broken, or not what they claim to be.

use axum::{
    body::Body,
    http::{Request, header},
};
use bytes::Bytes;
use insta::assert_snapshot;
use serde_json::json;

use crate::harness::{Reply, Server, config};

const JSON: (&str, &str) = ("content-type", "application/json");
const PROTOBUF: (&str, &str) = ("content-type", "application/x-protobuf");
const ZSTD: (&str, &str) = ("content-encoding", "zstd");

/// Checks what the SDK needs to see of a refusal, and returns it for a snapshot.
fn refusal(reply: &Reply) -> String {
    let length = reply.headers.get(header::CONTENT_LENGTH).map(|value| value.to_str().unwrap());
    assert_eq!(length, Some(reply.body.len().to_string().as_str()));
    assert!(!reply.body.is_empty());
    assert!(reply.headers.get(header::CONTENT_ENCODING).is_none());
    assert!(reply.headers.get("x-request-id").is_some());
    reply.line()
}

#[tokio::test]
async fn malformed_json() {
    let server = Server::without_worker();
    let check = async |body: &'static str| {
        refusal(&server.post_bytes("create_session", &[JSON], body).await)
    };
    assert_snapshot!(check("").await, @r#"400 {"code":"malformed_body","detail":"failed to read the JSON body: a request is a JSON object"}"#);
    assert_snapshot!(check("{").await, @r#"400 {"code":"malformed_body","detail":"failed to read the JSON body: `?`: EOF while parsing an object at line 1 column 1"}"#);
    assert_snapshot!(check("{} {}").await, @r#"400 {"code":"malformed_body","detail":"failed to read the JSON body: trailing characters at line 1 column 4"}"#);
    assert_snapshot!(check("[1]").await, @r#"400 {"code":"malformed_body","detail":"failed to read the JSON body: a request is a JSON object"}"#);
    assert_snapshot!(check(r#"{"tags": "a", "sdk_version": "1"}"#).await, @r#"400 {"code":"malformed_body","detail":"failed to read the JSON body: `tags`: invalid type: string \"a\", expected a sequence at line 1 column 12"}"#);
    assert_snapshot!(check(r#"{"tags": [NaN], "sdk_version": "1"}"#).await, @r#"400 {"code":"malformed_body","detail":"failed to read the JSON body: `tags[0]`: expected value at line 1 column 11"}"#);
}

#[tokio::test]
async fn deep_nesting_is_refused() {
    let server = Server::without_worker();
    let deep =
        format!(r#"{{"tags":[],"sdk_version":"1","user_metadata":{{"a":{}"#, "[".repeat(100_000));
    let reply = server.post_bytes("create_session", &[JSON], deep).await;
    assert_snapshot!(refusal(&reply), @r#"400 {"code":"malformed_body","detail":"failed to read the JSON body: `user_metadata.a[0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0]`: recursion limit exceeded at line 1 column 176"}"#);
}

#[tokio::test]
async fn broken_protobuf() {
    let server = Server::without_worker();
    let reply = server.post_bytes("forward_backward", &[PROTOBUF], "\u{7}junk").await;
    assert_snapshot!(refusal(&reply), @r#"400 {"code":"malformed_body","detail":"failed to read the protobuf body: wire type 7"}"#);
    let reply = server.post_bytes("optim_step", &[PROTOBUF], "").await;
    assert_snapshot!(refusal(&reply), @r#"400 {"code":"malformed_body","detail":"this endpoint takes JSON, not protobuf"}"#);
}

#[tokio::test]
async fn empty_messages_are_counted_before_they_are_made() {
    let server = Server::without_worker();
    let empty_datums = [0x1a, 0].repeat(400_000);
    let reply = server.post_bytes("forward_backward", &[PROTOBUF], empty_datums).await;
    assert_snapshot!(refusal(&reply), @r#"400 {"code":"too_many_parts","detail":"protobuf body has more than 65536 parts"}"#);
}

#[tokio::test]
async fn zstd_is_bounded() {
    let server = Server::without_worker();
    let check = async |body: Vec<u8>| {
        refusal(&server.post_bytes("forward_backward", &[PROTOBUF, ZSTD], body).await)
    };
    let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 3).unwrap();
    assert!(bomb.len() < 1 << 16);
    assert_snapshot!(check(bomb).await, @r#"413 {"code":"body_too_large","detail":"request body has more than 4194304 bytes after decompression"}"#);
    let mut truncated = zstd::bulk::compress(&vec![0; 1 << 16], 3).unwrap();
    truncated.truncate(truncated.len() - 2);
    assert_snapshot!(check(truncated).await, @r#"400 {"code":"malformed_body","detail":"zstd: incomplete frame"}"#);
    assert_snapshot!(check(b"not zstd at all".to_vec()).await, @r#"400 {"code":"malformed_body","detail":"zstd: Unknown frame descriptor"}"#);
}

#[tokio::test]
async fn other_encodings_are_refused() {
    let server = Server::without_worker();
    let headers = [JSON, ("content-encoding", "br")];
    let reply = server.post_bytes("create_session", &headers, "{}").await;
    assert_snapshot!(refusal(&reply), @r#"400 {"code":"unsupported_content_encoding","detail":"content-encoding \"br\" is not supported; known: zstd"}"#);
}

#[tokio::test]
async fn large_bodies_are_refused_before_they_are_held() {
    let server = Server::without_worker();
    let large = vec![b' '; (1 << 20) + 1];
    let reply = server.post_bytes("create_session", &[JSON], large.clone()).await;
    assert_snapshot!(refusal(&reply), @r#"413 {"code":"body_too_large","detail":"request body has more than 1048576 bytes as sent"}"#);
    let parts = large.chunks(1000).map(Bytes::copy_from_slice).map(Ok::<_, std::io::Error>);
    let chunked = Body::from_stream(futures_util::stream::iter(parts.collect::<Vec<_>>()));
    let reply = server.post_bytes("create_session", &[JSON], chunked).await;
    assert_snapshot!(refusal(&reply), @r#"413 {"code":"body_too_large","detail":"request body has more than 1048576 bytes as sent"}"#);
    let declared = Request::post("/api/v1/create_session").header("content-length", "99999999999");
    let reply = server.send(declared.body(Body::from("{}")).unwrap()).await;
    assert_snapshot!(refusal(&reply), @r#"413 {"code":"body_too_large","detail":"request body has more than 1048576 bytes as sent"}"#);
}

#[tokio::test]
async fn bodies_share_a_budget() {
    let mut small = config();
    small.body_bytes_in_flight_max = 4 << 10;
    let server = Server::with(small);
    let reply = server.post_bytes("create_session", &[JSON], vec![b' '; 8 << 10]).await;
    assert_snapshot!(refusal(&reply), @r#"429 {"code":"full","detail":"the budget of request bodies is full; try again"}"#);
    assert_eq!(reply.headers["retry-after"], "1");
    // Nothing stays taken.
    let body = json!({"tags": [], "sdk_version": "1"});
    for _ in 0..10 {
        assert_eq!(server.post("create_session", body.clone()).await.status, 200);
    }
}

#[tokio::test]
async fn slow_bodies_end() {
    let mut quick = config();
    quick.body_timeout = std::time::Duration::from_millis(20);
    let server = Server::with(quick);
    let never = Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>());
    let reply = server.post_bytes("create_session", &[JSON], never).await;
    assert_snapshot!(refusal(&reply), @r#"408 {"code":"body_timeout","detail":"request body took longer than 0 s to arrive"}"#);
}

#[tokio::test]
async fn mistaken_names_are_refused() {
    let server = Server::without_worker();
    let (session, _) = server.run().await;
    let body = json!({
        "session_id": session, "model_seq_id": 1, "path": "tinker://a/weights/b", "load_optimizer": true,
    });
    assert_snapshot!(refusal(&server.post("load_weights", body).await), @r#"400 {"code":"mistaken_field","detail":"failed to read the JSON body: `load_optimizer` is not a field here; use `optimizer`"}"#);
    let body = json!({"tags": [], "sdk_version": "1", "brand_new": 1});
    assert_eq!(server.post("create_session", body).await.status, 200);
}
