use insta::assert_snapshot;
use serde_json::{Value, json};
use tinsmith_server::Config;
use tinsmith_store::Shortage;

use crate::harness::{Reply, Server, config, datum, forward_backward};

#[tokio::test]
async fn pending_is_408() {
    let server = Server::without_worker();
    let (_, model) = server.run().await;
    let id = server.post("forward_backward", forward_backward(&model, 1, &[datum()])).await;
    let body = json!({"request_id": id.text("request_id"), "allow_metadata_only": true});
    assert_snapshot!(server.post("retrieve_future", body).await.line(), @r#"408 {"queue_state":"active"}"#);
}

#[tokio::test]
async fn who_waits_for_room_is_told_so() {
    let server = Server::without_worker();
    let (_, model) = server.run().await;
    let id = server.post("forward_backward", forward_backward(&model, 1, &[datum()])).await;
    server.store.set_shortage(Shortage { runs: Some([].into()), samples: Some([].into()) });
    let body = json!({"request_id": id.text("request_id")});
    assert_snapshot!(server.post("retrieve_future", body).await.line(), @r#"408 {"queue_state":"paused_capacity","queue_state_reason":"all training runs that fit into the server's memory have work"}"#);
    let (_, sampler) = server.sampler().await;
    let id = server.post("asample", sample(&sampler, 0)).await.text("request_id");
    let body = json!({"request_id": id});
    assert_snapshot!(server.post("retrieve_future", body).await.line(), @r#"408 {"queue_state":"paused_capacity","queue_state_reason":"all samplers that fit into the server's memory have work"}"#);
}

#[tokio::test]
async fn unknown_requests() {
    let server = Server::without_worker();
    let body = json!({"request_id": "unknown"});
    assert_snapshot!(server.post("retrieve_future", body.clone()).await.line(), @r#"404 {"code":"not_found","detail":"request unknown not found"}"#);
    assert_snapshot!(server.post("cancel_future", body).await.line(), @"200 {}");
}

#[tokio::test]
async fn results_can_be_fetched_twice() {
    let server = Server::start();
    let (_, model) = server.run().await;
    let reply = server.post("forward_backward", forward_backward(&model, 1, &[datum()])).await;
    let id = reply.text("request_id");
    let first = server.result(&id, "application/x-protobuf").await;
    let second = server.result(&id, "application/x-protobuf").await;
    assert_eq!(first.body, second.body);
}

#[tokio::test]
async fn failures_are_json_whatever_is_accepted() {
    let server = Server::start();
    let (_, model) = server.run().await;
    let reply = server.post("forward_backward", forward_backward(&model, 1, &[])).await;
    let reply = server.result(&reply.text("request_id"), "application/x-protobuf").await;
    assert_eq!(reply.headers["content-type"], "application/json");
    assert_snapshot!(reply.line(), @r#"200 {"category":"user","error":"data is empty"}"#);
}

#[tokio::test]
async fn samples_can_be_cancelled() {
    let server = Server::without_worker();
    let (_, sampler) = server.sampler().await;
    let body = json!({
        "sampling_session_id": sampler, "seq_id": 0, "sampling_params": {"max_tokens": 4},
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": [1, 2]}]},
    });
    let body = json!({"request_id": server.post("asample", body).await.text("request_id")});
    assert_eq!(server.post("cancel_future", body.clone()).await.status, 200);
    assert_eq!(server.post("cancel_future", body).await.status, 200);
}

#[tokio::test]
async fn a_worker_hears_of_a_cancelled_sample() {
    let server = Server::without_worker();
    let (_, sampler) = server.sampler().await;
    let body = json!({
        "sampling_session_id": sampler, "seq_id": 0, "sampling_params": {"max_tokens": 4},
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": [1, 2]}]},
    });
    let id = server.post("asample", body).await.text("request_id");
    let claimed = server.store.claim(9, std::time::Duration::ZERO).await.unwrap();
    let claimed = claimed.last().unwrap();
    assert_eq!(claimed.request_id.as_str(), id);
    assert!(server.store.wants_sample(&claimed.request_id));
    let body = json!({"request_id": id});
    assert_eq!(server.post("cancel_future", body.clone()).await.status, 200);
    let cancelled = server.store.cancelled_samples();
    assert_eq!(cancelled, std::slice::from_ref(&claimed.request_id));
    assert!(!server.store.wants_sample(&claimed.request_id));
    assert_snapshot!(server.post("retrieve_future", body).await.line(), @r#"200 {"category":"user","error":"cancelled"}"#);
}

#[tokio::test]
async fn samples_of_an_earlier_start_are_gone() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = Some(folder.path().to_owned());
    let first = Server::open(config(), data_dir.clone());
    let (_, sampler) = first.sampler().await;
    let body = json!({
        "sampling_session_id": sampler, "seq_id": 0, "sampling_params": {"max_tokens": 4},
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": [1, 2]}]},
    });
    let id = first.post("asample", body.clone()).await.text("request_id");
    first.store.close();
    drop(first);
    let second = Server::open(config(), data_dir);
    let reply = second.post("retrieve_future", json!({"request_id": id})).await;
    assert_snapshot!(reply.line().replace(&id, "R"), @r#"410 {"code":"request_expired","detail":"the sample R is not kept any more: it belongs to an earlier start of the server, or its retention is over; submit the sample again"}"#);
    // The SDK submits it again, to the same sampler.
    assert_eq!(second.post("asample", body).await.status, 200);
}

fn sample(sampler: &str, seq_id: i64) -> Value {
    json!({
        "sampling_session_id": sampler, "seq_id": seq_id, "sampling_params": {"max_tokens": 4},
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": [1, 2]}]},
    })
}

async fn feed(server: &Server, sampler: &str, more: Value) -> Reply {
    let target = json!({"type": "sampling_session", "sampling_session_id": sampler});
    let mut body = json!({"target": target});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    server.post("retrieve_futures", body).await
}

#[tokio::test]
async fn a_feed_tells_what_ended() {
    let server = Server::start();
    let (_, sampler) = server.sampler().await;
    let none = feed(&server, &sampler, json!({"timeout": 0.0})).await;
    assert_snapshot!(none.line(), @r#"200 {"completions":[],"cursor":0}"#);
    let id = server.post("asample", sample(&sampler, 0)).await.text("request_id");
    let mut ended = json!({"completions": []});
    while ended["completions"] == json!([]) {
        ended = feed(&server, &sampler, json!({"prev_cursor": 0})).await.json();
    }
    let result = server.result(&id, "application/x-protobuf").await;
    let size = result.body.len();
    assert_eq!(
        ended["completions"],
        json!([{"state": "finished", "request_id": id, "response_payload_uncompressed_size": size}])
    );
    let ack = json!({"prev_cursor": ended["cursor"], "timeout": 0, "retrieved_request_ids": [id]});
    let ack = feed(&server, &sampler, ack).await.json();
    assert_eq!(ack, json!({"completions": [], "cursor": ended["cursor"]}));
    assert_eq!(server.post("retrieve_future", json!({"request_id": id})).await.status, 410);
}

#[tokio::test]
async fn a_feed_tells_what_was_cancelled() {
    let server = Server::without_worker();
    let (_, sampler) = server.sampler().await;
    let id = server.post("asample", sample(&sampler, 0)).await.text("request_id");
    server.post("cancel_future", json!({"request_id": id})).await;
    let ended = feed(&server, &sampler, json!({})).await.json();
    assert_eq!(ended["completions"], json!([{"state": "failed", "request_id": id}]));
}

#[tokio::test]
async fn feeds_that_cannot_be() {
    let server = Server::without_worker();
    let (_, sampler) = server.sampler().await;
    assert_snapshot!(feed(&server, "x", json!({})).await.line(), @r#"404 {"code":"not_found","detail":"sampling session x not found"}"#);
    for timeout in [json!(-1), json!(1e300)] {
        let refused = feed(&server, &sampler, json!({"timeout": timeout})).await;
        assert_eq!((refused.status.as_u16(), &*refused.text("code")), (400, "invalid_timeout"));
    }
    let target = json!({"target": {"type": "training_run", "sampling_session_id": sampler}});
    assert_eq!(server.post("retrieve_futures", target).await.status, 400);
}

#[tokio::test]
async fn large_results_are_announced_to_who_allows_it() {
    let config = Config { unannounced_bytes_max: 10, ..config() };
    let server = Server::start_with(config);
    let (_, sampler) = server.sampler().await;
    let id = server.post("asample", sample(&sampler, 0)).await.text("request_id");
    let ask = async |allow: bool| {
        let body = json!({"request_id": id, "allow_metadata_only": allow}).to_string();
        let headers = [("content-type", "application/json"), ("accept", "application/x-protobuf")];
        server.post_bytes("retrieve_future", &headers, body).await
    };
    let announced = ask(true).await;
    let size = ask(false).await.body.len();
    assert_eq!(
        announced.json(),
        json!({"status": "complete_metadata", "response_payload_size": size})
    );
}
