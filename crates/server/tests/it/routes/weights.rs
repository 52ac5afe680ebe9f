use insta::assert_snapshot;
use serde_json::{Value, json};

use crate::harness::Server;

#[tokio::test]
async fn save_and_look_at_it() {
    let server = Server::start();
    let (session, model) = server.run().await;
    let save = json!({"model_id": model, "seq_id": 1, "path": "a", "ttl_seconds": 3600});
    let saved = server.done("save_weights", save).await;
    assert_eq!(saved.text("path"), format!("tinker://{model}/weights/a"));
    let info = server.post("weights_info", json!({"tinker_path": saved.text("path")})).await;
    assert_snapshot!(info.line().replace(&session, "S"), @r#"200 {"base_model":"nano","is_lora":true,"lora_rank":8,"optimizer_config":{"type":"adamw"},"train_attn":true,"train_mlp":true,"train_unembed":true}"#);
    let unnamed = server.done("save_weights", json!({"model_id": model, "seq_id": 2})).await;
    assert_eq!(unnamed.text("path"), format!("tinker://{model}/weights/seq-2"));
}

#[tokio::test]
async fn save_for_sampler() {
    let server = Server::start();
    let (session, model) = server.run().await;
    let named =
        json!({"model_id": model, "seq_id": 1, "path": "a", "type": "save_weights_for_sampler"});
    let named = server.done("save_weights_for_sampler", named).await;
    assert_eq!(named.text("path"), format!("tinker://{model}/sampler_weights/a"));
    let unnamed = async |seq_id: i64, sampler: i64| {
        let body = json!({"model_id": model, "seq_id": seq_id, "sampling_session_seq_id": sampler});
        server.done("save_weights_for_sampler", body).await
    };
    assert_eq!(unnamed(2, 0).await.text("sampling_session_id"), format!("{session}:sample:0"));
    // The SDK raises the sampler's number when it repeats the request.
    assert_eq!(unnamed(2, 1).await.text("sampling_session_id"), format!("{session}:sample:0"));
    let sampler = server.get(&format!("/api/v1/samplers/{session}:sample:0")).await;
    assert_eq!(sampler.text("base_model"), "nano");
}

#[tokio::test]
async fn faults_fail_their_future() {
    let server = Server::start();
    let (_, model) = server.run().await;
    let mut seq_id = 0;
    let mut check = async |endpoint: &str, mut body: Value| {
        seq_id += 1;
        body["model_id"] = json!(model);
        body["seq_id"] = json!(seq_id);
        server.done(endpoint, body).await.line()
    };
    assert_snapshot!(check("save_weights", json!({"path": "a/b"})).await, @r#"200 {"category":"user","error":"path \"a/b\" is no name of a checkpoint: one segment without `/` and control characters, at most 255 bytes"}"#);
    assert_snapshot!(check("save_weights", json!({"path": ""})).await, @r#"200 {"category":"user","error":"path \"\" is no name of a checkpoint: one segment without `/` and control characters, at most 255 bytes"}"#);
    assert_snapshot!(check("save_weights", json!({"path": "a", "ttl_seconds": 1})).await, @r#"200 {"category":"user","error":"ttl_seconds must be from 3600 to 315360000 (one hour to ten years)"}"#);
    assert_snapshot!(check("save_weights_for_sampler", json!({})).await, @r#"200 {"category":"user","error":"wants either path, to save under that name, or sampling_session_seq_id"}"#);
    let inflight = json!({"sampling_session_seq_id": 0, "kind": "inflight"});
    assert_snapshot!(check("save_weights_for_sampler", inflight).await, @r#"200 {"category":"user","error":"kind \"inflight\" is not supported by this server; use \"snapshot\""}"#);
    assert_snapshot!(check("load_weights", json!({"path": "/etc/passwd", "optimizer": true})).await, @r#"200 {"category":"user","error":"failed to read checkpoint path `/etc/passwd`: does not begin with `tinker://`"}"#);
    let sampler = json!({"path": "tinker://a/sampler_weights/b"});
    assert_snapshot!(check("load_weights", sampler).await, @r#"200 {"category":"user","error":"tinker://a/sampler_weights/b holds no weights to train from; those are saved by save_weights"}"#);
    let token = json!({"path": "tinker://a/weights/b", "weights_access_token": "t"});
    assert_snapshot!(check("load_weights", token).await, @r#"200 {"category":"user","error":"weights_access_token is not supported by this server; publish the checkpoint instead"}"#);
}

#[tokio::test]
async fn create_from_a_checkpoint() {
    let server = Server::start();
    let (session, model) = server.run().await;
    let saved =
        server.done("save_weights", json!({"model_id": model, "seq_id": 1, "path": "a"})).await;
    let load = async |change: Value| {
        let mut body = json!({
            "session_id": session, "model_seq_id": 3, "path": saved.text("path"), "optimizer": false,
            "type": "load_weights",
        });
        for (key, value) in change.as_object().unwrap() {
            body[key] = value.clone();
        }
        server.post("load_weights", body).await
    };
    let line = async |change: Value| load(change).await.line().replace(&session, "S");
    assert_snapshot!(line(json!({"path": "tinker://x/weights/a"})).await, @r#"404 {"code":"not_found","detail":"checkpoint `a` of x not found"}"#);
    assert_snapshot!(line(json!({"path": "tinker://x/y"})).await, @r#"400 {"code":"invalid_load","detail":"failed to read checkpoint path `tinker://x/y`: is not `tinker://<run>/<kind>/<name>`"}"#);
    assert_snapshot!(line(json!({"path": "tinker://x/sampler_weights/a"})).await, @r#"400 {"code":"invalid_load","detail":"tinker://x/sampler_weights/a holds no weights to train from; those are saved by save_weights"}"#);
    assert_snapshot!(line(json!({"base_model": "gpt"})).await, @r#"400 {"code":"unknown_base_model","detail":"base_model \"gpt\" is not offered; known: nano, Qwen/Qwen3-8B"}"#);
    assert_snapshot!(line(json!({"optimizer_config": {"type": "dimuon", "version": 1}})).await, @r#"400 {"code":"unsupported_optimizer","detail":"optimizer_config.type \"dimuon\" is not supported; known: adamw"}"#);
    assert_snapshot!(line(json!({"weights_access_token": "t"})).await, @r#"400 {"code":"invalid_load","detail":"weights_access_token is not supported by this server; publish the checkpoint instead"}"#);
    let created = load(json!({})).await;
    assert_eq!(created.text("model_id"), format!("{session}:train:3"));
    assert_eq!(load(json!({})).await.text("request_id"), created.text("request_id"));
    assert_eq!(server.result(&created.text("request_id"), "application/json").await.status, 200);
    let info = server.post("get_info", json!({"model_id": created.text("model_id")})).await;
    assert_eq!(
        (info.json()["lora_rank"].clone(), info.text("model_name")),
        (json!(8), "nano".to_owned())
    );
    // Into a run that is there.
    let body =
        json!({"model_id": model, "seq_id": 2, "path": saved.text("path"), "optimizer": true});
    assert_eq!(server.done("load_weights", body).await.status, 200);
    assert_snapshot!(server.post("load_weights", json!({"path": saved.text("path")})).await.line()
        .replace(&session, "S"), @r#"400 {"code":"invalid_value","detail":"failed to read load_weights: wants either `model_id`, or `session_id` and `model_seq_id`"}"#);
}

#[tokio::test]
async fn weights_info_of_unknown_paths() {
    let server = Server::without_worker();
    let check =
        async |path: &str| server.post("weights_info", json!({"tinker_path": path})).await.line();
    assert_snapshot!(check("tinker://a/weights/b").await, @r#"404 {"code":"not_found","detail":"checkpoint `b` of a not found"}"#);
    assert_snapshot!(check("a/weights/b").await, @r#"400 {"code":"invalid_value","detail":"failed to read checkpoint path `a/weights/b`: does not begin with `tinker://`"}"#);
    assert_snapshot!(check("tinker://a/heavy/b").await, @r#"400 {"code":"invalid_value","detail":"failed to read checkpoint kind `heavy`: is none of `weights`, `sampler_weights` and `external_weights`"}"#);
}
