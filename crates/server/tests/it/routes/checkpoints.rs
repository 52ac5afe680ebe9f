use insta::assert_snapshot;
use serde_json::{Value, json};

use crate::harness::Server;

/// A server with a run that has one checkpoint of each kind, `weights/a` and `sampler_weights/b`.
async fn saved() -> (Server, String) {
    let server = Server::start();
    let (_, model) = server.run().await;
    let save = json!({"model_id": model, "seq_id": 1, "path": "a", "user_metadata": {"k": "v"}});
    server.done("save_weights", save).await;
    let save = json!({"model_id": model, "seq_id": 2, "path": "b"});
    server.done("save_weights_for_sampler", save).await;
    (server, model)
}

fn ids(reply: &Value) -> Vec<String> {
    let checkpoints = reply["checkpoints"].as_array().unwrap();
    checkpoints.iter().map(|each| each["checkpoint_id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn lists() {
    let (server, model) = saved().await;
    let of_run = server.get(&format!("/api/v1/training_runs/{model}/checkpoints")).await.json();
    assert_eq!(ids(&of_run), ["sampler_weights/b", "weights/a"]);
    let old = server.get(&format!("/api/v1/models/{model}/checkpoints")).await.json();
    assert_eq!(old, of_run);
    let page = server.get("/api/v1/checkpoints?limit=1&offset=1").await.json();
    assert_eq!(page["cursor"], json!({"offset": 1, "limit": 1, "total_count": 2}));
    let mut one = page["checkpoints"][0].clone();
    assert!(one["time"].take().is_string());
    assert!(one["size_bytes"].take().is_u64());
    assert_snapshot!(one.to_string().replace(&model, "M"), @r#"{"checkpoint_id":"weights/a","checkpoint_type":"training","public":false,"size_bytes":null,"time":null,"tinker_path":"tinker://M/weights/a","user_metadata":{"k":"v"}}"#);
    let run = server.get(&format!("/api/v1/training_runs/{model}")).await.json();
    assert_eq!(run["last_checkpoint"]["checkpoint_id"], json!("weights/a"));
    assert_eq!(run["last_sampler_checkpoint"]["checkpoint_id"], json!("sampler_weights/b"));
    assert_eq!(server.get("/api/v1/training_runs/x/checkpoints").await.status, 404);
}

#[tokio::test]
async fn delete() {
    let (server, model) = saved().await;
    let delete = async |id: &str| {
        server
            .send_json("DELETE", &format!("training_runs/{model}/checkpoints/{id}"), json!(null))
            .await
    };
    let reply = delete("weights/a").await;
    assert_eq!((reply.status.as_u16(), reply.body.len()), (204, 0));
    assert_snapshot!(delete("weights/a").await.line().replace(&model, "M"), @r#"404 {"code":"not_found","detail":"checkpoint `a` of M not found"}"#);
    assert_snapshot!(delete("heavy/a").await.line(), @r#"400 {"code":"invalid_value","detail":"failed to read checkpoint kind `heavy`: is none of `weights`, `sampler_weights` and `external_weights`"}"#);
    let left = server.get("/api/v1/checkpoints").await.json();
    assert_eq!(ids(&left), ["sampler_weights/b"]);
}

#[tokio::test]
async fn publish_and_ttl() {
    let (server, model) = saved().await;
    let send = async |method: &str, action: &str, body: Value| {
        let path = format!("training_runs/{model}/checkpoints/weights/a/{action}");
        server.send_json(method, &path, body).await
    };
    let shown = async |field: &str| {
        server.get("/api/v1/checkpoints").await.json()["checkpoints"][1][field].clone()
    };
    for _ in 0..2 {
        assert_eq!(send("POST", "publish", json!(null)).await.status, 204);
        assert_eq!(shown("public").await, json!(true));
    }
    assert_eq!(send("DELETE", "publish", json!(null)).await.status, 204);
    assert_eq!(shown("public").await, json!(false));
    assert_snapshot!(send("PUT", "ttl", json!({"ttl_seconds": 5})).await.line(), @r#"400 {"code":"invalid_ttl","detail":"ttl_seconds must be from 3600 to 315360000 (one hour to ten years)"}"#);
    assert_eq!(send("PUT", "ttl", json!({"ttl_seconds": 7200})).await.status, 204);
    assert!(shown("expires_at").await.is_string());
    assert_eq!(send("PUT", "ttl", json!({"ttl_seconds": null})).await.status, 204);
    assert_eq!(shown("expires_at").await, Value::Null);
}
