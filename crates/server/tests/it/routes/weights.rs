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
    let inflight = json!({"path": "a", "kind": "inflight"});
    assert_snapshot!(check("save_weights_for_sampler", inflight).await, @r#"200 {"category":"user","error":"kind \"inflight\" has no path: what is saved under a name does not move; leave out one of the two"}"#);
    assert_snapshot!(check("load_weights", json!({"path": "/etc/passwd", "optimizer": true})).await, @r#"200 {"category":"user","error":"failed to read checkpoint path `/etc/passwd`: does not begin with `tinker://`"}"#);
    let sampler = json!({"path": "tinker://a/sampler_weights/b"});
    assert_snapshot!(check("load_weights", sampler).await, @r#"200 {"category":"user","error":"tinker://a/sampler_weights/b holds no weights to train from; those are saved by save_weights"}"#);
    let external =
        |recipients: Value| json!({"path": "a", "age_encryption_recipients": recipients});
    let good = "age1m60dkltm0hqmf56mv8pweep4xulcxs7gtduxwnddl3lpgmug9d8s0dmj33";
    assert_snapshot!(check("save_weights_external", external(json!([]))).await, @r#"200 {"category":"user","error":"age_encryption_recipients: the list is empty; leave it out for files in the clear"}"#);
    assert_snapshot!(check("save_weights_external", external(json!([good, "age1example"]))).await, @r#"200 {"category":"user","error":"age_encryption_recipients[1]: it is a damaged age recipient (invalid Bech32 encoding)"}"#);
    assert_snapshot!(check("save_weights_external", json!({"path": "a/b"})).await, @r#"200 {"category":"user","error":"path \"a/b\" is no name of a checkpoint: one segment without `/` and control characters, at most 255 bytes"}"#);
    assert_snapshot!(check("save_weights_external", json!({"path": "a", "ttl_seconds": 1})).await, @r#"200 {"category":"user","error":"ttl_seconds must be from 3600 to 315360000 (one hour to ten years)"}"#);
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
    assert_snapshot!(line(json!({"optimizer_config": {"type": "dimuon", "version": 1}})).await, @r#"400 {"code":"unsupported_optimizer","detail":"optimizer_config.type \"dimuon\" is not supported: its algorithm is not published; known: adamw"}"#);
    assert_snapshot!(line(json!({"optimizer": true, "optimizer_config": {"type": "dimuon", "version": 1}})).await, @r#"400 {"code":"unsupported_optimizer","detail":"optimizer_config.type \"dimuon\" is not supported: its algorithm is not published; known: adamw"}"#);
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

#[tokio::test]
async fn external_weights_are_downloaded_by_links() {
    let server = Server::start();
    let (_, model) = server.run().await;
    let save =
        json!({"model_id": model, "seq_id": 1, "path": "a", "type": "save_weights_external"});
    let saved = server.done("save_weights_external", save).await;
    assert_eq!(saved.text("path"), format!("tinker://{model}/external_weights/a"));
    server.done("save_weights", json!({"model_id": model, "seq_id": 2, "path": "b"})).await;

    let place = format!("/api/v1/training_runs/{model}/checkpoints");
    let urls = format!("{place}/external_weights/a/external_weights_urls");
    assert_snapshot!(server.get(&urls).await.line(), @r#"400 {"code":"host_required","detail":"the Host header has to say how you reach this server: links are made with it"}"#);
    let reply = server.get_with(&urls, &[("host", "localhost:8000")]).await.json();
    assert!(reply["expires"].as_str().unwrap().ends_with('Z'));
    let url = reply["urls"]["adapter_model.safetensors"].as_str().unwrap();
    let file = server.get(url.strip_prefix("http://localhost:8000").unwrap()).await;
    assert_eq!((file.status.as_u16(), &file.body[..]), (200, &b"weights"[..]));
    let wrong = format!("{place}/weights/b/external_weights_urls");
    let wrong = server.get_with(&wrong, &[("host", "localhost:8000")]).await;
    assert_snapshot!(wrong.line(), @r#"400 {"code":"not_external","detail":"weights/b is no export; save_weights_external makes one that can be downloaded"}"#);

    // Old SDKs fail on a listing with such a checkpoint.
    for (agent, count) in [("AsyncTinker/Python 0.26.2", 1), ("AsyncTinker/Python 0.38.0", 2)] {
        for path in [place.as_str(), "/api/v1/checkpoints"] {
            let list = server.get_with(path, &[("user-agent", agent)]).await.json();
            assert_eq!(list["checkpoints"].as_array().unwrap().len(), count, "{agent} {path}");
        }
    }
    let path = saved.text("path");
    let sampler = json!({"session_id": server.session().await, "sampling_session_seq_id": 0, "model_path": path});
    assert_eq!(server.post("create_sampling_session", sampler).await.status, 400);
}

#[tokio::test]
async fn copies_have_a_run_of_their_own() {
    let server = Server::start();
    let (session, model) = server.run().await;
    let save = json!({"model_id": model, "seq_id": 1, "path": "a", "user_metadata": {"k": "v"}});
    let source = server.done("save_weights", save).await.text("path");
    let copy = async |key: &str, body: Value| {
        let headers = [("content-type", "application/json"), ("x-idempotency-key", key)];
        server.post_bytes("copy_weights", &headers, body.to_string()).await
    };
    let body = json!({"source_path": source, "destination_project_id": "p"});
    let first = copy("1", body.clone()).await.text("tinker_path");
    assert_eq!(copy("1", body.clone()).await.text("tinker_path"), first);
    assert_ne!(copy("2", body.clone()).await.text("tinker_path"), first);
    let other = json!({"source_path": source, "destination_project_id": "q"});
    assert_eq!(copy("1", other).await.status, 422);
    let timed = json!({"source_path": source, "destination_project_id": "p", "ttl_seconds": 3600});
    let timed = copy("5", timed).await.text("tinker_path");
    let owner = timed.trim_start_matches("tinker://").split(':').next().unwrap();
    let owner = server.get(&format!("/api/v1/sessions/{owner}")).await.json();
    assert_eq!(owner["user_metadata"], json!({"copied_from": source, "ttl_seconds": "3600"}));
    let listed = server.get("/api/v1/checkpoints?project_id=p").await.json();
    assert_eq!(listed["cursor"]["total_count"], json!(3));
    assert_eq!(listed["checkpoints"][1]["user_metadata"], json!({"k": "v"}));

    // Into a place of a session that goes on.
    let body = json!({"session_id": session, "model_seq_id": 5, "source_path": source});
    let placed = copy("3", body.clone()).await.text("tinker_path");
    assert_eq!(placed, format!("tinker://{session}:train:5/weights/a"));
    assert_eq!(copy("4", body).await.text("tinker_path"), placed);
    let run = format!("{session}:train:5");
    let step = json!({"model_id": run, "seq_id": 1, "adam_params": {"learning_rate": 0.1}});
    assert_snapshot!(server.post("optim_step", step).await.line().replace(&session, "S"), @r#"400 {"code":"run_is_copy","detail":"run S:train:5 holds a copy of tinker://S:train:0/weights/a and cannot be trained; create a run from the copy with load_weights"}"#);
    let create = json!({"session_id": session, "model_seq_id": 5, "base_model": "nano"});
    assert_eq!(server.post("create_model", create).await.status, 422);
    let load = json!({"session_id": session, "model_seq_id": 6, "path": placed, "optimizer": true});
    assert_eq!(server.done("load_weights", load).await.status, 200);

    let refused =
        async |body: Value| server.post("copy_weights", body).await.line().replace(&session, "S");
    assert_snapshot!(refused(json!({"source_path": "tinker://x/weights/a"})).await, @r#"404 {"code":"not_found","detail":"checkpoint `a` of x not found"}"#);
    assert_snapshot!(refused(json!({"source_path": source, "session_id": session})).await, @r#"400 {"code":"invalid_copy","detail":"wants either session_id and model_seq_id, or destination_project_id"}"#);
    assert_snapshot!(refused(json!({"source_path": source, "ttl_seconds": 5})).await, @r#"400 {"code":"invalid_ttl","detail":"ttl_seconds must be from 3600 to 315360000 (one hour to ten years)"}"#);
}

#[tokio::test]
async fn tokens_stand_for_their_tenant() {
    let server = Server::start();
    let (session, model) = server.run().await;
    let save = json!({"model_id": model, "seq_id": 1, "path": "a"});
    let path = server.done("save_weights", save).await.text("path");
    let load = json!({
        "session_id": session, "model_seq_id": 1, "path": path, "weights_access_token": "tml-other",
        "read_as": "somebody",
    });
    assert_eq!(server.done("load_weights", load).await.status, 200);
    let info = json!({"tinker_path": path, "weights_access_token": "tml-other"});
    assert_eq!(server.post("weights_info", info).await.status, 200);
}
