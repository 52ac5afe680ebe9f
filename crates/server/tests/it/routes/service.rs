use insta::assert_snapshot;
use serde_json::json;

use crate::harness::Server;

#[tokio::test]
async fn health() {
    let server = Server::without_worker();
    assert_snapshot!(server.get("/api/v1/healthz").await.line(), @r#"200 {"status":"ok"}"#);
    assert_snapshot!(server.get("/api/v1/readyz").await.line(), @r#"200 {"status":"ready"}"#);
    server.store.close();
    assert_snapshot!(server.get("/api/v1/healthz").await.line(), @r#"200 {"status":"ok"}"#);
    assert_snapshot!(server.get("/api/v1/readyz").await.line(), @r#"503 {"code":"not_ready","detail":"the store accepts no writes"}"#);
}

#[tokio::test]
async fn metrics() {
    let server = Server::without_worker();
    let reply = server.get("/metrics").await;
    assert_eq!((reply.status.as_u16(), &reply.body[..]), (200, &b"tinsmith_up 1\n"[..]));
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a line for each endpoint")]
async fn root_lists_all_endpoints() {
    let server = Server::without_worker();
    let reply = server.get("/").await;
    let endpoints = reply.json()["endpoints"].as_array().unwrap().clone();
    let line = |endpoint: &serde_json::Value| {
        let text = |field: &str| endpoint[field].as_str().unwrap().to_owned();
        format!("{} {}", text("method"), text("path"))
    };
    let lines: Vec<String> = endpoints.iter().map(line).collect();
    assert_snapshot!(lines.join("\n"), @r"
    GET /
    GET /openapi.json
    GET /metrics
    GET /api/v1/healthz
    GET /api/v1/readyz
    POST /api/v1/client/config
    POST /api/v1/client/dynamic_config
    GET /api/v1/get_server_capabilities
    POST /api/v1/auth/token
    GET /api/v1/auth/apikey/me
    DELETE /api/v1/auth/apikey/me
    POST /api/v1/telemetry
    POST /api/v1/create_session
    POST /api/v1/session_heartbeat
    GET /api/v1/sessions
    POST /api/v1/sessions/search
    GET /api/v1/sessions/{session_id}
    POST /api/v1/sessions/{session_id}/finish
    PUT /api/v1/sessions/{session_id}/project
    GET /api/v1/sessions/{session_id}/trace_export
    GET /api/v1/traces/{tenant}/{session_id}
    POST /api/v1/create_model
    POST /api/v1/get_info
    POST /api/v1/forward
    POST /api/v1/forward_backward
    POST /api/v1/optim_step
    POST /api/v1/create_custom_loss
    POST /api/v1/unload_model
    POST /api/v1/save_weights
    POST /api/v1/save_weights_for_sampler
    POST /api/v1/save_weights_external
    POST /api/v1/load_weights
    POST /api/v1/copy_weights
    POST /api/v1/weights_info
    POST /api/v1/create_sampling_session
    POST /api/v1/join_sampling_session
    GET /api/v1/samplers/{sampler_id}
    POST /api/v1/asample
    POST /api/v1/retrieve_future
    POST /api/v1/retrieve_futures
    POST /api/v1/cancel_future
    GET /api/v1/training_runs
    GET /api/v1/training_runs/{run_id}
    GET /api/v1/training_runs/{run_id}/checkpoints
    GET /api/v1/models/{run_id}/checkpoints
    GET /api/v1/checkpoints
    DELETE /api/v1/training_runs/{run_id}/checkpoints/{kind}/{name}
    POST /api/v1/training_runs/{run_id}/checkpoints/{kind}/{name}/publish
    DELETE /api/v1/training_runs/{run_id}/checkpoints/{kind}/{name}/publish
    PUT /api/v1/training_runs/{run_id}/checkpoints/{kind}/{name}/ttl
    GET /api/v1/training_runs/{run_id}/checkpoints/{kind}/{name}/external_weights_urls
    GET /api/v1/training_runs/{run_id}/checkpoints/{kind}/{name}/archive
    GET /api/v1/downloads/{blob}/{file}
    GET /api/v1/archives/{blob}
    GET /api/v1/audit
    GET /api/v1/billing/usage/events
    GET /api/v1/billing/usage/checkpoints/current
    POST /api/v1/forward_async
    POST /api/v1/forward_backward_async
    POST /api/v1/optim_step_async
    POST /api/v1/add_lora
    POST /api/v1/add_lora_async
    POST /api/v1/remove_lora
    POST /api/v1/remove_lora_async
    POST /api/v1/load_weights_async
    POST /api/v1/save_weights_async
    POST /api/v1/save_weights_for_sampler_async
    POST /api/v1/sample
    POST /retrieve_future
    POST /fwd
    POST /fwdbwd
    POST /optim_step
    POST /add_lora
    POST /remove_lora
    POST /load_weights
    POST /save_weights
    POST /save_weights_for_sampler
    GET /healthz
    GET /get_server_capabilities
    POST /get_info
    GET /list_loss_functions
    GET /api/v1/list_loss_functions
    POST /register_custom_loss
    POST /api/v1/register_custom_loss
    GET /favicon.ico
    ");
}

#[tokio::test]
async fn client_flags() {
    let server = Server::without_worker();
    let body = json!({"sdk_version": "0.38.0"});
    assert_snapshot!(server.post("client/config", body.clone()).await.line(), @r#"200 {"custom_loss_server_side":true,"parallel_fwdbwd_chunks":true,"proto_compress_fwdbwd":true,"sample_join_sampling_session":true,"sample_use_retrieve_futures":true}"#);
    assert_snapshot!(server.post("client/dynamic_config", body).await.line(), @r#"200 {"sample_cancel_enabled":true}"#);
}

#[tokio::test]
async fn capabilities() {
    let server = Server::without_worker();
    assert_snapshot!(server.get("/api/v1/get_server_capabilities").await.line(), @r#"200 {"supported_models":[{"max_context_length":64,"model_name":"nano","sampleable":true,"trainable":true},{"max_context_length":64,"model_name":"Qwen/Qwen3-8B","sampleable":true,"trainable":true}]}"#);
}

#[tokio::test]
async fn unknown_paths_and_methods() {
    let server = Server::without_worker();
    assert_snapshot!(server.get("/api/v1/nonsense").await.line(), @r#"404 {"code":"no_such_endpoint","detail":"no such endpoint: /api/v1/nonsense; GET / lists all"}"#);
    assert_snapshot!(server.get("/api/v1/create_model").await.line(), @r#"405 {"code":"method_not_allowed","detail":"method GET is not allowed on /api/v1/create_model; GET / lists all endpoints"}"#);
    assert_snapshot!(server.send_json("DELETE", "sessions/a", json!(null)).await.line(), @r#"405 {"code":"method_not_allowed","detail":"method DELETE is not allowed on /api/v1/sessions/a; GET / lists all endpoints"}"#);
}

#[tokio::test]
async fn web_pages_are_kept_out() {
    let server = Server::without_worker();
    let session = json!({"tags": [], "sdk_version": "0.38.0"}).to_string();
    let post = async |host: &str, origin: &str| {
        let headers = [("host", host), ("origin", origin), ("content-type", "text/plain")];
        server.post_bytes("create_session", &headers, session.clone()).await.line()
    };
    assert_snapshot!(post("127.0.0.1:8000", "http://evil.example").await, @r#"403 {"code":"foreign_origin","detail":"web pages of \"http://evil.example\" may not use this server"}"#);
    assert_snapshot!(post("evil.example:8000", "http://evil.example:8000").await, @r#"403 {"code":"foreign_host","detail":"the host \"evil.example:8000\" is no name of the address that this server listens on; use localhost, 127.0.0.1 or [::1]"}"#);
    let sessions = server.get("/api/v1/sessions").await.json();
    assert_eq!(sessions["sessions"].as_array().map(Vec::len), Some(0), "{sessions}");
    let same = [("host", "localhost:8000"), ("origin", "http://localhost:8000")];
    let reply = server.post_bytes("create_session", &same, session).await;
    assert_eq!(reply.status, 200, "{}", reply.line());
    let sdk = [("host", "127.0.0.1:8000")];
    let reply = server.post_bytes("client/config", &sdk, r#"{"sdk_version":"0.38.0"}"#).await;
    assert_eq!(reply.status, 200, "{}", reply.line());
}

#[tokio::test]
async fn openapi_has_every_endpoint() {
    let server = Server::without_worker();
    let listed = server.get("/").await.json();
    let document = server.get("/openapi.json").await.json();
    let mut described = 0;
    for endpoint in listed["endpoints"].as_array().unwrap() {
        let (path, method) =
            (endpoint["path"].as_str().unwrap(), endpoint["method"].as_str().unwrap());
        let operation = &document["paths"][path][method.to_ascii_lowercase()];
        assert_eq!(operation["summary"], endpoint["about"], "{method} {path}");
        // What is written in the table of bodies is found in that of routes.
        described += usize::from(operation["requestBody"].is_object());
        let parameters = operation["parameters"].as_array().map_or(0, Vec::len);
        assert_eq!(parameters, path.matches('{').count(), "{path}");
    }
    let paths = document["paths"].as_object().unwrap().values();
    let operations = paths.map(|methods| methods.as_object().unwrap().len()).sum::<usize>();
    assert_eq!(operations, listed["endpoints"].as_array().unwrap().len());
    assert!(described >= 25, "{described}");
    assert_snapshot!("openapi", serde_json::to_string_pretty(&document["paths"]).unwrap());
    let finish = &document["paths"]["/api/v1/sessions/{session_id}/finish"]["post"];
    assert_snapshot!(finish["requestBody"], @r#"{"content":{"application/json":{"schema":{"properties":{"detail":{"type":"string"},"reason":{}},"required":["reason"],"type":"object"}}},"required":true}"#);
    assert_snapshot!(finish["parameters"], @r#"[{"in":"path","name":"session_id","required":true,"schema":{"type":"string"}}]"#);
    assert_snapshot!(finish["responses"]["4XX"], @r##"{"content":{"application/json":{"schema":{"$ref":"#/components/schemas/Error"}}},"description":"refused"}"##);
}
